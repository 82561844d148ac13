"""Pictures as embeddings that a model reads, and pictures and texts in one space.

Read `see`, then `look`, which finds the pictures of a batch, and `embed_pictures` and
`embed_captions` of models that compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Float, Int, Num, Numbers, Params
from gptjax.core.config import require
from gptjax.model.config import ModelConfig
from gptjax.model.inputs.options import Vision
from gptjax.model.inputs.vision_parts import (
    caption_projection,
    patch_projection,
    picture_encoder,
    pool_layers,
    projector_layers,
    projector_norm,
)
from gptjax.model.transformer import Soft, forward


def look(config: ModelConfig, params: Params, columns: Mapping[str, Numbers] | None) -> Soft | None:
    """Returns the embeddings of a batch's pictures and their places, for `forward`; `None` without
    pictures.

    Args:
      columns: `pixels` [B I H W 3] and `places` [B I·Q], −1 where there is no picture.
    """
    if not columns or "pixels" not in columns:
        return None
    return Soft(see(config, params, columns["pixels"]), jnp.asarray(columns["places"]))


def see(
    config: ModelConfig, params: Params, pixels: Num[Numbers, "B I H W C"]
) -> Float[Array, "B Q entrance"]:
    """Returns the embeddings of each row's pictures, one picture after another; each is read by
    itself. Frames of videos are pictures, to whose embeddings the place of the frame is added.

    Args:
      pixels: 8 bits a colour, as `image.prepared` gives them; of videos the frames of one after
        those of another.

    Raises:
      ValueError: the model reads no pictures, those of another size, or videos of other lengths.
    """
    rows, count, *size, _ = pixels.shape
    x = _projected_patches(config, params, jnp.asarray(pixels).reshape(-1, *size, 3))
    if config.vision.num_layers:
        x = _projected(config, params, _merged(config, _encoded(config, params, x)))
    if config.vision.frames > 1:
        x = _timed(config, params, x, count)
    return x.reshape(rows, count * config.vision.tokens, config.entrance_dim)


def _timed(
    config: ModelConfig, params: Params, x: Float[Array, "N Q entrance"], count: int
) -> Float[Array, "V F Q entrance"]:
    """Adds the learned place in time of each frame."""
    number = config.vision.frames
    if count % number:
        raise ValueError(f"this model reads videos of {number} frames, and got {count} frames.")
    times = params["vision"]["frames"][None, :, None].astype(x.dtype)
    return x.reshape(-1, number, *x.shape[1:]) + times


def cut_patches(vision: Vision, pixels: Num[Array, "N H W C"]) -> Float[Array, "N P C p p"]:
    """Returns squares of normalised pixels, line by line from the top left, as a convolution reads
    them: colour, row, column. What lies beyond the border is 0, the mean.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1.
    """
    (rows, columns), overlap = vision.grid, vision.overlap
    mean, std = (jnp.asarray(each).reshape(1, 1, 1, 3) for each in (vision.mean, vision.std))
    x = (pixels.astype(jnp.float32) / 255 - mean) / std
    x = jnp.pad(x, ((0, 0), (overlap, overlap), (overlap, overlap), (0, 0)))
    inside = np.arange(vision.side)
    x = x[:, vision.patch * np.arange(rows)[:, None] + inside]  # [N rows p W C]
    x = x[:, :, :, vision.patch * np.arange(columns)[:, None] + inside]  # [N rows p columns p C]
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(len(x), vision.patches, -1, vision.side, vision.side)


def _projected_patches(
    config: ModelConfig, params: Params, pixels: Num[Array, "N H W C"]
) -> Float[Array, "N P D"]:
    v = config.vision
    if v is None or pixels.shape[1:3] != v.size:
        raise ValueError(
            "this model reads no pictures."
            if v is None
            else f"this model reads pictures of {v.size}, and got {pixels.shape[1:3]}."
        )
    weights = {"params": params["vision"]["patches"]}
    return patch_projection(config).apply(weights, cut_patches(v, pixels).astype(config.compute))


def _encoded(
    config: ModelConfig, params: Params, x: Float[Array, "N P D"]
) -> Float[Array, "N S D"]:
    """The states of the encoder, the class token's first if there is one."""
    encoder, own = picture_encoder(config), params["vision"]["encoder"]
    first = int(config.vision.class_token)
    if not first:
        own = {**own, "embedding": {"embedding": jnp.zeros((1, x.shape[-1]))}}
    index = jnp.broadcast_to(first + jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    blank = jnp.zeros((x.shape[0], first + x.shape[1]), jnp.int32)
    return forward(encoder, own, blank, soft=Soft(x, index)).hidden


def _merged(config: ModelConfig, states: Float[Array, "N P D"]) -> Float[Array, "N Q D2"]:
    """One state of each square of them: all side by side, line by line, or their mean."""
    v = config.vision
    if v.merge == 1:
        return states
    rows, columns = v.grid
    cut = (-1, rows // v.merge, v.merge, columns // v.merge, v.merge, v.width)
    squares = states.reshape(cut).swapaxes(2, 3)
    if v.merged == "mean":
        return squares.mean((3, 4)).reshape(len(states), v.tokens, -1)
    return squares.reshape(len(states), v.tokens, -1)


def _projected(config: ModelConfig, params: Params, states: Array) -> Array:
    own = params["vision"]
    if config.vision.projector_norm:
        states = projector_norm(config).apply({"params": own["projector_norm"]}, states)
    for number, (name, layer) in enumerate(projector_layers(config).items()):
        states = jax.nn.gelu(states, approximate=False) if number else states
        states = layer.apply({"params": own["projector"][name]}, states)
    return states


# --- pictures and texts in one space ---


def _require_joint(config: ModelConfig) -> None:
    require(
        config.vision is not None and config.vision.joint is not None,
        "this model does not compare pictures with texts; it needs model.vision.joint.",
    )


def embed_pictures(
    config: ModelConfig, params: Params, pixels: Num[Numbers, "B H W C"]
) -> Float[Array, "B J"]:
    """Returns pictures, one a row, as vectors of length 1 in the space that texts share."""
    _require_joint(config)
    v = config.vision
    states = _encoded(config, params, _projected_patches(config, params, jnp.asarray(pixels)))
    if v.pool == "attention":
        pooled = _attended(config, params["vision"]["pool"], states)
    else:
        pooled = states[:, 0] if v.pool == "first" else states.mean(1)
    return _unit(_projected(config, params, pooled))


def _attended(config: ModelConfig, own: Params, states: Float[Array, "N P D"]) -> Array:
    """What a learned query makes of the states, and an MLP of that. Source: Zhai et al. 2021,
    arXiv:2106.04560, section 3.2 (multihead attention pooling)."""
    layers = pool_layers(config)

    def made(name: str, x: Array) -> Array:
        return layers[name].apply({"params": own[name]}, x)

    query = made("query", own["probe"][None].astype(states.dtype))
    key, value = made("key", states), made("value", states)
    scores = jnp.einsum("atnh,bsnh->bnts", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(states.dtype)
    x = made("out", jnp.einsum("bnts,bsnh->btnh", weights, value))
    hidden = jax.nn.gelu(
        made("up", made("norm", x)), approximate=config.vision.activation == "gelu"
    )
    return (x + made("down", hidden))[:, 0]


def embed_captions(
    config: ModelConfig,
    params: Params,
    tokens: Int[Numbers, "B T"],
    positions: Int[Numbers, "B T"] | None = None,
) -> Float[Array, "B J"]:
    """Returns texts, one a row, as vectors of length 1 in the space that pictures share: their last
    token's state, projected.

    Args:
      positions: −1 is padding, behind the text.
    """
    _require_joint(config)
    hidden = forward(config, params, tokens, positions=positions).hidden
    last = -1 if positions is None else jnp.asarray(positions).max(1)
    pooled = hidden[:, -1] if positions is None else hidden[jnp.arange(len(hidden)), last]
    return _unit(caption_projection(config).apply({"params": params["joint"]["text"]}, pooled))


def similarities(
    params: Params, captions: Float[Array, "B J"], pictures: Float[Array, "N J"]
) -> Float[Array, "B N"]:
    """Returns the logit of each text and picture that they belong together."""
    joint = params["joint"]
    logits = captions @ pictures.T * jnp.exp(joint["scale"]).reshape(1, 1)
    return logits + joint["bias"].reshape(1, 1) if "bias" in joint else logits


def _unit(x: Float[Array, "B J"]) -> Float[Array, "B J"]:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
