"""Records of answers that were judged: two answers to a prompt of which one was preferred, or one
answer that was found good or bad.

Read `Comparisons`, then `parse_judged`, which checks a record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gptjax.core.config import require
from gptjax.data.documents.conversations import (
    Record,
    parse_record,
    plain_record,
    record_objects,
)
from gptjax.data.documents.document import Document
from gptjax.data.documents.record_files import Entry, read_record_files, require_record_files


@dataclass(frozen=True)
class Comparisons:
    """A file of judged answers, as JSON lines or a JSON array; .gz, .bz2, .xz and .zst are
    unpacked.

    A record has `prompt`, `chosen` and `rejected`; or `prompt`, `completion` and `label` (true or
    1 is good). Prompt and answers are all texts or all lists of messages. Without a `prompt`,
    `chosen` and `rejected` are whole conversations that differ in their last message.
    """

    path: str
    """A file: .jsonl, .ndjson or .json."""
    prompt: tuple[str, ...] = ("prompt",)
    """Keys of the prompt; texts of several are joined by a blank line, empty ones left out."""
    chosen: str = "chosen"
    """Key of the preferred answer."""
    rejected: str = "rejected"
    """Key of the other answer."""
    completion: str = "completion"
    """Key of an answer that was judged alone."""
    label: str = "label"
    """Key of its judgement."""
    as_messages: bool = False
    """Texts are what a user says and an assistant answers, which the chat template writes;
    otherwise they are read as they are."""
    only: Literal["all", "pairs", "labels"] = "all"
    """Records of a file with both kinds that are read: all, those with two answers, or those with a
    label."""
    held_out: str | None = None
    """A file of the same kind that is held out as a whole; `None` holds out `data.validation` of
    the records, by their prompt."""
    max_bad_records: int = 0
    """Records that may be left out because they cannot be read."""
    encoding: str = "utf-8"
    """Encoding of the files, as Python names it."""

    def __post_init__(self) -> None:
        require(bool(self.prompt), "data.source.prompt is empty; name the key of the prompt.")
        require_record_files(self)


class Judged(NamedTuple):
    """A judged record: one answer with a label, or the chosen answer and the rejected one."""

    answers: tuple[Record, ...]
    good: bool | None = None
    """Of one answer."""


def read_comparisons(
    source: Comparisons, pass_over: Callable[[str], Any] = str
) -> Iterator[Document]:
    """Yields each record as a document: its text is the record in JSON, its source the prompt.

    Args:
      pass_over: called with each record that the quota lets pass, by file, line and defect.

    Raises:
      ConfigError: a file or a record can't be read, or there is none; on the way, not at the call.
    """

    def entries(file: Path) -> Iterator[Entry]:
        for number, value, defect in record_objects(file, source.encoding):
            if not defect and not _wanted(value, source):
                continue
            record, wrong = (Judged(()), defect) if defect else parse_judged(value, source)
            if wrong:
                yield Entry(number, defect=wrong)
                continue
            text = json.dumps([[plain_record(r) for r in record.answers], record.good])
            yield Entry(number, text, _asked(record))

    return read_record_files(source, entries, "a file of judged answers", pass_over)


def _wanted(value: Mapping[str, Any], source: Comparisons) -> bool:
    return source.only == "all" or (source.only == "pairs") == is_pair(value, source)


def is_pair(value: Mapping[str, Any], source: Comparisons) -> bool:
    """Whether a record has a chosen and a rejected answer."""
    return source.chosen in value and source.rejected in value


def is_labelled(value: Mapping[str, Any], source: Comparisons) -> bool:
    """Whether a record has an answer with a label."""
    return source.completion in value and source.label in value


def load_judged(text: str) -> Judged:
    """Returns the record of a document of `read_comparisons`."""
    answers, good = json.loads(text)
    return Judged(tuple(Record(**fields) for fields in answers), good)


def _asked(record: Judged) -> str:
    first = record.answers[0]
    return json.dumps(first.messages[: first.given]) if first.messages else first.prompt


def parse_judged(value: Mapping[str, Any], source: Comparisons) -> tuple[Judged, str]:
    """Returns a record and what is wrong with it; nothing is if the latter is empty."""
    prompt, defect = _prompt(value, source)
    if defect:
        return Judged(()), defect
    if is_pair(value, source):
        return _compared(value[source.chosen], value[source.rejected], prompt, value, source)
    if is_labelled(value, source):
        good = value[source.label]
        if good not in (0, 1, True, False):
            return Judged(()), f"has the {source.label} {good!r}; it can be true or false"
        answer, defect = _answer(prompt, value[source.completion], value, source)
        return Judged((answer,), bool(good)), defect
    names = ", ".join(map(repr, list(value)[:10])) or "nothing"
    return Judged(()), (
        f"has {names}, and needs {source.chosen!r} and {source.rejected!r}, or"
        f" {source.completion!r} and {source.label!r}"
    )


def _compared(
    chosen: Any, rejected: Any, prompt: Any, value: Mapping[str, Any], source: Comparisons
) -> tuple[Judged, str]:
    if prompt is None:
        prompt, chosen, rejected = _common(chosen, rejected)
        if not prompt or not chosen or not rejected:
            return Judged(()), (
                f"has no prompt ({', '.join(map(repr, source.prompt))}), and {source.chosen!r} and"
                f" {source.rejected!r} are not conversations that begin alike and end differently"
            )
    answers = []
    for answer in (chosen, rejected):
        record, defect = _answer(prompt, answer, value, source)
        if defect:
            return Judged(()), defect
        answers.append(record)
    if answers[0] == answers[1]:
        return Judged(()), f"has the same answer as {source.chosen!r} and {source.rejected!r}"
    return Judged(tuple(answers)), ""


def _prompt(value: Mapping[str, Any], source: Comparisons) -> tuple[Any, str]:
    """The prompt, `None` where the record has none, and what is wrong with it."""
    found = [value[key] for key in source.prompt if value.get(key)]
    if not found:
        return None, ""
    if len(found) > 1 and not all(isinstance(part, str) for part in found):
        return None, f"has prompts that are not texts in {', '.join(map(repr, source.prompt))}"
    return ("\n\n".join(found) if len(found) > 1 else found[0]), ""


def _answer(
    prompt: Any, answer: Any, value: Mapping[str, Any], source: Comparisons
) -> tuple[Record, str]:
    """A prompt with one answer as a record of a conversation or of two texts."""
    if prompt is None:
        return Record(), f"has no prompt in {', '.join(map(repr, source.prompt))}"
    if source.as_messages and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if source.as_messages and isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    fields = {"prompt": prompt, "completion": answer, "tools": value.get("tools")}
    record, defect = parse_record(fields)
    return record, defect.replace("'completion'", "the answer")


def _common(chosen: Any, rejected: Any) -> tuple[list, list, list]:
    """The messages with which two conversations begin, and what follows in each."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return [], [], []
    count = next(
        (n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    return chosen[:count], chosen[count:], rejected[count:]
