"""Labels of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.core.config import require
from gptjax.data.documents.sources import Document
from gptjax.data.layouts import Piece, label
from gptjax.data.tasks.task import RecordTask, Shape, bounded
from gptjax.data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Classification(RecordTask):
    """The label of a text is predicted from a pooled hidden state. It needs records of two texts
    (`Records`), of which the label is the answer."""

    labels: tuple[str, ...] = ()
    """The classes; empty takes all labels of the data, sorted."""

    unit: ClassVar[str] = "label"
    shapes: ClassVar[tuple[Shape, ...]] = ("decoder", "encoder")

    def __post_init__(self) -> None:
        require(
            len(set(self.labels)) == len(self.labels),
            "data.task.labels has a label twice; name each once.",
        )
        require(
            len(self.labels) != 1,
            f"data.task.labels has one label, {self.labels[:1]}; it needs at least 2.",
        )

    @property
    def classes(self) -> int:
        """Number of labels."""
        return len(self.labels)

    @property
    def extra_ids(self) -> int:
        """Ids of the labels in a store; the model reads none of them."""
        return len(self.labels)

    def vocabulary(self, tokenizer: Tokenizer) -> int:
        """Returns the number of ids that the model has to know."""
        return tokenizer.vocab_size

    def resolve(self, labels: tuple[str, ...]) -> Classification:
        """Returns the task with the labels of the data, where it names none."""
        return self if self.labels else dataclasses.replace(self, labels=labels)

    def texts(self, document: Document) -> tuple[str, ...]:
        """Returns the text without its label, which is not tokenised."""
        return (document.source or document.text,)

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields each text with the id of its label.

        Raises:
          ConfigError: a label is not in `labels`.
        """
        for document in documents:
            require(
                document.text in self.labels,
                f"{document.name} has the label {document.text!r}, which is not in"
                " data.task.labels; name it there, or leave labels empty.",
            )
        texts = tokenizer.encode_all([document.source or document.text for document in documents])
        for ids, document in zip(texts, documents, strict=True):
            yield self.labelled(ids, document.text, tokenizer)

    def labelled(self, ids: np.ndarray, name: str, tokenizer: Tokenizer) -> np.ndarray:
        """Returns the ids of a text and the name of its label as one example."""
        return bounded(ids, tokenizer, tokenizer.vocab_size + self.labels.index(name))

    def piece(
        self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool = False
    ) -> Piece:
        """Returns a text, cut to `width`, as a piece whose last position predicts the label."""
        return label(np.concatenate([ids[:-1][:width], ids[-1:]]), vocab_size)
