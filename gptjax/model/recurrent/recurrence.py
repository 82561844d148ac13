"""The recurrence of gated linear attention, with and without the delta rule: in chunks for many
tokens, in one step for one.

    S_t = a_t S_{t−1} + k_t u_tᵀ        y_t = S_tᵀ q_t        a_t = exp(decay_t)

Without the delta rule u_t is the value v_t; with it u_t = β_t (v_t − a_t S_{t−1}ᵀ k_t), what is new
of the value beside what the key reads already.

Read `one_step` (the formula), then `chunked`, which computes the same by matrix products.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Float, Int


class Tokens(NamedTuple):
    """What the tokens of some rows read and write, float32. G value heads share a key head."""

    queries: Float[Array, "B T K H"]
    keys: Float[Array, "B T K H"]
    values: Float[Array, "B T K G value"]
    decays: Float[Array, "B T K G"]
    """ln of the share of the state that is left when a token comes; 0 or less."""
    rates: Float[Array, "B T K G"] | None
    """β, the share of what the key reads that a token overwrites; `None` is no delta rule."""


State = Float[Array, "B K G H value"]


def masked(tokens: Tokens, real: Bool[Array, "B T"]) -> Tokens:
    """The tokens, of which those that are not real change no bit of the state."""

    def held(x: Array | None) -> Array | None:
        shape = real.shape + (1,) * (0 if x is None else x.ndim - 2)
        return None if x is None else jnp.where(real.reshape(shape), x, 0.0)

    return tokens._replace(
        keys=held(tokens.keys), decays=held(tokens.decays), rates=held(tokens.rates)
    )


def read_tokens(
    tokens: Tokens,
    state: State,
    texts: Int[Array, "B T"] | None,
    *,
    chunk: int,
) -> tuple[Float[Array, "B T K G value"], State]:
    """What each token reads, and the state after all of them.

    Args:
      state: before the first token.
      texts: the number of each token's text in its row, from 0 on and never falling; the state
        begins anew with each, and goes on only into number 0. `None`: all are of one text.
      chunk: tokens that are computed together.
    """
    if tokens.keys.shape[1] == 1 and texts is None:
        read, state = one_step(jax.tree.map(lambda leaf: leaf[:, 0], tokens), state)
        return read[:, None], state
    return chunked(tokens, state, texts, chunk=chunk)


def one_step(tokens: Tokens, state: State) -> tuple[Float[Array, "B K G value"], State]:
    """Reads one token of each row; its arrays have no T.

    Source: Yang et al. 2024, arXiv:2412.06464, equation 10; Dao and Gu 2024, arXiv:2405.21060,
    equation 16.
    """
    q, k, new, decay, rate = tokens
    state = state * jnp.exp(decay)[..., None, None]
    if rate is not None:
        new = rate[..., None] * (new - jnp.einsum("bkghv,bkh->bkgv", state, k))
    state = state + k[:, :, None, :, None] * new[:, :, :, None]
    return jnp.einsum("bkghv,bkh->bkgv", state, q), state


def chunked(
    tokens: Tokens, state: State, texts: Int[Array, "B T"] | None, *, chunk: int
) -> tuple[Float[Array, "B T K G value"], State]:
    """`one_step` for each token in order, by matrix products over chunks of them. Memory grows with
    T, not with its square: the backward pass keeps the state at the begin of each chunk.

    Sources: Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule,
    arXiv:2406.06484, section 3.2, with the decays of arXiv:2412.06464, section 3.3; without the
    delta rule: Dao and Gu 2024, Mamba-2, arXiv:2405.21060, section 6.
    """
    rows, length = tokens.keys.shape[:2]
    texts = jnp.zeros((rows, length), jnp.int32) if texts is None else texts
    size = min(chunk, length)
    count, behind = -(-length // size), -length % size

    def apart(x: Array, mode: str = "constant") -> Array:
        x = jnp.pad(x, ((0, 0), (0, behind)) + ((0, 0),) * (x.ndim - 2), mode=mode)
        return jnp.moveaxis(x.reshape(rows, count, size, *x.shape[2:]), 1, 0)

    parts = jax.tree.map(apart, tokens), apart(texts, "edge")
    one = jax.checkpoint(_chunk, prevent_cse=False)
    (state, _), read = jax.lax.scan(one, (state, jnp.zeros((rows,), jnp.int32)), parts)
    read = jnp.moveaxis(read, 0, 1).reshape(rows, count * size, *read.shape[3:])
    return read[:, :length], state


def _chunk(
    carried: tuple[State, Int[Array, " B"]], part: tuple[Tokens, Int[Array, "B T"]]
) -> tuple[tuple[State, Int[Array, " B"]], Float[Array, "B T K G value"]]:
    """One chunk after a state and the number of its text."""
    (state, before), ((q, k, values, decays, rates), texts) = carried, part
    order = jnp.arange(texts.shape[1])
    upto = (order[:, None] >= order[None])[None]
    decays = jnp.moveaxis(decays, 1, 3)  # [B K G T]
    # Summed from each token on: differences of sums from the chunk's begin would lose small decays
    # behind large ones.
    between = jnp.matmul(
        jnp.where(upto[:, None, None], decays[..., None, :], 0.0),
        (order[:, None] > order[None]).astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    total = jnp.cumsum(decays, axis=-1)
    sees = (texts[:, :, None] == texts[:, None]) & upto
    within = _share(between, sees[:, None, None])
    inward = _share(total, (texts == before[:, None])[:, None, None])
    outward = _share(between[..., -1, :], (texts == texts[:, -1:])[:, None, None])
    values = jnp.moveaxis(values, 1, 3)  # [B K G T value]
    if rates is not None:
        rates = jnp.moveaxis(rates, 1, 3)
        known = inward[..., None] * jnp.einsum("btkh,bkghv->bkgtv", k, state)
        system = rates[..., None] * within * jnp.einsum("btkh,bskh->bkts", k, k)[:, :, None]
        values = jax.scipy.linalg.solve_triangular(
            system, rates[..., None] * (values - known), lower=True, unit_diagonal=True
        )
    scores = within * jnp.einsum("btkh,bskh->bkts", q, k)[:, :, None]
    read = inward[..., None] * jnp.einsum("btkh,bkghv->bkgtv", q, state) + scores @ values
    state = _share(total[..., -1], (texts[:, -1] == before)[:, None, None])[..., None, None] * state
    state = state + jnp.einsum("btkh,bkgtv->bkghv", k, outward[..., None] * values)
    return (state, texts[:, -1]), jnp.moveaxis(read, 3, 1)


def _share(decay: Array, reaches: Bool[Array, "..."]) -> Array:
    """exp(decay) where a token reaches another, and 0 elsewhere, exactly."""
    return jnp.exp(jnp.where(reaches, decay, -jnp.inf))
