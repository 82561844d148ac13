"""The parameters of a model: initial values, shapes, logical axes and roles, from a config alone.

    embedding/embedding [V D]   positions/embedding [context D]   distances/bias [buckets N]
    layers/… [L …]   norm/…   head/kernel [D V]   vision/…

A classifier has classes/kernel [D classes] and classes/bias instead of an output; blocks that
predict further tokens are stacked in ahead/….

An encoder of a side text has positions, distances, layers and norm of its own below `encoder`; one
of frames has them below `frames`, with its input and output. Where only some layers have experts,
the two kinds are stacked apart: layers/dense/… and layers/sparse/….
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Axes, Key, Params
from gptjax.model import positions as place
from gptjax.model.activations import Probe
from gptjax.model.attention.biases import alibi_slopes
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.attention.mask import MaskInputs
from gptjax.model.cache import Memory, Slots
from gptjax.model.chained import init_chained
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.inputs.frames import frame_layers
from gptjax.model.inputs.vision_parts import vision_boxes
from gptjax.model.layers import Declared, Linear, Table, norm
from gptjax.model.shortcuts import Entrance, source_of_values, value_table
from gptjax.model.stack import init_stack
from gptjax.weights.virtual import Prefix
from gptjax.weights.weight import Role

Roles = Any
"""A tree like the parameters whose leaves are `weights.Role`."""


def init(config: ModelConfig, key: Key) -> Params:
    """Returns the initial parameters, float32. Layers are stacked: each leaf below `layers` has a
    leading dimension L."""
    return nn.meta.unbox(_boxed(config, key))


def shapes(config: ModelConfig) -> Params:
    """Returns the shapes and types of the parameters; nothing is allocated."""
    return jax.eval_shape(functools.partial(init, config), jax.random.key(0))


def with_output(params: Params, config: ModelConfig, classes: Params) -> Params:
    """Returns the parameters of a model that predicts tokens with an output over the classes of
    `config` instead."""
    kept = {name: tree for name, tree in params.items() if name in shapes(config)}
    return {**kept, "classes": classes}


def axes(config: ModelConfig) -> Axes:
    """Returns the logical axis names of every parameter's dimensions; stacked layers begin with
    `layers`."""
    return _declared(config, lambda box, stack: ("layers", *box.names) if stack else box.names)


def roles(config: ModelConfig) -> Roles:
    """Returns the role of every parameter: how many dimensions are stacked, how many are inputs of
    a product, and whether weight decay shrinks it."""

    def role(box: Declared, stack: bool) -> Role:
        return box.role._replace(stacked=box.role.stacked + stack)

    return _declared(config, role)


def _declared(config: ModelConfig, of: Callable[[Declared, bool], Any]) -> Any:
    """A tree like the parameters of what a function gives of each box; its second argument says
    whether the parameter lies in a stack of layers."""
    boxed = jax.eval_shape(functools.partial(_boxed, config), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, box: of(box, any(key.key in ("layers", "ahead") for key in path)),
        boxed,
        is_leaf=lambda leaf: isinstance(leaf, Declared),
    )


@functools.partial(jax.jit, static_argnums=0)
def _boxed(config: ModelConfig, key: Key) -> Params:
    """Parameters in Linen's boxes that hold the axis names. Compiled, and so traced once, though a
    start asks for shapes, axes and values by turns."""
    keys = iter(jax.random.split(key, 5))
    config = dataclasses.replace(
        config, attention="reference"
    )  # the one position below is no case for any other
    x, where = jnp.zeros((1, 1, config.width), config.compute), jnp.zeros((1, 1), jnp.int32)
    mask_inputs, params = MaskInputs(where, where), {}
    if biased_by_distance(config):
        buckets = config.init_std * jax.random.normal(
            jax.random.fold_in(key, 5), (config.t5_buckets, config.num_heads)
        )
        params["distances"] = {"bias": Declared(buckets, ("buckets", "heads"))}
    layer_inputs = layer_inputs_of(config, nn.meta.unbox(params), mask_inputs)
    if config.shortcuts is not None:
        layer_inputs = layer_inputs._replace(entrance=Entrance(x, None))

    tokens = embedding_table(config, config.vocabulary, "vocab")
    params["embedding"] = tokens.init(next(keys), where)["params"]
    params["layers"] = init_stack(config, next(keys), x, layer_inputs)
    final = next(keys)
    if config.norm_placement != "post" and config.norm_scale:
        params["norm"] = norm(config).init(final, x)["params"]
    if config.positions == "learned":
        params["positions"] = embedding_table(config, config.context, "context").init(
            next(keys), where
        )["params"]
    if config.ahead:
        further = config.further
        inputs = layer_inputs_of(further, nn.meta.unbox(params), mask_inputs)
        begin = init_chained if config.ahead_chained else init_stack
        params["ahead"] = begin(further, jax.random.fold_in(key, 8), x, inputs)
    if config.classes:
        params["classes"] = class_head(config).init(jax.random.fold_in(key, 9), x)["params"]
        config = dataclasses.replace(
            config, tied=True, head_transform=False, logit_bias=False
        )  # no output over tokens
    if not config.tied:
        params["head"] = head(config).init(next(keys), _vector(config.embedding_dim))["params"]
    params |= _beside_embedding(config, key)
    if config.encoder_layers:
        beside = _boxed(config.encoder, jax.random.fold_in(key, 7))
        params["encoder"] = {name: beside[name] for name in ENCODERS_OWN if name in beside}
    if config.frames is not None:
        params["frames"] = _frame_encoder(config, jax.random.fold_in(key, 10))
    if config.vision is not None:
        params |= vision_boxes(config, jax.random.fold_in(key, 13), _boxed)
    return params


def _beside_embedding(config: ModelConfig, key: Key) -> Params:
    """Parameters, in Linen's boxes, of what not every model does behind its embedding and before
    its output."""
    params: Params = {}
    if config.embedding_norm and config.norm_scale:
        params["embedding_norm"] = _norm(config, config.entrance_dim, key)
    if source_of_values(config) == "table":
        own = jax.random.fold_in(key, 14)
        params["values"] = value_table(config).init(own, jnp.zeros((1, 1), jnp.int32))["params"]
    if config.head_transform:
        linear = head_transform(config).init(jax.random.fold_in(key, 6), _vector(config.width))
        last = _norm(config, config.embedding_dim, key)
        params["transform"] = {"linear": linear["params"], "norm": last}
    if config.embedding_width is not None:
        params["projection"] = _projections(config, jax.random.fold_in(key, 12))
    if config.logit_bias:
        params["logits"] = {"bias": Declared(jnp.zeros((config.vocabulary,)), ("vocab",))}
    return params


def _norm(config: ModelConfig, width: int, key: Key) -> Params:
    return norm(config, width=width).init(key, _vector(width))["params"]


def _projections(config: ModelConfig, key: Key) -> Params:
    """Parameters of the projections from and to the width of token embeddings, in Linen's boxes."""
    params = {"into": embedding_projection(config)}
    if not (config.head_transform or config.classes):
        params["out_of"] = output_projection(config)
    return {
        name: layer.init(jax.random.fold_in(key, n), _vector(*layer.inputs))["params"]
        for n, (name, layer) in enumerate(params.items())
    }


