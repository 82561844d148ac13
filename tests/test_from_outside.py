"""What a script may hand to training from outside the package: a loss, a source of batches, a
gradient function."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import losses_of
from variants import PLAIN

from gptjax import model
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import Batch
from gptjax.losses import CrossEntropy, Loss, LossConfig, predict, token_losses
from gptjax.train import optim, step
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train


@dataclass(frozen=True)
class Focal(LossConfig):
    """Likely targets count less."""

    gamma: float = 2.0

    def build(self, config):
        return FocalLoss(config, self.gamma)


@dataclass(frozen=True)
class FocalLoss(Loss):
    model: model.ModelConfig
    gamma: float

    def __call__(self, params, frozen, batch, key):
        losses = token_losses(predict(self.model, params, batch, key)[0], batch.targets)
        counted = batch.weights * (1 - jnp.exp(-losses)) ** self.gamma * losses
        return jnp.sum(counted), jnp.sum(batch.weights), {}

    def held_out(self, figures=()):
        return CrossEntropy().build(self.model).held_out(figures)


def by_state(stored):
    """A source that marks its batches by a weight of the state: half of the tokens count."""

    def source(number, state):
        batch = stored(number, state)
        draw = jax.random.fold_in(jax.random.key(number), jnp.abs(state.opt_state[0].values).sum())
        return batch._replace(
            weights=batch.weights * (jax.random.uniform(draw, batch.weights.shape) < 0.5)
        )

    return source


def clipped(objective, trainable, batch, key, limit=1e-2):
    """Gradients of single rows, each of at most a norm, added up."""

    def of_row(row):
        return step.default_gradients(
            objective, trainable, jax.tree.map(lambda x: x[None], row), key
        )

    outputs, grads = jax.vmap(of_row)(batch)
    norms = jnp.sqrt(sum(jnp.square(g).sum(range(1, g.ndim)) for g in jax.tree.leaves(grads)))
    scale = jnp.minimum(1.0, limit / norms)
    summed = jax.tree.map(lambda g: jnp.tensordot(scale, g, 1), grads)
    return jax.tree.map(lambda x: x.sum(0), outputs), summed


def rows():
    ids = np.random.default_rng(0).integers(0, PLAIN.vocabulary, (4, 9), np.int32)
    return Batch(jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:]), jnp.ones((4, 8)))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_each_examples_gradient_can_be_clipped(micro_batches):
    optimizer = optim.build_optimizer(
        optim.SGD(peak=1.0, momentum=0.0, clip_norm=None), lambda number: 1.0
    )
    params = jax.jit(functools.partial(model.init, PLAIN))(jax.random.key(0))
    run = functools.partial(
        step.train_step, loss=CrossEntropy().build(PLAIN), optimizer=optimizer, seed=0,
        rate=lambda number: 1.0, dropout=False, gradients=clipped, micro_batches=micro_batches,
    )  # fmt: skip
    state, metrics = jax.jit(run)(step.init(params, optimizer), {}, rows())
    assert float(metrics["gradient_norm"]) <= 4 * 1e-2 / 32 * 1.001 and not int(metrics["skipped"])
    assert any(map(jnp.any, jax.tree.leaves(jax.tree.map(jnp.subtract, state.trainable, params))))


@pytest.mark.slow
def test_a_loss_and_a_source_from_a_script_train_and_resume_to_the_same_bits(
    tiny_experiment, tmp_path
):
    experiment = dataclasses.replace(tiny_experiment, loss=Focal(gamma=1.0), steps=10)
    kwargs = {"source": by_state}
    train(experiment, tmp_path / "whole", **kwargs)
    train(dataclasses.replace(experiment, steps=5), tmp_path / "parts", **kwargs)
    train(experiment, tmp_path / "parts", **kwargs)
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    file = tmp_path / "whole" / "config.json"
    assert json.loads(file.read_text())["loss"] == {"kind": "Focal", "gamma": 1.0}
    assert config.load_config(Experiment, file, known=(Focal,)).loss == Focal(gamma=1.0)
    with pytest.raises(ConfigError, match="not a class of gptjax"):
        config.load_config(Experiment, file)


def test_an_experiment_of_an_earlier_version_is_read():
    plain = {"label_smoothing": 0.1, "z": 0.0, "ahead": 1.0, "vocab_parts": 1}
    fgm, teacher = {"kind": "FGM", "size": 0.5}, {"run": "r", "temperature": 2.0, "share": 0.5}
    for adversarial, distillation in ((None, None), (fgm, None), (None, teacher), (fgm, teacher)):
        old = config.to_dict(Experiment()) | {
            "loss": plain | {"adversarial": adversarial, "distillation": distillation}
        }
        loss = config.from_dict(Experiment, old).loss
        for kind, wanted in (("FGM", adversarial), ("Distillation", distillation)):
            if wanted:
                assert type(loss).__name__ == kind
                loss = loss.inner
        assert loss == CrossEntropy(label_smoothing=0.1)


@pytest.mark.parametrize("prompt", ["", "zq"])
def test_a_prompt_that_cannot_be_encoded_is_refused_before_compiling(
    prompt, tiny_experiment, tmp_path, monkeypatch
):
    from gptjax.data import Characters, DataConfig, Text

    text = tmp_path / "dna.txt"
    text.write_text("acgtta" * 2000)
    data = DataConfig(Text(str(text)), tokenizer=Characters(), split="tail")
    evaluation = dataclasses.replace(tiny_experiment.evaluation, prompt=prompt)
    experiment = dataclasses.replace(tiny_experiment, data=data, evaluation=evaluation)
    compiled = []
    monkeypatch.setattr("gptjax.train.program.build", lambda *_: compiled.append(1) or 1 / 0)
    with pytest.raises(ZeroDivisionError if prompt == "" else ConfigError):
        train(experiment, tmp_path / "run")
    assert bool(compiled) == (prompt == "")
