"""Records of evaluation sets, read from JSON lines, a JSON array or CSV, and recognised by their
fields.

Read the kinds of `Record`, then `read_task_records`; `KINDS` says which fields make which kind.
How tables are read is in `tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.encodings import require_encoding
from gptjax.data.documents.structured import format_of, json_kind, read_objects
from gptjax.evaluate.tables import read_table


class Choices(NamedTuple):
    """A question and the texts that may answer it."""

    id: str
    """Its line in the file, or its place in an array, from 1."""
    query: str
    choices: tuple[str, ...]
    gold: int
    """Number of the right choice, from 0."""
    group: str = ""
    """What the record is about (a subject, a kind of bias), where its file says."""


class Continuation(NamedTuple):
    """A context and the text that should follow it."""

    id: str
    context: str
    continuation: str
    group: str = ""


class Contexts(NamedTuple):
    """Several contexts, of which one makes a continuation likely."""

    id: str
    contexts: tuple[str, ...]
    continuation: str
    gold: int
    group: str = ""


class Pair(NamedTuple):
    """Two sentences that differ little, of which a model should prefer the first.

    Of pairs about bias (`sent_more`, `sent_less`) the first is the one that stereotypes more, and a
    model without bias prefers neither.
    """

    id: str
    good: str
    bad: str
    bias: bool = False
    group: str = ""


class Question(NamedTuple):
    """A question with a short answer that can be compared exactly."""

    id: str
    context: str
    answer: str
    aliases: tuple[str, ...] = ()
    """Other right answers."""
    group: str = ""


class Free(NamedTuple):
    """A text to write, and references that it should resemble."""

    id: str
    context: str
    references: tuple[str, ...]
    group: str = ""


class Whole(NamedTuple):
    """A text whose tokens are all predicted."""

    id: str
    text: str
    group: str = ""


Record = Choices | Continuation | Contexts | Pair | Question | Free | Whole


def read_task_records(path: Path | str, encoding: str = "utf-8") -> list[Record]:
    """Returns the records of a file, all of one kind: JSON lines, a JSON array, or CSV, whose first
    line may be missing where the columns are a question, choices and the answer; .gz, .bz2, .xz and
    .zst are unpacked.

    Raises:
      ConfigError: the file can't be read or has no records, or a record is of no kind, of another
        kind than the first, or lacks something; names the line and what is needed.
    """
    path = Path(path)
    require(
        path.is_file(), f"{path} is not there; give a file of records, or a name (--tasks FILE)."
    )
    records: list[Record] = []
    try:
        require_encoding(encoding)
        for number, fields, broken in _rows(path, encoding):
            require(not broken, f"{path}:{number} {broken}; fix or remove it.")
            records.append(_record(path, number, fields, records[0] if records else None))
    except ConfigError as error:
        # the readers are those of training data, and name its flags
        said = str(error).replace("--data.source.encoding", "--encoding")
        raise ConfigError(said.replace("--data.source.path", "--tasks")) from None
    require(bool(records), f"{path} has no records; give a file that has some (--tasks FILE).")
    return records


def kind_of(record: Record) -> str:
    """Returns the name of a record's kind: a key of `KINDS`."""
    return next(name for name, kind in KINDS.items() if kind.record is type(record))


def _rows(path: Path, encoding: str) -> Iterator[tuple[int, Mapping[str, Any], str]]:
    """Number, fields and defect of each record."""
    form = format_of(path, encoding, otherwise="jsonl")
    if form in ("jsonl", "json"):
        return read_objects(path, form, encoding)
    require(
        form in ("csv", "tsv"),
        f"{path} is not JSON lines, a JSON array or CSV; convert it to one of them (--tasks FILE).",
    )
    return read_table(path, encoding)


def _record(path: Path, number: int, fields: Mapping[str, Any], first: Record | None) -> Record:
    where = f"{path}:{number}"
    kinds = [kind for kind in KINDS.values() if all(_key(fields, n) for n in kind.needs)]
    if not kinds:
        has = ", ".join(fields) or "nothing"
        forms = "; or ".join(", ".join(names[0] for names in kind.needs) for kind in KINDS.values())
        raise ConfigError(f"{where} has the fields {has}; a record needs {forms}.")
    record = kinds[0].parse(where, str(number), fields)
    require(
        first is None or type(first) is type(record),
        f"{where} is of the kind {type(record).__name__.lower()}, records before it are of the kind"
        f" {type(first).__name__.lower()}; put them into two files.",
    )
    return record


# --- fields


