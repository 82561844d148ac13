"""Figures of evaluation: their values on cases made by hand and in other packages, and intervals
that cover at their rate."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gptjax.core.config import ConfigError
from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.figures import written
from gptjax.evaluate.figures.calibration import (
    brier_scores,
    calibrate,
    ece,
    fitted_temperature,
    option_probabilities,
    padded_scores,
    reliability_bins,
)
from gptjax.evaluate.figures.classes import confusion_of, macro_f1
from gptjax.evaluate.figures.text import contained, exact_match, normalised, token_f1
from gptjax.evaluate.figures.totals import (
    bootstrap_of,
    centred_mean,
    exp_of,
    jackknife_of,
    ratio_of,
)

# --- texts


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1", "inside"),
    [
        ("The Onion!", ["onion"], 1, 1, 1),
        ("It is an onion, I think", ["shallot", "onion"], 0, 2 / 6, 1),
        ("onions", ["onion"], 0, 0, 0),
        ("new york city", ["York"], 0, 0.5, 1),
        ("", ["onion"], 0, 0, 0),
        ("a the", ["an"], 1, 1, 0),
        ("我在北京", ["北京"], 0, 4 / 6, 1),
        ("cat cat", ["cat dog"], 0, 0.5, 0),
    ],
)
def test_answers_are_compared_as_squad_does(answer, right, exact, f1, inside):
    assert exact_match(answer, right) == exact
    assert token_f1(answer, right) == pytest.approx(f1)
    assert contained(answer, right) == inside


def test_a_normalised_text_is_normalised():
    for text in ("A cat, the Dog.", "an  apple-pie\n", "THEATRE a"):
        assert normalised(normalised(text)) == normalised(text)
    assert normalised("The theatre, an “Anthem”") == "theatre “anthem”"


WRITTEN = ["the cat sat on the mat", "there is a dog in the garden", "it rained", "yes"]
REFERENCES = [
    ["the cat sat on a mat", "a cat was on the mat"],
    ["a dog is in the garden"],
    ["it rained all day", "rain fell"],
    ["no"],
]


def test_bleu_and_chrf_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu", reason="BLEU needs sacrebleu")
    streams = [[one[0] for one in REFERENCES], [one[-1] for one in REFERENCES]]
    made = written.corpus_figures(WRITTEN, REFERENCES)
    assert made["bleu"].value == sacrebleu.corpus_bleu(WRITTEN, streams).score
    assert made["chrf"].value == sacrebleu.corpus_chrf(WRITTEN, streams).score
    for figure in made.values():
        assert figure.low < figure.value < figure.high and figure.stderr > 0
    single = written.corpus_figures(WRITTEN[:1], REFERENCES[:1])
    assert math.isnan(single["bleu"].stderr)


def test_rouge_is_that_of_rouge_score_over_the_best_reference():
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="ROUGE needs rouge-score")
    one = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for text, references in zip(WRITTEN, REFERENCES, strict=True):
        made = written.rouge_scores(text, references)
        scores = [one.score(reference, text) for reference in references]
        assert made == {name: max(s[name].fmeasure for s in scores) for name in made}


def test_a_figure_whose_package_is_missing_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    monkeypatch.setitem(__import__("sys").modules, "rouge_score", None)
    assert written.available() == ()
    for ask in (written.corpus_figures, written.rouge_scores):
        with pytest.raises(ConfigError, match=r"pip install 'gptjax\[eval\]'.*--metric f1"):
            ask(["a"], [["a"]])


# --- classes


def test_macro_f1_and_confusion_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="compared with scikit-learn")
    draw = np.random.default_rng(0)
    gold, chosen = draw.integers(0, 4, (2, 200)) % np.array([[3], [4]])
    made = macro_f1(gold, chosen, 5)
    assert made.value == pytest.approx(metrics.f1_score(gold, chosen, average="macro"))
    wanted = metrics.confusion_matrix(gold, chosen, labels=range(5))
    assert np.array_equal(confusion_of(gold, chosen, 5), wanted)


# --- calibration


def test_calibration_of_a_small_case_is_that_by_hand():
    sure = np.array([0.6, 0.9, 0.7, 0.8])
    hit = np.array([0.0, 1.0, 1.0, 0.0])
    # bins in the order of confidence: (0.6, 0.7), (0.8, 0.9)
    assert ece(sure, hit, bins=2).value == pytest.approx((abs(1.3 - 1) + abs(1.7 - 1)) / 4)
    assert ece(sure, hit, bins=1).value == pytest.approx(abs(0.75 - 0.5))
    assert reliability_bins(sure, hit, bins=2) == (
        (pytest.approx(0.65), 0.5, 2),
        (pytest.approx(0.85), 0.5, 2),
    )
    chances = np.array([[0.7, 0.3], [0.2, 0.8]])
    assert brier_scores(chances, np.array([0, 0])).tolist() == pytest.approx([0.18, 1.28])
    made = calibrate(np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]).tolist(), [0, 1, 1])
    assert made.selective_acc_10.value == 1.0  # the most confident one
    assert made.selective_area.value == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_brier_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="compared with scikit-learn")
    draw = np.random.default_rng(1)
    chances = option_probabilities(draw.normal(size=(50, 2)))
    gold = draw.integers(0, 2, 50)
    one_sided = metrics.brier_score_loss(gold, chances[:, 1])
    assert brier_scores(chances, gold).mean() == pytest.approx(2 * one_sided)


def drawn_choices(n: int, factor: float, seed: int = 0):
    """Log-probabilities that are `factor` times what right choices are drawn from."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(n, 4)) * 1.5
    chances = option_probabilities(scores)
    gold = [int(draw.choice(4, p=row)) for row in chances]
    return scores * factor, gold


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_a_temperature_undoes_what_makes_probabilities_too_sure(factor):
    scores, gold = drawn_choices(2000, factor)
    made = calibrate(scores.tolist(), gold)
    assert made.temperature == pytest.approx(factor, rel=0.15)
    assert made.ece_scaled.value < 0.05
    assert (made.ece.value > 0.1) == (factor != 1.0)
    assert fitted_temperature(scores / factor, np.array(gold)) == pytest.approx(1, rel=0.1)


