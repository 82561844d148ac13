"""Laws of training: a run can be stopped anywhere, a bad batch costs one step, and a run directory
holds what it promises.

Read `finished` first: the one run that most of these tests look at.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import fingerprint, lines_of, losses_of

import gptjax
from gptjax import model
from gptjax.cli import main as cli
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import Batch, DataConfig, Text, prepare
from gptjax.losses import CrossEntropy, FunctionLoss
from gptjax.model import small
from gptjax.runs import Run
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.train import optim, placement, program, saved, step, updates
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.train.norm import gradient_norm
from gptjax.train.optim import SGD, Adafactor, Adam, AdamW, Lion, Muon, Schedule
from gptjax.train.updates import average, averaged
from gptjax.weights import Role


@pytest.fixture(scope="module")
def finished(tiny_experiment, tmp_path_factory) -> Path:
    """The directory of a whole run of `tiny_experiment`."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny_experiment, path)
    return path


def resolved(experiment):
    return dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, vocab_size=257)
    )


# --- a run ---


def test_training_lowers_the_loss(finished):
    losses = losses_of(finished)
    assert len(losses) == 30
    assert losses[1] == pytest.approx(math.log(257), rel=0.05)
    assert np.mean([losses[s] for s in range(26, 31)]) < 0.75 * losses[1]


def test_a_run_directory_holds_what_it_promises(finished):
    for name in ("config.json", "metrics.jsonl", "report.html", "report.json", "log.txt"):
        assert (finished / name).stat().st_size > 0, name
    for name in ("tokenizer", "checkpoints", "tensorboard"):
        assert any((finished / name).iterdir()), name
    assert config.load_config(Experiment, finished / "config.json").model.vocab_size == 257, (
        "the config is the resolved one"
    )
    evaluated = [line for line in lines_of(finished) if "validation_loss" in line]
    assert [line["step"] for line in evaluated] == [10, 20, 30]
    assert all(0 < line["validation_bits_per_byte"] < 8.1 for line in evaluated)
    assert all(
        {"step", "tokens", "loss", "learning_rate", "gradient_norm"} <= line.keys()
        for line in lines_of(finished)
    )
    assert [line["tokens"] for line in lines_of(finished)] == [8 * 32 * s for s in range(1, 31)]
    report = json.loads((finished / "report.json").read_text())
    assert evaluated[-1]["validation_loss"] in list(_numbers(report))
    assert 30 in Run(finished).steps()
    assert "done: " in (finished / "log.txt").read_text()


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float):
        yield value


def test_the_validation_loss_is_that_of_the_whole_held_out_text(finished):
    """Computed here row by row, one at a time."""
    found = lines_of(finished)[-1]
    data, trained = (
        prepare(config.load_config(Experiment, finished / "config.json").data),
        gptjax.load(finished),
    )
    ids, width, total, count = data.validation.ids[:], 32, 0.0, 0

    @jax.jit
    def judge(tokens):
        hidden = model.forward(trained.config, trained.params, tokens).hidden
        return jax.nn.log_softmax(model.unembed(trained.config, trained.params, hidden))

    for first in range(0, len(ids) - 1, width):
        row = ids[first : first + width + 1].astype(np.int32)
        padded = np.zeros((1, width), np.int32)
        padded[0, : len(row) - 1] = row[:-1]
        said = np.asarray(judge(padded))[0, np.arange(len(row) - 1), row[1:]]
        total, count = total - float(said.sum()), count + len(said)
    assert found["validation_loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["validation_bits_per_byte"] == pytest.approx(
        total / math.log(2) / data.validation.header.num_bytes, rel=1e-5
    )


def test_a_finished_run_says_so_and_changes_nothing(finished, tiny_experiment, capsys):
    before = fingerprint(finished, 30)
    train(tiny_experiment, finished)
    assert "finished already at step 30; --steps 60 resumes from there" in capsys.readouterr().out
    assert fingerprint(finished, 30) == before and len(losses_of(finished)) == 30


# --- bad batches ---


CONFIG = small("tiny", vocab_size=61, context=32)


def a_batch(seed: int = 0) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, 61, (8, 17), dtype=np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], np.ones((8, 16), np.float32))


