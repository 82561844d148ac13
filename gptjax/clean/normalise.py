"""One spelling of the same text: Unicode normal form, line ends, control characters, mojibake."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from gptjax.clean.records import Item
from gptjax.clean.stage import Outcome, Stage, dropped_item, needs
from gptjax.data.cleaning import Normalise

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\ufeff\ufffe\uffff]")
"""All of C0 and C1 but tab, line ends and U+0085; soft hyphens, byte order marks, noncharacters."""
_LINE_END = re.compile("\r\n?|\u0085|\u2028|\u2029")
_BLANK = re.compile("\n{4,}")


def normalise_stage(settings: Normalise) -> Stage:
    """Returns the stage that normalises texts and drops blank ones (rule `empty`)."""
    steps = normalising(settings)

    def stage(items: Sequence[Item]) -> Outcome:
        kept, dropped, counts = [], [], Counter()
        for given in items:
            item = given
            for name, step in steps:
                edited = item.edited(step)
                if edited.record != item.record:
                    counts[name] += 1
                    item = edited
            if item.text.strip():
                kept.append(item)
            else:
                dropped.append(dropped_item(item, "empty"))
        return Outcome(kept, dropped, counts)

    return stage


def normalising(settings: Normalise) -> list[tuple[str, Callable[[str], str]]]:
    """Returns the steps that the settings ask for, by name."""
    steps: list[tuple[str, Callable[[str], str]]] = []
    if settings.mojibake:
        steps.append(("mojibake", _mending()))
    if settings.form != "none":
        form = settings.form
        steps.append(
            (
                form,
                lambda t: (
                    t if unicodedata.is_normalized(form, t) else unicodedata.normalize(form, t)
                ),
            )
        )
    if settings.controls:
        steps.append(("controls", without_controls))
    if settings.whitespace:
        steps.append(("whitespace", tidy))
    return steps


def without_controls(text: str) -> str:
    """Returns the text without control characters, its lines ended by \\n."""
    return _CONTROLS.sub("", _LINE_END.sub("\n", text))


def tidy(text: str) -> str:
    """Returns the text without white space at the ends of lines and with at most two blank lines
    in a row."""
    return _BLANK.sub("\n\n\n", "\n".join(line.rstrip() for line in text.split("\n")))


def _mending() -> Callable[[str], str]:
    try:
        from ftfy import fix_encoding
    except ImportError:
        raise needs("ftfy", "mending mojibake", "--normalise.no-mojibake") from None
    return lambda text: text if text.isascii() else fix_encoding(text)
