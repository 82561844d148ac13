"""Documents from text files, folders, JSONL, the standard library, TensorFlow Datasets, and mixtures of these.

Read in this order: `Text`, `Tfds`, `Mixture`, what a config can name; `read`, which gives their documents one at a time;
`fingerprint`; then how each kind is read.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import os
import re
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gptjax.config import ConfigError, nearest, require


class Document(NamedTuple):
    """A whole text, and where it was found."""

    text: str
    name: str
    """`file`, `file:line` or `data set:split:index`; the same on every machine."""


@dataclass(frozen=True)
class Text:
    """Text files. A .jsonl (or .ndjson) file has one document a line, any other file is one; .gz is unpacked."""

    path: str | None = None
    """A file or a folder; without it, the source text of the Python standard library."""
    field: str = "text"
    """Where a line of JSONL has its text."""
    pattern: str = "**/*"
    """Which files of a folder are read; hidden and binary ones never are."""
    max_bad_records: int = 0
    """Lines of JSONL that may be passed over because nothing can be read from them."""

    def __post_init__(self) -> None:
        require(self.path != "", "data.source.path is empty; give a file or a folder: pass --data.source.path FILE.")
        relative = bool(self.pattern) and not Path(self.pattern).is_absolute() and ".." not in Path(self.pattern).parts
        require(relative, f"data.source.pattern is {self.pattern!r}; it needs a pattern below the folder, for example '**/*.txt': pass --data.source.pattern.")
        require(self.max_bad_records >= 0, f"data.source.max_bad_records is {self.max_bad_records}; it needs 0 or more: pass --data.source.max-bad-records N.")


@dataclass(frozen=True)
class Tfds:
    """A data set that TensorFlow Datasets has prepared as array_record or parquet. TensorFlow is not needed to read it."""

    name: str
    """`name`, `name/config` or `name/config:1.0.0` in `data_dir`, or a folder that holds dataset_info.json."""
    split: str = "train"
    """Which part, for example `train` or `train[:10%]`."""
    field: str = "text"
    """The feature that has the text."""
    data_dir: str | None = None
    """Where prepared data sets are; without it, where TensorFlow Datasets puts them."""


@dataclass(frozen=True)
class Mixture:
    """Documents of several sources in turn, so that each has its share of the bytes at any time.

    The mixture ends where the first source has no document left, so nothing is repeated and the shares hold to the end.
    """

    sources: tuple[Text | Tfds, ...]
    """What is mixed."""
    weights: tuple[float, ...]
    """The share of each source, up to a common factor."""

    def __post_init__(self) -> None:
        fits = 0 < len(self.sources) == len(self.weights)
        require(fits, f"data.source has {len(self.sources)} sources and {len(self.weights)} weights; it needs a weight for each source.")
        good = all(math.isfinite(w) and w > 0 for w in self.weights)
        require(good, f"data.source.weights is {self.weights}; each needs to be above 0: pass --data.source.weights, or leave the source out.")


Source = Text | Tfds | Mixture


def read(source: Source) -> Iterator[Document]:
    """Gives every document that isn't empty, in an order that is always the same.

    Raises:
      ConfigError: something can't be read, or there is no document at all. It is raised on the way, not at the call.
    """
    if isinstance(source, Mixture):
        yield from _read_mixture(source)
        return
    found = False
    for document in _read_text(source) if isinstance(source, Text) else _read_tfds(source):
        if document.text:
            found = True
            yield document
    where = source.path if isinstance(source, Text) else f"{source.name}:{source.split}"
    flag = "--data.source.path FILE" if isinstance(source, Text) else "--data.source.name NAME or --data.source.split SPLIT"
    require(found, f"{where} is empty; give a source that has text with {flag}.")


def fingerprint(source: Source) -> str:
    """Gives the sha256, in hex, of all documents with their names; it reads the whole source."""
    digest = hashlib.sha256()
    for text, name in read(source):
        content = text.encode()
        digest.update(f"{name}\n{len(content)}\n".encode("utf-8", "surrogateescape") + content)
    return digest.hexdigest()


def _read_mixture(mixture: Mixture) -> Iterator[Document]:
    readers = [read(source) for source in mixture.sources]
    shares = [weight / sum(mixture.weights) for weight in mixture.weights]
    given = [0] * len(readers)
    while True:
        owed = [share * sum(given) - had for share, had in zip(shares, given, strict=True)]
        chosen = owed.index(max(owed))
        document = next(readers[chosen], None)
        if document is None:
            return
        given[chosen] += len(document.text.encode())
        yield document


# --- files -------------------------------------------------------------------------------------------------------


def _read_text(source: Text) -> Iterator[Document]:
    if source.path is None:
        yield from _standard_library()
        return
    path = Path(source.path)
    if path.is_dir():
        files = _files_below(path, source.pattern)
        require(bool(files), f"{path} has no text file that matches {source.pattern!r}; pass --data.source.path FILE, or --data.source.pattern '**/*'.")
    else:
        near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        require(path.exists(), f"{path} is not there; give a text file or a folder with --data.source.path FILE.{near}")
        require(path.is_file(), f"{path} is neither a file nor a folder; copy what it gives to a file and pass --data.source.path FILE.")
        files = [(path.name, path)]
    bad = 0
    for name, file in files:
        with _opened(file) as stream:
            if not _is_jsonl(file):
                yield Document(_decode(stream.read(), file), name)
                continue
            for number, line in enumerate(stream, start=1):  # a binary stream ends lines at \n only, where str.splitlines also does at U+2028
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not line.strip():
                    continue
                text, defect = _record(line, source.field)
                bad += bool(defect)
                allowed = f"mend it, or pass --data.source.max-bad-records N (now {source.max_bad_records}) to do without"
                require(bad <= source.max_bad_records, f"{file}:{number} {defect}; {allowed}.")
                if not defect:
                    yield Document(text, f"{name}:{number}")


def _is_jsonl(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A binary stream of a file, unpacked if it is .gz, whose failures are told as `ConfigError`."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path} is not a whole gzip file ({error}); fetch it again, or pass another with --data.source.path FILE.") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror}); mend that, or pass another with --data.source.path FILE.") from None


def _record(line: bytes, field: str) -> tuple[str, str]:
    """Gives (text, "") or ("", what is wrong with the line)."""
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        return "", f"is not UTF-8 (byte 0x{line[error.start]:02x} at offset {error.start} of the line)"
    except RecursionError:
        return "", "is nested too deeply"
    except ValueError as error:
        return "", f"is not JSON ({error})"
    if not isinstance(value, dict):
        return "", f"is not a JSON object but a {type(value).__name__}"
    if field not in value:
        return "", f"has no field {field!r} (it has {', '.join(map(repr, value)) or 'none'}; --data.source.field chooses one)"
    text = value[field]
    if not isinstance(text, str):
        return "", f"has no text in {field!r} but a {type(text).__name__}"
    lone = re.search("[\ud800-\udfff]", text)
    return ("", f"has a lone surrogate, U+{ord(lone[0]):04X}, at character {lone.start()} of {field!r}") if lone else (text, "")


def _once(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return found


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        offset = error.start + 3 * content.startswith(b"\xef\xbb\xbf")  # this codec doesn't count the byte order mark
        convert = f"iconv -f {'UTF-16' if wide else 'ISO-8859-1'} -t UTF-8 {path} > new.txt"
        mend = f"convert it, for example with `{convert}` and --data.source.path new.txt, or choose other files with --data.source.pattern"
        raise ConfigError(f"{path} is not UTF-8 (byte 0x{content[offset]:02x} at offset {offset}); {mend}.") from None


def _files_below(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    found = []
    for path in folder.glob(pattern):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts) and not _is_binary(path):
            found.append((name.as_posix(), path))
    return sorted(found)


def _is_binary(path: Path) -> bool:
    """A NUL near the start tells binary from text, as in git; UTF-16 has NULs too, but its user should hear of it."""
    with _opened(path) as stream:
        start = stream.read(8192)
    return b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff"))


def _standard_library() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = False
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")):
        if _left_out(name):
            continue
        try:
            yield Document(path.read_bytes().decode("utf-8"), name)
            found = True
        except (UnicodeDecodeError, OSError):  # a few sources are in another encoding, on purpose
            continue
    require(found, f"{root} has no .py files (this Python packs its library otherwise); give a text with --data.source.path FILE.")


def _left_out(name: str) -> bool:
    """Tests, what was installed, and tables that a program wrote (`encodings`, `pydoc_data`, build settings), which do not read like Python."""
    *folders, file = name.split("/")
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}
    return any(f in skipped or f.startswith("config-") for f in folders) or file.startswith("_sysconfigdata")


# --- TensorFlow Datasets -----------------------------------------------------------------------------------------


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        need = "pip install tensorflow-datasets importlib_resources array_record"
        raise ConfigError(f"TensorFlow Datasets can't be imported ({error}); run `{need}`.") from None
    return tensorflow_datasets


def _read_tfds(source: Tfds) -> Iterator[Document]:
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
        command = f"tfds convert_format --dataset_version_dir={builder.data_dir} --out_file_format=array_record"
        found = f"{source.name} is prepared as {builder.info.file_format.value}, which needs TensorFlow"
        raise ConfigError(f"{found}; where that is installed, run `{command}`.") from None
    except (ValueError, KeyError):
        raise ConfigError(f"{source.name} has no split {source.split!r}; choose one with --data.source.split: {splits}.") from None
    for index in range(len(records)):
        try:
            text = records[index][source.field]
        except (RuntimeError, OSError, ValueError) as error:
            found = f"record {index} of {source.name}:{source.split} can't be read ({' '.join(str(error).split())})"
            raise ConfigError(f"{found}; fetch or prepare {builder.data_dir} again, or pass --data.source.name NAME.") from None
        require(isinstance(text, (bytes, str)), f"{source.name} has no text in {source.field!r} but {type(text).__name__}; {wanted}.")
        try:
            text = text.decode("utf-8") if isinstance(text, bytes) else text
        except UnicodeDecodeError as error:
            raise ConfigError(f"{source.name}:{source.split}:{index} is not UTF-8 at byte {error.start} of {source.field!r}; {wanted}.") from None
        yield Document(text, f"{builder.name}:{source.split}:{index}")


def _prepared(source: Tfds) -> Path:
    """Finds the folder with dataset_info.json. Only files are looked at: builder classes would import TensorFlow."""
    if "/" in source.name and (Path(source.name) / "dataset_info.json").is_file():
        return Path(source.name)
    root = Path(source.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    name, _, version = source.name.partition(":")
    folder = root / name
    found = [path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/dataset_info.json") if version in ("", path.parent.name)]
    configs = sorted({path.parent for path in found})
    command = f"tfds build {source.name} --data_dir={root} --file_format=array_record"
    need = "where TensorFlow is installed (only preparing needs it; gptjax.data.sources.prepare_tfds needs none for text of your own)"
    require(bool(found), f"{source.name} is not prepared in {root}; run `{command}` {need}, or pass --data.source.data-dir DIR.")
    names = ", ".join(f"{name}/{config.name}" for config in configs)
    require(len(configs) == 1, f"{source.name} has several configs in {root}; choose one with --data.source.name: {names}.")
    return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])


def prepare_tfds(source: Text, data_dir: Path | str, name: str) -> Path:
    """Writes the documents of `source`, in their order, as the split `train` of a data set with the feature `text`.

    Gives its folder, which any program reads with `tfds.builder_from_directory`. TensorFlow is not needed.

    Raises:
      ConfigError: the name is not lower_case, is taken, or the source can't be read.
    """
    require(bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)), f"the data set's name is {name!r}; it needs lower-case letters, digits and _.")
    require(not (Path(data_dir) / name).exists(), f"{Path(data_dir) / name} is there already; choose another name, or delete it.")
    tfds = _import_tfds()

    class Documents(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
        """The original asks whether its input is a `tf.data.Dataset`, and so imports TensorFlow."""

        def _split_generators(self, dl_manager: Any) -> dict:
            return {"train": ((i, {"text": text}) for i, (text, _) in enumerate(read(source)))}

    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    described = dict(name=name, version="1.0.0", features=features, description="Documents written by gptjax.")
    builder = Documents(**described, split_datasets={}, data_dir=data_dir, file_format="array_record", disable_shuffling=True)
    builder.download_and_prepare()
    return Path(builder.data_dir)
