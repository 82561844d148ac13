"""What recurrent layers remember of tokens already read: a state of fixed size, what the
convolution still needs, and the tokens that may yet be rolled back.

A state can't forget its last token. So it is the state before the last `undo` tokens, which are
kept as they entered the recurrence and are read again with the next ones. To roll back is then to
shorten a row, as with keys and values. With `undo` 0, where nothing is rolled back, the state has
read every token.

Read `States`, then `place` (once for a reading), `recall` and `remember` (in each layer).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Bool, Int
from gptjax.model.config import ModelConfig
from gptjax.sharding.constrain import ROWS, constrain


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs", "gates", "state", "lengths"],
    meta_fields=["undo"],
)
@dataclass(frozen=True)
class States:
    """What the L recurrent layers of a model remember of B rows."""

    inputs: tuple[Any, ...]
    """[L B taps−1+undo …], of the compute type: what the convolution reads of the last tokens in
    `state`, then of those after them."""
    gates: tuple[Any, ...]
    """float32 [L B undo …]: decays and rates of the tokens after `state`."""
    state: Any
    """float32 [L B K G H value]; `None` where the convolution is all."""
    lengths: Any
    """int32 [B]: number of tokens that `state` has read."""
    undo: int = 0
    """Number of last tokens that can be rolled back."""


class Placement(NamedTuple):
    """Where the tokens of a reading go, behind those that `States` holds beside the state."""

    slots: Int[Array, "B T"]
    """The place of each; past the end for padding."""
    total: Int[Array, " B"]
    """Number of tokens there, the new ones included."""
    settled: Int[Array, " B"]
    """How many of the first can't be rolled back any more."""


class Reading(NamedTuple):
    """The S tokens that a layer reads: the new ones, and before them those that were kept."""

    inputs: tuple[Array, ...]
    """[B taps−1+S …], for the convolution."""
    gates: tuple[Array, ...]
    """[B S …]"""
    state: Any
    """Before the first of them."""
    real: Bool[Array, "#B S"]
    """They are tokens, and no padding."""
    texts: Int[Array, "B S"] | None
    """The number of each token's text in its row; `None`: all are of one."""
    placement: Placement | None
    """`None` without a cache."""

    def own(self, read: Array) -> Array:
        """[B T …]: of what the S tokens read [B S …], the part of the new ones."""
        if self.placement is None:
            return read
        slots = jnp.minimum(self.placement.slots, read.shape[1] - 1)
        return jnp.take_along_axis(read, slots.reshape(*slots.shape, *(1,) * (read.ndim - 2)), 1)

    @property
    def settled(self) -> Bool[Array, "B S"]:
        """The tokens that can't be rolled back any more."""
        return jnp.arange(self.real.shape[1])[None] < self.placement.settled[:, None]


def empty_states(config: ModelConfig, rows: int) -> States | None:
    """States that have read nothing; `None` for a model without recurrent layers."""
    layers = sum(layer.recurrent for layer in config.stack)
    if not layers:
        return None
    options, record = config.recurrent, config.recurrent.record(config.width)
    inputs = tuple(
        jnp.zeros((layers, rows, options.taps - 1, *shape), config.compute)
        for shape in record.inputs
    )
    gates = tuple(jnp.zeros((layers, rows, 0, *shape)) for shape in record.gates)
    state = None if record.state is None else jnp.zeros((layers, rows, *record.state))
    return States(inputs, gates, state, jnp.zeros((rows,), jnp.int32))


def with_room(states: States, undo: int) -> States:
    """The same states, of which `undo` tokens more can be rolled back from now on."""

    def longer(leaf: Array) -> Array:
        return jnp.pad(leaf, ((0, 0), (0, 0), (0, undo)) + ((0, 0),) * (leaf.ndim - 3))

    inputs, gates = jax.tree.map(longer, (states.inputs, states.gates))
    return replace(states, inputs=inputs, gates=gates, undo=states.undo + undo)


def require_known(states: States, lengths: Array, wanted: Array) -> None:
    """Refuses to roll rows back behind what the states have read. Inside a compiled function, where
    lengths are not known, that is the caller's to refuse.

    Raises:
      ValueError: says how many tokens are kept.
    """
    if any(isinstance(one, jax.core.Tracer) for one in (states.lengths, lengths, wanted)):
        return
    if bool((wanted < states.lengths).any()):
        back = int((lengths - wanted).max())
        raise ValueError(
            f"{back} tokens can't be rolled back: a recurrent layer keeps the last {states.undo}"
            " beside its state (model.with_undo); read the text again."
        )


def take_states(states: States | None, rows: Int[Array, " R"]) -> States | None:
    """The states whose row i is the old row `rows[i]`; `None` of a model without."""
    if states is None:
        return None
    return _map_rows(states, lambda leaf: leaf[:, rows], lambda leaf: leaf[rows])


def insert_states(
    states: States | None, rows: Int[Array, " R"], other: States | None, source: Int[Array, " R"]
) -> States | None:
    """The states whose row `rows[i]` is row `source[i]` of others; see `cache.insert_rows`."""
    if states is None:
        return None
    return _map_rows(
        states,
        lambda whole, part: whole.at[:, rows].set(part[:, source], mode="drop"),
        lambda whole, part: whole.at[rows].set(part[source], mode="drop"),
        other,
    )


