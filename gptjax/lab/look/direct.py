"""Direct logit attribution: which head and which MLP wrote an answer into the residual stream.

The final stream is a sum of what the embedding, every head and every MLP added; with the last
norm's scale as it is in this run, logits are linear in it, so a difference of two logits is a sum
too.

Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Numbers, Params
from gptjax.lab.look.heads import layer_params
from gptjax.lab.look.lens import OBSERVED, require_output, streams_of
from gptjax.lab.look.measures import at_position
from gptjax.model import ModelConfig
from gptjax.model.activations import Observed
from gptjax.model.output import to_output
from gptjax.model.shortcuts import mixes_stream
from gptjax.weights.weight import dense


class Contributions(NamedTuple):
    """Parts of logit(right) − logit(wrong), which `total` sums."""

    embedding: Float[Array, " B"]
    """Tokens, and positions where they are added to the stream."""
    heads: Float[Array, "L N B"]
    """Zero in layers whose heads can't be told apart; `others` has these whole."""
    others: Float[Array, "L B"]
    """What a layer's mixer adds besides its heads: a bias, all of it where heads can't be told
    apart (recurrent or gated layers, a norm behind attention), attention to an encoder."""
    mlps: Float[Array, "L B"]
    """MLPs, or experts."""
    constant: Float[Array, " B"]
    """The biases of the last norm and of the output."""
    value: Float[Array, " B"]
    """The difference itself, before a cap of the logits."""

    @property
    def total(self) -> Float[Array, " B"]:
        """The sum of all parts; `value` up to rounding."""
        layers = self.heads.sum((0, 1)) + self.others.sum(0) + self.mlps.sum(0)
        return self.embedding + layers + self.constant


def direct_attribution(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    right: Int[Numbers, " B"],
    wrong: Int[Numbers, " B"],
    at: int | Int[Array, " B"] = -1,
    **inputs: Any,
) -> Contributions:
    """Splits logit(right) − logit(wrong) at one position of each row into what wrote it.

    Args:
      inputs: further arguments of `model.forward`.

    Raises:
      ValueError: layers normalise the stream or multiply it, or the output is not linear.
    """
    require_output(config)
    if config.norm_placement == "post" or config.head_transform or mixes_stream(config):
        raise ValueError(
            "the residual stream of this model is no sum of what was added to it: it is normalised"
            " after each layer or multiplied by it, or its output has a layer of its own. Patch"
            " instead."
        )
    names = ("attention", *OBSERVED)
    output = model.forward(config, params, tokens, observe=names, **inputs)
    seen, last = output.observed, at_position(streams_of(config, params, output)[-1], at)

    def difference(hidden: Float[Array, "B D"]) -> Float[Array, " B"]:
        return _difference(config, params, hidden, jnp.asarray(right), jnp.asarray(wrong))

    hidden = at_position(output.hidden, at).astype(jnp.float32)
    slope = jax.grad(lambda h: difference(h).sum())(hidden)
    project = _frozen_norm(config, params, last, slope)

    def part(x: Float[Array, "B T D"]) -> Float[Array, " B"]:
        return project(at_position(x, at))

    heads = jnp.stack(
        [_by_head(config, params, number, seen, at, project) for number in range(config.num_layers)]
    )
    mixed = jnp.stack([part(out) for out in seen["attention_out"]])
    if "cross_out" in seen:
        mixed = mixed + jnp.stack([part(out) for out in seen["cross_out"]])
    embedding = part(seen["stream"][0])
    mlps = jnp.stack([part(out) for out in seen["mlp_out"]])
    bias = params.get("norm", {}).get("bias")
    moved = jnp.zeros_like(hidden) if bias is None else jnp.broadcast_to(bias[None], hidden.shape)
    constant = jnp.einsum("bd,bd->b", slope, moved) + difference(jnp.zeros_like(hidden))
    return Contributions(
        embedding=embedding,
        heads=heads,
        others=mixed - heads.sum(1),
        mlps=mlps,
        constant=constant,
        value=difference(hidden),
    )


def _difference(
    config: ModelConfig, params: Params, hidden: Array, right: Array, wrong: Array
) -> Float[Array, " B"]:
    """logit(right) − logit(wrong) of final hidden states, without the cap: linear in them, but for
    a bias."""
    x, kernel, bias = to_output(config, params, hidden)
    columns = dense(kernel).astype(jnp.float32)
    found = jnp.einsum("bd,db->b", x.astype(jnp.float32), columns[:, right] - columns[:, wrong])
    return found if bias is None else found + bias[right] - bias[wrong]


def _frozen_norm(config: ModelConfig, params: Params, last: Array, slope: Array) -> Any:
    """The function of a part of the stream [B D] that the last norm and the output make of it, with
    the norm's scale as it is for the whole stream."""
    whole = last.astype(jnp.float32)
    centred = config.norm == "layernorm"
    if centred:
        whole = whole - whole.mean(-1, keepdims=True)
    size = jax.lax.rsqrt(jnp.square(whole).mean(-1, keepdims=True) + config.norm_epsilon)
    scale = params.get("norm", {}).get("scale")
    slope = slope * size if scale is None else slope * size * scale[None]

    def project(x: Float[Array, "B D"]) -> Float[Array, " B"]:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True) if centred else x
        return jnp.einsum("bd,bd->b", slope, x)

    return project


def _by_head(
    config: ModelConfig, params: Params, number: int, seen: Observed, at: Any, project: Any
) -> Float[Array, "N B"]:
    """What each head of a layer wrote; 0 where heads can't be told apart."""
    layer, attention = config.stack[number], seen.get("attention")
    behind = config.norm_placement in ("sandwich", "reordered")
    if attention is None or behind or config.attention_gate or layer.recurrent:
        return jnp.zeros((config.num_heads, seen["stream"].shape[1]))
    index = sum(not one.recurrent for one in config.stack[:number])
    out = layer_params(config, params, number)["attention"]["out"]
    kernel = dense(out["kernel"]).astype(jnp.float32)
    mixed = at_position(attention[index], at).astype(jnp.float32)
    written = config.residual_scale * jnp.einsum("bnh,nhd->nbd", mixed, kernel)
    return jnp.stack([project(one) for one in written])
