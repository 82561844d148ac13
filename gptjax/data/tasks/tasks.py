"""What is predicted from what. A task says how a document is stored, and how rows of a store become
a batch.

Read the kinds of `Task` first; then `example` (a document on its way into a store); then `masked`
and `halves` (a row on its way into a batch); last `asked` (a prompt on its way to an answer). Some
tasks have tokens of their own, which stand behind the tokenizer's; where a text is answered by
another, the last of them, `begin`, stands before the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.data.tokenizers.tokenizer import Tokenizer

Shape = Literal["past", "all", "side"]
"""What a prediction is made from: earlier tokens, all others, or a side text too; that is the shape
of model that it needs."""


@dataclass(frozen=True)
class LanguageModel:
    """Each token is predicted from those before it."""

    backward: bool = False
    """Documents are read from their end to their beginning."""
    middle: float = 0.0
    """Share of documents whose middle stands at their end, behind what follows it. Source: Bavarian
    et al. 2022, arXiv:2207.14255, section 3."""

    reads: ClassVar[tuple[Shape, ...]] = ("past",)
    """Shapes of model that it is for."""

    def __post_init__(self) -> None:
        require(
            0 <= self.middle <= 1, f"data.task.middle is {self.middle}; it needs a share in [0, 1]."
        )

    @property
    def extra_ids(self) -> int:
        """Tokens of the task's own."""
        return 3 if self.middle else 0


@dataclass(frozen=True)
class MaskedLanguageModel:
    """Some tokens are predicted from all others; of these, 80 % are hidden, 10 % replaced and 10 %
    shown.

    Source: Devlin et al. 2019, BERT, arXiv:1810.04805, section 3.1, with new places in every epoch.
    """

    share: float = 0.15
    """Share of the tokens that are predicted."""

    reads: ClassVar[tuple[Shape, ...]] = ("all",)
    """Shapes of model that it is for."""
    extra_ids: ClassVar[int] = 1
    """Tokens of the task's own."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"data.task.share is {self.share}; it needs a share in (0, 1).")


@dataclass(frozen=True)
class SpanCorruption:
    """Spans of a row are predicted from the rest of it: the row with a mark for each span is read,
    marks and spans are written.

    Source: Raffel et al. 2020, T5, arXiv:1910.10683, section 3.1.4, with new places in every epoch.
    """

    share: float = 0.15
    """Share of the tokens that are predicted."""
    span: float = 3.0
    """Mean length of a span, in tokens."""

    reads: ClassVar[tuple[Shape, ...]] = ("side", "past")
    """Shapes of model that it is for."""
    extra_ids: ClassVar[int] = 100
    """Tokens of the task's own."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"data.task.share is {self.share}; it needs a share in (0, 1).")
        require(self.span >= 1, f"data.task.span is {self.span}; it needs at least 1 token.")

    def counts(self, length: int) -> tuple[int, int]:
        """Tokens that are predicted, and their spans, of a row of so many."""
        hidden = min(max(1, round(length * self.share)), length - 1)
        return hidden, max(
            1, min(round(hidden / self.span), hidden, length - hidden, self.extra_ids - 2)
        )

    def sizes(self, length: int) -> tuple[int, int, int]:
        """The most tokens that are read, that are written, and that are one of both, for a row of
        so many."""
        hidden, spans = self.counts(length)
        return length - hidden + spans, hidden + spans + 1, length + 2 * spans + 1


