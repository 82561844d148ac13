"""Laws of the report: whatever a run holds, the page is whole, safe and says it."""

from __future__ import annotations

import html.parser
import io
import json
import math
import random
import re
import xml.etree.ElementTree as ET

import pytest

from gptjax.observe import charts, report
from gptjax.observe.log import Log
from gptjax.observe.page import MOST_SAMPLES

FACTS = {
    "name": "quick <start>",
    "config": {
        "model": {"width": 64, "pattern": [{"kind": "attention", "window": None}]},
        "optim": {"betas": [0.9, 0.95]},
    },
    "environment": {"versions": {"jax": "0.12"}, "devices": ["cpu:0"]},
    "parameters": 1_904_128,
    "tokens": 2_500_000,
    "seconds": {"total": 151.3, "training": 121.0, "compile": 14.2, "data": 0.0},
    "final": {"step": 50, "validation_loss": 1.66, "validation_bits_per_byte": 1.69},
    "baselines": {"gzip -9": 2.02, "xz -9": 1.73},
    "skipped_steps": 1,
    "next": ["python sample.py runs/x --prompt 'a' && echo"],
    "warnings": ["<b>one</b> step was skipped"],
}
EVIL = "</pre><script>alert('&')</script>\x00\x1b[31m \ud800 中文"


def make_run(run_dir, losses, samples=(), **more):
    lines = [
        {"step": i + 1, "tokens": 8 * i, "loss": loss, **{k: v[i] for k, v in more.items()}}
        for i, loss in enumerate(losses)
    ]
    lines += [{"step": step, "sample": {"prompt": "p", "text": text}} for step, text in samples]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_dir


