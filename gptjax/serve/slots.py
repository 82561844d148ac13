"""The compiled programs of the server: a handful, whatever is asked of it.

`Slots` (`generate.engine`) are S rows of C slots each. A prompt is read straight into its row, in
parts of `PART` tokens that begin at multiples of `PART` (`read_part`), beside the rows that write.
`begin` lets the row write; `write_tokens` writes in all rows; `clear` empties a row.

Why answers do not depend on neighbours. The keys and values of a token are always computed by the
same program on the same aligned part, whatever was read before it or restored by `put_block`. All S
rows take part in every step, empty ones with masked tokens, and what a row computes depends on that
row alone.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Numbers, Params
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate import engine
from gptjax.generate.batch import Job, Room, columns
from gptjax.generate.constraints import unconstrained
from gptjax.generate.decode import Decoding, empty_rows, within
from gptjax.generate.engine import Columns, Slots, with_constraint
from gptjax.generate.request import Request
from gptjax.generate.settings import GenerateConfig
from gptjax.model import Cache, KVCache, ModelConfig
from gptjax.model.cache import CacheGroup
from gptjax.weights import serve

PART = 128
"""Tokens of a prompt that are read at once, and of a block of the prefix cache."""
TAILS = (16, 32, 64, PART)
"""Widths that the last tokens of a prompt are padded to."""
STOPS = 32
"""Stop ids of a row, those of the tokenizer included."""
ALTERNATIVES = 20
"""Most likely tokens that are kept at each place."""
STATES, MASKS = 16_384, 4_096
"""Room for the automata of all constraints at one time."""


def room_of(context: int, adapters: bool = False, kv_cache: KVCache = "full") -> Room:
    """The room that every request of a server fits in, with this many tokens of prompt and
    answer."""
    return Room(
        slots=context,
        stops=STOPS,
        alternatives=ALTERNATIVES,
        side=0,
        shaped=True,
        constrained=True,
        kv_cache=kv_cache,
        adapters=adapters,
    )


def open_slots(config: ModelConfig, tokenizer: Tokenizer, rows: int, room: Room) -> Slots:
    """Rows that hold nothing."""
    decoding = empty_rows(config, rows, room.slots, room.alternatives, room.kv_cache)
    text = decoding.text._replace(finished=jnp.ones((rows,), bool))
    text = text._replace(history=text.history._replace(state=jnp.zeros((rows,), jnp.int32)))
    spare = Job(Request("", [0], GenerateConfig(), adapter=-1 if room.adapters else None))
    rows_of = columns(config, tokenizer, [spare] * rows, room)
    constraint = unconstrained(rows, tokenizer, STATES, MASKS)
    whole = jax.tree.map(jnp.array, with_constraint(rows_of, constraint))
    # a buffer of its own for each leaf: `begin` and the others donate them
    return Slots(jax.tree.map(jnp.array, decoding._replace(text=text)), whole)


@functools.partial(jax.jit, donate_argnames="decoding")
def clear(decoding: Decoding, row: Int[Array, ""]) -> Decoding:
    """Empties a row: it has read nothing and writes nothing."""
    cache = decoding.cache
    groups = tuple(
        dataclasses.replace(group, positions=group.positions.at[row].set(-1))
        for group in cache.groups
    )
    states, lengths = model.clear_states(cache.states, row), cache.lengths.at[row].set(0)
    cache = cache._replace(groups=groups, lengths=lengths, states=states)
    text = decoding.text._replace(finished=decoding.text.finished.at[row].set(True))
    return decoding._replace(text=text, cache=model.constrain_cache(cache))


@functools.partial(jax.jit, static_argnames=("config", "reach"), donate_argnames="decoding")
def read_part(
    config: ModelConfig,
    params: Params,
    decoding: Decoding,
    row: Int[Array, ""],
    ids: Int[Array, " T"],
    start: Int[Array, ""],
    count: Int[Array, ""],
    adapter: Int[Array, ""] | None = None,
    soft: model.Soft | None = None,
    *,
    reach: int,
) -> tuple[Decoding, Float[Array, "T D"]]:
    """Reads tokens number `start` to `start + count` of a prompt into its row.

    Args:
      ids: the tokens, padded at the right.
      adapter: which of several adapters serves the row.
      soft: embeddings of pictures in this part, and their places in it.
      reach: one of `reaches` that is at least `start` and the width of the part; static.

    Returns:
      The rows, and the last hidden states of the tokens.
    """
    number, cache = jnp.arange(len(ids)), decoding.cache
    positions = jnp.where(number < count, start + number, -1)[None]
    own = params if adapter is None else serve(params, adapter[None])
    alone = cache._replace(
        groups=tuple(_cut(group, row, 0, reach) for group in cache.groups),
        lengths=cache.lengths[row][None],
        states=model.take_states(cache.states, row[None]),
    )
    out = model.forward(config, own, ids[None], positions=positions, cache=alone, soft=soft)
    groups = tuple(
        _put(old, new, row, 0) for old, new in zip(cache.groups, out.cache.groups, strict=True)
    )
    lengths = cache.lengths.at[row].set(out.cache.lengths[0])
    states = model.insert_states(cache.states, row[None], out.cache.states, jnp.zeros(1, int))
    cache = cache._replace(groups=groups, lengths=lengths, states=states)
    cache = model.constrain_cache(cache)
    return decoding._replace(cache=cache), out.hidden[0]


see = jax.jit(model.see, static_argnames="config")
"""Embeddings of pictures; one at a time, so that one program does for any number."""


def _cut(group: CacheGroup, row: Array, start: Array | int, slots: int) -> CacheGroup:
    """One row of a group, and of it so many slots; a ring whole."""
    size = group.positions.shape[1] if group.at_once is not None else slots

    def cut(leaf: Array) -> Array:
        shape = list(leaf.shape)
        rows, places = _AXES[leaf.ndim > 2]
        shape[rows], shape[places] = 1, size
        return jax.lax.dynamic_slice(leaf, _begins(leaf, row, start), shape)

    return jax.tree.map(cut, group)


def _put(group: CacheGroup, part: CacheGroup, row: Array, start: Array | int) -> CacheGroup:
    """The group with what `_cut` took back in its place."""

    def put(leaf: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice(leaf, new, _begins(leaf, row, start))

    return jax.tree.map(put, group, part)


def _begins(leaf: Array, row: Array, start: Array | int) -> list[Array | int]:
    begins: list[Array | int] = [0] * leaf.ndim
    rows, places = _AXES[leaf.ndim > 2]
    begins[rows], begins[places] = row, start
    return begins


_AXES = ((0, 1), (1, 3))
"""Axes of rows and slots: of positions [B S], and of all else [L B K S …]."""


@functools.partial(jax.jit, static_argnames=("config", "reach"), donate_argnames="decoding")
def write_tokens(
    config: ModelConfig,
    params: Params,
    decoding: Decoding,
    columns: Columns,
    steps: Int[Array, ""],
    vocabulary: Int[Array, ""],
    *,
    reach: int,
) -> Decoding:
    """Writes up to `steps` tokens in every row that is not finished; `engine.advance`, in which
    attention reads no more slots than rows have.

    Args:
      reach: one of `reaches` that holds the longest row and `steps` tokens more; static.
    """
    near = decoding._replace(cache=model.within_reach(decoding.cache, reach))
    near = engine.advance(config, params, Slots(near, columns), steps, vocabulary).decoding
    return near._replace(cache=model.within_reach(near.cache, None))


def reaches(context: int, factor: int = 2) -> list[int]:
    """Numbers of slots that programs are compiled for, each `factor` times the one before, at least
    256; the last is the context."""
    sizes = [context]
    while sizes[0] > 256:
        sizes.insert(0, max(256, (1 << (sizes[0] - 1).bit_length()) // factor))
    return sizes


def reach_of(count: int, sizes: list[int]) -> int:
    """The least of `reaches` that holds `count` tokens, or the last."""
    return next((size for size in sizes if size >= count), sizes[-1])


def reading_reaches(width: int, context: int) -> list[int]:
    """`reaches` of the programs that read so many tokens: more of whole parts, since most tokens
    are read by these, than of each narrower width."""
    return reaches(context, 2 if width == PART else 4)


@functools.partial(jax.jit, donate_argnames=("decoding", "whole"))
def begin(
    decoding: Decoding,
    whole: Columns,
    row: Int[Array, ""],
    ids: Int[Array, " C"],
    length: Int[Array, ""],
    limit: Int[Array, ""],
    one: Columns,
) -> tuple[Decoding, Columns]:
    """Lets a row write, whose prompt was read but for its last token.

    Args:
      ids: the prompt, padded.
      limit: maximum number of tokens to write.
      one: what the request asks for, one row.
    """
    text, constraint = decoding.text, whole.sampling.shaping.constraint
    history = text.history
    history = history._replace(
        ids=history.ids.at[row].set(ids),
        prompt=history.prompt.at[row].set(length),
        length=history.length.at[row].set(length),
        state=history.state.at[row].set(constraint.start[row]),
    )
    text = text._replace(
        history=history,
        limit=text.limit.at[row].set(limit),
        finished=text.finished.at[row].set(limit <= 0),
        stopped=text.stopped.at[row].set(False),
    )
    free = jax.tree.map(
        lambda leaf, new: leaf.at[row].set(new[0]), with_constraint(whole, None), one
    )
    return decoding._replace(text=text), with_constraint(free, constraint)


class Block(NamedTuple):
    """Keys, values and positions of `PART` consecutive tokens."""

    groups: tuple[CacheGroup, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.groups))


@jax.jit
def block_of(cache: Cache, row: Int[Array, ""], start: Int[Array, ""]) -> Block:
    """A copy of what the cache holds of the `PART` tokens of a row from number `start` on."""
    return Block(tuple(_cut(group, row, start, PART) for group in cache.groups))


@functools.partial(jax.jit, donate_argnames="decoding")
def put_block(
    decoding: Decoding, row: Int[Array, ""], start: Int[Array, ""], block: Block
) -> Decoding:
    """Puts the block of the `PART` tokens from number `start` on into a row that has read those
    before them."""
    cache = decoding.cache
    groups = tuple(
        _put(group, part, row, start)
        for group, part in zip(cache.groups, block.groups, strict=True)
    )
    cache = cache._replace(groups=groups, lengths=cache.lengths.at[row].set(start + PART))
    return decoding._replace(cache=model.constrain_cache(cache))


@functools.partial(jax.jit, static_argnames="config")
def score_part(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "T D"],
    following: Int[Array, " T"],
    vocabulary: Int[Array, ""],
) -> tuple[Float[Array, " T"], Int[Array, "T A"], Float[Array, "T A"]]:
    """ln p of the token after each, and the `ALTERNATIVES` likeliest ids there with their ln p."""
    logits = within(model.unembed(config, params, hidden), vocabulary)
    logp = jax.nn.log_softmax(logits, axis=-1)
    best, names = jax.lax.top_k(logp, ALTERNATIVES)
    return jnp.take_along_axis(logp, following[:, None], axis=-1)[:, 0], names, best


def width_of(count: int) -> int:
    """The width that `count` tokens are padded to."""
    return next(size for size in TAILS if size >= count)


def padded_ids(ids: Any, size: int) -> Int[Numbers, " T"]:
    """Ids in an array of this size, zeros behind them."""
    whole = np.zeros(size, np.int32)
    whole[: len(ids)] = ids
    return whole


def compiled_programs() -> dict[str, int]:
    """The number of compiled versions of each program, in this process."""
    functions = (read_part, begin, write_tokens, clear, block_of, put_block, score_part, see)
    return {function.__name__: function._cache_size() for function in functions}
