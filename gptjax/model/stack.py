"""The layers one after another, from one stacked parameter tree: unrolled, or as a compiled loop
over repeats of the pattern.

Read `Block` (one layer), then `run_stack`. Layers with the same parameters are one stack, whatever
their windows or positions. Where some have experts and some have not there are two, `dense` and
`sparse`, and recurrent layers have their own (`recurrent_dense`); each is in the order of depth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Float, Int, Key, Params
from gptjax.model.activations import Observed, Probe
from gptjax.model.attention.cross import CrossAttention
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.attention.order import goes_in_zigzag, run_in_zigzag
from gptjax.model.cache import Cache
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.layers import MLP, norm, skip_rows
from gptjax.model.mixers import MIXERS
from gptjax.model.moe.router import MoE
from gptjax.model.pipeline import run_in_stages
from gptjax.model.remat import kept
from gptjax.model.shortcuts import stream_with
from gptjax.sharding.constrain import axis_size, constrain_residual, platform
from gptjax.weights.dropout import dropout

State = tuple[Array, Cache | None]
"""What goes from layer to layer: the residual stream [B T D] and the cache."""


class LayerOutputs(NamedTuple):
    """What a layer gives besides its state; of several layers, stacked by name over those that
    have it."""

    aux: dict[str, Array]
    """Its part of `transformer.Output.aux`."""
    observed: Observed


class Block(nn.Module):
    """Attention, or another mixer, and MLP, each added to the residual stream, with norms where the
    config places them; attention to an encoder between them.

    Sources: before (pre): Radford et al. 2019; after the sum (post): Vaswani et al. 2017, section
    3.1; on both sides (sandwich): Gemma Team 2024, arXiv:2408.00118; on what is added (reordered):
    OLMo Team 2024, OLMo 2, arXiv:2501.00656; parallel: Chowdhery et al. 2022, PaLM.
    """

    config: ModelConfig
    layer: Layer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer_inputs: LayerInputs,
        cache: Cache | None = None,
        number: int | Int[Array, ""] = 0,
        key: Key | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None, LayerOutputs]:
        c, probe = self.config, layer_inputs.probe._replace(layer=number)
        for_attention, after_attention, after_mlp = (
            (None,) * 3 if key is None else jax.random.split(key, 3)
        )
        x, seen = probe.saved("stream", x, {})
        if layer_inputs.entrance is not None:
            x = stream_with(self, c, x, layer_inputs.entrance)

        def before(branch: str, x: Array) -> Array:
            return norm(c, f"{branch}_norm")(x) if c.norm_placement in ("pre", "sandwich") else x

        def added(branch: str, y: Array, key: Key | None, seen: Observed) -> tuple[Array, Observed]:
            if c.norm_placement in ("sandwich", "reordered"):
                name = "out_norm" if c.norm_placement == "sandwich" else "norm"
                y = norm(c, f"{branch}_{name}")(y)
            y = y if c.residual_scale == 1.0 else y * jnp.asarray(c.residual_scale, y.dtype)
            depth = (number + 1) / c.num_layers
            y = skip_rows(dropout(y, c.residual_dropout, key), c.stochastic_depth, depth, key)
            return probe(f"{branch}_out", y, seen)

        def after(branch: str, x: Array) -> Array:
            return norm(c, f"{branch}_norm")(x) if c.norm_placement == "post" else x

        for_mixing = before("attention", x)
        mixer = MIXERS[c.mixer(self.layer)]
        mix = mixer.module(c, self.layer, name=mixer.name)
        mixed, cache, seen = mix(for_mixing, layer_inputs, cache, number, for_attention, seen)
        if c.parallel != "none":
            for_mlp = for_mixing if c.parallel == "shared" else before("mlp", x)
            changed, aux, seen = self.mlp(for_mlp, layer_inputs, probe, seen)
            mixed, seen = added("attention", mixed, after_attention, seen)
            changed, seen = added("mlp", changed, after_mlp, seen)
            return x + mixed + changed, cache, LayerOutputs(aux, seen)
        mixed, seen = added("attention", mixed, after_attention, seen)
        x = after("attention", x + mixed)
        if c.has_encoder:
            for_cross, after_cross = (
                (None,) * 2 if key is None else jax.random.split(jax.random.fold_in(key, 3))
            )
            cross = CrossAttention(c, name="cross")
            read = cross(before("cross", x), layer_inputs, number, for_cross)
            read, seen = added("cross", read, after_cross, seen)
            x = after("cross", x + read)
        changed, aux, seen = self.mlp(before("mlp", x), layer_inputs, probe, seen)
        changed, seen = added("mlp", changed, after_mlp, seen)
        return after("mlp", x + changed), cache, LayerOutputs(aux, seen)

    def mlp(
        self, x: Float[Array, "B T D"], layer_inputs: LayerInputs, probe: Probe, seen: Observed
    ) -> tuple[Float[Array, "B T D"], dict[str, Array], Observed]:
        """The MLP, or the experts in its place."""
        c = self.config
        if c.sparse(self.layer):
            real = layer_inputs.mask_inputs.queries >= 0
            return MoE(c, name="moe")(x, real, probe, seen)
        y, seen = MLP(c, c.mlp_dim, name="mlp")(x, probe, seen)
        return y, {}, seen


def init_stack(config: ModelConfig, key: Key, x: Array, layer_inputs: LayerInputs) -> Params:
    """Initial parameters of all layers, each leaf with a leading dimension L, in Linen's boxes."""
    keys = jax.random.split(key, config.num_layers)
    slots, stacks = _slots(config), {}
    for kind in sorted({slot.kind for slot in slots}):
        own = [slot for slot in slots if slot.kind == kind]

        def one_block(key: Key, layer: Layer = own[0].layer) -> Params:
            return Block(config, layer).init(key, x, layer_inputs)["params"]

        numbers = jnp.asarray([slot.number for slot in own])
        stacks[kind] = jax.vmap(one_block)(keys[numbers] if config.mixed else keys)
    return stacks if config.mixed else stacks[slots[0].kind]


