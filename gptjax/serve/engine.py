"""Continuous batching in one thread: requests come from anywhere, pieces go back to where they came
from.

Read `Engine.submit`, then `Engine._run`: the scheduler (`plan`, pure) says what is to be done,
`Device` (`device`) does it, and what came of it goes back to the scheduler.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptjax.core.config import require
from gptjax.generate import Completion, SampleConfig
from gptjax.generate.batch import automaton_of, limit_of
from gptjax.generate.request import requests
from gptjax.generate.schedule import adapter_number
from gptjax.generate.stops import Pieces
from gptjax.serve import events, plan
from gptjax.serve.device import Device, compiles
from gptjax.serve.engine_config import LOOK_SECONDS, EngineConfig, Facts
from gptjax.serve.event_log import event_to_json, policy_to_json
from gptjax.serve.jobs import Job, completed, next_piece
from gptjax.serve.slots import ALTERNATIVES, PART, STOPS
from gptjax.serve.stream import Ask, Busy, Failed, Piece, Stream, Unwell

if TYPE_CHECKING:
    from gptjax.api import Model


STATES = {"draining": "is shutting down", "failed": "has failed", "closed": "was closed"}
"""What clients are told of a state in which they get no answer."""


class Engine:
    """Answers requests of many clients at once; a thread of its own drives the device.

    A request's tokens and log-probabilities do not depend on what else is asked, nor on whether the
    beginning of its prompt was read before.
    """

    def __init__(self, model: Model, settings: EngineConfig) -> None:
        """Opens an engine on a model that generates.

        Raises:
          ConfigError: the model does not write token after token, or settings do not fit it.
        """
        context = min(settings.context, model.config.context)
        self.settings = replace(settings, context=context)
        self.model = model._replace(config=replace(model.config, context=context))
        self.device = Device(self.model, self.settings)
        self._policy = plan.Policy(
            rows=settings.slots,
            part=PART,
            max_waiting=settings.max_waiting,
            max_waiting_tokens=settings.max_waiting_tokens,
        )
        self._table = plan.empty_table(self._policy)
        self._lock = threading.Condition()
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count(1)
        self._counts: Counter[str] = Counter()
        self._opened, self._failures, self._state = time.monotonic(), 0, "warming"
        self._answer_seconds, self._step_seconds = 1.0, 1e-3
        self.why = ""
        """Why it failed, in brackets; empty if it did not."""
        self._log = open(settings.log, "a", buffering=1) if settings.log else None  # noqa: SIM115
        if self._log is not None:
            self._log.write(policy_to_json(self._policy) + "\n")
        self._thread = threading.Thread(target=self._run, name="gptjax-engine", daemon=True)
        self._thread.start()

    # --- for everybody

    @property
    def context(self) -> int:
        """Maximum number of tokens of a request."""
        return self.settings.context

    @property
    def fingerprint(self) -> str:
        """Names everything that an answer depends on beside its request: weights, tokenizer,
        programs, slots."""
        return self.device.fingerprint

    @property
    def state(self) -> str:
        """`warming`: it answers, but a request may wait for a program to be compiled; `ready`;
        `draining`: it takes no more; `failed`."""
        return self._state

    def submit(self, ask: Ask) -> Stream:
        """Takes a request; returns at once.

        Raises:
          ConfigError: the request does not fit this engine.
          Busy: too much is waiting.
          Unwell: the engine has failed or is closing.
        """
        number = next(self._numbers)
        job, now = self._job(ask, number), time.monotonic()
        with self._lock:
            if self._state not in ("warming", "ready"):
                raise Unwell(f"the engine {STATES[self._state]} and takes no requests{self.why}.")
            seconds = [s for s in (ask.seconds, ask.request.settings.max_seconds) if s is not None]
            arrival = events.Arrival(
                number,
                job.to_read,
                0 if job.embeds else job.limit,
                ask.tenant,
                now + min(seconds) if seconds else None,
            )
            self._note(events.Arrived(arrival))
            self._table, reject = plan.offer(self._table, arrival, self._policy)
            if reject is not None:
                self._counts["rejected"] += 1
                raise Busy(
                    f"{reject.waiting} requests with {reject.waiting_tokens} tokens are waiting,"
                    f" and the limit of {reject.why} is reached; try again later.",
                    self._retry_after(reject.waiting),
                )
            self._counts["submitted"] += 1
            self._jobs[number] = job
            self._lock.notify_all()
        return job.stream

    def complete(
        self,
        prompts: Sequence[str | Sequence[int]],
        settings: SampleConfig | Sequence[SampleConfig] | None = None,
        **more: Any,
    ) -> list[Completion]:
        """Continues every prompt, like `Model.complete`, beside whatever else is asked.

        Raises:
          ConfigError: what `Model.complete` refuses, or the request does not fit this engine.
          Failed: a request failed.
        """
        wanted = self.model.make_settings(settings, more)
        require(not more, f"{next(iter(more), '')} is no setting of an engine.")
        m = self.model
        asked = requests(m.config, m.tokenizer, prompts, wanted, task=m.task)
        asks = [Ask(one, n) for one in asked for n in range(one.rows)]
        streams: list[Stream] = []
        done: list[Completion] = []
        for ask in asks:
            while True:
                try:
                    streams.append(self.submit(ask))
                    break
                except Busy:
                    require(len(done) < len(streams), "others fill the engine; try again later.")
                    done.append(completed(asks[len(done)], streams[len(done)]))
        done += [
            completed(*pair) for pair in zip(asks[len(done) :], streams[len(done) :], strict=True)
        ]
        return done

    def facts(self) -> Facts:
        """What it has done and holds now."""
        with self._lock:
            now, counts = plan.occupancy(self._table), Counter(self._counts)
        counted = {name: counts[name] for name in Facts._fields if name in counts}
        zero = dict.fromkeys(Facts._fields, 0)
        held = {
            "rows": self.settings.slots,
            "writing": now.writing,
            "reading": now.reading,
            "waiting": now.waiting,
            "waiting_tokens": now.waiting_tokens,
            "compiles": compiles(),
            "slot_bytes": self.device.slot_bytes,
            "cache_bytes": self.device.prefixes.nbytes,
            "cache_blocks": len(self.device.prefixes),
        }
        return Facts(**zero | counted | held | {"seconds": time.monotonic() - self._opened})

    def close(self, drain: float = 0.0) -> None:
        """Takes no more requests, lets running ones finish for so many seconds, ends the rest with
        `Unwell`, and stops the thread."""
        until = time.monotonic() + drain
        with self._lock:
            if self._state != "failed":
                self._state = "draining"
            self._lock.notify_all()
            while self._jobs and self._state != "failed" and (left := until - time.monotonic()) > 0:
                self._lock.wait(min(left, 0.1))
            self._state = "failed" if self._state == "failed" else "closed"
            self._lock.notify_all()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- of a request

    def _job(self, ask: Ask, number: int) -> Job:
        """What is known of a request; refuses what this engine cannot do."""
        m, request = self.model, ask.request
        s = request.settings
        others = [*s.strategies, *["best_of"] * bool(s.best_of)]
        require(
            not others,
            f"{' and '.join(others)} needs a batch of its own and can't be served beside other"
            " requests; omit it, or use gptjax sample.",
        )
        require(
            len(request.ids) < self.context or ask.wants == "embedding",
            f"the prompt has {len(request.ids)} tokens, and {self.context} are the limit for prompt"
            " and answer; shorten it (or start the server with a larger --context).",
        )
        require(len(request.ids) <= self.context, "the text has more tokens than the context.")
        require(
            s.top_logprobs <= ALTERNATIVES,
            f"top_logprobs is {s.top_logprobs}; at most {ALTERNATIVES} are kept.",
        )
        ends = {*m.tokenizer.ends, *s.stop_ids, m.tokenizer.end_of_document}
        require(len(ends) <= STOPS, f"{len(ends)} stop ids are too many; {STOPS} is the limit.")
        adapter = adapter_number(s.use, m.adapters)
        s = replace(s, kv_cache=self.settings.kv_cache)
        request = request._replace(adapter=adapter if m.adapters else None, settings=s)
        limit = limit_of(m.config, request, ())
        automaton = automaton_of(m.config, m.tokenizer, request, ())
        self.device.require_room(automaton)
        return Job(
            ask=ask._replace(request=request),
            stream=Stream(lambda: self._cancel(number)),
            pieces=Pieces(request.stop_texts),
            since=time.monotonic(),
            limit=limit,
            automaton=automaton,
        )

    def _cancel(self, number: int) -> None:
        with self._lock:
            if number in self._jobs:
                self._apply(events.Cancelled(number))
                self._lock.notify_all()

    def _retry_after(self, waiting: int) -> int:
        """Seconds until the queue may be shorter, at the speed of the last answers."""
        rounds = 1 + waiting / self.settings.slots
        return max(1, min(120, round(rounds * self._answer_seconds)))

    # --- in the thread

    def _run(self) -> None:
        """Does what the scheduler says until the engine is closed."""
        warm = self.device.warm_up()
        try:
            while (actions := self._next(warm)) is not None:
                for event in self._done(actions):
                    with self._lock:
                        self._apply(event)
        except Exception as error:  # nobody waits for an engine that is gone
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._leave()

    def _next(self, warm: Iterator[None]) -> tuple[events.Action, ...] | None:
        """The next actions; `None` when the engine is closed. While there are none, programs that
        were not needed yet are compiled."""
        while True:
            with self._lock:
                if self._state in ("closed", "failed"):
                    return None
                now = time.monotonic()
                self._note(events.Tick(now))
                self._table, actions = plan.schedule(self._table, now, self._policy)
                if actions:
                    return actions
                if self._state != "warming":
                    until = plan.next_deadline(self._table)
                    self._lock.wait(None if until is None else max(0.0, until - now))
                    continue
            if next(warm, self) is self:
                with self._lock:
                    self._state = "ready" if self._state == "warming" else self._state

    def _done(self, actions: Sequence[events.Action]) -> Iterator[events.Event]:
        """Does some actions; gives what came of them. If the device fails, every request that was
        on it does, and the next ones begin anew; the second failure in succession ends the
        engine."""
        lost = False
        for action in actions:
            if lost and isinstance(action, events.Place | events.ReadPart | events.Write):
                continue  # the others tell clients of ends
            try:
                yield from self._do(action)
                if isinstance(action, events.Write):
                    self._failures = 0
            except Exception as error:
                self._failures += 1
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                if self._failures > 1:
                    raise
                self.device.reopen()
                yield events.Reset(why)
                lost = True

    def _do(self, action: events.Action) -> Iterator[events.Event]:
        match action:
            case events.Place(row, number):
                yield from self._place(row, self._jobs[number])
            case events.ReadPart(row, number, start, tokens):
                job = self._jobs[number]
                self.device.read(row, job, start, tokens)
                self._counts["parts"] += 1
                yield from self._begun(row, job, start + tokens)
                yield events.Read(row, tokens)
            case events.Write(rows, steps):
                yield from self._write(rows, steps)
            case events.Expire(number):
                job = self._jobs[number]
                job.stream.put(Piece(reason="time", usage=job.usage()))
                self._counts["expired"] += 1
            case events.Drop(number, outcome):
                self._ended(number, outcome)
            case events.Release(row, number, outcome, why):
                if outcome == "failed":
                    self._jobs[number].stream.fail(Failed(why))
                self._ended(number, outcome)
                self.device.clear(row)

    def _place(self, row: int, job: Job) -> Iterator[events.Event]:
        job.cached = self.device.place(row, job)
        self._counts["prompt_tokens"] += len(job.ids)
        self._counts["cached_tokens"] += job.cached
        yield from self._begun(row, job, job.cached)
        yield events.Placed(row, job.cached)

    def _begun(self, row: int, job: Job, read: int) -> Iterator[events.Event]:
        """Lets the row write once everything was read."""
        if read < job.to_read:
            return
        if job.embeds:
            job.stream.put(Piece(reason="stop", embedding=job.embedding(), usage=job.usage()))
            return
        if not self.device.begin(row, job):
            yield events.Failed(row, "constraints of other requests leave no room; try again.")

    def _write(self, rows: tuple[int, ...], steps: int) -> Iterator[events.Event]:
        with self._lock:
            slots = self._table.rows
            jobs = {row: self._jobs[slot.arrival.id] for row in rows if (slot := slots[row])}
        steps = max(1, min(steps, int(LOOK_SECONDS / self._step_seconds)))
        since = time.monotonic()
        found = self.device.write(jobs, steps)
        self._step_seconds = (time.monotonic() - since) / steps
        self._counts["steps"] += 1
        wrote = []
        for row, job in jobs.items():
            answer, before = found[row], job.sent
            if any(map(math.isnan, answer.logprobs[before:])):
                yield events.Failed(row, "the model gives NaN: its weights are damaged.")
                continue
            if (piece := next_piece(job, answer)) is not None:
                job.stream.put(piece)
            self._counts["written_tokens"] += job.sent - before
            wrote.append((row, job.sent - before, answer.reason is not None))
        yield events.Wrote(tuple(wrote))

    def _ended(self, number: int, outcome: str) -> None:
        job = self._jobs.pop(number)
        if outcome != "expired":
            self._counts[outcome] += 1
        self._answer_seconds += 0.1 * (time.monotonic() - job.since - self._answer_seconds)

    def _apply(self, event: events.Event) -> None:
        self._note(event)
        self._table = plan.apply(self._table, event)

    def _note(self, event: events.Event) -> None:
        if self._log is not None:
            self._log.write(event_to_json(event) + "\n")

    def _fail(self, why: str) -> None:
        with self._lock:
            self._state = "failed"
            self.why = f" ({why})"

    def _leave(self) -> None:
        with self._lock:
            jobs, self._jobs = self._jobs, {}
            why = f"the engine {STATES.get(self._state, 'was closed')}{self.why}."
            self._lock.notify_all()
        for job in jobs.values():
            job.stream.fail(Unwell(why))
        if self._log is not None:
            self._log.close()
