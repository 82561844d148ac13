"""Which text is trained on and which is held out."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from gptjax.core.config import require
from gptjax.data.documents.sources import Document, Records, Source


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

    @classmethod
    def of(cls, kind: str, share: float, source: Source, documents: int) -> Split:
        """Returns the rule of a config (`data.split` and `data.validation`) for a source."""
        records = isinstance(source, Records)
        by_document = kind == "documents" or (kind == "auto" and (documents >= 50 or records))
        holds_out = share > 0 or (records and source.held_out is not None)
        names = ("train", "validation") if holds_out else ("train",)
        return cls(share, by_document, names, documents)

    def parts(self, document: Document) -> dict[str, str]:
        """Returns what of a document is in each part. All answers to one text are in one part."""
        text, held_out = document.text, document.held_out
        if held_out is None and self.by_document:
            content = (document.source or text).encode("utf-8", "surrogatepass")
            number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
            held_out = number < self.share * 2**64
        if held_out is not None:
            return {"train": "" if held_out else text, "validation": text if held_out else ""}
        cut = int(len(text) * (1 - self.share))
        return {"train": text[:cut], "validation": text[cut:]}

    def require_some(self, any_text: bool, name: str) -> None:
        """Refuses a split that leaves a part empty."""
        require(
            any_text,
            f"data.validation {self.share} of {self.documents} documents leaves nothing for {name};"
            " use another share (--data.validation 0.1) or hold out tails (--data.split tail).",
        )
