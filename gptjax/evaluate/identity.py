"""What made a figure, as one hash: records, prompts, settings, tokenizer, weights and code.

Read `identify`. Where a figure may differ although all of these are the same, it says why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gptjax
from gptjax.api import Model
from gptjax.core.config import to_dict
from gptjax.data.tokenizers.chat import ChatTemplate
from gptjax.data.tokenizers.tokenizer import hash_tokenizer
from gptjax.evaluate.records import Record, kind_of
from gptjax.evaluate.report import Identity
from gptjax.evaluate.tasks import TaskConfig, forms_of
from gptjax.formats import OpenedModel

DECIDING = ("core", "weights", "model", "data", "generate", "rewards", "evaluate")
"""Rooms whose source decides figures. How weights are read is not among them: they are hashed as
they are computed with."""
SHOWING = (
    *("evaluate/page", "evaluate/table", "evaluate/command", "evaluate/compare"),
    *("evaluate/probes", "evaluate/watched", "evaluate/search", "evaluate/prompt_search"),
)
"""How the names of files begin that show figures or ask for them, and decide none of a task."""


class Hashes(NamedTuple):
    """Hashes of what all tasks of an evaluation share."""

    tokenizer: str
    weights: str
    """Of the parameters and of the model's config."""
    code: str


def hashes_of(model: Model) -> Hashes:
    """Returns the hashes of a model and of the code that runs it."""
    weights = OpenedModel(*model[:5]).fingerprint()
    described = {"parameters": weights, "config": to_dict(model.config)}
    return Hashes(hash_tokenizer(model.tokenizer), digest(described), code_hash())


def identify(
    task: TaskConfig,
    records: Sequence[Record],
    pool: Sequence[Record],
    hashes: Hashes,
    template: ChatTemplate | None = None,
) -> Identity:
    """Returns the identity of a task's figures.

    A setting that decides nothing is not part of it: the seed where nothing is drawn, letters
    where there are no choices, the limit, which the records themselves show.

    Args:
      records: those that are asked.
      pool: records from which examples are drawn.
      template: how conversations are written; `None` is plain text.
    """
    shown = (
        {"shots": task.shots, "seed": task.seed, "pool": records_hash(pool)} if task.shots else {}
    )
    prompts = {
        "form": to_dict(task.prompt),
        "forms": forms_of(task, records),
        "template": template and template.source,
        **shown,
    }
    settings = {"metric": task.metric}
    if kind_of(records[0]) in ("question", "free"):
        settings |= {"new_tokens": task.new_tokens, "stop": list(task.stop)}
    parts = {
        "records": records_hash(records),
        "prompts": digest(prompts),
        "settings": digest(settings),
        **hashes._asdict(),
    }
    return Identity(digest(parts), parts, _doubts(template))


def records_hash(records: Sequence[Record]) -> str:
    """Returns the SHA-256 of records: kind, fields and order."""
    return digest([[type(record).__name__, *record] for record in records])


def code_hash() -> str:
    """Returns the version of gptjax and the SHA-256 of the sources that decide figures."""
    home = Path(gptjax.__file__).parent
    whole = hashlib.sha256()
    for room in DECIDING:
        for file in sorted((home / room).rglob("*.py")):
            name, content = file.relative_to(home).as_posix(), file.read_bytes()
            if not name.startswith(SHOWING):
                whole.update(f"{name} {len(content)}\n".encode() + content)
    return f"{gptjax.__version__} {whole.hexdigest()}"


def digest(value: Any) -> str:
    """Returns the SHA-256 of plain values."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _doubts(template: ChatTemplate | None) -> tuple[str, ...]:
    if template is not None and "strftime_now" in template.source:
        return ("the chat template writes today's date into each prompt",)
    return ()
