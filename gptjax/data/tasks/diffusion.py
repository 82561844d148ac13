"""Masked diffusion: a share of the tokens is hidden, any share, and predicted from all others.

Read `Noise`, which hides tokens, then `MaskedDiffusion` (text) and `DiffusionChat` (answers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from gptjax.core.config import require
from gptjax.data.layouts import Batch, Piece
from gptjax.data.rows import Plan, RowNumbers, cut
from gptjax.data.store import Store
from gptjax.data.tasks.chat import Chat
from gptjax.data.tasks.task import Shape, Task, bounded
from gptjax.data.tokenizers.tokenizer import Tokenizer

NOISED = "noised"
"""What batches hold whose predictions are weighted by how much of their sequence is hidden."""


@dataclass(frozen=True)
class Noise:
    """How much of each sequence is hidden, and where.

    Of a sequence of L tokens each is masked with probability t, t ~ U(0, 1], and a masked one has
    the weight 1/t: the mean over t of what is then predicted is an upper bound of −ln p of the
    sequence. Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, equation 3; Sahoo et al. 2024, MDLM,
    arXiv:2406.07524, equation 11.
    """

    stratified: bool = True
    """The t of a batch of B rows lie in B equal parts of (0, 1], one in each, so that batches
    differ less. Source: MDLM, section 5.1; Kingma et al. 2021, arXiv:2107.00630, appendix I.1."""
    fixed_number: bool = False
    """Mask l tokens, l ~ U{1 … L}, each of weight L/l, which has the same mean and varies less.
    Held-out text is always measured so. Source: LLaDA, equation 6; Ou et al. 2024,
    arXiv:2406.03736."""
    least: float = 1e-3
    """The smallest t in training, since 1/t has no bound; LLaDA's."""
    held_out: int = 4
    """Number of times that held-out text is measured, each with other masks, always the same
    ones."""

    def __post_init__(self) -> None:
        require(
            0 <= self.least < 1, f"data.task.noise.least is {self.least}; it needs a t in [0, 1)."
        )
        require(
            self.held_out >= 1,
            f"data.task.noise.held_out is {self.held_out}; it needs at least 1.",
        )

    def plan(self, plan: Plan) -> Plan:
        """Returns the plan, in which rows of held-out text are read `held_out` times."""
        return plan if plan.seed is not None else plan._replace(draws=self.held_out)

    def hidden(self, rows: Batch, mask: int, plan: Plan, at: RowNumbers) -> Batch:
        """Masks tokens of each row among those that count; their targets are what they were.

        The column `tokens` [B] has the number of those that count: the normaliser of the loss.

        Args:
          rows: `targets` are the tokens, and `weights` above 0 say which of them count.
        """
        ids, counts = np.asarray(rows.targets), np.asarray(rows.weights) > 0
        segments = np.ones_like(ids) if rows.segments is None else np.asarray(rows.segments)
        weights = np.zeros(ids.shape, np.float32)
        parts = at.number % plan.rows
        for row, (part, draw) in enumerate(zip(parts, at.draws(plan.seed), strict=True)):
            first = (part + draw.random()) / plan.rows if self.stratified else draw.random()
            present = np.unique(segments[row][counts[row]])
            for number, segment in enumerate(present):
                where = np.flatnonzero(counts[row] & (segments[row] == segment))
                t = 1 - (first + number / len(present)) % 1
                weights[row, where] = self.weights(len(where), t, draw, plan.seed is None)
        return rows._replace(
            tokens=np.where(weights > 0, np.int32(mask), ids),
            weights=weights,
            columns={"tokens": counts.sum(axis=1).astype(np.float32)},
        )

    def weights(
        self, length: int, t: float, draw: np.random.Generator, held_out: bool = False
    ) -> np.ndarray:
        """Returns the weight of each token of a sequence [L], 0 where it is not masked.

        Args:
          t: in (0, 1].
          held_out: with a fixed number, whatever the settings say.
        """
        if self.fixed_number or held_out:
            count = min(length, int(np.ceil(t * length)))
            masked = draw.permutation(length) < count
            return np.where(masked, length / count, 0.0)
        t = self.least + (1 - self.least) * t
        return np.where(draw.random(length) < t, 1 / t, 0.0)


def _mask_of(mask: int | None, size: int) -> int:
    """The id of a mask: that of the tokenizer, or the one after its `size` tokens."""
    return size if mask is None else mask


def _require_mask(mask: int | None) -> None:
    require(
        mask is None or mask >= 0,
        f"data.task.mask is {mask}; it needs an id of the tokenizer, or null.",
    )


