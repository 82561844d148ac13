"""Laws of the scheduler, held to random lists of events by a simulated engine."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from simulated_engine import MOVES, POLICIES, Ask, Cancel, Go, Moment, Move, Run, simulate

from gptjax.core.config import ConfigError
from gptjax.serve import events as e
from gptjax.serve import plan, turns
from gptjax.serve.event_log import (
    event_from_json,
    event_to_json,
    policy_to_json,
    read_log,
    replay,
)
from gptjax.serve.plan import Policy

RUNS = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# --- what every run keeps ---


def every_request_ends_once_as_its_events_say(run: Run) -> None:
    told, expired = [], []
    for action in run.told:
        match action:
            case e.Reject(number):
                told.append((number, "rejected"))
            case e.Drop(number, outcome) | e.Release(_, number, outcome):
                assert (outcome == "expired") == (expired[-1:] == [number])
                told.append((number, outcome))
            case e.Expire(number):
                expired.append(number)
    assert sorted(told) == sorted(run.outcomes.items())
    assert sorted(expired) == sorted(n for n, outcome in told if outcome == "expired")
    assert len(run.outcomes) == len(run.offers)


def a_row_holds_one_request_from_its_placement_to_its_release(run: Run) -> None:
    rows: dict[int, int] = {}
    for moment in run.moments:
        for action in moment.actions:
            match action:
                case e.Place(row, number):
                    assert row not in rows and 0 <= row < run.policy.rows
                    rows[row] = number
                case e.Release(row, number):
                    assert rows.pop(row) == number
                case e.ReadPart(row, number):
                    assert rows[row] == number
                case e.Write(written):
                    assert {*written} <= {*rows}
        count = plan.occupancy(moment.after)
        assert count.free + count.reading + count.writing == run.policy.rows
        assert count.free == run.policy.rows - len(rows)
    assert not rows


def the_books_of_the_scheduler_are_those_of_the_engine(run: Run) -> None:
    for moment in run.moments:
        placed = [a.id for a in moment.actions if isinstance(a, e.Place)]
        left = [a.tokens for a in moment.waiting if a.id not in placed]
        count = plan.occupancy(moment.after)
        assert (count.waiting, count.waiting_tokens) == (len(left), sum(left))
        assert count.writing == sum(work.writes for work in moment.rows.values())


def requests_are_rejected_exactly_when_a_queue_is_full(run: Run) -> None:
    for waiting, arrival, reject in run.offers:
        tokens = sum(other.tokens for other in waiting)
        many = len(waiting) >= run.policy.max_waiting
        long = tokens + arrival.tokens > run.policy.max_waiting_tokens
        why = "requests" if many else "tokens" if long else None
        assert reject == (e.Reject(arrival.id, why, len(waiting), tokens) if why else None)


def few_parts_are_read_between_two_writes_of_a_row(run: Run) -> None:
    """And rows are given away once."""
    parts, placements, before = 0, 0, frozenset[int]()
    for moment in run.moments:
        placements += any(isinstance(action, e.Place) for action in moment.actions)
        for action in moment.actions:
            if isinstance(action, e.ReadPart):
                parts += 1
            elif isinstance(action, e.Write):
                now = frozenset(moment.rows[row].arrival.id for row in action.rows)
                if now & before:
                    assert parts <= run.policy.parts_between_writes and placements <= 1
                parts, placements, before = 0, 0, now


def few_writes_come_between_two_parts(run: Run) -> None:
    writes = 0
    for moment in run.moments:
        if not any(work.reads for work in moment.rows.values()):
            writes = 0
        for action in moment.actions:
            if isinstance(action, e.ReadPart):
                writes = 0
            elif isinstance(action, e.Write):
                writes += any(work.reads for work in moment.rows.values())
                assert writes <= run.policy.writes_between_parts


def parts_are_aligned_and_cover_the_prompt(run: Run) -> None:
    for moment in run.moments:
        for action in moment.actions:
            if isinstance(action, e.ReadPart):
                work = moment.rows[action.row]
                assert action.start == work.next and action.start % run.policy.part == 0
                assert action.tokens == min(run.policy.part, work.left) > 0
            elif isinstance(action, e.Write):
                assert all(moment.rows[row].left <= 0 for row in action.rows)


def parts(run: Run) -> list[tuple[Moment, Sequence[int], int]]:
    """Of each part the moment, the readable rows, oldest first, and the row that was read."""
    found = []
    for moment in run.moments:
        rows = sorted(
            (row for row, work in moment.rows.items() if work.reads),
            key=lambda row, of=moment.rows: of[row].order,
        )
        found += [(moment, rows, a.row) for a in moment.actions if isinstance(a, e.ReadPart)]
    return found


def the_shortest_prompt_is_read_next_or_next_but_one(run: Run) -> None:
    longer = 0
    for moment, rows, row in parts(run):
        shortest = moment.rows[row].left == min(moment.rows[other].left for other in rows)
        assert shortest or row == rows[0]
        longer = 0 if shortest else longer + 1
        assert longer <= 1 or run.policy.oldest_every == 1


def the_oldest_prompt_is_read_once_in_every_few_parts(run: Run) -> None:
    younger = 0
    for _, rows, row in parts(run):
        younger = 0 if row == rows[0] else younger + 1
        assert younger < run.policy.oldest_every


def no_prompt_starves(run: Run) -> None:
    """If it and those placed before it lack N parts, it is read after at most K N parts."""
    bounds: dict[int, int] = {}
    read = 0
    for moment in run.moments:
        for work in moment.rows.values():
            if work.reads and work.arrival.id not in bounds:
                older = [w for w in moment.rows.values() if w.order <= work.order]
                lacking = sum(-(-w.left // run.policy.part) for w in older if w.left > 0)
                bounds[work.arrival.id] = read + run.policy.oldest_every * lacking
            assert not work.reads or read < bounds[work.arrival.id]
        read += sum(isinstance(action, e.ReadPart) for action in moment.actions)


def each_tenant_is_placed_in_order(run: Run) -> None:
    for moment in run.moments:
        waiting = list(moment.waiting)
        for action in moment.actions:
            if isinstance(action, e.Place):
                (arrival,) = (a for a in waiting if a.id == action.id)
                first = next(a for a in waiting if a.tenant == arrival.tenant)
                assert arrival == first
                waiting.remove(arrival)


def all_rows_that_were_read_write(run: Run) -> None:
    for moment in run.moments:
        for action in moment.actions:
            if isinstance(action, e.Write):
                writing = tuple(sorted(r for r, work in moment.rows.items() if work.writes))
                assert action.rows == writing


def writes_are_short_when_somebody_waits_for_their_end(run: Run) -> None:
    for moment in run.moments:
        for action in moment.actions:
            if isinstance(action, e.Write):
                left = [w.arrival.limit - w.written for w in map(moment.rows.get, action.rows)]
                most = min(run.policy.steps, max(left))
                free = len(moment.rows) < run.policy.rows
                if any(w.reads for w in moment.rows.values()) or (moment.waiting and free):
                    most = min(most, run.policy.steps_while_reading)
                elif moment.waiting:
                    most = min(most, *left)
                if any(w.written == 0 for w in map(moment.rows.get, action.rows)):
                    most = 1
                assert action.steps == most >= 1


def time_ends_requests_and_next_deadline_says_when(run: Run) -> None:
    for moment in run.moments:
        live = (*moment.waiting, *(work.arrival for work in moment.rows.values()))
        deadlines = [a.deadline for a in live if a.deadline is not None]
        assert plan.next_deadline(moment.after) == min(deadlines, default=None)
        if deadlines:
            later = plan.schedule(moment.after, min(deadlines), run.policy)[1]
            due = {a.id for a in live if a.deadline == min(deadlines)}
            assert {a.id for a in later if isinstance(a, e.Expire)} == due


def nothing_waits_without_a_reason(run: Run) -> None:
    placed = False
    for moment in run.moments:
        done = [a for a in moment.actions if isinstance(a, e.Place | e.ReadPart | e.Write)]
        places = [a for a in done if isinstance(a, e.Place)]
        assert done or not (moment.waiting or moment.rows)
        assert len(done) == len(places) or (len(done) == 1 and not places)
        free = run.policy.rows - len(moment.rows)
        later = placed and any(work.writes for work in moment.rows.values())
        assert len(places) == (0 if later else min(free, len(moment.waiting)))
        if done:
            placed = bool(places) or (placed and isinstance(done[0], e.ReadPart))


def an_action_is_not_given_again_before_its_event(run: Run) -> None:
    for moment in run.moments:
        again = plan.schedule(moment.after, moment.now, run.policy)[1]
        assert not [a for a in again if not isinstance(a, e.Place)]
        if any(isinstance(a, e.Place) for a in moment.actions):
            assert again == ()


def events_that_fit_nothing_change_nothing(run: Run) -> None:
    for moment in run.moments[::4]:
        table = moment.before
        if any(isinstance(action, e.Expire) for action in moment.actions):
            continue  # the table had these requests still
        numbers = {a.id for a in moment.waiting} | {w.arrival.id for w in moment.rows.values()}
        stale: list[e.Event] = [e.Cancelled(len(run.offers) + 7), e.Tick(1e9)]
        stale += [e.Cancelled(o.arrival.id) for o in run.offers if o.arrival.id not in numbers]
        stale += [e.Arrived(a._replace(tokens=1)) for a in moment.waiting]
        for row in (-1, *range(run.policy.rows + 1)):
            stale += [e.Placed(row, 0), e.Read(row, 1), e.Wrote(((row, 1, True),))]
            if row not in moment.rows:
                stale += [e.Failed(row, "who?")]
        for event in stale:
            assert plan.apply(table, event) == table


def the_log_of_events_replays_to_the_same_actions(run: Run) -> None:
    lines = [policy_to_json(run.policy), *map(event_to_json, run.events)]
    other = [policy_to_json(Policy(rows=3)), event_to_json(e.Tick(0.1))]
    first, second = read_log([*other, *lines])
    assert first == (Policy(rows=3), [e.Tick(0.1)]) and second == (run.policy, run.events)
    assert replay(second[1], second[0]) == run.told


LAWS: tuple[Callable[[Run], None], ...] = (
    every_request_ends_once_as_its_events_say,
    a_row_holds_one_request_from_its_placement_to_its_release,
    the_books_of_the_scheduler_are_those_of_the_engine,
    requests_are_rejected_exactly_when_a_queue_is_full,
    few_parts_are_read_between_two_writes_of_a_row,
    few_writes_come_between_two_parts,
    parts_are_aligned_and_cover_the_prompt,
    the_shortest_prompt_is_read_next_or_next_but_one,
    the_oldest_prompt_is_read_once_in_every_few_parts,
    no_prompt_starves,
    each_tenant_is_placed_in_order,
    all_rows_that_were_read_write,
    writes_are_short_when_somebody_waits_for_their_end,
    time_ends_requests_and_next_deadline_says_when,
    nothing_waits_without_a_reason,
    an_action_is_not_given_again_before_its_event,
    events_that_fit_nothing_change_nothing,
    the_log_of_events_replays_to_the_same_actions,
)


by_law = pytest.mark.parametrize("law", LAWS, ids=[law.__name__ for law in LAWS])
simulated = functools.lru_cache(maxsize=256)(simulate)
"""Every law is held to the same runs."""


@by_law
@RUNS
@given(policy=POLICIES, moves=MOVES)
def test_every_run_keeps(law, policy: Policy, moves: tuple[Move, ...]):
    law(simulated(policy, moves))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tenth", range(10))
def test_a_hundred_thousand_runs_keep_every_law(tenth: int):
    @seed(tenth)
    @settings(RUNS, max_examples=10_000)
    @given(policy=POLICIES, moves=MOVES)
    def keeps(policy: Policy, moves: tuple[Move, ...]):
        run = simulate(policy, moves)
        for law in LAWS:
            law(run)

    keeps()


@RUNS
@given(policy=POLICIES, moves=MOVES)
def test_cancelled_twice_is_cancelled_once(policy: Policy, moves: tuple[Move, ...]):
    twice = [move for move in moves for _ in range(1 + isinstance(move, Cancel))]
    assert simulate(policy, twice).told == simulated(policy, moves).told


def test_a_long_prompt_and_a_stream_of_short_ones_are_both_read():
    """4,000 tokens are 32 parts; every fourth part is one of them while short ones come, so that
    each of those waits for at most one."""
    asks = [Ask(4000, 1, "", None), *[Ask(20, 1, "", None)] * 150]
    run = simulate(Policy(rows=2, oldest_every=4), asks, lucky=True)
    read = [action.id for action in run.told if isinstance(action, e.ReadPart)]
    long = [place for place, number in enumerate(read) if number == 0]
    assert long == [*range(3, 4 * 32, 4)]
    assert [number for number in read if number] == [*range(1, 151)]


def test_a_short_prompt_overtakes_a_long_one_that_is_being_read():
    asks = [Ask(4000, 1, "", None), *[Go(1)] * 6, Ask(20, 1, "", None)]
    run = simulate(Policy(rows=2, oldest_every=4), asks, lucky=True)
    assert [a.id for a in run.told if isinstance(a, e.ReadPart)][:4] == [0, 0, 1, 0]


# --- tenants ---

REQUESTS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 30)), max_size=40
)


def in_turn(requests: list[tuple[str, int, int]], quantum: int) -> list[e.Arrival]:
    """All requests in the order in which they are taken, if all wait from the start."""
    line: turns.Turns = ()
    for number, (tenant, tokens, limit) in enumerate(requests):
        line = turns.queued(line, e.Arrival(number, tokens, limit, tenant))
    taken = []
    while line:
        line, arrival = turns.next_request(line, quantum)
        taken.append(arrival)
    return taken


@RUNS
@given(REQUESTS, st.integers(1, 40))
def test_turns_are_those_of_deficit_round_robin_step_by_step(requests, quantum: int):
    """As in the paper: a quantum for each visit, and what an emptied queue had saved is lost."""
    queues: dict[str, list[e.Arrival]] = {}
    for number, (tenant, tokens, limit) in enumerate(requests):
        queues.setdefault(tenant, []).append(e.Arrival(number, tokens, limit, tenant))
    saved, order, served = dict.fromkeys(queues, 0), list(queues), []
    while order:
        tenant = order.pop(0)
        saved[tenant] += quantum
        queue = queues[tenant]
        while queue and queue[0].tokens + queue[0].limit <= saved[tenant]:
            saved[tenant] -= queue[0].tokens + queue[0].limit
            served.append(queue.pop(0))
        if queue:
            order.append(tenant)
    assert in_turn(requests, quantum) == served


@RUNS
@given(REQUESTS, st.integers(1, 40))
def test_of_tenants_that_both_wait_none_is_given_much_more(requests, quantum: int):
    largest = max((tokens + limit for _, tokens, limit in requests), default=0)
    lead, low, high = 0, 0, 0
    left = Counter(tenant for tenant, _, _ in requests)
    for arrival in in_turn(requests, quantum):
        if not (left["a"] and left["b"]):
            break
        left[arrival.tenant] -= 1
        lead += {"a": 1, "b": -1, "c": 0}[arrival.tenant] * (arrival.tokens + arrival.limit)
        low, high = min(low, lead), max(high, lead)
    assert high - low <= quantum + 2 * largest


def test_a_tenant_that_asks_one_thing_at_a_time_gets_its_turn():
    """Its queue is empty in between, so it comes last each time, with a whole quantum."""
    line: turns.Turns = ()
    for number in range(40):
        line = turns.queued(line, e.Arrival(number, 50, 50, "many"))
    taken = ""
    for number in range(100, 105):
        line = turns.queued(line, e.Arrival(number, 50, 50, "one"))
        while not taken.endswith("one "):
            line, arrival = turns.next_request(line, 300)
            taken += f"{arrival.tenant} "
        taken += "| "
    assert taken == "many many many one | " * 5


# --- at the door ---


@pytest.mark.parametrize("name", Policy._fields)
def test_a_policy_of_nothing_is_refused(name: str):
    with pytest.raises(ConfigError, match=rf"policy\.{name} is 0"):
        plan.empty_table(Policy(rows=2)._replace(**{name: 0}))


@pytest.mark.parametrize(
    "line",
    [
        *("", "[]", "3", '{"event": "Ate"}', '{"event": "Read"}', '{"event": "Read", "row": 1}'),
        '{"event": "Wrote", "rows": [[1, 2]]}',
    ],
)
def test_a_line_that_is_no_event_is_named(line: str):
    with pytest.raises(ValueError, match="is not an event"):
        event_from_json(line)
    with pytest.raises(ValueError, match="must be a policy"):
        read_log([line])


def test_the_log_holds_numbers_and_names_only():
    """A log of an incident may leave the machine that it happened on."""
    arrived = e.Arrived(e.Arrival(3, 20, 8, "key 1", 1.5))
    assert event_to_json(arrived) == (
        '{"event": "Arrived", "id": 3, "tokens": 20, "limit": 8, "tenant": "key 1",'
        ' "deadline": 1.5}'
    )
