"""Lenses: what the output would say of the residual stream between two layers.

Read `residual_streams`, `lens_logits` (the logit lens), then `fit_tuned_lens`. `read_lens` gives
the likeliest tokens of every layer without holding all logits.

Sources: nostalgebraist 2020, interpreting GPT: the logit lens (LessWrong); Belrose et al. 2023,
Eliciting Latent Predictions from Transformers with the Tuned Lens, arXiv:2303.08112.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Key, Params
from gptjax.lab.look.fitting import Fitted, minimise
from gptjax.lab.look.heads import layer_params
from gptjax.model import ModelConfig, Output
from gptjax.model.layers import norm
from gptjax.model.shortcuts import mixed, mixes_stream

OBSERVED = ("embedding", "stream", "attention_out", "cross_out", "mlp_out")
"""What `streams_of` needs."""


class Translators(NamedTuple):
    """A tuned lens: an affine map of the stream that enters each layer, h + h·kernel + bias."""

    kernel: Float[Array, "L D D"]
    bias: Float[Array, "L D"]


class Reading(NamedTuple):
    """What a lens reads at L + 1 levels: where each layer begins, and at the end."""

    ids: Int[Array, "levels B T top"]
    """The likeliest tokens."""
    logprobs: Float[Array, "levels B T top"]
    """Their ln p."""
    last: Float[Array, "levels B T"]
    """ln p of the token that the whole model finds likeliest."""
    divergence: Float[Array, "levels B T"]
    """KL divergence of the level's distribution from the whole model's, in nats."""


def residual_streams(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], **inputs: Any
) -> Float[Array, "levels B T D"]:
    """Returns the residual stream where each layer begins, and after the last.

    Args:
      inputs: further arguments of `model.forward`.
    """
    output = model.forward(config, params, tokens, observe=OBSERVED, **inputs)
    return streams_of(config, params, output)


def streams_of(config: ModelConfig, params: Params, output: Output) -> Float[Array, "levels B T D"]:
    """Returns what `residual_streams` does, of a run that observed `OBSERVED`."""
    seen = output.observed
    if config.norm_placement == "post":  # the last layer's norm is the model's
        last = output.hidden
    else:
        last = seen["stream"][-1]
        if mixes_stream(config):
            own = layer_params(config, params, config.num_layers - 1)["stream"]
            last = mixed(own, last, seen["embedding"])
        last = last + seen["attention_out"][-1]
        last = last + seen["cross_out"][-1] if "cross_out" in seen else last
        last = last + seen["mlp_out"][-1]
    return jnp.concatenate([seen["stream"], last[None]])


def lens_logits(
    config: ModelConfig, params: Params, stream: Float[Array, "... D"]
) -> Float[Array, "... V"]:
    """Returns the logits that the model's last norm and output make of a stream; float32."""
    require_output(config)
    hidden: Any = stream
    if config.norm_placement != "post":
        hidden = norm(config).apply({"params": params.get("norm", {})}, stream)
    return model.unembed(config, params, hidden)


def require_output(config: ModelConfig) -> None:
    """Refuses a model without an output over tokens.

    Raises:
      ValueError: it has classes.
    """
    if config.classes:
        raise ValueError("a lens reads tokens, and this model has an output over classes.")


def read_lens(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    top: int = 5,
    translators: Translators | None = None,
    **inputs: Any,
) -> Reading:
    """Reads every level, one after another; the last level is the model's own answer.

    Args:
      top: number of tokens of each place.
      translators: a tuned lens; `None` is the logit lens.
      inputs: further arguments of `model.forward`.
    """
    require_output(config)
    output = model.forward(config, params, tokens, observe=("stream",), **inputs)
    final = jax.nn.log_softmax(model.unembed(config, params, output.hidden))
    best = final.argmax(-1)[..., None]

    def reading(logprobs: Float[Array, "B T V"]) -> Reading:
        values, ids = jax.lax.top_k(logprobs, min(top, logprobs.shape[-1]))
        last = jnp.take_along_axis(logprobs, best, axis=-1)[..., 0]
        return Reading(ids, values, last, _divergence(final, logprobs))

    def level(given: tuple[Array, Any]) -> Reading:
        stream = given[0] if translators is None else translated(*given)
        return reading(jax.nn.log_softmax(lens_logits(config, params, stream)))

    levels = jax.lax.map(level, (output.observed["stream"], translators))
    joined = jax.tree.map(
        lambda each, last: jnp.concatenate([each, last[None]]), levels, reading(final)
    )
    return joined._replace(divergence=jnp.maximum(joined.divergence, 0.0))


def translated(stream: Float[Array, "B T D"], one: Translators) -> Float[Array, "B T D"]:
    """Returns the stream as a tuned lens hands it to the output; `one` is of this layer."""
    moved = stream @ one.kernel.astype(stream.dtype)
    return stream + moved + one.bias.astype(stream.dtype).reshape(1, 1, -1)


def _divergence(final: Array, logprobs: Array) -> Array:
    return jnp.sum(jnp.exp(final) * (final - logprobs), axis=-1)


# --- the tuned lens


def fit_tuned_lens(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "rows T"],
    *,
    steps: int = 250,
    batch: int = 8,
    peak: float = 1e-3,
    seed: int = 0,
) -> tuple[Translators, Fitted]:
    """Fits a tuned lens by the divergence of each level from the whole model's distribution, on
    rows of tokens drawn with replacement; it begins as the logit lens.

    Where the paper uses SGD with momentum, this is Adam.
    """
    levels, width = config.num_layers, config.width
    begin = Translators(jnp.zeros((levels, width, width)), jnp.zeros((levels, width)))

    def objective(translators: Translators, data: Any, key: Key) -> Float[Array, ""]:
        params, tokens = data
        rows = tokens[jax.random.randint(key, (batch,), 0, tokens.shape[0])]
        return lens_divergence(config, params, rows, translators).mean()

    fitted = minimise(
        objective, begin, (params, jnp.asarray(tokens)), steps=steps, peak=peak, seed=seed
    )
    return fitted.params, fitted


def lens_divergence(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    translators: Translators | None = None,
) -> Float[Array, " L"]:
    """Returns the mean KL divergence of each level from the whole model's distribution, in nats;
    differentiable in the translators."""
    output = model.forward(config, params, tokens, observe=("stream",))
    final = jax.nn.log_softmax(model.unembed(config, params, output.hidden))

    @jax.checkpoint
    def level(given: tuple[Array, Any]) -> Float[Array, ""]:
        stream = given[0] if translators is None else translated(*given)
        logprobs = jax.nn.log_softmax(lens_logits(config, params, stream))
        return _divergence(final, logprobs).mean()

    return jax.lax.map(level, (output.observed["stream"], translators))
