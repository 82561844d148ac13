"""The settings of rollouts: how a run writes and judges the answers that it learns from."""

from __future__ import annotations

from dataclasses import dataclass

from gptjax.core.config import require
from gptjax.rewards import RewardKind


@dataclass(frozen=True)
class Rollout:
    """Answers that the model writes to prompts of the data (task `Prompts`), and their rewards.

    Each step learns from `batch` answers: `batch / answers` prompts with `answers` of each. They
    are drawn from the model's own distribution (`loss.temperature` 1), with keys that are functions
    of the seed, the rollout, the prompt and the answer's number.
    """

    rewards: tuple[RewardKind, ...] = ()
    """What judges an answer; their weighted sum is its reward. The first decides what counts as
    right: an answer to which it gives 1 or more. None are needed where the loss is `GKD`."""
    answers: int = 8
    """Answers to each prompt."""
    new_tokens: int = 64
    """Maximum number of tokens of an answer."""
    updates: int = 1
    """Steps that learn from one rollout. Runs are saved and stopped where the next one begins."""
    top_k: int = 0
    """Number of most likely tokens to choose from; 0 is all. Truncation needs `loss.correction`."""
    top_p: float = 1.0
    """Choose from the most likely tokens up to this probability mass; 1 is all."""
    rows: int | None = None
    """Answers that are written at once; `None` means all of a batch. Another number changes
    rounding alone."""
    log_every: int = 1
    """Rollouts of which one is written to rollouts.jsonl; 0 writes none."""

    def __post_init__(self) -> None:
        for name, least in (("answers", 1), ("new_tokens", 1), ("updates", 1), ("log_every", 0)):
            value = getattr(self, name)
            require(
                value >= least,
                f"rollout.{name} is {value}; it needs at least {least}"
                f" (--rollout.{name.replace('_', '-')}).",
            )
        require(
            self.rows is None or self.rows >= 1,
            f"rollout.rows is {self.rows}; it needs at least 1, or None for all.",
        )
        require(self.top_k >= 0, f"rollout.top_k is {self.top_k}; it needs 0 (all) or more.")
        require(
            0 < self.top_p <= 1,
            f"rollout.top_p is {self.top_p}; it needs a probability in (0, 1].",
        )

    @property
    def truncates(self) -> bool:
        """Some tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1
