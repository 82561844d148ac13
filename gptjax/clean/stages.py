"""The stages that judge each record by itself, in their order.

Text is judged as it was written, so PII is replaced after the rules of quality and the search for
test items; duplicates are looked for afterwards (`duplicates.py`), so that texts which differ only
in what was replaced are equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gptjax.clean.classifier import classifier_stage
from gptjax.clean.decontaminate import decontaminate_stage
from gptjax.clean.language import language_stage
from gptjax.clean.normalise import normalise_stage
from gptjax.clean.pii import pii_stage
from gptjax.clean.quality import quality_stage
from gptjax.clean.records import Item
from gptjax.clean.stage import Dropped, Stage
from gptjax.data.cleaning import Cleaning

ORDER: tuple[tuple[str, Callable[[Any], Stage | None]], ...] = (
    ("normalise", normalise_stage),
    ("language", language_stage),
    ("quality", quality_stage),
    ("decontaminate", decontaminate_stage),
    ("classifier", classifier_stage),
    ("pii", pii_stage),
)
"""Field of `Cleaning` → what builds its stage."""
LATER = ("exact", "near", "lines", "sample")
"""What is decided of all records together, afterwards."""


class Judged(NamedTuple):
    """What the stages make of records."""

    kept: list[Item]
    dropped: list[tuple[str, Dropped]]
    """With the name of the stage."""
    counts: dict[str, Counter[str]]
    """What each stage counted."""


def build_stages(settings: Cleaning) -> list[tuple[str, Stage]]:
    """Returns the stages that have something to do, by name.

    Raises:
      ConfigError: a package or a file that a stage needs is not there.
    """
    built = ((name, build(getattr(settings, name))) for name, build in ORDER)
    return [(name, stage) for name, stage in built if stage is not None]


def run_stages(
    items: Sequence[Item], stages: Sequence[tuple[str, Stage]], scrubbed: Callable[[str], str]
) -> Judged:
    """Runs records through the stages.

    Args:
      scrubbed: frees the snippet of a dropped record of PII.
    """
    kept, dropped, counts = list(items), [], {}
    for name, stage in stages:
        outcome = stage(kept)
        kept, counts[name] = outcome.kept, outcome.counts
        dropped += [(name, one._replace(snippet=scrubbed(one.snippet))) for one in outcome.dropped]
    return Judged(kept, dropped, counts)
