"""Documents from data sets that TensorFlow Datasets has prepared, without TensorFlow; and preparing
one from text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.document import Document
from gptjax.data.documents.text import Text, read_text_files


@dataclass(frozen=True)
class Tfds:
    """A data set that TensorFlow Datasets has prepared as array_record or parquet. TensorFlow is
    not needed to read it."""

    name: str
    """`name`, `name/config` or `name/config:1.0.0` in `data_dir`, or a folder that holds
    dataset_info.json."""
    split: str = "train"
    """Split, for example `train` or `train[:10%]`."""
    field: str = "text"
    """The feature that has the text."""
    data_dir: str | None = None
    """Folder of prepared data sets; `None` is the one of TensorFlow Datasets."""


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        need = "pip install tensorflow-datasets importlib_resources array_record"
        raise ConfigError(
            f"TensorFlow Datasets can't be imported ({error}); run `{need}`."
        ) from None
    return tensorflow_datasets


def read_tfds(source: Tfds) -> Iterator[Document]:
    """Yields every record whose text isn't empty, in order.

    Raises:
      ConfigError: the data set is absent, can't be read here, or has no text; on the way, not at
        the call.
    """
    tfds = _import_tfds()
    builder = tfds.builder_from_directory(_prepared(source))
    features = builder.info.features
    known = sorted(features) if isinstance(features, tfds.features.FeaturesDict) else []
    hint = f"choose one with --data.source.field: {', '.join(known)}"
    require(source.field in known, f"{source.name} has no field {source.field!r}; {hint}.")
    records = _records(builder, source)
    any_text = False
    for index in range(len(records)):
        text = _text(records, index, source, builder, hint)
        if text:
            any_text = True
            yield Document(text, f"{builder.name}:{source.split}:{index}")
    require(
        any_text,
        f"{source.name}:{source.split} is empty; give a source that has text with"
        " --data.source.name NAME or --data.source.split SPLIT.",
    )


def _records(builder: Any, source: Tfds) -> Any:
    """The records of a split, by index."""
    try:
        return builder.as_data_source(source.split)
    except NotImplementedError:
        raise ConfigError(
            f"{source.name} is prepared as {builder.info.file_format.value}, which needs"
            " TensorFlow; where that is installed, run `tfds convert_format"
            f" --dataset_version_dir={builder.data_dir} --out_file_format=array_record`."
        ) from None
    except (ValueError, KeyError):
        raise ConfigError(
            f"{source.name} has no split {source.split!r}; choose one with --data.source.split:"
            f" {', '.join(builder.info.splits)}."
        ) from None


def _text(records: Any, index: int, source: Tfds, builder: Any, hint: str) -> str:
    """The text of a record."""
    try:
        text = records[index][source.field]
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(
            f"record {index} of {source.name}:{source.split} can't be read"
            f" ({' '.join(str(error).split())}); fetch or prepare {builder.data_dir} again, or pass"
            " --data.source.name NAME."
        ) from None
    require(
        isinstance(text, (bytes, str)),
        f"{source.name} has no text in {source.field!r} but {type(text).__name__}; {hint}.",
    )
    try:
        return text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source.name}:{source.split}:{index} is not UTF-8 at byte {error.start} of"
            f" {source.field!r}; {hint}."
        ) from None


def _prepared(source: Tfds) -> Path:
    """The folder with dataset_info.json. Only files are looked at: builder classes would import
    TensorFlow."""
    if "/" in source.name and (Path(source.name) / "dataset_info.json").is_file():
        return Path(source.name)
    root = Path(
        source.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    name, _, version = source.name.partition(":")
    folder = root / name
    matches = [
        path.parent
        for pattern in ("*", "*/*")
        for path in folder.glob(f"{pattern}/dataset_info.json")
        if version in ("", path.parent.name)
    ]
    require(
        bool(matches),
        f"{source.name} is not prepared in {root}; run `tfds build {source.name}"
        f" --data_dir={root} --file_format=array_record` where TensorFlow is installed (only"
        " preparing needs it; gptjax.data.documents.tfds.prepare_tfds needs none for text of your"
        " own), or pass --data.source.data-dir DIR.",
    )
    configs = sorted({path.parent for path in matches})
    names = ", ".join(f"{name}/{config.name}" for config in configs)
    require(
        len(configs) == 1,
        f"{source.name} has several configs in {root}; choose one with --data.source.name:"
        f" {names}.",
    )
    return max(matches, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])


def prepare_tfds(source: Text, data_dir: Path | str, name: str) -> Path:
    """Writes the documents of `source`, in their order, as the split `train` of a data set with the
    feature `text`, and returns its folder.

    Any program reads it with `tfds.builder_from_directory`. TensorFlow is not needed.

    Raises:
      ConfigError: the name is not lower_case, is taken, or the source can't be read.
    """
    require(
        bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)),
        f"the data set's name is {name!r}; it needs lower-case letters, digits and _.",
    )
    require(
        not (Path(data_dir) / name).exists(),
        f"{Path(data_dir) / name} is there already; choose another name, or delete it.",
    )
    tfds = _import_tfds()

    class Documents(tfds.dataset_builders.AdhocBuilder, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        """Replaces the original, which imports TensorFlow to check the type of its input."""

        def _split_generators(self, dl_manager: Any) -> dict:
            return {
                "train": (
                    (i, {"text": document.text})
                    for i, document in enumerate(read_text_files(source))
                )
            }

    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    described = {
        "name": name,
        "version": "1.0.0",
        "features": features,
        "description": "Documents written by gptjax.",
    }
    builder = Documents(
        **described,
        split_datasets={},
        data_dir=data_dir,
        file_format="array_record",
        disable_shuffling=True,
    )
    builder.download_and_prepare()
    return Path(builder.data_dir)
