"""Everything that observes a run while it trains, behind one object that the loop calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from gptjax.core.processes import Votes
from gptjax.observe.goodput import Clock
from gptjax.observe.hook import Hooks
from gptjax.observe.learning import Learning
from gptjax.observe.log import Log
from gptjax.observe.progress import Progress
from gptjax.observe.spikes import SkippedSteps, Spikes
from gptjax.observe.stragglers import Pace, Stragglers


class Watch:
    """Hands each finished step to the observers: log, progress, spikes, signs that nothing is
    learned, stragglers, goodput, hooks."""

    def __init__(
        self,
        log: Log,
        clock: Clock,
        votes: Votes,
        progress: Progress,
        spikes: Spikes,
        skipped: SkippedSteps,
        learning: Learning,
        hooks: Hooks,
    ):
        self._log, self._clock, self._progress = log, clock, progress
        self._spikes, self._skipped, self._learning = spikes, skipped, learning
        self._hooks = hooks
        self._pace, self._stragglers = Pace(), Stragglers(log, votes.seen)
        self._compiled: set[str] = set()  # pauses that compile nothing any more

    @contextlib.contextmanager
    def reading(
        self, done: int, pending: tuple[int, Any] | None, part: str = "data"
    ) -> Iterator[None]:
        """Inside, the batch of a step is read. That counts as useful time while the devices still
        work on the step before.

        Args:
          part: see `goodput.PARTS`.
        """
        self._clock.turn(part, f"reading the batch of step {done}")
        self._hooks.begin(done)
        yield
        busy = pending is not None and not pending[1]["loss"].is_ready()
        self._clock.turn("useful", f"beginning step {done}", was="useful" if busy else None)

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Counts the time inside the context as waiting for devices."""
        return self._pace.waiting()

    def step_seconds(self) -> tuple[float, float]:
        """Ends a step; returns its seconds of own work and of waiting."""
        return self._pace.turn()

    def finished(
        self, done: int, metrics: Mapping[str, Any], figures: Mapping[str, float] | None = None
    ) -> None:
        """Records the metrics of a finished step.

        Args:
          figures: of an evaluation after it.

        Raises:
          FloatingPointError: too many steps in a row were skipped.
        """
        self._clock.turn("useful", f"waiting for step {done}")
        with self.waiting():
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        skipped = bool(values.pop("skipped"))
        measured = self._progress.measured(done, values)
        told = {**measured, **({"skipped": 1} if skipped else {}), **(figures or {})}
        self._log.record(done, told)
        self._hooks.finished(done, told)
        self._clock.reached(done)
        self._spikes.show(done, values, skipped)
        self._learning.show(done, values)
        self._stragglers.compare(done)
        self._skipped.require_progress(done, skipped)
        self._progress.show(done, values)

    @contextlib.contextmanager
    def pause(self, part: str, doing: str) -> Iterator[None]:
        """Inside, the run does something else than train.

        Args:
          part: see `goodput.PARTS`.
        """
        begun = time.monotonic()
        with self._clock.during(part, doing, watched=part in self._compiled):
            yield
        self._compiled.add(part)
        self._progress.pause(part, time.monotonic() - begun)
        self._pace.pause()
