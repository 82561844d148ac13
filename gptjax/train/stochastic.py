"""Weights that are kept in bfloat16: updates are added in float32, and the sum is rounded
stochastically, so that what is too small for a step of bfloat16 is not lost but added now and then.

Read `round_stochastically`, then `keep_narrow`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import require
from gptjax.train import optim
from gptjax.train.step import Gradients

NARROW = jnp.bfloat16


def round_stochastically(x: Float[Array, "..."], key: Key) -> Float[Array, "..."]:
    """Rounds float32 to one of the two nearest bfloat16 numbers, the more likely the nearer it is:
    the mean of many roundings is x. What is not finite stays.

    Source: Gupta et al. 2015, Deep Learning with Limited Numerical Precision, arXiv:1502.02551,
    section 3.1; of weights in bfloat16: Zamirai et al. 2020, arXiv:2010.06192, section 4.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    below = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + below) & jnp.uint32(0xFFFF0000)  # of float32's bits bfloat16 has the upper half
    rounded = jax.lax.bitcast_convert_type(kept, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(NARROW)


def narrowed(params: Params, roles: Any) -> Params:
    """The parameters, with whole matrices and embeddings in bfloat16, rounded to the nearest; not
    what is computed in float32 in any case.

    Args:
      roles: `model.roles` of the trained model.

    Raises:
      ConfigError: there are none.
    """

    def narrow(path: tuple, leaf: Any) -> bool:
        role, whole = optim.role_of(roles, path, leaf)
        return whole and role.decays and not role.exact

    chosen = jax.tree_util.tree_map_with_path(narrow, params)
    require(
        any(jax.tree.leaves(chosen)),
        "optim.weights is bfloat16, and no matrix or embedding of the model trains; use"
        " --optim.weights float32.",
    )
    return jax.tree.map(lambda leaf, one: leaf.astype(NARROW) if one else leaf, params, chosen)


def in_float32(tree: Params) -> Params:
    """The tree with bfloat16 arrays in float32."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == NARROW else leaf, tree
    )


def widen_gradients(gradients: Gradients) -> Gradients:
    """Returns gradients in float32, in which those of micro-batches are then added up."""

    def wide(*args: Any) -> Any:
        outputs, grads = gradients(*args)
        return outputs, in_float32(grads)

    return wide


def keep_narrow(
    inner: optax.GradientTransformation, seed: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer of float32 weights as one of weights some of which are bfloat16: what it
    remembers is float32, and each new weight is rounded stochastically, by a key of the step."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> optax.OptState:
        return inner.init(in_float32(params))

    def update(
        grads: Params, state: optax.OptState, params: Params = None, *, step: Array, **facts: Any
    ) -> tuple[Params, optax.OptState]:
        wide = in_float32(params)
        updates, state = inner.update(grads, state, wide, step=step, **facts)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), OWN), step)
        narrow, tree = jax.tree.flatten(params)
        keys = tree.unflatten([jax.random.fold_in(key, n) for n in range(len(narrow))])

        def rounding(before: Array, now: Array, change: Array, key: Key) -> Array:
            if before.dtype != NARROW:
                return change
            # the difference of neighbours is exact, so their sum is the rounded weight
            return round_stochastically(now + change, key).astype(jnp.float32) - now

        return jax.tree.map(rounding, params, wide, updates, keys), state

    return optax.GradientTransformationExtraArgs(init, update)


OWN = 0x5EED
"""Keeps the draws apart from those of dropout, whose key is that of the step."""
