"""Random walks of a user: train, interrupt, change settings, resume, sample, convert.

`Walk` holds what the user typed last and what a run must say of itself; `go` takes one random step
and checks it. Nothing here knows how a run is stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import runs
from runs import lines_of

import gptjax
from gptjax.cli import convert
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import SentencePiece
from gptjax.observe import watch
from gptjax.runs import Run
from gptjax.train import optim
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.train.optim import SGD, AdamW, Lion, Muon, Schedule


class Killed(BaseException):
    """The process ends here, in the middle of whatever it does."""


class Walk:
    """A user and a run.

    Args:
      experiment: the first command.
      draw: decides everything.
      shots: processes of their own are killed too, which takes some 20 s each.
    """

    def __init__(
        self, experiment: Experiment, path: Path, draw: np.random.Generator, shots: bool = False
    ):
        self.experiment, self.path, self.draw, self.shots = experiment, path, draw, shots
        self.said: list[str] = []
        """What happened, for the message of a failure."""

    def go(self) -> None:
        """Takes one random step."""
        kinds: list[tuple[Callable[[], None], float]] = [
            (self.train, 1),
            (self.interrupted, 2),
            (self.killed, 2),
            (self.longer, 2),
            (self.changed, 4),
            (self.refused, 2),
            (self.sampled, 1),
            (self.converted, 0.5),
            (self.shot, 3 if self.shots else 0),
        ]
        shares = np.asarray([share for _, share in kinds])
        kind = kinds[int(self.draw.choice(len(kinds), p=shares / shares.sum()))][0]
        self.said.append(kind.__name__)
        kind()

    # --- steps

    def train(self, allow: bool = True) -> None:
        """The command as it was."""
        before = len(lines_of(self.path))
        train(self.experiment, self.path, allow_changes=allow)
        assert max(Run(self.path).steps()) >= self.experiment.steps
        self.check(before)

    def interrupted(self) -> None:
        """SIGTERM after one more step; the step is finished and saved."""
        self._until(lambda: os.kill(os.getpid(), signal.SIGTERM))

    def killed(self) -> None:
        """The process dies after one more step; what came after the last checkpoint is lost."""

        def die() -> None:
            raise Killed

        self._until(die)

    def shot(self) -> None:
        """SIGKILL to a process at a random moment of a command; then the same command works."""
        command = ("train", "change", "convert", "evaluate")[int(self.draw.integers(4))]
        if command in ("convert", "evaluate"):
            self._shot_reading(command)
            return
        new = dataclasses.replace(self.experiment, steps=self.reached() + 3)
        if command == "change":
            size = 8 if new.batch == 16 else 16
            new = dataclasses.replace(new, batch=size, optim=AdamW(peak=1e-2, ema=0.9))
        process = runs.start(new, self.path, "--allow-changes", env=self._child_env())
        self._shoot(process, command)
        self.experiment = new
        self.train()

    def _shot_reading(self, command: str) -> None:
        """The same for commands that only read the run; what they write is whole or not there."""
        target = self.path.with_name("shot")
        shutil.rmtree(target, ignore_errors=True)
        words = [str(self.path), *([str(target)] if command == "convert" else [])]
        process = subprocess.Popen(
            [sys.executable, "-m", "gptjax", command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | self._child_env(),
        )
        before = {file: file.stat().st_mtime_ns for file in self.path.rglob("*") if file.is_file()}
        self._shoot(process, command)
        after = {file: file.stat().st_mtime_ns for file in self.path.rglob("*") if file.is_file()}
        assert after == before, f"{command} changes nothing in a run: {self.said}"
        if command == "convert":
            if not target.exists():  # it is renamed once it is whole
                assert convert.convert(self.path, target, convert.ConvertOptions(), str)
            assert isinstance(gptjax.load(target).generate("the ", new_tokens=2), str)

    def _shoot(self, process: subprocess.Popen, command: str) -> None:
        """Kills a process, at any time or soon after it began to train."""
        assert process.stdout is not None
        early = bool(self.draw.random() < 0.4) or command in ("convert", "evaluate")
        if early:
            wait = float(self.draw.uniform(1, 12))
        else:
            for line in process.stdout:
                if "interrupt when you like" in line or "resuming at step" in line:
                    break
            wait = float(self.draw.exponential(0.3))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        ended = process.poll()
        process.kill()
        process.wait()
        process.stdout.close()
        if process.stderr:
            process.stderr.close()
        place = "from its start" if early else "from its first step"
        how = f"had ended with {ended}" if ended is not None else "was killed"
        self.said.append(f"{command} {how}, {wait:.2f} s {place}, at step {self.reached()}")
        assert ended in (None, 0), self.said

    def _child_env(self) -> dict[str, str]:
        """A compile cache of its own, of which a kill may leave half an entry."""
        return {"JAX_COMPILATION_CACHE_DIR": str(self.path.with_name("compiled"))}

    def longer(self) -> None:
        """--steps alone."""
        more = int(self.draw.integers(1, 5))
        self.experiment = dataclasses.replace(
            self.experiment, steps=max(self.experiment.steps, self.reached()) + more
        )
        self.train(allow=False)

    def changed(self) -> None:
        """Another setting, with --allow-changes, and some more steps."""
        name, value = CHANGES[int(self.draw.integers(len(CHANGES)))]
        self.said.append(f"{name}={value}")
        new = dataclasses.replace(self.experiment, steps=self.reached() + 2)
        section, _, field = name.partition(".")
        inner = getattr(new, section)
        new = dataclasses.replace(
            new, **{section: dataclasses.replace(inner, **{field: value}) if field else value}
        )
        try:
            train(new, self.path)
            different = False
        except ConfigError as refusal:
            assert "--allow-changes" in str(refusal), refusal
            different = True
        self.experiment = new
        if different:
            self.train()

    def refused(self) -> None:
        """An impossible change: one line that names a flag, and nothing changes."""
        deeper = dataclasses.replace(self.experiment.model, num_layers=2)
        retokenised = dataclasses.replace(self.experiment.data, tokenizer=SentencePiece(400))
        steps = self.reached() + 1
        for impossible in (
            dataclasses.replace(self.experiment, model=deeper, steps=steps),
            dataclasses.replace(self.experiment, data=retokenised, steps=steps),
        ):
            try:
                train(impossible, self.path, allow_changes=True)
            except ConfigError as refusal:
                message = str(refusal)
                assert "\n" not in message and ("--" in message or "config" in message), message
            else:
                raise AssertionError("an impossible change was accepted")

    def sampled(self) -> None:
        """Averaged and latest weights both write."""
        for live in (False, True):
            model = gptjax.load(self.path, live=live)
            assert isinstance(model.generate("the ", new_tokens=2), str)

    def converted(self) -> None:
        """The run as a Hugging Face directory, proved equal."""
        target = self.path.with_name("converted")
        shutil.rmtree(target, ignore_errors=True)
        assert convert.convert(self.path, target, convert.ConvertOptions(), str)

    # --- what holds after each

    def reached(self) -> int:
        """The newest step on disk."""
        return max(Run(self.path).steps(), default=0)

    def check(self, before: int) -> None:
        """Each step is logged once, with the rate of its schedule, tokens that are summed up and
        a finite loss.

        Args:
          before: number of lines that an earlier start wrote.
        """
        lines = lines_of(self.path)
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), self.said
        kept = config.load_config(Experiment, self.path / "config.json")
        rate = optim.learning_rate(kept.schedule, kept.optim.peak, kept.steps)
        for line in lines[before:]:
            found = float(rate(jnp.asarray(line["step"] - 1)))
            near = abs(line["learning_rate"] - found) <= 1e-6 * found  # one is compiled
            assert found > 0 and near, (self.said, line["step"])
            assert line["loss"] is not None and math.isfinite(line["loss"]), self.said
        tokens = [0, *(line["tokens"] for line in lines)]
        sizes = np.diff(tokens)
        own = kept.batch * kept.model.context
        assert (sizes > 0).all() and (sizes[before:] == own).all(), (self.said, sizes)
        newest = self.reached()
        assert Run(self.path).metrics(newest)["tokens"] == lines[newest - 1]["tokens"]

    def _until(self, end: Callable[[], None]) -> None:
        """Trains two more steps at least, and calls `end` after the first of them."""
        begun = self.reached()
        if self.experiment.steps < begun + 2:
            self.experiment = dataclasses.replace(self.experiment, steps=begun + 2)
        finished = watch.Watch.finished

        def ending(watch: Any, done: int, *more: Any) -> None:
            finished(watch, done, *more)
            if done == begun + 1:
                end()

        watch.Watch.finished = ending  # type: ignore[method-assign]
        try:
            train(self.experiment, self.path, allow_changes=True)
        except Killed:
            pass
        finally:
            watch.Watch.finished = finished  # type: ignore[method-assign]


CHANGES: list[tuple[str, Any]] = [
    ("optim", AdamW(peak=1e-2, ema=0.9)),
    ("optim", AdamW(peak=5e-3, weight_decay=0.0)),
    ("optim", AdamW(peak=1e-2, clip_norm=None)),
    ("optim", SGD(peak=1e-2)),
    ("optim", Lion(peak=1e-3)),
    ("optim", Muon(peak=1e-2, ema=0.5)),
    ("batch", 16),
    ("batch", 8),
    ("seed", 7),
    ("model.context", 24),
    ("model.context", 16),
    ("schedule", Schedule("constant", warmup=1)),
    ("schedule", Schedule("wsd", warmup=1, floor=0.1)),
    ("skip_norm", 1e3),
    ("evaluation.every", 2),
]
"""Settings that a resumed run may change, some of them only with --allow-changes."""
