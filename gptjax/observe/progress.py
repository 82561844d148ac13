"""Progress of a run: numbers as text, running averages, speed, and the line that shows them.

Read `Progress`, which the loop calls; the rest is pure.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from gptjax.observe.log import Log


class Progress:
    """Measures speed and the smoothed loss, or reward where there is one, and prints a line every
    `log_every` steps.

    Args:
      steps: length of the run.
      tokens: step → tokens that the run has read until then.
      flops_per_token: of training; with `peak_flops` it gives the utilisation.
      peak_flops: FLOP/s of all devices; `None` means unknown.
      pauses_every: steps between evaluations, which the estimated time left includes.
    """

    def __init__(
        self,
        log: Log,
        *,
        steps: int,
        tokens: Callable[[int], int],
        log_every: int,
        pauses_every: int,
        flops_per_token: float,
        peak_flops: float | None,
    ):
        self._log, self._steps, self._tokens = log, steps, tokens
        self._log_every, self._pauses_every = log_every, pauses_every
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._smoothed, self._speed = Smoothed(), Throughput()

    def measured(self, done: int, values: dict[str, float]) -> dict[str, float]:
        """Records the metrics of a finished step, and returns them with the number of tokens and
        the speed."""
        tokens = self._tokens(done)
        self._smoothed = smooth(self._smoothed, values.get("reward", values["loss"]), 0.98)
        self._speed = self._speed.at(time.monotonic(), done, tokens)
        speed = self._speed.tokens_per_second
        return {"tokens": tokens, **values, **({"tokens_per_second": speed} if speed else {})}

    def show(self, done: int, values: dict[str, float]) -> None:
        """Prints the line of a step, if one is due."""
        if done % self._log_every == 0 or done == self._steps:
            self._log.progress(self._line(done, values))

    def pause(self, name: str, seconds: float) -> None:
        """Excludes an evaluation or a save from the measured speed."""
        self._speed = self._speed.pause(name, seconds)

    def _line(self, done: int, values: dict[str, float]) -> str:
        left, speed = self._steps - done, self._speed.tokens_per_second
        pauses = left // self._pauses_every
        known = speed is not None and self._peak_flops is not None
        return progress_line(
            done,
            self._steps,
            loss=values["loss"],
            smoothed=self._smoothed.value,
            learning_rate=values["learning_rate"],
            gradient_norm=values["gradient_norm"],
            tokens_per_second=speed,
            mfu=self._flops_per_token * speed / self._peak_flops if known else None,
            eta=self._speed.eta(left, evaluation=pauses, checkpoint=pauses),
            reward=values.get("reward"),
            right=values.get("pass_rate"),
        )


# --- numbers as text


def progress_line(
    step: int,
    steps: int,
    *,
    loss: float,
    smoothed: float | None = None,
    learning_rate: float | None = None,
    gradient_norm: float | None = None,
    tokens_per_second: float | None = None,
    mfu: float | None = None,
    eta: float | None = None,
    reward: float | None = None,
    right: float | None = None,
) -> str:
    """Formats the state of training as one line of fewer than 100 columns for usual values.

    Args:
      mfu: model FLOPs utilisation as a fraction; None, where the device's peak is not known, shows
        "n/a".
      eta: seconds.
      reward: of the answers that the step learned from, which `smoothed` is then the average of;
        the speed is not shown then, since most time goes into writing answers.
      right: fraction of those answers.
    """
    parts = [f"step {step:>{len(str(steps))}}/{steps}  {100 * step // max(steps, 1):>2}%"]
    average = "" if smoothed is None else f" ({_figures(smoothed)})"
    if reward is None:
        parts.append(f"loss {_figures(loss)}{average}")
    else:
        parts.append(f"reward {_figures(reward)}{average}")
        parts += [] if right is None else [f"right {100 * right:.0f}%"]
        parts.append(f"loss {_figures(loss)}")
    if learning_rate is not None:
        parts.append(f"lr {learning_rate:.1e}")
    if gradient_norm is not None:
        parts.append(f"grad {_figures(gradient_norm, 2)}")
    if tokens_per_second is not None and reward is None:
        parts.append(f"{human(tokens_per_second)} tok/s")
    if reward is None:
        parts.append("mfu n/a" if mfu is None else f"mfu {100 * mfu:.0f}%")
    if eta is not None:
        parts.append(f"eta {duration(eta)}")
    return "  ".join(parts)


def _figures(value: float, decimals: int = 3) -> str:
    return (
        f"{value:.1e}"
        if 1000 <= abs(value) < math.inf
        else f"{value:.{decimals - (abs(value) >= 9.995)}f}"
    )


def human(n: float) -> str:
    """Formats a count to three significant figures: 950, 41.2k, 1.24M."""
    if not math.isfinite(n):
        return str(float(n))
    letters = ["", "k", "M", "G", "T", "P"]
    while abs(n) >= 999.5 and len(letters) > 1:
        n, letters = n / 1000, letters[1:]
    digits = 2 if abs(n) < 9.995 else 1 if abs(n) < 99.95 else 0
    return f"{n:.{0 if letters[0] == '' and float(n).is_integer() else digits}f}{letters[0]}"


def duration(seconds: float) -> str:
    """Formats a duration in its two largest units: 40ms, 8.4s, 42s, 1m 32s, 2h 03m, 3d 04h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{1000 * seconds:.0f}ms" if 0 < seconds < 0.9995 else f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d {hours % 24:02d}h"


