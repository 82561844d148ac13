"""What the site does with pages that were written for a forge. `on_config` copies docs/ to a folder
that lasts as long as the build, adds the pages of the reference and of files of the repository that
a page links to, and lists what there is; `on_page_content` turns formulas into MathML. A language
has a search of its own, in which guides come before the reference."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jieba
import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUTSIDE = ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
"""Pages of the repository's root."""
API = {
    "Open a model": ("gptjax.load", "gptjax.api.Model"),
    "Model": ("gptjax.model",),
    "Data and tasks": ("gptjax.data",),
    "Losses": ("gptjax.losses",),
    "Experiment": ("gptjax.train.experiment",),
    "Training": ("gptjax.train.loop.train", "gptjax.train.step", "gptjax.train.optim"),
    "Many runs": ("gptjax.train.sweep.train_many", "gptjax.train.paired"),
    "Generation": ("gptjax.generate",),
    "Rewards": ("gptjax.rewards",),
    "Weights and adapters": ("gptjax.weights",),
    "Runs and checkpoints": ("gptjax.runs",),
    "Formats": ("gptjax.formats",),
    "Evaluation": ("gptjax.evaluate.options", "gptjax.evaluate.command"),
    "Looking inside": ("gptjax.lab.look",),
    "Compression": ("gptjax.compress",),
    "Cleaning": ("gptjax.clean",),
    "Retrieval": ("gptjax.retrieve",),
    "Observing": ("gptjax.observe.hook",),
    "Devices": ("gptjax.sharding.mesh",),
    "Errors": ("gptjax.core.config.ConfigError",),
}
"""Pages of the reference, and the names that each explains."""
LINK = re.compile(r"(\]\(|\bsrc=\"|\bhref=\")([^)\s\"#]+)((?:#[^)\s\"]*)?[)\"])")
SWITCH = re.compile(r"^\[?(?:English|简体中文).*\.md\).*\n", re.MULTILINE)
"""The line by which a page leads to the other language, for which the site has a menu."""
CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^##+ +(.+)$", re.MULTILINE)
WIDE = "[\u3001-\u9fff\uff00-\uffef]"
"""A Chinese character or mark."""
BOOSTS = {"api/": 0.1, "reports/": 0.3, "repository/": 0.2, "glossary": 2.0}
"""How much a match counts by the beginning of a page's address; elsewhere 1."""
STYLE = (
    "body{margin:2rem auto;max-width:60rem;padding:0 1rem;font:15px/1.5 system-ui;background:#fff;"
    "color:#222}pre{overflow-x:auto;line-height:1.35}"
)
staged: list[tempfile.TemporaryDirectory] = []


def on_config(config: Any) -> Any:
    """Stages the pages, and fills the lists of the navigation that are what there is."""
    if not staged:
        staged.append(tempfile.TemporaryDirectory(prefix="site-"))
        stage(Path(staged[0].name))
        for word in chinese_terms():
            jieba.add_word(word)
    config.docs_dir = staged[0].name
    # Each language has a reference of its own: what the last one registered is forgotten.
    config.plugins["autorefs"]._primary_url_map.clear()
    for title, pages in {
        "Course": listed("course"),
        "Reports": listed("reports"),
        "API": [{title: api_page(title)} for title in API],
    }.items():
        fill(config.nav, title, pages)
    return config


def on_shutdown() -> None:
    for folder in staged:
        folder.cleanup()


def listed(folder: str) -> list[str]:
    """Returns the English pages of a folder, its index first."""
    pages = sorted((DOCS / folder).glob("*.md"), key=lambda page: (page.stem != "index", page))
    return [f"{folder}/{page.name}" for page in pages if not page.name.endswith(".zh.md")]


def fill(nav: list, title: str, pages: list) -> None:
    """Replaces the entries of a title, at any depth; a title without pages goes."""
    for entry in [entry for entry in nav if isinstance(entry, dict)]:
        for key, inner in entry.items():
            if key == title:
                entry[key] = pages
                if not pages:
                    nav.remove(entry)
            elif isinstance(inner, list):
                fill(inner, title, pages)


def api_page(title: str) -> str:
    return f"api/{title.lower().replace(' ', '-')}.md"


# --- staging


def stage(folder: Path) -> None:
    """Writes every page and file of the site, with links as they are there."""
    shutil.copytree(DOCS, folder, dirs_exist_ok=True)
    pages = [*DOCS.rglob("*.md"), *(ROOT / name for name in OUTSIDE if (ROOT / name).exists())]
    for page in pages:
        write(folder / address(page), moved(page))
    for path in {path for page in pages for path in linked(page)}:
        if not (folder / address(path)).exists():
            write(folder / address(path), listing(path))
    for title, names in API.items():
        parts = [f"# {title}", *(f"::: {name}" for name in names)]
        write(folder / api_page(title), "\n\n".join(parts))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def address(path: Path) -> str:
    """Returns the place in the site of a file or folder of the repository."""
    if path.is_relative_to(DOCS) and path.is_file():
        return path.relative_to(DOCS).as_posix()
    inside = path.relative_to(ROOT).as_posix()
    if inside in OUTSIDE:
        return f"repository/{inside}"
    return f"source/{inside.replace('.', '-')}.html"