def poisoned(value: float):
    """A loss whose gradient is `value` times too large wherever the batch's first weight is
    2."""
    plain = CrossEntropy().build(CONFIG)

    def loss(params, frozen, batch, key):
        counted = batch._replace(weights=jnp.ones_like(batch.weights))
        total, weight, more = plain(params, frozen, counted, key)
        return total * jnp.where(batch.weights[0, 0] == 2, value, 1.0), weight, more

    return FunctionLoss(loss)


@functools.cache
def skipping_step(value: float, micro_batches: int = 1):
    rate = optim.learning_rate(Schedule(warmup=3), 1e-2, 20)
    optimizer = optim.build_optimizer(AdamW(peak=1e-2, ema=0.9), rate)
    told = {
        "loss": poisoned(value),
        "optimizer": optimizer,
        "rate": rate,
        "seed": 0,
        "skip_norm": 1e4,
        "dropout": False,
        "micro_batches": micro_batches,
    }
    init = jax.jit(lambda: step.init(model.init(CONFIG, jax.random.key(0)), optimizer))
    return init, jax.jit(functools.partial(step.train_step, **told))


def bits(tree) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


@pytest.mark.row(7)
@pytest.mark.row(9)
@pytest.mark.parametrize(
    ("value", "micro_batches"),
    [
        (1e30, 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((math.nan, 1), (1e6, 1))),
        (math.nan, 4),
    ],
)
@pytest.mark.parametrize("bad", [0, 2, 6])
def test_a_bad_batch_changes_nothing_and_the_next_is_taken(value, micro_batches, bad):
    init, advance = skipping_step(value, micro_batches)
    state = init()
    for i in range(bad + 2):
        batch = a_batch(i)
        if i == bad:
            batch.weights[0, 0] = 2
        before = state
        state, found = advance(state, {}, batch)
        same = bits((state.trainable, state.opt_state)) == bits(
            (before.trainable, before.opt_state)
        )
        assert int(found["skipped"]) == (i == bad) and same == (i == bad)
        assert int(state.step) == i + 1
        assert np.isfinite(found["loss"]) or i == bad
    assert all(
        np.isfinite(leaf).all() and np.abs(leaf).max() < 1e6
        for leaf in map(np.asarray, jax.tree.leaves((state.trainable, state.opt_state)))
    )


def with_moments(monkeypatch, in_place: bool, loss, params):
    """Jitted init and step of AdamW, whose moments are written over the old ones, or as Optax has
    it."""
    with monkeypatch.context() as patch:
        if not in_place:
            patch.setattr(updates, "in_place", lambda adam, config: adam)
        optimizer = optim.build_optimizer(AdamW(peak=1e-2), lambda step: 1e-2)
    told = {
        "loss": loss,
        "optimizer": optimizer,
        "rate": lambda step: 1e-2,
        "seed": 0,
        "dropout": False,
    }
    return jax.jit(lambda: step.init(params(), optimizer)), jax.jit(
        functools.partial(step.train_step, **told), donate_argnums=0
    )


def steps_of(function, optimizer, rate=lambda step: 1.0, **settings):
    """A compiled step on a parameter `kernel` [2], by a loss (parameter, batch, key) → sum and
    metrics; and the state before it."""

    class Small(FunctionLoss):
        def metrics(self):
            return {"told": lambda sums, weight: sums["told"]}

    def loss(params, frozen, batch, key):
        total, told = function(params["kernel"], batch, key)
        return total, batch.weights.sum(), {"told": told}

    begun = step.init({"kernel": jnp.ones(2)}, optimizer)
    how = {"optimizer": optimizer, "rate": rate, "seed": 0, **settings}
    return begun, jax.jit(functools.partial(step.train_step, loss=Small(loss), **how))


def numbered_batch(rows: int) -> Batch:
    numbers = np.arange(rows, dtype=np.int32)[:, None]
    return Batch(numbers, numbers, np.full((rows, 1), 0.5, np.float32))


def test_every_step_and_micro_batch_draws_its_own_dropout():
    """What the key of each gives, seen directly."""

    def drawn(kernel, batch, key):
        place = jax.nn.one_hot(batch.tokens[0, 0], 4)
        return kernel.sum(), place * jax.random.uniform(key)

    state, advance = steps_of(
        drawn, optim.build_optimizer(SGD(), lambda step: 1.0), micro_batches=4
    )
    found = []
    for _ in range(3):
        state, metrics = advance(state, {}, numbered_batch(4))
        found += np.asarray(metrics["told"]).tolist()
    assert len(set(found)) == 12 and 0 not in found


