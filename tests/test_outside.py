"""Batches of pipelines from outside: Grain's, and whatever can be indexed or iterated."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from runs import assert_same_run

from gptjax.core.config import ConfigError
from gptjax.data.outside import from_batches, from_examples
from gptjax.train.loop import train

EXAMPLES = [np.arange(n, n + 3 + n % 9) for n in range(10)]


class Endless:
    """Batches of ids, of which each can be made again; counts how many were read."""

    def __init__(self):
        self.read = 0

    def __iter__(self):
        for number in itertools.count():
            self.read += 1
            yield np.random.default_rng(number).integers(0, 200, (8, 33))


class Indexed(Endless):
    """The same, by number."""

    def __getitem__(self, number):
        self.read += 1
        return np.random.default_rng(number).integers(0, 200, (8, 33))


def test_each_epoch_has_each_example_once_in_an_order_of_its_own():
    source = from_examples(EXAMPLES, batch=4, context=8)(None)
    batches = [source(step, None) for step in range(5)]
    firsts = np.concatenate([b.tokens[:, 0] for b in batches])
    assert sorted(firsts[:10]) == sorted(firsts[10:]) == list(range(10))
    assert list(firsts[:10]) != list(firsts[10:])
    for row in range(4):
        first = int(batches[0].tokens[row, 0])
        length = min(8, len(EXAMPLES[first]) - 1)
        np.testing.assert_array_equal(batches[0].tokens[row, :length], EXAMPLES[first][:length])
        np.testing.assert_array_equal(
            batches[0].targets[row, :length], EXAMPLES[first][1:][:length]
        )
        assert list(batches[0].weights[row]) == [1] * length + [0] * (8 - length)
    in_order = from_examples(EXAMPLES, batch=4, context=8, seed=None)(None)
    assert list(in_order(2, None).tokens[:, 0]) == [8, 9, 0, 1]
    again = source(3, None)
    assert all(np.array_equal(a, b) for a, b in zip(again[:3], batches[3][:3], strict=True))


def test_what_is_iterated_is_by_number_what_is_indexed():
    by_number, replayed = Indexed(), Endless()
    one, other = from_batches(by_number)(None), from_batches(replayed)(None)
    for step in (0, 1, 1, 4, 2, 5):
        np.testing.assert_array_equal(one(step, None).targets, other(step, None).targets)
    assert by_number.read == 6 and replayed.read == 5 + 6, "going back alone reads again"
    assert other(5, None).weights.dtype == np.float32


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (iter([]), "ends after 0 batches"),
        ([np.zeros(3, int)], r"a batch is \[3\]"),
        ([{"tokens": np.zeros((2, 3), int)}], "it needs tokens and targets"),
        (
            [{"tokens": np.zeros((2, 3), int), "targets": np.zeros((2, 2), int)}],
            r"tokens \[2, 3\] and targets \[2, 2\]",
        ),
    ],
)
def test_what_is_no_batch_is_refused_by_its_form(pipeline, said):
    with pytest.raises(ConfigError, match=said):
        from_batches(pipeline)(None)(0, None)
    with pytest.raises(ConfigError, match="example 0 is float64"):
        from_examples([np.zeros(3)], batch=1, context=4)(None)(0, None)
    with pytest.raises(ConfigError, match="has no examples"):
        from_examples([], batch=1, context=4)


@pytest.mark.parametrize("kind", [Endless, Indexed])
def test_a_run_on_a_pipeline_resumes_with_the_batch_that_would_have_come(
    kind, tiny_experiment, tmp_path
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    short = dataclasses.replace(tiny_experiment, steps=10)
    train(short, whole, source=from_batches(kind()))
    train(dataclasses.replace(short, steps=5), parts, source=from_batches(kind()))
    train(short, parts, source=from_batches(kind()))
    assert_same_run(parts, whole, 10)


def test_grains_data_sets_are_taken_as_they_are():
    grain = pytest.importorskip("grain")
    examples = grain.MapDataset.source([np.arange(n, n + 9) for n in range(10)]).seed(3).shuffle()
    batches = examples.repeat().batch(4)
    indexed, iterated = from_batches(batches)(None), from_batches(batches.to_iter_dataset())(None)
    for step in (0, 7, 3):
        found = indexed(step, None)
        np.testing.assert_array_equal(found.tokens, iterated(step, None).tokens)
        np.testing.assert_array_equal(found.targets, found.tokens + 1)
    alone = from_examples(examples, batch=5, context=8, seed=None)(None)
    firsts = np.concatenate([alone(step, None).tokens[:, 0] for step in range(2)])
    assert sorted(firsts) == list(range(10))