def _vector(*widths: int) -> Array:
    """What a layer that reads vectors of this width is initialised with."""
    return jnp.zeros((1, 1, *widths))


def _frame_encoder(config: ModelConfig, key: Key) -> Params:
    """Parameters of the encoder of frames, in Linen's boxes."""
    layers, beside = frame_layers(config), _boxed(config.frame_encoder, key)
    keys = jax.random.split(jax.random.fold_in(key, 11), max(2, len(layers)))
    params = {name: beside[name] for name in ENCODERS_OWN if name in beside}
    for own, (name, layer) in zip(keys, layers.items(), strict=False):
        params[name] = layer.init(own, _vector(*layer.inputs))["params"]
    return params


ENCODERS_OWN = ("positions", "distances", "embedding_norm", "layers", "norm")
"""What an encoder does not share with its decoder."""


def embedding_table(config: ModelConfig, count: int, axis: str) -> Table:
    """A table of embeddings: of tokens, or of learned positions."""
    width = config.embedding_dim if axis == "vocab" else config.entrance_dim
    return Table(count, width, axis, config.init_std, config.compute)


def embedding_projection(config: ModelConfig) -> Linear:
    """From the width of token embeddings to the model's. Source: ALBERT, Lan et al. 2019,
    arXiv:1909.11942, section 3.1; without a bias where tokens are projected (OPT), as published."""
    bias = config.bias and config.embedding_projection == "stream"
    sizes = (config.embedding_dim,), (config.width,)
    return Linear(*sizes, (None, "embed"), config.init_std, bias)


def output_projection(config: ModelConfig) -> Linear:
    """From the model's width to that of token embeddings, before the output (OPT)."""
    sizes = (config.width,), (config.embedding_dim,)
    return Linear(*sizes, ("embed", None), config.init_std, bias=False)


def head(config: ModelConfig) -> Linear:
    """The output over tokens, where it is not tied to the embedding."""
    names = ("embed", "vocab")
    return Linear((config.embedding_dim,), (config.vocabulary,), names, config.init_std, bias=False)


def class_head(config: ModelConfig) -> Linear:
    """The output over classes."""
    names = ("embed", None)
    return Linear((config.width,), (config.classes,), names, config.init_std, bias=True)


def head_transform(config: ModelConfig) -> Linear:
    """The linear layer before the output (BERT)."""
    names = ("embed", None)
    return Linear((config.width,), (config.embedding_dim,), names, config.init_std, config.bias)


def biased_by_distance(config: ModelConfig) -> bool:
    """Whether some layers' attention has T5's bias."""
    return any(config.positions_in(layer) == "t5" for layer in config.stack)


def layer_inputs_of(
    config: ModelConfig,
    params: Params,
    mask_inputs: MaskInputs,
    slots: Slots | None = None,
    memory: Memory | None = None,
    probe: Probe | None = None,
    virtual: Prefix | None = None,
) -> LayerInputs:
    """What all layers need of the positions, computed once."""

    def angles(layer: Layer) -> Array | None:
        if config.positions_in(layer) != "rope":
            return None
        return place.turns(
            mask_inputs.queries,
            config.rotary_dim,
            layer.rope_base or config.rope_base,
            config.scaling_in(layer),
        )

    tables = {"alibi": alibi_slopes(config.num_heads)} | (
        {"t5": params["distances"]["bias"]} if biased_by_distance(config) else {}
    )
    return LayerInputs(
        mask_inputs=mask_inputs,
        angles={layer: angles(layer) for layer in config.stack},
        tables=tables,
        slots=slots,
        memory=memory,
        probe=Probe() if probe is None else probe,
        virtual=virtual,
    )
