"""A made-up evaluation with everything that a report may hold: `made_report`."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.figures.calibration import calibrate, option_probabilities, padded_scores
from gptjax.evaluate.figures.classes import confusion_of
from gptjax.evaluate.report import (
    Average,
    Bin,
    Calibration,
    Comparison,
    Confusion,
    Flip,
    Identity,
    Item,
    Measure,
    Report,
    TaskReport,
)

LABELS = ("negative", "positive", "mixed")
IDENTITY = Identity("ab" * 32, {"records": "11" * 32, "weights": "22" * 32}, ("a GPU rounds",))


def choice_items(n: int, seed: int, options: tuple[str, ...], skill: float) -> list[Item]:
    """Returns items whose right option is likelier by `skill` nats on average."""
    draw, items = np.random.default_rng(seed), []
    for number in range(1, n + 1):
        gold = int(
            draw.choice(len(options), p=[0.5, *[0.5 / (len(options) - 1)] * (len(options) - 1)])
        )
        scores = draw.normal(-4, 1, len(options))
        scores[gold] += skill
        chosen = int(scores.argmax())
        items.append(
            Item(
                id=str(number),
                form="cloze",
                prompt=f"Review {number}: the film was <b>long</b> & loud.\nSentiment:",
                options=options,
                gold=gold,
                chosen=chosen,
                logprobs=tuple(map(float, scores)),
                tokens=(1,) * len(options),
                values={"acc": float(chosen == gold), "acc_norm": float(chosen == gold)},
                truncated=number == 3,
            )
        )
    return items


def choice_task(name: str, n: int = 200, seed: int = 0, skill: float = 1.5) -> TaskReport:
    """Returns a task of choices with calibration and confusion."""
    items = choice_items(n, seed, LABELS, skill)
    gold, chosen = [one.gold for one in items], [one.chosen for one in items]
    made = calibrate([one.logprobs for one in items], gold)
    acc = Measure("acc", mean_of([one.values["acc"] for one in items]), 1 / 3, gold.count(0) / n)
    return TaskReport(
        name=name,
        file=f"{name}.jsonl",
        shape="choices",
        headline="acc",
        measures=(acc, Measure("nats", mean_of([2.0, 3.0, 2.5]), better="lower", unit="nats")),
        n=n,
        of=n + 50,
        sample=f"{n} of {n + 50}, drawn with seed 0",
        settings={"shots": 2, "seed": 0, "prompt": {"question": "{question}", "cue": "\nA:"}},
        identity=IDENTITY,
        items=tuple(items),
        calibration=(
            Calibration(
                "cloze",
                (
                    Measure("ece", made.ece, better="lower"),
                    Measure("ece_scaled", made.ece_scaled, better="lower"),
                    Measure("selective_area", made.selective_area),
                ),
                made.temperature,
                tuple(Bin(*bar) for bar in made.bins),
            ),
        ),
        confusion=(Confusion("cloze", LABELS, confusion_of(gold, chosen, 3)),),
        requests=6 * n,
        tokens_read=40 * n,
        tokens_alone=100 * n,
        tokens_written=7,
        seconds=12.5,
        truncated=1,
        notes=(f"calibration over {n} items; ten bins need about 300",),
    )


def written_task() -> TaskReport:
    """Returns a task whose answers are written, and count by a share between 0 and 1."""
    items = tuple(
        Item(
            id=str(number),
            form="",
            prompt=f"Summarize text {number}.",
            answers=("a summary", "another"),
            written=f"a summary {number}",
            values={"f1": number / 9},
        )
        for number in range(1, 9)
    )
    f1 = Measure("f1", mean_of([one.values["f1"] for one in items]), majority=0.2)
    return TaskReport(
        name="summaries",
        file="s.jsonl",
        shape="free",
        headline="f1",
        measures=(f1,),
        n=8,
        of=8,
        sample="all 8",
        settings={},
        identity=dataclasses.replace(IDENTITY, not_reproducible=()),
        items=items,
        requests=8,
        seconds=3.0,
    )


def text_task() -> TaskReport:
    """Returns a task of whole texts, whose figure is no share and no mean over items."""
    items = tuple(
        Item(str(n), "", "", (f"text {n}",), logprobs=(-9.0 * n,), tokens=(3,)) for n in (1, 2)
    )
    bits = Measure("bits_per_byte", mean_of([1.1, 1.3, 0.9]), better="lower", unit="bits")
    return dataclasses.replace(
        written_task(),
        name="books",
        shape="text",
        headline=bits.name,
        measures=(bits,),
        items=items,
    )


def made_report() -> Report:
    """Returns a report of four tasks, compared with another evaluation."""
    reviews = choice_task("reviews")
    hard = choice_task("hard & <odd>", n=40, seed=1, skill=0.0)
    difference = mean_of([0.0] * 90 + [1.0] * 7 + [-1.0] * 3)
    flips = (*(Flip(str(n), 0.0, 1.0) for n in range(1, 8)), Flip("9", 1.0, 0.0))
    comparison = Comparison(
        "reviews", "acc", "older <model>", difference, 0.34, 7, 3, flips, ("other shots: 0, now 2",)
    )
    return Report(
        model="runs/tiny <script>alert(1)</script>",
        parameters=1_234_567,
        tasks=(reviews, hard, written_task(), text_task()),
        averages=(Average("core", mean_of([0.4, 0.1, 0.2]), ("reviews", "hard & <odd>")),),
        comparisons=(comparison,),
        versions={"gptjax": "0", "device": "cpu"},
        created="2026-11-30T12:00:00Z",
        seconds=40.0,
    )


def confidences(items: list[Item]) -> list[float]:
    """Returns the largest probability among the options of each item."""
    return option_probabilities(padded_scores([one.logprobs for one in items])).max(1).tolist()


NAN_MEASURE = Measure("acc", mean_of([1.0])._replace(low=math.nan, high=math.nan))
"""A figure without an interval."""
