"""A parameter tree with narrow weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from gptjax import model
from gptjax.compress.awq import scaled_for_rounding
from gptjax.compress.gptq import gptq
from gptjax.compress.moments import Moments
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.model import ModelConfig
from gptjax.weights.adapters import role_at
from gptjax.weights.kernels import TABLE, kernels_of, replace_weights
from gptjax.weights.rounding import Rounding, eight_bits, rounded, weight_size

Method = Literal["nearest", "gptq", "awq", "awq+gptq"]
"""How kernels are rounded: each number to the nearest; so that later inputs make up for what
earlier ones lost; to the nearest after scaling; or both."""


@dataclass(frozen=True)
class Quantising:
    """Which weights are rounded, and how."""

    grid: Rounding = field(default_factory=Rounding)
    method: Method = "nearest"
    targets: tuple[str, ...] = ("*layers",)
    """Patterns of the kernels to round: attention, MLPs, experts, latent attention; never
    routers."""
    outer: Literal["int8", "same", "float"] = "int8"
    """Embedding and head: in 8 bits and the same groups, on the same grid to the nearest, or as
    they are."""


def quantise_weights(
    config: ModelConfig, params: Params, how: Quantising, moments: Moments | None = None
) -> Params:
    """Returns the parameters with narrow weights; for generation and evaluation, not for training.

    Args:
      moments: of the inputs, which every method but `nearest` needs.

    Raises:
      ConfigError: no kernel matches the targets, or the method needs calibration.
    """
    require(
        how.method == "nearest" or moments is not None,
        f"the method {how.method} needs text to calibrate with (--calibrate FILE).",
    )
    roles = model.roles(config)
    if how.method.startswith("awq") and moments is not None:
        params = scaled_for_rounding(config, params, roles, how.grid, moments)
    changed: dict[str, Any] = {}
    for path, leaf, role in kernels_of(params, roles, how.targets):
        if how.method.endswith("gptq") and moments is not None:
            changed[path] = gptq(how.grid, leaf, role, moments[path])
        else:
            changed[path] = jax.jit(rounded, static_argnums=(0, 2))(how.grid, leaf, role)
    require(
        bool(changed),
        f"no kernel matches {' '.join(how.targets)}; `gptjax inspect` lists the paths.",
    )
    changed |= _outer(params, roles, how)
    return replace_weights(params, changed)


def _outer(params: Params, roles: Any, how: Quantising) -> dict[str, Any]:
    """Embedding and head."""
    if how.outer == "float":
        return {}
    grid = how.grid if how.outer == "same" else eight_bits(how.grid)
    table = params["embedding"]["embedding"]
    changed = {"embedding/embedding": rounded(grid, table, TABLE)}
    if "head" in params:
        head = params["head"]["kernel"]
        changed["head/kernel"] = rounded(grid, head, role_at(roles, "head/kernel"))
    return changed


def bits_per_weight(params: Params) -> float:
    """Bits that a number takes in memory on average, scales and everything else included."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: not isinstance(leaf, dict))
    count = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    return 8 * sum(weight_size(leaf) for leaf in leaves) / count
