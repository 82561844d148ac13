"""The coordinate check: how far the first steps move the activations of models of several widths.

With rates that transfer (`Experiment.base_width`) all widths move alike; without, wide ones move
further, and their best rate is a lower one.

Source: Yang et al. 2022, Tensor Programs V, arXiv:2203.03466, appendix D.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Params
from gptjax.data.prepare import Prepared
from gptjax.model import ModelConfig
from gptjax.train.experiment import Experiment
from gptjax.train.identity import resolve
from gptjax.train.program import build
from gptjax.train.saved import weights
from gptjax.train.transfer import at_width

WATCHED = ("embedding", "attention_out", "mlp_out", "hidden")


def coordinate_check(
    experiment: Experiment, data: Prepared, widths: Sequence[int], steps: int = 4
) -> dict[int, dict[str, float]]:
    """Trains a model of each width for a few steps; returns by width how much they changed its
    activations on the first batch, and its logits: root mean squares over all coordinates.

    Args:
      experiment: of the model at any width; it trains at each of `widths`, with the same batches.
      steps: of training; the schedule's warm-up should be over before the first (`warmup=0`).

    Raises:
      ConfigError: the experiment does not transfer; see `transfer.at_width`.
    """
    found = {}
    for width in widths:
        wide = at_width(experiment.model, width)
        found[width] = _moved(
            resolve(dataclasses.replace(experiment, model=wide), data), data, steps
        )
    return found


def _moved(experiment: Experiment, data: Prepared, steps: int) -> dict[str, float]:
    built = build(experiment, data, fresh=True)
    state, frozen = built.init(None)
    first = built.batch(0, state)
    watch = jax.jit(lambda params: _watched(experiment.model, params, first.tokens))
    before = watch(weights(state, frozen))
    for number in range(steps):
        state, _ = built.step(state, frozen, built.batch(number, state))
    after = watch(weights(state, frozen))
    return {name: float(_root_mean_square(after[name] - before[name])) for name in before}


def _watched(config: ModelConfig, params: Params, tokens: Array) -> dict[str, Array]:
    out = model.forward(config, params, tokens, observe=WATCHED)
    logits = model.unembed(config, params, out.hidden)
    return {**{name: out.observed[name] for name in WATCHED}, "logits": logits}


def _root_mean_square(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
