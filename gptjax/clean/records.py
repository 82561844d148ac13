"""Records as cleaning sees them: an object, the texts in it, and the place where it was found.

Read `Item`, then `read_items`, then `shards`, which cuts them into what is cleaned together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import require
from gptjax.data.documents.document import Quota
from gptjax.data.documents.folders import leads_nowhere
from gptjax.data.documents.structured import format_of, read_objects
from gptjax.data.documents.text import Text, file_documents, text_files

LONE = re.compile("[\ud800-\udfff]")


class Item(NamedTuple):
    """A record on its way through the stages."""

    place: str
    """`file:line`, as in error messages; the same on every machine."""
    record: dict[str, Any]
    """What is written, if it is kept."""
    fields: tuple[str, ...]
    """Paths of its texts."""
    language: str = ""
    """Where it was identified."""

    @property
    def text(self) -> str:
        """The texts of the record, one below the other."""
        return "\n".join(texts_at(self.record, self.fields))

    def edited(self, change: Callable[[str], str]) -> Item:
        """The item with each of its texts changed."""
        record: Any = self.record
        for path in self.fields:
            record = _changed(record, path.split("."), change)
        return self._replace(record=record)


def texts_at(record: Any, fields: tuple[str, ...]) -> list[str]:
    """Returns the texts at paths such as text or messages.*.content; what is no text is passed
    over."""
    return [text for path in fields for text in _texts(record, path.split("."))]


def _texts(value: Any, keys: list[str]) -> Iterator[str]:
    if not keys:
        if isinstance(value, str):
            yield value
    elif keys[0] == "*" and isinstance(value, list):
        for one in value:
            yield from _texts(one, keys[1:])
    elif isinstance(value, dict) and keys[0] in value:
        yield from _texts(value[keys[0]], keys[1:])


def _changed(value: Any, keys: list[str], change: Callable[[str], str]) -> Any:
    if not keys:
        return change(value) if isinstance(value, str) else value
    if keys[0] == "*" and isinstance(value, list):
        return [_changed(one, keys[1:], change) for one in value]
    if isinstance(value, dict) and keys[0] in value:
        return {**value, keys[0]: _changed(value[keys[0]], keys[1:], change)}
    return value


def everywhere(value: Any, change: Callable[[str], str]) -> Any:
    """Returns a value of JSON with every text in it changed; names of fields stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [everywhere(one, change) for one in value]
    if isinstance(value, dict):
        return {key: everywhere(one, change) for key, one in value.items()}
    return value


def read_items(
    source: Text,
    fields: tuple[str, ...] = (),
    pass_over: Callable[[str], Any] = str,
) -> Iterator[Item]:
    """Yields every record of a source, in an order that is always the same: of JSON the whole
    object, of all else an object of its text and its place.

    Args:
      fields: paths of the texts of a JSON record; () is the field of the source.
      pass_over: called with each record that the source's quota lets pass, by file, line and
        defect.

    Raises:
      ConfigError: something can't be read; on the way, not at the call.
    """
    require(
        source.path is not None,
        "no text was named to clean; give a file or a folder: gptjax clean SOURCE OUT.",
    )
    path = Path(str(source.path))
    quota, fields = Quota(source.max_bad_records, pass_over), fields or (source.field,)
    for name, file in text_files(path, source.pattern):
        if leads_nowhere(file):
            continue
        kind = format_of(file, source.encoding) if source.format == "auto" else source.format
        if kind in ("jsonl", "json"):
            yield from _json_items(file, kind, name, source, fields, quota)
            continue
        for document in file_documents(source, name, file, kind, quota, alone=file == path):
            record = {"text": document.text, "source": document.name}
            yield Item(document.name, record, ("text",))


def _json_items(
    file: Path, kind: Any, name: str, source: Text, fields: tuple[str, ...], quota: Quota
) -> Iterator[Item]:
    for number, record, broken in read_objects(file, kind, source.encoding):
        if defect := broken or _defect(record, fields):
            quota.spend(f"{file}:{number}", defect)
        else:
            yield Item(f"{name}:{number}", record, fields)


def _defect(record: dict[str, Any], fields: tuple[str, ...]) -> str:
    """What is wrong with a record; empty if nothing is."""
    texts = texts_at(record, fields)
    if not texts:
        names = ", ".join(map(repr, list(record)[:10])) or "none"
        return f"has no text in {' or '.join(fields)} (it has {names}; --field names it)"
    lone = LONE.search("".join(texts))
    return f"has a lone surrogate, U+{ord(lone[0]):04X}" if lone else ""


class Shard(NamedTuple):
    """Records that are cleaned and committed together."""

    number: int
    items: list[Item]

    @property
    def digest(self) -> str:
        """sha256 of the records and their places, in hex."""
        hasher = hashlib.sha256()
        for item in self.items:
            hasher.update(f"{item.place}\n".encode("utf-8", "surrogateescape"))
            hasher.update(json_line(item.record))
        return hasher.hexdigest()


def shards(items: Iterable[Item], size: int) -> Iterator[Shard]:
    """Yields the records in shards of about `size` bytes of text each."""
    number, waiting, count = 0, [], 0
    for item in items:
        waiting.append(item)
        count += sum(len(text.encode()) for text in texts_at(item.record, item.fields))
        if count >= size:
            yield Shard(number, waiting)
            number, waiting, count = number + 1, [], 0
    if waiting:
        yield Shard(number, waiting)


def json_line(record: dict[str, Any]) -> bytes:
    """Returns a record as a line of JSON in UTF-8; a lone surrogate is escaped."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"