@dataclass(frozen=True)
class PrefixLanguageModel:
    """The end of a row is predicted from its beginning, which may see itself both ways; the border
    is elsewhere in every epoch.

    Source: Raffel et al. 2020, T5, arXiv:1910.10683, sections 3.2.1 and 3.2.2.
    """

    share: float = 0.5
    """Share of the tokens that are predicted, on average; a row's is as far above or below as it
    can be on both sides."""

    reads: ClassVar[tuple[Shape, ...]] = ("past", "side")
    """Shapes of model that it is for."""
    extra_ids: ClassVar[int] = 1
    """Tokens of the task's own."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"data.task.share is {self.share}; it needs a share in (0, 1).")

    def bounds(self, length: int) -> tuple[int, int]:
        """The fewest and the most tokens that are predicted of a row of so many."""
        mean = self.share * length
        least = max(1, round(2 * mean - length))
        return least, max(least, min(length - 1, round(2 * mean) - 1))

    def sizes(self, length: int) -> tuple[int, int, int]:
        """The most tokens that are read, that are written, and that are one of both, for a row of
        so many."""
        least, most = self.bounds(length)
        return length - least, most, length


@dataclass(frozen=True)
class Denoisers:
    """Each row is a case of one of several tasks, after a token that says of which mode: R, spans
    that are short and few; S, a prefix; X, spans that are long (12 tokens and more) or many (30 %
    and more).

    Source: Tay et al. 2022, UL2, arXiv:2205.05131, section 3.1 and table 1, whose seven denoisers
    are the default.
    """

    parts: tuple[SpanCorruption | PrefixLanguageModel, ...] = (
        *(SpanCorruption(0.15, 3.0), SpanCorruption(0.15, 8.0), PrefixLanguageModel(0.25)),
        *(
            SpanCorruption(0.5, 3.0),
            SpanCorruption(0.5, 8.0),
            SpanCorruption(0.15, 64.0),
            SpanCorruption(0.5, 64.0),
        ),
    )
    """What is mixed."""
    weights: tuple[float, ...] = ()
    """How often each is drawn, up to a common factor; none draws all equally often."""

    reads: ClassVar[tuple[Shape, ...]] = ("side", "past")
    """Shapes of model that it is for."""
    extra_ids: ClassVar[int] = SpanCorruption.extra_ids + 3
    """Tokens of the task's own: marks of spans, then R, S and X, then `begin`."""

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "data.task.parts is empty; it needs at least one denoiser.")
        fits = not self.weights or (
            len(self.weights) == len(self.parts) and all(w > 0 for w in self.weights)
        )
        require(
            fits,
            f"data.task.weights is {self.weights} for {len(self.parts)} parts; it needs a number"
            " above 0 for each, or none at all.",
        )

    def mode(self, part: SpanCorruption | PrefixLanguageModel) -> int:
        """0 for R, 1 for S, 2 for X."""
        return (
            1
            if isinstance(part, PrefixLanguageModel)
            else 2
            if part.span >= 12 or part.share >= 0.3
            else 0
        )

    def sizes(self, length: int) -> tuple[int, int, int]:
        """The most tokens that are read, that are written, and that are one of both, for a row of
        so many."""
        read, written, both = map(
            max, zip(*(part.sizes(length) for part in self.parts), strict=True)
        )
        return 1 + read, written, 1 + both


@dataclass(frozen=True)
class SequenceToSequence:
    """A text is predicted from another: translation, summaries, or a label as text. It needs
    records of two texts (`Records`).

    An encoder reads the other text; a decoder alone has it before its own, which only is predicted.

    Source: Sutskever et al. 2014, arXiv:1409.3215; labels as text: Raffel et al. 2020, T5,
    arXiv:1910.10683, section 2.4.
    """

    reads: ClassVar[tuple[Shape, ...]] = ("side", "past")
    """Shapes of model that it is for."""
    extra_ids: ClassVar[int] = 1
    """Tokens of the task's own."""
    begin: int | None = None
    """The id before an answer, if it is one of the tokenizer's, as T5's padding; none is a token of
    the task's own, behind them."""
    closed: bool = False
    """The text that is answered ends with the id that ends documents, as T5's do."""

    def __post_init__(self) -> None:
        require(
            self.begin is None or self.begin >= 0,
            f"data.task.begin is {self.begin}; it needs an id of the tokenizer, or none.",
        )


@dataclass(frozen=True)
class Classification:
    """The label of a text is one of several, told from a pooled hidden state. It needs records of
    two texts (`Records`), of which the label is the answer."""

    labels: tuple[str, ...] = ()
    """What it can be; none is every label of the data, sorted."""

    reads: ClassVar[tuple[Shape, ...]] = ("past", "all")
    """Shapes of model that it is for."""

    def __post_init__(self) -> None:
        require(
            len(set(self.labels)) == len(self.labels),
            "data.task.labels has a label twice; name each once.",
        )

    @property
    def extra_ids(self) -> int:
        """Ids of the labels in a store; the model reads none of them."""
        return len(self.labels)


