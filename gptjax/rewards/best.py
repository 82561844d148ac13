"""Best of n: the answer that rewards like most, and what n answers are expected to be worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gptjax.core.arrays import Float, Numbers
from gptjax.core.config import require
from gptjax.rewards.reward import Answered, RewardConfig, judge


def best_of(rewards: Sequence[RewardConfig], answers: Sequence[Answered]) -> int:
    """Returns the place of the answer with the highest reward: the first of several, and the first
    of all where none can be judged.

    Raises:
      ConfigError: there is no reward, or one cannot be built or fails.
    """
    require(bool(rewards), "best of n needs a reward; name at least one, such as Exact().")
    total = judge([(reward, reward.build()) for reward in rewards], answers).total
    return int(np.argmax(np.nan_to_num(total, nan=-np.inf)))


def expected_best(rewards: Float[Numbers, "P G"], n: int) -> float:
    """Returns the expected highest reward of n answers to a prompt, without bias, of G answers to
    each prompt; with rewards of 0 and 1 that is pass@n.

    Args:
      n: at most G.

    Raises:
      ValueError: there are fewer than n answers to a prompt.

    Source: Chen et al. 2021, arXiv:2107.03374, section 2.1, for any rewards: the i-th smallest of G
    is the best in C(i-1, n-1) of C(G, n) choices.
    """
    ordered = np.sort(np.asarray(rewards, np.float64), axis=1)
    count = ordered.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} needs at least {n} answers to a prompt, not {count}.")
    chances = [math.comb(i, n - 1) / math.comb(count, n) for i in range(count)]
    return float((ordered @ np.asarray(chances)).mean())
