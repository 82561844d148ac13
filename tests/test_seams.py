"""The seams, used from outside: this file adds a weight, a loss, a task and a source of batches,
and trains with them through the ordinary functions; none needs a change in gptjax/."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import model, weights
from gptjax.core import config as configs
from gptjax.core.config import ConfigError
from gptjax.core.trees import partition
from gptjax.data import prepare
from gptjax.data.layouts import Batch
from gptjax.data.tasks.task import Task
from gptjax.losses import CrossEntropy, Loss, LossConfig, per_weight, predict, token_losses
from gptjax.train import optim, program, step
from gptjax.train.experiment import Experiment
from gptjax.train.identity import resolve

# --- a loss


@dataclasses.dataclass(frozen=True)
class Focal(LossConfig):
    """Cross-entropy that counts hard tokens. Source: Lin et al. 2017, arXiv:1708.02002."""

    gamma: float = 2.0

    def build(self, config):
        return FocalLoss(config, self.gamma)


@dataclasses.dataclass(frozen=True)
class FocalLoss(Loss):
    config: model.ModelConfig
    gamma: float

    def __call__(self, params, frozen, batch, key):
        logits, _ = predict(self.config, params, batch, key)
        losses = token_losses(logits, batch.targets)
        focal = (1 - jnp.exp(-losses)) ** self.gamma * losses
        return jnp.sum(focal * batch.weights), batch.weights.sum(), {"plain": jnp.sum(losses)}

    def metrics(self):
        return {"plain_loss": per_weight("plain")}

    def held_out(self, figures=()):
        return CrossEntropy().build(self.config).held_out(figures)


# --- a task


@dataclasses.dataclass(frozen=True)
class Copy(Task):
    """Each token is predicted from itself."""

    writes = True

    def rows(self, rows, *, draws, vocab_size, plan):
        return rows._replace(targets=rows.tokens)


# --- a source of batches that depends on the state


def imitate(config, stored):
    """The stored texts, with the model's own best guesses as targets."""

    @jax.jit
    def guesses(params, batch):
        return jnp.argmax(predict(config, params, batch, None)[0], axis=-1).astype(jnp.int32)

    def source(number, state):
        batch = stored(number, state)
        return batch._replace(targets=guesses(state.trainable, batch))

    return source


# --- a weight


