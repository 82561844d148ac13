"""Reports spikes and skipped steps, and ends a run that only skips."""

from __future__ import annotations

from collections.abc import Callable

from gptjax.observe.log import Log

STOP_AFTER = 5
"""Skipped steps in a row after which a run ends."""


class Spikes:
    """Prints a line for each skipped step, and for the first of several spikes in a row.

    Args:
      threshold: a step is a spike from this score on (see `train.spikes.score`).
    """

    def __init__(self, log: Log, threshold: float):
        self._log, self._threshold, self._before = log, threshold, False

    def show(self, done: int, values: dict[str, float], skipped: bool) -> None:
        """Checks the metrics of a finished step."""
        spike = values["spike"] >= self._threshold
        deviations = f", {values['spike']:.3g} deviations above the steps before" if spike else ""
        facts = (
            f"loss {values['loss']:#.3g}, gradient norm {values['gradient_norm']:.3g}{deviations}"
        )
        if skipped and not values["weight"]:
            self._log.say(f"step {done} (batch {done - 1}) skipped: no token of its batch counts")
        elif skipped:
            self._log.say(f"step {done} (batch {done - 1}) skipped: {facts}; parameters unchanged")
        elif spike and not self._before:
            self._log.say(
                f"step {done} (batch {done - 1}) is a spike: {facts}; taken (--skip-spikes True"
                " skips such steps)"
            )
        self._before = spike


class SkippedSteps:
    """Ends a run after `STOP_AFTER` skipped steps in a row.

    Args:
      before: skipped steps in a row at the end of the log, on a resume.
      skip_norm: gradient norm from which on a step is skipped.
      skip_score: likewise the score of a spike; `None` skips no spikes.
      saved: waits for the last checkpoint and returns its step.
    """

    def __init__(
        self,
        before: int,
        skip_norm: float,
        skip_score: float | None,
        saved: Callable[[], int | None],
    ):
        self._in_a_row, self._saved = before, saved
        self._skip_norm, self._skip_score = skip_norm, skip_score

    def require_progress(self, done: int, skipped: bool) -> None:
        """Counts a step that was skipped or not.

        Raises:
          FloatingPointError: so were the ones before.
        """
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if self._in_a_row < STOP_AFTER:
            return
        kept = self._saved()
        spikes = (
            f", or were {self._skip_score:g} deviations above those before (--skip-spikes)"
            if self._skip_score is not None
            else ""
        )
        raise FloatingPointError(
            f"{self._in_a_row} steps in a row up to step {done} had no finite loss and gradient"
            f" below {self._skip_norm:g}{spikes}; stopped. The last whole checkpoint is"
            f" {'none' if kept is None else f'step {kept}'}; go further back with --rollback-to"
            " STEP, or try a lower --optim.peak or a higher --skip-norm."
        )
