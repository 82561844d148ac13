"""Continuous batching as pure functions: rows that requests enter, write in together, and leave.

`Slots` are S rows of one `Decoding`, with what each row's request asks for as columns of arrays.
Prompts are read beside the rows that are writing (`decode.prefill`), then `admit` copies them into
free rows; `advance` writes tokens in every row, in one compiled loop; `evict` ends rows. Nothing
here knows a request, a tokenizer or a clock: `schedule` decides who enters when.

The shapes of `Slots` change only when the tables of constraints double, so the number of compiled
programs is bounded: one `advance` for each size of the tables, an `admit` for each of these and
each power of two of rows, and a `prefill` for each power of two of rows and of tokens. `programs`
counts them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Bool, Int, Keys, Numbers, Params
from gptjax.generate.chain import ORDER, Sampling
from gptjax.generate.constraints import Constraint
from gptjax.generate.decode import Decoding, Text, branch, extend, prefill, step, writing
from gptjax.model import ModelConfig
from gptjax.weights import serve


class Columns(NamedTuple):
    """What the request in each row asks for."""

    keys: Keys
    """Token number i of a row is drawn with `fold_in(key, i)`."""
    sampling: Sampling
    stop: Int[Array, "B stops"]
    """Ids that end the row; −1 matches no token."""
    adapter: Int[Array, " B"] | None = None
    """Which of several adapters serves the row; −1 means none. `None`: the model has no several."""


class Slots(NamedTuple):
    """Rows that requests enter and leave. A row that holds no request is finished."""

    decoding: Decoding
    columns: Columns

    @property
    def text(self) -> Text:
        """What the rows hold so far."""
        return self.decoding.text


def fill(
    reading: Decoding,
    source: Int[Numbers, " B"] | None,
    columns: Columns,
    constraint: Constraint | None = None,
) -> Slots:
    """Slots whose rows are all occupied by prompts that have just been read.

    Args:
      reading: P prompts that have been read; it is used up if `source` is `None`.
      source: the prompt of each row; `None` means that row i holds prompt i.
      columns: of all rows.
      constraint: of all rows, or `None` if no request will ever have one.
    """
    decoding = reading if source is None else branch(reading, source)
    if constraint is not None:
        # A copy: `advance` uses up the decoding, and the columns keep the constraint.
        decoding = _with_states(decoding, jnp.array(constraint.start, copy=True))
    return Slots(decoding, with_constraint(columns, constraint))


def admit(
    slots: Slots,
    rows: Int[Numbers, " R"],
    reading: Decoding,
    source: Int[Numbers, " R"],
    columns: Columns,
    constraint: Constraint | None = None,
) -> Slots:
    """Puts prompts that have been read into rows; whatever these rows held is gone. The other rows
    keep every bit.

    Args:
      slots: used up.
      rows: where they go; the number of rows or more puts a prompt nowhere.
      reading: P prompts that have been read, with as many slots as the rows have.
      source: which of the prompts goes to each row; several rows may share one.
      columns: what the new requests ask for, R rows without constraint.
      constraint: of all rows; the states of those that are writing must still be valid in it, see
        `constraints.insert`.
    """
    return Slots(*_admit(slots.decoding, slots.columns, rows, reading, source, columns, constraint))


@functools.partial(jax.jit, donate_argnames="decoding")
def _admit(
    decoding: Decoding,
    columns: Columns,
    rows: Int[Array, " R"],
    reading: Decoding,
    source: Int[Array, " R"],
    new: Columns,
    constraint: Constraint | None,
) -> tuple[Decoding, Columns]:
    states = decoding.text.history.state
    cache = model.insert_rows(decoding.cache, rows, reading.cache, source)
    text = jax.tree.map(
        lambda whole, part: whole.at[rows].set(part[source], mode="drop"),
        _with_states(decoding, None).text,
        _with_states(reading, None).text,
    )
    columns = jax.tree.map(
        lambda whole, part: whole.at[rows].set(part, mode="drop"),
        with_constraint(columns, None),
        with_constraint(new, None),
    )
    if constraint is not None:
        start = jnp.asarray(constraint.start)
        states = states.at[rows].set(start[rows], mode="drop")
    decoding = decoding._replace(text=text, cache=model.constrain_cache(cache))
    return _with_states(decoding, states), with_constraint(columns, constraint)


def advance(
    config: ModelConfig,
    params: Params,
    slots: Slots,
    steps: int | Int[Array, ""],
    vocabulary: int | Int[Array, ""],
    *,
    pause: bool | Bool[Array, ""] = False,
    order: tuple[str, ...] = ORDER,
) -> Slots:
    """Writes up to `steps` tokens in every row that is not finished, in one compiled loop.

    Args:
      slots: used up.
      vocabulary: ids from here on (padding of the embedding) are never drawn.
      pause: return as soon as any row ends, so that another request can enter.
      order: see `chain.shape`; static.
    """
    decoding = _advance(
        config, params, slots.decoding, slots.columns, steps, vocabulary, pause, order
    )
    return slots._replace(decoding=decoding)


@functools.partial(jax.jit, static_argnames=("config", "order"), donate_argnames="decoding")
def _advance(
    config: ModelConfig,
    params: Params,
    decoding: Decoding,
    columns: Columns,
    steps: Int[Array, ""],
    vocabulary: Int[Array, ""],
    pause: Bool[Array, ""],
    order: tuple[str, ...],
) -> Decoding:
    finished, history = decoding.text.finished, decoding.text.history
    until = history.length - history.prompt + steps

    def goes_on(state: Decoding) -> Bool[Array, ""]:
        ended = jnp.any(state.text.finished & ~finished)
        return jnp.any(writing(state.text, until)) & ~(pause & ended)

    keys, sampling, stop, adapter = columns
    params = params if adapter is None else serve(params, adapter)

    def one(state: Decoding) -> Decoding:
        state = step(config, params, state, keys, sampling, stop, vocabulary, order)
        return state._replace(cache=model.constrain_cache(state.cache))

    return jax.lax.while_loop(goes_on, one, decoding)


def evict(slots: Slots, rows: Bool[Numbers, " B"]) -> Slots:
    """Ends the marked rows: they write no more, and are free."""
    text = slots.text._replace(finished=_either(slots.text.finished, rows))
    return slots._replace(decoding=slots.decoding._replace(text=text))


_either = jax.jit(jnp.logical_or)


def programs() -> dict[str, int]:
    """The number of compiled versions of each function that generation is made of, in this
    process."""
    functions = {
        "prefill": prefill,
        "extend": extend,
        "branch": branch,
        "admit": _admit,
        "advance": _advance,
    }
    return {name: function._cache_size() for name, function in functions.items()}


def _with_states(decoding: Decoding, states: Int[Array, " B"] | None) -> Decoding:
    """The decoding whose rows stand at these states of their constraints."""
    history = decoding.text.history._replace(state=states)
    return decoding._replace(text=decoding.text._replace(history=history))


def with_constraint(columns: Columns, constraint: Constraint | None) -> Columns:
    """The columns with the constraint of all rows; columns without shaping can have none."""
    sampling = columns.sampling
    if sampling.shaping is None:
        return columns
    shaping = sampling.shaping._replace(constraint=constraint)
    return columns._replace(sampling=sampling._replace(shaping=shaping))
