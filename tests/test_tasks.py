"""Laws of tasks: what they hide can be found again, places are those of seed and row, and every
task trains."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from gptjax.core.config import ConfigError
from gptjax.data import Bytes, LanguageModel, MaskedLanguageModel, SpanCorruption, batches, store
from gptjax.data.tasks import tasks
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.model import bert, t5
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train

TOKENIZER = tokenizers.train(Bytes(), [])
SIZE, END = TOKENIZER.vocab_size, TOKENIZER.end_of_document


def some_ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n).astype(np.int32)


def test_a_backward_document_is_the_same_from_its_end():
    ids = some_ids(30)
    found = tasks.example(LanguageModel(backward=True), ids, TOKENIZER).ids
    assert found[0] == found[-1] == END and (found[1:-1] == ids[::-1]).all()
    assert (tasks.example(LanguageModel(), ids, TOKENIZER).ids[1:-1] == ids).all()


def test_a_middle_that_stands_last_can_be_put_back():
    moved = 0
    for n in range(200):
        ids = some_ids(1 + n % 40, n)
        found = tasks.example(LanguageModel(middle=0.5), ids, TOKENIZER).ids[1:-1]
        assert (
            found == tasks.example(LanguageModel(middle=0.5), ids, TOKENIZER).ids[1:-1]
        ).all(), "it is the document's own"
        if SIZE in found:
            moved += 1
            marks = [int(np.flatnonzero(found == SIZE + i)[0]) for i in range(3)]
            prefix, suffix, middle = (
                found[marks[0] + 1 : marks[1]],
                found[marks[1] + 1 : marks[2]],
                found[marks[2] + 1 :],
            )
            found = np.concatenate([prefix, middle, suffix])
        assert (found == ids).all()
    assert 70 < moved < 130


def test_masks_hide_their_share_and_nothing_else_changes():
    task, ids, real = MaskedLanguageModel(0.2), some_ids(20_000), np.arange(20_000) < 15_000
    shown, chosen = tasks.masked(task, ids, real, SIZE, np.random.default_rng(3))
    assert (shown == ids)[~chosen].all() and not chosen[15_000:].any()
    assert abs(chosen[:15_000].mean() - 0.2) < 0.01
    hidden, same = (shown == SIZE)[chosen].mean(), (shown == ids)[chosen].mean()
    assert abs(hidden - 0.8) < 0.03 and abs(same - 0.1) < 0.03


@pytest.mark.parametrize("length", [2, 3, 17, 512])
@pytest.mark.parametrize("task", [SpanCorruption(), SpanCorruption(0.5, 8.0)])
def test_spans_can_be_put_back_at_their_marks(task, length):
    ids = some_ids(length)
    source, target = tasks.corrupted(task, ids, SIZE, np.random.default_rng(1))
    marks = target[target >= SIZE]
    assert (
        (marks == SIZE + np.arange(len(marks))).all()
        and target[-1] == marks[-1]
        and (source[source >= SIZE] == marks[:-1]).all()
    )
    spans = np.split(target, np.flatnonzero(target >= SIZE))[1:]
    whole = np.concatenate(
        [spans[token - SIZE][1:] if token >= SIZE else [token] for token in source]
    )
    assert (whole == ids).all() and (len(source), len(target)) == task.sizes(length)[:2]
    assert (target < SIZE).sum() == task.counts(length)[0]


@pytest.fixture(
    scope="module",
    params=[MaskedLanguageModel(), SpanCorruption()],
    ids=lambda task: type(task).__name__,
)
def rows(request, tmp_path_factory):
    """A store of 40 documents, and its plan for a task."""
    folder = tmp_path_factory.mktemp("store") / "train"
    writer = store.Writer(folder, SIZE + request.param.extra_ids)
    for n in range(40):
        writer.add(some_ids(9 + n, n))
    writer.close(num_bytes=1, fingerprint="", facts={})
    opened = store.open_store(folder)
    return opened, batches.plan(
        opened,
        length=32,
        rows=4,
        seed=7,
        task=request.param,
        beside=isinstance(request.param, SpanCorruption),
    )


def assert_same(found, wanted):
    def leaves(batch):
        return [leaf for leaf in (*batch[:5], *(batch.side or ())) if leaf is not None]

    for a, b in zip(leaves(found), leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tasks_batch_is_a_function_of_the_step_however_it_is_shared(rows):
    opened, plan = rows
    whole = batches.batch(opened, plan, 3)
    assert_same(batches.batch(opened, plan, 3), whole)
    second = batches.batch(opened, plan, 3, np.asarray([2, 3]))
    assert (second.tokens == whole.tokens[2:]).all() and (second.weights == whole.weights[2:]).all()
    held_out = plan._replace(seed=None)
    assert_same(batches.batch(opened, held_out, 0), batches.batch(opened, held_out, 0))
    assert (
        set(np.unique(whole.weights)) <= {0.0, 1.0}
        and whole.weights.any()
        and whole.tokens.max() < opened.header.vocab_size
    )


def test_a_new_epoch_hides_other_places(rows):
    opened, plan = rows
    one_row = plan._replace(length=plan.pairs, width=2 * plan.pairs, rows=1, seed=7)
    first, second = (batches.batch(opened, one_row, step) for step in (0, 2))
    assert not np.array_equal(first.weights * first.targets, second.weights * second.targets)


SHAPE = {
    "vocab_size": None,
    "context": 32,
    "width": 32,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward": 64,
}
TRAINED = {
    "masked": (MaskedLanguageModel(), bert("base", **SHAPE, residual_dropout=0.0)),
    "spans": (SpanCorruption(), t5("small", **SHAPE, encoder_layers=1, head_width=16)),
    "backward with middles": (LanguageModel(backward=True, middle=0.5), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ("spans", "masked", "backward with middles"))
def test_every_task_trains_saves_and_goes_on(name, tiny_experiment, tmp_path):
    task, config = TRAINED[name]
    model = config or tiny_experiment.model
    told = {
        "model": model,
        "data": dataclasses.replace(tiny_experiment.data, task=task),
        "checkpoints": dataclasses.replace(tiny_experiment.checkpoints, every=10),
    }
    experiment = dataclasses.replace(tiny_experiment, **told)
    train(dataclasses.replace(experiment, steps=20), tmp_path)
    train(experiment, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert all(
        ("validation_bits_per_byte" in line) == isinstance(task, LanguageModel)
        for line in lines
        if "validation_loss" in line
    )


@pytest.mark.parametrize("name", ["masked", "spans"])
def test_a_task_for_another_shape_of_model_is_refused(name):
    with pytest.raises(
        ConfigError,
        match=f"data.task is LanguageModel.*use data.task {type(TRAINED[name][0]).__name__}",
    ):
        Experiment(model=TRAINED[name][1])
