"""The layers one after another, from one stacked parameter tree: unrolled, or as a compiled loop
over repeats of the pattern.

Read `Block` (one layer), then `run`. Layers with the same parameters are one stack, whatever their
windows or positions; where some have experts and some have not, there are two, `dense` and
`sparse`, each in the order of depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from gptjax.core.arrays import Array, Key, Params
from gptjax.model.attention.cross import CrossAttention
from gptjax.model.attention.layer import Attention, LayerInputs
from gptjax.model.attention.mla import LatentAttention
from gptjax.model.cache import Cache
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.layers import MLP, dropout, norm, skip_rows
from gptjax.model.moe.router import MoE
from gptjax.model.pipeline import run_in_stages
from gptjax.model.remat import kept
from gptjax.sharding.constrain import axis_size, constrain_residual, platform


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms where the config places
    them; attention to an encoder between them.

    Sources: before (pre): Radford et al. 2019; after the sum (post): Vaswani et al. 2017, section
    3.1; on both sides (sandwich): Gemma Team 2024, arXiv:2408.00118; on what is added (reordered):
    OLMo Team 2024, OLMo 2, arXiv:2501.00656; parallel: Chowdhery et al. 2022, PaLM.
    """

    config: ModelConfig
    layer: Layer

    @nn.compact
    def __call__(self, x, layer_inputs, cache=None, number=0, key=None):
        c = self.config
        for_attention, after_attention, after_mlp = (
            (None,) * 3 if key is None else jax.random.split(key, 3)
        )
        attention = (Attention if c.latent is None else LatentAttention)(
            c, self.layer, name="attention"
        )

        def mlp(x):
            if c.sparse(self.layer):
                return MoE(c, name="moe")(x, layer_inputs.mask_inputs.queries >= 0)
            return MLP(c, c.mlp_dim, name="mlp")(x), {}

        def before(branch, x):
            return norm(c, f"{branch}_norm")(x) if c.norm_placement in ("pre", "sandwich") else x

        def added(branch, y, key):
            if c.norm_placement in ("sandwich", "reordered"):
                y = norm(
                    c, f"{branch}_out_norm" if c.norm_placement == "sandwich" else f"{branch}_norm"
                )(y)
            return skip_rows(
                dropout(y, c.residual_dropout, key),
                c.stochastic_depth,
                (number + 1) / c.num_layers,
                key,
            )

        def after(branch, x):
            return norm(c, f"{branch}_norm")(x) if c.norm_placement == "post" else x

        for_mixing = before("attention", x)
        mixed, cache = attention(for_mixing, layer_inputs, cache, number, for_attention)
        if c.parallel != "none":
            for_mlp = for_mixing if c.parallel == "shared" else before("mlp", x)
            changed, told = mlp(for_mlp)
            return (
                x + added("attention", mixed, after_attention) + added("mlp", changed, after_mlp),
                cache,
                told,
            )
        x = after("attention", x + added("attention", mixed, after_attention))
        if c.encoder_layers:
            for_cross, after_cross = (
                (None,) * 2 if key is None else jax.random.split(jax.random.fold_in(key, 3))
            )
            found = CrossAttention(c, name="cross")(
                before("cross", x), layer_inputs, number, for_cross
            )
            x = after("cross", x + added("cross", found, after_cross))
        changed, told = mlp(before("mlp", x))
        return after("mlp", x + added("mlp", changed, after_mlp)), cache, told


def init_stack(config: ModelConfig, key: Key, x: Array, layer_inputs: LayerInputs) -> Params:
    """Initial parameters of all layers, each leaf with a leading dimension L, in Linen's boxes."""
    keys = jax.random.split(key, config.num_layers)
    kinds, stacks = _kinds(config), {}
    for kind in sorted(set(kinds)):
        numbers = [n for n, one in enumerate(kinds) if one == kind]

        def one_block(key, layer=config.stack[numbers[0]]):
            return Block(config, layer).init(key, x, layer_inputs)["params"]

        stacks[kind] = jax.vmap(one_block)(keys[jnp.asarray(numbers)] if config.mixed else keys)
    return stacks if config.mixed else stacks[kinds[0]]


