"""Edits of a model's named activations: patch, ablate, shift, project out.

Each function gives an intervention, a pure function for `model.forward(…, intervene=…)`; `Site`
says where. What an edit does not touch keeps its bits. An edit that could touch nothing (a name
that the model has not, a layer or a head beyond its last) is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Bool, Float
from gptjax.core.config import nearest
from gptjax.model import ACTIVATIONS, ModelConfig
from gptjax.model.activations import Intervention, Observed

BY_HEAD = ("query", "key", "value", "attention")
"""Activations with a dimension of heads."""
OUTSIDE = ("embedding", "hidden")
"""Activations outside of layers."""


class Site(NamedTuple):
    """A part of one named activation. Numbers may be traced, so that one compiled function is
    mapped over them."""

    name: str
    """A key of `model.ACTIVATIONS`."""
    layer: int | Array | None = None
    """A layer's number, or flags [L]; `None` is every layer."""
    position: int | Array | None = None
    """A token's index in its row, one for each row [B], or flags [T] or [B T]; `None` is all."""
    head: int | Array | None = None
    """A head's number, or flags [N]; `None` is every head."""


def layers_with(config: ModelConfig, name: str) -> tuple[int, ...]:
    """Returns the numbers of the layers that have an activation, in the order in which they are
    observed; −1 is outside of layers.

    Raises:
      ValueError: there is no such activation.
    """
    if name in OUTSIDE:
        return (-1,)
    if name not in ACTIVATIONS:
        hint = nearest(name, tuple(ACTIVATIONS))
        raise ValueError(f"{name!r} is no activation; there are {', '.join(ACTIVATIONS)}.{hint}")
    attends = [config.mixer(layer) in ("attention", "latent") for layer in config.stack]
    sparse = [config.sparse(layer) for layer in config.stack]
    has = {
        **dict.fromkeys(BY_HEAD, attends),
        "recurrent": [not one for one in attends],
        "mlp": [not one for one in sparse],
        "router": sparse,
        "cross_out": [config.has_encoder] * config.num_layers,
    }.get(name, [True] * config.num_layers)
    return tuple(number for number, one in enumerate(has) if one)


def patch(config: ModelConfig, site: Site, donor: Observed) -> Intervention:
    """Returns the edit that puts another run's activations in place of this one's.

    Args:
      donor: what `forward` observed of that run, with the site's name; rows may be 1 for all.

    Raises:
      ValueError: the model has no such site, or the donor no such activation.
    """
    if site.name not in donor:
        raise ValueError(
            f"the donor has no {site.name!r}; observe it: forward(…, observe=({site.name!r},))."
        )
    given = donor[site.name]
    return edit_site(config, site, lambda x, index: given if index is None else given[index])


def ablate(config: ModelConfig, site: Site, to: Observed | None = None) -> Intervention:
    """Returns the edit that sets a site to zero, or to means over a data set.

    Args:
      to: name → values [L …] that broadcast to the activation from the right, such as means
        [L D]; `None` is zero.

    Raises:
      ValueError: the model has no such site.
    """

    def value(x: Array, index: Any) -> Array:
        if to is None:
            return jnp.zeros_like(x)
        given = to[site.name] if index is None else to[site.name][index]
        return jnp.broadcast_to(given.reshape((1,) * (x.ndim - given.ndim) + given.shape), x.shape)

    return edit_site(config, site, value)


def shift(config: ModelConfig, site: Site, vector: Float[Array, " D"]) -> Intervention:
    """Returns the edit that adds a vector to the last dimension of a site.

    Raises:
      ValueError: the model has no such site.
    """
    return edit_site(config, site, lambda x, _: x + _last(vector, x))


def project_out(config: ModelConfig, site: Site, vector: Float[Array, " D"]) -> Intervention:
    """Returns the edit that removes the component along a vector from a site.

    Raises:
      ValueError: the model has no such site.

    Source: Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction,
    arXiv:2406.11717, section 2.4.
    """

    def without(x: Array, _: Any) -> Array:
        unit = _last(vector / jnp.linalg.norm(vector), x.astype(jnp.float32))
        return x - (jnp.sum(x * unit, axis=-1, keepdims=True) * unit).astype(x.dtype)

    return edit_site(config, site, without)


