"""Pictures as SVG, drawn without any library or script: heat maps, attention maps, shaded tokens.

They take their colours from the page's style sheet; `standalone` makes a file of its own of one.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.observe.charts import escaped
from gptjax.observe.page import STYLE

LOOK_STYLE = Path(__file__).with_name("look.css")
TONES = 9
"""Shades that a map of attention distinguishes above nothing."""


def heat_map(
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    unit: str = "",
    largest: float | None = None,
    cell: tuple[int, int] = (26, 15),
) -> str:
    """Returns a table of numbers as shaded cells, each with its number as a tooltip: above 0 in one
    colour, below in another.

    Args:
      values: [rows columns]; what is not finite is left blank.
      largest: the number with the full shade; `None` is the largest of all.
    """
    table = np.asarray(values, np.float64)
    finite = np.abs(table[np.isfinite(table)])
    full = largest or (float(finite.max()) if finite.size else 0.0) or 1.0
    wide, high = cell
    left = 12 + 6.4 * max((len(name) for name in rows), default=0)
    top = 12 + 5.4 * max((len(name) for name in columns), default=0)
    parts = []
    for r, row in enumerate(table):
        y = top + r * high
        parts.append(text_at(left - 6, y + high - 4, rows[r], "end"))
        for c, value in enumerate(row):
            if not math.isfinite(value):
                continue
            shade = min(abs(value) / full, 1.0)
            said = f"{rows[r]}, {columns[c]}: {value:.3f}{f' {unit}' if unit else ''}"
            parts.append(
                f'<rect class="{"above" if value >= 0 else "below"}" x="{left + c * wide:.1f}"'
                f' y="{y:.1f}" width="{wide - 1}" height="{high - 1}"'
                f' fill-opacity="{shade:.3f}"><title>{escaped(said)}</title></rect>'
            )
    for c, name in enumerate(columns):
        x = left + c * wide + wide / 2
        parts.append(
            f'<text x="{x:.1f}" y="{top - 6:.1f}" transform="rotate(-60 {x:.1f} {top - 6:.1f})">'
            f"{escaped(name)}</text>"
        )
    width = left + wide * len(columns) + 0.5 * top + 8
    return _framed(width, top + high * len(rows) + 4, title, "".join(parts), "heat")


def attention_map(pattern: Any, *, title: str, side: int = 96) -> str:
    """Returns attention weights [T S] as a square: queries downwards, keys to the right.

    One path a shade, so that hundreds of maps stay a small page; weights below half a shade are
    left out.
    """
    weights = np.asarray(pattern, np.float64)
    size = max(weights.shape)
    tone = np.clip(np.rint(weights * TONES), 0, TONES).astype(int)
    parts = [f'<path class="frame" d="M0 0h{size}v{size}h-{size}z"/>']
    for shade in range(1, TONES + 1):
        cells = "".join(f"M{s} {t}h1v1h-1z" for t, s in np.argwhere(tone == shade))
        if cells:
            parts.append(f'<path class="cells" fill-opacity="{shade / TONES:.2f}" d="{cells}"/>')
    return (
        f'<svg class="pattern" viewBox="0 0 {size} {size}" width="{side}" height="{side}"'
        f' role="img" aria-label="{escaped(title)}"><title>{escaped(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def shaded_tokens(tokens: Sequence[str], values: Any, largest: float | None = None) -> str:
    """Returns a text whose tokens are shaded by a number each, which is their tooltip.

    Args:
      largest: the number with the full shade; `None` is the largest.
    """
    numbers = np.asarray(values, np.float64)
    full = largest or float(np.abs(numbers).max(initial=0.0)) or 1.0
    spans = []
    for token, value in zip(tokens, numbers, strict=True):
        tone = min(round(abs(float(value)) / full * TONES), TONES) if np.isfinite(value) else 0
        kind = f"tone {'a' if value >= 0 else 'b'}{tone}"
        spans.append(f'<span class="{kind}" title="{value:+.3f}">{token_html(token)}</span>')
    return f'<p class="tokens">{"".join(spans)}</p>'


def token_html(token: str) -> str:
    """Returns a token as HTML in which white space can be seen."""
    return escaped(visible_token(token))


def visible_token(token: str) -> str:
    """Returns a token in which white space, and nothing, can be seen."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def standalone(svg: str) -> str:
    """Returns a picture as a file of its own, with its colours."""
    style = STYLE.read_text(encoding="utf-8") + LOOK_STYLE.read_text(encoding="utf-8")
    style = re.sub(r"^svg\{[^}]*\}", "", style, flags=re.MULTILINE)  # sizes are the picture's own
    begin = svg.index("<svg") + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg"{svg[begin : svg.index(">")]}>'
        f"<style>{html.escape(style, quote=False)}</style>{svg[svg.index('>') + 1 :]}"
    )


def text_at(x: float, y: float, text: str, kind: str = "") -> str:
    """Returns a text in an SVG; `kind` is its CSS class."""
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}>{escaped(text)}</text>'


def _framed(width: float, height: float, title: str, inner: str, kind: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
        f' role="img" aria-label="{escaped(title)}">{inner}</svg>'
    )
