"""The layers of a model that reads pictures, and their initial parameters.

vision/patches   vision/encoder/…   vision/pool/…   vision/projector/…   vision/frames   joint/…
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Key, Params
from gptjax.model.layers import Declared, Linear, Norm

if TYPE_CHECKING:
    from gptjax.model.config import ModelConfig

COLOURS = 3

SHARED = (*("init_std", "residual_init", "compute", "attention", "layers", "remat", "remat_names"),)
"""Settings that the encoder of pictures takes from the model."""


def picture_encoder(config: ModelConfig) -> ModelConfig:
    """Returns the encoder of pictures as a model of its own: a text of patches, after a class token
    if it has one, which is the whole vocabulary."""
    from gptjax.model.config import ModelConfig  # it has a field for our options

    v = config.vision
    return ModelConfig(
        vocab_size=1,
        context=v.patches + v.class_token,
        width=v.width,
        num_layers=v.num_layers,
        num_heads=v.num_heads,
        feed_forward=v.feed_forward,
        activation=v.activation,
        norm_epsilon=v.norm_epsilon,
        embedding_norm=v.embedding_norm,
        causal=False,
        **{name: getattr(config, name) for name in SHARED},
    )


def patch_projection(config: ModelConfig) -> Linear:
    """From the pixels of a patch to the encoder, or straight to the embeddings."""
    v = config.vision
    width = v.width if v.num_layers else config.entrance_dim
    inputs, axes = (COLOURS, v.side, v.side), (None, None, None, "embed")
    return Linear(inputs, (width,), axes, config.init_std, bias=v.patch_bias)


def projector_layers(config: ModelConfig) -> dict[str, Linear]:
    """From the encoder's states to embeddings, or to the joint space: the layers in order."""
    v = config.vision
    inside = v.width * (v.merge**2 if v.merged == "joined" else 1)
    out = config.entrance_dim if v.joint is None else v.joint.width
    sizes = {"none": (), "linear": (inside, out), "mlp": (inside, out, out)}[v.projector]
    names = ("linear",) if v.projector == "linear" else ("up", "down")
    return {
        name: Linear((a,), (b,), (None, "embed"), config.init_std, bias=v.projector_bias)
        for name, a, b in zip(names, sizes, sizes[1:], strict=False)
    }


def projector_norm(config: ModelConfig) -> Norm:
    """The norm before the projector."""
    v = config.vision
    return Norm("rmsnorm", v.width, v.norm_epsilon, bias=False, axis=None)


def pool_layers(config: ModelConfig) -> dict[str, Linear | Norm]:
    """What a learned query attends with, and the MLP after it (SigLIP)."""
    v, std = config.vision, config.init_std
    head, mlp = v.width // v.num_heads, v.feed_forward or 4 * v.width
    into = Linear((v.width,), (v.num_heads, head), ("embed", "heads", "head"), std, bias=True)
    return {
        "query": into,
        "key": into,
        "value": into,
        "out": Linear((v.num_heads, head), (v.width,), ("heads", "head", "embed"), std, bias=True),
        "norm": Norm("layernorm", v.width, v.norm_epsilon, bias=True),
        "up": Linear((v.width,), (mlp,), ("embed", "mlp"), std, bias=True),
        "down": Linear((mlp,), (v.width,), ("mlp", "embed"), std, bias=True),
    }


def caption_projection(config: ModelConfig) -> Linear:
    """From the state of a whole text to the joint space."""
    joint = config.vision.joint
    sizes = (config.width,), (joint.width,)
    return Linear(*sizes, ("embed", None), config.init_std, bias=joint.kind == "sigmoid")


def vision_boxes(
    config: ModelConfig, key: Key, boxed: Callable[[ModelConfig, Key], Params]
) -> Params:
    """Returns the parameters of all of it in Linen's boxes.

    Args:
      boxed: gives those of a model; the encoder is one.
    """
    v, keys = config.vision, iter(jax.random.split(key, 16))

    def made(layer: Linear | Norm) -> Params:
        inputs = layer.inputs if isinstance(layer, Linear) else (layer.width,)
        return layer.init(next(keys), jnp.zeros((1, 1, *inputs)))["params"]

    vision: Params = {"patches": made(patch_projection(config))}
    if v.num_layers:
        own = boxed(picture_encoder(config), next(keys))
        vision["encoder"] = {k: x for k, x in own.items() if v.class_token or k != "embedding"}
    if v.pool == "attention":
        probe = config.init_std * jax.random.normal(next(keys), (1, v.width))
        layers = {name: made(layer) for name, layer in pool_layers(config).items()}
        vision["pool"] = {"probe": Declared(probe, (None, "embed")), **layers}
    if v.projector != "none":
        vision["projector"] = {
            name: made(layer) for name, layer in projector_layers(config).items()
        }
    if v.projector_norm:
        vision["projector_norm"] = made(projector_norm(config))
    if v.frames > 1:
        times = config.init_std * jax.random.normal(next(keys), (v.frames, config.entrance_dim))
        vision["frames"] = Declared(times, (None, "embed"))
    if v.joint is None:
        return {"vision": vision}
    joint = {"text": made(caption_projection(config))}
    scale, bias = (jnp.log(10.0), -10.0) if v.joint.kind == "sigmoid" else (2.6592, None)
    if v.joint.kind == "softmax":  # their files have one number, SigLIP's a list of one
        joint["scale"] = Declared(jnp.asarray(scale, jnp.float32), ())
    else:
        joint["scale"] = Declared(jnp.full((1,), scale), (None,))
    if bias is not None:
        joint["bias"] = Declared(jnp.full((1,), bias), (None,))
    return {"vision": vision, "joint": joint}