def joined_edits(*edits: Intervention) -> Intervention:
    """Returns several edits as one; each sees what those before it have changed."""

    def intervene(name: str, layer: Any, x: Array) -> Array:
        for edit in edits:
            x = edit(name, layer, x)
        return x

    return intervene


# --- where an edit is


def _last(vector: Array, x: Array) -> Array:
    return jnp.reshape(vector, (1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


def edit_site(
    config: ModelConfig, site: Site, change: Callable[[Array, Any], Array]
) -> Intervention:
    """Returns the edit that changes a site alone, by a function of the activation and of the place
    of its layer among those that have it, `None` outside of layers.

    Raises:
      ValueError: the model has no such site.
    """
    places = _places(config, site)

    def intervene(name: str, layer: Any, x: Array) -> Array:
        if name != site.name or (_plain(layer) and _plain(site.layer) and layer != site.layer):
            return x
        index = None
        if site.name not in OUTSIDE:
            index = int(places[layer]) if _plain(layer) else jnp.asarray(places)[layer]
        changed = jnp.broadcast_to(change(x, index).astype(x.dtype), x.shape)
        return jnp.where(_where(site, layer, x), changed, x)

    return intervene


def _plain(number: Any) -> bool:
    return isinstance(number, int | np.integer)


def _places(config: ModelConfig, site: Site) -> np.ndarray:
    """The place of each layer among those that have the activation.

    Raises:
      ValueError: the model has no such site.
    """
    numbers = layers_with(config, site.name)
    if not numbers:
        raise ValueError(f"no layer of this model has {site.name!r}, so the edit changes nothing.")
    if _plain(site.layer) and site.layer not in numbers:
        raise ValueError(
            f"layer {site.layer} has no {site.name!r}; these have: {', '.join(map(str, numbers))}."
        )
    if site.head is not None:
        if site.name not in BY_HEAD:
            raise ValueError(f"{site.name!r} has no heads; {', '.join(BY_HEAD)} have.")
        heads = config.num_heads
        if site.name in ("key", "value") and config.latent is None:
            heads = config.kv_heads
        if _plain(site.head) and not 0 <= int(site.head) < heads:  # type: ignore[arg-type]
            raise ValueError(f"{site.name!r} has heads 0 to {heads - 1}, and no {site.head}.")
    places = np.zeros(config.num_layers, np.int32)
    places[[number for number in numbers if number >= 0]] = np.arange(
        sum(number >= 0 for number in numbers)
    )
    return places


def _where(site: Site, layer: Any, x: Array) -> Bool[Array, "..."]:
    """True where an activation [B T …] of a layer belongs to the site; broadcasts to it."""
    here = jnp.ones((1,) * x.ndim, bool)
    if site.layer is not None:
        wanted = jnp.asarray(site.layer)
        own = wanted[layer] if wanted.dtype == bool else wanted == layer
        here &= own.reshape((1,) * x.ndim)
    if site.position is not None:
        flags = _tokens(site.position, *x.shape[:2])
        here &= flags.reshape(*flags.shape, *(1,) * (x.ndim - 2))
    if site.head is not None:
        wanted, count = jnp.asarray(site.head), x.shape[2]
        flags = wanted if wanted.dtype == bool else jnp.arange(count) == wanted
        here &= flags.reshape(1, 1, count, *(1,) * (x.ndim - 3))
    return here


def _tokens(position: Any, rows: int, length: int) -> Bool[Array, "B T"]:
    """The tokens of each row, or of all as one row, that are meant.

    Raises:
      ValueError: a position lies outside of the rows.
    """
    if _plain(position) and not -length <= position < length:
        raise ValueError(f"position {position} is outside of the {length} tokens of a row.")
    wanted = jnp.asarray(position)
    if wanted.dtype == bool:
        return wanted.reshape(-1, length)
    index = jnp.where(wanted < 0, wanted + length, wanted).reshape(-1, 1)
    return jnp.arange(length)[None] == index