def one_slope(kernel, batch, key):
    """A loss per token whose gradient is the first token's id, or 1e3 where that is 9."""
    first = batch.tokens[0, 0].astype(jnp.float32)
    slope = jnp.where(first == 9, 1e3, first)
    return slope * kernel.sum() * batch.weights.sum(), jnp.zeros(())


@pytest.mark.parametrize(
    "bounds", [{"skip_norm": 100.0}, {"skip_score": 0.0}], ids=["norm", "score"]
)
def test_a_step_beyond_its_bounds_changes_nothing_but_the_count(bounds):
    """A score is 0 until enough steps were taken, so a bound of 0 skips every step."""
    optimizer = optim.build_optimizer(AdamW(ema=0.9), lambda step: 0.1)
    state, advance = steps_of(one_slope, optimizer, dropout=False, **bounds)
    batch = numbered_batch(1)
    for number, first in enumerate((1, 9, 1)):
        before = state
        state, found = advance(state, {}, batch._replace(tokens=batch.tokens + first))
        same = bits((state.trainable, state.opt_state)) == bits(
            (before.trainable, before.opt_state)
        )
        skipped = first == 9 or "skip_score" in bounds
        assert int(found["skipped"]) == skipped == same and int(state.step) == number + 1


def test_the_rate_that_is_logged_is_the_one_that_is_applied():
    """After a skipped step too, at whatever height the schedule then is."""
    rate = optim.learning_rate(Schedule("cosine", warmup=3), 0.1, 8)
    plain = optim.build_optimizer(SGD(momentum=0.0, clip_norm=None), rate)
    state, advance = steps_of(one_slope, plain, rate, dropout=False, skip_norm=100.0)
    batch, rates = numbered_batch(1), []
    for first in (1, 9, 1, 2, 9, 1, 1):
        before = state
        state, found = advance(state, {}, batch._replace(tokens=batch.tokens + first))
        moved_by = np.asarray(before.trainable["kernel"] - state.trainable["kernel"])
        wanted = 0 if first == 9 else first * float(found["learning_rate"])
        np.testing.assert_allclose(moved_by, wanted, rtol=1e-5)
        rates.append(float(found["learning_rate"]))
    np.testing.assert_allclose(rates, [float(rate(jnp.int32(n))) for n in range(7)], rtol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (300, 8, 32), (257, 257)])
def test_the_norm_of_gradients_is_the_root_of_all_squares(shape):
    leaves = {
        f"{n}": np.random.default_rng(n).standard_normal(shape).astype(np.float32) for n in range(3)
    }
    wanted = np.sqrt(sum(np.square(leaf.astype(np.float64)).sum() for leaf in leaves.values()))
    np.testing.assert_allclose(gradient_norm(leaves), wanted, rtol=1e-6)


def test_moments_that_are_written_over_the_old_ones_are_adams(monkeypatch):
    """Bit for bit, one step of which is skipped among them."""
    ends = []
    for in_place in (True, False):
        init, advance = with_moments(
            monkeypatch, in_place, poisoned(math.nan), lambda: model.init(CONFIG, jax.random.key(0))
        )
        state = init()
        for i in range(5):
            batch = a_batch(i)
            batch.weights[0, 0] = 1 + (i == 3)
            state, _ = advance(state, {}, batch)
        ends.append(state)
    assert bits(ends[0]) == bits(ends[1])


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="other backends write parameters and moments in one pass"
)
def test_moments_that_are_written_over_the_old_ones_need_no_memory_beside_them(monkeypatch):
    def loss(params, frozen, batch, key):
        return (
            sum(jnp.square(batch.weights @ leaf["kernel"]).sum() for leaf in params.values()),
            jnp.ones(()),
            {},
        )

    temporary = {}
    for in_place in (True, False):
        init, advance = with_moments(
            monkeypatch,
            in_place,
            FunctionLoss(loss),
            lambda: {f"{n}": {"kernel": jnp.ones((256, 256))} for n in range(8)},
        )
        compiled = advance.lower(init(), {}, Batch(*jnp.ones((3, 4, 256)))).compile(
            compiler_options={"xla_backend_optimization_level": 2}
        )
        temporary[in_place] = compiled.memory_analysis().temp_size_in_bytes / (4 * 256 * 256)
    assert temporary[True] < 16.1, (
        "the gradients, and where XLA does not fuse them their squares for the norm"
    )
    assert temporary[False] > 21.9, (
        "moments besides; if Optax or XLA learns to do without, `in_place` can go"
    )