Task = (
    LanguageModel
    | MaskedLanguageModel
    | SpanCorruption
    | PrefixLanguageModel
    | Denoisers
    | SequenceToSequence
    | Classification
)
Halved = SpanCorruption | PrefixLanguageModel | Denoisers
"""Tasks that make of a row a text that is read and one that is written."""


def answers(task: Task) -> bool:
    """A text is answered by another, so that a decoder alone reads both in one row, with `begin`
    between them."""
    return isinstance(task, Halved | SequenceToSequence)


def writes(task: Task) -> bool:
    """A model that learned it can write something of use from a prompt."""
    return isinstance(task, LanguageModel | PrefixLanguageModel | Denoisers | SequenceToSequence)


def vocabulary(task: Task, tokenizer: Tokenizer) -> int:
    """How many ids the model needs to know."""
    none = isinstance(task, Classification) or (
        isinstance(task, SequenceToSequence) and task.begin is not None
    )
    return tokenizer.vocab_size + (0 if none else task.extra_ids)


# --- documents on their way into a store
# -------------------------------------------------------------------------


class Example(NamedTuple):
    """One document as ids [n]: every id but the first is predicted from those before it.

    Of records: what is read, `begin` and the answer with its end; or the text and its label's id.
    """

    ids: np.ndarray


def example(
    task: Task, ids: np.ndarray, tokenizer: Tokenizer, answered: np.ndarray | str | None = None
) -> Example:
    """The whole text between the id that begins a document and the one that ends it, which is
    learned as its end; mostly they are the same.

    A tokenizer without such ids leaves the text bare.

    Args:
      answered: of records, what `ids` are the source of: ids, or a label.
    """
    if isinstance(task, SequenceToSequence):
        return Example(
            np.concatenate(
                [
                    _closed(task, ids, tokenizer),
                    [tokenizer.vocab_size],
                    answered,
                    [tokenizer.end_of_document],
                ]
            ).astype(np.int32)
        )
    if isinstance(task, LanguageModel):
        ids = ids[::-1] if task.backward else ids
        ids = (
            _middle_last(ids, tokenizer.vocab_size)
            if task.middle and _draw(ids).random() < task.middle
            else ids
        )
    begin, end = (
        np.asarray([] if i is None else [i], np.int32)
        for i in (tokenizer.begin_of_document, tokenizer.end_of_document)
    )
    label = (
        [tokenizer.vocab_size + task.labels.index(answered)]
        if isinstance(task, Classification)
        else []
    )
    return Example(np.concatenate([begin, ids, end, label]).astype(np.int32))


def _middle_last(ids: np.ndarray, first_extra: int) -> np.ndarray:
    """Mark, prefix, mark, suffix, mark, middle; cut at two random places."""
    begin, end = np.sort(_draw(ids, 1).integers(0, len(ids) + 1, 2))
    parts = (ids[:begin], ids[end:], ids[begin:end])
    return np.concatenate(
        [part for mark, rest in enumerate(parts) for part in ([first_extra + mark], rest)]
    ).astype(np.int32)


def _draw(ids: np.ndarray, salt: int = 0) -> np.random.Generator:
    """Randomness that is a document's own."""
    return np.random.default_rng(
        [
            salt,
            *np.frombuffer(
                np.ascontiguousarray(ids, np.int32).tobytes()[:4096].ljust(4, b"\0"), np.uint32
            ),
        ]
    )


# --- rows on their way into a batch
# ------------------------------------------------------------------------------


