"""Which text is trained on and which is held out.

Read `Split`, then `Split.of`, which chooses the rule for a source, and `Census`, which counts the
sizes of documents.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.data.documents.sources import (
    Comparisons,
    Conversations,
    Document,
    Idx,
    Media,
    MovingShapes,
    Problems,
    Puzzles,
    Records,
    Shapes,
    Source,
)

FEW = 50
"""Below this number of documents, `auto` holds out the tail of each."""
TOLERATED = 2.0
"""Factor by which held-out bytes may differ from the share of `data.validation` before the rule
looks at the sizes of documents."""


def _number(content: bytes) -> int:
    """A hash in [0, 2^64) that decides whether a document is held out."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def _content(document: Document) -> bytes:
    """What decides: of records the source, so that all answers to one text are in one part."""
    return (document.source or document.text).encode("utf-8", "surrogatepass")


def _says_what_is_held_out(source: Source) -> bool:
    if isinstance(source, Puzzles):
        return source.held_out_count is not None
    if isinstance(source, Shapes | MovingShapes):
        return True
    if isinstance(source, Idx):
        return source.held_out_count > 0
    files = isinstance(source, Records | Conversations | Comparisons | Problems | Media)
    return files and source.held_out is not None


class Census:
    """Hash and size of every document, 16 bytes each."""

    def __init__(self) -> None:
        self._numbers, self._sizes = array("Q"), array("Q")

    def add(self, document: Document) -> None:
        """Counts a document."""
        content = _content(document)
        self._numbers.append(_number(content))
        self._sizes.append(len(content))

    def held_out(self, threshold: int) -> float:
        """Returns the share of bytes in documents whose hash is below the threshold."""
        numbers, sizes = np.asarray(self._numbers), np.asarray(self._sizes)
        return float(sizes[numbers < threshold].sum() / max(1, sizes.sum()))

    def fitted(self, share: float) -> tuple[int, int]:
        """Returns (threshold, largest size) such that documents below both hold the share of bytes,
        within one document or several equal ones; (0, 0) if every document is larger than the
        share."""
        numbers, sizes = np.asarray(self._numbers), np.asarray(self._sizes)
        wanted = share * sizes.sum()
        _, same = np.unique(numbers, return_inverse=True)  # equal documents are in one part
        together = np.bincount(same, sizes)[same]
        largest = min(wanted, (sizes[together > wanted] - 1).min(initial=wanted))
        order = np.argsort(numbers)
        order = order[sizes[order] <= largest]
        reached = np.cumsum(sizes[order]) >= wanted
        last = int(np.argmax(reached)) if reached.any() else len(order) - 1
        return (int(numbers[order[last]]) + 1, int(largest)) if len(order) else (0, 0)


class Split(NamedTuple):
    """A rule that divides each document between `train` and `validation`."""

    share: float
    """Share of the text that is held out."""
    by_document: bool
    """Whole documents are held out, chosen by a hash of their text; otherwise the tail of each."""
    names: tuple[str, ...]
    """The parts that get a store."""
    documents: int
    """Number of documents in the source."""
    threshold: int
    """Documents with a hash below it are held out."""
    largest: int | None = None
    """Documents of more bytes are trained on; `None` does not look at sizes."""
    undivided: bool = False
    """Whole documents were asked for, which would have left a part without any: of one file, all or
    nothing. So the tail of each is held out."""

    @classmethod
    def of(
        cls, kind: str, share: float, source: Source, documents: int, census: Census | None
    ) -> Split:
        """Returns the rule of a config (`data.split` and `data.validation`) for a source.

        The hash alone decides, unless that holds out less than half or more than twice the share of
        bytes, as where one document has most of them. Documents that leave a part without any are
        divided themselves.
        """
        files = Records | Conversations | Comparisons | Problems | Media | Idx
        records = isinstance(source, files | Puzzles | Shapes | MovingShapes)
        by_document = kind == "documents" or (kind == "auto" and (documents >= FEW or records))
        holds_out = share > 0 or _says_what_is_held_out(source)
        names = ("train", "validation") if holds_out else ("train",)
        split = cls(share, by_document, names, documents, threshold=int(share * 2**64))
        if not by_document or not share or census is None:
            return split
        held_out = census.held_out(split.threshold)
        threshold, largest = census.fitted(share)
        if threshold and not split.is_met(held_out):
            return split._replace(threshold=threshold, largest=largest)
        if not records and held_out in (0.0, 1.0):
            return split._replace(by_document=False, undivided=True)
        return split

    def parts(self, document: Document) -> dict[str, str]:
        """Returns what of a document is in each part."""
        text, held_out = document.text, document.held_out
        if held_out is None and self.by_document:
            content = _content(document)
            small = self.largest is None or len(content) <= self.largest
            held_out = small and _number(content) < self.threshold
        if held_out is not None:
            return {"train": "" if held_out else text, "validation": text if held_out else ""}
        cut = int(len(text) * (1 - self.share))
        return {"train": text[:cut], "validation": text[cut:]}

    def is_met(self, held_out: float) -> bool:
        """Whether a share of held-out bytes is roughly the one that was asked for."""
        if not self.by_document or not self.share:
            return True
        return self.share / TOLERATED <= held_out <= self.share * TOLERATED

    def require_some(self, any_text: bool, name: str) -> None:
        """Refuses a split that leaves a part empty."""
        require(
            any_text,
            f"data.validation {self.share} of {self.documents} documents leaves nothing for {name};"
            " use another share (--data.validation 0.1) or hold out tails (--data.split tail).",
        )
