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
    """Which part, for example `train` or `train[:10%]`."""
    field: str = "text"
    """The feature that has the text."""
    data_dir: str | None = None
    """Where prepared data sets are; without it, where TensorFlow Datasets puts them."""


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
    """Gives every record whose text isn't empty, in order.

    Raises:
      ConfigError: the data set is absent, can't be read here, or has no text; on the way, not at
        the call.
    """
    tfds = _import_tfds()
    builder = tfds.builder_from_directory(_prepared(source))
    features = builder.info.features
    known = sorted(features) if isinstance(features, tfds.features.FeaturesDict) else []
    wanted = f"choose one with --data.source.field: {', '.join(known)}"
    require(source.field in known, f"{source.name} has no field {source.field!r}; {wanted}.")
    splits = ", ".join(builder.info.splits)
    try:
        records = builder.as_data_source(source.split)
    except NotImplementedError:
        command = (
            f"tfds convert_format --dataset_version_dir={builder.data_dir}"
            " --out_file_format=array_record"
        )
        found = (
            f"{source.name} is prepared as {builder.info.file_format.value}, which needs TensorFlow"
        )
        raise ConfigError(f"{found}; where that is installed, run `{command}`.") from None
    except (ValueError, KeyError):
        raise ConfigError(
            f"{source.name} has no split {source.split!r}; choose one with --data.source.split:"
            f" {splits}."
        ) from None
    found = False
    for index in range(len(records)):
        try:
            text = records[index][source.field]
        except (RuntimeError, OSError, ValueError) as error:
            found = (
                f"record {index} of {source.name}:{source.split} can't be read"
                f" ({' '.join(str(error).split())})"
            )
            raise ConfigError(
                f"{found}; fetch or prepare {builder.data_dir} again, or pass --data.source.name"
                " NAME."
            ) from None
        require(
            isinstance(text, (bytes, str)),
            f"{source.name} has no text in {source.field!r} but {type(text).__name__}; {wanted}.",
        )
        try:
            text = text.decode("utf-8") if isinstance(text, bytes) else text
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{source.name}:{source.split}:{index} is not UTF-8 at byte {error.start} of"
                f" {source.field!r}; {wanted}."
            ) from None
        if text:
            found = True
            yield Document(text, f"{builder.name}:{source.split}:{index}")
    flags = "--data.source.name NAME or --data.source.split SPLIT"
    require(
        found, f"{source.name}:{source.split} is empty; give a source that has text with {flags}."
    )


def _prepared(source: Tfds) -> Path:
    """Finds the folder with dataset_info.json. Only files are looked at: builder classes would
    import TensorFlow."""
    if "/" in source.name and (Path(source.name) / "dataset_info.json").is_file():
        return Path(source.name)
    root = Path(
        source.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    name, _, version = source.name.partition(":")
    folder = root / name
    found = [
        path.parent
        for pattern in ("*", "*/*")
        for path in folder.glob(f"{pattern}/dataset_info.json")
        if version in ("", path.parent.name)
    ]
    configs = sorted({path.parent for path in found})
    command = f"tfds build {source.name} --data_dir={root} --file_format=array_record"
    need = (
        "where TensorFlow is installed (only preparing needs it;"
        " gptjax.data.documents.tfds.prepare_tfds needs none for text of your own)"
    )
    require(
        bool(found),
        f"{source.name} is not prepared in {root}; run `{command}` {need}, or pass"
        " --data.source.data-dir DIR.",
    )
    names = ", ".join(f"{name}/{config.name}" for config in configs)
    require(
        len(configs) == 1,
        f"{source.name} has several configs in {root}; choose one with --data.source.name:"
        f" {names}.",
    )
    return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def prepare_tfds(source: Text, data_dir: Path | str, name: str) -> Path:
    """Writes the documents of `source`, in their order, as the split `train` of a data set with the
    feature `text`.

    Gives its folder, which any program reads with `tfds.builder_from_directory`. TensorFlow is not
    needed.

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

    class Documents(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
        """The original asks whether its input is a `tf.data.Dataset`, and so imports TensorFlow."""

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
