"""Laws of tasks: what they hide can be found again, places are those of seed and row, and every
task trains."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest

from gptjax.core import config as configs
from gptjax.core.config import ConfigError
from gptjax.data import (
    UL2,
    Bytes,
    Classification,
    LanguageModel,
    MaskedLanguageModel,
    PrefixLanguageModel,
    SequenceToSequence,
    SpanCorruption,
    Task,
    batches,
    store,
)
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate import GenerateConfig
from gptjax.generate.request import requests
from gptjax.model import bert, gpt2, t5
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train

TOKENIZER = tokenizers.train_tokenizer(Bytes(), [])
SIZE, END = TOKENIZER.vocab_size, TOKENIZER.end_of_document


def some_ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n).astype(np.int32)


def test_a_backward_document_is_the_same_from_its_end():
    ids = some_ids(30)
    result = LanguageModel(backward=True).example(ids, TOKENIZER)
    assert result[0] == result[-1] == END and (result[1:-1] == ids[::-1]).all()
    assert (LanguageModel().example(ids, TOKENIZER)[1:-1] == ids).all()


def test_a_middle_moved_last_can_be_put_back():
    moved = 0
    for n in range(200):
        ids = some_ids(1 + n % 40, n)
        result = LanguageModel(middle=0.5).example(ids, TOKENIZER)[1:-1]
        assert (result == LanguageModel(middle=0.5).example(ids, TOKENIZER)[1:-1]).all(), (
            "it is the document's own"
        )
        if SIZE in result:
            moved += 1
            marks = [int(np.flatnonzero(result == SIZE + i)[0]) for i in range(3)]
            prefix, suffix, middle = (
                result[marks[0] + 1 : marks[1]],
                result[marks[1] + 1 : marks[2]],
                result[marks[2] + 1 :],
            )
            result = np.concatenate([prefix, middle, suffix])
        assert (result == ids).all()
    assert 70 < moved < 130


def test_masks_hide_their_share_and_nothing_else_changes():
    task, ids, real = MaskedLanguageModel(0.2), some_ids(20_000), np.arange(20_000) < 15_000
    shown, chosen = task.masked(ids, real, SIZE, np.random.default_rng(3))
    assert (shown == ids)[~chosen].all() and not chosen[15_000:].any()
    assert abs(chosen[:15_000].mean() - 0.2) < 0.01
    hidden, same = (shown == SIZE)[chosen].mean(), (shown == ids)[chosen].mean()
    assert abs(hidden - 0.8) < 0.03 and abs(same - 0.1) < 0.03


@pytest.mark.parametrize("length", [2, 3, 17, 512])
@pytest.mark.parametrize("task", [SpanCorruption(), SpanCorruption(0.5, 8.0)])
def test_spans_can_be_put_back_at_their_marks(task, length):
    ids = some_ids(length)
    source, target = task.split(ids, SIZE, np.random.default_rng(1))
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
        with_encoder="encoder-decoder" in request.param.shapes,
    )


def assert_same(result, wanted):
    def leaves(batch):
        return [leaf for leaf in (*batch[:5], *(batch.side or ())) if leaf is not None]

    for a, b in zip(leaves(result), leaves(wanted), strict=True):
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
def test_every_task_trains_saves_and_resumes(name, tiny_experiment, tmp_path):
    task, config = TRAINED[name]
    model = config or tiny_experiment.model
    changes = {
        "model": model,
        "data": dataclasses.replace(tiny_experiment.data, task=task),
        "checkpoints": dataclasses.replace(tiny_experiment.checkpoints, every=10),
    }
    experiment = dataclasses.replace(tiny_experiment, **changes)
    train(dataclasses.replace(experiment, steps=20), tmp_path)
    train(experiment, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert all(
        ("validation_bits_per_byte" in line) == ("bits_per_byte" in task.figures)
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


# --- a task of one's own


@dataclasses.dataclass(frozen=True)
class EveryOther(Task):
    """Predicts the next token at every second position, in rows that also say how many count."""

    every: int = 2
    """Period of the positions that are predicted."""

    writes: ClassVar[bool] = True

    def rows(self, rows, *, draws, vocab_size, plan):
        """Drops the other weights."""
        counted = np.arange(rows.tokens.shape[1]) % self.every == 0
        weights = rows.weights * counted.astype(np.float32)
        return rows._replace(weights=weights, columns={"counted": weights.sum(axis=1)})


def test_a_task_defined_outside_the_package_trains_and_resumes(tiny_experiment, tmp_path):
    data = dataclasses.replace(tiny_experiment.data, task=EveryOther())
    experiment = dataclasses.replace(tiny_experiment, data=data, steps=2)
    train(experiment, tmp_path)
    train(dataclasses.replace(experiment, steps=3), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert 0 < lines[-1]["validation_accuracy"] < 1
    saved = configs.load_config(Experiment, tmp_path / "config.json", known=(EveryOther,))
    assert saved.data.task == EveryOther()
    with pytest.raises(ConfigError, match=r"'EveryOther'.*Python config file that defines") as no:
        configs.load_config(Experiment, tmp_path / "config.json")
    assert "\n" not in str(no.value)


@dataclasses.dataclass(frozen=True)
class Silent(Task):
    """Says nothing of writing."""


def test_a_model_whose_task_does_not_write_is_told_how_a_task_says_that_it_does():
    model = dataclasses.replace(gpt2("124m"), num_layers=1, vocab_size=SIZE)
    with pytest.raises(ConfigError, match=r"Silent, .* by writes = True") as no:
        requests(model, TOKENIZER, ["a"], GenerateConfig(new_tokens=1), task=Silent())
    assert "\n" not in str(no.value)
    assert requests(model, TOKENIZER, ["a"], GenerateConfig(new_tokens=1), task=EveryOther())


KINDS = (
    LanguageModel(),
    MaskedLanguageModel(),
    SpanCorruption(),
    PrefixLanguageModel(),
    UL2(),
    SequenceToSequence(),
    Classification(("a", "b")),
    EveryOther(),
)


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("task", KINDS, ids=lambda task: type(task).__name__)
def test_the_arrays_of_a_batch_are_known_before_there_is_data(task, isolated, tmp_path):
    border = SIZE + task.extra_ids - 1
    writer = store.Writer(tmp_path / "train", SIZE + task.extra_ids)
    for n in range(9):
        writer.add(np.asarray([*some_ids(9 + n, n), border, *some_ids(5, n)], np.int32))
    writer.close(num_bytes=1, fingerprint="", facts={})
    opened = store.open_store(tmp_path / "train")

    def arrays(batch):
        side = batch.side or (None, None, None)
        columns = tuple((batch.columns or {}).values())
        return [
            a if a is None else (a.shape[1:], a.dtype)
            for a in (*batch[:5], *side, batch[7], *columns)
        ]

    for shape in task.shapes:
        layout = {"isolated": isolated, "with_encoder": shape == "encoder-decoder"}
        plan = batches.plan(opened, length=48, rows=3, seed=1, task=task, **layout)
        known = batches.empty(task, length=48, **layout)
        assert arrays(known) == arrays(batches.batch(opened, plan, 0))
        assert len(known.tokens) == 1 and not known.weights.any()