def test_an_item_with_fewer_choices_has_the_probabilities_of_its_own():
    scores = padded_scores([[-1.0, -2.0], [-1.0, -1.0, -1.0]])
    chances = option_probabilities(scores)
    assert chances[0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.0])
    assert chances[1].tolist() == pytest.approx([1 / 3] * 3)
    shifted = option_probabilities(scores - 1000)
    np.testing.assert_allclose(shifted, chances, atol=1e-12)


# --- ratios, exponentials, averages


def test_ratios_and_averages_of_a_small_case_are_those_by_hand():
    assert ratio_of([2.0, 6.0], [1.0, 3.0]).value == 2.0
    assert ratio_of([2.0, 6.0], [1.0, 3.0]).stderr == pytest.approx(0.0, abs=1e-12)
    figure = exp_of(mean_of([1.0, 3.0]))
    assert figure.value == pytest.approx(math.exp(2))
    assert math.log(figure.low) == pytest.approx(mean_of([1.0, 3.0]).low)
    right = mean_of([1.0] * 5 + [0.0] * 5)
    made = centred_mean([right, right._replace(value=0.25)], [0.0, 0.25])
    assert made.value == pytest.approx((0.5 + 0.0) / 2)
    assert made.stderr == pytest.approx(right.stderr * math.hypot(1, 4 / 3) / 2)
    assert centred_mean([right._replace(value=1.0)] * 3, [0.5, 0.25, 0.0]).value == 1.0


def covered(rounds: int, truth: float, make) -> float:
    """How often an interval holds the truth."""
    figures = [make(np.random.default_rng(seed)) for seed in range(rounds)]
    return sum(figure.low <= truth <= figure.high for figure in figures) / rounds


def test_intervals_of_means_and_ratios_cover_at_their_rate():
    def share(draw):
        return mean_of((draw.random(60) < 0.1).astype(float))

    def real(draw):
        return mean_of(draw.normal(2.0, 3.0, 60))

    def bits(draw):
        size = draw.integers(50, 500, 80)
        return ratio_of(size * draw.normal(1.2, 0.3, 80), size)

    def centred(draw):
        parts = [mean_of((draw.random(100) < p).astype(float)) for p in (0.4, 0.6)]
        return centred_mean(parts, [0.25, 0.5])

    for truth, make in ((0.1, share), (2.0, real), (1.2, bits), (0.2, centred)):
        assert 0.925 <= covered(1000, truth, make) <= 0.975, make.__name__


def test_a_bootstrap_covers_at_its_rate_and_is_that_of_the_mean():
    def median(draw):
        values = draw.normal(1.0, 2.0, 101)
        return bootstrap_of(lambda items: float(np.median(values[items])), 101, rounds=200)

    assert 0.91 <= covered(300, 1.0, median) <= 0.985
    values = np.random.default_rng(0).normal(size=400)
    made = bootstrap_of(lambda items: float(values[items].mean()), 400)
    assert made.stderr == pytest.approx(mean_of(values).stderr, rel=0.08)
    assert made == bootstrap_of(lambda items: float(values[items].mean()), 400)
    cheap = jackknife_of(lambda items: float(values[items].mean()), 400)
    assert cheap.value == made.value
    assert cheap.stderr == pytest.approx(made.stderr, rel=0.3)
    each = jackknife_of(lambda items: float(values[items].mean()), 400, groups=400)
    assert each.stderr == pytest.approx(mean_of(values).stderr)
