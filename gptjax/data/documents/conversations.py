"""Records to learn answers from, in the three forms in which they are published, recognised by
their keys: `messages`; `prompt` and `completion`, as texts or as messages; `text`.

Read `Conversations`, then `read_conversations`, then `parse_record`, which checks a record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import require
from gptjax.data.documents.document import Document
from gptjax.data.documents.record_files import Entry, read_record_files, require_record_files
from gptjax.data.documents.structured import format_of, json_kind, read_objects
from gptjax.data.tokenizers.chat import ROLES


@dataclass(frozen=True)
class Conversations:
    """A file of conversations, as JSON lines or a JSON array; .gz, .bz2, .xz and .zst are unpacked.

    A record has `messages`, each with `role` and `content`; or `prompt` and `completion`, both
    texts or both lists of messages; or a `text`. One file may hold all three kinds. `tools`, a list
    of JSON schemas, is offered to the template.
    """

    path: str
    """A file: .jsonl, .ndjson or .json."""
    completion: str = "completion"
    """Key of what answers a `prompt`, where a file calls it otherwise, such as `response`."""
    held_out: str | None = None
    """A file of the same kind that is held out as a whole; `None` holds out `data.validation` of
    the conversations, by what they ask."""
    max_bad_records: int = 0
    """Records that may be left out because they cannot be read."""
    encoding: str = "utf-8"
    """Encoding of the files, as Python names it."""

    def __post_init__(self) -> None:
        require_record_files(self)


class Record(NamedTuple):
    """A record of one of the three kinds."""

    messages: tuple[Mapping[str, Any], ...] = ()
    """Of a conversation; each has `role` and, as a text, `content`."""
    given: int = 0
    """The first messages that are a prompt: answers among them are not learned."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the model may call, as JSON schemas."""
    prompt: str = ""
    """Of a record without messages: what the model reads, as it is."""
    text: str = ""
    """Of a record without messages: what is learned, as it is."""
    fields: Mapping[str, Any] = {}
    """What else a problem says of itself, for those who judge answers."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What the record says, without roles and tools."""
        return tuple(m["content"] for m in self.messages) or (self.prompt, self.text)

    @property
    def asked(self) -> tuple[Mapping[str, Any], ...]:
        """The messages before the first answer that is learned; all where there is none."""
        answers = [n for n, m in enumerate(self.messages) if m["role"] == "assistant"]
        return self.messages[: min((n for n in answers if n >= self.given), default=None)]

    @property
    def answer(self) -> str:
        """The first answer that is learned, empty where there is none."""
        if not self.messages:
            return self.text
        answers = [m["content"] for m in self.messages[len(self.asked) :]]
        return answers[0] if answers else ""


def read_conversations(
    source: Conversations, pass_over: Callable[[str], Any] = str
) -> Iterator[Document]:
    """Yields each record as a document: its text is the record in JSON, its source what it asks.

    Args:
      pass_over: called with each record that the quota lets pass, by file, line and defect.

    Raises:
      ConfigError: a file or a record can't be read, or there is none; on the way, not at the call.
    """

    def entries(file: Path) -> Iterator[Entry]:
        for number, value, defect in record_objects(file, source.encoding):
            record, wrong = (Record(), defect) if defect else parse_record(value, source.completion)
            if wrong:
                yield Entry(number, defect=wrong)
            else:
                yield Entry(number, dump_record(record), question(record))

    return read_record_files(source, entries, "a file of conversations", pass_over)