# --- the stack


class _Slot(NamedTuple):
    """One layer of a model, and where its parameters lie."""

    number: int
    """Its depth."""
    layer: Layer
    kind: str
    """The stack that holds its parameters."""
    index: int
    """Its place in that stack."""


def _slots(config: ModelConfig) -> list[_Slot]:
    """All layers in the order of depth."""
    slots, counts = [], Counter()
    for number, layer in enumerate(config.stack):
        kind = config.stack_of(layer)
        slots.append(_Slot(number, layer, kind, counts[kind]))
        counts[kind] += 1
    return slots


def run_stack(
    config: ModelConfig,
    layers: Params | tuple[Params, ...],
    x: Float[Array, "B T D"],
    layer_inputs: LayerInputs,
    cache: Cache | None,
    key: Key | None,
) -> tuple[Float[Array, "B T D"], Cache | None, LayerOutputs]:
    """Reads x through all layers; gives the result, the cache, and the layers' other outputs."""
    if cache is None and axis_size("context") > 1 and goes_in_zigzag(config, x, layer_inputs):
        return run_in_zigzag(run_stack, config, layers, x, layer_inputs, key)
    if cache is None and axis_size("stage") > 1:
        return run_in_stages(run_part, config, layers, x, layer_inputs, key)
    return run_part(config, config, 0, layers, x, layer_inputs, cache, key)


def run_part(
    config: ModelConfig,
    part: ModelConfig,
    offset: int | Int[Array, ""],
    layers: Params | tuple[Params, ...],
    x: Float[Array, "B T D"],
    layer_inputs: LayerInputs,
    cache: Cache | None,
    key: Key | None,
) -> tuple[Float[Array, "B T D"], Cache | None, LayerOutputs]:
    """Reads x through consecutive layers of a model: those before the pattern, then the repeats of
    the pattern, then those that are left. Only the repeats can be a compiled loop.

    Args:
      part: the config of these layers as a model of their own.
      offset: number of layers before them.
    """
    slots = _slots(part)
    stacks = layers if part.mixed else {slots[0].kind: layers}
    block = _block(config, offset, layer_inputs, key)
    begin, period = min(len(part.first), len(slots)), len(part.pattern)
    repeats = (len(slots) - begin) // period if scanned(config) else 0
    end = begin + repeats * period

    state, first = _unrolled(block, slots[:begin], stacks, (x, cache))
    state, repeated = _scanned(block, slots[begin:end], period, stacks, state)
    state, last = _unrolled(block, slots[end:], stacks, state)
    outputs = [*first, *repeated, *last]
    aux = _by_name([output.aux for output in outputs], jnp.concatenate)
    observed = _by_name([output.observed for output in outputs], jnp.concatenate)
    return *state, LayerOutputs(aux, observed)


