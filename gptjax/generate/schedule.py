"""Continuous batching on the host: jobs enter free rows, write together, and leave.

`Engine` is the host's side of `engine.Slots`: any job can enter any free row while others write.
`Sealed` is the same for the strategies that own their batch. `follow.follow` drives either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate import engine
from gptjax.generate.batch import (
    Job,
    Prefix,
    Room,
    automaton_of,
    batch_of,
    columns,
    limit_of,
    read_prompts,
)
from gptjax.generate.chain import ORDER
from gptjax.generate.constraints import Constraint, Place, insert, unconstrained
from gptjax.generate.decode import Decoding, Text
from gptjax.generate.engine import Slots
from gptjax.generate.request import Request
from gptjax.generate.strategies import Draft, Writer, open_writer
from gptjax.model import ModelConfig
from gptjax.sharding.constrain import use_mesh
from gptjax.weights import choose_adapter


class Call(NamedTuple):
    """What all requests of a call share."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    prefix: Prefix | None = None
    draft: Draft | None = None
    mesh: Mesh | None = None
    """The devices on which the parameters are placed; `None` is one device."""

    def chosen(self, asked: list[Request], names: Sequence[str]) -> tuple[Call, list[Request]]:
        """The call and its requests with the adapters that their settings name: one for all is
        the model's own, others serve their rows.

        Args:
          names: of the adapters that the model holds.

        Raises:
          ConfigError: there is no such adapter, or the call can't use several.
        """
        numbers = [adapter_number(one.settings.use, names) for one in asked]
        if not names:
            return self, asked
        if len(set(numbers)) == 1:
            return self._replace(params=choose_adapter(self.params, numbers[0])), asked
        others = asked[0].strategies or ["a shared prefix"] * (self.prefix is not None)
        require(
            not others and self.draft is None,
            "prompts of one call that use different adapters can't be joined with"
            f" {' and '.join(others) or 'a draft model'}; use one adapter (--use NAME).",
        )
        pairs = zip(asked, numbers, strict=True)
        return self, [one._replace(adapter=number) for one, number in pairs]

    @property
    def before(self) -> list[int]:
        """Ids of the shared prefix."""
        return [] if self.prefix is None else self.prefix.ids


def adapter_number(name: str | None, names: Sequence[str]) -> int:
    """The number of an adapter: the first if none is named, −1 for `base`.

    Raises:
      ConfigError: there is none of this name.
    """
    require(
        name is None or name in (*names, *["base"] * bool(names)),
        f"use is {name!r}, and the model holds {', '.join(names) or 'no adapters'}; add one"
        " (--adapter NAME=DIR).",
    )
    return -1 if name == "base" or not names else names.index(name or names[0])


class Reading(NamedTuple):
    """Prompts that have been read, a row each."""

    requests: list[Request]
    state: Decoding

    def row_of(self, job: Job) -> int | None:
        """The row in which the job's prompt is, if it is here."""
        rows = (row for row, one in enumerate(self.requests) if one is job.request)
        return next(rows, None)


