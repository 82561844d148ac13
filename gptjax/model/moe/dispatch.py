"""Dispatches tokens to their experts and combines the results, on one device and on a mesh.

Read `apply_experts`, then `by_row` and `by_expert` (two ways to dispatch), then `mix_over_mesh`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Float, Int
from gptjax.model.config import Experts, ModelConfig
from gptjax.model.layers import activate, gated
from gptjax.model.moe.ragged import through_experts
from gptjax.sharding.collectives import all_gather, local_slice
from gptjax.sharding.constrain import ROWS, current_mesh, partition_spec, platform
from gptjax.weights.float8 import Float8
from gptjax.weights.linear import contract, ragged
from gptjax.weights.weight import Weight, dense

Product = Callable[[Array, Weight], Array]
"""(tokens by expert, kernels [E I O]) → each token times its expert's kernel."""

Kernels = dict[str, Weight]
"""`up`, `down` and, where gated, `gate` of every expert, and their biases: `up_bias` and so on."""


def apply_experts(
    config: ModelConfig,
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T k"],
    weights: Float[Array, "B T k"],
    kernels: Kernels,
) -> tuple[Float[Array, "B T D"], Bool[Array, "B T k"]]:
    """Returns the weighted sum of each token's experts, and which of its choices were dropped."""
    e = config.experts
    x, weights = _entering(e, x, weights)
    ordered = e.capacity is not None
    dispatched = by_row(e, x, chosen) if ordered else without_capacity(config, e.count, x, chosen)
    return (
        _weighted(
            dispatched.collect(_mlps(config, kernels, dispatched.tokens, dispatched)),
            weights * ~dispatched.dropped,
        ),
        dispatched.dropped,
    )


def _entering(
    e: Experts, x: Float[Array, "B T D"], weights: Float[Array, "B T k"]
) -> tuple[Float[Array, "B T ... D"], Float[Array, "B T k"]]:
    """What enters each token's experts, one for all or one for each choice, and the weights of what
    leaves them."""
    if e.weighs == "output":
        return x, weights
    return x[:, :, None] * weights[..., None].astype(x.dtype), jnp.ones_like(weights)


def _mlps(
    config: ModelConfig, kernels: Kernels, x: Float[Array, "... D"], dispatched: Dispatched
) -> Float[Array, "... D"]:
    """Every expert's MLP, each applied to its own tokens as they were dispatched."""

    def product(x: Array, name: str) -> Array:
        y = dispatched.product(x, kernels[name])
        bias = kernels.get(f"{name}_bias")
        return y if bias is None else y + dispatched.own(dense(bias)).astype(y.dtype)

    hidden = (
        gated(config.activation, product(x, "gate"), product(x, "up"))
        if config.gated
        else activate(config.activation, product(x, "up"))
    )
    return product(hidden, "down")


def _weighted(
    mixed: Float[Array, "B T k D"], weights: Float[Array, "B T k"]
) -> Float[Array, "B T D"]:
    """The sum over a token's experts, in float32."""
    return (mixed.astype(jnp.float32) * weights[..., None]).sum(2).astype(mixed.dtype)


class Dispatched(NamedTuple):
    """Tokens grouped by expert."""

    tokens: Float[Array, "... D"]
    product: Product
    own: Callable[[Float[Array, "E O"]], Float[Array, "... O"]]
    """Returns each token's own of one vector for each expert, in a shape that broadcasts."""
    collect: Callable[[Array], Float[Array, "B T k D"]]
    """Returns the experts' outputs to their tokens; a dropped token gets zeros."""
    dropped: Bool[Array, "B T k"]


def ranks(
    chosen: Int[Array, " pairs"], count: int
) -> tuple[Int[Array, " pairs"], Int[Array, " E"]]:
    """Returns each pair's rank among those of its expert, in their order, and the number of
    pairs of each expert. A choice of `count` or above belongs to no expert."""
    mine = jax.nn.one_hot(chosen, count, dtype=jnp.int32)
    return jnp.take_along_axis(
        jnp.cumsum(mine, axis=0), jnp.minimum(chosen, count - 1)[:, None], axis=1
    )[:, 0] - 1, mine.sum(0)


