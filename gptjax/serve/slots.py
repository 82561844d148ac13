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
from gptjax.generate.decode import Decoding, Text, empty_rows, within
from gptjax.generate.engine import Columns, Slots, with_constraint
from gptjax.generate.request import Request
from gptjax.generate.settings import GenerateConfig
from gptjax.model import Cache, ModelConfig
from gptjax.model.cache import CacheGroup
from gptjax.sharding.mesh import to_host
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


def room_of(context: int, adapters: bool = False, int8: bool = False) -> Room:
    """The room that every request of a server fits in, with this many tokens of prompt and
    answer."""
    return Room(
        slots=context,
        stops=STOPS,
        alternatives=ALTERNATIVES,
        side=0,
        shaped=True,
        constrained=True,
        int8=int8,
        adapters=adapters,
    )


def open_slots(config: ModelConfig, tokenizer: Tokenizer, rows: int, room: Room) -> Slots:
    """Rows that hold nothing."""
    decoding = empty_rows(config, rows, room.slots, room.alternatives, room.int8)
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
    cache = cache._replace(groups=groups, lengths=cache.lengths.at[row].set(0))
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
    *,
    reach: int,
) -> tuple[Decoding, Float[Array, "T D"]]:
    """Reads tokens number `start` to `start + count` of a prompt into its row.

    Args:
      ids: the tokens, padded at the right.
      adapter: which of several adapters serves the row.
      reach: one of `reaches` that is at least `start` and the width of the part; static.

    Returns:
      The rows, and the last hidden states of the tokens.
    """
    number, cache = jnp.arange(len(ids)), decoding.cache
    positions = jnp.where(number < count, start + number, -1)[None]
    own = params if adapter is None else serve(params, adapter[None])
    alone = cache._replace(
        groups=tuple(_beginning(group, row, reach) for group in cache.groups),
        lengths=cache.lengths[row][None],
    )
    out = model.forward(config, own, ids[None], positions=positions, cache=alone)
    groups = tuple(
        jax.tree.map(lambda whole, part: _put(whole, part, row), old, new)
        for old, new in zip(cache.groups, out.cache.groups, strict=True)
    )
    lengths = cache.lengths.at[row].set(out.cache.lengths[0])
    cache = model.constrain_cache(cache._replace(groups=groups, lengths=lengths))
    return decoding._replace(cache=cache), out.hidden[0]


def _beginning(group: CacheGroup, row: Array, reach: int) -> CacheGroup:
    """One row of a group, and of it the first `reach` slots; a ring whole."""
    slots = group.positions.shape[1] if group.at_once is not None else reach

    def cut(leaf: Array) -> Array:
        if leaf.ndim == 2:
            return jax.lax.dynamic_slice(leaf, (row, 0), (1, slots))
        begins = (0, row, *(0,) * (leaf.ndim - 2))
        sizes = (leaf.shape[0], 1, leaf.shape[2], slots, *leaf.shape[4:])
        return jax.lax.dynamic_slice(leaf, begins, sizes)

    return jax.tree.map(cut, group)


def _put(whole: Array, part: Array, row: Array) -> Array:
    """The leaf with the beginning of a row back in its place."""
    begins = (row, 0) if whole.ndim == 2 else (0, row, *(0,) * (whole.ndim - 2))
    return jax.lax.dynamic_update_slice(whole, part, begins)


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
    """Keys and values of `PART` consecutive tokens, group by group of the cache."""

    parts: tuple[tuple[Array, ...], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.parts))


@jax.jit
def block_of(cache: Cache, row: Int[Array, ""], start: Int[Array, ""]) -> Block:
    """A copy of the keys and values of the `PART` tokens of a row from number `start` on."""

    def cut(leaf: Array) -> Array:
        # [L B K S ...]: one row, PART slots
        begins = (0, row, 0, start, *(0,) * (leaf.ndim - 4))
        sizes = (leaf.shape[0], 1, leaf.shape[2], PART, *leaf.shape[4:])
        return jax.lax.dynamic_slice(leaf, begins, sizes)

    return Block(tuple(tuple(map(cut, _stored(group))) for group in cache.groups))


@functools.partial(jax.jit, donate_argnames="decoding")
def put_block(
    decoding: Decoding, row: Int[Array, ""], start: Int[Array, ""], block: Block
) -> Decoding:
    """Puts the keys and values of the `PART` tokens from number `start` on into a row that has
    read those before them."""
    cache, groups = decoding.cache, []
    places = start + jnp.arange(PART)
    for group, parts in zip(cache.groups, block.parts, strict=True):
        names = [name for name in _LEAVES if getattr(group, name) is not None]
        written = {
            name: jax.lax.dynamic_update_slice(
                getattr(group, name), part, (0, row, 0, start, *(0,) * (part.ndim - 4))
            )
            for name, part in zip(names, parts, strict=True)
        }
        positions = group.positions.at[row, places].set(places)
        groups.append(dataclasses.replace(group, positions=positions, **written))
    cache = cache._replace(groups=tuple(groups), lengths=cache.lengths.at[row].set(start + PART))
    return decoding._replace(cache=model.constrain_cache(cache))


_LEAVES = ("keys", "values", "key_scales", "value_scales")


def _stored(group: Any) -> list[Array]:
    return [leaf for name in _LEAVES if (leaf := getattr(group, name)) is not None]


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


class Written(NamedTuple):
    """What a row has written."""

    ids: list[int]
    logprobs: list[float]
    alternatives: list[list[tuple[int, float]]] | None
    """At each place the likeliest ids and their ln p, as many as were wanted."""
    finished: bool
    stopped: bool
    end: tuple[int, float] | None
    """The stop token and its ln p, if one ended the row."""


def written(text: Text, wanted: dict[int, int]) -> dict[int, Written]:
    """Takes what rows have written to the host.

    Args:
      wanted: row → number of alternatives at each place.
    """
    history = text.history
    ids, prompt, length = map(to_host, (history.ids, history.prompt, history.length))
    logprobs, finished, stopped = map(to_host, (text.logprobs, text.finished, text.stopped))
    wide = [to_host(leaf) for leaf in text.alternatives or ()] if any(wanted.values()) else []
    found = {}
    for row, top in wanted.items():
        span, last = slice(int(prompt[row]), int(length[row])), int(length[row])
        alternatives = None
        if top:
            places = (leaf[row, span, :top].tolist() for leaf in wide)
            alternatives = [list(zip(*place, strict=True)) for place in zip(*places, strict=True)]
        end = (int(ids[row, last]), float(logprobs[row, last])) if stopped[row] else None
        found[row] = Written(
            ids=ids[row, span].tolist(),
            logprobs=logprobs[row, span].tolist(),
            alternatives=alternatives,
            finished=bool(finished[row]),
            stopped=bool(stopped[row]),
            end=end,
        )
    return found


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
    functions = (read_part, begin, write_tokens, clear, block_of, put_block, score_part)
    return {function.__name__: function._cache_size() for function in functions}