def record_objects(file: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yields number, object and defect of each record of a file, as `read_objects` does.

    Raises:
      ConfigError: the file is not there, or is of another kind.
    """
    require(
        file.is_file(),
        f"{file} is not there; give a file of conversations with --data.source.path FILE.",
    )
    kind = format_of(file, encoding)
    require(
        kind in ("jsonl", "json", "parquet", "arrow"),
        f"{file} is neither JSON lines (.jsonl, .ndjson) nor a JSON array (.json), as conversations"
        " are, nor Parquet or Arrow; convert it, or pass another with --data.source.path FILE.",
    )
    yield from read_objects(file, kind, encoding)


def plain_record(record: Record) -> dict[str, Any]:
    """Returns a record as JSON values, without `fields` where there are none."""
    plain = record._asdict()
    return plain if record.fields else {k: v for k, v in plain.items() if k != "fields"}


def dump_record(record: Record) -> str:
    """Returns a record as JSON, which `load_record` reads."""
    return json.dumps(plain_record(record), ensure_ascii=False)


def load_record(text: str) -> Record:
    """Returns the record that `dump_record` wrote."""
    return Record(**json.loads(text))


def question(record: Record) -> str:
    """Returns what a record asks: all before its first answer. Records that ask the same are in one
    part of the split."""
    if not record.messages:
        return record.prompt or record.text
    asked = record.asked
    return json.dumps(asked, ensure_ascii=False) if asked else dump_record(record)


# --- what a record is


def parse_record(value: Mapping[str, Any], completion: str = "completion") -> tuple[Record, str]:
    """Returns a record and what is wrong with it; nothing is if the latter is empty.

    Args:
      completion: key of what answers a `prompt`.
    """
    tools, wrong = parse_tools(value)
    if defect := lone_surrogate(value) or wrong:
        return Record(), defect
    if "messages" in value:
        return _talk(value["messages"], (), tools, "'messages'")
    if "prompt" in value and completion in value:
        prompt, answer = value["prompt"], value[completion]
        if isinstance(prompt, str) and isinstance(answer, str):
            defect = "" if answer.strip() else f"has nothing in {completion!r}, so nothing to learn"
            return Record(prompt=prompt, text=answer), defect
        if isinstance(prompt, str) or isinstance(answer, str):
            return Record(), f"has a text and messages as 'prompt' and {completion!r}; use one kind"
        return _talk(answer, prompt, tools, repr(completion))
    if "text" in value:
        text = value["text"]
        if not isinstance(text, str):
            return Record(), f"has no text in 'text' but {json_kind(text)}"
        return Record(text=text), "" if text.strip() else "has nothing in 'text'"
    names = ", ".join(map(repr, list(value)[:10])) or "nothing"
    return Record(), (
        f"has {names}, and needs 'messages' (each with 'role' and 'content'), or 'prompt' and"
        f" {completion!r}, or 'text'"
    )


def lone_surrogate(value: Mapping[str, Any]) -> str:
    """Returns the defect of a record with a text that UTF-8 has no bytes for."""
    lone = re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))
    return f"has a lone surrogate, U+{ord(lone[0]):04X}" if lone else ""


def parse_tools(value: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Returns the tools of a record, and what is wrong with them."""
    tools = value.get("tools") or ()
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        return (), "has 'tools' that are not a list of JSON schemas"
    return tools, ""


def _talk(messages: Any, given: Any, tools: Sequence, name: str) -> tuple[Record, str]:
    """A conversation.

    Args:
      messages: what may be learned from.
      given: what comes before them.
      name: what defects call the messages.
    """
    if not isinstance(messages, list) or not isinstance(given, list | tuple):
        return Record(), f"has no list of messages in {name} or 'prompt'"
    checked, defect = parse_messages([*given, *messages])
    if defect:
        return Record(), defect
    if not any(m["role"] == "assistant" for m in checked[len(given) :]):
        return Record(), f"has no message of the assistant in {name}, so nothing to learn"
    return Record(checked, len(given), tuple(tools)), ""


def parse_messages(messages: Sequence[Any]) -> tuple[tuple[dict[str, Any], ...], str]:
    """Returns messages with their contents as texts, and what is wrong with the first bad one."""
    checked = []
    for number, message in enumerate(messages, 1):
        plain, defect = _message(message)
        if defect:
            return (), f"has a message {number} that {defect}"
        checked.append(plain)
    return tuple(checked), ""


def _message(message: Any) -> tuple[dict[str, Any], str]:
    """A message with its content as a text, and what is wrong with it."""
    if not isinstance(message, Mapping):
        return {}, f"is not an object but {json_kind(message)}"
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        names = ", ".join(map(repr, message))
        has = f"the role {role!r}" if "role" in message else f"no 'role' (it has {names})"
        return {}, f"has {has}; there are {', '.join(ROLES)}"
    if isinstance(content, list):  # parts, as vision models have them
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        texts = [text for text in texts if isinstance(text, str)]
        if len(texts) < len(content):
            return {}, "has content that is not text"
        content = "".join(texts)
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        return {}, f"has no text in 'content' but {json_kind(content)}"
    if message.get("weight", 1) not in (0, 1):
        return {}, f"has the weight {message['weight']!r}; it can be 0 or 1"
    return {**message, "content": content}, ""
