"""Problems: records that ask for an answer, with the right one or whatever else a judge reads.

Read `Problems`, then `parse_problem`, which checks a record, and `judge_record`, which gives it
back to who judges answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.core.config import require
from gptjax.data.documents.conversations import (
    Record,
    dump_record,
    lone_surrogate,
    parse_messages,
    parse_tools,
    question,
    record_objects,
)
from gptjax.data.documents.document import Document
from gptjax.data.documents.record_files import Entry, read_record_files, require_record_files
from gptjax.data.documents.structured import json_kind


@dataclass(frozen=True)
class Problems:
    """A file of problems, as JSON lines or a JSON array; .gz, .bz2, .xz and .zst are unpacked.

    A record has a `prompt`, a text or a list of messages, and any further keys, which rewards
    read. The task `Chat` learns its `answer`, where that is a text or a number.
    """

    path: str
    """A file: .jsonl, .ndjson or .json."""
    prompt: str = "prompt"
    """Key of what is asked, where a file calls it otherwise, such as `question`."""
    answer: str = "answer"
    """Key of the right answer, which a record may lack."""
    held_out: str | None = None
    """A file of the same kind that is held out as a whole; `None` holds out `data.validation` of
    the problems, by their prompt."""
    max_bad_records: int = 0
    """Records that may be left out because they cannot be read."""
    encoding: str = "utf-8"
    """Encoding of the files, as Python names it."""

    def __post_init__(self) -> None:
        require_record_files(self)
        require(
            self.prompt != self.answer,
            f"data.source.prompt and data.source.answer are both {self.prompt!r}; name two keys.",
        )


def read_problems(source: Problems, pass_over: Callable[[str], Any] = str) -> Iterator[Document]:
    """Yields each problem as a document: its text is the record in JSON, its source the prompt.

    Args:
      pass_over: called with each record that the quota lets pass, by file, line and defect.

    Raises:
      ConfigError: a file or a record can't be read, or there is none; on the way, not at the call.
    """

    def entries(file: Path) -> Iterator[Entry]:
        for number, value, defect in record_objects(file, source.encoding):
            record, wrong = (Record(), defect) if defect else parse_problem(value, source)
            if wrong:
                yield Entry(number, defect=wrong)
            else:
                yield Entry(number, dump_record(record), question(record))

    return read_record_files(source, entries, "a file of problems", pass_over)


def parse_problem(value: Mapping[str, Any], source: Problems) -> tuple[Record, str]:
    """Returns a record and what is wrong with it; nothing is if the latter is empty."""
    if lone := lone_surrogate(value):
        return Record(), lone
    if source.prompt not in value:
        names = ", ".join(map(repr, list(value)[:10])) or "nothing"
        return Record(), f"has {names}, and needs {source.prompt!r}, a text or a list of messages"
    prompt, answer = value[source.prompt], value.get(source.answer)
    fields = {k: v for k, v in value.items() if k not in (source.prompt, source.answer)}
    if answer is not None and not isinstance(answer, str):
        fields["answer"] = answer
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    text = answer if isinstance(answer, str) else json.dumps(answer) if is_number else ""
    if isinstance(prompt, str):
        empty = "" if prompt.strip() else f"has nothing in {source.prompt!r}, so it asks nothing"
        return Record(prompt=prompt, text=text, fields=fields), empty
    if not isinstance(prompt, list):
        kind = json_kind(prompt)
        return Record(), f"has no text and no messages in {source.prompt!r} but {kind}"
    tools, wrong = parse_tools(value)
    messages, defect = parse_messages(prompt)
    defect = defect or wrong
    if not defect and (not messages or messages[-1]["role"] == "assistant"):
        defect = f"has messages in {source.prompt!r} that do not end with a question"
    if defect:
        return Record(), defect
    fields.pop("tools", None)
    answered = ({"role": "assistant", "content": text},) if text else ()
    return Record((*messages, *answered), len(messages), tuple(tools), fields=fields), ""


def judge_record(record: Record) -> dict[str, Any]:
    """Returns what judges of answers read: `prompt`, a text or messages; `answer`, the right one,
    where there is one; `tools` and all other fields of the problem."""
    asked = list(record.asked) if record.messages else record.prompt
    plain: dict[str, Any] = {"prompt": asked}
    if record.answer:
        plain["answer"] = record.answer
    if record.tools:
        plain["tools"] = list(record.tools)
    return {**plain, **record.fields}
