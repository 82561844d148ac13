"""The protocol of tasks. A task says how a document is stored as an example, how rows of a store
become a batch, and how a prompt is read at inference.

Read `Task`: the attributes, then its methods in the order in which text meets them (`examples`,
`plan`, `batch`, `prompt`). A new task derives from it or from `RecordTask` as a frozen dataclass
and overrides what differs, often `rows` alone; nothing else in gptjax has to know it.

Ids of a task's own follow those of the tokenizer. Where a text is answered by another, the last of
them comes before the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from gptjax.core.config import ConfigError, Open
from gptjax.data import packing
from gptjax.data.documents.sources import Document
from gptjax.data.layouts import Batch, Piece, filled
from gptjax.data.permutation import permute
from gptjax.data.rows import Plan, RowNumbers, cut, packed_rows
from gptjax.data.store import Store
from gptjax.data.tokenizers.tokenizer import Tokenizer

Shape = Literal["decoder", "encoder", "encoder-decoder"]
"""Shape of a model: it sees earlier tokens, all tokens, or the text of an encoder too."""

Self = TypeVar("Self", bound="Task")


class Task(Open):
    """What is predicted from what. The defaults are those of plain text, cut into rows."""

    shapes: ClassVar[tuple[Shape, ...]] = ("decoder",)
    """Model shapes that the task fits, the usual one first."""
    sources: ClassVar[tuple[str, ...]] = ("Text", "Tfds", "Mixture")
    """Names of the sources that have its documents, the usual one first."""
    records: ClassVar[bool] = False
    """Its documents are records of two texts (`Records`), not whole texts."""
    conversations: ClassVar[bool] = False
    """Its documents are records of conversations (`Conversations`)."""
    answers: ClassVar[bool] = False
    """A prompt is answered by another text, not continued. A decoder alone reads the prompt as the
    prefix of the row."""
    writes: ClassVar[bool] = False
    """A model trained on it writes text from a prompt."""
    figures: ClassVar[tuple[str, ...]] = ("accuracy",)
    """Held-out figures besides the loss: `accuracy` (share of predictions that are the most likely
    token or label), `exact_match` (share of answers that greedy decoding would write),
    `bits_per_byte` (of the text that the tokens spell)."""
    unit: ClassVar[str] = "token"
    """What its loss is counted by."""
    batches: ClassVar[str] = "predictions"
    """What its batches hold; the loss has to read the same (`LossConfig.batches`)."""

    @property
    def extra_ids(self) -> int:
        """Number of ids of the task's own in a store."""
        return 0

    @property
    def blank(self) -> list[int]:
        """Ids of an example over a vocabulary of one, before there is data; a record's answer
        follows its last id."""
        return [0, self.extra_ids]

    @property
    def classes(self) -> int | None:
        """Number of classes that it predicts instead of tokens; `None` predicts tokens, 0 takes
        them from the data."""
        return None

    def vocabulary(self, tokenizer: Tokenizer) -> int:
        """Returns the number of ids that the model has to know."""
        return tokenizer.vocab_size + self.extra_ids

    def resolve(self: Self, labels: tuple[str, ...]) -> Self:
        """Returns the task with what only the data knows.

        Args:
          labels: the different answers of the records, sorted; empty unless `classes` is 0.
        """
        return self

    def require_model(self, model: Any) -> None:
        """Refuses a model config that cannot read its batches.

        Raises:
          ConfigError: says what does not fit.
        """

    def equip(self, tokenizer: Tokenizer) -> Tokenizer:
        """Returns the tokenizer with what the task adds to it, which the run keeps.

        Raises:
          ConfigError: the task cannot be done with this tokenizer.
        """
        return tokenizer

    # --- documents to examples

    def texts(self, document: Document) -> tuple[str, ...]:
        """Returns the texts of a document that are tokenised."""
        return (document.text,) if document.source is None else (document.source, document.text)

    def num_bytes(self, document: Document) -> int:
        """Returns the bytes of UTF-8 of what is learned from a document."""
        return len(document.text.encode())

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields each document as the ids of one example; every id but the first may be a target.

        Raises:
          ConfigError: a document does not suit the task; names it.
        """
        for ids in tokenizer.encode_all([document.text for document in documents]):
            yield self.example(ids, tokenizer)

    def example(self, ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        """Returns one text as an example: its ids [n] between the id that begins a document and the
        one that ends it, as far as the tokenizer has them."""
        return bounded(ids, tokenizer)

    def frame_writer(self, path: Path) -> Any:
        """Returns what writes the pictures or sounds of documents into a store; `None`: nothing."""
        return None

    # --- a store to batches

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Completes the plan of a store."""
        return plan._replace(length=self.pairs_per_row(plan.width, plan.with_encoder))

    def pairs_per_row(self, width: int, with_encoder: bool) -> int:
        """Returns how many (id, next id) pairs of the line of tokens fit into a row of `width`
        positions."""
        return width

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, as numpy arrays. It depends on nothing else."""
        return self.rows(
            cut(store, plan, at),
            draws=at.draws(plan.seed),
            vocab_size=store.header.vocab_size - self.extra_ids,
            plan=plan,
        )

    def rows(
        self, rows: Batch, *, draws: Iterator[np.random.Generator], vocab_size: int, plan: Plan
    ) -> Batch:
        """Turns rows of plain text, in which each token predicts the next, into the task's own.

        Args:
          draws: random numbers for each row, functions of seed and row alone.
          vocab_size: of the tokenizer; the task's own ids begin here.
        """
        return rows

    def describe(self, store: Store) -> str | None:
        """Says what of a store is learned, where that is not all of it."""
        return None

    def derived(self, loss: float) -> dict[str, float]:
        """Returns further held-out figures that follow from the loss alone."""
        return {}

    # --- inference

    def mask_id(self, tokenizer: Tokenizer) -> int | None:
        """Returns the id of a token that is not written yet, of models that write by filling in
        masks; `None` where they write one token after another."""
        return None

    def example_prompt(self, store: Store) -> str:
        """Returns a prompt to try a model with; empty where a store holds none."""
        return ""

    def asked(self, text: str, tokenizer: Tokenizer) -> str | list[int]:
        """Returns the prompt of a sample as `generate.complete` takes it."""
        return text

    def prompt(
        self, ids: Sequence[int], tokenizer: Tokenizer, with_encoder: bool
    ) -> tuple[list[int], list[int]]:
        """Returns what an encoder reads of a prompt, and what a decoder has read when it begins to
        write."""
        begin = tokenizer.begin_of_document
        return [], [*ids] if begin is None else [begin, *ids]


class RecordTask(Task):
    """Base of tasks over records: whole ones are packed into rows."""

    sources: ClassVar[tuple[str, ...]] = ("Records",)
    records: ClassVar[bool] = True
    cuts: ClassVar[bool] = True
    """A record that is longer than a row loses its end; otherwise it is left out."""

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Packs the records into rows, in an order of the seed."""
        sizes, order = self.sizes(store, plan.with_encoder), example_order(store, plan)
        return plan._replace(packing=packing.pack(sizes, order, plan.width, cut=self.cuts))

    def sizes(self, store: Store, with_encoder: bool) -> np.ndarray:
        """Returns the positions that each example takes of a row [n 1], or of a row of the decoder
        and one of the encoder [n 2]."""
        return np.diff(store.offsets)[:, None] - 1

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, as numpy arrays. It depends on nothing else."""
        vocab_size = store.header.vocab_size - self.extra_ids

        def piece(ids: np.ndarray) -> Piece:
            return self.piece(ids, vocab_size, plan.width, plan.with_encoder)

        side_width = plan.width if plan.with_encoder else None
        return filled(packed_rows(store, plan, at, piece), plan.width, side_width)

    def piece(self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool) -> Piece:
        """Returns one example as a piece of a row, cut to its `width`.

        Args:
          vocab_size: of the tokenizer; the task's own ids begin here.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method `piece`.")