@pytest.fixture
def quick_compilation(monkeypatch):
    """Machine code that is made in a third of the time."""
    monkeypatch.setattr(
        jax,
        "jit",
        functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0}),
    )


# --- optimizers ---


OPTIMIZERS = [
    AdamW(peak=1e-2),
    Adam(peak=1e-2),
    SGD(),
    Lion(peak=3e-3),
    Adafactor(),
    Muon(peak=1e-2),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_every_optimizer_solves_a_small_problem(optimizer):
    """Two layers that must become one given map, read from inputs that are the same at every
    step."""
    draw = np.random.default_rng(0)
    inputs, kernel = (
        draw.standard_normal((64, 8)).astype(np.float32),
        draw.standard_normal((8, 8)).astype(np.float32),
    )
    chain = optim.build_optimizer(optimizer, lambda step: optimizer.peak)

    def error(params):
        return jnp.mean(
            jnp.square(
                jnp.tanh(inputs @ params["up"]["kernel"]) @ params["down"]["kernel"]
                - inputs @ kernel
            )
        )

    @jax.jit
    def advance(params, state):
        updates, state = chain.update(jax.grad(error)(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    params = {
        name: {"kernel": jnp.asarray(0.3 * draw.standard_normal(shape), jnp.float32)}
        for name, shape in (("up", (8, 32)), ("down", (32, 8)))
    }
    begun, state = float(error(params)), chain.init(params)
    for _ in range(200):
        params, state = advance(params, state)
    assert float(error(params)) < 0.5 * begun


def split(optimizer, experiment):
    """An experiment over eight parts of the parameters."""
    return resolved(
        dataclasses.replace(
            experiment,
            optim=optimizer,
            mesh=MeshConfig(data=1, fsdp=8),
            schedule=Schedule("constant", warmup=0),
        )
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_the_state_of_every_optimizer_is_split_with_its_parameters(optimizer, tiny_experiment):
    experiment = split(optimizer, tiny_experiment)
    state, _ = placement.abstract(experiment, make_mesh(experiment.mesh))
    kernel = ("layers", "mlp", "up", "kernel")
    beside = [
        leaf
        for where, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if _ends(where, kernel) and leaf.shape == (2, 32, 96)
    ]
    assert "fsdp" in tuple(state.trainable["layers"]["mlp"]["up"]["kernel"].sharding.spec)
    assert all("fsdp" in tuple(leaf.sharding.spec) for leaf in beside)
    assert beside or isinstance(optimizer, Adafactor), (
        "state of a parameter's shape lies where the parameter lies"
    )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_every_optimizer_trains_a_model_that_is_split(
    optimizer, tiny_experiment, quick_compilation
):
    experiment = split(optimizer, tiny_experiment)
    built = program.build(experiment, prepare(experiment.data))
    state, losses = built.init()[0], []
    batch = built.batch(0, state)
    for _ in range(25):
        state, found = built.step(state, {}, batch)
        losses.append(float(found["loss"]))
        assert not int(found["skipped"])
    assert losses[-1] < 0.85 * losses[0], losses
    wanted = jax.tree.map(lambda leaf: leaf.sharding, built.state)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == wanted, "where it was planned to lie"


def _ends(where, names) -> bool:
    return tuple(getattr(part, "key", None) for part in where[-len(names) :]) == names


SMALL = {
    "layers": {
        "mlp": {
            "up": {
                "kernel": np.full((2, 4, 3), 0.5, np.float32),
                "bias": np.full((2, 3), 0.5, np.float32),
            }
        }
    },
    "norm": {"scale": np.ones(4, np.float32), "bias": np.full(4, 0.5, np.float32)},
    "embedding": {"embedding": np.full((5, 4), 0.5, np.float32)},
}


def roles_of(params):
    """Kernels and embeddings decay; Muon's matrices are kernels, and stacked."""

    def one(path, leaf):
        kernel = path[-1].key == "kernel"
        stacked = leaf.ndim - 2 if kernel else 0
        return Role(stacked, int(kernel), decays=kernel or path[-1].key == "embedding")

    return jax.tree_util.tree_map_with_path(one, params)


def moved(config, gradient, count: int = 1, params=SMALL, peak: float = 0.1):
    """Parameters and state after some steps with the same gradient."""
    optimizer = optim.build_optimizer(config, lambda step: peak, roles_of(params))
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for _ in range(count):
        updates, state = optimizer.update(
            jax.tree.map(lambda p: jnp.full_like(p, gradient), params), state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


@pytest.mark.parametrize("kind", [AdamW, SGD, Lion, Adafactor])
def test_decay_shrinks_matrices_and_embeddings_alone(kind):
    params, _ = moved(kind(peak=0.1, weight_decay=0.5), 0.0)
    for where, leaf in jax.tree_util.tree_leaves_with_path(params):
        share = 0.95 if where[-1].key in ("kernel", "embedding") else 1.0
        before = 1.0 if where[-1].key == "scale" else 0.5
        np.testing.assert_allclose(leaf, share * before, rtol=1e-6)


def test_the_decay_mask_is_by_role():
    names = {
        p[-1].key: decayed
        for p, decayed in jax.tree_util.tree_leaves_with_path(optim.decayed(SMALL, roles_of(SMALL)))
    }
    assert names == {"kernel": True, "embedding": True, "bias": False, "scale": False}


@pytest.mark.parametrize("kind", [AdamW, SGD, Lion])
def test_clipped_weights_stay_in_their_bounds(kind):
    params, _ = moved(kind(peak=0.1, clip_weights=0.6), -1.0, count=20)
    largest = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(params)]
    assert max(largest) <= 0.6 * (1 + 1e-6) and max(largest) > 0.59


def test_the_average_is_that_of_the_weights_after_each_step():
    config, wanted = SGD(peak=0.1, momentum=0.0, clip_norm=None, ema=0.8), SMALL
    for count in range(1, 5):
        params, state = moved(config, 0.3, count)
        wanted = jax.tree.map(lambda e, p: 0.8 * e + 0.2 * np.asarray(p), wanted, params)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5), averaged(state), wanted
        )
    assert averaged(moved(SGD(), 0.3)[1]) is None


def test_the_average_of_a_short_run_forgets_the_initial_weights():
    """After t steps the decay is (1 + t) / (10 + t) at most."""
    keep = average(0.9)
    weights = {"kernel": jnp.zeros(2)}
    state, wanted = keep.init(weights), np.zeros(2)
    for t in range(120):
        _, state = keep.update({"kernel": jnp.ones(2)}, state, weights, step=jnp.int32(t))
        weights = {"kernel": weights["kernel"] + 1}
        share = min(0.9, (1 + t) / (10 + t))
        wanted = share * wanted + (1 - share) * (t + 1)
        np.testing.assert_allclose(state.ema["kernel"], wanted, rtol=1e-5)


def test_nesterov_momentum_looks_one_step_ahead():
    for nesterov, changes in ((False, [1.0, 1.9]), (True, [1.9, 1 + 0.9 * 1.9])):
        told = SGD(momentum=0.9, nesterov=nesterov, clip_norm=None, weight_decay=0.0)
        ends = [moved(told, 1.0, count, peak=1.0)[0]["norm"]["scale"] for count in (1, 2)]
        np.testing.assert_allclose([1 - e[0] for e in ends], np.cumsum(changes), rtol=1e-5)


def test_muons_updates_have_the_size_of_adams():
    """The root mean square of each matrix's update is near 0.2, wide or narrow (arXiv:2502.16982);
    that of a vector is Adam's."""
    draw, found = np.random.default_rng(0), {}
    shapes = {"up": (2, 8, 64), "down": (2, 64, 8)}
    params = {"layers": {n: {"kernel": jnp.zeros(shape)} for n, shape in shapes.items()}}
    chain = optim.build_optimizer(
        Muon(weight_decay=0.0, clip_norm=None), lambda step: 1.0, roles_of(params)
    )
    grads = jax.tree.map(lambda p: jnp.float32(draw.standard_normal(p.shape)), params)
    updates, _ = chain.update(grads, chain.init(params), params)
    for name, update in updates["layers"].items():
        found[name] = np.sqrt(np.square(update["kernel"]).mean((1, 2)))
        assert (np.abs(found[name] / 0.2 - 1) < 0.3).all(), found


def test_a_large_gradient_is_scaled_down_to_the_clip_norm():
    params, _ = moved(SGD(momentum=0.0, clip_norm=1.0), 1e3, peak=1.0)
    change = jax.tree.map(lambda a, b: np.asarray(a) - b, params, SMALL)
    assert math.sqrt(
        sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(change))
    ) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "rsqrt", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_a_schedule_rises_to_its_peak_and_ends_at_its_floor(kind, warmup):
    steps, peak, floor = 100, 2e-3, 0.1
    rate = optim.learning_rate(Schedule(kind, warmup, floor, decay_share=0.3), peak, steps)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(steps + 1)), np.float64)
    assert (rates > 0).all() and rates.max() == pytest.approx(peak)
    assert (np.diff(rates[: warmup + 1]) > 0).all(), "it rises"
    assert (np.diff(rates[warmup:]) <= 1e-12).all(), "and does not rise again"
    assert rates[warmup] == pytest.approx(peak)
    if kind in ("linear", "cosine", "wsd"):
        assert rates[steps] == pytest.approx(floor * peak)
    if kind == "wsd":
        np.testing.assert_allclose(rates[warmup:71], peak, rtol=1e-6)
        assert (np.diff(rates[70:]) < 0).all() and np.allclose(np.diff(rates[70:], 2), 0, atol=1e-8)
    if kind == "constant":
        np.testing.assert_allclose(rates[warmup:], peak, rtol=1e-6)


