"""Prompts that a model answers while it trains, with the record that rewards judge its answers by.

Read `Prompts`, then `Prompts.problem`, which gives a prompt and its record back.

A store holds of each problem the ids of its prompt, a border (the id after the tokenizer's last),
then the record as JSON: each byte of its UTF-8 is an id of its own behind the border.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.conversations import Record, load_record
from gptjax.data.documents.problems import judge_record
from gptjax.data.documents.sources import Document
from gptjax.data.layouts import Batch, Piece, filled
from gptjax.data.packing import Packing
from gptjax.data.rows import Plan, RowNumbers, example_ids, packed_examples
from gptjax.data.store import Store
from gptjax.data.tasks.chat import Chat, Writer, mark_places, message
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat_spelling import spell_in_turn
from gptjax.data.tokenizers.tokenizer import Tokenizer


class Problem(NamedTuple):
    """A problem as a rollout reads it."""

    ids: list[int]
    """The prompt as the model reads it."""
    prompt: str
    """The prompt as a text; of messages what the last one of the user says."""
    record: dict[str, Any]
    """`prompt`, `answer` where there is one, and everything else that the record said."""


@dataclass(frozen=True)
class Prompts(Chat):
    """Problems that the model answers in training (`Problems`, `Puzzles`), for the loss `Policy`.
    Of conversations (`Conversations`) the first question is the prompt.

    A row of a batch is one prompt, and nothing of it is learned: weights are 0. The column
    `example` [B] is its number in the store, -1 of a row without one.
    """

    loss_on: ClassVar[str] = "all"  # type: ignore[misc]
    called: ClassVar[str] = "prompts"
    sources: ClassVar[tuple[str, ...]] = ("Problems", "Puzzles", "Conversations")
    batches: ClassVar[str] = "rollouts"
    figures: ClassVar[tuple[str, ...]] = ()

    @property
    def extra_ids(self) -> int:
        """The border, and the 256 bytes."""
        return 257

    @property
    def blank(self) -> list[int]:
        """A prompt of one token, the border, and an empty record."""
        return [0, 1, *(2 + np.frombuffer(b"{}", np.uint8)).tolist()]

    # --- documents to examples

    def num_bytes(self, document: Document) -> int:
        """Returns the bytes of what a prompt says."""
        record = load_record(document.text)
        said = [m["content"] for m in record.asked] if record.messages else [record.prompt]
        return sum(len(text.encode()) for text in said)

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields each problem as the ids of its prompt, the border, and the bytes of its record.

        Raises:
          ConfigError: a record asks nothing, or cannot be written; names it.
        """
        writer, border = Writer.of(tokenizer), tokenizer.vocab_size
        for document in documents:
            record = load_record(document.text)
            try:
                ids = prompt_ids(record, writer)
            except ConfigError as error:
                raise ConfigError(f"{document.name} {error}") from None
            content = json.dumps(judge_record(record), ensure_ascii=False).encode()
            said = np.frombuffer(content, np.uint8).astype(np.int32) + border + 1
            yield np.concatenate([ids, [border], said]).astype(np.int32)

    # --- a store to batches

    def sizes(self, store: Store, with_encoder: bool) -> np.ndarray:
        """Returns the positions that each prompt takes of a row [n 1]."""
        return (mark_places(store, self.extra_ids) - store.offsets[:-1])[:, None]

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Gives each prompt that fits a row of its own.

        Raises:
          ConfigError: one is longer than a row and has to fit, or none fits.
        """
        sizes = self.sizes(store, plan.with_encoder)
        long = sizes[:, 0] > plan.width
        order = np.flatnonzero(~long)
        packing = Packing(order, np.arange(len(order) + 1), cut=0, left_out=int(long.sum()))
        self.require_room(packing, sizes, plan.width)
        return plan._replace(packing=packing, length=plan.width)

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, as numpy arrays. It depends on nothing else."""
        vocab_size = store.header.vocab_size - self.extra_ids
        examples = packed_examples(plan, at)
        rows = [
            [self.piece(example_ids(store, i), vocab_size, plan.width, False) for i in row]
            for row in examples
        ]
        numbers = np.asarray([row[0] if row else -1 for row in examples], np.int32)
        laid_out = filled(rows, plan.width, packed=False)
        return laid_out._replace(prefix=None, columns={"example": numbers})

    def piece(self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool) -> Piece:
        """Returns a prompt as a piece of a row; nothing of it is learned."""
        read = ids[: _border(ids, vocab_size)]
        return Piece(read, np.append(read[1:], 0), np.zeros(len(read)))

    def problem(self, store: Store, i: int) -> Problem:
        """Returns the problem with this number in the store."""
        vocab_size, ids = store.header.vocab_size - self.extra_ids, example_ids(store, int(i))
        border = _border(ids, vocab_size)
        content = (ids[border + 1 :] - (vocab_size + 1)).astype(np.uint8).tobytes()
        record = json.loads(content)
        return Problem(ids[:border].tolist(), _readable(record["prompt"]), record)

    def example_prompt(self, store: Store) -> str:
        """Returns the first prompt."""
        return self.problem(store, 0).prompt

    def describe(self, store: Store) -> str:
        """Says how many prompts there are, and how long."""
        sizes = self.sizes(store, with_encoder=False)[:, 0]
        low, middle, high = int(sizes.min()), int(np.median(sizes)), int(sizes.max())
        lengths = f"{low}" if low == high else f"{low} to {high} (median {middle})"
        return f"{len(sizes):,} prompts of {lengths} tokens"


def prompt_ids(record: Record, writer: Writer) -> list[int]:
    """Returns the ids of what a record asks, as the model reads them before it answers: those with
    which `render_record` begins.

    Raises:
      ConfigError: it asks nothing, or the template cannot write it.
    """
    tokenizer = writer.tokenizer
    asked = [message(fields) for fields in record.asked]
    require(bool(asked or record.prompt), "asks nothing; give it a prompt, or leave it out.")
    if asked:
        template = writer.require_template()
        return chat.render(template, asked, tokenizer, tools=record.tools)
    begin = [] if tokenizer.begin_of_document is None else [tokenizer.begin_of_document]
    return [*begin, *spell_in_turn([record.prompt], tokenizer)[0]]


def _border(ids: np.ndarray, vocab_size: int) -> int:
    return int(np.flatnonzero(ids == vocab_size)[0])


def _readable(prompt: str | list[dict[str, Any]]) -> str:
    if isinstance(prompt, str):
        return prompt
    said = [m["content"] for m in prompt if m["role"] == "user"]
    return said[-1] if said else prompt[-1]["content"]
