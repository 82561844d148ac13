"""Answers about pictures and videos: these and the prompt are read at once, as in training, and the
answer follows that prefix."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Num, Params
from gptjax.core.config import require
from gptjax.data.tasks import PictureTexts, Task, VideoAnswers, VisualAnswers
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.batch import Prefix
from gptjax.generate.decode import Decoding, empty_rows, padded
from gptjax.generate.history import History
from gptjax.model import KVCache, ModelConfig, Vision
from gptjax.model.inputs.image import prepared
from gptjax.model.inputs.image_files import decoded, read_image
from gptjax.sharding.constrain import use_mesh

Picture = str | Path | bytes | np.ndarray
"""A file, its content, or red, green and blue, 8 bits each [H W 3]; of models that read videos a
file, a folder, or such frames [frames H W 3]."""


def read_pictured_prompt(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    task: Task,
    prompt: str,
    pictures: Sequence[Picture],
    *,
    kv_cache: KVCache = "full",
    mesh: Mesh | None = None,
) -> Prefix:
    """Reads pictures, or videos, and a prompt about them, as the prefix of an answer.

    Raises:
      ConfigError: the model answers no questions about pictures, a picture can't be read, or all
        of it fills the context.
    """
    task = seeing_task(task)
    require(
        0 < len(pictures) <= task.images,
        f"there are {len(pictures)} {task.kind}, and this model reads 1 to {task.images} at once.",
    )
    ids = task.asked_about(tokenizer.encode(prompt).tolist(), tokenizer, len(pictures))
    require(
        len(ids) < config.context,
        f"the {task.kind} and the prompt have {len(ids)} tokens and the context is"
        f" {config.context}; shorten the prompt to leave room for an answer.",
    )
    shown = np.stack([pixels_for(task, one) for one in pictures])
    pixels = shown.reshape(-1, *shown.shape[-3:])
    tokens = padded([ids], config.context)
    places = task.places(tokens, tokenizer.vocab_size)[:, : len(pictures) * task.tokens_each]
    with use_mesh(mesh):
        length = np.int32([len(ids)])
        state = _read(config, params, tokens, length, pixels[None], places, kv_cache=kv_cache)
    return Prefix(ids, state)


def seeing_task(task: Task) -> VisualAnswers:
    """Returns the task of a model that answers questions about pictures.

    Raises:
      ConfigError: the model has another one, or nobody said how its prompts surround a picture.
    """
    require(
        isinstance(task, VisualAnswers),
        "this model was not trained to answer questions about pictures or videos; omit --image"
        " and --video.",
    )
    assert isinstance(task, VisualAnswers)
    task.require_prompts()
    return task


def pixels_for(task: VisualAnswers | Vision, picture: Picture) -> Num[np.ndarray, "*F H W 3"]:
    """Returns a picture as the model reads it, 8 bits a colour [H W 3], or the frames of a video
    that it reads [F H W 3]."""
    if isinstance(task, VideoAnswers):
        require(not isinstance(picture, bytes), "a video is a file, a folder or an array.")
        assert not isinstance(picture, bytes)
        return task.frames_of(picture)
    if isinstance(picture, np.ndarray):
        good = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        require(good, "a picture as an array needs 8 bits a colour and the shape [H W 3].")
        return prepared(picture, task.size, task.fit, task.cubic)
    image = decoded(picture) if isinstance(picture, bytes) else read_image(picture)
    return prepared(image, task.size, task.fit, task.cubic)


@functools.partial(jax.jit, static_argnames=("config", "kv_cache"))
def _read(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    length: Int[Array, " B"],
    pixels: Num[Array, "B I H W C"],
    places: Int[Array, "B Q"],
    *,
    kv_cache: KVCache,
) -> Decoding:
    """A row that has read all but its last token, those before it at once."""
    slots = config.context
    state = empty_rows(config, len(tokens), slots, kv_cache=kv_cache)
    cache: Any = model.empty_cache(config, len(tokens), slots, kv_cache=kv_cache, at_once=slots)
    place = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    positions = jnp.where(place < length[:, None] - 1, place, -1)
    soft = model.look(config, params, {"pixels": pixels, "places": places})
    prefix = jnp.broadcast_to(length[:, None] - 1, tokens.shape)
    read = model.forward(
        config, params, tokens, positions=positions, cache=cache, soft=soft, prefix=prefix
    )
    ids = jnp.zeros((len(tokens), slots), jnp.int32).at[:, : tokens.shape[1]].set(tokens)
    text = state.text._replace(
        history=History(ids, length, length), finished=jnp.ones_like(state.text.finished)
    )
    return Decoding(text, model.constrain_cache(read.cache))


def label_pictures(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    task: Task,
    pictures: Sequence[Picture],
    labels: Sequence[str] = (),
) -> Num[np.ndarray, "N labels"]:
    """Returns the probability of each label for each picture: of a model that compares the two
    those of any labels (zero-shot classification), of a classifier (ViT) those of its classes.

    Args:
      labels: texts such as "a red circle"; of a classifier none.

    Raises:
      ConfigError: the model does neither, or a picture can't be read.

    Source: Radford et al. 2021, CLIP, arXiv:2103.00020, section 3.1.
    """
    vision = config.vision
    if vision is not None and config.classes:
        pixels = np.stack([pixels_for(vision, one) for one in pictures])
        return np.asarray(jax.nn.softmax(_classes(config, params, pixels), axis=-1))
    require(
        vision is not None and isinstance(task, PictureTexts),
        "this model neither labels pictures nor compares them with texts; it needs a ViT, a CLIP, a"
        " SigLIP, or a run of the task PictureTexts.",
    )
    assert vision is not None and isinstance(task, PictureTexts)
    require(len(labels) > 1, "there is one label to choose from; give at least 2.")
    each = [task.text_ids(text, tokenizer)[: config.context] for text in labels]
    tokens = np.zeros((len(each), max(map(len, each))), np.int32)
    positions = np.full_like(tokens, -1)
    for row, ids in enumerate(each):
        tokens[row, : len(ids)], positions[row, : len(ids)] = ids, np.arange(len(ids))
    captions = _captions(config, params, tokens, positions)
    pixels = np.stack([pixels_for(vision, one) for one in pictures])
    logits = model.similarities(params, captions, _pictures(config, params, pixels)).T
    return np.asarray(jax.nn.softmax(logits, axis=-1))


def picture_classes(
    config: ModelConfig, params: Params, pixels: Num[Array, "N H W C"]
) -> Float[Array, "N classes"]:
    """Returns the logits of a classifier's classes for each picture, 8 bits a colour."""
    count = config.vision.patches
    places = jnp.broadcast_to(1 + jnp.arange(count, dtype=jnp.int32), (len(pixels), count))
    soft = model.look(config, params, {"pixels": pixels[:, None], "places": places})
    blank = jnp.zeros((len(pixels), 1 + count), jnp.int32)
    hidden = model.forward(config, params, blank, soft=soft).hidden
    return model.class_logits(config, params, hidden[:, :1])[:, 0]


_classes = jax.jit(picture_classes, static_argnames="config")
_captions = jax.jit(model.embed_captions, static_argnames="config")
_pictures = jax.jit(model.embed_pictures, static_argnames="config")
