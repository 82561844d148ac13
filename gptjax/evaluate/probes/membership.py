"""Whether the model's probabilities tell training text from other text.

Three scores of a text, each higher for text that was seen: the mean log-probability of its tokens;
its log-probability divided by the bits to which zlib packs it; the mean of its least likely tokens.
Read `membership_requests`, then `membership_findings`.

The two texts must be alike: a held-out part of the same text, split at random. Where they differ in
kind or time, the area measures that (Duan et al. 2024, arXiv:2402.07841). Sources: Yeom et al.
2018, arXiv:1709.01604 (loss); Carlini et al. 2021, arXiv:2012.07805, section 5.2 (zlib); Shi et al.
2024, arXiv:2310.16789 (min-k %).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.evaluate.probes.finding import Finding, area_under_roc
from gptjax.evaluate.requests import Write
from gptjax.generate import Completion, GenerateConfig

LEAST_LIKELY = 0.2
"""Share of the tokens that min-k % looks at."""


def membership_requests(pieces: Sequence[Sequence[int]]) -> list[Write]:
    """Returns a request for the log-probability of each token of each piece but the first."""
    settings = GenerateConfig(new_tokens=1, temperature=0, prompt_logprobs=True)
    return [Write(list(piece), settings) for piece in pieces]


def membership_scores(
    pieces: Sequence[Sequence[int]], responses: Sequence[Completion], tokenizer: Tokenizer
) -> dict[str, list[float]]:
    """Returns each score's values, one a piece."""
    scores: dict[str, list[float]] = {"loss": [], "zlib ratio": [], "min-20 %": []}
    for piece, response in zip(pieces, responses, strict=True):
        logprobs = np.sort(np.asarray(response.prompt_logprobs, np.float64))
        packed = 8 * len(zlib.compress(tokenizer.token_bytes(piece[1:]), 9))
        least = max(1, round(LEAST_LIKELY * len(logprobs)))
        scores["loss"].append(float(logprobs.mean()))
        scores["zlib ratio"].append(float(logprobs.sum() / packed))
        scores["min-20 %"].append(float(logprobs[:least].mean()))
    return scores


def membership_findings(
    members: dict[str, list[float]], others: dict[str, list[float]]
) -> list[Finding]:
    """Returns for each score the area under its ROC curve."""
    return [
        Finding(f"membership AUROC, {name}", area_under_roc(values, others[name]), 0.5)
        for name, values in members.items()
    ]
