"""Rates and initial weights that carry over to a wider model."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, DataConfig, Text, prepare
from gptjax.lab.coordinates import coordinate_check
from gptjax.model import Experts, ModelConfig
from gptjax.sharding.mesh import make_mesh
from gptjax.train import identity, program
from gptjax.train.experiment import Experiment
from gptjax.train.many import build_many
from gptjax.train.optim import SGD, AdamW, Muon, Schedule
from gptjax.train.transfer import at_width, growth_of
from gptjax.weights import LoRA

MODEL = ModelConfig(
    vocab_size=257, context=16, width=128, num_heads=8, num_layers=2, tied=False, bias=False
)
DATA = DataConfig(source=Text("mytext.txt"), tokenizer=Bytes())
WIDTHS = (32, 64, 128)


@pytest.fixture(scope="module")
def data(text_file):
    return prepare(DataConfig(source=Text(str(text_file)), tokenizer=Bytes()))


def experiment_of(data, **changes) -> Experiment:
    settings = {"model": MODEL, "optim": AdamW(peak=3e-3, clip_norm=None), "batch": 8} | changes
    warm = Schedule("constant", warmup=0)
    return identity.resolve(Experiment(data=DATA, schedule=warm, **settings), data)


def test_a_wider_model_differs_in_what_follows_from_its_width():
    plain = at_width(dataclasses.replace(MODEL, feed_forward=96, num_kv_heads=4), 256)
    assert (plain.width, plain.num_heads, plain.head_dim) == (256, 16, 16)
    assert (plain.kv_heads, plain.mlp_dim) == (8, 192)
    one = at_width(dataclasses.replace(MODEL, num_kv_heads=1, experts=Experts(width=64)), 64)
    assert (one.kv_heads, one.expert_width, one.mlp_dim) == (1, 32, 256)
    assert at_width(MODEL, MODEL.width) == MODEL
    with pytest.raises(ConfigError, match=r"num_heads is 8 at width 128 and would be 1\.5"):
        at_width(MODEL, 24)


def test_each_kind_of_weight_grows_by_its_inputs_and_outputs():
    """Table 3 of arXiv:2203.03466, at four times the width: a quarter of the rate is 1/r, half of
    the initial values 1/√r."""
    experts = dataclasses.replace(
        MODEL, experts=Experts(count=4, active=2), num_kv_heads=1, positions="learned", bias=True
    )
    for optim, hidden in ((AdamW(), 1 / 4), (Muon(), 1 / 2)):
        growth = growth_of(experts, 32, optim)
        flat = {
            jax.tree_util.keystr(path, simple=True, separator="/"): one
            for path, one in jax.tree_util.tree_leaves_with_path(
                growth, is_leaf=lambda leaf: hasattr(leaf, "rate")
            )
        }
        matrices = {name: one for name, one in flat.items() if name.endswith("kernel")}
        still = {name: one for name, one in flat.items() if name not in matrices}
        assert set(still.values()) == {(1.0, 1.0)} and "embedding/embedding" in still
        assert growth["head"]["kernel"] == (1 / 4, 1 / 4)
        # one key and value head, and a router, have as many outputs at any width
        outputs = [n for n in matrices if "/key/" in n or "/value/" in n or "router" in n]
        assert len(outputs) == 3 and {flat[n].initial for n in outputs} == {1 / 4}
        inner = [n for n in matrices if n not in outputs and n != "head/kernel"]
        assert {flat[n] for n in inner} == {(1 / 2, hidden)} and len(inner) >= 4, inner
        assert {flat[n].rate for n in outputs} == {hidden}


def test_at_its_base_width_a_run_is_what_it_is_without(data):
    ends = []
    for base in (None, MODEL.width):
        built = program.build(experiment_of(data, base_width=base), data, fresh=True)
        state, frozen = built.init(None)
        for number in range(2):
            state, _ = built.step(state, frozen, built.batch(number, state))
        ends.append(jax.device_get(state.trainable))
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize("optim", [AdamW, Muon])
def test_first_steps_move_all_widths_alike(data, optim):
    moved = {}
    for base in (None, WIDTHS[0]):
        settings = {"optim": optim(peak=1e-2, clip_norm=None), "base_width": base}
        moved[base] = coordinate_check(experiment_of(data, **settings), data, WIDTHS, steps=3)
    for name in ("attention_out", "mlp_out", "hidden", "logits"):
        plain, even = ([by[width][name] for width in WIDTHS] for by in moved.values())
        assert max(even) / min(even) < 1.6, (name, even)
        assert name == "hidden" or plain[-1] / plain[0] > 1.8, (name, plain)


def test_runs_of_a_sweep_transfer_as_they_do_alone(data):
    runs = [experiment_of(data, base_width=32, seed=seed) for seed in (0, 1)]
    many = build_many(runs, data, by="map")
    states = many.place(many.init())
    for number in range(2):
        states, _ = many.step(states, many.batch(number))
    together = many.fetch(states).trainable
    lone = make_mesh(runs[1].mesh, jax.devices()[:1])
    built = program.build(runs[1], data, fresh=True, mesh=lone)
    state, frozen = built.init(None)
    for number in range(2):
        state, _ = built.step(state, frozen, built.batch(number, state))
    alone = jax.device_get(state.trainable)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), together, alone)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_width": 0}, "base_width is 0"),
        ({"base_width": 24}, "base_width is 24: model.num_heads is 8"),
        ({"optim": SGD()}, "optim is SGD"),
        ({"model": dataclasses.replace(MODEL, tied=True)}, "--model.tied False"),
        ({"adapter": LoRA(), "start": "smollm2"}, "omit --base-width"),
    ],
)
def test_what_does_not_transfer_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        Experiment(**{"model": MODEL, "base_width": 32, "data": DATA} | changes)


def test_the_first_model_is_the_narrow_one_scaled():
    """Of the same draws: initial values are those of the model config times their factor."""
    growth = growth_of(MODEL, 32, AdamW())
    plain = model.init(MODEL, jax.random.key(0))
    made = program._initial(Experiment(model=MODEL, data=DATA, base_width=32))[0].trainable
    leaves = (jax.tree.leaves(tree) for tree in (plain, made))
    factors = jax.tree.leaves(growth, is_leaf=lambda leaf: hasattr(leaf, "rate"))
    for a, b, one in zip(*leaves, factors, strict=True):
        np.testing.assert_allclose(a * one.initial, b, rtol=1e-6)
