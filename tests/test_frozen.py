"""Weights that do not train: they are an argument of the step, cost neither gradients nor optimizer
state, and are saved once."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import lines_of
from variants import PLAIN

from gptjax import api, model
from gptjax.core.config import ConfigError
from gptjax.core.trees import combine, partition, paths, trainable_part, trains
from gptjax.data import Batch, prepare
from gptjax.losses import CrossEntropy, Distillation, FunctionLoss, losses_in_parts
from gptjax.losses.cross_entropy import forward_batch
from gptjax.losses.policy import value_of
from gptjax.runs import Run, leaves
from gptjax.sharding.mesh import make_mesh, row_sharding
from gptjax.train import optim, placement, program, saved, step
from gptjax.train.experiment import Checkpoints
from gptjax.train.identity import resolve
from gptjax.train.loop import train

FREEZE = ("embedding", "layers/attention/*")


def some_batch(rows: int = 2, length: int = 8, seed: int = 0) -> Batch:
    ids = np.random.default_rng(seed).integers(0, PLAIN.vocabulary, (rows, length + 1), np.int32)
    return Batch(*map(jnp.asarray, (ids[:, :-1], ids[:, 1:], np.ones((rows, length), np.float32))))


@functools.cache
def weights():
    return jax.jit(functools.partial(model.init, PLAIN))(jax.random.key(0))


def settings(**more):
    rate = optim.learning_rate(optim.Schedule("constant", warmup=0), 1e-2, 10)
    optimizer = optim.build_optimizer(optim.AdamW(peak=1e-2), rate)
    loss = CrossEntropy().build(PLAIN)
    return {"loss": loss, "optimizer": optimizer, "rate": rate, "seed": 0, "dropout": False} | more


def test_combining_the_halves_of_a_tree_gives_the_tree():
    params = weights()
    trainable, frozen = partition(params, trains(params, FREEZE))
    whole = combine({"params": frozen}, trainable)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(params)))
    assert set(paths(trainable)) | set(paths(frozen)) == set(paths(params))
    assert not set(paths(trainable)) & set(paths(frozen))
    assert combine({}, params) is params
    again = trainable_part(whole, trainable)
    assert jax.tree.structure(again) == jax.tree.structure(trainable)


def test_a_missing_subtree_is_taken_whole_from_the_frozen_half():
    base, adapter = {"values": jnp.ones(2), "scales": jnp.ones(1)}, jnp.zeros(3)
    whole = combine(
        {"params": {"kernel": {"base": base, "a": None}}},
        {"kernel": {"base": None, "a": adapter}},
    )
    assert whole["kernel"]["base"] is base and whole["kernel"]["a"] is adapter


@pytest.mark.parametrize(
    ("freeze", "said"),
    [(("layers/atention/*",), "matches no weight"), (("*",), "matches all weights")],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(freeze, said):
    with pytest.raises(ConfigError, match=said):
        trains(weights(), freeze)


def test_frozen_weights_do_not_move_and_have_no_gradients_and_no_optimizer_state():
    params, told = weights(), settings()
    trainable, rest = partition(params, trains(params, FREEZE))
    begun = step.init(trainable, told["optimizer"])
    names = paths(begun.opt_state)
    assert any("mlp" in name for name in names)
    assert not any("/attention/" in name or "/embedding/" in name for name in names)

    run = functools.partial(step.train_step, **told)
    differentiated = jax.make_jaxpr(run)(begun, {"params": rest}, some_batch())
    everything = step.init(params, told["optimizer"])
    full = jax.make_jaxpr(run)(everything, {}, some_batch())
    products = [str(jaxpr).count("dot_general") for jaxpr in (differentiated, full)]
    assert products[0] < products[1], "gradients of frozen kernels are not computed"

    state, metrics = jax.jit(run)(begun, {"params": rest}, some_batch())
    assert not int(metrics["skipped"])
    moved = [not np.array_equal(*pair) for pair in zip(
        jax.tree.leaves(combine({"params": rest}, state.trainable)),
        jax.tree.leaves(params), strict=True,
    )]  # fmt: skip
    for name, moves in zip(paths(params), moved, strict=True):
        assert moves == (name in paths(trainable)), name


def test_what_trains_moves_as_if_the_frozen_weights_were_constants():
    params, told = weights(), settings()
    trainable, rest = partition(params, trains(params, FREEZE))
    batch, loss = some_batch(), told["loss"]
    slopes = jax.jit(jax.grad(lambda p: loss(p, {}, batch, None)[0]))(params)

    def objective(half):
        return loss(combine({"params": rest}, half), {}, batch, None)[0]

    for mine, whole in zip(
        jax.tree.leaves(jax.jit(jax.grad(objective))(trainable)),
        jax.tree.leaves(trainable_part(slopes, trainable)),
        strict=True,
    ):
        np.testing.assert_allclose(mine, whole, rtol=1e-5, atol=1e-6)


def test_a_teachers_weights_are_arguments_of_the_program_and_no_constants(tiny_experiment):
    experiment = dataclasses.replace(
        tiny_experiment,
        loss=Distillation("somewhere"),
        model=dataclasses.replace(tiny_experiment.model, vocab_size=257),
    )
    mesh = make_mesh(experiment.mesh)
    rows = (experiment.batch, experiment.model.context)
    ints, floats = (
        jax.ShapeDtypeStruct(rows, kind, sharding=row_sharding(mesh))
        for kind in (jnp.int32, jnp.float32)
    )
    lowered = program.lowered(experiment, mesh, Batch(ints, ints, floats))
    _, frozen = placement.abstract(experiment, mesh)
    (state, other, _), _ = lowered.in_avals
    assert paths(other) == paths(frozen) and len(paths(frozen["teacher"])) > 5
    assert paths(state.trainable) == paths(frozen["teacher"])
    widest = max(leaf.size for leaf in jax.tree.leaves(frozen))
    constants = [line for line in lowered.as_text().splitlines() if "stablehlo.constant" in line]
    assert all(len(line) < 4 * widest for line in constants)


@pytest.mark.slow
def test_a_run_with_frozen_weights_saves_them_once_resumes_and_opens(
    tiny_experiment, tmp_path, capsys
):
    run = tmp_path / "run"
    experiment = dataclasses.replace(tiny_experiment, freeze=FREEZE, steps=4)
    train(experiment, run)
    assert "frozen      " in (banner := capsys.readouterr().out) and "embedding" in banner
    kept = {leaf.path for leaf in leaves(run)}
    frozen = {leaf.path for leaf in leaves(run / "frozen")}
    assert kept and frozen and not kept & frozen
    resolved = resolve(experiment, prepare(experiment.data))
    assert kept | frozen == set(paths(model.shapes(resolved.model)))

    train(dataclasses.replace(experiment, steps=8), run)
    train(dataclasses.replace(experiment, steps=8), tmp_path / "alone")
    assert [line["loss"] for line in lines_of(run)] == [
        line["loss"] for line in lines_of(tmp_path / "alone")
    ]
    assert isinstance(api.load(run).generate("the ", new_tokens=2), str)

    with pytest.raises(ConfigError, match="freeze was"):
        train(dataclasses.replace(experiment, steps=9, freeze=("embedding",)), run)
    other = Run(run / "frozen")
    shapes = {leaf.path: jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves(run / "frozen")}
    tree = {}
    for name, leaf in shapes.items():
        *folders, last = name.split("/")
        functools.reduce(lambda at, key: at.setdefault(key, {}), folders, tree)[last] = leaf
    with other.lock():
        other.save(0, {"params": tree})
        other.wait()
    with pytest.raises(ConfigError, match="other weights"):
        train(dataclasses.replace(experiment, steps=9), run)
    assert json.loads((run / "identity.json").read_text())["frozen"]


@dataclasses.dataclass(frozen=True)
class Guessing(CrossEntropy):
    """Cross-entropy, whose value a head guesses."""

    def heads(self, config):
        return {"critic": {"kernel": jnp.zeros((config.width, 1)), "bias": jnp.zeros(1)}}

    def build(self, config, **models):
        def loss(params, frozen, batch, key):
            hidden = forward_batch(config, params, batch, key).hidden
            losses = losses_in_parts(config, params, 1, hidden, batch.targets)
            errors = jnp.square(value_of(params["critic"], hidden) - losses)
            return (batch.weights * (losses + errors)).sum(), batch.weights.sum(), {}

        return FunctionLoss(loss)


def test_a_head_of_the_loss_is_saved_apart_from_the_model(tiny_experiment):
    model_of = dataclasses.replace(tiny_experiment.model, vocab_size=257)
    for freeze in ((), FREEZE):
        experiment = dataclasses.replace(
            tiny_experiment,
            loss=Guessing(),
            model=model_of,
            optim=optim.AdamW(peak=1e-2, ema=0.9),
            freeze=freeze,
        )
        state, frozen = placement.abstract(experiment, make_mesh(experiment.mesh))
        assert state.trainable["critic"]["kernel"].shape == (model_of.width, 1)
        kept = saved.trees(state, ["critic"])
        assert paths(kept["heads"]) == ["critic/bias", "critic/kernel"]
        own = set(paths(model.shapes(model_of))) - set(paths(frozen.get("params", {})))
        assert {*paths(kept["params"])} == {*paths(kept["ema"])} == own


@pytest.mark.slow
@pytest.mark.parametrize("told", [{}, {"freeze": FREEZE}], ids=["all", "part"])
def test_a_head_of_the_loss_trains_resumes_and_is_no_part_of_the_model(
    told, tiny_experiment, tmp_path
):
    experiment = dataclasses.replace(
        tiny_experiment,
        loss=Guessing(),
        optim=optim.AdamW(peak=1e-2, ema=0.9),
        evaluation=dataclasses.replace(tiny_experiment.evaluation, every=2),
        checkpoints=Checkpoints(every=2),
        **told,
    )
    for steps in (2, 4):
        train(dataclasses.replace(experiment, steps=steps), tmp_path / "run")
    train(dataclasses.replace(experiment, steps=4), tmp_path / "alone")
    found = Run(tmp_path / "run").trees(4)
    assert found == Run(tmp_path / "alone").trees(4) and "heads" in found
    for tree in found:
        assert leaves(tmp_path / "run", tree=tree) == leaves(tmp_path / "alone", tree=tree)
    halves = (
        leaves(tmp_path / "alone", step=2, tree="heads"),
        leaves(tmp_path / "alone", tree="heads"),
    )
    assert [leaf.path for leaf in halves[1]] == ["critic/bias", "critic/kernel"]
    assert all(a != b for a, b in zip(*halves, strict=True))
    assert isinstance(api.load(tmp_path / "run").generate("the ", new_tokens=2), str)