class Engine(NamedTuple):
    """Rows that jobs enter and leave at any time."""

    call: Call
    room: Room
    rows: int
    order: tuple[str, ...] = ORDER
    """Order of the transforms; see `chain.shape`."""
    slots: Slots | None = None
    """`None` before the first job."""
    constraint: Constraint | None = None
    """Of all rows, if a request may have one."""
    places: Sequence[Place | None] = ()
    """Where the constraint of each row stands in its tables."""
    reading: Reading | None = None
    """The prompts read last, while further answers to them may wait for a row."""

    @property
    def joins(self) -> bool:
        """Whether a job can enter while others write."""
        return True

    @property
    def text(self) -> Text:
        """What the rows hold so far."""
        return self.slots.text

    def admit(self, jobs: Mapping[int, Job]) -> Engine:
        """Reads the prompts of some jobs and puts each into its row.

        Args:
          jobs: row → job; these rows must be free.

        Raises:
          ConfigError: the constraint of a job needs more tokens than there is room for.
        """
        changed = self
        if self.room.constrained:
            for row, job in jobs.items():
                changed = changed._constrain(row, job.request)
        changed = changed._read(list(jobs.values()))
        return changed._fill(jobs) if self.slots is None else changed._enter(jobs)

    def _constrain(self, row: int, request: Request) -> Engine:
        """Puts the constraint of a request into its row of the tables."""
        call = self.call
        constraint, places = insert(
            self.constraint or unconstrained(self.rows, call.tokenizer),
            row,
            automaton_of(call.config, call.tokenizer, request, call.before),
            limit_of(call.config, request, call.before),
            self.places or [None] * self.rows,
        )
        return self._replace(constraint=constraint, places=places)

    def _read(self, jobs: Sequence[Job]) -> Engine:
        """Reads the prompts of the jobs, each once, unless they have just been read."""
        if self.reading and all(self.reading.row_of(job) is not None for job in jobs):
            return self
        requests = list({id(job.request): job.request for job in jobs}.values())
        with use_mesh(self.call.mesh):
            state = read_prompts(
                self.call.config,
                self.call.params,
                requests,
                self.room,
                rows=_power(len(requests)),
                prefix=self.call.prefix,
            )
        return self._replace(reading=Reading(requests, state))

    def _fill(self, jobs: Mapping[int, Job]) -> Engine:
        """The first jobs: rows without one are free."""
        reading, spare = self.reading, next(iter(jobs.values()))
        read = len(reading.state.text.limit)
        source = [
            reading.row_of(jobs[row]) if row in jobs else min(row, read - 1)
            for row in range(self.rows)
        ]
        own = source == list(range(read))
        with use_mesh(self.call.mesh):
            slots = engine.fill(
                reading.state,
                None if own else np.asarray(source, np.int32),
                self._columns([jobs.get(row, spare) for row in range(self.rows)]),
                self.constraint,
            )
            if not own:
                free = np.asarray([row not in jobs for row in range(self.rows)])
                slots = engine.evict(slots, free)
        return self._replace(slots=slots, reading=None if own else reading)

    def _enter(self, jobs: Mapping[int, Job]) -> Engine:
        """Further jobs, beside those that are writing."""
        spare = _power(len(jobs)) - len(jobs)
        entering = [*jobs.values(), *[next(iter(jobs.values()))] * spare]
        rows = np.asarray([*jobs, *[self.rows] * spare], np.int32)
        source = np.asarray([self.reading.row_of(job) for job in entering], np.int32)
        with use_mesh(self.call.mesh):
            slots = engine.admit(
                self.slots,
                rows,
                self.reading.state,
                source,
                self._columns(entering),
                self.constraint,
            )
        return self._replace(slots=slots)

    def _columns(self, jobs: Sequence[Job]) -> engine.Columns:
        call = self.call
        return columns(call.config, call.tokenizer, jobs, self.room, call.before)

    def advance(self, steps: int, *, pause: bool) -> Engine:
        """Writes up to `steps` tokens in every row; with `pause` only until a row ends."""
        call = self.call
        with use_mesh(call.mesh):
            slots = engine.advance(
                call.config,
                call.params,
                self.slots,
                steps,
                call.tokenizer.vocab_size,
                pause=pause,
                order=self.order,
            )
        return self._replace(slots=slots)

    def evict(self, rows: np.ndarray) -> Engine:
        """Ends the marked rows."""
        return self._replace(slots=engine.evict(self.slots, rows))


class Sealed(NamedTuple):
    """Rows that begin together, for strategies that own their batch."""

    call: Call
    room: Room
    prompts: int
    """Prompts of a batch."""
    each: int
    """Rows that answer a prompt."""
    writer: Writer | None = None
    count: int = 0
    """Tokens that each row may have written so far."""

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return self.prompts * self.each

    @property
    def joins(self) -> bool:
        """Whether a job can enter while others write."""
        return False

    @property
    def text(self) -> Text:
        """What the rows hold so far."""
        return self.writer.text

    def admit(self, jobs: Mapping[int, Job]) -> Sealed:
        """Opens a batch for these jobs: all answers to some requests, in order, from row 0 on."""
        call = self.call
        requests = [jobs[row].request for row in range(0, len(jobs), self.each)]
        batch = batch_of(
            call.config, call.tokenizer, requests, self.room, self.prompts, call.before
        )
        with use_mesh(call.mesh):
            writer = open_writer(call.config, call.params, batch, call.prefix, call.draft)
        return self._replace(writer=writer, count=0)

    def advance(self, steps: int, *, pause: bool) -> Sealed:
        """Writes until every row has at least `steps` tokens more, or is finished."""
        count = min(self.count + steps, self.call.config.context)
        with use_mesh(self.call.mesh):
            return self._replace(writer=self.writer.until(count), count=count)

    def evict(self, rows: np.ndarray) -> Sealed:
        """Ends the marked rows."""
        return self._replace(writer=self.writer.halt(rows))


def _power(count: int) -> int:
    """The power of two that holds `count`."""
    return 1 << (count - 1).bit_length()