# --- running figures


class Smoothed(NamedTuple):
    """An exponential average that starts unbiased: after n equal values it is that value."""

    total: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float:
        """The average; NaN before the first finite value."""
        return self.total / self.weight if self.weight else math.nan


def smooth(previous: Smoothed, value: float | None, decay: float) -> Smoothed:
    """Adds a value. NaN, infinity and None leave the average as it is."""
    if value is None or not math.isfinite(value):
        return previous
    return Smoothed(
        decay * previous.total + (1 - decay) * value, decay * previous.weight + (1 - decay)
    )


class Throughput(NamedTuple):
    """Speed over the last `window` seconds of training proper, and what the pauses between cost.

    Begin it after the first step, which compiles: `Throughput().at(now, step, tokens)`.
    """

    window: float = 30.0  # seconds
    marks: tuple[tuple[float, int, int], ...] = ()  # (seconds of training, step, tokens)
    paused: float = 0.0  # seconds
    pauses: tuple[tuple[str, int, float], ...] = ()  # (what, how many, seconds)

    def at(self, now: float, step: int, tokens: int) -> Throughput:
        """Notes that `step` and `tokens` in all were reached at the time `now`, in seconds of any
        one clock."""
        mark = (now - self.paused, step, tokens)
        marks = self.marks
        if (
            len(marks) > 1 and mark[0] - marks[-2][0] < self.window / 50
        ):  # keeps the tuple short when steps are
            marks = marks[:-1]
        marks += (mark,)
        while len(marks) > 2 and marks[1][0] <= mark[0] - self.window:
            marks = marks[1:]
        return self._replace(marks=marks)

    def pause(self, what: str, seconds: float) -> Throughput:
        """Records that an evaluation, a save, … took `seconds`, which are not training."""
        count, spent = next(((n, s) for w, n, s in self.pauses if w == what), (0, 0.0))
        rest = tuple(p for p in self.pauses if p[0] != what)
        return self._replace(
            paused=self.paused + seconds, pauses=(*rest, (what, count + 1, spent + seconds))
        )

    @property
    def tokens_per_second(self) -> float | None:
        """Over the window; None before there is anything to measure."""
        return self._rate(2)

    def _rate(self, column: int) -> float | None:
        if len(self.marks) < 2 or self.marks[-1][0] <= self.marks[0][0]:
            return None
        return (self.marks[-1][column] - self.marks[0][column]) / (
            self.marks[-1][0] - self.marks[0][0]
        )

    def eta(self, steps: int, **pauses: int) -> float | None:
        """Seconds for `steps` more and for the pauses still to come: `eta(500, evaluation=2)`. An
        unmeasured pause counts nothing."""
        rate = self._rate(1)
        return (
            None
            if not rate
            else steps / rate
            + sum(pauses.get(what, 0) * spent / count for what, count, spent in self.pauses)
        )


def memory() -> int:
    """Returns the peak resident memory of this process, in bytes."""
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
