"""Texts that answer texts: translation, summaries, or a label as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.core.config import formerly, require
from gptjax.data.documents.sources import Document
from gptjax.data.layouts import Piece, answer
from gptjax.data.rows import places_of
from gptjax.data.store import Store
from gptjax.data.tasks.task import RecordTask, Shape, answer_end
from gptjax.data.tokenizers.tokenizer import Tokenizer


@formerly(added=("before", "after", "lead"))
@dataclass(frozen=True)
class SequenceToSequence(RecordTask):
    """A text is predicted from another: translation, summaries, or a label as text. It needs
    records of two texts (`Records`).

    An encoder reads the other text; a decoder alone reads it as a prefix, of which nothing is
    predicted. An example is what is read, an id, and the answer with its end.

    Source: Sutskever et al. 2014, arXiv:1409.3215; labels as text: Raffel et al. 2020, T5,
    arXiv:1910.10683, section 2.4.
    """

    begin: int | None = None
    """The id before an answer, if it is one of the tokenizer's, as T5's padding; `None` adds an id
    to the vocabulary."""
    closed: bool = False
    """The text that is answered ends with the id that ends documents, as T5's does."""
    before: tuple[int, ...] = ()
    """Ids before the text that is answered, as BART's."""
    after: tuple[int, ...] = ()
    """Ids after the text that is answered, as mBART's language."""
    lead: tuple[int, ...] = ()
    """Ids with which every answer begins, as mBART's language."""

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-decoder", "decoder")
    answers: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "exact_match")

    def __post_init__(self) -> None:
        for name in ("before", "after", "lead"):
            ids = getattr(self, name)
            require(
                all(i >= 0 for i in ids),
                f"data.task.{name} is {ids}; it needs ids of the tokenizer.",
            )
        require(
            self.begin is None or self.begin >= 0,
            f"data.task.begin is {self.begin}; it needs an id of the tokenizer, or null.",
        )

    @property
    def extra_ids(self) -> int:
        """The border between a text and its answer."""
        return 1

    def vocabulary(self, tokenizer: Tokenizer) -> int:
        """Returns the number of ids that the model has to know."""
        return tokenizer.vocab_size + (1 if self.begin is None else 0)

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields each record as one example."""
        answers = tokenizer.encode_answers([document.text for document in documents])
        sources = tokenizer.encode_all([document.source or document.text for document in documents])
        for source, target in zip(sources, answers, strict=True):
            yield self.pair(source, target, tokenizer)

    def pair(self, source: np.ndarray, target: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        """Returns the ids of a text and its answer as one example."""
        read, border = self._read(source, tokenizer), [tokenizer.vocab_size, *self.lead]
        return np.concatenate([read, border, target, [answer_end(tokenizer)]]).astype(np.int32)

    def _read(self, ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer) -> list[int]:
        end = [answer_end(tokenizer)] if self.closed else []
        return [*self.before, *ids, *end, *self.after]

    def sizes(self, store: Store, with_encoder: bool) -> np.ndarray:
        """Returns the positions that each example takes of a row [n 1], or of a row of the decoder
        and one of the encoder [n 2]."""
        lengths = super().sizes(store, with_encoder)
        if not with_encoder:
            return lengths
        borders = places_of(store, store.header.vocab_size - 1)
        read = (borders - store.offsets[:-1])[:, None]
        return np.concatenate([lengths - read, read], axis=1)

    def piece(self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool) -> Piece:
        """Returns a record as a piece; what does not fit is cut off the end of its text, and of its
        answer only where that alone is longer than a row."""
        border = int(np.flatnonzero(ids == vocab_size)[0])
        written = ids[border + 1 :][:width]
        room = width if with_encoder else width - len(written)
        begin = vocab_size if self.begin is None else self.begin
        return answer(ids[:border][:room], written, begin, with_encoder)

    def prompt(
        self, ids: Sequence[int], tokenizer: Tokenizer, with_encoder: bool
    ) -> tuple[list[int], list[int]]:
        """Returns the prompt as what is read, and the id before an answer as what is written."""
        read = self._read(ids, tokenizer)
        begin = tokenizer.vocab_size if self.begin is None else self.begin
        written = [begin, *self.lead]
        return (read, written) if with_encoder else ([], [*read, *written])