def _kinds(config: ModelConfig) -> list[str]:
    """Which stack holds each layer."""
    return ["sparse" if config.sparse(layer) else "dense" for layer in config.stack]


def run(
    config: ModelConfig,
    layers: Params,
    x: Array,
    layer_inputs: LayerInputs,
    cache: Cache | None,
    key: Key | None,
) -> tuple[Array, Cache | None, dict[str, Array]]:
    """Reads x through all layers; gives what comes out, the cache, and what layers of experts tell,
    stacked."""
    if cache is None and axis_size("stage") > 1:
        return run_in_stages(_run, config, layers, x, layer_inputs, key)
    return _run(config, config, 0, layers, x, layer_inputs, cache, key)


def _run(
    config: ModelConfig,
    part: ModelConfig,
    before: int | Array,
    layers: Params,
    x: Array,
    layer_inputs: LayerInputs,
    cache: Cache | None,
    key: Key | None,
) -> tuple[Array, Cache | None, dict[str, Array]]:
    """Reads x through the layers of `part` of a model, which stand after so many others."""
    kinds = _kinds(part)
    stacks = layers if part.mixed else {kinds[0]: layers}

    def block(layer, state, weights, number):
        number = before + number
        layer_key = None if key is None else jax.random.fold_in(key, number)
        x = checkpoint_name(state[0], "stream")
        x, cache, told = Block(config, layer).apply(
            {"params": weights}, x, layer_inputs, state[1], number, layer_key
        )
        return (constrain_residual(x), cache), told

    if config.remat != "none":
        block = jax.checkpoint(
            block, policy=kept(config), prevent_cse=not scanned(config), static_argnums=0
        )

    def unrolled(state, begin, end):
        heard = []
        apart = {kind: _apart(stacks[kind]) for kind in set(kinds[begin:end])}
        for number in range(begin, end):
            weights = apart[kinds[number]][kinds[:number].count(kinds[number])]
            state, told = block(part.stack[number], state, weights, number)
            heard.append(jax.tree.map(lambda leaf: leaf[None], told))
        return state, heard

    def repeat(state, weights_and_begin):
        (weights, number), heard = weights_and_begin, []
        for i, layer in enumerate(part.pattern):
            kind = kinds[begin + i]
            state, told = block(
                layer, state, _at(weights[kind], kinds[begin : begin + i].count(kind)), number + i
            )
            heard += [told] if told else []
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *heard) if heard else {}

    period, begin = len(part.pattern), min(len(part.first), part.num_layers)
    repeats = (part.num_layers - begin) // period if scanned(config) else 0
    state, heard = unrolled((x, cache), 0, begin)
    if repeats:
        parts = {}
        for kind in set(kinds[begin : begin + period]):
            skipped, each = kinds[:begin].count(kind), kinds[begin : begin + period].count(kind)
            parts[kind] = jax.tree.map(
                lambda leaf, a=skipped, n=each: leaf[a : a + repeats * n].reshape(
                    repeats, n, *leaf.shape[1:]
                ),
                stacks[kind],
            )
        state, told = jax.lax.scan(repeat, state, (parts, begin + period * jnp.arange(repeats)))
        heard.append(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), told))
    state, rest = unrolled(state, begin + repeats * period, part.num_layers)
    heard = [told for told in heard + rest if told]
    return *state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *heard) if heard else {}


def _at(tree: Params, index: int) -> Params:
    """The parameters of one layer."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _apart(stack: Params | tuple[Params, ...]) -> Sequence[Params]:
    """The parameters of each layer.

    Split at once, since then the stack's gradient is one concatenation; that of a slice for each
    layer is a sum of as many padded stacks.
    """
    if isinstance(stack, tuple):  # prepared for decoding
        return stack
    leaves, tree = jax.tree.flatten(stack)
    split = (
        [jnp.squeeze(part, 0) for part in jax.lax.split(leaf, (1,) * len(leaf))] for leaf in leaves
    )
    return [tree.unflatten(layer) for layer in zip(*split, strict=True)]


def scanned(config: ModelConfig, backend: str | None = None) -> bool:
    """The stack is a compiled loop: always where it is asked for; by itself on anything but a CPU,
    where a loop costs about 30 %."""
    return config.layers == "scan" or (config.layers == "auto" and (backend or platform()) != "cpu")