ReadLayer = Callable[[Layer, State, Params, int | Int[Array, ""]], tuple[State, LayerOutputs]]
"""(layer, state, its parameters, its number in the part) → the next state, and its outputs."""


def _block(
    config: ModelConfig, offset: int | Int[Array, ""], layer_inputs: LayerInputs, key: Key | None
) -> ReadLayer:
    """The function that reads the state through one layer, with the config's rematerialisation."""

    def block(
        layer: Layer, state: State, weights: Params, number: int | Int[Array, ""]
    ) -> tuple[State, LayerOutputs]:
        number, (x, cache) = offset + number, state
        own_key = None if key is None else jax.random.fold_in(key, number)
        x, cache, outputs = Block(config, layer).apply(
            {"params": weights}, x, layer_inputs, cache, number, own_key
        )
        return (constrain_residual(x), cache), outputs

    if config.remat == "none":
        return block
    return jax.checkpoint(
        block, policy=kept(config), prevent_cse=not scanned(config), static_argnums=0
    )


def _unrolled(
    block: ReadLayer, slots: Sequence[_Slot], stacks: dict[str, Any], state: State
) -> tuple[State, list[LayerOutputs]]:
    """Reads the state through layers one by one; outputs of each have a leading dimension 1."""
    apart = {kind: _apart(stacks[kind]) for kind in {slot.kind for slot in slots}}
    outputs = []
    for slot in slots:
        state, output = block(slot.layer, state, apart[slot.kind][slot.index], slot.number)
        outputs.append(jax.tree.map(lambda leaf: leaf[None], output))
    return state, outputs


def _scanned(
    block: ReadLayer, slots: Sequence[_Slot], period: int, stacks: dict[str, Any], state: State
) -> tuple[State, list[LayerOutputs]]:
    """Reads the state through repeats of a pattern of layers in a compiled loop; the outputs of all
    are stacked."""
    if not slots:
        return state, []
    repeats, pattern = len(slots) // period, slots[:period]
    begins = {kind: _first(pattern, kind) for kind in {slot.kind for slot in pattern}}

    def by_repeat(stack: Params, begin: int, count: int) -> Params:
        return jax.tree.map(
            lambda leaf: leaf[begin : begin + repeats * count].reshape(
                repeats, count, *leaf.shape[1:]
            ),
            stack,
        )

    parts = {
        kind: by_repeat(stacks[kind], begin, sum(slot.kind == kind for slot in pattern))
        for kind, begin in begins.items()
    }

    def repeat(state: State, inputs: tuple[dict[str, Params], Array]) -> tuple[State, LayerOutputs]:
        (weights, number), outputs = inputs, []
        for i, slot in enumerate(pattern):
            index = slot.index - begins[slot.kind]
            own = jax.tree.map(lambda leaf, index=index: leaf[index], weights[slot.kind])
            state, output = block(slot.layer, state, own, number + i)
            outputs.append(output)
        aux = _by_name([output.aux for output in outputs], jnp.stack)
        observed = _by_name([output.observed for output in outputs], jnp.stack)
        return state, LayerOutputs(aux, observed)

    numbers = slots[0].number + period * jnp.arange(repeats)
    state, outputs = jax.lax.scan(repeat, state, (parts, numbers))
    return state, [jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)]


def _first(slots: Sequence[_Slot], kind: str) -> int:
    """The place in its stack of the first layer of a kind."""
    return next(slot.index for slot in slots if slot.kind == kind)


def _by_name(
    outputs: Sequence[dict[str, Array]], join: Callable[[list[Array]], Array]
) -> dict[str, Array]:
    """Joins outputs of the same name, in order; a layer need not have all of them."""
    names = dict.fromkeys(name for output in outputs for name in output)
    return {name: join([output[name] for output in outputs if name in output]) for name in names}


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
    """The stack is a compiled loop: where it is asked for, or if it is deeper than `UNROLLED`."""
    most = UNROLLED.get(backend or platform(), 0)
    return config.layers == "scan" or (config.layers == "auto" and config.num_layers > most)


UNROLLED = {"cpu": math.inf, "gpu": 24}
"""The deepest stack that is unrolled, by platform. On a CPU a loop costs about 30 %; on GPUs others
found it slower too (github.com/jax-ml/jax/issues/24411), but deep stacks then compile for
minutes."""