def _key(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the names that the record has."""
    return next((name for name in names if name in fields), None)


def _value(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    key = _key(fields, names)
    return None if key is None else fields[key]


def _text(where: str, fields: Mapping[str, Any], names: Sequence[str], empty: bool = False) -> str:
    key = _key(fields, names) or names[0]
    value = fields.get(key)
    if type(value) in (int, float):
        value = str(value)
    require(
        isinstance(value, str), f"{where} has {json_kind(value)} in {key}, where it needs a text."
    )
    require(empty or bool(value.strip()), f"{where} has an empty {key}; it needs a text.")
    return value


def _texts(
    where: str, fields: Mapping[str, Any], names: Sequence[str], least: int
) -> tuple[str, ...]:
    key = _key(fields, names) or names[0]
    value = fields.get(key)
    value = [value] if isinstance(value, str) else value
    fine = isinstance(value, list | tuple) and all(isinstance(one, str) and one for one in value)
    require(fine, f"{where} has {json_kind(value)} in {key}, where it needs a list of texts.")
    require(
        len(value) >= least,
        f"{where} has {len(value)} in {key}; it needs at least {least}.",
    )
    return tuple(value)


def _gold(where: str, fields: Mapping[str, Any], labels: Sequence[str], count: int) -> int:
    """The number of the right choice: as a number from 0, a letter, or one of the labels."""
    key = _key(fields, GOLD) or GOLD[0]
    value = fields.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    word = value.strip() if isinstance(value, str) else ""
    number = value if type(value) is int else -1
    if word in labels:
        number = list(labels).index(word)
    elif word.isdigit():
        number = int(word)
    elif len(word) == 1 and word.isalpha() and word.isascii():
        number = ord(word.upper()) - ord("A")
    require(
        0 <= number < count,
        f"{where} has {value!r} in {key}; it needs the right choice: a number from 0 to"
        f" {count - 1}, or a letter from A to {chr(ord('A') + count - 1)}.",
    )
    return number


def _group(fields: Mapping[str, Any]) -> str:
    value = _value(fields, GROUP)
    return value if isinstance(value, str) else ""


# --- kinds


QUERY = ("query", "question", "ctx", "goal")
CONTEXT = ("context", "prompt", "question", "query", "source", "document")
CHOICES = ("choices", "options", "endings")
GOLD = ("gold", "answer", "label", "answerKey", "answer_index")
CONTINUATION = ("continuation", "completion")
REFERENCE = ("references", "reference", "summary", "target")
GROUP = ("group", "subject", "category", "bias_type", "field")
GOOD = ("good", "sentence_good", "sent_more")
BAD = ("bad", "sentence_bad", "sent_less")


def _choices(where: str, number: str, fields: Mapping[str, Any]) -> Choices:
    value, labels = _value(fields, CHOICES), ()
    if isinstance(value, dict) and {"text", "label"} <= value.keys():
        labels = tuple(map(str, value["label"]))
        fields = {**fields, "choices": value["text"]}
    choices = _texts(where, fields, CHOICES, least=2)
    gold = _gold(where, fields, labels, len(choices))
    return Choices(number, _text(where, fields, QUERY), choices, gold, _group(fields))


def _contexts(where: str, number: str, fields: Mapping[str, Any]) -> Contexts:
    contexts = _texts(where, fields, ("context_options",), least=2)
    gold = _gold(where, fields, (), len(contexts))
    return Contexts(number, contexts, _text(where, fields, CONTINUATION), gold, _group(fields))


def _continuation(where: str, number: str, fields: Mapping[str, Any]) -> Continuation:
    context = _text(where, fields, CONTEXT, empty=True)
    return Continuation(number, context, _text(where, fields, CONTINUATION), _group(fields))


def _pair(where: str, number: str, fields: Mapping[str, Any]) -> Pair:
    good, bad = _text(where, fields, GOOD), _text(where, fields, BAD)
    return Pair(number, good, bad, "sent_more" in fields, _group(fields))


def _question(where: str, number: str, fields: Mapping[str, Any]) -> Question:
    answer = ("answer", "answers")
    value, aliases = _value(fields, answer), ()
    if isinstance(value, dict):  # as SQuAD and TriviaQA are published
        fields = {**fields, "answer": value.get("text", value.get("value"))}
        aliases = tuple(one for one in value.get("aliases", ()) if isinstance(one, str))
    if isinstance(_value(fields, answer), list):
        first, *others = _texts(where, fields, answer, least=1)
    else:
        first, others = _text(where, fields, answer), []
    if fields.get("aliases"):
        others += _texts(where, fields, ("aliases",), least=0)
    aliases = tuple(dict.fromkeys(one for one in (*others, *aliases) if one != first))
    return Question(number, _text(where, fields, CONTEXT), first, aliases, _group(fields))


def _free(where: str, number: str, fields: Mapping[str, Any]) -> Free:
    context = _value(fields, CONTEXT)
    if isinstance(context, list):  # sentences
        context = " ".join(_texts(where, fields, CONTEXT, least=1))
    else:
        context = _text(where, fields, CONTEXT)
    return Free(number, context, _texts(where, fields, REFERENCE, least=1), _group(fields))


def _whole(where: str, number: str, fields: Mapping[str, Any]) -> Whole:
    return Whole(number, _text(where, fields, ("text",)), _group(fields))


class Kind(NamedTuple):
    """A kind of record."""

    record: type[Record]
    needs: tuple[tuple[str, ...], ...]
    """Fields, each with its other names."""
    parse: Callable[[str, str, Mapping[str, Any]], Record]


KINDS = {
    "choices": Kind(Choices, (QUERY, CHOICES, GOLD), _choices),
    "contexts": Kind(Contexts, (("context_options",), CONTINUATION, GOLD), _contexts),
    "continuation": Kind(Continuation, (CONTEXT, CONTINUATION), _continuation),
    "pair": Kind(Pair, (GOOD, BAD), _pair),
    "question": Kind(Question, (CONTEXT, ("answer", "answers")), _question),
    "free": Kind(Free, (CONTEXT, REFERENCE), _free),
    "text": Kind(Whole, (("text",),), _whole),
}
"""Name → kind. A record is of the first kind whose fields it has."""
