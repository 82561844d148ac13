"""What attention heads look at: their patterns, the scores of known kinds of head, and rollout.

Read `attention_patterns`, then `head_scores`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Bool, Float, Int, Key, Params
from gptjax.lab.look.edits import layers_with
from gptjax.model import ModelConfig
from gptjax.model.activations import Observed
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.attention.mask import MaskInputs, ScoreConfig, scores
from gptjax.model.parameters import layer_inputs_of
from gptjax.weights.virtual import split_virtual

KINDS = ("previous", "duplicate", "induction")
"""Kinds of head that `head_scores` tells apart."""


def attention_patterns(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], **inputs: Any
) -> Float[Array, "L B N T S"]:
    """Returns the attention weights of every layer that attends, float32; each row sums to 1, less
    what an attention sink takes.

    Args:
      inputs: further arguments of `model.forward`, without a cache.

    Raises:
      ValueError: the model has virtual tokens, or no layer that attends.
    """
    observed = model.forward(config, params, tokens, observe=("query", "key"), **inputs).observed
    return patterns_of(config, params, observed, tokens.shape, **inputs)


def patterns_of(
    config: ModelConfig,
    params: Params,
    observed: Observed,
    shape: tuple[int, ...],
    *,
    positions: Int[Array, "#B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    prefix: Int[Array, "B T"] | None = None,
    **_: Any,
) -> Float[Array, "L B N T S"]:
    """Returns what `attention_patterns` does, of queries and keys that were observed of tokens of
    this shape [B T].

    Raises:
      ValueError: as `attention_patterns`.
    """
    if split_virtual(params)[1] is not None:
        raise ValueError("this model has virtual tokens before every text; merge or detach them.")
    numbers = layers_with(config, "query")
    if not numbers:
        raise ValueError("no layer of this model attends; all are recurrent.")
    where = jnp.arange(shape[1])[None] if positions is None else jnp.asarray(positions)
    prefix = prefix if config.prefix_lm else None
    inputs = layer_inputs_of(config, params, MaskInputs(where, where, segments, segments, prefix))
    return jnp.stack(
        [
            _pattern(config, params, number, inputs, observed["query"][i], observed["key"][i])
            for i, number in enumerate(numbers)
        ]
    )


def _pattern(
    config: ModelConfig, params: Params, number: int, inputs: LayerInputs, q: Array, k: Array
) -> Float[Array, "B N T S"]:
    """The weights of one layer, from the scores that `attention.reference` softmaxes."""
    layer = config.stack[number]
    bias = config.positions_in(layer)
    bias = bias if bias in ("alibi", "t5") else "none"
    how = ScoreConfig(
        layer, config.scale, config.attention_cap, bias, config.t5_distance, config.causal
    )
    logits = scores(q, k, inputs.mask_inputs, how, inputs.tables.get(bias))
    logits = logits.reshape(logits.shape[0], -1, *logits.shape[3:])
    if not config.attention_sink:
        return jax.nn.softmax(logits, axis=-1)
    sink = layer_params(config, params, number)["attention"]["sink"].astype(jnp.float32)
    virtual = jnp.broadcast_to(sink.reshape(1, -1, 1, 1), (*logits.shape[:3], 1))
    return jax.nn.softmax(jnp.concatenate([logits, virtual], axis=-1), axis=-1)[..., :-1]


def layer_params(config: ModelConfig, params: Params, number: int) -> Params:
    """Returns the parameters of one layer."""
    stacks, index = params["layers"], number
    if config.mixed:
        kinds = [config.stack_of(layer) for layer in config.stack]
        stacks, index = stacks[kinds[number]], kinds[:number].count(kinds[number])
    return jax.tree.map(lambda leaf: leaf[index], stacks)


# --- kinds of head


def head_scores(
    patterns: Float[Array, "L B N T S"], tokens: Int[Array, "B T"]
) -> dict[str, Float[Array, "L N"]]:
    """Returns for each kind the attention that a head gives to the tokens that such a head looks
    at, as a mean over the queries that have one; 0 to 1.

    previous: the token before. duplicate: earlier tokens equal to this one. induction: the tokens
    that followed those (Olsson et al. 2022, In-context Learning and Induction Heads,
    arXiv:2209.11895, prefix matching). On text, frequent words mix these up: use
    `repeated_tokens`.
    """
    tokens = jnp.asarray(tokens)
    found = {}
    for kind in KINDS:
        looked = looked_at(kind, tokens)
        count = jnp.maximum(looked.any(-1).sum(), 1)
        found[kind] = jnp.einsum("lbnts,bts->ln", patterns, looked.astype(jnp.float32)) / count
    return found


def looked_at(kind: str, tokens: Int[Array, "B T"]) -> Bool[Array, "B T S"]:
    """Returns which keys a head of this kind looks at from each query.

    Raises:
      ValueError: there is no such kind.
    """
    query, key = jnp.arange(tokens.shape[1])[None, :, None], jnp.arange(tokens.shape[1])[None, None]
    if kind == "previous":
        return jnp.broadcast_to(key == query - 1, (*tokens.shape, tokens.shape[1]))
    same = tokens[:, :, None] == tokens[:, None, :]
    if kind == "duplicate":
        return same & (key < query)
    if kind == "induction":
        before = jnp.pad(same[:, :, :-1], ((0, 0), (0, 0), (1, 0)))  # of the token before the key
        return before & (key <= query) & (key > 0)
    raise ValueError(f"{kind!r} is no kind of head; there are {', '.join(KINDS)}.")


def repeated_tokens(
    key: Key, rows: int, half: int, vocabulary: int, first: int = 0
) -> Int[Array, "B T"]:
    """Returns rows of `half` different random tokens of [first, vocabulary), twice each row: what
    an induction head predicts in the second half, and nothing else can.

    Raises:
      ValueError: there are fewer tokens than `half`.
    """
    if vocabulary - first < half:
        raise ValueError(
            f"{half} different tokens do not fit into a vocabulary of {vocabulary - first}."
        )

    def row(key: Key) -> Int[Array, " half"]:
        drawn = jax.random.uniform(key, (vocabulary - first,))
        return jax.lax.top_k(drawn, half)[1] + first

    once = jax.vmap(row)(jax.random.split(key, rows))
    return jnp.concatenate([once, once], axis=1)


# --- rollout


def attention_rollout(
    patterns: Float[Array, "L B N T S"], stream: float = 0.5
) -> Float[Array, "B T S"]:
    """Returns how much of each input token reaches each output position, if heads were averaged and
    values copied: the product over layers of stream · identity + (1 − stream) · mean pattern.

    Args:
      stream: share that the residual stream carries past each layer.

    Source: Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers, arXiv:2005.00928,
    section 3.
    """
    mixed = patterns.mean(2)
    own = jnp.broadcast_to(jnp.eye(mixed.shape[-1])[None], mixed.shape[1:])

    def through(reached: Array, layer: Array) -> tuple[Array, None]:
        return jnp.einsum("btu,bus->bts", stream * own + (1 - stream) * layer, reached), None

    return jax.lax.scan(through, own, mixed)[0]
