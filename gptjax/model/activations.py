"""Named activations: observed as outputs of `forward`, or changed on their way.

A `Probe` goes to every layer beside its inputs. Wherever a named activation is computed the layer
calls it, and passes on what was observed; there are no hooks and no state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.ad_checkpoint import checkpoint_name

from gptjax.core.arrays import Array, Int
from gptjax.core.config import nearest

ACTIVATIONS = {
    "embedding": "[B T D] enters the first layer",
    "stream": "[L B T D] enters each layer",
    "query": "[L B T N H] as attention reads it: normalised and rotated",
    "key": "[L B S K H] as attention reads it; with a cache, all keys that it holds",
    "value": "[L B S K H]",
    "attention": "[L B T N H] each head's mean of the values",
    "recurrent": "[L B T …] what a recurrent layer, or each head, reads of its memory, float32",
    "attention_out": "[L B T D] what attention, or what stands in its place, adds to the stream",
    "cross_out": "[L B T D] what attention to an encoder adds to the stream",
    "mlp": "[L B T F] inside the MLP, after the nonlinearity; layers of experts have none",
    "mlp_out": "[L B T D] what the MLP, or the experts, add to the stream",
    "router": "[L B T E] the router's logits, float32; in layers of experts",
    "hidden": "[B T D] the final hidden states, normalised",
}
"""Names and shapes; L counts the layers that have the activation. With latent attention there are
queries, keys and values only without a cache."""

Intervention = Callable[[str, Any, Array], Array]
"""(name, layer, x) → x, a pure function. The layer is −1 for activations outside of layers; in a
compiled loop over layers it is traced, so compare it by `jnp.where`."""

Observed = dict[str, Array]
"""Observed activations by name."""


class Probe(NamedTuple):
    """What `forward` observes of one layer, and how it changes it. The default does neither."""

    observe: tuple[str, ...] = ()
    intervene: Intervention | None = None
    layer: int | Int[Array, ""] = -1

    def __call__(self, name: str, x: Array, seen: Observed) -> tuple[Array, Observed]:
        """Names an activation; gives it, perhaps changed, and what is observed including it."""
        if self.intervene is not None:
            x = self.intervene(name, self.layer, x)
        return x, seen | {name: x} if name in self.observe else seen

    def saved(self, name: str, x: Array, seen: Observed) -> tuple[Array, Observed]:
        """As a call, of an activation that `ModelConfig.remat_names` can name."""
        return self(name, checkpoint_name(x, name), seen)


def require_known_activations(names: tuple[str, ...]) -> None:
    """Refuses names that are not in `ACTIVATIONS`.

    Raises:
      ValueError: lists the names.
    """
    for name in names:
        if name not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            hint = nearest(name, tuple(ACTIVATIONS))
            raise ValueError(f"{name!r} is no activation; there are {known}.{hint}")