def clear_states(states: States | None, row: Int[Array, ""]) -> States | None:
    """The states of which a row has read nothing."""
    if states is None:
        return None
    return _map_rows(states, lambda leaf: leaf.at[:, row].set(0), lambda leaf: leaf.at[row].set(0))


def _map_rows(states: States, by_layer: Any, by_row: Any, *others: States | None) -> States:
    """The states whose leaves [L B …] and [B] are what two functions make of them."""
    whole = [replace(one, lengths=None) for one in (states, *others)]
    lengths = by_row(*(one.lengths for one in (states, *others)))
    return replace(jax.tree.map(by_layer, *whole), lengths=lengths)


def constrain_states(states: States) -> States:
    """The states, rows split over the mesh as those of a batch, heads over `tensor`."""

    def by_token(leaf: Array) -> Array:
        return constrain(leaf, (), ROWS, (), ("tensor",), *((),) * (leaf.ndim - 4))

    inputs, gates = jax.tree.map(by_token, (states.inputs, states.gates))
    state, lengths = states.state, constrain(states.lengths, ROWS)
    if state is not None:
        state = constrain(state, (), ROWS, ("tensor",), *((),) * (state.ndim - 3))
    return replace(states, inputs=inputs, gates=gates, state=state, lengths=lengths)


def place(
    states: States, lengths: Int[Array, " B"], real: Bool[Array, "B T"]
) -> tuple[States, Placement]:
    """The places of new tokens behind `lengths` tokens; the states whose `lengths` count what they
    will have read."""
    held, count = lengths - states.lengths, real.sum(axis=1)
    behind = states.undo + real.shape[1]
    slots = jnp.where(real, held[:, None] + jnp.cumsum(real, axis=1) - 1, behind)
    settled = jnp.maximum(held + count - states.undo, 0)
    placement = Placement(slots.astype(jnp.int32), held + count, settled)
    return replace(states, lengths=states.lengths + settled), placement


@functools.lru_cache(maxsize=64)
def _numbers(config: ModelConfig) -> np.ndarray:
    """The number of each layer of the stack among the recurrent ones."""
    recurrent = [layer.recurrent for layer in config.stack]
    return np.cumsum([0, *recurrent[:-1]]).astype(np.int32)


def _among(config: ModelConfig, number: Any) -> Any:
    numbers = _numbers(config)
    return int(numbers[number]) if isinstance(number, int) else jnp.asarray(numbers)[number]


def recall(
    config: ModelConfig,
    number: Any,
    states: States | None,
    placement: Placement | None,
    inputs: tuple[Array, ...],
    gates: tuple[Array, ...],
    positions: Int[Array, "#B T"],
    segments: Int[Array, "B T"] | None,
) -> Reading:
    """What a layer reads: new tokens as they enter its convolution, and its gates.

    Args:
      number: the layer's place in the stack; a number, or one that only the compiled loop knows.
      positions: of the new tokens; −1 is padding. Without a cache that is before or behind a text,
        not in the middle.
    """
    taps, rows = config.recurrent.taps, inputs[0].shape[0]
    if states is None:
        real = positions >= 0
        record = config.recurrent.record(config.width)
        state = None if record.state is None else jnp.zeros((rows, *record.state))

        def before(x: Array) -> Array:
            x = jnp.where(real.reshape(*real.shape, *(1,) * (x.ndim - 2)), x, 0)
            return jnp.pad(x, ((0, 0), (taps - 1, 0)) + ((0, 0),) * (x.ndim - 2))

        return Reading(tuple(map(before, inputs)), gates, state, real, _texts(segments), None)
    at, row = _among(config, number), jnp.arange(rows)[:, None]

    def behind(kept: Array, new: Array, begin: int) -> Array:
        whole = jnp.concatenate([kept[at], jnp.zeros_like(new, kept.dtype)], axis=1)
        return whole.at[row, begin + placement.slots].set(new.astype(kept.dtype), mode="drop")

    inputs = tuple(behind(*pair, taps - 1) for pair in zip(states.inputs, inputs, strict=True))
    gates = tuple(behind(*pair, 0) for pair in zip(states.gates, gates, strict=True))
    count = states.undo + placement.slots.shape[1]
    real = jnp.arange(count)[None] < placement.total[:, None]
    state = None if states.state is None else states.state[at]
    return Reading(inputs, gates, state, real, None, placement)


def _texts(segments: Int[Array, "B T"] | None) -> Int[Array, "B T"] | None:
    """The number of each token's segment in its row."""
    if segments is None:
        return None
    begins = segments[:, 1:] != segments[:, :-1]
    return jnp.pad(jnp.cumsum(begins, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def remember(
    config: ModelConfig, number: Any, states: States, reading: Reading, state: Array | None
) -> States:
    """The states after a layer has read.

    Args:
      state: after the tokens that are settled.
    """
    at, settled = _among(config, number), reading.placement.settled[:, None]

    def rest(whole: Array, kept: Array) -> Array:
        index = settled + jnp.arange(kept.shape[2])[None]
        index = index.reshape(*index.shape, *(1,) * (whole.ndim - 2))
        return kept.at[at].set(jnp.take_along_axis(whole, index, axis=1))

    inputs = tuple(rest(*pair) for pair in zip(reading.inputs, states.inputs, strict=True))
    gates = tuple(rest(*pair) for pair in zip(reading.gates, states.gates, strict=True))
    whole = None if state is None else states.state.at[at].set(state)
    return replace(states, inputs=inputs, gates=gates, state=whole)