def test_a_batch_read_in_parts_trains_the_same(quick_compilation):
    results, rate = [], lambda step: 0.5
    optimizer = optim.build_optimizer(SGD(peak=0.5), rate)
    begun = jax.jit(lambda: step.init(model.init(CONFIG, jax.random.key(0)), optimizer))()
    for parts in (1, 2):
        told = {
            "loss": CrossEntropy().build(CONFIG),
            "optimizer": optimizer,
            "rate": rate,
            "seed": 0,
            "dropout": False,
            "micro_batches": parts,
        }
        advance, state = jax.jit(functools.partial(step.train_step, **told)), begun
        for i in range(4):
            batch = a_batch(i)
            batch.weights[i, 3:] = 0  # the parts do not weigh the same
            state, found = advance(state, {}, batch)
        results.append(
            (jax.device_get(state.trainable), float(found["loss"]), float(found["weight"]))
        )
    (a, loss, weight), (b, same_loss, same_weight) = results
    assert loss == pytest.approx(same_loss, rel=1e-5) and weight == same_weight
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * max(np.abs(y).max(), 0.02)), a, b
    )


# --- samples of a run ---


def test_a_run_writes_text_in_python(finished):
    trained = gptjax.load(finished)
    text = trained.generate("The ", new_tokens=10, temperature=0)
    assert text == trained.generate("The ", new_tokens=10, temperature=0) and 0 < len(text) <= 10
    (done,) = trained.complete(["The "])
    assert done.prompt == "The " and len(done.ids) == len(done.logprobs)
    *pieces, last = trained.stream("The ")
    assert "".join(pieces) == last.text == done.text
    earlier = gptjax.load(finished, step=min(Run(finished).steps()))
    assert bits(earlier.params) != bits(trained.params)


