"""Pictures and texts in one space: each picture is told from the texts of the others in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.losses.loss import Frozen, Loss, LossConfig, Metrics, Reduction, Sum, Weight, per_weight
from gptjax.model import ModelConfig

HOTTEST = 4.6052
"""ln 100: the largest learned scale of the logits, as CLIP limits it."""


@dataclass(frozen=True)
class Contrastive(LossConfig):
    """The loss of `model.vision.joint.kind`, for the task `PictureTexts`. Other texts of the batch
    are what a picture is told from, so batch and micro-batch change what is learned; a text that
    stands twice in a batch counts as right for both.

    Sources: softmax: Radford et al. 2021, CLIP, arXiv:2103.00020, section 2.3; sigmoid: Zhai et al.
    2023, SigLIP, arXiv:2303.15343, section 3.
    """

    batches: ClassVar[str] = "pictures and texts"

    def build(self, config: ModelConfig, **models: ModelConfig) -> ContrastiveLoss:
        """Returns the loss for a model.

        Raises:
          ConfigError: the model does not compare pictures and texts.
        """
        require(
            config.vision is not None and config.vision.joint is not None,
            "loss Contrastive compares pictures with texts; set model.vision.joint.",
        )
        return ContrastiveLoss(config)


@dataclass(frozen=True)
class ContrastiveLoss(Loss):
    """The sum over pairs; its weight is their number.

    Metrics: `picture_accuracy`, the share of pictures whose own text, or an equal one, is the most
    likely of the batch; `text_accuracy`, that of texts whose own picture is.
    """

    model: ModelConfig

    def metrics(self) -> Mapping[str, Reduction]:
        """See the class."""
        return {name: per_weight(name) for name in ("picture_accuracy", "text_accuracy")}

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Sums over pairs. The key is not used."""
        vision = self.model.vision
        assert batch.columns is not None and vision is not None and vision.joint is not None
        pixels, positions = batch.columns["pixels"], jnp.asarray(batch.positions)
        captions = model.embed_captions(self.model, params, batch.tokens, positions)
        pictures = model.embed_pictures(self.model, params, pixels[:, 0])
        joint = {**params["joint"], "scale": jnp.minimum(params["joint"]["scale"], HOTTEST)}
        logits = model.similarities({"joint": joint}, captions, pictures)
        real = positions.max(1) >= 0
        alike = jnp.all(batch.tokens[:, None] == batch.tokens[None], axis=-1)
        alike &= positions.max(1)[:, None] == positions.max(1)[None]
        alike &= real[:, None] & real[None]
        logits = jnp.where(real[:, None] & real[None], logits, -1e9)
        if vision.joint.kind == "sigmoid":
            each = -jax.nn.log_sigmoid(jnp.where(alike, logits, -logits)) * real[None]
            losses = each.sum(1)
        else:
            losses = 0.5 * (_told_apart(logits, alike) + _told_apart(logits.T, alike))
        right = {
            "picture_accuracy": _hits(logits.T, alike),
            "text_accuracy": _hits(logits, alike),
        }
        sums = {name: jnp.sum(jnp.where(real, hits, 0.0)) for name, hits in right.items()}
        return jnp.sum(jnp.where(real, losses, 0.0)), real.sum(dtype=jnp.float32), sums


def _told_apart(logits: Float[Array, "B N"], alike: Array) -> Float[Array, " B"]:
    """−ln of the probability of those that are alike, in each row."""
    whole = jax.nn.logsumexp(logits, axis=1)
    return whole - jax.nn.logsumexp(jnp.where(alike, logits, -1e9), axis=1)


def _hits(logits: Float[Array, "B N"], alike: Array) -> Array:
    """Whether the most likely of each row is alike."""
    best = jnp.argmax(logits, axis=1)
    return jnp.take_along_axis(alike, best[:, None], axis=1)[:, 0].astype(jnp.float32)
