"""`gptjax score MODEL FILE`: what a reward model thinks of the answers in a file.

Read `score_command`, then `score_file`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from gptjax.cli.arguments import first_path
from gptjax.core import backend, config, user_config
from gptjax.core.config import ConfigError, require
from gptjax.core.remote import local_copy

if TYPE_CHECKING:
    from gptjax.api import Model
    from gptjax.data import Comparisons
    from gptjax.data.documents.comparisons import Judged

EVERY = 5.0
"""Seconds between lines of progress."""


@dataclass(frozen=True)
class ScoreOptions:
    """Flags of `score`, besides those of the file's records."""

    out: str | None = None
    """File to write the scores to; `None` is standard output."""
    step: int | None = None
    """Checkpoint of a run; `None` means the newest."""
    batch: int = 8
    """Number of texts that are read together."""


def score_command(args: list[str]) -> None:
    """Scores the records of a file."""
    backend.configure()
    from gptjax.api import load
    from gptjax.data import Comparisons

    usage = "gptjax score MODEL FILE [flags]"
    path, flags = first_path(args, usage, "a run that trained a reward model, and a file")
    file, flags = (None, flags) if path is None else first_path(flags, usage, "a file of records")
    options, source = user_config.cli(
        ScoreOptions,
        flags,
        prog="gptjax score MODEL FILE",
        description="Writes the score of each record of a file, as JSON lines: of both answers of a"
        " pair, or of one text. Of pairs it says at the end how often the chosen one leads.",
        base=Comparisons("records.jsonl") if path is None else _own_source(path),
    )
    if path is None or file is None:
        raise ConfigError(f"{usage}: a model and a file are missing.")
    require(options.batch >= 1, f"batch is {options.batch}; it needs at least 1 (--batch 8).")
    model = load(path, options.step)
    require(
        model.config.classes == 1,
        f"{path} gives no score; train a model with --data.task.score and loss BradleyTerry, as"
        " configs/reward_toy.py does.",
    )
    source = replace(source, path=str(file))
    if options.out is None:
        summary = score_file(model, source, options.batch, sys.stdout)
    else:
        with _written(options.out) as out:
            summary = score_file(model, source, options.batch, out)
    print(summary, file=sys.stderr)


def _written(path: str) -> TextIO:
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} can't be written ({error.strerror}); choose another file (--out)."
        ) from None


def _own_source(path: Path) -> Comparisons:
    """How the model's own training read records, if it was a run over comparisons."""
    from gptjax.data import Comparisons

    file = path / "config.json"
    own = config.load_config(dict, file).get("data", {}).get("source") if file.is_file() else None
    if not isinstance(own, dict) or own.get("kind", "Comparisons") != "Comparisons":
        return Comparisons("records.jsonl")
    plain = {name: value for name, value in own.items() if name != "kind"}
    return replace(config.from_dict(Comparisons, plain, "data.source"), held_out=None)


class Scored(NamedTuple):
    """A record, and what is counted of it."""

    line: dict[str, Any]
    """As it is written."""
    lead: float | None = None
    """By which the chosen answer of a pair exceeds the other."""


def score_file(model: Model, source: Comparisons, batch: int, out: Any) -> str:
    """Writes a JSON line for each record and returns a summary.

    A pair has `chosen` and `rejected`, another record `score`; both have `record`, its number in
    the file, and null for a text that is longer than the model's context.

    Raises:
      ConfigError: the file or a record cannot be read, or written by the model's template; names
        the line.
    """
    begun = said = time.monotonic()
    leads, lacking, count = [], 0, 0
    for count, one in enumerate(_scored(model, source, batch), 1):
        print(json.dumps(one.line), file=out, flush=True)
        leads += [] if one.lead is None else [one.lead]
        lacking += None in one.line.values()
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            print(f"{count:,} records, {count / (said - begun):.1f}/s", file=sys.stderr, flush=True)
    says = f"{count:,} records"
    if leads:
        accuracy = sum((lead > 0) + 0.5 * (lead == 0) for lead in leads) / len(leads)
        says += (
            f"; of {len(leads):,} pairs the chosen answer leads in {accuracy:.1%}, by"
            f" {sum(leads) / len(leads):.3f} on average"
        )
    if lacking:
        says += f"; {lacking:,} are longer than {model.config.context} tokens and have no score"
    return says


def _scored(model: Model, source: Comparisons, batch: int) -> Iterator[Scored]:
    from gptjax.data import Preferences
    from gptjax.data.tasks.chat import Writer
    from gptjax.generate.scores import score_pieces

    task = cast(Preferences, model.task) if model.task.conversations else Preferences(score=True)
    writer, size = Writer.of(model.tokenizer), model.tokenizer.vocab_size

    def pieces(judged: Judged, where: str) -> Iterator[Any]:
        for record in judged.answers:
            try:
                ids = task.marked(record, writer)
            except ConfigError as error:
                raise ConfigError(f"{where} {error}") from None
            yield task.piece(ids, size, model.config.context, with_encoder=False)

    numbered, again = itertools.tee(_judged(source))
    scores = score_pieces(
        model.config,
        model.params,
        (piece for number, one in again for piece in pieces(one, f"{source.path}:{number}")),
        batch,
    )
    for number, one in numbered:
        found = [next(scores) for _ in one.answers]
        if len(found) == 1:
            good = {} if one.good is None else {"label": one.good}
            yield Scored({"record": number, "score": found[0], **good})
            continue
        chosen, rejected = found
        line = {"record": number, "chosen": chosen, "rejected": rejected}
        known = chosen is not None and rejected is not None
        yield Scored(line, chosen - rejected if known else None)


def _judged(source: Comparisons) -> Iterator[tuple[int, Judged]]:
    """Records of a file, with their numbers: judged ones, or any that a model can learn from."""
    from gptjax.data.documents.comparisons import (
        Judged,
        is_labelled,
        is_pair,
        parse_judged,
    )
    from gptjax.data.documents.conversations import parse_record, record_objects

    any_record = False
    for number, value, broken in record_objects(local_copy(source.path), source.encoding):
        if broken:
            judged, defect = Judged(()), broken
        elif is_pair(value, source) or is_labelled(value, source):
            judged, defect = parse_judged(value, source)
        else:
            record, defect = parse_record(value, source.completion)
            judged = Judged((record,))
        require(not defect, f"{source.path}:{number} {defect}.")
        any_record = True
        yield number, judged
    require(any_record, f"{source.path} has no records.")
