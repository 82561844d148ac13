"""What published steps let one expect of a step that nobody has run."""

import importlib.util
from pathlib import Path

import pytest

from gptjax import model
from gptjax.plan import published

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(
        "plan_published", ROOT / "benchmarks/plan_published.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_rates_are_those_of_the_fit_and_the_page_is_its_report(benchmark):
    found = benchmark.fitted(published.STEPS)
    for chip, share in published.RATES.products.items():
        assert share == pytest.approx(found.products[chip], abs=0.006), chip
    assert published.RATES.attention == pytest.approx(found.attention, abs=0.006)
    assert published.RATES.experts == pytest.approx(found.experts, abs=0.006)
    page = (ROOT / "docs/reports/plan.md").read_text(encoding="utf-8")
    assert benchmark.table(published.STEPS) in page


def test_steps_that_the_fit_has_not_seen_are_expected(benchmark):
    unseen = benchmark.held_out(published.STEPS)
    known = [abs(error) for error in unseen]
    assert sorted(known)[len(known) // 2] <= 0.12
    far = {
        step.name
        for step, error in zip(published.STEPS, known, strict=True)
        if error > 0.25 and step.chip not in ("h100", "h200")
    }
    assert far == {"gpt-oss-120b"}  # said on the page
    missed = [abs(benchmark.error_of(step, published.RATES)) for step in published.STEPS]
    assert sum(error <= published.MARGIN for error in missed) >= 0.9 * len(missed)


@pytest.mark.parametrize(
    "config",
    [
        model.gpt2(),
        model.mixtral(context=4096),
        model.deepseek("v3", context=4096),
        model.gemma("3-1b", context=2048),
    ],
    ids=["dense", "experts", "latent", "windows"],
)
def test_the_parts_of_a_token_are_the_whole(config):
    work = published.work_of(config)
    assert sum(work) == pytest.approx(model.flops_per_token(config, config.context))
    assert min(work) >= 0 and bool(work.experts) == bool(config.experts)


def test_longer_rows_cost_more_attention_and_nothing_else():
    short = published.work_of(model.llama("3.1-8b", context=8192))
    long = published.work_of(model.llama("3.1-8b", context=16_384))
    assert long.products == pytest.approx(short.products)
    assert long.attention == pytest.approx(2 * short.attention, rel=1e-3)


def test_nothing_is_expected_where_nothing_was_published():
    config = model.gpt2()
    assert published.expected(config, "b200", 1e5) is None
    assert published.expected(config, "cpu", 1e5) is None
    for other in (model.vaswani(), model.bert()):
        assert published.expected(other, "v5p", 1e5) is None
    known = published.expected(config, "v5p", 1e5)
    assert known["steps"] == sum(step.chip == "v5p" for step in published.STEPS)
    twice = published.expected(config, "v5p", 2e5)
    assert twice["seconds"] == pytest.approx(2 * known["seconds"])
