"""Products of narrow operands that are summed and given in float32, whose gradients are products of
narrow operands too."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float


def wide_einsum(spec: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` of two operands of one type, summed and given in float32; to its gradient what
    comes back is rounded to their type.

    Without that rounding the gradients of bfloat16 operands would be float32 products, which are
    slower on every backend.
    """
    return jnp.einsum(spec, x, y) if x.dtype == y.dtype == jnp.float32 else _narrow(spec, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _forward(spec: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _narrow(spec, x, y), (x, y)


def _backward(spec: str, operands: tuple[Array, Array], back: Array) -> tuple[Array, Array]:
    kind = jnp.result_type(*operands)
    return jax.vjp(functools.partial(jnp.einsum, spec), *operands)[1](back.astype(kind))


_narrow.defvjp(_forward, _backward)