@dataclass(frozen=True)
class MaskedDiffusion(Task):
    """All tokens of a text are predicted, those that `noise` masks from those that it leaves. The
    model sees all of them (`model.causal` False) and writes by filling in masks.

    A row is a stretch of text without what comes before it; every token of a document is predicted
    once an epoch, and so is its end. The loss is `Diffusion`.
    """

    noise: Noise = field(default_factory=Noise)
    """How much is masked, and where."""
    mask: int | None = None
    """The id of the mask, if it is one of the tokenizer's, as LLaDA's 126336; `None` adds an id."""

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder",)
    writes: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("bits_per_byte",)
    batches: ClassVar[str] = NOISED

    def __post_init__(self) -> None:
        _require_mask(self.mask)

    @property
    def extra_ids(self) -> int:
        """The mask, where the tokenizer has none."""
        return 1 if self.mask is None else 0

    def example(self, ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        """Returns one text as an example. The first id is never read or predicted: it stands where
        other tasks have what the first token is predicted from."""
        if tokenizer.begin_of_document is not None:
            return bounded(ids, tokenizer)
        return np.concatenate([[0], bounded(ids, tokenizer)]).astype(np.int32)

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Completes the plan of a store."""
        return self.noise.plan(super().plan(store, plan))

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, with their masks. It depends on nothing else."""
        rows = cut(store, plan, at.read_once(plan))
        real = rows.weights > 0
        if rows.positions is None:  # what comes after the end of the text is not seen
            places = np.where(real, np.cumsum(real, axis=1) - 1, -1).astype(np.int32)
            rows = rows._replace(positions=places)
        mask = _mask_of(self.mask, store.header.vocab_size - self.extra_ids)
        return self.noise.hidden(rows, mask, plan, at)

    def mask_id(self, tokenizer: Tokenizer) -> int:
        """Returns the id of a token that is not written yet."""
        return _mask_of(self.mask, tokenizer.vocab_size)

    def prompt(
        self, ids: Sequence[int], tokenizer: Tokenizer, with_encoder: bool
    ) -> tuple[list[int], list[int]]:
        """Returns the prompt as it is: no text begins with a mark."""
        return [], [*ids]


@dataclass(frozen=True)
class DiffusionChat(Chat):
    """Supervised fine-tuning of a masked diffusion model: `Chat` whose answers are masked and
    predicted, given the rest of the conversation, which is never masked.

    Behind the last answer its end is repeated, and counts, so that an answer with more room than it
    needs ends. Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, section 2.3 and appendix B.1,
    where answers are filled up to the longest of a batch instead.
    """

    noise: Noise = field(default_factory=Noise)
    """How much of the answers is masked."""
    mask: int | None = None
    """The id of the mask, if it is one of the tokenizer's, as LLaDA's 126336; `None` adds an id."""
    ends: int = 16
    """Number of further ends behind the last answer. A model that writes with more room than its
    answers and ends had together has not learned to leave it empty."""

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder",)
    figures: ClassVar[tuple[str, ...]] = ()
    batches: ClassVar[str] = NOISED

    def __post_init__(self) -> None:
        _require_mask(self.mask)
        require(self.ends >= 0, f"data.task.ends is {self.ends}; it needs 0 or more.")

    def vocabulary(self, tokenizer: Tokenizer) -> int:
        """Returns the number of ids that the model has to know."""
        return tokenizer.vocab_size + (1 if self.mask is None else 0)

    def sizes(self, store: Store, with_encoder: bool) -> np.ndarray:
        """Returns the positions that each example takes of a row [n 1]."""
        return super().sizes(store, with_encoder) + 1 + self.ends

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Packs the conversations that fit into rows, in an order of the seed."""
        return self.noise.plan(super().plan(store, plan))

    def piece(self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool) -> Piece:
        """Returns one example as a piece of a row up to its last end, in which what counts has the
        weight 1."""
        marks = ids == vocab_size
        counts = (np.cumsum(marks) % 2)[~marks]
        last = int(np.flatnonzero(counts)[-1])
        read = ids[~marks][: last + 1]
        tokens = np.concatenate([read, np.repeat(read[-1:], self.ends)])
        weights = np.concatenate([counts[: last + 1], np.ones(self.ends)]).astype(np.float32)
        return Piece(tokens, tokens, weights)

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, with their masks. It depends on nothing else."""
        rows = super().batch(store, plan, at.read_once(plan))._replace(prefix=None)
        mask = _mask_of(self.mask, store.header.vocab_size - self.extra_ids)
        return self.noise.hidden(rows, mask, plan, at)

    def mask_id(self, tokenizer: Tokenizer) -> int:
        """Returns the id of a token that is not written yet."""
        return _mask_of(self.mask, tokenizer.vocab_size)
