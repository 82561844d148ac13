"""Activation patching: how much of one run's answer returns when parts of it replace another's.

Read `patch_positions` (layers × positions), `patch_heads` (layers × heads), then `path_effects`
(from each head along paths through no other head). Every cell is one run of one compiled function,
mapped over the cells.

Sources: Meng et al. 2022, ROME, arXiv:2202.05262; Wang et al. 2022, Interpretability in the Wild,
arXiv:2211.00593; Goldowsky-Dill et al. 2023, Path Patching, arXiv:2304.05969.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Params
from gptjax.lab.look.edits import Site, joined_edits, layers_with, patch
from gptjax.lab.look.measures import Measure
from gptjax.model import ModelConfig
from gptjax.model.activations import Intervention


class PatchGrid(NamedTuple):
    """A measure after each patch, and of both runs without any."""

    cells: Float[Array, "L cells B"]
    """By layer, and by position or head."""
    clean: Float[Array, " B"]
    """The measure of the run from which activations are taken."""
    corrupted: Float[Array, " B"]
    """The measure of the run into which they are put."""

    @property
    def recovered(self) -> Float[Array, "L cells"]:
        """The share of the difference between both runs, as means over rows, that a patch brings
        back: 0 is the corrupted run, 1 the clean one."""
        corrupted = self.corrupted.mean()
        return (self.cells.mean(-1) - corrupted) / (self.clean.mean() - corrupted)


def patch_positions(
    config: ModelConfig,
    params: Params,
    clean: Int[Array, "B T"],
    corrupted: Int[Array, "..."],
    measure: Measure,
    *,
    name: str = "stream",
    columns: Int[Array, "B P"] | None = None,
    together: int | None = 1,
    **inputs: Any,
) -> PatchGrid:
    """Patches one activation of the clean run into the corrupted one, at one layer and position at
    a time.

    Args:
      name: which activation; see `model.ACTIVATIONS`.
      columns: P places, each as one index for each row, where rows differ in where the same word
        stands; `None` is every position.
      together: cells that are computed side by side; `None` is all (one vmapped call). On a CPU
        that is slower.
      inputs: further arguments of `model.forward`, the same for both runs.

    Raises:
      ValueError: the runs differ in shape, or no layer has the activation.
    """
    if columns is None:
        columns = jnp.broadcast_to(jnp.arange(clean.shape[1])[None], clean.shape)
    places = jnp.asarray(columns).T
    return _grid(
        *(config, params, clean, corrupted, measure, name, together, inputs),
        len(places),
        lambda layer, column: Site(name, layer, position=places[column]),
    )


def patch_heads(
    config: ModelConfig,
    params: Params,
    clean: Int[Array, "B T"],
    corrupted: Int[Array, "..."],
    measure: Measure,
    *,
    together: int | None = 1,
    **inputs: Any,
) -> PatchGrid:
    """Patches what one head gives, at all positions; see `patch_positions`."""
    return _grid(
        *(config, params, clean, corrupted, measure, "attention", together, inputs),
        config.num_heads,
        lambda layer, head: Site("attention", layer, head=head),
    )


def _grid(
    config: ModelConfig,
    params: Params,
    clean: Any,
    corrupted: Any,
    measure: Measure,
    name: str,
    together: int | None,
    inputs: dict[str, Any],
    columns: int,
    site: Callable[[Array, Array], Site],
) -> PatchGrid:
    _require_alike(clean, corrupted)
    donor = model.forward(config, params, clean, observe=(name,), **inputs)
    plain = model.forward(config, params, corrupted, **inputs)

    def cell(where: tuple[Array, Array]) -> Float[Array, " B"]:
        edit = patch(config, site(*where), donor.observed)
        return measure(model.forward(config, params, corrupted, intervene=edit, **inputs).hidden)

    cells = _over(cell, layers_with(config, name), columns, together)
    return PatchGrid(cells, measure(donor.hidden), measure(plain.hidden))


def _over(
    cell: Callable[[tuple[Array, Array]], Array],
    layers: tuple[int, ...],
    columns: int,
    together: int | None,
) -> Float[Array, "L cells B"]:
    """A function of each layer and column, some at a time."""
    numbers, places = np.asarray(layers, np.int32), np.arange(columns, dtype=np.int32)
    where = jnp.repeat(numbers, columns), jnp.tile(places, len(numbers))
    if together is None:
        cells = jax.vmap(cell)(where)
    else:
        cells = jax.lax.map(cell, where, batch_size=None if together == 1 else together)
    return cells.reshape(len(numbers), columns, -1)


def _require_alike(clean: Any, corrupted: Any) -> None:
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"the clean tokens are {clean.shape} and the corrupted {corrupted.shape}; patching"
            " puts one run's position in the other's, so they need one shape."
        )


# --- paths


def path_effects(
    config: ModelConfig,
    params: Params,
    clean: Int[Array, "B T"],
    corrupted: Int[Array, "..."],
    measure: Measure,
    *,
    receivers: tuple[Site, ...] = (),
    through_mlps: bool = True,
    together: int | None = 1,
    **inputs: Any,
) -> PatchGrid:
    """Returns what each head's corrupted output changes in the clean run along paths that pass
    through no other head.

    The sender gives what it gives in the corrupted run while all other heads give what they give in
    the clean one; what that makes of the receivers is put into the clean run.

    Args:
      receivers: `Site`s of `query`, `key` or `value`; none is the output: the direct effect.
      through_mlps: MLPs between are computed again; otherwise they give what they give in the clean
        run too.

    Returns:
      `cells` by the sender's layer and head; `recovered` there is 1 where a sender changes nothing.

    Raises:
      ValueError: the runs differ in shape, or a receiver is none of the three.
    """
    _require_alike(clean, corrupted)
    names = tuple(dict.fromkeys(site.name for site in receivers))
    if wrong := [name for name in names if name not in ("query", "key", "value")]:
        raise ValueError(f"{wrong[0]!r} is no receiver; query, key and value of a head are.")
    base = model.forward(config, params, clean, observe=("attention", "mlp_out"), **inputs)
    other = model.forward(config, params, corrupted, observe=("attention",), **inputs)
    frozen = [patch(config, Site("attention"), base.observed)]
    frozen += [] if through_mlps else [patch(config, Site("mlp_out"), base.observed)]

    def sent(layer: Array, head: Array) -> Intervention:
        own = patch(config, Site("attention", layer, head=head), other.observed)
        return joined_edits(*frozen, own)

    def cell(where: tuple[Array, Array]) -> Float[Array, " B"]:
        first = model.forward(
            config, params, clean, observe=names, intervene=sent(*where), **inputs
        )
        if not receivers:
            return measure(first.hidden)
        edits = [patch(config, site, first.observed) for site in receivers]
        second = model.forward(config, params, clean, intervene=joined_edits(*edits), **inputs)
        return measure(second.hidden)

    cells = _over(cell, layers_with(config, "attention"), config.num_heads, together)
    return PatchGrid(cells, measure(base.hidden), measure(other.hidden))