def example_order(store: Store, plan: Plan) -> np.ndarray:
    """Returns the numbers of all examples, in an order of the plan's seed if it has one."""
    order = np.arange(store.header.num_examples)
    return order if plan.seed is None else permute(order, len(order), (plan.seed, -1))


def row_each(store: Store, plan: Plan) -> packing.Packing:
    """Returns the packing that gives each example a row of its own."""
    order = example_order(store, plan)
    return packing.Packing(order, np.arange(len(order) + 1), cut=0)


def bounded(ids: np.ndarray, tokenizer: Tokenizer, *further: int) -> np.ndarray:
    """Returns ids between those that begin and end a document, then `further` ones."""
    begin = [] if tokenizer.begin_of_document is None else [tokenizer.begin_of_document]
    end = [] if tokenizer.end_of_document is None else [tokenizer.end_of_document]
    return np.concatenate([begin, ids, end, further]).astype(np.int32)


def answer_end(tokenizer: Tokenizer) -> int:
    """Returns the id that ends an answer.

    Raises:
      ConfigError: the tokenizer has none.
    """
    if tokenizer.end_of_document is None:
        raise ConfigError(
            "cannot end an answer: this tokenizer has no id that ends a document; use another"
            " data.tokenizer."
        )
    return tokenizer.end_of_document
