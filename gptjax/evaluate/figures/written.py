"""Figures that other packages compute: BLEU and chrF (sacrebleu), ROUGE (rouge-score)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from gptjax.core.config import ConfigError
from gptjax.evaluate.figure import NORMAL, Figure
from gptjax.evaluate.figures.totals import ROUNDS

CORPUS = ("bleu", "chrf")
ROUGE = ("rouge1", "rouge2", "rougeL")


def corpus_figures(
    written: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = "13a"
) -> dict[str, Figure]:
    """Returns BLEU and chrF of a corpus, in [0, 100], with sacrebleu's bootstrap.

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


def _corpus(metric: Any, written: list[str], streams: list[list[str]]) -> Figure:
    """A score of a corpus with its interval, which sacrebleu gives in its text alone."""
    rounds = ROUNDS if len(written) > 1 else 1
    score = metric.corpus_score(written, streams, n_bootstrap=rounds)
    signature = metric.get_signature().format(short=False)
    told = json.loads(score.format(width=6, signature=signature, is_json=True))
    half = float(told["confidence_var"]) if "confidence_var" in told else math.nan
    return Figure(score.score, len(written), half / NORMAL, score.score - half, score.score + half)


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
