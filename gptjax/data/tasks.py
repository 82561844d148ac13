"""What is predicted from what. A task says how a document is stored, and how rows of a store become a batch.

Read the kinds of `Task` first; then `example` (a document on its way into a store), and `masked` and `corrupted` (a row on its
way into a batch). Some tasks have tokens of their own, which stand behind the tokenizer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from gptjax.config import require
from gptjax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class LanguageModel:
    """Each token is predicted from those before it."""

    backward: bool = False
    """Documents are read from their end to their beginning."""
    middle: float = 0.0
    """Share of documents whose middle stands at their end, behind what follows it. Source: Bavarian et al. 2022, arXiv:2207.14255, section 3."""

    reads: ClassVar[Literal["past", "all", "side"]] = "past"
    """What a prediction is made from: earlier tokens, all others, or a side text too; that is the shape of model that it needs."""

    def __post_init__(self) -> None:
        require(0 <= self.middle <= 1, f"data.task.middle is {self.middle}; it needs a share in [0, 1].")

    @property
    def extra_ids(self) -> int:
        """Tokens of the task's own."""
        return 3 if self.middle else 0


@dataclass(frozen=True)
class MaskedLanguageModel:
    """Some tokens are predicted from all others; of these, 80 % are hidden, 10 % replaced and 10 % shown.

    Source: Devlin et al. 2019, BERT, arXiv:1810.04805, section 3.1, with new places in every epoch.
    """

    share: float = 0.15
    """Share of the tokens that are predicted."""

    reads: ClassVar[Literal["past", "all", "side"]] = "all"
    """What a prediction is made from: earlier tokens, all others, or a side text too; that is the shape of model that it needs."""
    extra_ids: ClassVar[int] = 1
    """Tokens of the task\'s own."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"data.task.share is {self.share}; it needs a share in (0, 1).")


@dataclass(frozen=True)
class SpanCorruption:
    """Spans of a row are predicted from the rest of it: an encoder reads the row with a mark for each span, a decoder writes marks and spans.

    Source: Raffel et al. 2020, T5, arXiv:1910.10683, section 3.1.4, with new places in every epoch.
    """

    share: float = 0.15
    """Share of the tokens that are predicted."""
    span: float = 3.0
    """Mean length of a span, in tokens."""

    reads: ClassVar[Literal["past", "all", "side"]] = "side"
    """What a prediction is made from: earlier tokens, all others, or a side text too; that is the shape of model that it needs."""
    extra_ids: ClassVar[int] = 100
    """Tokens of the task\'s own."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"data.task.share is {self.share}; it needs a share in (0, 1).")
        require(self.span >= 1, f"data.task.span is {self.span}; it needs at least 1 token.")

    def counts(self, length: int) -> tuple[int, int]:
        """Tokens that are predicted, and their spans, of a row of so many."""
        hidden = min(max(1, round(length * self.share)), length - 1)
        return hidden, max(1, min(round(hidden / self.span), hidden, length - hidden, self.extra_ids - 2))

    def written(self, length: int) -> int:
        """The most tokens that the decoder writes for a row of so many."""
        hidden, spans = self.counts(length)
        return hidden + spans + 1


Task = LanguageModel | MaskedLanguageModel | SpanCorruption


class Example(NamedTuple):
    """One document as ids [n]: every id but the first is predicted from those before it."""

    ids: np.ndarray


def example(task: Task, ids: np.ndarray, tokenizer: Tokenizer) -> Example:
    """The whole text between the id that begins a document and the one that ends it, which is learned as its end; mostly they are the same.

    A tokenizer without such ids leaves the text bare.
    """
    if isinstance(task, LanguageModel):
        ids = ids[::-1] if task.backward else ids
        ids = _middle_last(ids, tokenizer.vocab_size) if task.middle and _draw(ids).random() < task.middle else ids
    begin, end = (np.asarray([] if i is None else [i], np.int32) for i in (tokenizer.begin_of_document, tokenizer.end_of_document))
    return Example(np.concatenate([begin, ids, end]))


def _middle_last(ids: np.ndarray, first_extra: int) -> np.ndarray:
    """Mark, prefix, mark, suffix, mark, middle; cut at two random places."""
    begin, end = np.sort(_draw(ids, 1).integers(0, len(ids) + 1, 2))
    parts = (ids[:begin], ids[end:], ids[begin:end])
    return np.concatenate([part for mark, rest in enumerate(parts) for part in ([first_extra + mark], rest)]).astype(np.int32)


def _draw(ids: np.ndarray, salt: int = 0) -> np.random.Generator:
    """Randomness that is a document's own."""
    return np.random.default_rng([salt, *np.frombuffer(np.ascontiguousarray(ids, np.int32).tobytes()[:4096].ljust(4, b"\0"), np.uint32)])


# --- rows on their way into a batch ------------------------------------------------------------------------------


def masked(task: MaskedLanguageModel, ids: np.ndarray, real: np.ndarray, vocab_size: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What is shown of a row [T], and where it is predicted.

    Args:
      vocab_size: of the tokenizer; this id hides a token.
    """
    chosen, how = real & (draw.random(len(ids)) < task.share), draw.random(len(ids))
    others = draw.integers(0, vocab_size, len(ids), dtype=np.int32)
    shown = np.where(chosen & (how < 0.8), np.int32(vocab_size), np.where(chosen & (how >= 0.9), others, ids))
    return shown, chosen


def corrupted(task: SpanCorruption, ids: np.ndarray, vocab_size: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder reads of a row, and what the decoder writes.

    Args:
      vocab_size: of the tokenizer; ids from here on mark spans.
    """
    if len(ids) < 2:
        return ids, ids[:0]
    hidden, spans = task.counts(len(ids))
    borders = np.cumsum(np.stack([_parts(len(ids) - hidden, spans, draw), _parts(hidden, spans, draw)], axis=1).reshape(-1))
    pieces, marks = np.split(ids, borders[:-1]), vocab_size + np.arange(spans + 1, dtype=np.int32)
    read = [part for mark, kept in zip(marks, pieces[::2], strict=False) for part in (kept, [mark])]
    write = [part for mark, span in zip(marks, pieces[1::2], strict=False) for part in ([mark], span)]
    return np.concatenate(read).astype(np.int32), np.concatenate([*write, marks[-1:]]).astype(np.int32)


def _parts(total: int, count: int, draw: np.random.Generator) -> np.ndarray:
    """`total` in `count` parts of at least one, all divisions equally likely."""
    cuts = np.sort(draw.choice(total - 1, count - 1, replace=False)) + 1 if count > 1 else np.zeros(0, int)
    return np.diff(np.concatenate([[0], cuts, [total]]))
