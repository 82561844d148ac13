"""Conversations: the assistant's answers are learned, everything else is read.

Read `Chat`, then `Rendered`, then `render_record`, which makes a record ids and says which of them
count.

A store holds each record's ids, with a mark (the id after the tokenizer's last) wherever counting
begins or ends. So ids and weights are one file, and what counts is decided once, by whoever wrote
the text: the template or a message.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.conversations import Record, load_record
from gptjax.data.documents.sources import Document
from gptjax.data.layouts import Piece
from gptjax.data.packing import Packing
from gptjax.data.rows import Plan, places_of
from gptjax.data.store import Store
from gptjax.data.tasks.task import RecordTask, answer_end
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import ChatTemplate, Message
from gptjax.data.tokenizers.chat_spelling import spell_in_turn
from gptjax.data.tokenizers.tokenizer import Tokenizer, with_template


@dataclass(frozen=True)
class Chat(RecordTask):
    """Supervised fine-tuning on conversations (`Conversations`), or on problems with their answers
    (`Problems`, `Puzzles`).

    The answers of the assistant and the token that ends each of them are learned, given all before
    them. Of a prompt and its completion as plain texts, the completion and an end are; no template
    writes them. A plain text is learned as a whole. Whole conversations are packed into rows, in
    which they do not see each other.
    """

    template: str | None = None
    """Chat template: a name such as zephyr, or a .jinja file; `None` is the model's own. The run
    keeps it in its tokenizer, for `chat`."""
    loss_on: Literal["all", "last"] = "all"
    """Answers that are learned: all of a conversation, or the last."""
    too_long: Literal["leave-out", "refuse"] = "leave-out"
    """A conversation that is longer than a row is left out, and counted, or ends the run. None is
    cut: an answer without its end would be learned."""

    called: ClassVar[str] = "conversations"
    """What messages call the examples."""
    sources: ClassVar[tuple[str, ...]] = ("Conversations", "Problems", "Puzzles")
    conversations: ClassVar[bool] = True
    cuts: ClassVar[bool] = False
    writes: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "exact_match")

    @property
    def extra_ids(self) -> int:
        """The mark where counting begins or ends."""
        return 1

    def vocabulary(self, tokenizer: Tokenizer) -> int:
        """Returns the number of ids that the model has to know; it never reads the mark."""
        return tokenizer.vocab_size

    def resolve(self, labels: tuple[str, ...]) -> Chat:
        """Returns the task with the source of its template in place of a file's name."""
        if self.template is None:
            return self
        chosen = chat.named_template(self.template)
        is_file = chosen.name == self.template and not chosen.needs and "." in self.template
        return dataclasses.replace(self, template=chosen.source) if is_file else self

    def equip(self, tokenizer: Tokenizer) -> Tokenizer:
        """Returns the tokenizer with the chat template of the task, if it names one.

        Raises:
          ConfigError: the tokenizer cannot write it.
        """
        if self.template is None:
            return tokenizer
        chosen = chat.named_template(self.template)
        chat.require_controls(chosen, tokenizer)
        return with_template(tokenizer, chosen.source)

    # --- documents to examples

    def records_of(self, document: Document) -> tuple[Record, ...]:
        """Returns the conversations of a document."""
        return (load_record(document.text),)

    def texts(self, document: Document) -> tuple[str, ...]:
        """Returns what a tokenizer has to spell: conversations as their template writes them."""
        return tuple(
            text
            for record in self.records_of(document)
            for text in self.record_texts(record, document.name)
        )

    def record_texts(self, record: Record, name: str) -> tuple[str, ...]:
        """Returns what a tokenizer has to spell of one record.

        Raises:
          ConfigError: the template cannot write it; says so of `name`.
        """
        if not record.messages or self.template is None:
            return tuple(filter(None, record.texts))
        try:
            template = chat.named_template(self.template)
            return (chat.written_text(template, record.messages, record.tools),)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None

    def num_bytes(self, document: Document) -> int:
        """Returns the bytes of what the messages say."""
        return sum(
            len(text.encode()) for record in self.records_of(document) for text in record.texts
        )

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields each record as ids with marks where counting begins or ends.

        Raises:
          ConfigError: a record has nothing to learn, or cannot be written; names it.
        """
        writer = Writer.of(tokenizer)
        for document in documents:
            try:
                yield self.marked(load_record(document.text), writer)
            except ConfigError as error:
                raise ConfigError(f"{document.name} {error}") from None

    def marked(self, record: Record, writer: Writer) -> np.ndarray:
        """Returns the ids of a record with marks where counting begins or ends.

        Raises:
          ConfigError: it has nothing to learn, or cannot be written.
        """
        require(
            bool(record.messages or record.text),
            "has no answer, so nothing to learn; give it one (--data.source.answer KEY), or leave"
            " it out.",
        )
        ids, counts = render_record(record, writer, self.loss_on)
        require(
            bool(counts[1:].any()), "has no token to learn; give it an answer, or leave it out."
        )
        borders = np.flatnonzero(np.diff(counts.astype(np.int8), prepend=0, append=0))
        return np.insert(ids, borders, writer.tokenizer.vocab_size)

    # --- a store to batches

    def sizes(self, store: Store, with_encoder: bool) -> np.ndarray:
        """Returns the positions that each example takes of a row [n 1]."""
        within = np.diff(np.searchsorted(mark_places(store, self.extra_ids), store.offsets))
        return super().sizes(store, with_encoder) - within[:, None]

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Packs the conversations that fit into rows, in an order of the seed.

        Raises:
          ConfigError: one is longer than a row and has to fit, or none fits.
        """
        plan = super().plan(store, plan)
        if plan.packing is not None:
            self.require_room(plan.packing, self.sizes(store, plan.with_encoder), plan.width)
        return plan

    def require_room(self, packing: Packing, sizes: np.ndarray, width: int) -> None:
        """Refuses examples that are longer than a row, if they may not be left out.

        Args:
          sizes: positions that each example takes [n 1].
        """
        left_out, count = packing.left_out, len(sizes)
        if not left_out:
            return
        longest = int(sizes.max())
        says = (
            f"{left_out:,} of {count:,} {self.called} are longer than a row of {width} tokens,"
            f" up to {longest:,}; use --model.context {longest}"
        )
        require(self.too_long == "leave-out", f"{says}, or --data.task.too-long leave-out.")
        require(left_out < count, f"{says}, or shorter ones.")

    def piece(self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool) -> Piece:
        """Returns one example as a piece of a row, in which what counts has the weight 1."""
        marks = ids == vocab_size
        counts = (np.cumsum(marks) % 2)[~marks]
        read = ids[~marks]
        return Piece(read[:-1], read[1:], counts[1:].astype(np.float32))

    def describe(self, store: Store) -> str:
        """Says how many of a store's tokens are learned."""
        marks = mark_places(store, self.extra_ids)
        learned = int((marks[1::2] - marks[::2] - 1).sum())
        tokens = store.header.num_tokens - len(marks)
        return (
            f"{store.header.num_examples:,} conversations, loss on {self.loss_on} answers:"
            f" {learned:,} of {tokens:,} tokens count ({learned / max(1, tokens):.0%})"
        )

    # --- inference

    def asked(self, text: str, tokenizer: Tokenizer) -> str | list[int]:
        """Returns the ids of a conversation that begins with a text of the user; without a template
        the text."""
        if tokenizer.template is None:
            return text
        template = chat.choose_template(None, tokenizer)
        return chat.render(template, [Message("user", text)], tokenizer)