def by_row(e: Experts, x: Float[Array, "B T ... D"], chosen: Int[Array, "B T k"]) -> Dispatched:
    """Fixed expert capacity per row, filled in token order so that routing stays causal."""
    rows, length, width = *x.shape[:2], x.shape[-1]
    capacity = min(length, -(-round(e.capacity * e.active * length) // e.count))
    rank, _ = jax.vmap(lambda chosen: ranks(chosen, e.count))(chosen.reshape(rows, -1))
    dropped = rank >= capacity
    slots = jnp.where(dropped, e.count * capacity, chosen.reshape(rows, -1) * capacity + rank)

    def scatter(x: Array, slots: Array) -> Array:
        return (
            jnp.zeros((e.count * capacity, width), x.dtype)
            .at[slots]
            .set(_by_choice(x, e.active), mode="drop")
        )

    def collect(y: Array) -> Array:
        back = jax.vmap(lambda y, slots: y.at[slots].get(mode="fill", fill_value=0))
        return back(y.reshape(rows, e.count * capacity, width), slots).reshape(
            rows, length, e.active, width
        )

    tokens = jax.vmap(scatter)(x, slots).reshape(rows, e.count, capacity, width)

    product = functools.partial(contract, "becd,edf->becf")
    dropped = dropped.reshape(rows, length, e.active)
    return Dispatched(tokens, product, lambda own: own[None, :, None], collect, dropped)


def _by_choice(x: Float[Array, "T ... D"], active: int) -> Float[Array, "pairs D"]:
    """What each choice of each token reads: the token, or what there is for that choice."""
    return jnp.repeat(x, active, axis=0) if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def by_expert(
    count: int, x: Float[Array, "B T ... D"], chosen: Int[Array, "B T k"], *, grouped: bool
) -> Dispatched:
    """Sorts all tokens of a batch by expert; no token is dropped.

    Args:
      count: number of experts here; a choice outside 0 … count − 1 is not dispatched and
        gets zeros.
      grouped: pad each expert's tokens to a multiple of one group size and multiply group by group;
        see `groups_tokens`.
    """
    (rows, length, active), width = chosen.shape, x.shape[-1]
    pairs = rows * length * active
    size = _group_size(pairs, count) if grouped else 1
    chosen = chosen.reshape(-1)
    here, known = (chosen >= 0) & (chosen < count), jnp.clip(chosen, 0, count - 1)
    rank, counts = ranks(jnp.where(here, chosen, count), count)
    groups = -(-counts // size)
    ends = jnp.cumsum(groups)
    num_groups = -(-pairs // size) + count if grouped else pairs
    slots = jnp.where(here, (ends - groups)[known] * size + rank, num_groups * size)
    tokens = (
        jnp.zeros((num_groups * size, width), x.dtype)
        .at[slots]
        .set(_by_choice(x.reshape(-1, *x.shape[2:]), active), mode="drop")
    )

    def collect(y):
        return (
            y.reshape(-1, width)
            .at[slots]
            .get(mode="fill", fill_value=0)
            .reshape(rows, length, active, width)
        )

    none_dropped = jnp.zeros((rows, length, active), bool)
    if not grouped:

        def own(vectors: Array) -> Array:
            whose = jnp.searchsorted(ends, jnp.arange(pairs), side="right")
            return vectors[jnp.minimum(whose, count - 1)]

        product = functools.partial(ragged, counts=counts)
        return Dispatched(tokens, product, own, collect, none_dropped)
    whose = jnp.minimum(jnp.searchsorted(ends, jnp.arange(num_groups), side="right"), count - 1)

    def product(x: Array, kernels: Weight) -> Array:
        return contract("nbd,ndf->nbf", x, jax.tree.map(lambda leaf: leaf[whose], kernels))

    tokens = tokens.reshape(num_groups, size, width)
    return Dispatched(tokens, product, lambda own: own[whose][:, None], collect, none_dropped)


def without_capacity(
    config: ModelConfig, count: int, x: Float[Array, "B T ... D"], chosen: Int[Array, "B T k"]
) -> Dispatched:
    """`by_expert`, in groups where `groups_tokens` says so."""
    grouped = groups_tokens(config, count, chosen.size, x.dtype.itemsize)
    return by_expert(count, x, chosen, grouped=grouped)


def groups_tokens(config: ModelConfig, count: int, pairs: int, bytes_each: int) -> bool:
    """Whether experts multiply groups of tokens, each with a copy of its expert's kernel, instead
    of one ragged product.

    XLA makes a ragged product dense on a CPU, so that all tokens meet all experts, and on GPUs at
    least that of its gradient (github.com/openxla/xla/pull/40189); TPUs have a kernel for it.

    Args:
      count: number of experts here.
      pairs: of a token and one of its experts.
      bytes_each: of a number of a kernel as it is multiplied.
    """
    asked, here = config.experts.products, platform()
    if asked != "auto" or here != "gpu":
        return asked == "grouped" or (asked == "auto" and here == "cpu")
    groups = -(-pairs // _group_size(pairs, count)) + count
    return groups * config.width * config.expert_width * bytes_each <= MOST_COPIES


MOST_COPIES = 4 * 2**30
"""Bytes of the copies of one product on a GPU, at which a ragged product takes its place. Derived,
not measured: they are written and read at a few TB/s, so 4 GiB cost some milliseconds."""


def _group_size(pairs: int, count: int) -> int:
    return min(256, max(8, 1 << (pairs // (4 * count)).bit_length() >> 1))


# --- on a mesh ---


def mix_over_mesh(
    config: ModelConfig,
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T k"],
    weights: Float[Array, "B T k"],
    kernels: Kernels,
) -> tuple[Float[Array, "B T D"], Bool[Array, "B T k"]]:
    """`apply_experts` on a mesh: each device computes for its own rows and its own experts.

    With a capacity, tokens go to the devices of their experts and come back (all-to-all). Without
    one, the number of tokens for each device is unknown: the devices that share the experts gather
    all tokens (all-gather) and sum their experts' outputs (reduce-scatter).

    Source: Lepikhin et al. 2020, GShard, arXiv:2006.16668, section 3.
    """
    # with a capacity, a row's earlier tokens go first, so each device needs whole rows
    mesh, ordered = current_mesh(), config.experts.capacity is not None
    float8 = {name for name, kernel in kernels.items() if isinstance(kernel, Float8)}
    tokens = partition_spec(mesh.shape, x.shape, (ROWS, ("context", "tensor"), ()))
    kernels = {name: dense(kernel) for name, kernel in kernels.items()}
    cut = {
        name: partition_spec(mesh.shape, kernel.shape, _axes_of(name))
        for name, kernel in kernels.items()
    }
    positions = [axis for axis in ("context", "tensor") if axis in (tokens[1] or ())]
    gathered = positions if ordered else [axis for axis in positions if axis == "tensor"]
    summed = "tensor" in cut["up"]

    def own(x: Array, chosen: Array, weights: Array, kernels: Kernels) -> tuple[Array, Array]:
        for name in (name for name in kernels if "fsdp" in cut[name]):
            whole = all_gather(kernels[name].astype(x.dtype), "fsdp", cut[name].index("fsdp"))
            kernels = {**kernels, name: whole}
        kernels = {n: Float8(one) if n in float8 else one for n, one in kernels.items()}
        for axis in reversed(gathered):
            x, chosen, weights = (all_gather(array, axis, 1) for array in (x, chosen, weights))
        if summed and "down_bias" in kernels:  # once, though every device adds its part
            first = jax.lax.axis_index("tensor") == 0
            kernels = {**kernels, "down_bias": jnp.where(first, kernels["down_bias"], 0)}
        mixed, dropped = (_sent if ordered else _shared)(
            config, x, chosen, weights, kernels, cut["up"][0] == "expert"
        )
        mixed = jax.lax.psum(mixed, "tensor") if summed and "tensor" not in gathered else mixed
        for axis in gathered:
            scattered = summed and axis == "tensor"
            mixed = (
                jax.lax.psum_scatter(mixed, axis, scatter_dimension=1, tiled=True)
                if scattered
                else local_slice(mixed, axis, 1)
            )
            dropped = local_slice(dropped, axis, 1)
        return mixed, dropped

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, cut),
        out_specs=(tokens, tokens),
        check_vma=False,
    )(x, chosen, weights, kernels)


def _axes_of(name: str) -> tuple[tuple[str, ...], ...]:
    """The mesh axes over which the kernels or biases of that name are split."""
    if name.endswith("_bias"):
        return ("expert",), () if name == "down_bias" else ("tensor",)
    wide, narrow = ("fsdp",), ("tensor",)
    return (("expert",), narrow, wide) if name == "down" else (("expert",), wide, narrow)


def _sent(
    config: ModelConfig, x: Array, chosen: Array, weights: Array, kernels: Kernels, apart: bool
) -> tuple[Array, Array]:
    """Sends each row's tokens to the devices that have their experts (all-to-all)."""
    x, weights = _entering(config.experts, x, weights)
    dispatched = by_row(config.experts, x, chosen)
    send = (
        (lambda x, away, home: jax.lax.all_to_all(x, "expert", away, home, tiled=True))
        if apart
        else (lambda x, away, home: x)
    )
    mixed = _mlps(config, kernels, send(dispatched.tokens, 1, 0), dispatched)
    return (
        _weighted(dispatched.collect(send(mixed, 0, 1)), weights * ~dispatched.dropped),
        dispatched.dropped,
    )


def _shared(
    config: ModelConfig, x: Array, chosen: Array, weights: Array, kernels: Kernels, apart: bool
) -> tuple[Array, Array]:
    """The local experts process every token that chose them, from all devices (all-gather)."""
    count, none_dropped = kernels["up"].shape[0], jnp.zeros(chosen.shape, bool)
    if apart and config.experts.exchange == "ragged":
        return _travelling(config, x, chosen, weights, kernels), none_dropped
    if apart:
        x, chosen, weights = (all_gather(array, "expert", 0) for array in (x, chosen, weights))
        chosen = chosen - jax.lax.axis_index("expert") * count
    x, weights = _entering(config.experts, x, weights)
    dispatched = without_capacity(config, count, x, chosen)
    mixed = _weighted(
        dispatched.collect(_mlps(config, kernels, dispatched.tokens, dispatched)), weights
    )
    return (
        jax.lax.psum_scatter(mixed, "expert", scatter_dimension=0, tiled=True) if apart else mixed
    ), none_dropped


def _travelling(
    config: ModelConfig, x: Array, chosen: Array, weights: Array, kernels: Kernels
) -> Float[Array, "B T D"]:
    """The local experts process the choices that all devices send them (ragged all-to-all)."""
    count, active, (rows, length, width) = kernels["up"].shape[0], config.experts.active, x.shape
    x, weights = _entering(config.experts, x, weights)
    choices = _by_choice(x.reshape(-1, *x.shape[2:]), active)

    def experts(x: Array, whose: Array) -> Array:
        dispatched = without_capacity(config, count, x[None], whose[None, :, None])
        return dispatched.collect(_mlps(config, kernels, dispatched.tokens, dispatched))[0, :, 0]

    room = jax.lax.axis_size("expert") * rows * length * min(active, count)
    mixed = through_experts(experts, choices, chosen.reshape(-1), count, room)
    return _weighted(mixed.reshape(rows, length, active, width), weights)
