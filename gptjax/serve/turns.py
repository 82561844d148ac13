"""Whose request is next: deficit round-robin over the tokens that requests ask for.

A tenant is served while the quantum of its turn and what it saved last for its next request; then
it saves the rest, and the next tenant's turn comes. One without requests saves nothing. Of two
tenants that both wait throughout, neither is given more than a quantum and twice the largest
request above the other.

Source: Shreedhar and Varghese 1996, Efficient Fair Queuing Using Deficit Round-Robin, section III.
"""

from __future__ import annotations

from typing import NamedTuple

from gptjax.serve.events import Arrival


class Tenant(NamedTuple):
    """The queue of one tenant."""

    name: str
    saved: int
    """Tokens that it may ask for beyond the quantum of its turn; below 0, what of that is used."""
    queue: tuple[Arrival, ...]
    """First in, first out; never empty."""


Turns = tuple[Tenant, ...]
"""Tenants with waiting requests. It is the turn of the first."""


def tokens_asked(arrival: Arrival) -> int:
    """Tokens to read and, at most, to write; how many will be written is not known before."""
    return arrival.tokens + arrival.limit


def queued(turns: Turns, arrival: Arrival) -> Turns:
    """Appends a request to the queue of its tenant."""
    for place, tenant in enumerate(turns):
        if tenant.name == arrival.tenant:
            longer = tenant._replace(queue=(*tenant.queue, arrival))
            return (*turns[:place], longer, *turns[place + 1 :])
    return (*turns, Tenant(arrival.tenant, 0, (arrival,)))


def unqueued(turns: Turns, number: int) -> Turns:
    """Removes the request of that id, if it waits."""
    for place, tenant in enumerate(turns):
        queue = tuple(arrival for arrival in tenant.queue if arrival.id != number)
        if len(queue) < len(tenant.queue):
            rest = (tenant._replace(queue=queue),) if queue else ()
            return (*turns[:place], *rest, *turns[place + 1 :])
    return turns


def next_request(turns: Turns, quantum: int) -> tuple[Turns, Arrival]:
    """Takes the request that is next. Rounds in which no tenant has saved enough pass at once."""
    lacks = [tokens_asked(tenant.queue[0]) - tenant.saved - quantum for tenant in turns]
    rounds = min(max(0, -(-lack // quantum)) for lack in lacks)
    chosen = next(place for place, lack in enumerate(lacks) if lack <= rounds * quantum)
    richer = [tenant._replace(saved=tenant.saved + rounds * quantum) for tenant in turns]
    skipped = [tenant._replace(saved=tenant.saved + quantum) for tenant in richer[:chosen]]
    tenant, (arrival, *queue) = richer[chosen], turns[chosen].queue
    left = tenant._replace(saved=tenant.saved - tokens_asked(arrival), queue=tuple(queue))
    return (*([left] if queue else []), *richer[chosen + 1 :], *skipped), arrival
