"""Drops texts by the labels of a classifier that gptjax trained, such as one of toxicity or of
topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gptjax.clean.records import Item
from gptjax.clean.stage import Outcome, Stage, dropped_item
from gptjax.core.config import nearest, require
from gptjax.data.cleaning import Classify

BATCH = 8
"""Texts that are classified together."""


def classifier_stage(settings: Classify) -> Stage | None:
    """Returns the stage that drops texts of some labels; `None` without a classifier.

    A text that is longer than the model's context is judged by its beginning.

    Raises:
      ConfigError: the run can't be opened, does not classify, or lacks a label.
    """
    if settings.run is None:
        return None
    from gptjax.api import load
    from gptjax.data.tasks import Classification
    from gptjax.generate.labels import classify

    model = load(settings.run)
    task = model.task
    require(
        isinstance(task, Classification),
        f"{settings.run} does not classify; train a run with --data.task classification and pass"
        " it with --classifier.run.",
    )
    assert isinstance(task, Classification)
    for label in settings.drop:
        require(
            label in task.labels,
            f"classifier.drop has {label!r}, which is no label of {settings.run}"
            f" ({', '.join(task.labels[:20])}).{nearest(label, task.labels)}",
        )

    def stage(items: Sequence[Item]) -> Outcome:
        import math

        kept, dropped, counts = [], [], Counter()
        labelled = classify(
            model.config, model.params, model.tokenizer, task, [i.text for i in items], BATCH
        )
        for item, one in zip(items, labelled, strict=True):
            counts[one.label] += 1
            label = max(settings.drop, key=one.logprobs.__getitem__)
            probability = math.exp(one.logprobs[label])
            if probability >= settings.min_probability:
                dropped.append(dropped_item(item, f"classifier_{label}", probability))
            else:
                kept.append(item)
        return Outcome(kept, dropped, counts)

    return stage
