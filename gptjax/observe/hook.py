"""What else may follow a run: a small hook that the loop calls, such as a logger or a profiler.

Read `Hook`, then `Hooks`, which calls several and lets none of them end the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptjax.core.config import first_line
from gptjax.observe.log import Log


class Hook:
    """Follows a run. Override what you need; every method here does nothing.

    Only the first process of several calls hooks, in the thread that trains, so that a slow method
    makes the run slow. A hook that raises is left out from then on, and the log says so.
    """

    name = "hook"
    """How messages call it."""

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> str | None:
        """The run begins, or is resumed, after `step` steps.

        Args:
          path: the run directory.
          config: the experiment, as config.json has it.

        Returns:
          Lines for the terminal and log.txt; `None` says nothing.
        """

    def begin(self, step: int) -> None:
        """The batch of a step is about to be read."""

    def finished(self, step: int, values: Mapping[str, float]) -> str | None:
        """A step has finished.

        Args:
          values: what metrics.jsonl holds of it, an evaluation's figures among them.

        Returns:
          Lines to say, or `None`.
        """

    def close(self) -> str | None:
        """The run ends, however it ends. Returns lines to say, or `None`."""


class Hooks:
    """Several hooks as one, none of which can end the run."""

    def __init__(self, log: Log, hooks: Sequence[Hook] = ()):
        self._log, self._hooks = log, list(hooks)

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> None:
        """Calls `Hook.start`."""
        self._each("start", path, config, step)

    def begin(self, step: int) -> None:
        """Calls `Hook.begin`."""
        self._each("begin", step)

    def finished(self, step: int, values: Mapping[str, float]) -> None:
        """Calls `Hook.finished`."""
        self._each("finished", step, values)

    def close(self) -> None:
        """Calls `Hook.close`; later calls do nothing."""
        self._each("close")
        self._hooks.clear()

    def _each(self, method: str, *given: Any) -> None:
        for hook in tuple(self._hooks):
            try:
                said = getattr(hook, method)(*given)
            except Exception as error:
                self._hooks.remove(hook)
                self._log.say(f"warning: {hook.name} is left out from here on: {first_line(error)}")
                continue
            if said:
                self._log.say(said)