def test_the_average_of_a_run_is_what_writes(finished, tmp_path):
    """What a run with an average saves, and what is loaded of it."""
    trained, path = gptjax.load(finished), tmp_path / "run"
    optimizer = optim.build_optimizer(AdamW(peak=1e-2, ema=0.5), lambda step: 1e-2)
    state = step.init(trained.params, optimizer)
    _, opt_state = optimizer.update(
        jax.tree.map(jnp.ones_like, trained.params), state.opt_state, trained.params
    )
    kept = saved.trees(state._replace(opt_state=opt_state))
    assert (
        bits(kept["ema"])
        == bits(saved.weights(state._replace(opt_state=opt_state), {}))
        != bits(trained.params)
    )
    shutil.copytree(finished / "tokenizer", path / "tokenizer")
    experiment = config.load_config(Experiment, finished / "config.json")
    config.save_config(
        path / "config.json", dataclasses.replace(experiment, optim=AdamW(peak=1e-2, ema=0.5))
    )
    run = Run(path)
    with run.lock():
        run.save(1, kept)
    assert bits(gptjax.load(path).params) == bits(kept["ema"])


@pytest.mark.slow
def test_a_run_with_an_average_saves_it(tiny_experiment, tmp_path):
    train(
        dataclasses.replace(tiny_experiment, steps=5, optim=AdamW(peak=1e-2, ema=0.5)),
        tmp_path / "run",
    )
    trained = gptjax.load(tmp_path / "run")
    found = Run(tmp_path / "run").restore(
        {"params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trained.params)}
    )
    assert bits(found[1]["params"]) != bits(trained.params)


def sampled(capsys, *args) -> str:
    capsys.readouterr()
    assert cli.main(["sample", *map(str, args)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_run_writes_text_from_the_command_line(finished, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", _nothing_piped())
    common = ("--new-tokens", 8, "--temperature", 0)
    text = gptjax.load(finished).generate("The ", new_tokens=8, temperature=0)
    assert sampled(capsys, finished, "--prompt", "The ", *common) == f"The {text}\n"

    lines = [
        json.loads(line)
        for line in sampled(capsys, finished, "--prompt", "The ", *common, "--json").splitlines()
    ]
    assert [line["text"] for line in lines] == [text]
    assert (
        set(lines[0]) == {"prompt", "text", "ids", "logprobs", "reason"}
        and lines[0]["prompt"] == "The "
    )

    several = (
        "--prompt",
        "The ",
        "--num-samples",
        2,
        "--new-tokens",
        8,
        "--temperature",
        1.5,
        "--json",
    )
    lines = [
        json.loads(line) for line in sampled(capsys, finished, *several, "--seed", 1).splitlines()
    ]
    assert len(lines) == 2 and len({line["text"] for line in lines}) > 1, "samples differ"
    assert lines == [
        json.loads(line) for line in sampled(capsys, finished, *several, "--seed", 1).splitlines()
    ]
    assert lines != [
        json.loads(line) for line in sampled(capsys, finished, *several, "--seed", 2).splitlines()
    ]

    (tmp_path / "prompts.txt").write_text("The cat\nZoë\n")
    lines = [
        json.loads(line)
        for line in sampled(
            capsys, finished, "--prompt-file", tmp_path / "prompts.txt", *common, "--json"
        ).splitlines()
    ]
    assert [line["prompt"] for line in lines] == ["The cat", "Zoë"]


def _nothing_piped():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    return terminal


def test_prompts_come_from_standard_input(finished, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("The cat\nA boat\n")
    with open(tmp_path / "prompts.txt") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", file)
        out = sampled(capsys, finished, "--new-tokens", 4, "--json")
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["The cat", "A boat"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--temperature", "-1"], "temperature is -1"),
        (["--top-k", "9999"], "top_k is 9999"),
        (["--num-samples", "0"], "num_samples is 0"),
        (["--step", "3"], "no step 3"),
        (["--prompt-file", "/nowhere"], "/nowhere is not there"),
    ],
)
def test_a_wrong_flag_ends_with_status_2_and_one_line(args, said, finished, capsys):
    assert cli.main(["sample", str(finished), "--prompt", "x", *args]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        gptjax.load(tmp_path)
    with pytest.raises(ConfigError, match="not a directory"):
        gptjax.load(tmp_path / "nowhere")


def test_text_shorter_than_a_row_is_refused(tiny_experiment, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    experiment = dataclasses.replace(
        tiny_experiment,
        data=DataConfig(
            source=Text(str(tmp_path / "short.txt")), tokenizer=tiny_experiment.data.tokenizer
        ),
    )
    with pytest.raises(ConfigError, match=r"fewer than one row of 33; use more text"):
        train(experiment, tmp_path / "run")
