"""Rows of structured files: JSON lines, a JSON array, CSV, other tables, Parquet.

Read `format_of`, then `read_rows`, which yields the wanted fields of each row whatever the format,
and `read_objects`, which yields whole objects of JSON.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from gptjax.core.config import ConfigError, nearest, require
from gptjax.data.documents.columns import BATCHES, read_columns
from gptjax.data.documents.encodings import SAMPLE, advice, require_utf8
from gptjax.data.documents.opening import Unpacked, bare_name, opened

Format = Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]

LINE = 2**24
"""Bytes (16 MiB). A longer row can't be read: half of it is not JSON, and all of it may not fit
into memory."""


NOT_UTF8 = "is not UTF-8"
"""How the defect of a line in another encoding begins."""


class Row(NamedTuple):
    """The wanted fields of a row."""

    number: int
    """Its line, or its place from 1 where rows have no lines."""
    values: tuple[str, ...]
    defect: str
    """What is wrong with it; empty if nothing is."""


def format_of(path: Path, encoding: str, otherwise: Format = "text") -> Format:
    """Returns the format of a file, by its name and, where that leaves it open, its beginning."""
    suffix = Path(bare_name(path)).suffix
    formats: dict[str, Format] = {
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".csv": "csv",
        ".parquet": "parquet",
        ".arrow": "arrow",
    }
    if suffix in formats:
        return formats[suffix]
    if suffix not in (".json", ".tsv", ".txt", ""):
        return otherwise
    with opened(path, encoding) as stream:
        start = stream.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    if suffix == ".tsv":
        return "csv" if otherwise == "text" and b"\t" in start.split(b"\n")[0] else otherwise
    return _json_format(start, strictly=suffix != ".json") or otherwise


def _json_format(start: bytes, strictly: bool) -> Format | None:
    """The format of records of JSON by their beginning.

    Args:
      strictly: for a file whose name does not say JSON; records need a name in quotes.
    """
    if re.match(rb'\[\s*\{\s*"' if strictly else rb'\[\s*[{"\]]', start):
        return "json"
    lines = start.split(b"\n", 2)
    begin = b'{"' if strictly else b"{"
    is_record = lines[0].startswith(begin) and lines[0].rstrip().endswith(b"}")
    return "jsonl" if is_record and len(lines) > 1 and lines[1].startswith(begin) else None


def read_rows(
    path: Path, kind: Format, fields: Sequence[str], encoding: str, *, numbers: bool = False
) -> Iterator[Row]:
    """Yields the text of `fields` in each row.

    Args:
      fields: names, or in a table without names numbers from 1. `a.b` is field b of field a.
      numbers: whole numbers, true and false are taken as text.

    Raises:
      ConfigError: the file can't be read, or its columns lack a field; on the way, not at the call.
    """
    if kind in BATCHES:
        yield from _columns_of(path, kind, fields, numbers)
        return
    with opened(path, encoding) as stream:
        _require_encoding(path, encoding)
        if kind in ("jsonl", "json"):
            for number, value, defect in _objects(
                path, stream, kind, texts=list(fields) == ["text"]
            ):
                yield Row(number, *_texts(value, defect, fields, numbers))
        else:
            yield from _table(path, stream, fields, names=kind == "csv")


def read_objects(
    path: Path, kind: Format, encoding: str
) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yields number, object and defect of each record of JSON lines or of a JSON array, or of each
    row of Parquet or Arrow; the object is empty if something is wrong with it. A null of a row is a
    key that is absent.

    Raises:
      ConfigError: the file can't be read; on the way, not at the call.
    """
    if kind in BATCHES:
        names: list[str] = []
        for number, values in enumerate(read_columns(path, kind, None, names.extend), 1):
            yield number, _present(dict(zip(names, values, strict=True))), ""
        return
    with opened(path, encoding) as stream:
        _require_encoding(path, encoding)
        yield from _objects(path, stream, kind)


def _present(value: Any) -> Any:
    """A value without its nulls, which columns have where a record has no such key."""
    if isinstance(value, list):
        return [_present(one) for one in value]
    if isinstance(value, dict):
        return {name: _present(one) for name, one in value.items() if one is not None}
    return value


def _sample(path: Path) -> bytes:
    """The beginning of a file, unpacked."""
    with opened(path) as stream:
        return stream.read(SAMPLE)


