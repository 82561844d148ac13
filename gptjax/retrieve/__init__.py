"""Passages that answer a question: found by terms and by embeddings, numbered, and cited.

Read `terms` (how a text is split), `index` (scores and their fusion), `citing` (what a model is
told, and whether what it cites exists).
"""

from gptjax.retrieve.citing import (
    cited,
    citing_pattern,
    grounded_messages,
    quotes,
    quoting_messages,
    within_budget,
)
from gptjax.retrieve.index import Found, Index, build_index, search_passages
from gptjax.retrieve.terms import learn_compounds, split_terms

__all__ = [
    "Found",
    "Index",
    "build_index",
    "cited",
    "citing_pattern",
    "grounded_messages",
    "learn_compounds",
    "quotes",
    "quoting_messages",
    "search_passages",
    "split_terms",
    "within_budget",
]
