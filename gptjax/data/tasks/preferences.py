"""Judged answers: pairs of which one was preferred, or single answers that were good or bad.

Both lay two texts of a record side by side in a row, as segments that do not see each other, so no
split of a batch tears them apart. Read `Preferences`, then `Feedback`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.comparisons import Judged, load_judged
from gptjax.data.documents.conversations import Record
from gptjax.data.documents.sources import Document
from gptjax.data.layouts import Batch, Piece, filled
from gptjax.data.rows import Plan, RowNumbers, example_ids, packed_examples
from gptjax.data.store import Store
from gptjax.data.tasks.chat import Chat, Writer, mark_places
from gptjax.data.tokenizers.tokenizer import Tokenizer

Pieces = tuple[Piece, Piece]


@dataclass(frozen=True)
class Preferences(Chat):
    """Pairs of answers to one prompt (`Comparisons`), of which the first was preferred; for the
    losses `Preference` and `BradleyTerry`.

    A row holds the chosen conversation, then the rejected one, then the next pair. The column
    `pairs` [B P] is 1 for each pair of a row.
    """

    loss_on: Literal["all", "last"] = "last"
    """Answers that are compared: the last, or all that follow the prompt."""
    score: bool = False
    """Train a model that gives a text one number, for the loss `BradleyTerry`."""

    sources: ClassVar[tuple[str, ...]] = ("Comparisons",)
    unit: ClassVar[str] = "pair"
    batches: ClassVar[str] = "pairs"
    called: ClassVar[str] = "pairs"
    figures: ClassVar[tuple[str, ...]] = ()

    @property
    def extra_ids(self) -> int:
        """The mark where counting begins or ends, and the border between two texts."""
        return 2

    @property
    def classes(self) -> int | None:
        """One, a score, or `None`."""
        return 1 if self.score else None

    # --- documents to examples

    def records_of(self, document: Document) -> tuple[Record, ...]:
        """Returns each answer of a judged record with its prompt."""
        return load_judged(document.text).answers

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields each pair as the ids of the chosen text, the border, and those of the rejected.

        Raises:
          ConfigError: a record is no pair, or cannot be written; names it.
        """
        writer = Writer.of(tokenizer)
        for document in documents:
            record = load_judged(document.text)
            try:
                yield from self.joined(record, writer)
            except ConfigError as error:
                raise ConfigError(f"{document.name} {error}") from None

    def joined(self, record: Judged, writer: Writer) -> list[np.ndarray]:
        """Returns a record as one example.

        Raises:
          ConfigError: it is no pair, or has nothing to compare.
        """
        require(
            len(record.answers) == 2,
            "is one answer with a label; use data.task Feedback, records with chosen and rejected,"
            " or --data.source.only pairs.",
        )
        border = writer.tokenizer.vocab_size + 1
        chosen, rejected = (self.marked(answer, writer) for answer in record.answers)
        return [np.concatenate([chosen, [border], rejected]).astype(np.int32)]

    # --- a store to batches

    def sizes(self, store: Store, with_encoder: bool) -> np.ndarray:
        """Returns the positions that each pair takes of a row [n 1]."""
        more = 0 if self.score else 2  # the border, and the second text's last id
        return super().sizes(store, with_encoder) - more

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, as numpy arrays. It depends on nothing else."""
        vocab_size = store.header.vocab_size - self.extra_ids
        return _paired(
            store, plan, at, lambda i: self.pair(example_ids(store, i), vocab_size, plan.width)
        )

    def piece(self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool) -> Piece:
        """Returns one text as a piece of a row; where it gets a score, with its last token, at
        which that is read."""
        read = np.append(ids, 0) if self.score else ids  # an id that is predicted, never read
        return super().piece(read, vocab_size, width, with_encoder)

    def pair(self, ids: np.ndarray, vocab_size: int, width: int) -> Pieces:
        """Returns an example as two pieces."""
        border = int(np.flatnonzero(ids == vocab_size + 1)[0])
        first, second = ids[:border], ids[border + 1 :]
        return (
            self.piece(first, vocab_size, width, with_encoder=False),
            self.piece(second, vocab_size, width, with_encoder=False),
        )

    def describe(self, store: Store) -> str:
        """Says how many pairs there are."""
        return f"{store.header.num_examples:,} pairs, loss on {self.loss_on} answers"


@dataclass(frozen=True)
class Feedback(Preferences):
    """Answers that were judged alone (`Comparisons` with `label`); for the loss `KTO`. Of a pair
    the chosen answer counts as good and the rejected one as bad.

    Beside each answer a row holds its prompt with the answer of another record, from which the loss
    estimates how far the model has moved. The column `pairs` [B P] is
    1 for each answer, `good` 1 for each that was found good.
    """

    score: ClassVar[bool] = False  # type: ignore[misc]
    unit: ClassVar[str] = "answer"
    batches: ClassVar[str] = "judged answers"
    called: ClassVar[str] = "judged answers"

    @property
    def extra_ids(self) -> int:
        """The mark, and an id before a good and before a bad answer."""
        return 3

    @property
    def blank(self) -> list[int]:
        """A judgement, a prompt, and an answer between marks."""
        return [2, 0, 1, 0, 1]

    def joined(self, record: Judged, writer: Writer) -> list[np.ndarray]:
        """Returns each answer of a record as an example: its judgement, then its ids.

        Raises:
          ConfigError: it has nothing to learn.
        """
        judgements = (True, False) if record.good is None else (record.good,)
        examples = []
        for good, answer in zip(judgements, record.answers, strict=True):
            judgement = writer.tokenizer.vocab_size + (1 if good else 2)
            ids = self.marked(answer, writer)
            examples.append(np.concatenate([[judgement], ids]).astype(np.int32))
        return examples

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Packs the answers with their mismatched ones into rows, in an order of the seed.

        Raises:
          ConfigError: there is one record only, or none that fits.
        """
        require(
            store.header.num_examples > 1,
            "the data has one judged answer, and KTO compares each with another record's; give more"
            " (--data.source.path).",
        )
        return super().plan(store, plan)

    def sizes(self, store: Store, with_encoder: bool) -> np.ndarray:
        """Returns the positions that each example takes of a row [n 1]: its prompt twice, its own
        answer, and its partner's."""
        marks = mark_places(store, self.extra_ids)
        among = np.searchsorted(marks, store.offsets)
        asked = marks[among[:-1]] - store.offsets[:-1] - 1  # the judgement comes first
        answered = np.diff(store.offsets) - 1 - asked - np.diff(among)
        partner = _partner(np.arange(len(asked)), len(asked))
        return (2 * asked + answered + answered[partner] - 2)[:, None]

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, as numpy arrays. It depends on nothing else."""
        vocab_size, count = store.header.vocab_size - self.extra_ids, store.header.num_examples

        def pieces(i: int) -> Pieces:
            own, other = (example_ids(store, n)[1:] for n in (i, _partner(i, count)))
            begin, borrowed = (int(np.flatnonzero(x == vocab_size)[0]) for x in (own, other))
            mismatched = np.concatenate([own[:begin], other[borrowed:]])
            return (
                self.piece(own, vocab_size, plan.width, with_encoder=False),
                self.piece(mismatched, vocab_size, plan.width, with_encoder=False),
            )

        batch = _paired(store, plan, at, pieces)
        assert batch.columns is not None
        good = np.zeros_like(batch.columns["pairs"])
        for row, examples in enumerate(packed_examples(plan, at)):
            judgements = [example_ids(store, i)[0] for i in examples]
            good[row, : len(examples)] = np.equal(judgements, vocab_size + 1)
        return batch._replace(columns={**batch.columns, "good": good})

    def describe(self, store: Store) -> str:
        """Says how many answers there are."""
        return f"{store.header.num_examples:,} judged answers, loss on {self.loss_on} answers"


def _partner(i: Any, count: int) -> Any:
    """Numbers of the examples whose answers stand under the prompts of `i`: half the data away,
    since neighbours often answer the same prompt."""
    return (i + count // 2) % count


def _paired(store: Store, plan: Plan, at: RowNumbers, pieces: Callable[[int], Pieces]) -> Batch:
    """Rows of pairs of pieces, with the column `pairs` and those of the store [B P ...].

    Args:
      pieces: gives both pieces of an example.
    """
    assert plan.packing is not None
    examples = packed_examples(plan, at)
    rows = [[piece for i in row for piece in pieces(i)] for row in examples]
    most = int(np.diff(plan.packing.firsts).max())
    real = np.arange(most)[None] < np.asarray([len(row) for row in examples])[:, None]
    columns = {"pairs": real.astype(np.float32)}
    for name, values in (store.columns or {}).items():
        columns[name] = np.zeros((*real.shape, *values.shape[1:]), values.dtype)
        columns[name][real] = values[[i for row in examples for i in row]]
    return filled(rows, plan.width)._replace(prefix=None, columns=columns)
