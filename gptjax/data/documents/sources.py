"""The text sources of a config: files, a data set, a mixture of these, records of two texts,
conversations, judged answers, problems, or puzzles.

Read `Mixture` (the others have files of their own), then `read_documents`, which yields their
documents one at a time; then `survey`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from gptjax.core import remote
from gptjax.core.config import require
from gptjax.data.documents.comparisons import Comparisons, read_comparisons
from gptjax.data.documents.conversations import Conversations, read_conversations
from gptjax.data.documents.document import Document
from gptjax.data.documents.folders import matching
from gptjax.data.documents.idx import Idx, read_idx
from gptjax.data.documents.media import Media, read_media
from gptjax.data.documents.moving import MovingShapes, read_moving
from gptjax.data.documents.problems import Problems, read_problems
from gptjax.data.documents.puzzles import Puzzles, read_puzzles
from gptjax.data.documents.records import Records, read_records
from gptjax.data.documents.shapes import Shapes, read_shapes
from gptjax.data.documents.text import Text, read_text_files
from gptjax.data.documents.tfds import Tfds, prepare_tfds, read_tfds

__all__ = [
    "Comparisons",
    "Conversations",
    "Document",
    "Idx",
    "Media",
    "Mixture",
    "MovingShapes",
    "Problems",
    "Puzzles",
    "Records",
    "Shapes",
    "Source",
    "Survey",
    "Text",
    "Tfds",
    "digested",
    "prepare_tfds",
    "read_documents",
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


Source = (
    Text
    | Records
    | Conversations
    | Comparisons
    | Problems
    | Puzzles
    | Media
    | Shapes
    | MovingShapes
    | Idx
    | Tfds
    | Mixture
)
Listener = Callable[[str], Any]


def is_there(source: Source) -> bool:
    """Whether the files of a source exist; of what else a source may be, true."""
    if isinstance(source, Mixture):
        return all(map(is_there, source.sources))
    paths = (getattr(source, "path", None), getattr(source, "held_out", None))
    return isinstance(source, Tfds | Puzzles | Shapes | MovingShapes) or all(
        p is None or remote.exists(p) for p in paths
    )


def fetched(source: Source) -> Source:
    """Returns the source with copies on this machine in place of URLs.

    Raises:
      ConfigError: nothing is at a URL, or it can't be reached.
    """
    if isinstance(source, Mixture):
        return replace(source, sources=tuple(map(fetched, source.sources)))
    paths = {name: getattr(source, name, None) or "" for name in ("path", "held_out")}
    urls = {name: path for name, path in paths.items() if remote.as_url(path)}
    pattern = getattr(source, "pattern", "**/*")
    copies = {
        name: str(remote.local_copy(url, lambda names: matching(names, pattern)))
        for name, url in urls.items()
    }
    return replace(source, **copies) if copies else source


def read_documents(
    source: Source, pass_over: Listener = str, leave_out: Listener = str
) -> Iterator[Document]:
    """Yields every document that isn't empty, in an order that is always the same.

    Args:
      pass_over: called with each record that a source's quota lets pass.
      leave_out: called with the name of each file of a folder that is binary.

    Raises:
      ConfigError: something can't be read, or there is no document at all. It is raised on the way,
        not at the call.
    """
    source = fetched(source)
    if isinstance(source, Mixture):
        return _read_mixture(source, pass_over, leave_out)
    if isinstance(source, Records):
        return read_records(source, pass_over)
    if isinstance(source, Conversations):
        return read_conversations(source, pass_over)
    if isinstance(source, Comparisons):
        return read_comparisons(source, pass_over)
    if isinstance(source, Problems):
        return read_problems(source, pass_over)
    if isinstance(source, Puzzles):
        return read_puzzles(source)
    if isinstance(source, Media):
        return read_media(source, pass_over)
    if isinstance(source, Shapes):
        return read_shapes(source)
    if isinstance(source, MovingShapes):
        return read_moving(source)
    if isinstance(source, Idx):
        return read_idx(source)
    if isinstance(source, Text):
        return read_text_files(source, pass_over, leave_out)
    return read_tfds(source)


class Survey(NamedTuple):
    """What one reading of a source finds out."""

    fingerprint: str
    """The sha256, in hex, of all documents with their names."""
    documents: int
    """Number of documents."""
    passed_over: tuple[str, ...]
    """Place and defect of each record that could not be read."""
    left_out: tuple[str, ...] = ()
    """Names of binary files."""
    labels: tuple[str, ...] = ()
    """The different answers of records, sorted, where they were asked for."""


def survey(
    source: Source, labels: bool = False, visit: Callable[[Document], Any] | None = None
) -> Survey:
    """Reads the whole source.

    Args:
      labels: collect the different answers.
      visit: called with each document.
    """
    digest, passed_over, left_out = hashlib.sha256(), [], []
    count, answers = 0, set()
    documents = read_documents(source, passed_over.append, left_out.append)
    for document in digested(documents, digest):
        count += 1
        if labels:
            answers.add(document.text)
        if visit:
            visit(document)
    return Survey(
        fingerprint=digest.hexdigest(),
        documents=count,
        passed_over=tuple(passed_over),
        left_out=tuple(left_out),
        labels=tuple(sorted(answers)),
    )


def digested(documents: Iterable[Document], digest: Any) -> Iterator[Document]:
    """Yields the documents as they come, and adds each to a hash."""
    for document in documents:
        content = document.text.encode()
        digest.update(f"{document.name}\n{len(content)}\n".encode("utf-8", "surrogateescape"))
        digest.update(content)
        if document.source is not None:
            digest.update(
                f"\n{len(document.source)} {document.held_out}\n{document.source}".encode()
            )
        yield document


def _read_mixture(mixture: Mixture, pass_over: Listener, leave_out: Listener) -> Iterator[Document]:
    readers = [read_documents(source, pass_over, leave_out) for source in mixture.sources]
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
