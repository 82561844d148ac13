"""Warns where figures of rollouts say that nothing is being learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gptjax.observe.log import Log

PATIENCE = 10
"""Steps in a row that a sign has to last, where one step may be chance."""
LEAST_ENTROPY = 0.01
"""Nats a token below which answers to a prompt are alike."""


class Sign(NamedTuple):
    """Something that keeps a run from learning."""

    holds: Callable[[Mapping[str, float]], bool]
    """Whether the metrics of a step show it."""
    patience: int
    """Steps in a row after which it is said."""
    says: Callable[[Mapping[str, float]], str]
    """The warning, with the flag that mends it."""


class Learning:
    """Prints a warning once for each of the `signs` that nothing is learned."""

    def __init__(self, log: Log, signs: Mapping[str, Sign]):
        self._log, self._signs = log, dict(signs)
        self._seen = dict.fromkeys(signs, 0)

    def show(self, done: int, values: Mapping[str, float]) -> None:
        """Checks the metrics of a finished step; those of a run without rollouts show nothing."""
        for name, sign in list(self._signs.items()):
            self._seen[name] = self._seen[name] + 1 if sign.holds(values) else 0
            if self._seen[name] >= sign.patience:
                self._log.say(f"warning: step {done}: {sign.says(values)}")
                del self._signs[name]


def signs(
    *, answers: int, new_tokens: int, peak: float, compared: bool, most_gap: float
) -> dict[str, Sign]:
    """Returns what keeps a run from learning, by name.

    Args:
      answers: to each prompt.
      new_tokens: the most that an answer can have.
      peak: learning rate.
      compared: an answer is learned from only if another one to its prompt is better or worse.
      most_gap: nats between ln p of the sampler and of the trainer that rounding explains.
    """
    return {
        "unjudged": Sign(
            _unjudged,
            1,
            lambda values: (
                "no answer has a reward (all are None), so nothing is learned; see rollout.rewards"
                " in the config file"
            ),
        ),
        "unfinished": Sign(
            lambda values: values.get("unfinished") == 1,
            3,
            lambda values: (
                f"all answers are cut at {new_tokens} tokens before they end; allow more"
                f" (--rollout.new-tokens {2 * new_tokens})"
            ),
        ),
        "gap": Sign(
            lambda values: values.get("sampler_gap", 0.0) > most_gap,
            1,
            lambda values: (
                f"ln p of the sampler and of the trainer differ by {values['sampler_gap']:.2g} a"
                f" token, more than {most_gap:g}: answers are learned as if others had been drawn;"
                " use --model.compute float32, or --loss.correction truncated"
            ),
        ),
        "entropy": Sign(
            lambda values: (
                values.get("entropy", math.inf) < LEAST_ENTROPY
                and values.get("pass_rate", 1.0) < 0.95
            ),
            PATIENCE,
            lambda values: (
                f"the entropy has fallen to {values['entropy']:.2g} nats a token with"
                f" {values['pass_rate']:.0%} right: all answers to a prompt are alike; begin again"
                f" with a lower rate (--optim.peak {peak / 3:.1g}), or --loss.entropy 0.01"
            ),
        ),
        **({"level": _level(answers)} if compared else {}),
    }


def _level(answers: int) -> Sign:
    """All groups have one reward each."""
    return Sign(
        lambda values: values.get("flat_groups") == 1 and not _unjudged(values),
        PATIENCE,
        lambda values: (
            f"for {PATIENCE} steps all answers to a prompt have had one reward"
            f" ({values['reward']:.3g} on average), so nothing is learned; draw more"
            f" (--rollout.answers {4 * answers}), or use other prompts or rewards"
        ),
    )


def _unjudged(values: Mapping[str, float]) -> bool:
    return "reward" in values and math.isnan(values["reward"])
