"""An index of passages: BM25 over their terms, similarity of their embeddings, and both fused.

Read `Index`, `build_index` and `search_passages`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.retrieve.terms import learn_compounds, split_terms

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts → vectors of length 1 [texts, D], such as `Model.embed`."""

FUSION = 60
"""Added to ranks before they are fused, so that the first of one ranking does not outweigh all of
the other. Source: Cormack, Clarke and Büttcher 2009, Reciprocal Rank Fusion."""


class Index(NamedTuple):
    """Passages and what finds them."""

    passages: tuple[str, ...]
    terms: Any
    """BM25's table, from `bm25s`."""
    compounds: frozenset[str]
    vectors: np.ndarray | None
    """Embeddings [passages, D]; `None` finds by terms alone."""


class Found(NamedTuple):
    """A passage that was found."""

    number: int
    """Its place among the passages."""
    text: str
    score: float
    """BM25 of its terms; 0 if it has no term of the question."""
    similarity: float
    """Cosine of the embeddings; not a number without them."""


def build_index(
    passages: Sequence[str], embed: Embed | None = None, *, compounds: bool = False
) -> Index:
    """Indexes passages.

    Args:
      embed: gives embeddings, as a second score.
      compounds: split words that are made of others, as German ones are.

    Raises:
      ConfigError: there is no passage, or none has a term.
    """
    import bm25s  # an extra of its own

    require(bool(passages), "there is no passage to index; give at least one.")
    known = learn_compounds(passages) if compounds else frozenset()
    split = [split_terms(text, known) for text in passages]
    require(any(split), "no passage has a word; give texts.")
    table = bm25s.BM25(method="lucene")
    table.index(split, show_progress=False)
    return Index(tuple(passages), table, known, embed(passages) if embed else None)


def search_passages(
    index: Index,
    question: str,
    count: int = 5,
    embed: Embed | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
) -> list[Found]:
    """Returns the best passages for a question, the best first: by BM25 or, with embeddings, by
    both ranks. Without embeddings a passage needs a term of the question.

    Args:
      embed: what the index was built with; `None` leaves its embeddings out.
      weights: of the ranks by BM25 and by embeddings.
    """
    scores = term_scores(index, question)
    if embed is None or index.vectors is None:
        order = [i for i in ranking(scores)[:count] if scores[i] > 0]
        return [Found(int(i), index.passages[i], float(scores[i]), np.nan) for i in order]
    similar = index.vectors @ embed([question])[0]
    order = ranking(fused([scores, similar], weights))[:count]
    return [Found(int(i), index.passages[i], float(scores[i]), float(similar[i])) for i in order]


def term_scores(index: Index, question: str) -> np.ndarray:
    """Returns BM25 of each passage for a question [passages]."""
    terms = split_terms(question, index.compounds)
    known = [term for term in terms if term in index.terms.vocab_dict]
    if not known:
        return np.zeros(len(index.passages), np.float32)
    return index.terms.get_scores(known)


def fused(scores: Sequence[np.ndarray], weights: Sequence[float] = (1.0, 1.0)) -> np.ndarray:
    """Returns the weighted sum of reciprocal ranks over several scores of the same passages
    [passages]."""
    total = np.zeros(len(scores[0]))
    for each, weight in zip(scores, weights, strict=True):
        ranks = np.empty(len(each), np.int64)
        ranks[ranking(each)] = np.arange(1, len(each) + 1)
        total += weight / (FUSION + ranks)
    return total


def ranking(scores: np.ndarray) -> np.ndarray:
    """Returns places by score, the highest first; equal ones in their own order."""
    return np.argsort(-scores, kind="stable")