def target_of(page: Path, link: str) -> Path | None:
    """Returns the file of the repository that a link leads to, if it leads to one."""
    path = (page.parent / link).resolve()
    found = ":" not in link and path.is_relative_to(ROOT) and path.exists()
    return path if found else None


def linked(page: Path) -> Iterator[Path]:
    for _, link, _ in LINK.findall(page.read_text(encoding="utf-8")):
        if path := target_of(page, link):
            yield path


def moved(page: Path) -> str:
    """Returns a page's text with its links as they are in the site; text in `<details>` becomes
    Markdown, as it is on a forge."""

    def link(found: re.Match) -> str:
        before, there, after = found.groups()
        if (path := target_of(page, there)) is None:
            return found.group()
        return before + os.path.relpath(address(path), Path(address(page)).parent) + after

    text = SWITCH.sub("", page.read_text(encoding="utf-8"), count=1)
    pieces = CODE.split(text)
    pieces[::2] = [LINK.sub(link, piece) for piece in pieces[::2]]
    if page.name.endswith(".zh.md"):  # a break between lines would become a space
        pieces[::2] = [re.sub(f"(?<={WIDE})\n(?={WIDE})", "", piece) for piece in pieces[::2]]
        pieces[::2] = with_english_anchors(page, pieces[::2])
    return "".join(pieces).replace("<details>", '<details markdown="1">')


def with_english_anchors(page: Path, pieces: list[str]) -> list[str]:
    """Gives each heading of a Chinese page the English anchor too: pages that are in English only
    lead to it."""
    english = page.with_name(page.name.replace(".zh.md", ".md")).read_text(encoding="utf-8")
    names = iter(HEADING.findall(CODE.sub("", english)))

    def anchored(heading: re.Match) -> str:
        theirs, ours = anchor(next(names, "")), anchor(heading[1])
        return heading[0] if theirs in ("", ours) else f'<div id="{theirs}"></div>\n\n{heading[0]}'

    return [HEADING.sub(anchored, piece) for piece in pieces]


def anchor(heading: str) -> str:
    """Returns the anchor that a forge makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def listing(path: Path) -> str:
    """Returns a page with a file's text, or a folder's names, that needs nothing else."""
    lexer = TextLexer()
    if path.is_dir():
        text = "\n".join(
            sorted(inner.name for inner in path.iterdir() if inner.name[0] not in "._")
        )
    else:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        with contextlib.suppress(ClassNotFound):
            lexer = get_lexer_for_filename(path.name.replace(".ipynb", ".py"))
    title = html.escape(path.relative_to(ROOT).as_posix())
    form = HtmlFormatter()
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{form.get_style_defs()}</style><h1>{title}</h1>"
        f"{highlight(text, lexer, form)}</html>"
    )


# --- formulas


def on_page_content(content: str, **_: Any) -> str:
    """Turns formulas into MathML, which browsers draw without a script, and keeps a flag's name
    on one line."""
    content = re.sub(r'<(div|span) class="arithmatex">(.*?)</\1>', drawn, content, flags=re.DOTALL)
    pieces = re.split(r"(<pre.*?</pre>)", content, flags=re.DOTALL)
    pieces[::2] = [re.sub(r"<code>[^<]*</code>", unbroken, piece) for piece in pieces[::2]]
    return "".join(pieces)


def unbroken(code: re.Match) -> str:
    return re.sub(r"(?<![\w-])--\w[\w.-]*", r'<span class="flag">\g<0></span>', code[0])


def drawn(formula: re.Match) -> str:
    latex = html.unescape(formula[2]).strip()[2:-2]
    display = "block" if formula[1] == "div" else "inline"
    return latex2mathml.converter.convert(latex, display=display)


# --- search


def chinese_terms() -> list[str]:
    """Returns the Chinese words of the glossary, which the search must not take apart."""
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| [^|]+ \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE)
    return re.findall("[\u4e00-\u9fff]{2,}", " ".join(cells))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    address = page.url.removeprefix("zh/")
    boost = next((boost for begin, boost in BOOSTS.items() if address.startswith(begin)), 1.0)
    page.meta.setdefault("search", {})["boost"] = boost
    return markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Leads the search of a Chinese page to the index below zh/."""
    if not page.url.startswith("zh/"):
        return output
    return re.sub(r'("base": ")\.\.(?:/(\.\.))?(?=["/])', lambda m: m[1] + (m[2] or "."), output)


@event_priority(-101)  # after the plugins that write the index of all languages
def on_post_build(config: Any, **_: Any) -> None:
    """Gives each language an index of its own, as JSON for servers and as a script for disks."""
    site = Path(config.site_dir)
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    english = [entry for entry in index["docs"] if not entry["location"].startswith("zh/")]
    if english:  # the build of all is done; that of a language only is part of it
        index["docs"], folder = english, site / "search"
        index["config"]["lang"] = ["en"]
    else:
        folder = site / "zh/search"
        for entry in index["docs"]:
            entry["location"] = entry["location"].removeprefix("zh/")
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    guides = {
        page.with_suffix(".html").name for page in DOCS.glob("*.md") if ".zh" not in page.name
    }
    if guides - found:
        raise PluginError(f"{folder} cannot find {sorted(guides - found)}")
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
    write(folder / "search_index.json", text)
    write(folder / "search_index.js", f"var __index = {text}")
