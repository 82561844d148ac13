"""The scheduler: which request gets a row, what is read, and when rows write, as a pure function.

    table = empty_table(policy)
    table, reject = offer(table, arrival, policy)     # a request comes in, or is turned away
    table, actions = schedule(table, now, policy)     # what the engine is to do now
    table = apply(table, event)                       # what came of it

The engine does the actions in their order, applies the events that result, and asks again. A call
gives at most one program of the device, a part or a write, so that whatever happened meanwhile is
seen before the next. No actions: wait for an event, at most until `next_deadline`.

| action | the engine | and applies |
|---|---|---|
| `Place` | takes the row for the request and restores what the prefix cache has | `Placed` |
| `ReadPart` | reads tokens of the prompt; after the last of them the row writes | `Read` |
| `Write` | writes up to `steps` tokens in each of the rows | `Wrote` |
| `Expire` | tells the client that the time is over | nothing |
| `Release` | clears the row and forgets the request | nothing |
| `Drop` | forgets the request | nothing |

`Failed` may stand for any of the answers. Every request that was not rejected ends in one
`Release` if it has a row, otherwise in one `Drop`. Events of requests that have ended change
nothing.

What is promised, with P = `parts_between_writes`, D = `writes_between_parts`, K = `oldest_every`:

- While rows write, at most P parts are read, and each free row is given away at most once, between
  two writes; and while rows are being read, at most D writes come between two parts.
- Of rows being read the one with the fewest tokens left is next, but of K parts in succession at
  least one is of the row that was placed first. A row with the fewest tokens left is therefore
  next, or next but one (K > 1). No row starves: if it and the rows placed before it lack N parts,
  it is read after at most K N parts, whatever comes in later, since every K parts lower N.
- Each tenant's requests are placed in their order, and tenants take turns (`serve.turns`).

No clock, no randomness, no device: equal events give equal actions (`serve.event_log`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gptjax.core.config import require
from gptjax.serve.events import (
    Action,
    Arrival,
    Arrived,
    Cancelled,
    Drop,
    Event,
    Expire,
    Failed,
    Outcome,
    Place,
    Placed,
    Read,
    ReadPart,
    Reject,
    Release,
    Reset,
    Write,
    Wrote,
)
from gptjax.serve.turns import Turns, next_request, queued, unqueued


class Policy(NamedTuple):
    """How rows are shared. Counts of at least 1."""

    rows: int
    """Requests that read or write at the same time."""
    part: int = 128
    """Tokens of a prompt that are read in one program; parts begin at multiples of it."""
    steps: int = 8
    """Most tokens that a row writes between two looks at the events; one while a row has none."""
    steps_while_reading: int = 1
    """The same while prompts wait to be read."""
    parts_between_writes: int = 1
    """Most parts that are read between two writes while rows write."""
    writes_between_parts: int = 2
    """Most writes between two parts while rows are being read."""
    oldest_every: int = 4
    """Of so many parts in succession one at least is of the row that was placed first; 1 reads in
    the order of placement."""
    max_waiting: int = 256
    """Requests that may wait for a row."""
    max_waiting_tokens: int = 1 << 20
    """Tokens to read of all waiting requests."""
    quantum: int = 512
    """Tokens that a tenant may ask for in its turn; see `serve.turns`."""


class Slot(NamedTuple):
    """A row in use."""

    arrival: Arrival
    order: int
    """Number of its placement."""
    next: int | None = None
    """First token that is not read yet; none until the row is ready."""
    written: int = 0
    busy: bool = True
    """An action was given whose event has not come."""

    @property
    def reading(self) -> bool:
        """Whether a part of it may be read."""
        return self.next is not None and self.next < self.arrival.tokens

    @property
    def writing(self) -> bool:
        """Whether all of it was read."""
        return self.next is not None and self.next >= self.arrival.tokens

    @property
    def left(self) -> int:
        """Tokens to read."""
        return self.arrival.tokens - (self.next or 0)


class Table(NamedTuple):
    """What the scheduler knows."""

    rows: tuple[Slot | None, ...]
    turns: Turns = ()
    """Waiting requests."""
    owed: tuple[Action, ...] = ()
    """Ends of requests that the engine has not been told."""
    placements: int = 0
    placed: bool = False
    """Whether rows were given away since the last write."""
    parts: int = 0
    """Read since the last write."""
    writes: int = 0
    """Since the last part."""
    younger: int = 0
    """Parts in succession that were not of the row placed first."""


class Occupancy(NamedTuple):
    """A table in numbers; free + reading + writing = rows."""

    free: int
    reading: int
    """Rows whose prompt is restored or read."""
    writing: int
    waiting: int
    waiting_tokens: int


def empty_table(policy: Policy) -> Table:
    """Gives a table without requests.

    Raises:
      ConfigError: a value of the policy is below 1.
    """
    for name, value in policy._asdict().items():
        require(value >= 1, f"policy.{name} is {value}; it must be at least 1.")
    return Table(rows=(None,) * policy.rows)


def occupancy(table: Table) -> Occupancy:
    """Counts rows and waiting requests."""
    slots = [slot for slot in table.rows if slot]
    writing = sum(slot.writing for slot in slots)
    queued = [arrival.tokens for tenant in table.turns for arrival in tenant.queue]
    return Occupancy(
        free=len(table.rows) - len(slots),
        reading=len(slots) - writing,
        writing=writing,
        waiting=len(queued),
        waiting_tokens=sum(queued),
    )


def next_deadline(table: Table) -> float | None:
    """The earliest deadline of any request; None if no request has one."""
    return min((a.deadline for a in _live(table) if a.deadline is not None), default=None)


def offer(table: Table, arrival: Arrival, policy: Policy) -> tuple[Table, Reject | None]:
    """Lets a request wait, or rejects it if the queue would exceed either limit."""
    waiting, tokens = occupancy(table)[3:]
    if waiting + 1 > policy.max_waiting:
        return table, Reject(arrival.id, "requests", waiting, tokens)
    if tokens + arrival.tokens > policy.max_waiting_tokens:
        return table, Reject(arrival.id, "tokens", waiting, tokens)
    return apply(table, Arrived(arrival)), None


# --- events ---


def apply(table: Table, event: Event) -> Table:
    """The table after an event. One that fits no request, or not its state, changes nothing."""
    match event:
        case Arrived(arrival):
            known = any(arrival.id == other.id for other in _live(table))
            return table if known else table._replace(turns=queued(table.turns, arrival))
        case Cancelled(number):
            return _ended(table, number, "cancelled")
        case Placed(row, hit):
            slot = _slot(table, row)
            if slot and slot.next is None:
                return _advanced(table, row, slot._replace(next=hit, busy=False))
        case Read(row, tokens):
            slot = _slot(table, row)
            if slot and slot.busy and slot.reading:
                further = slot._replace(next=(slot.next or 0) + tokens, busy=False)
                return _advanced(table, row, further)
        case Wrote(rows):
            return _after_write(table, rows)
        case Failed(row, why):
            slot = _slot(table, row)
            return _ended(table, slot.arrival.id, "failed", why) if slot else table
        case Reset(why):
            for slot in filter(None, table.rows):
                table = _ended(table, slot.arrival.id, "failed", why)
    return table


def _after_write(table: Table, rows: tuple[tuple[int, int, bool], ...]) -> Table:
    wrote = {row: (tokens, done) for row, tokens, done in rows}
    for row, slot in enumerate(table.rows):
        if slot and slot.busy and slot.writing:
            tokens, done = wrote.get(row, (0, False))
            further = slot._replace(written=slot.written + tokens, busy=False)
            table = _advanced(table, row, further, done)
    return table


def _advanced(table: Table, row: int, slot: Slot, done: bool = False) -> Table:
    """The table with a row that got further, which may complete it."""
    table = _with_row(table, row, slot)
    if done or (slot.writing and slot.written >= slot.arrival.limit):
        return _ended(table, slot.arrival.id, "finished")
    return table


def _ended(table: Table, number: int, outcome: Outcome, why: str = "") -> Table:
    """The table without a request; the engine is told with the next actions."""
    told: tuple[Action, ...] = (Expire(number),) if outcome == "expired" else ()
    for row, slot in enumerate(table.rows):
        if slot and slot.arrival.id == number:
            release = Release(row, number, outcome, why)
            return _with_row(table, row, None)._replace(owed=(*table.owed, *told, release))
    turns = unqueued(table.turns, number)
    if turns == table.turns:
        return table
    return table._replace(turns=turns, owed=(*table.owed, *told, Drop(number, outcome)))


def _with_row(table: Table, row: int, slot: Slot | None) -> Table:
    return table._replace(rows=(*table.rows[:row], slot, *table.rows[row + 1 :]))


def _slot(table: Table, row: int) -> Slot | None:
    return table.rows[row] if 0 <= row < len(table.rows) else None


def _live(table: Table) -> Iterator[Arrival]:
    yield from (slot.arrival for slot in table.rows if slot)
    for tenant in table.turns:
        yield from tenant.queue


# --- actions ---


def schedule(table: Table, now: float, policy: Policy) -> tuple[Table, tuple[Action, ...]]:
    """What is to be done now: ends of requests, and placements or a part or a write.

    Rows whose last action has had no event yet are left alone.
    """
    for arrival in tuple(_live(table)):
        if arrival.deadline is not None and arrival.deadline <= now:
            table = _ended(table, arrival.id, "expired")
    actions, table = table.owed, table._replace(owed=())
    writing = [row for row, slot in enumerate(table.rows) if slot and slot.writing]
    if not (writing and table.placed):
        table, places = _place(table, policy)
        if places:
            return table, actions + places
    reading = [row for row, slot in enumerate(table.rows) if slot and slot.reading]
    idle = not any(slot.busy for slot in table.rows if slot)
    if not idle or not (reading or writing):
        return table, actions
    if reading and (not writing or _read_is_next(table, policy)):
        table, action = _read(table, reading, policy)
    else:
        table, action = _write(table, writing, bool(reading), policy)
    return table, (*actions, action)


def _read_is_next(table: Table, policy: Policy) -> bool:
    """Up to P parts and D writes take turns."""
    if table.parts:
        return table.parts < policy.parts_between_writes
    return table.writes >= policy.writes_between_parts or not table.writes


def _place(table: Table, policy: Policy) -> tuple[Table, tuple[Place, ...]]:
    """Gives free rows to waiting requests."""
    places: list[Place] = []
    for row, slot in enumerate(table.rows):
        if slot is None and table.turns:
            turns, arrival = next_request(table.turns, policy.quantum)
            table = _with_row(table, row, Slot(arrival, table.placements))
            table = table._replace(turns=turns, placements=table.placements + 1, placed=True)
            places.append(Place(row, arrival.id))
    return table, tuple(places)


def _read(table: Table, reading: list[int], policy: Policy) -> tuple[Table, ReadPart]:
    """Reads of the shortest row, or of the one placed first if that was not read for long."""
    slots = {row: slot for row in reading if (slot := table.rows[row])}
    oldest = min(slots, key=lambda row: slots[row].order)
    shortest = min(slots, key=lambda row: (slots[row].left, slots[row].order))
    row = oldest if table.younger + 1 >= policy.oldest_every else shortest
    slot = slots[row]
    action = ReadPart(row, slot.arrival.id, slot.next or 0, min(policy.part, slot.left))
    table = _with_row(table, row, slot._replace(busy=True))
    table = table._replace(
        parts=table.parts + 1,
        writes=0,
        younger=0 if row == oldest else table.younger + 1,
    )
    return table, action


def _write(table: Table, writing: list[int], reading: bool, policy: Policy) -> tuple[Table, Write]:
    """Writes in all rows that can, for fewer steps if somebody waits for the end of it, and for one
    if a row has no token yet."""
    rows = {row: slot for row in writing if (slot := table.rows[row])}
    left = [slot.arrival.limit - slot.written for slot in rows.values()]
    if reading or (table.turns and None in table.rows):
        steps = min(policy.steps, policy.steps_while_reading, max(left))
    else:
        steps = min(policy.steps, min(left) if table.turns else max(left))
    if not all(slot.written for slot in rows.values()):
        steps = 1  # the first token of an answer goes out at once
    table = table._replace(
        rows=tuple(
            slot._replace(busy=True) if slot and row in rows else slot
            for row, slot in enumerate(table.rows)
        ),
        placed=False,
        parts=0,
        writes=table.writes + 1,
    )
    return table, Write(tuple(writing), steps)
