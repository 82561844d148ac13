"""The proofs about conversations and preferences pass where nothing is wrong, and each notices the
defect that it is for."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from proving import outcome
from variants import PLAIN

from gptjax import weights
from gptjax.data import (
    Bytes,
    Comparisons,
    DataConfig,
    Feedback,
    Preferences,
    batches,
    prepare,
)
from gptjax.data.tasks.chat import Rendered, render_record
from gptjax.losses import Preference, answers
from gptjax.losses.pairwise import Pair
from gptjax.losses.preference import PreferenceLoss
from gptjax.plan.plan import weight_bytes
from gptjax.sharding.mesh import make_mesh
from gptjax.train.experiment import Experiment
from gptjax.verify import alignment
from gptjax.verify.setting import Setting, make
from gptjax.verify.suite import ALIGNMENT, proofs_of


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    folder = tmp_path_factory.mktemp("alignment")

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    records = [
        {
            "prompt": said("user", f"{n}?"),
            "chosen": said("assistant", "ab"),
            "rejected": said("assistant", f"c{n}"),
        }
        for n in range(24)
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = DataConfig(
        Comparisons(str(file)), Bytes(), 0.2, Preferences("zephyr"), cache=str(folder)
    )
    experiment = Experiment(
        model=replace(PLAIN, vocab_size=None, context=96, num_layers=1),
        data=data,
        loss=Preference(),
        adapter=weights.LoRA(rank=2),
    )
    return make(experiment, prepare(data))


status = functools.partial(outcome, ALIGNMENT)


def test_what_is_right_passes(setting):
    assert proofs_of(setting.experiment) is ALIGNMENT
    for name in ("prompts", "counted", "rows", "start", "slope", "split", "cached", "adapter"):
        assert status(name, setting).startswith("pass"), status(name, setting)


def test_a_mask_that_is_shifted_is_noticed(setting, monkeypatch):
    def shifted(*args):
        made = render_record(*args)
        return Rendered(made.ids, np.roll(made.counts, -1))

    monkeypatch.setattr(alignment, "render_record", shifted)
    for name in ("prompts", "counted"):
        assert status(name, setting).startswith("fail of"), status(name, setting)


def test_a_reference_that_is_another_is_noticed(setting, monkeypatch):
    compute = alignment.references.compute
    monkeypatch.setattr(
        alignment.references, "compute", lambda *args: compute(*args) + np.float32([0.01, 0])
    )
    assert status("cached", setting).startswith("fail difference")
    other = alignment.sharp(setting.exact, seed=1)
    monkeypatch.setattr(alignment, "_frozen", lambda loss, params: {"reference": other})
    assert status("start", setting).startswith("fail relative")


def test_texts_of_a_row_that_see_each_other_are_noticed(setting):
    """Without segments, and so with the places of a row instead of a text."""
    hidden = setting.functions.hidden
    blind = setting.functions._replace(
        hidden=lambda params, tokens, positions, segments: hidden(
            params, tokens, positions, np.minimum(segments, 1)
        )
    )
    assert status("rows", setting._replace(functions=blind)).startswith("fail relative")


def test_a_loss_of_means_and_a_pair_turned_round_are_noticed(setting, monkeypatch):
    whole = PreferenceLoss.__call__

    def mean(self, *args):
        total, weight, metrics = whole(self, *args)
        return total / weight, jnp.ones_like(weight), metrics

    monkeypatch.setattr(PreferenceLoss, "__call__", mean)
    assert status("split", setting).startswith("fail relative")
    monkeypatch.undo()

    by_pair = answers.by_pair
    monkeypatch.setattr(answers, "by_pair", lambda batch, x: Pair(*by_pair(batch, x)[::-1]))
    assert status("slope", setting).startswith("fail relative")


def test_an_adapter_that_begins_trained_or_merges_otherwise_is_noticed(setting, monkeypatch):
    merge = weights.merge
    monkeypatch.setattr(
        alignment.weights, "merge", lambda tree: merge(jax.tree.map(lambda x: x * 1.001, tree))
    )
    assert status("adapter", setting).startswith("fail relative")
    monkeypatch.undo()
    adapt = weights.adapt

    def begun(*args):
        trainable, rest = adapt(*args)
        return jax.tree.map(lambda x: x + 0.01, trainable), rest

    monkeypatch.setattr(alignment.weights, "adapt", begun)
    assert status("adapter", setting).startswith("fail an untrained adapter")


def test_an_adapter_merged_on_another_base_than_it_was_trained_on_is_noticed(setting, monkeypatch):
    stored = replace(setting.experiment, adapter=weights.LoRA(rank=2, base="int4"))
    quantised, merge = setting._replace(experiment=stored), weights.merge
    assert status("adapter", quantised).startswith("pass"), status("adapter", quantised)

    def on_floats(tree, floats=setting.params):
        if isinstance(tree, dict):
            return {name: on_floats(part, floats[name]) for name, part in tree.items()}
        return replace(tree, base=floats) if isinstance(tree, weights.Adapted) else tree

    monkeypatch.setattr(alignment.weights, "merge", lambda tree: merge(on_floats(tree)))
    assert status("adapter", quantised).startswith("fail relative")


@pytest.mark.parametrize("task", [Preferences(), Feedback()])
def test_a_plan_knows_the_batches_of_judged_answers(task):
    shape = {"length": 16, "isolated": True, "with_encoder": False}
    batch = batches.empty(task, columns={"reference": (2,)}, **shape)
    assert batch.columns["reference"].shape == (*batch.columns["pairs"].shape, 2)
    assert not batch.columns["pairs"].any() and ("good" in batch.columns) == (task == Feedback())


def test_a_cached_reference_is_not_in_the_memory_of_a_plan(setting):
    plain = replace(setting.small, adapter=None, start="runs/a")
    mesh = make_mesh(plain.mesh)
    whole = weight_bytes(plain, mesh)
    assert whole["reference"] == whole["train"] > 0
    kept = weight_bytes(replace(plain, loss=replace(plain.loss, cached=True)), mesh)
    assert kept == {"train": whole["train"], "cached": 8}
    adapted = weight_bytes(replace(setting.small, start="runs/a"), mesh)
    assert adapted["frozen"] == whole["train"] > adapted["train"] and len(adapted) == 2
