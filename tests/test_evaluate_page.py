"""Laws of eval.html: it asks for nothing and runs nothing, whatever a model wrote; what it draws is
where the figures are; and it can be read without seeing it."""

from __future__ import annotations

import dataclasses
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluations import (
    LABELS,
    NAN_MEASURE,
    choice_items,
    choice_task,
    confidences,
    made_report,
    text_task,
    written_task,
)

from gptjax.core.config import ConfigError
from gptjax.evaluate.figure import Figure, mean_of
from gptjax.evaluate.page import eval_page, write_page
from gptjax.evaluate.page_charts import (
    Mark,
    Square,
    confusion_table,
    interval_svg,
    reliability_svg,
    selective_svg,
)
from gptjax.evaluate.page_items import SHOWN, samples_section
from gptjax.evaluate.report import Bin, Confusion, Item, Report

VOID = {"meta", "br"}
ATTACK = "<script>alert('x')</script><img src=//evil onerror=a()>\"'&\x00\ud800</style></pre>"


class Read(HTMLParser):
    """A page as elements: (tag, attributes), text by tag, and which tags were left open."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


PAGE = eval_page(made_report())
READ = Read(PAGE)


# --- nothing runs


def poisoned(value):
    """A report whose every text is an attack."""
    if isinstance(value, str):
        return ATTACK
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        kept = {"headline", "form", "better", "shape", "unit"}  # our own words
        changed = {n: poisoned(getattr(value, n)) for n in names if n not in kept}
        if "measures" in changed and "headline" in names:  # the headline is one of them
            changed["measures"] = value.measures
        return dataclasses.replace(value, **changed)
    if isinstance(value, Figure):
        return value
    if isinstance(value, tuple):
        return tuple(map(poisoned, value))
    if isinstance(value, dict):
        return {
            ATTACK if isinstance(inner, str) else k: poisoned(inner) for k, inner in value.items()
        }
    return value


@pytest.mark.parametrize("page", [PAGE, eval_page(poisoned(made_report()))], ids=["own", "attack"])
def test_a_page_runs_nothing_and_asks_for_nothing(page):
    read = Read(page)
    assert not read.open
    assert not {tag for tag, _ in read.elements} & {"script", "img", "link", "iframe", "object"}
    names = [(name, value) for _, attributes in read.elements for name, value in attributes.items()]
    assert not [name for name, _ in names if name.startswith("on") or name == "src"]
    assert all(value.startswith("#") for name, value in names if name == "href")
    assert "default-src 'none'" in read.all("meta")[1]["content"]
    assert not re.search(r"@import|url\(|https?:", page)
    page.encode("utf-8", "xmlcharrefreplace")


def test_what_a_model_wrote_is_shown_letter_by_letter():
    task = written_task()
    first = dataclasses.replace(task.items[0], written=ATTACK, prompt=ATTACK)
    page = eval_page(Report("m", 1, (dataclasses.replace(task, items=(first, *task.items[1:])),)))
    shown = [text for text in Read(page).texts["pre"] if "alert" in text]
    assert shown == [ATTACK.replace("\x00", "␀").replace("\ud800", "�")] * len(shown) and shown


# --- what is drawn is where the figures are


def places(svg: str, element: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for x, y in re.findall(rf'<{element}[^>]* c?x="([\d.]+)"[^>]* c?y="([\d.]+)"', svg)
    ]


def numbers(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def path_of(svg: str, style: str) -> str:
    return re.search(rf'<path class="{style}" d="([^"]*)"', svg)[1]


def test_an_interval_is_drawn_from_its_lower_to_its_upper_end():
    figure = Figure(0.5, 10, 0.1, 0.25, 0.75)
    svg = interval_svg(figure, [Mark("chance", 0.1, "chance")], 0.0, 1.0)
    assert 'd="M100.0 12.0H300.0"' in svg
    assert re.findall(r'<circle class="point" cx="([\d.]+)"', svg) == ["200.0"]
    assert re.findall(r'<line class="chance" x1="([\d.]+)" x2="([\d.]+)"', svg) == [("40.0",) * 2]
    assert "0.500, 95% interval 0.250 to 0.750" in svg
    assert "whisker" not in interval_svg(NAN_MEASURE.figure, [], 0.0, 1.0)


def test_each_task_has_its_figure_interval_and_baselines_in_the_summary():
    summary = PAGE.split("<h2>Results</h2>")[1].split("</section>")[0]
    for row, task in zip(summary.split("<tr>")[2:], made_report().tasks, strict=False):
        measure = task.measure(task.headline)
        for value in (measure.figure.value, measure.figure.low, measure.figure.high):
            assert f"{value:.3f}" in row, task.name
        for name, value in (("chance", measure.chance), ("commonest answer", measure.majority)):
            assert (value is None) == (f"<title>{name} " not in row)
            assert value is None or f"<title>{name} {value:.3f}</title>" in row
    assert summary.count('<svg class="interval"') == 3  # bits have no place between 0 and 1


def test_a_task_says_what_its_responses_took():
    assert (
        "1,200 requests in 12s, 8,000 tokens read (2.5 times fewer than one by one), 7 tokens"
        " written, 641 a second" in PAGE
    )


def test_white_space_of_settings_is_shown():
    assert "<td>&quot;\\nA:&quot;</td>" in PAGE and "<td>{question}</td>" in PAGE


def test_the_reliability_diagram_has_a_point_for_each_bin():
    bins = (Bin(0.25, 0.5, 10), Bin(0.75, 1.0, 20))
    svg, square = reliability_svg(bins), Square()
    centres = re.findall(r'<circle class="point" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert [tuple(map(float, one)) for one in centres] == [
        pytest.approx(square.at(one.confidence, one.accuracy)) for one in bins
    ]
    low = mean_of([1.0] * 5 + [0.0] * 5).low
    assert f"M{square.at(0.25, 0)[0]:.1f} {square.at(0, low)[1]:.1f}V" in svg


def test_the_selective_curve_is_the_accuracy_of_the_most_confident():
    items = choice_items(60, 3, LABELS, 1.0)
    sure = confidences(items)
    right = [one.chosen == one.gold for one in items]
    points, square = numbers(path_of(selective_svg(sure, right), "main")), Square()
    hits = np.array(right)[np.argsort(-np.array(sure))]
    wanted = [square.at((k + 1) / 60, hits[: k + 1].mean()) for k in range(60)]
    np.testing.assert_allclose(points, wanted, atol=0.06)


def test_confusion_shows_counts_of_few_labels_and_the_worst_pairs_of_many():
    few = confusion_table(Confusion("cloze", ("no", "<yes>"), ((7, 2), (1, 5))))
    assert re.findall(r'<td class="(\w+)"[^>]*>(\d+)', few) == [
        ("right", "7"),
        ("wrong", "2"),
        ("wrong", "1"),
        ("right", "5"),
    ]
    assert "&lt;yes&gt;" in few and "<yes>" not in few
    labels = tuple(f"l{n}" for n in range(20))
    counts = tuple(tuple(9 if (r, c) == (3, 5) else r == c for c in range(20)) for r in range(20))
    many = confusion_table(Confusion("cloze", labels, counts))
    assert re.findall(r"<td>(l\d+)</td><td>(l\d+)</td>", many) == [("l3", "l5")]


# --- items


def shown_in(html: str, group: str) -> list[str]:
    part = html.split(f"<summary>{group}</summary>")[1].split("</details>")[0]
    return re.findall(r"item (\d+)", part)


def test_the_most_confident_wrong_items_are_shown():
    task = choice_task("t", n=80, seed=5)
    html = samples_section(task)
    wrong = [
        (sure, one.id)
        for sure, one in zip(confidences(list(task.items)), task.items, strict=True)
        if one.chosen != one.gold
    ]
    assert len(wrong) > 2 * SHOWN
    surest = [number for _, number in sorted(wrong, reverse=True)[:SHOWN]]
    assert shown_in(html, "Wrong and most confident") == surest
    rights = {one.id for one in task.items if one.chosen == one.gold}
    assert set(shown_in(html, "Right")) <= rights
    others = set(shown_in(html, "Wrong"))
    assert len(others) == SHOWN and not others & (rights | {*surest})


def test_items_of_a_share_are_shown_from_both_ends():
    html = samples_section(written_task())
    assert shown_in(html, "Best") == ["8", "7", "6", "5"]
    assert shown_in(html, "Worst") == ["1", "2", "3", "4"]
    assert shown_in(samples_section(text_task()), "Items") == ["1", "2"]


def test_only_the_end_of_a_long_prompt_is_shown():
    item = Item("1", "", "x" * 5000 + "END", answers=("a",), written="b", values={"f1": 0.0})
    html = samples_section(dataclasses.replace(written_task(), items=(item,)))
    assert "END</pre>" in html and "x" * 1300 not in html and "characters before" in html


# --- read without seeing it


def test_the_page_can_be_read_without_seeing_it():
    """What axe asks of such a page: names of images, headers of tables, headings in order, one of
    each id, a language and a title."""
    assert READ.all("html")[0]["lang"] == "en" and READ.texts["title"][0]
    for svg in READ.all("svg"):
        assert svg["role"] == "img" and svg["aria-label"]
    assert all("scope" in header for header in READ.all("th"))
    ids = [attributes["id"] for _, attributes in READ.elements if "id" in attributes]
    assert len(ids) == len({*ids}) == 4
    targets = {attributes["href"][1:] for attributes in READ.all("a")}
    assert targets == {*ids}
    levels = [int(tag[1]) for tag, _ in READ.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert "summary" in READ.texts and all(READ.texts["summary"])


# --- the file


def test_a_page_is_written_at_once_and_an_unwritable_place_is_named(tmp_path: Path):
    write_page(Report("m", 1, ()), tmp_path / "new/eval.html")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["eval.html"]
    Read((tmp_path / "new/eval.html").read_text("utf-8"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"can't be written .*--out DIR"):
        write_page(made_report(), tmp_path / "file/eval.html")
