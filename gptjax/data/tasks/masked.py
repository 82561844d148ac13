"""Masked language modelling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.core.config import formerly, require
from gptjax.data.layouts import Batch
from gptjax.data.rows import Plan
from gptjax.data.tasks.task import Shape, Task


@formerly(added=("mask",))
@dataclass(frozen=True)
class MaskedLanguageModel(Task):
    """Some tokens are predicted from all others; of these, 80 % are masked, 10 % replaced by random
    tokens and 10 % left as they are.

    Source: Devlin et al. 2019, BERT, arXiv:1810.04805, section 3.1, with new masks in every epoch.
    """

    share: float = 0.15
    """Share of the tokens that are predicted."""
    mask: int | None = None
    """The id of a hidden token, if it is one of the tokenizer's, as BERT's; `None` adds an id."""

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder",)

    def __post_init__(self) -> None:
        require(
            self.mask is None or self.mask >= 0,
            f"data.task.mask is {self.mask}; it needs an id of the tokenizer, or null.",
        )
        require(0 < self.share < 1, f"data.task.share is {self.share}; it needs a share in (0, 1).")

    @property
    def extra_ids(self) -> int:
        """The mask, where the tokenizer has none."""
        return 1 if self.mask is None else 0

    def rows(
        self, rows: Batch, *, draws: Iterator[np.random.Generator], vocab_size: int, plan: Plan
    ) -> Batch:
        """Masks tokens of each row; their targets are what they were."""
        tokens, real = np.asarray(rows.tokens), np.asarray(rows.weights) > 0
        masked = [
            self.masked(ids, where, vocab_size, draw)
            for ids, where, draw in zip(tokens, real, draws, strict=True)
        ]
        shown, chosen = (np.stack(part) for part in zip(*masked, strict=True))
        weights = chosen.astype(np.float32)
        return rows._replace(tokens=shown, targets=rows.tokens, weights=weights)

    def masked(
        self, ids: np.ndarray, real: np.ndarray, vocab_size: int, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns what is shown of a row [T], and the places that are predicted.

        Args:
          real: places that are not padding.
          vocab_size: of the tokenizer; without a mask of its own, this id is the mask.
        """
        chosen = real & (draw.random(len(ids)) < self.share)
        how = draw.random(len(ids))
        others = draw.integers(0, vocab_size, len(ids), dtype=np.int32)
        shown = np.where(chosen & (how >= 0.9), others, ids)
        mask = np.int32(vocab_size if self.mask is None else self.mask)
        return np.where(chosen & (how < 0.8), mask, shown), chosen
