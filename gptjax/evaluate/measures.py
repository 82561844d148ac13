"""Items become measures: each figure with its error, what chance and the commonest answer reach,
and for choices how calibrated they are and which are confused.

Read `measure`, then `baselines`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.core.config import nearest, require
from gptjax.evaluate.counting import (
    RULES,
    bytes_and_words,
    measure_name,
    nats_of,
    right_answers,
    text_scores,
)
from gptjax.evaluate.figure import Figure, mean_of
from gptjax.evaluate.figures import written
from gptjax.evaluate.figures.calibration import ENOUGH, calibrate
from gptjax.evaluate.figures.classes import confusion_of, macro_f1
from gptjax.evaluate.figures.text import normalised, right_number, words_of
from gptjax.evaluate.figures.totals import exp_of, ratio_of
from gptjax.evaluate.prompt_form import LETTERS
from gptjax.evaluate.records import (
    Choices,
    Contexts,
    Continuation,
    Free,
    Pair,
    Question,
    Record,
    Whole,
)
from gptjax.evaluate.report import Bin, Calibration, Confusion, Item, Measure
from gptjax.evaluate.tasks import TaskConfig, forms_of

LABELS = 100
"""Labels up to which a confusion matrix is worth its space, and groups up to which each has a
figure."""
TEXT = ("exact_match", "f1", "contained")
NUMBERS = ("number_flexible", "number_strict")
WHOLE = ("bits_per_byte", "byte_perplexity", "word_perplexity", "token_perplexity")
LOWER = {"perplexity", "nats", "bits", *WHOLE}
"""Measures of which less is better."""
UNITS = {"bits": "per text", "logprob_difference": "nats", "nats": "per item"}


class Measured(NamedTuple):
    """All figures of a task."""

    headline: str
    measures: tuple[Measure, ...]
    calibration: tuple[Calibration, ...]
    confusion: tuple[Confusion, ...]
    notes: tuple[str, ...]


def metrics_for(records: Sequence[Record]) -> tuple[str, ...]:
    """Returns the measures by which a task of such records may count, the default first.

    Those that need a package are among them, installed or not.
    """
    first = records[0]
    if isinstance(first, Choices):
        return RULES
    if isinstance(first, Continuation):
        return ("acc", "perplexity", "nats", "bits_per_byte")
    if isinstance(first, Pair):
        return ("stereotype" if first.bias else "acc", "logprob_difference")
    if isinstance(first, Free):
        return ("f1", *written.ROUGE, *written.CORPUS)
    if isinstance(first, Whole):
        return WHOLE
    if isinstance(first, Question):
        numbers = all(right_number(r.answer) is not None for r in records if type(r) is Question)
        return (*NUMBERS, *TEXT) if numbers else TEXT
    return ("acc",)


def chosen_metric(task: TaskConfig, records: Sequence[Record]) -> str:
    """Returns the measure by which the task counts, before the better form is known.

    Raises:
      ConfigError: the records do not have it, or its package is not installed.
    """
    known = metrics_for(records)
    metric = task.metric or known[0]
    require(
        metric in known,
        f"{task.name} counts by {metric!r}; its records have {', '.join(known)} (--metric)."
        f"{nearest(metric, known)}",
    )
    if metric in written.CORPUS:
        written.corpus_figures(["a"], [["a"]])
    if metric in written.ROUGE:
        written.rouge_scores("a", ["a"])
    return metric


def measure(task: TaskConfig, records: Sequence[Record], items: Sequence[Item]) -> Measured:
    """Returns all figures of a task.

    Of choices in both forms the headline is the better one, as OLMES counts.

    Args:
      records: those that were asked.
      items: all of a form, in the order of the records, then all of the next.

    Source of the rule: Gu et al. 2024, OLMES, arXiv:2406.08446.
    """
    metric = chosen_metric(task, records)
    measures: dict[str, Measure] = {}
    calibration, confusion, notes = [], [], []
    forms = forms_of(task, records)
    for form in forms:
        own = [item for item in items if item.form == form]
        measures |= {one.name: one for one in _means(records, own, form)}
        if isinstance(records[0], Choices):
            calibration.append(_calibration(own, form))
            for made, f1 in _confusions(records, own, form):
                confusion.append(made)
                measures[f1.name] = f1
    measures |= {one.name: one for one in _others(records, items)}
    candidates = [metric if form != "letters" else "letters/acc" for form in forms]
    headline = max(candidates, key=lambda name: measures[name].figure.value)
    measures |= {one.name: one for one in _groups(records, items, headline, forms)}
    if calibration and len(records) < ENOUGH:
        notes.append(f"calibration over {len(records)} items; ten bins need about {ENOUGH}")
    notes += _silent(items)
    order = [headline, *(name for name in measures if name != headline)]
    return Measured(
        headline,
        tuple(measures[name] for name in order),
        tuple(calibration),
        tuple(confusion),
        tuple(notes),
    )


def _silent(items: Sequence[Item]) -> list[str]:
    """A note where a model wrote nothing, which a stop text at the beginning causes too."""
    empty = sum(bool(item.answers) and not item.written.strip() for item in items)
    told = f"{empty} of {len(items)} answers are empty: the model ended them, or began a new line"
    more = "at once; examples (--shots 5) or its chat template (--template own) may show it how"
    return [f"{told} {more}"] if empty else []


# --- means over items


class Baseline(NamedTuple):
    """What costs nothing."""

    chance: float | None = None
    majority: float | None = None


def baselines(records: Sequence[Record], name: str, form: str = "") -> Baseline:
    """Returns what random choices and the commonest answer reach by a measure.

    The commonest answer of choices is a text where all records share their choices, else a
    position; it is the commonest of these records, so that no constant answer does better.
    """
    first, plain = records[0], name.removeprefix("letters/")
    if isinstance(first, Choices | Contexts) and plain in RULES:
        counts = [_options(record) for record in records]
        chance = float(np.mean([1 / count for count in counts]))
        shared = form != "letters" and shared_labels(records)
        gold = (r.choices[r.gold] if shared else r.gold for r in records)
        return Baseline(chance, _commonest(gold, len(records)))
    if isinstance(first, Pair):
        return Baseline(0.5) if plain in ("acc", "stereotype") else Baseline()
    if isinstance(first, Continuation) and plain == "acc":
        return Baseline(None, _commonest((r.continuation for r in records), len(records)))
    if isinstance(first, Question):
        return Baseline(None, _constant(records, plain))
    return Baseline()


def shared_labels(records: Sequence[Record]) -> tuple[str, ...]:
    """Returns the choices that all records share, or nothing."""
    shared = {record.choices for record in records if isinstance(record, Choices)}
    return shared.pop() if len(shared) == 1 else ()


def _options(record: Record) -> int:
    return len(record.choices if isinstance(record, Choices) else record.contexts)


def _commonest(values: Iterable, n: int) -> float:
    return Counter(values).most_common(1)[0][1] / n


def _constant(records: Sequence[Record], name: str) -> float | None:
    """What the answer that is right most often reaches by a measure."""
    rights = [right_answers(record) for record in records]
    counts = Counter(word for right in rights for word in {normalised(one) for one in right})
    answer = next((word for word, _ in counts.most_common() if word), "")
    if name in NUMBERS:
        answer = Counter(str(right_number(right[0])) for right in rights).most_common(1)[0][0]
        answer = f"#### {answer}" if "####" in rights[0][0] else answer
    scores = [text_scores(record).get(name) for record in records]
    values = [s(answer, right) for s, right in zip(scores, rights, strict=True) if s is not None]
    return float(np.mean(values)) if values else None


def _means(records: Sequence[Record], items: Sequence[Item], form: str) -> Iterator[Measure]:
    """A measure for each value that all items of a form have."""
    names = [name for name in items[0].values if all(name in item.values for item in items)]
    for name in names:
        beside = baselines(records, name, form)
        yield Measure(
            name,
            mean_of([item.values[name] for item in items]),
            beside.chance,
            beside.majority,
            better=_better(name),
            unit=UNITS.get(name, ""),
        )


def _better(name: str) -> str:
    if name == "stereotype":
        return ""
    return "lower" if name in LOWER else "higher"


def _groups(
    records: Sequence[Record], items: Sequence[Item], headline: str, forms: Sequence[str]
) -> Iterator[Measure]:
    """The headline of each group of records, where they have some."""
    form = "letters" if headline.startswith("letters/") else forms[0]
    own = [item for item in items if item.form == form]
    names = sorted({record.group for record in records})
    if not 2 <= len(names) <= LABELS or any(headline not in item.values for item in own):
        return
    for group in names:
        inside = [at for at, record in enumerate(records) if record.group == group]
        beside = baselines([records[at] for at in inside], headline, form)
        yield Measure(
            f"{headline} ({group or 'no group'})",
            mean_of([own[at].values[headline] for at in inside]),
            beside.chance,
            beside.majority,
            better=_better(headline),
        )


# --- other statistics


def _others(records: Sequence[Record], items: Sequence[Item]) -> Iterator[Measure]:
    """Figures that are no means over items."""
    first = records[0]
    if isinstance(first, Continuation):
        nats = [item.values["nats"] for item in items]
        size = [len(item.options[0].encode()) for item in items]
        yield _lower("perplexity", exp_of(mean_of(nats)))
        yield _lower("bits_per_byte", ratio_of(np.array(nats) / np.log(2), size))
    if isinstance(first, Free):
        yield from _corpus(records, items)
    if isinstance(first, Whole):
        yield from _rolled(records, items)


def _lower(name: str, figure: Figure) -> Measure:
    return Measure(name, figure, better="lower", unit=UNITS.get(name, ""))


def _rolled(records: Sequence[Record], items: Sequence[Item]) -> Iterator[Measure]:
    nats = np.array([nats_of(item) for item in items])
    sizes = [bytes_and_words(record.text) for record in records if isinstance(record, Whole)]
    lengths, words = [size for size, _ in sizes], [count for _, count in sizes]
    tokens = [item.tokens[0] for item in items]
    yield _lower("bits_per_byte", ratio_of(nats / np.log(2), lengths))
    yield _lower("byte_perplexity", exp_of(ratio_of(nats, lengths)))
    yield _lower("word_perplexity", exp_of(ratio_of(nats, words)))
    yield _lower("token_perplexity", exp_of(ratio_of(nats, tokens)))


def _corpus(records: Sequence[Record], items: Sequence[Item]) -> Iterator[Measure]:
    """BLEU and chrF, where sacrebleu is installed."""
    if "bleu" not in written.available():
        return
    references = [right_answers(record) for record in records]
    single = [words_of(one) for right in references for one in right]
    cjk = sum(len(word) == 1 and word > "\u3000" for words in single for word in words)
    split = "zh" if 2 * cjk > sum(map(len, single)) else "13a"
    figures = written.corpus_figures([item.written for item in items], references, split)
    for name, figure in figures.items():
        yield Measure(name, figure, unit="0 to 100")


# --- choices as probabilities and classes


def _calibration(items: Sequence[Item], form: str) -> Calibration:
    made = calibrate([item.logprobs for item in items], [item.gold or 0 for item in items])
    lower = {"ece", "ece_1", "brier", "ece_unscaled", "ece_scaled"}
    measures = tuple(
        Measure(measure_name(form, name), figure, better="lower" if name in lower else "higher")
        for name, figure in made._asdict().items()
        if isinstance(figure, Figure)
    )
    return Calibration(form, measures, made.temperature, tuple(Bin(*bar) for bar in made.bins))


def _confusions(
    records: Sequence[Record], items: Sequence[Item], form: str
) -> Iterator[tuple[Confusion, Measure]]:
    """The confusion of labels that all records share, or of the letters of as many choices."""
    counts = {_options(record) for record in records}
    labels = tuple(LETTERS[: max(counts)]) if form == "letters" else shared_labels(records)
    if not labels or len(counts) > 1 or len(labels) > LABELS or len(records) < 2:
        return
    gold = [item.gold or 0 for item in items]
    chosen = [item.chosen or 0 for item in items]
    constant = [Counter(gold).most_common(1)[0][0]] * len(gold)
    figure = macro_f1(gold, chosen, len(labels))
    majority = macro_f1(gold, constant, len(labels)).value
    yield (
        Confusion(form, labels, confusion_of(gold, chosen, len(labels))),
        Measure(measure_name(form, "macro_f1"), figure, majority=majority),
    )
