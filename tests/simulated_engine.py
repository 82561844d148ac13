"""An engine without a device, for the laws of `serve.plan`: it does what the scheduler says, keeps
its own books of every request, and remembers what it saw.

`Go` asks the scheduler, or answers the actions of the last time, in turn; so what stands between
two of them in a list of moves happens while the device is at rest, or while it is at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from gptjax.serve import events as e
from gptjax.serve import plan


class Ask(NamedTuple):
    """A client asks."""

    tokens: int
    limit: int
    tenant: str
    seconds: int | None


class Cancel(NamedTuple):
    """A client cancels: the n-th request, modulo all that there are and one that there isn't."""

    which: int


class Wait(NamedTuple):
    """Time passes."""

    seconds: int


class Lose(NamedTuple):
    """The device loses its state."""


class Go(NamedTuple):
    """The engine asks the scheduler, or answers; luck decides how."""

    luck: int


Move = Ask | Cancel | Wait | Lose | Go


class Work(NamedTuple):
    """A request in a row, in the engine's books."""

    arrival: e.Arrival
    order: int
    next: int | None = None
    written: int = 0

    @property
    def left(self) -> int:
        return self.arrival.tokens - (self.next or 0)

    @property
    def reads(self) -> bool:
        return self.next is not None and self.left > 0

    @property
    def writes(self) -> bool:
        return self.next is not None and self.left <= 0


class Moment(NamedTuple):
    """One call of `schedule`, and the books before it."""

    now: int
    waiting: tuple[e.Arrival, ...]
    rows: dict[int, Work]
    before: plan.Table
    actions: tuple[e.Action, ...]
    after: plan.Table


class Offer(NamedTuple):
    """One call of `offer`, and who waited before it."""

    waiting: tuple[e.Arrival, ...]
    arrival: e.Arrival
    reject: e.Reject | None


class Run(NamedTuple):
    """What came of a list of moves, up to the end of the last request."""

    policy: plan.Policy
    moments: list[Moment]
    offers: list[Offer]
    events: list[e.Event]
    told: list[e.Action]
    """All actions, rejections too."""
    outcomes: dict[int, str]
    """How each request ended by the books."""


