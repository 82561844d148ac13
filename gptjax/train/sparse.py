"""Pruning while a run trains: zeros that stay, and zeros that become more.

A weight that is zero is out: its update is dropped, so the mask is in the weights themselves, in
every checkpoint and export, and needs no memory. Read `Prune`, then `prune_updates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.core.arrays import Array, Params
from gptjax.core.config import require
from gptjax.weights import Role
from gptjax.weights.sparse import keep_largest, parse_pattern

RoleOf = Callable[[tuple, Any], tuple[Role, bool]]
"""Path and leaf → its role, and whether it is a whole weight."""


@dataclass(frozen=True)
class Prune:
    """Sets the smallest weights of every kernel of the layers to zero in the course of a run, and
    keeps all zeros, also those of `start`.

    The share rises from 0 with the third power of what is left: fast first, slowly at the end.
    Source: Zhu and Gupta 2017, arXiv:1710.01878, section 3.
    """

    share: float = 0.0
    """Of each kernel, at the end."""
    pattern: str | None = None
    """N:M keeps the N largest of M consecutive inputs from step `begin` on, such as 2:4; then there
    is no share."""
    keep_zeros: bool = False
    """Keep the zeros that the kernels of `start` have, without setting more."""
    begin: int = 0
    """First step at which weights become zero."""
    end: int = 0
    """Step from which on the share is reached; `begin` prunes at once."""
    every: int = 10
    """Steps between."""

    def __post_init__(self) -> None:
        require(
            0 <= self.share < 1,
            f"prune.share is {self.share}; it needs a share in [0, 1) (--prune.share 0.5).",
        )
        require(
            self.begin >= 0 and self.every >= 1,
            f"prune.begin is {self.begin} and every {self.every}; they need steps from 0 and"
            " from 1 on.",
        )
        if self.pattern is not None:
            parse_pattern(self.pattern)
            require(
                self.share == 0,
                f"prune.share is {self.share} and prune.pattern {self.pattern}; set one of them.",
            )

    @property
    def grows(self) -> bool:
        """Whether weights become zero."""
        return self.share > 0 or self.pattern is not None

    @property
    def used(self) -> bool:
        """Whether a run has anything to do with zeros."""
        return self.grows or self.keep_zeros


def prune_updates(told: Prune, role_of: RoleOf) -> optax.GradientTransformationExtraArgs:
    """Changes updates so that zeros of kernels stay, and the smallest weights become zero when it
    is time."""

    def update(
        updates: Params,
        state: optax.ScaleByScheduleState,
        params: Params = None,
        *,
        step: Array | None = None,
        **_: Any,
    ) -> tuple[Params, optax.ScaleByScheduleState]:
        now = state.count if step is None else step
        due, share = _due(told, now)

        def one(path: tuple, change: Array, weight: Array) -> Array:
            role, whole = role_of(path, weight)
            if not whole or not (role.stacked and role.inputs) or role.exact:
                return change
            out = (weight == 0) & jnp.any(weight != 0)  # some kernels begin as nothing but zeros
            change = jnp.where(out, 0.0, change)
            if not told.grows:
                return change
            kept = jax.lax.cond(
                due,
                lambda new: _kept(told, new, role, share),
                lambda new: jnp.ones(new.shape, bool),
                weight + change,
            )
            return jnp.where(kept, change, -weight)

        new = jax.tree_util.tree_map_with_path(one, updates, params)
        return new, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32)), update
    )


def _due(told: Prune, step: Array) -> tuple[Array, Array]:
    """Whether weights become zero at a step, and the share of them. Once the share is reached,
    doing it again changes nothing, and makes up for a step that was skipped."""
    last = max(told.end, told.begin + 1) - 1
    done = jnp.clip((step - told.begin + 1) / (last - told.begin + 1), 0.0, 1.0)
    due = (step >= told.begin) & (((step - told.begin) % told.every == 0) | (step == last))
    return due, told.share * (1 - (1 - done) ** 3)


def _kept(told: Prune, weight: Array, role: Role, share: Array) -> Array:
    stacked = math.prod(weight.shape[: role.stacked])
    inputs = math.prod(weight.shape[role.stacked : role.stacked + role.inputs])
    scores = jnp.abs(weight).reshape(stacked, inputs, -1)
    return keep_largest(scores, share, told.pattern).reshape(weight.shape)
