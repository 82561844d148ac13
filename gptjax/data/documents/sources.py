"""What a config can name as its text: files, a data set, a mixture of these, or records of two
texts.

Read `Mixture` (`Text`, `Records` and `Tfds` have files of their own), then `read`, which gives
their documents one at a time; then `survey`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from gptjax.core.config import require
from gptjax.data.documents import files, records, tfds
from gptjax.data.documents.files import Document, Text
from gptjax.data.documents.records import Records
from gptjax.data.documents.tfds import Tfds, prepare_tfds

__all__ = [
    "Document",
    "Mixture",
    "Records",
    "Source",
    "Survey",
    "Text",
    "Tfds",
    "digested",
    "prepare_tfds",
    "read",
    "survey",
]


@dataclass(frozen=True)
class Mixture:
    """Documents of several sources in turn, so that each has its share of the bytes at any time.

    The mixture ends where the first source has no document left, so nothing is repeated and the
    shares hold to the end.
    """

    sources: tuple[Text | Tfds, ...]
    """What is mixed."""
    weights: tuple[float, ...]
    """The share of each source, up to a common factor."""

    def __post_init__(self) -> None:
        fits = 0 < len(self.sources) == len(self.weights)
        require(
            fits,
            f"data.source has {len(self.sources)} sources and {len(self.weights)} weights; it needs"
            " a weight for each source.",
        )
        good = all(math.isfinite(w) and w > 0 for w in self.weights)
        require(
            good,
            f"data.source.weights is {self.weights}; each needs to be above 0: pass"
            " --data.source.weights, or leave the source out.",
        )


Source = Text | Records | Tfds | Mixture


def read(source: Source, pass_over: Callable[[str], Any] = str) -> Iterator[Document]:
    """Gives every document that isn't empty, in an order that is always the same.

    Args:
      pass_over: is told of each record that a source's quota lets pass.

    Raises:
      ConfigError: something can't be read, or there is no document at all. It is raised on the way,
        not at the call.
    """
    if isinstance(source, Mixture):
        return _read_mixture(source, pass_over)
    if isinstance(source, Records):
        return records.read(source, pass_over)
    return files.read(source, pass_over) if isinstance(source, Text) else tfds.read(source)


class Survey(NamedTuple):
    """What one reading of a source tells of it."""

    fingerprint: str
    """The sha256, in hex, of all documents with their names."""
    documents: int
    passed_over: tuple[str, ...]
    """Where each record lies that could not be read, and why."""
    labels: tuple[str, ...] = ()
    """The different answers of records, sorted, where they were asked for."""


def survey(source: Source, labels: bool = False) -> Survey:
    """Reads the whole source, which tells what it is."""
    digest, bad, count, found = hashlib.sha256(), [], 0, set()
    for document in digested(read(source, bad.append), digest):
        count += 1
        if labels:
            found.add(document.text)
    return Survey(digest.hexdigest(), count, tuple(bad), tuple(sorted(found)))


def digested(documents: Iterable[Document], digest: Any) -> Iterator[Document]:
    """Gives the documents as they come, and takes each into a hash."""
    for document in documents:
        content = document.text.encode()
        digest.update(f"{document.name}\n{len(content)}\n".encode("utf-8", "surrogateescape"))
        digest.update(content)
        if document.source is not None:
            digest.update(
                f"\n{len(document.source)} {document.held_out}\n{document.source}".encode()
            )
        yield document


def _read_mixture(mixture: Mixture, pass_over: Callable[[str], Any]) -> Iterator[Document]:
    readers = [read(source, pass_over) for source in mixture.sources]
    shares = [weight / sum(mixture.weights) for weight in mixture.weights]
    given = [0] * len(readers)
    while True:
        owed = [share * sum(given) - had for share, had in zip(shares, given, strict=True)]
        chosen = owed.index(max(owed))
        document = next(readers[chosen], None)
        if document is None:
            return
        given[chosen] += len(document.text.encode())
        yield document
