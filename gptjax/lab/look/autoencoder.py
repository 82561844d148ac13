"""A sparse autoencoder: activations as sums of a few of many learned directions.

Read `Autoencoder` and `reconstruct`, then `fit_autoencoder`, and `autoencoder_figures` and
`loss_recovered`, without which no feature should be believed.

Source: Gao et al. 2024, Scaling and Evaluating Sparse Autoencoders, arXiv:2406.04093 (top-k,
sections 2.2 and 3; without its auxiliary loss, so more features die).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Key, Params
from gptjax.lab.look.edits import Site, ablate, edit_site, layers_with
from gptjax.lab.look.fitting import Fitted, minimise
from gptjax.model import ModelConfig
from gptjax.model.activations import Intervention


class Autoencoder(NamedTuple):
    """The parameters. Directions are rows of `decoder`, used at length 1."""

    encoder: Float[Array, "D features"]
    decoder: Float[Array, "features D"]
    centre: Float[Array, " D"]
    """What is subtracted before and added afterwards."""
    threshold: Float[Array, " features"]
    """Added to what the encoder gives."""
    scale: Float[Array, ""]
    """The activations' mean length, by which they are divided; it is not learned."""


class Figures(NamedTuple):
    """What an autoencoder keeps of held-out activations."""

    explained: Float[Array, ""]
    """Share of the variance that it explains."""
    dead: Float[Array, ""]
    """Share of features that no held-out activation uses."""
    active: Float[Array, ""]
    """Mean number of features that are above 0."""


def fit_autoencoder(
    activations: Float[Array, "n D"],
    *,
    features: int,
    active: int,
    steps: int = 1000,
    batch: int = 256,
    peak: float = 1e-3,
    seed: int = 0,
) -> tuple[Autoencoder, Fitted]:
    """Fits an autoencoder that keeps the `active` largest features of each activation, by the
    squared error of batches drawn with replacement.

    The encoder begins as the decoder turned round (section 3.1), the centre as the mean.
    """
    x = jnp.asarray(activations, jnp.float32)
    centre = x.mean(0)
    scale = jnp.sqrt(jnp.square(x - centre[None]).sum(-1).mean())
    drawn = jax.random.normal(jax.random.key(seed), (features, x.shape[-1]))
    decoder = drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)
    begin = Autoencoder(decoder.T, decoder, centre / scale, jnp.zeros(features), scale)

    def objective(autoencoder: Autoencoder, x: Array, key: Key) -> Float[Array, ""]:
        some = x[jax.random.randint(key, (batch,), 0, len(x))]
        autoencoder = autoencoder._replace(scale=jax.lax.stop_gradient(autoencoder.scale))
        error = (reconstruct(autoencoder, some, active) - some) / autoencoder.scale
        return jnp.square(error).sum(-1).mean()

    fitted = minimise(objective, begin, x, steps=steps, peak=peak, seed=seed)
    return fitted.params, fitted


def encode_features(
    autoencoder: Autoencoder, x: Float[Array, "n D"], active: int
) -> tuple[Float[Array, "n active"], Int[Array, "n active"]]:
    """Returns the largest features of each activation, none below 0, and which they are."""
    centred = x / autoencoder.scale - autoencoder.centre[None]
    given = centred @ autoencoder.encoder + autoencoder.threshold[None]
    values, which = jax.lax.top_k(given, active)
    return jax.nn.relu(values), which


def reconstruct(
    autoencoder: Autoencoder, x: Float[Array, "... D"], active: int
) -> Float[Array, "... D"]:
    """Returns activations as the sum of their `active` largest features."""
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    values, which = encode_features(autoencoder, rows, active)
    length = jnp.linalg.norm(autoencoder.decoder, axis=-1, keepdims=True)
    directions = (autoencoder.decoder / length)[which]
    found = jnp.einsum("nk,nkd->nd", values, directions) + autoencoder.centre[None]
    return (found * autoencoder.scale).reshape(x.shape).astype(x.dtype)


def autoencoder_figures(
    autoencoder: Autoencoder, held_out: Float[Array, "n D"], active: int
) -> Figures:
    """Returns what it keeps of activations that it was not fitted to."""
    x = jnp.asarray(held_out, jnp.float32)
    values, which = encode_features(autoencoder, x, active)
    error = jnp.square(reconstruct(autoencoder, x, active) - x).sum()
    used = jnp.zeros(len(autoencoder.decoder), bool).at[which].max(values > 0)
    return Figures(
        explained=1 - error / jnp.square(x - x.mean(0, keepdims=True)).sum(),
        dead=1 - used.mean(),
        active=(values > 0).sum(-1).mean(),
    )


def loss_recovered(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    autoencoder: Autoencoder,
    site: Site,
    active: int,
    mean: Float[Array, " D"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Returns the next-token loss of the model as it is (`clean`), with a site replaced by its
    reconstruction (`spliced`) and by its mean (`ablated`), in nats, and the share of the loss
    between the last two that the autoencoder brings back (`recovered`).

    Args:
      mean: the site's mean over a data set; `None` is 0.
    """

    spliced = edit_site(config, site, lambda x, _: reconstruct(autoencoder, x, active))
    count = len(layers_with(config, site.name))
    to = None if mean is None else {site.name: jnp.broadcast_to(mean[None], (count, len(mean)))}
    losses = {
        "clean": _loss(config, params, tokens, None),
        "spliced": _loss(config, params, tokens, spliced),
        "ablated": _loss(config, params, tokens, ablate(config, site, to)),
    }
    between = losses["ablated"] - losses["clean"]
    return losses | {"recovered": (losses["ablated"] - losses["spliced"]) / between}


def _loss(
    config: ModelConfig, params: Params, tokens: Array, intervene: Intervention | None
) -> Float[Array, ""]:
    """Mean −ln p of each token after the first, in nats."""
    hidden = model.forward(config, params, tokens, intervene=intervene).hidden
    logprobs = jax.nn.log_softmax(model.unembed(config, params, hidden[:, :-1]))
    return -jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1).mean()
