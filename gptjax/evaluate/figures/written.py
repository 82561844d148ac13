"""Figures that other packages compute: BLEU and chrF (sacrebleu), ROUGE (rouge-score)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from gptjax.core.config import ConfigError
from gptjax.evaluate.figure import Figure
from gptjax.evaluate.figures.totals import jackknife_of

CORPUS = ("bleu", "chrf")
ROUGE = ("rouge1", "rouge2", "rougeL")


def corpus_figures(
    written: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = "13a"
) -> dict[str, Figure]:
    """Returns BLEU and chrF of a corpus, in [0, 100].

    Args:
      references: of each text; where they are fewer than elsewhere, the first is repeated.
      tokenize: sacrebleu's splitting into words, for BLEU: `13a`, `zh`, `char`, ….

    Raises:
      ConfigError: sacrebleu is not installed.
    """
    metrics = _import_sacrebleu()
    most = max(map(len, references))
    streams = [[one[k] if k < len(one) else one[0] for one in references] for k in range(most)]
    made = {"bleu": metrics.BLEU(tokenize=tokenize), "chrf": metrics.CHRF()}
    return {name: _corpus(metric, list(written), streams) for name, metric in made.items()}


def rouge_scores(written: str, references: Sequence[str]) -> dict[str, float]:
    """Returns the F-measures of ROUGE-1, -2 and -L with stemming, in [0, 1]: of each the best
    over the references.

    Raises:
      ConfigError: rouge-score is not installed.
    """
    scores = _rouge_scorer().score_multi(list(references), written)
    return {name: score.fmeasure for name, score in scores.items()}


def available() -> tuple[str, ...]:
    """Returns the names of the figures whose packages are installed."""
    names: tuple[str, ...] = ()
    for load, more in ((_import_sacrebleu, CORPUS), (_rouge_scorer, ROUGE)):
        try:
            load()
        except ConfigError:
            continue
        names += more
    return names


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that are installed."""
    versions = {}
    for name in ("sacrebleu", "rouge-score"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _corpus(metric: Any, written: list[str], references: list[list[str]]) -> Figure:
    """A score of a corpus."""

    def score(items: np.ndarray) -> float:
        streams = [[one[item] for item in items] for one in references]
        return metric.corpus_score([written[item] for item in items], streams).score

    return jackknife_of(score, len(written))


def _import_sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise ConfigError(
            "BLEU and chrF need sacrebleu; run `pip install 'gptjax[eval]'`, or choose another"
            " metric (--metric f1)."
        ) from None
    return metrics


def _rouge_scorer() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError:
        raise ConfigError(
            "ROUGE needs rouge-score; run `pip install 'gptjax[eval]'`, or choose another metric"
            " (--metric f1)."
        ) from None
    return rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)
