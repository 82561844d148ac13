"""A text of any length as windows in which each of its tokens is predicted exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptjax.api import Model
from gptjax.core.config import require
from gptjax.evaluate.encoding import Encoded, Passage, start_of_text
from gptjax.evaluate.requests import Roll


def encode_rolls(model: Model, requests: Sequence[Roll]) -> list[Encoded]:
    """Returns the windows of each text; an empty one has none.

    The token that begins texts stands before the first token and is not predicted.

    Raises:
      ConfigError: the model answers texts, or the tokenizer has no token to stand before a text.
    """
    require(
        not model.task.answers,
        "this model answers texts, so it gives no probability to a text by itself; score answers"
        " after their questions.",
    )
    start, most = start_of_text(model.tokenizer), model.config.context
    texts = list(dict.fromkeys(one.text for one in requests if isinstance(one.text, str)))
    spelled = dict(zip(texts, model.tokenizer.encode_all(texts), strict=True))
    every = [
        spelled[one.text].tolist() if isinstance(one.text, str) else list(one.text)
        for one in requests
    ]
    return [Encoded(list(windows(ids, start, most))) for ids in every]


def windows(ids: Sequence[int], start: int, most: int) -> Iterator[Passage]:
    """Yields passages of at most `most` tokens read, in which each id is scored once.

    The first reads `start` and predicts as many ids as fit; each further one predicts the next
    `most`, of which the first after one token of context. The last, which has fewer left, reads as
    many tokens before them as fit. Source: lm-evaluation-harness, `loglikelihood_rolling`.
    """
    line = (start, *ids)
    for first in range(1, len(line), most):
        end = min(first + most, len(line))
        begin = max(0, end - most - 1)
        yield Passage(line[begin:end], first - begin)
