"""The frame of a page in one file, without a script, the network or a font: an evaluation's, a
cleaning's."""

from __future__ import annotations

from pathlib import Path

from gptjax.observe.charts import escaped
from gptjax.observe.page import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser that follows it fetches nothing and runs nothing."""


def html_page(name: str, kind: str, lead: str, body: str, footer: str, style: Path) -> str:
    """Returns a page as one HTML file.

    Args:
      name: of what it shows: its title.
      kind: a noun, such as evaluation; also the class of the page in its style sheet.
      lead: the sentence under the title. It and the name are escaped here.
      body: HTML of the sections.
      footer: HTML of the last lines.
      style: the page's own style sheet, which follows that of all pages.
    """
    styles = STYLE.read_text(encoding="utf-8") + style.read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escaped(name)} · {kind} · gptjax</title><style>{styles}</style></head>
<body class="{kind}">
<header><h1>{escaped(name)}</h1><p class="lead">{escaped(lead)}</p></header>
<main>{body}</main>
<footer>{footer}</footer>
</body></html>
"""
