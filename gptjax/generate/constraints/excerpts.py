"""The excerpts of a text: every run of its whole words and marks, as a language.

A suffix automaton over words accepts all runs with at most twice as many states as the text has
words, so that a page is no larger a constraint than a list of its sentences.
"""

from __future__ import annotations

import re

from gptjax.core.config import require
from gptjax.generate.constraints.languages import EMPTY, Graph, Language, alt, exactly, seq

_UNIT = re.compile(r"(\s*)(\w+|[^\w\s])")


def excerpt(text: str) -> Language:
    """Any run of words and punctuation marks of a text, verbatim; a space may come first, and what
    the text has between words (a line break, several spaces) is one space.

    Raises:
      ConfigError: the text has no word.

    Source: Blumer et al. 1985, The Smallest Automaton Recognizing the Subwords of a Text.
    """
    units = [f"{' ' if space else ''}{unit}" for space, unit in _UNIT.findall(text.strip())]
    require(
        bool(units), "excerpt is empty; give the text that the answer is a part of (--excerpt)."
    )
    steps = _suffix_automaton(units)
    edges = []
    for state, after in enumerate(steps):
        for unit, to in after.items():
            bare = exactly(unit.lstrip())
            first = seq(alt(exactly(" "), EMPTY), bare)
            edges.append((state, first if state == 0 else exactly(unit), to))
    return Graph(tuple(edges), frozenset(range(1, len(steps))))


def _suffix_automaton(units: list[str]) -> list[dict[str, int]]:
    """The steps of each state; state 0 is before the first unit, and every state ends a run."""
    steps: list[dict[str, int]] = [{}]
    link, length = [-1], [0]
    last = 0
    for unit in units:
        new, state = len(steps), last
        steps.append({})
        link.append(0)
        length.append(length[last] + 1)
        while state >= 0 and unit not in steps[state]:
            steps[state][unit] = new
            state = link[state]
        if state >= 0:
            to = steps[state][unit]
            if length[to] != length[state] + 1:  # runs of two lengths meet in one state: split it
                copy = len(steps)
                steps.append(dict(steps[to]))
                link.append(link[to])
                length.append(length[state] + 1)
                link[to] = copy
                while state >= 0 and steps[state].get(unit) == to:
                    steps[state][unit] = copy
                    state = link[state]
                to = copy
            link[new] = to
        last = new
    return steps