def masked(
    task: MaskedLanguageModel,
    ids: np.ndarray,
    real: np.ndarray,
    vocab_size: int,
    draw: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """What is shown of a row [T], and where it is predicted.

    Args:
      vocab_size: of the tokenizer; this id hides a token.
    """
    chosen, how = real & (draw.random(len(ids)) < task.share), draw.random(len(ids))
    others = draw.integers(0, vocab_size, len(ids), dtype=np.int32)
    shown = np.where(
        chosen & (how < 0.8), np.int32(vocab_size), np.where(chosen & (how >= 0.9), others, ids)
    )
    return shown, chosen


def halves(
    task: Halved, ids: np.ndarray, vocab_size: int, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What is read of a row, and what is written.

    Args:
      vocab_size: of the tokenizer; the task's own ids begin here.
    """
    if isinstance(task, Denoisers):
        odds = np.asarray(task.weights or [1.0] * len(task.parts))
        part = task.parts[draw.choice(len(odds), p=odds / odds.sum())]
        read, written = halves(part, ids, vocab_size, draw)
        return (
            np.concatenate([[_mode_id(vocab_size, task.mode(part))], read]).astype(np.int32),
            written,
        )
    if len(ids) < 2:
        return ids, ids[:0]
    if isinstance(task, SpanCorruption):
        return corrupted(task, ids, vocab_size, draw)
    least, most = task.bounds(len(ids))
    border = len(ids) - int(draw.integers(least, most + 1))
    return ids[:border], ids[border:]


def _mode_id(vocab_size: int, mode: int) -> int:
    return (
        vocab_size + SpanCorruption.extra_ids - 1 + mode
    )  # marks of spans are before; `begin` is behind


def corrupted(
    task: SpanCorruption, ids: np.ndarray, vocab_size: int, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What is read of a row of at least two tokens, and what is written.

    Args:
      vocab_size: of the tokenizer; ids from here on mark spans.
    """
    hidden, spans = task.counts(len(ids))
    borders = np.cumsum(
        np.stack(
            [_parts(len(ids) - hidden, spans, draw), _parts(hidden, spans, draw)], axis=1
        ).reshape(-1)
    )
    pieces, marks = np.split(ids, borders[:-1]), vocab_size + np.arange(spans + 1, dtype=np.int32)
    read = [part for mark, kept in zip(marks, pieces[::2], strict=False) for part in (kept, [mark])]
    write = [
        part for mark, span in zip(marks, pieces[1::2], strict=False) for part in ([mark], span)
    ]
    return np.concatenate(read).astype(np.int32), np.concatenate([*write, marks[-1:]]).astype(
        np.int32
    )


def _parts(total: int, count: int, draw: np.random.Generator) -> np.ndarray:
    """`total` in `count` parts of at least one, all divisions equally likely."""
    cuts = (
        np.sort(draw.choice(total - 1, count - 1, replace=False)) + 1
        if count > 1
        else np.zeros(0, int)
    )
    return np.diff(np.concatenate([[0], cuts, [total]]))


# --- prompts on their way to an answer
# ---------------------------------------------------------------------------


def asked(
    task: Task, ids: list[int], tokenizer: Tokenizer, beside: bool
) -> tuple[list[int], list[int]]:
    """What an encoder reads of a prompt, and what a decoder has read when it begins to write.

    Args:
      beside: there is an encoder.
    """
    if not answers(task):
        return [], (
            ids
            if tokenizer.begin_of_document is None
            else [
                tokenizer.begin_of_document,
                *ids,
            ]
        )
    read = (
        [_mode_id(tokenizer.vocab_size, 1), *ids]
        if isinstance(task, Denoisers)
        else list(_closed(task, ids, tokenizer))
    )
    begin = [begins(task, tokenizer.vocab_size + task.extra_ids)]
    return (read, begin) if beside else ([], [*read, *begin])


def begins(task: Halved | SequenceToSequence, vocab_size: int) -> int:
    """The id before an answer.

    Args:
      vocab_size: ids of the tokenizer and of the task's own; the last of these, unless the task
        names another.
    """
    own = getattr(task, "begin", None)
    return vocab_size - 1 if own is None else own


def _closed(task: Task, ids: Any, tokenizer: Tokenizer) -> Any:
    """A text that is answered, with its end where the task wants one."""
    return (
        [*ids, tokenizer.end_of_document]
        if isinstance(task, SequenceToSequence) and task.closed
        else ids
    )