def page_of(run_dir, facts) -> str:
    """The written page, once its form is proven: strict JSON beside it, every SVG well-formed,
    every tag closed."""
    page = report.write_run_report(run_dir, facts).read_text(encoding="utf-8")
    json.loads((run_dir / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        for element in ET.fromstring(drawing).iter():
            assert not any(
                "nan" in v or "inf" in v for k, v in element.attrib.items() if k != "aria-label"
            ), element.attrib
    closed = Closed()
    closed.feed(page)
    assert closed.open == []
    assert not re.search(r"<script|(src|href)=|url\(|@import", page)
    assert not list(run_dir.glob("*.partial"))
    return page


class Closed(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def path(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", svg)]


# --- the page ---


def test_the_page_says_what_is_known(tmp_path):
    bits = [None] * 49 + [1.69]
    page = page_of(
        make_run(
            tmp_path,
            [3 / i for i in range(1, 51)],
            validation_bits_per_byte=bits,
            learning_rate=[1e-3] * 50,
        ),
        FACTS,
    )
    said = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert (
        "Trained 1.9M parameters on 2.5M tokens in 2m 31s; held-out text costs 1.69 bits per byte"
        " (gzip 2.02, xz 1.73)." in said
    )
    for words in [
        "quick <start>",
        "<b>one</b> step",
        "gzip -9 2.02",
        "Learning rate",
        "model.pattern.0.kind",
        *FACTS["next"],
        "1,904,128",
    ]:
        assert words in said
    assert (
        said.count("compile") == 2
        and "data" not in said[said.index("Where the time") : said.index("What to type")]
    )


def test_missing_facts_are_simply_not_shown(tmp_path):
    make_run(tmp_path, [3.0, 2.0])
    whole = page_of(tmp_path, FACTS)
    for missing in FACTS:
        page = page_of(tmp_path, {k: v for k, v in FACTS.items() if k != missing})
        assert len(page) < len(whole) or missing == "name"
        assert ">None<" not in page and ">none<" not in page.replace("window</th><td>none<", "")


@pytest.mark.parametrize(
    "facts", [{}, FACTS, {k: type(v)() for k, v in FACTS.items()}], ids=["none", "all", "empty"]
)
@pytest.mark.parametrize(
    "losses", [[], [2.5], [None], [0.0, 0.0], [1e300, -1e300, 1.0], [5.0] * 30, [None] * 40]
)
def test_any_run_makes_a_page(tmp_path, losses, facts):
    page_of(make_run(tmp_path, losses, loss_again=losses), facts)


def test_a_run_that_wrote_nothing_makes_a_page(tmp_path):
    assert "Nothing was measured yet." in page_of(tmp_path, {})


def test_one_point_is_drawn_as_a_dot(tmp_path):
    assert re.search(
        r'<path class="main" d="M[\d.]+ [\d.]+h0"', page_of(make_run(tmp_path, [2.5]), {})
    )


def test_non_finite_facts_and_foreign_numbers_become_json(tmp_path):
    numpy = pytest.importorskip("numpy")
    facts = {
        "final": {"validation_loss": math.nan},
        "parameters": numpy.int64(1000),
        "config": {"path": tmp_path},
        "baselines": {"gzip": math.inf},
        "tokens": 1.0,
    }
    page_of(make_run(tmp_path, [1.0]), facts)
    found = json.loads((tmp_path / "report.json").read_text())
    assert (
        found["final"]["validation_loss"] is None
        and found["parameters"] == 1000
        and found["config"]["path"] == str(tmp_path)
    )


def test_samples_are_text_whatever_they_hold(tmp_path):
    with Log(tmp_path, resume_step=None, terminal=io.StringIO()) as log:
        log.sample(1, EVIL, EVIL)
        log.record(1, {"loss": 1.0, "</svg><script>": 2.0})
    page = page_of(
        tmp_path,
        {
            "name": EVIL,
            "warnings": [EVIL],
            "next": [EVIL],
            "config": {EVIL: EVIL},
            "baselines": {EVIL: 1.0},
            "final": {EVIL: 1.0},
        },
    )
    assert (
        "<mark>&lt;/pre&gt;&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;␀␛[31m \ufffd"
        " 中文</mark>" in page
    )


def test_only_the_last_step_of_samples_is_open_and_many_are_thinned(tmp_path):
    page = page_of(
        make_run(
            tmp_path, [1.0], [(step, f"text {step}") for step in range(1, 101) for _ in range(2)]
        ),
        {},
    )
    steps = [int(s) for s in re.findall(r"<summary>step (\d+)</summary>", page)]
    assert len(steps) == MOST_SAMPLES and steps[0] == 100 and steps[-1] == 1
    assert (
        page.count("<details open><summary>step 100</summary>") == page.count("<details open>") == 1
    )
    assert page.count("text 100<") == 2


def test_every_metric_that_varies_has_a_chart(tmp_path):
    page = page_of(make_run(tmp_path, [1.0] * 3, weight=[8, 8, 8], skipped=[0, 1, 0]), {})
    assert ">Skipped<" in page
    assert ">Weight<" not in page


# --- curves ---


def test_thinning_keeps_spikes_gaps_order_and_the_last_point():
    draw = random.Random(0)
    points = [(i, draw.random()) for i in range(100_000)]
    points[777], points[55_555], points[3] = (777, 9.0), (55_555, None), (3, -9.0)
    kept = report.thin(points)
    assert len(kept) <= report.MOST_POINTS
    assert {points[777], points[55_555], points[3], points[-1]} <= set(kept)
    assert kept == sorted(set(kept), key=lambda p: p[0]) and set(kept) <= set(points)
    assert report.thin(points[:1000]) == points[:1000]


def test_a_gap_breaks_the_line():
    svg = charts.chart(
        [charts.Curve("a", [(1, 1.0), (2, 2.0), (3, None), (4, 1.0), (5, 2.0)], "main")], title="a"
    )
    assert re.search(r' d="M[^ML]*L[^ML]*M[^ML]*L[^ML]*"', svg)


def test_a_spike_leaves_the_chart_without_flattening_the_rest():
    points = [(i, 1.0 + (i % 10) / 10) for i in range(1000)] + [(1000, 1e9)]
    svg = charts.chart([charts.Curve("a", points, "main")], title="a")
    heights = [y for _, y in path(svg)]
    assert min(heights) == heights[-1] >= 0 and max(heights) - sorted(heights)[1] > 50
    assert "up to 1G" in svg


def test_curves_stay_inside_their_drawing():
    draw = random.Random(1)
    for _ in range(200):
        scale, shift = (
            10 ** draw.uniform(-12, 12),
            draw.choice([0, 1, -1]) * 10 ** draw.uniform(-12, 12),
        )
        points = [
            (draw.randrange(1, 10**9), shift + scale * draw.gauss(0, 1))
            for _ in range(draw.randrange(1, 30))
        ]
        svg = charts.chart(
            [charts.Curve("a", sorted(points), "main")],
            title="a",
            levels={"level": shift} if draw.random() < 0.5 else None,
            zero=draw.random() < 0.5,
        )
        ET.fromstring(svg)
        assert all(0 <= x <= 860 and 0 <= y <= 320 for x, y in path(svg))


def test_ticks_are_few_round_distinct_and_inside():
    draw = random.Random(2)
    for _ in range(500):
        low = draw.choice([0, 1, -1]) * 10 ** draw.uniform(-6, 6)
        high = low + max(10 ** draw.uniform(-6, 6), abs(low) * 1e-3)
        ticks = charts.ticks(low, high, 5)
        assert 2 <= len(ticks) <= 8
        assert all(low - 1e-8 * (high - low) <= t <= high + 1e-8 * (high - low) for t in ticks)
        gap = ticks[1] - ticks[0]
        assert round(gap / 10 ** math.floor(math.log10(gap) + 1e-6), 3) in (1, 2, 2.5, 5)
        if low >= 0 and gap > high / 50:
            labels = [charts._tick(t, ticks) for t in ticks]
            assert len(set(labels)) == len(labels) and all(len(label) <= 7 for label in labels), (
                labels
            )


def test_the_page_of_a_long_run_stays_small(tmp_path):
    draw = random.Random(3)
    page = page_of(
        make_run(
            tmp_path,
            [draw.random() for _ in range(20_000)],
            gradient_norm=[draw.random() for _ in range(20_000)],
        ),
        FACTS,
    )
    assert len(page) < 200_000


def test_level_labels_never_lie_on_each_other():
    places = charts._apart([50.0, 49.0, 51.0, 200.0])
    assert all(abs(a - b) >= 12.9 for i, a in enumerate(places) for b in places[:i])
    assert charts._apart([10.0, 100.0]) == [10.0, 100.0]