def mark_places(store: Store, extra_ids: int) -> np.ndarray:
    """Returns the places of all marks of a store, int64: of the first of a task's own ids."""
    return places_of(store, store.header.vocab_size - extra_ids)


# --- a record to ids


class Rendered(NamedTuple):
    """A record as the model reads it."""

    ids: np.ndarray
    """int32 [n]"""
    counts: np.ndarray
    """bool [n]: the model learns to write this id."""


class Writer(NamedTuple):
    """What writing records needs to know."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    """`None` where the tokenizer has none, so that only plain texts can be written."""
    ends: frozenset[int]
    """Ids that end an answer."""
    closing: int | None
    """The one that the template writes after an answer, if that is not the end of a document."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Writer:
        """Returns the writer of a tokenizer."""
        template, own = None, ()
        if tokenizer.template is not None:
            template = chat.choose_template(None, tokenizer)
            own = chat.ends(template, tokenizer).ids
        known = {tokenizer.end_of_document, *tokenizer.ends, *own} - {None}
        return cls(tokenizer, template, frozenset(known), own[0] if own else None)

    def require_template(self) -> ChatTemplate:
        """Returns the template.

        Raises:
          ConfigError: there is none.
        """
        if self.template is None:
            raise ConfigError(
                "has messages, and the tokenizer has no chat template, and data.task.template names"
                f" none; it can write {', '.join(chat.usable_forms(self.tokenizer))}:"
                " --data.task.template zephyr."
            )
        return self.template