class Engine:
    """Plays moves."""

    def __init__(self, policy: plan.Policy):
        self.table, self.now = plan.empty_table(policy), 0
        self.waiting: list[e.Arrival] = []
        self.rows: dict[int, Work] = {}
        self.todo: tuple[e.Action, ...] = ()
        self.placed = 0
        self.run = Run(policy, [], [], [], [], {})

    def play(self, move: Move) -> None:
        match move:
            case Ask(tokens, limit, tenant, seconds):
                deadline = None if seconds is None else self.now + seconds
                self.ask(e.Arrival(len(self.run.offers), tokens, limit, tenant, deadline))
            case Cancel(which):
                number = which % (len(self.run.offers) + 1)
                self.apply(e.Cancelled(number))
                self.end(number, "cancelled")
            case Wait(seconds):
                self.now += seconds
            case Lose():
                self.todo = ()
                self.apply(e.Reset())
                for work in tuple(self.rows.values()):
                    self.end(work.arrival.id, "failed")
            case Go(luck) if self.todo:
                self.answer(luck)
            case Go():
                self.look()

    def ask(self, arrival: e.Arrival) -> None:
        self.run.events.append(e.Arrived(arrival))
        self.table, reject = plan.offer(self.table, arrival, self.run.policy)
        self.run.offers.append(Offer(tuple(self.waiting), arrival, reject))
        if reject:
            self.run.told.append(reject)
            self.run.outcomes[arrival.id] = "rejected"
        else:
            self.waiting.append(arrival)

    def look(self) -> None:
        for arrival in (*self.waiting, *(work.arrival for work in self.rows.values())):
            if arrival.deadline is not None and arrival.deadline <= self.now:
                self.end(arrival.id, "expired")
        before, books = self.table, (tuple(self.waiting), dict(self.rows))
        self.run.events.append(e.Tick(self.now))
        self.table, self.todo = plan.schedule(before, self.now, self.run.policy)
        self.run.moments.append(Moment(self.now, *books, before, self.todo, self.table))
        self.run.told.extend(self.todo)
        for action in self.todo:
            if isinstance(action, e.Place):
                (arrival,) = (a for a in self.waiting if a.id == action.id)
                self.waiting.remove(arrival)
                self.rows[action.row] = Work(arrival, self.placed)
                self.placed += 1

    def answer(self, luck: int) -> None:
        for action in self.todo:
            if isinstance(action, e.Place | e.ReadPart) and luck % 19 == 0:
                self.fail(action.row, action.id)
            elif isinstance(action, e.Place):
                self.place(action, luck)
            elif isinstance(action, e.ReadPart):
                self.apply(e.Read(action.row, action.tokens))
                if work := self.rows.get(action.row):
                    self.go_on(action.row, work._replace(next=(work.next or 0) + action.tokens))
            elif isinstance(action, e.Write):
                self.write(action, luck)
        self.todo = ()

    def place(self, action: e.Place, luck: int) -> None:
        if work := self.rows.get(action.row):
            part = self.run.policy.part
            hit = luck // 3 % (work.arrival.tokens // part + 1) * part if luck % 3 == 0 else 0
            self.apply(e.Placed(action.row, hit))
            self.go_on(action.row, work._replace(next=hit))
        else:  # it was cancelled meanwhile
            self.apply(e.Placed(action.row, 0))

    def write(self, action: e.Write, luck: int) -> None:
        wrote = []
        for row in action.rows:
            work = self.rows.get(row)
            if work and (luck + row) % 23 == 0:
                self.fail(row, work.arrival.id)
                continue
            tokens = 1 + (luck + row) % max(1, action.steps)
            if work:
                tokens = min(tokens, work.arrival.limit - work.written)
            done = (luck + row) % 7 == 0
            wrote.append((row, tokens, done))
        self.apply(e.Wrote(tuple(wrote)))
        for row, tokens, done in wrote:
            if work := self.rows.get(row):
                self.go_on(row, work._replace(written=work.written + tokens), done)

    def go_on(self, row: int, work: Work, done: bool = False) -> None:
        self.rows[row] = work
        if done or (work.writes and work.written >= work.arrival.limit):
            self.end(work.arrival.id, "finished")

    def fail(self, row: int, number: int) -> None:
        self.apply(e.Failed(row, "bad luck"))
        if row in self.rows:
            self.end(number, "failed")

    def apply(self, event: e.Event) -> None:
        self.run.events.append(event)
        self.table = plan.apply(self.table, event)

    def end(self, number: int, outcome: str) -> None:
        live = [*self.waiting, *(work.arrival for work in self.rows.values())]
        if number in [arrival.id for arrival in live]:
            self.run.outcomes[number] = outcome
            self.waiting = [a for a in self.waiting if a.id != number]
            self.rows = {r: work for r, work in self.rows.items() if work.arrival.id != number}


def simulate(policy: plan.Policy, moves: Sequence[Move], lucky: bool = False) -> Run:
    """Plays the moves, then goes on until nothing is left to do, at most for a time in which every
    request could have been served alone.

    Args:
      lucky: afterwards nothing fails, ends early or is found in the prefix cache.
    """
    engine = Engine(policy)
    for move in moves:
        engine.play(move)
    most = sum(2 + offer.arrival.tokens + offer.arrival.limit for offer in engine.run.offers)
    for luck in range(2 * most + 4):
        engine.play(Go(1 if lucky else luck))
        if not engine.todo and not engine.waiting and not engine.rows and not engine.table.owed:
            break
    return engine.run


def small(last: int) -> st.SearchStrategy[int]:
    return st.integers(1, last)


POLICIES = st.builds(
    plan.Policy,
    rows=small(4),
    part=small(4),
    steps=small(4),
    steps_while_reading=small(2),
    parts_between_writes=small(3),
    writes_between_parts=small(3),
    oldest_every=small(4),
    max_waiting=st.sampled_from((2, 5, 50)),
    max_waiting_tokens=st.sampled_from((30, 60, 500)),
    quantum=small(20),
)


def move(number: int) -> Move:
    """A move as a number below 256 ** 3."""
    number, kind = divmod(number, 32)
    if kind < 19:
        return Go(number % 1000)
    if kind < 29:
        number, tokens = divmod(number, 21)
        number, limit = divmod(number, 7)
        seconds = (None, None, None, 4, 40)[number % 5]
        return Ask(tokens, limit, "aab"[number // 5 % 3], seconds)
    others = (Cancel(number % 21), Wait(1 + number % 9), Lose() if number % 3 == 0 else Go(number))
    return others[kind - 29]


MOVES = st.binary(min_size=60, max_size=300).map(
    lambda data: tuple(
        move(int.from_bytes(data[i : i + 3], "little")) for i in range(0, len(data), 3)
    )
)
"""Twenty moves or more, since lists without a least length are mostly short; as bytes, which are
drawn ten times faster than moves."""
