"""Drops training text in which an item of a test set stands: a shared run of 13 words
(arXiv:2005.14165, appendix C), found exactly by the index of `gptjax probe contamination`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptjax.clean.records import Item
from gptjax.clean.stage import Stage, Verdict, filtering
from gptjax.core.config import require
from gptjax.data.cleaning import Decontaminate

SHORTEST = 8
"""Words of a whole item from which it is looked for."""


def decontaminate_stage(settings: Decontaminate) -> Stage | None:
    """Returns the stage that drops contaminated texts; `None` without evaluation files.

    Raises:
      ConfigError: a file can't be read, or no item is long enough to be looked for.
    """
    if not settings.files:
        return None
    from gptjax.evaluate.probes.contamination import index_items, shared_runs
    from gptjax.evaluate.probes.corpus import plain_words

    by_length: dict[int, list[str]] = {n: [] for n in range(SHORTEST, settings.words + 1)}
    for text in (text for file in settings.files for text in item_texts(file)):
        n = min(len(plain_words(text)), settings.words)
        if n >= SHORTEST:
            by_length[n].append(text)
    indices = [index_items(texts, n) for n, texts in by_length.items() if texts]
    require(
        bool(indices),
        f"no item of {', '.join(settings.files)} has {SHORTEST} words; shorter ones can't be told"
        " from common phrases: omit --decontaminate.files.",
    )

    def judge(item: Item) -> Verdict | None:
        words = plain_words(item.text)
        for index in indices:
            at = next(shared_runs(index, words), None)
            if at is not None:
                return "contaminated", " ".join(words[at : at + index.n])
        return None

    return filtering(judge)


def item_texts(file: str) -> Sequence[str]:
    """Returns the texts of an evaluation file's items, as the contamination probe reads them."""
    from gptjax.evaluate.probes.sections import item_text
    from gptjax.evaluate.records import read_task_records

    try:
        return [item_text(record) for record in read_task_records(Path(file))]
    except Exception as error:
        error.add_note(f"It was read for --decontaminate.files {file}")
        raise
