"""Best of n: answers chosen by rewards, and what n answers are expected to be worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.arrays import Float, Numbers
from gptjax.core.config import require
from gptjax.generate import Completion
from gptjax.rewards.reward import Answered, Judge, RewardConfig, judge


class RewardMerit(NamedTuple):
    """What rewards give the answers to a prompt: the `merit` of `generate.completions`. NaN where
    an answer cannot be judged."""

    rewards: tuple[tuple[RewardConfig, Judge], ...]
    record: Mapping[str, Any]
    """What else rewards read, such as the right `answer`."""

    def __call__(self, answers: Sequence[Completion]) -> list[float]:
        """Judges the answers to one prompt."""
        judged = [
            Answered(
                one.prompt,
                one.text,
                {"prompt": one.prompt, **self.record},
                one.end is not None,
                len(one.ids) + (one.end is not None),
            )
            for one in answers
        ]
        return judge(self.rewards, judged).total.tolist()


def merit_of(
    rewards: Sequence[RewardConfig], record: Mapping[str, Any] | None = None
) -> RewardMerit:
    """Builds rewards, to choose the best of several answers by.

    Raises:
      ConfigError: there is no reward, or one cannot be built.
    """
    require(bool(rewards), "best of n needs a reward; name at least one, such as Exact().")
    return RewardMerit(tuple((one, one.build()) for one in rewards), record or {})


def expected_best(
    rewards: Float[Numbers, "P G"], n: int, worth: Float[Numbers, "P G"] | None = None
) -> float:
    """Returns the expected highest reward of n answers to a prompt, without bias, of G answers to
    each prompt; with rewards of 0 and 1 that is pass@n.

    Args:
      n: at most G.
      worth: what each answer is truly worth. Given this, returns the expected worth of the answer
        with the highest reward, the first of equals.

    Raises:
      ValueError: there are fewer than n answers to a prompt.

    Source: Chen et al. 2021, arXiv:2107.03374, section 2.1, for any rewards: the i-th smallest of G
    is the best in C(i-1, n-1) of C(G, n) choices.
    """
    rewards = np.asarray(rewards, np.float64)
    worth = rewards if worth is None else np.asarray(worth, np.float64)
    rising = np.argsort(-rewards, axis=1, kind="stable")[:, ::-1]
    ordered = np.take_along_axis(worth, rising, axis=1)
    count = ordered.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} needs at least {n} answers to a prompt, not {count}.")
    chances = [math.comb(i, n - 1) / math.comb(count, n) for i in range(count)]
    return float((ordered @ np.asarray(chances)).mean())