@functools.partial(jax.tree_util.register_dataclass, data_fields=["row", "column"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Outer:
    """A kernel [I O] that is the outer product of two vectors."""

    row: jax.Array
    column: jax.Array

    @property
    def shape(self):
        return (*self.row.shape, *self.column.shape[self.row.ndim - 1 :])


@weights.multiply.register
def _(weight: Outer, x, *, wide=False):
    y = jnp.einsum("...i,i,o->...o", x, weight.row.astype(x.dtype), weight.column.astype(x.dtype))
    return y.astype(jnp.float32) if wide else y


# --- each trains a step


@pytest.fixture(scope="module")
def small_experiment(tiny_experiment):
    return dataclasses.replace(
        tiny_experiment, optim=optim.SGD(peak=0.5), schedule=optim.Schedule("constant", warmup=0)
    )


def one_step(experiment: Experiment, source=None) -> tuple[step.TrainState, step.TrainState, dict]:
    data = prepare(experiment.data)
    experiment = resolve(experiment, data)
    wrap = source and (lambda stored: source(experiment.model, stored))
    built = program.build(experiment, data, source=wrap)
    begun, frozen = built.init(None)
    before = jax.tree.map(np.asarray, begun)  # the step uses up its state
    after, metrics = built.step(begun, frozen, built.batch(0, begun))
    return before, after, {name: float(value) for name, value in metrics.items()}


def test_a_loss_from_outside_trains(small_experiment):
    experiment = dataclasses.replace(small_experiment, loss=Focal())
    before, after, metrics = one_step(experiment)
    assert 0 < metrics["loss"] < metrics["plain_loss"] and metrics["skipped"] == 0
    assert moved(before.trainable, after.trainable)


def test_a_task_from_outside_trains(small_experiment):
    data = dataclasses.replace(small_experiment.data, task=Copy())
    before, after, metrics = one_step(dataclasses.replace(small_experiment, data=data))
    assert np.isfinite(metrics["loss"]) and moved(before.trainable, after.trainable)


def test_a_source_that_samples_from_the_state_trains(small_experiment):
    _, _, metrics = one_step(small_experiment, source=imitate)
    plain = one_step(small_experiment)[2]
    assert metrics["loss"] < plain["loss"]  # its own guesses are its most likely tokens


def test_a_weight_from_outside_is_read_and_trained():
    config = model.small("tiny", vocab_size=64, layers="unroll")
    params = model.init(config, jax.random.key(0))
    shape = params["layers"]["mlp"]["up"]["kernel"].shape
    row, column = jax.random.normal(jax.random.key(1), shape[:2]), jnp.ones((shape[0], shape[2]))
    params["layers"]["mlp"]["up"]["kernel"] = Outer(row, column)
    optimizer = optim.build_optimizer(optim.SGD(peak=0.1), lambda step: 0.1)
    after, metrics = jax.jit(
        functools.partial(
            step.train_step,
            loss=CrossEntropy().build(config),
            optimizer=optimizer,
            rate=lambda step: 0.1,
            seed=0,
        )
    )(step.init(params, optimizer), {}, batch_of(config))
    assert metrics["skipped"] == 0
    assert moved(params["layers"]["mlp"]["up"], after.trainable["layers"]["mlp"]["up"])


def batch_of(config: model.ModelConfig, rows: int = 4) -> Batch:
    ids = np.random.default_rng(0).integers(0, config.vocabulary, (rows, 17), np.int32)
    return Batch(ids[:, :-1], ids[:, 1:], np.ones((rows, 16), np.float32))


def moved(before, after) -> bool:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return all(bool(jnp.any(jnp.asarray(old) != new)) for old, new in pairs if old.size > 1)


# --- adapters: a weight whose base is frozen


def test_an_adapter_of_rank_4_trains_and_its_base_stays():
    config = model.small("tiny", vocab_size=64)
    base = model.init(config, jax.random.key(0))
    adapters = weights.LoRA(rank=4, alpha=4.0).init(base, model.roles(config), jax.random.key(1))
    adapted = weights.attach(base, adapters)
    trains = jax.tree.map(lambda leaf: False, adapted)
    trains = jax.tree.map(
        lambda weight: dataclasses.replace(weight, a=True, b=True) if is_adapted(weight) else False,
        trains,
        is_leaf=is_adapted,
    )
    trainable, frozen = partition(adapted, trains)
    optimizer = optim.build_optimizer(optim.Adam(peak=3e-2), lambda step: 3e-2)
    train = jax.jit(
        functools.partial(
            step.train_step,
            loss=CrossEntropy().build(config),
            optimizer=optimizer,
            rate=lambda step: 3e-2,
            seed=0,
        )
    )
    state, losses = step.init(trainable, optimizer), []
    for _ in range(30):
        state, metrics = train(state, {"params": frozen}, batch_of(config))
        losses.append(float(metrics["loss"]))
    count = sum(leaf.size for leaf in jax.tree.leaves(adapters))
    assert losses[-1] < losses[0] - 0.3
    assert sum(leaf.size for leaf in jax.tree.leaves(state.trainable)) == count
    assert count < sum(leaf.size for leaf in jax.tree.leaves(base)) / 3


def is_adapted(leaf) -> bool:
    return isinstance(leaf, weights.Adapted)


# --- a run remembers classes from outside by name, and runs none of their code


def test_a_saved_experiment_is_read_back_with_the_classes_that_are_handed_in(
    small_experiment, tmp_path
):
    task = dataclasses.replace(small_experiment.data, task=Copy())
    experiment = dataclasses.replace(small_experiment, loss=Focal(gamma=3.0), data=task)
    configs.save_config(tmp_path / "config.json", experiment)
    assert (
        configs.load_config(Experiment, tmp_path / "config.json", known=(Focal, Copy)) == experiment
    )
    with pytest.raises(ConfigError, match=r"Focal|Copy"):
        configs.load_config(Experiment, tmp_path / "config.json")
