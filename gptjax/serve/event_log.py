"""The events of an engine as JSON lines, so that an incident is a file that a test runs.

    file.write(policy_to_json(policy) + "\\n")                # the engine, when it opens
    file.write(event_to_json(event) + "\\n")                  # and as events happen
    *_, (policy, events) = read_log(file)                     # a test, of the last engine
    actions = replay(events, policy)                          # the same again

A line names the event and its fields; it holds ids, counts and the tenant's name, and no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import get_args

from gptjax.serve.events import Action, Arrival, Arrived, Event, Tick, Wrote
from gptjax.serve.plan import Policy, apply, empty_table, offer, schedule

KINDS = {kind.__name__: kind for kind in get_args(Event)}


def event_to_json(event: Event) -> str:
    """Writes an event as one line of JSON, without the line break."""
    fields = event.arrival._asdict() if isinstance(event, Arrived) else event._asdict()
    return json.dumps({"event": type(event).__name__, **fields}, allow_nan=False)


def policy_to_json(policy: Policy) -> str:
    """Writes a policy as one line, which begins the log of an engine."""
    return json.dumps({"policy": policy._asdict()})


def event_from_json(line: str) -> Event:
    """Reads what `event_to_json` wrote.

    Raises:
      ValueError: the line is not an event.
    """
    try:
        fields = json.loads(line)
        kind = KINDS[fields.pop("event")]
        if kind is Arrived:
            return Arrived(Arrival(**fields))
        if kind is Wrote:
            return Wrote(tuple((row, tokens, done) for row, tokens, done in fields["rows"]))
        return kind(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{line[:80]!r} is not an event ({error}); each line must be one that"
            " `event_to_json` wrote."
        ) from error


def read_log(lines: Iterable[str]) -> list[tuple[Policy, list[Event]]]:
    """Reads the policy and the events of every engine that wrote to a log, first to last.

    Raises:
      ValueError: a line is neither a policy nor an event, or events come before any policy.
    """
    engines: list[tuple[Policy, list[Event]]] = []
    for line in lines:
        if line.startswith('{"policy": '):
            engines.append((Policy(**json.loads(line)["policy"]), []))
        elif engines:
            engines[-1][1].append(event_from_json(line))
        else:
            raise ValueError("the log begins with an event; its first line must be a policy.")
    return engines


def replay(events: Iterable[Event], policy: Policy) -> list[Action]:
    """Gives every action that the events led to: `offer` answers each `Arrived`, `schedule` each
    `Tick`."""
    table, actions = empty_table(policy), []
    for event in events:
        if isinstance(event, Arrived):
            table, reject = offer(table, event.arrival, policy)
            actions += [reject] if reject else []
        elif isinstance(event, Tick):
            table, more = schedule(table, event.now, policy)
            actions += more
        else:
            table = apply(table, event)
    return actions