def _require_encoding(path: Path, encoding: str) -> None:
    """Refuses a file that only seems to be ASCII."""
    if encoding == "utf-8":
        require_utf8(_sample(path), path)


# --- JSON


def _objects(
    path: Path, stream: BinaryIO, kind: Format, texts: bool = False
) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yields number, object and defect of each record; the first that is not UTF-8 is told what
    encoding the file seems to have.

    Args:
      texts: an item that is a text alone is its object's `text`.
    """
    lines = lines_of(stream) if kind == "jsonl" else enumerate(_items(stream, path), 1)
    known = False
    for number, source in lines:
        value, defect = _object(source, texts and kind == "json")
        if defect.startswith(NOT_UTF8) and not known:
            known, defect = True, f"{defect}; {advice(_sample(path))}"
        yield number, value, defect


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line) of lines that aren't blank; of a line longer than `LINE`, its first
    `LINE` + 1 bytes."""
    for number in itertools.count(1):  # ends lines at \n only; str.splitlines also does at U+2028
        line = rest = stream.readline(LINE + 1)
        while len(rest) > LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LINE + 1)
        if not line:
            return
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, line


def _items(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """The source of each item of a JSON array, read piece by piece.

    Borders of items are found by counting brackets outside of strings.
    """
    depth, quoted, item = 0, False, bytearray()
    token = re.compile(rb'\\.|["\[\]{},]', re.DOTALL)
    rest = b""
    while chunk := stream.read(2**16):
        chunk, begin = rest + chunk, 0
        escapes = len(chunk) - len(chunk.rstrip(b"\\"))
        rest = chunk[-1:] if escapes % 2 else b""
        chunk = chunk[: len(chunk) - len(rest)]
        for match in token.finditer(chunk):
            mark = match[0]
            if mark == b'"':
                quoted = not quoted
            if quoted or mark == b'"' or mark[:1] == b"\\":
                continue
            if mark in b"[{":
                depth += 1
                begin = match.end() if depth == 1 else begin
            ends = depth == 1 and mark in b",]"
            depth -= mark in b"]}"
            if ends:
                item += chunk[begin : match.start()]
                if item.strip():
                    yield bytes(item.strip())
                item, begin = bytearray(), match.end()
                if depth == 0:
                    return
        if depth and len(item) <= LINE:
            item += chunk[begin:]
    raise ConfigError(f"{path} ends inside a JSON array; fetch it again.")


def _texts(
    value: dict[str, Any], defect: str, fields: Sequence[str], numbers: bool
) -> tuple[tuple[str, ...], str]:
    """The texts of an object's fields, and what is wrong with it."""
    nothing = ("",) * len(fields)
    if defect:
        return nothing, defect
    texts = []
    for field in fields:
        text, defect = _text_at(value, field, numbers)
        if defect:
            return nothing, defect
        texts.append(text)
    return tuple(texts), ""


def _object(source: bytes, texts: bool = False) -> tuple[dict[str, Any], str]:
    """A JSON object, and what is wrong with its source. A text is an object too, if `texts`."""
    if len(source) > LINE:
        return {}, f"is longer than {LINE >> 20} MiB"
    try:
        value = json.loads(source.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{source[error.start]:02x} at offset {error.start} of the line"
        return {}, f"{NOT_UTF8} ({byte})"
    except RecursionError:
        return {}, "is nested too deeply"
    except ValueError as error:
        return {}, f"is not JSON ({error})"
    if texts and isinstance(value, str):
        return {"text": value}, ""
    if not isinstance(value, dict):
        return {}, f"is not a JSON object but {json_kind(value)}"
    return value, ""


def _text_at(value: dict, field: str, numbers: bool) -> tuple[str, str]:
    """The text of a field, and what is wrong with it."""
    inner: Any = value
    for name in [field] if field in value else field.split("."):
        if not isinstance(inner, dict) or name not in inner:
            names = ", ".join(map(repr, list(value)[:10])) or "none"
            return "", f"has no field {field!r} (it has {names}; --data.source.field chooses one)"
        inner = inner[name]
    return _as_text(inner, field, numbers)


def _as_text(value: Any, field: str, numbers: bool) -> tuple[str, str]:
    if numbers and isinstance(value, int):
        return json.dumps(value), ""
    if not isinstance(value, str):
        return "", f"has no text in {field!r} but {json_kind(value)}"
    if len(value) > LINE:
        return "", f"is longer than {LINE >> 20} MiB"
    lone = re.search("[\ud800-\udfff]", value)
    if lone:
        place = f"at character {lone.start()} of {field!r}"
        return "", f"has a lone surrogate, U+{ord(lone[0]):04X}, {place}"
    return value, ""


def json_kind(value: Any) -> str:
    """Returns the kind of a value, in the words of JSON."""
    words = {str: "a string", dict: "an object", list: "a list", bool: "true or false"}
    return words.get(type(value), "null" if value is None else "a number")


def _once(pairs: list[tuple[str, Any]]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(k for k in keys if keys.count(k) > 1)!r}")
    return values


# --- tables


def _table(path: Path, stream: BinaryIO, fields: Sequence[str], names: bool) -> Iterator[Row]:
    """Rows of a table whose first line names its columns, or of columns between tabs."""
    csv.field_size_limit(LINE)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        if names:
            header = text.readline()
            plain = bare_name(path).endswith(".tsv")
            mark = "\t" if plain else _delimiter(header, fields)
            rows = csv.reader(
                itertools.chain([header] if header else [], text),
                delimiter=mark,
                strict=not plain,
                quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
            )
        columns = _columns(path, fields, next(rows, []) if names else None)
        for row in filter(None, rows):
            if len(row) <= max(columns):
                short = f"has {len(row)} columns and column {max(columns) + 1} is wanted"
                yield Row(rows.line_num, ("",) * len(fields), short)
            else:
                yield Row(rows.line_num, tuple(row[column] for column in columns), "")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ConfigError(
            f"{path} {NOT_UTF8} (byte 0x{byte:02x} after line {rows.line_num});"
            f" {advice(_sample(path))}."
        ) from None
    except csv.Error as error:
        raise ConfigError(
            f"{path}:{rows.line_num} is not a line of a table ({error}); fix it, or pass another"
            " file with --data.source.path FILE."
        ) from None
    finally:
        text.detach()  # whoever opened the stream closes it


def _delimiter(header: str, fields: Sequence[str]) -> str:
    """What stands between the columns of a CSV file: the mark by which its header has the fields,
    or else a comma."""
    for mark in ",;\t|":
        with contextlib.suppress(csv.Error):
            columns = next(csv.reader([header], delimiter=mark, strict=True), [])
            if set(fields) <= set(columns):
                return mark
    return ","


def _columns(path: Path, fields: Sequence[str], header: list[str] | None) -> tuple[int, ...]:
    """Places of the fields in a row: by name where the first line has names, else by number."""
    if header is not None:
        require_columns(path, fields, header)
        return tuple(map(header.index, fields))
    for field in fields:
        require(
            field.isascii() and field.isdigit() and int(field) > 0,
            f"{path} has no names of columns, so {field!r} is none; give their numbers, from 1"
            " (--data.source.source 1 --data.source.target 2, or --data.source.field 1).",
        )
    return tuple(int(field) - 1 for field in fields)


def require_columns(path: Path, fields: Sequence[str], names: Sequence[str]) -> None:
    """Refuses a table without one of the fields."""
    for field in fields:
        has = ", ".join(map(repr, names[:10])) or "none"
        require(
            field in names,
            f"{path} has no column {field!r} (it has {has}); name one with --data.source.field, or"
            " --data.source.source and target; or read it as plain text with --data.source.format"
            f" text.{nearest(field, names)}",
        )


def _columns_of(path: Path, kind: Format, fields: Sequence[str], numbers: bool) -> Iterator[Row]:
    """Rows of a file with typed columns, whose texts count towards what a file of its size can
    hold."""
    unpacked = Unpacked(path)

    def check(names: list[str]) -> None:
        require_columns(path, fields, names)

    for number, values in enumerate(read_columns(path, kind, fields, check), 1):
        unpacked.add(sum(len(value) for value in values if isinstance(value, str)))
        pairs = [_as_text(*pair, numbers) for pair in zip(values, fields, strict=True)]
        defect = next((defect for _, defect in pairs if defect), "")
        yield Row(number, tuple(text for text, _ in pairs), defect)
