"""A search for a prompt: a small grid of templates, label words, examples and forms over labelled
items. One half of them selects, the other half says what the selection is worth.

Read `grid_of`, then `search_prompts`; `labelled` decides which items are in which half. Nothing of
the held-out half is asked before the choice is made, and nothing depends on the order of the items
or of the candidates.

The best of many candidates looks better than it is on the items that chose it. So the gain over the
mean of the grid, which is what a prompt chosen blindly would reach, is given for both halves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from gptjax.core.config import require
from gptjax.data.prompt_library import (
    ANSWER,
    PromptTemplate,
    Values,
    answer_after,
    choose_prompt,
    prompt_messages,
    prompt_text,
)
from gptjax.evaluate.figure import Figure, mean_of
from gptjax.evaluate.labelled import LabelledItem, halves_of, shots_for
from gptjax.evaluate.requests import Request, Response, Score, Scored
from gptjax.evaluate.tasks import Chat


class PromptCandidate(NamedTuple):
    """One way to ask."""

    template: PromptTemplate
    words: Mapping[str, str]
    """Label → word."""
    shots: int
    """Examples before each question."""
    form: str
    """`text` or `chat`."""

    @property
    def name(self) -> str:
        """Says which it is; by it ties are broken."""
        words = "/".join(self.words[label] for label in sorted(self.words))
        return f"{self.template.name} · {words} · {self.shots} shots · {self.form}"


class CandidateFigures(NamedTuple):
    """The accuracy of a candidate."""

    name: str
    selection: Figure
    """On the items that select."""
    held_out: Figure


class PromptSearch(NamedTuple):
    """What a search found."""

    chosen: PromptCandidate
    examples: tuple[Values, ...]
    """Those that the chosen prompt shows."""
    rows: tuple[CandidateFigures, ...]
    """Of all candidates, the best on the selection half first."""
    gain: Figure
    """Accuracy of the chosen one over the mean of the grid, on the half that selected it: too
    good."""
    held_out_gain: Figure
    """The same on the other half."""
    survived: float | None
    """`held_out_gain` over `gain`; `None` where nothing was gained."""
    majority: float
    """Share of the commonest label in the held-out half."""

    @property
    def held_out(self) -> Figure:
        """The figure of the chosen prompt that can be published."""
        return self.rows[0].held_out


def grid_of(
    library: Mapping[str, PromptTemplate],
    items: Sequence[LabelledItem],
    *,
    named: Sequence[str] = (),
    shots: Sequence[int] = (0,),
    forms: Sequence[str] = ("text",),
    where: str = "the library",
) -> list[PromptCandidate]:
    """Returns every way to ask: each template that fits the items, with each choice of its words,
    number of examples and form.

    A template fits if the items have values of all its variables, and its labels are theirs. One
    without labels is tried only where it is named; its words are the labels.

    Args:
      named: templates to try, which have to fit; none tries all of the library that fit.

    Raises:
      ConfigError: a named template does not fit, or none does.
    """
    labels = sorted({item.label for item in items})
    chosen = [choose_prompt(library, name, where) for name in named] or list(library.values())
    fitting, reasons = [], []
    for template in chosen:
        reason = _misfit(template, items[0], labels, is_named=bool(named))
        require(not (reason and named), f"{where}: {template.name} {reason}.")
        if reason:
            reasons.append(f"{template.name} {reason}")
        else:
            fitting.append(template)
    require(bool(fitting), f"no prompt of {where} fits the items: {'; '.join(reasons[:4])}.")
    return [
        PromptCandidate(template, words, count, form)
        for template in fitting
        for words, count, form in itertools.product(
            template.labels or ({label: label for label in labels},),
            dict.fromkeys(shots),
            dict.fromkeys(forms),
        )
    ]


def _misfit(
    template: PromptTemplate, item: LabelledItem, labels: Sequence[str], *, is_named: bool
) -> str:
    """Why a template cannot ask for the items; empty if it can."""
    needed = [name for name in template.variables if name not in template.defaults]
    missing = [name for name in needed if name not in item.values]
    if missing:
        return f"needs {missing[0]!r}, and the items have {', '.join(item.values)}"
    if not template.labels:
        return "" if is_named else "has no labels"
    if sorted(template.labels[0]) != list(labels):
        return f"has the labels {', '.join(template.labels[0])}, and the items {', '.join(labels)}"
    return ""


Ask = Callable[[Sequence[Request]], Sequence[Response]]


def search_prompts(
    ask: Ask,
    candidates: Sequence[PromptCandidate],
    items: Sequence[LabelledItem],
    *,
    seed: int = 0,
    chat: Chat | None = None,
) -> PromptSearch:
    """Returns the candidate with the highest accuracy on one half of the items, and the accuracy of
    all on the other half. Of equal ones the first by name is chosen.

    Args:
      ask: requests → responses in their order, such as `respond` of a model.
      seed: divides the items and draws examples.
      chat: writes the form `chat`.

    Raises:
      ConfigError: there are no candidates, or too few items or examples.
    """
    require(bool(candidates), "no prompt fits the items; see --prompts.")
    ordered = sorted(candidates, key=lambda one: one.name)
    names = [one.name for one in ordered]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"two candidates are called {twice}; rename one of the templates.")
    selection, held_out = halves_of(items, seed)
    hits = np.array([_hits(ask, one, selection, selection, seed, chat) for one in ordered])
    best = int(np.argmax(hits.mean(1)))  # the first of equal ones
    others = np.array([_hits(ask, one, held_out, selection, seed, chat) for one in ordered])
    order = sorted(range(len(ordered)), key=lambda n: (n != best, -hits[n].mean(), names[n]))
    gain = mean_of(hits[best] - hits.mean(0))
    kept = mean_of(others[best] - others.mean(0))
    labels = [item.label for item in held_out]
    return PromptSearch(
        chosen=ordered[best],
        examples=_examples(ordered[best], shots_for(None, selection, ordered[best].shots, seed)),
        rows=tuple(CandidateFigures(names[n], mean_of(hits[n]), mean_of(others[n])) for n in order),
        gain=gain,
        held_out_gain=kept,
        survived=kept.value / gain.value if gain.value > 0 else None,
        majority=max(labels.count(label) for label in set(labels)) / len(labels),
    )


# --- asking


def candidate_requests(
    candidate: PromptCandidate,
    item: LabelledItem,
    shots: Sequence[LabelledItem],
    chat: Chat | None = None,
) -> list[Request]:
    """Returns a request for each label's word, in the order of the labels."""
    template, names = candidate.template, set(candidate.template.variables)
    values = {name: value for name, value in item.values.items() if name in names}
    examples = _examples(candidate, shots)
    words = [candidate.words[label] for label in sorted(candidate.words)]
    if candidate.form == "chat":
        require(chat is not None, "the form chat needs a chat template.")
        assert chat is not None
        ids = chat.write(prompt_messages(template, values, [*template.examples, *examples]))
        return [Score(tuple(ids), word) for word in words]
    context = prompt_text(template, values, [*template.examples, *examples])
    return [Score(context, answer_after(context, word)) for word in words]


def _examples(
    candidate: PromptCandidate, shots: Iterable[LabelledItem]
) -> tuple[dict[str, Any], ...]:
    names = set(candidate.template.variables)
    return tuple(
        {name: value for name, value in one.values.items() if name in names}
        | {ANSWER: candidate.words[one.label]}
        for one in shots
    )


def _hits(
    ask: Ask,
    candidate: PromptCandidate,
    items: Sequence[LabelledItem],
    pool: Sequence[LabelledItem],
    seed: int,
    chat: Chat | None,
) -> list[float]:
    """1 for each item whose right word is the likeliest, the first of equal ones."""
    labels = sorted(candidate.words)
    missing = next((item.label for item in items if item.label not in candidate.words), None)
    require(missing is None, f"{candidate.name} has no word for the label {missing!r}.")
    asked = [
        candidate_requests(candidate, item, shots_for(item, pool, candidate.shots, seed), chat)
        for item in items
    ]
    responses = cast(Sequence[Scored], ask([request for one in asked for request in one]))
    scores = np.array([one.logprob for one in responses]).reshape(len(items), len(labels))
    return [
        float(labels[take] == item.label)
        for take, item in zip(scores.argmax(1), items, strict=True)
    ]