def render_record(
    record: Record, writer: Writer, loss_on: Literal["all", "last"] = "all"
) -> Rendered:
    """Returns the ids of a record, and which of them count.

    Of a conversation exactly these count: what follows the prompt for an answer, up to the token
    that ends it. An answer whose message has the `weight` 0 does not.

    Raises:
      ConfigError: the template cannot write it, or not so that an answer follows its prompt.
    """
    tokenizer = writer.tokenizer
    if record.messages:
        return _talk(record, writer, loss_on)
    begin = [] if tokenizer.begin_of_document is None else [tokenizer.begin_of_document]
    prompt, text = spell_in_turn([record.prompt, record.text], tokenizer)
    ids = [*begin, *prompt, *text, answer_end(tokenizer)]
    read = max(1, len(begin) + len(prompt))  # nothing predicts the first id
    return Rendered(np.asarray(ids, np.int32), np.arange(len(ids)) >= read)


def _talk(record: Record, writer: Writer, loss_on: Literal["all", "last"]) -> Rendered:
    tokenizer, template = writer.tokenizer, writer.require_template()
    messages = [message(fields) for fields in record.messages]
    made = chat.parts(template, messages, tokenizer, reply=False, tools=record.tools)
    written = {part.answer: part for part in made if part.answer is not None}
    answers = [n for n, m in enumerate(messages) if m.role == "assistant" and n >= record.given]
    wanted = answers[-1:] if loss_on == "last" else answers
    muted = [n for n in wanted if not record.messages[n].get("weight", 1)]
    empty = [n for n in wanted if n not in written and not _says(messages[n])]
    wanted = [n for n in wanted if n not in (*muted, *empty)]
    for n in wanted:
        require(
            n in written,
            f"has an answer, message {n + 1}, that the template does not write; remove it, or use"
            " another template (--data.task.template).",
        )
        require(
            written[n].prompted,
            f"has an answer, message {n + 1}, that the template writes in another way than the"
            " prompt for it, for example without its thought; use --data.task.loss-on last, or"
            " another template (--data.task.template).",
        )
    parts, waiting = [], None
    for part in made:
        ids = part.ids
        if part.answer is None and waiting is not None and ids[0] in writer.ends:
            parts.append((ids[:1], waiting in wanted))  # GLM ends an answer with the next role
            ids, waiting = ids[1:], None
        parts.append((ids, part.answer in wanted))
        if part.answer is not None:
            waiting = None if part.ids[-1] in writer.ends else part.answer
    if waiting == len(messages) - 1:
        closing = answer_end(tokenizer) if writer.closing is None else writer.closing
        parts.append(([closing], waiting in wanted))
    ids = [i for part, _ in parts for i in part]
    bos = tokenizer.special.bos if tokenizer.special else None
    require(
        bos is None or ids[:2] != [bos, bos],
        "begins with the beginning of a text twice: the template writes it, and so does something"
        " else; use another template (--data.task.template).",
    )
    counts = np.repeat([counted for _, counted in parts], [len(part) for part, _ in parts])
    counts[0] = False  # nothing predicts the first id
    return Rendered(np.asarray(ids, np.int32), counts)


def message(fields: Mapping[str, Any]) -> Message:
    """Returns a message of a record as a template takes it."""
    more = {k: v for k, v in fields.items() if k not in ("role", "content", "weight")}
    return Message(fields["role"], fields["content"], more)


def _says(message: Message) -> bool:
    return bool(message.text.strip() or message.more.get("tool_calls"))
