"""The loop of a sweep: the runs of one program, from their first step or last save to their end.

Read `train_group`, then `_Loop`, then `seal`, which makes each run what `gptjax train` makes.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.data.prepare import Prepared, prepare
from gptjax.data.store import Store
from gptjax.observe.log import Log, read_metrics
from gptjax.observe.progress import duration
from gptjax.runs import Run
from gptjax.sharding.mesh import make_mesh
from gptjax.train import identity, placement, saved, step
from gptjax.train.evaluate import figures_of
from gptjax.train.experiment import Experiment
from gptjax.train.many import By, Many, build_many
from gptjax.train.sources import evaluation_batches


class Member(NamedTuple):
    """One run of several."""

    name: str
    """Of its folder."""
    settings: dict[str, Any]
    """What it was given, by dotted name."""
    experiment: Experiment


def train_group(
    group: Sequence[Member],
    path: Path,
    number: int,
    by: By,
    log: Log,
    asked: Callable[[], bool],
) -> bool:
    """Trains the runs of one program to their end, or until an interruption, which is saved;
    returns whether they ended."""
    data = prepare(group[0].experiment.data, say=log.say)
    members = [one._replace(experiment=identity.resolve(one.experiment, data)) for one in group]
    first = members[0].experiment
    many = build_many([one.experiment for one in members], data, by)
    run = Run(path / "state" / str(number), keep_newest=first.checkpoints.keep_newest, keep_best=0)
    run.path.mkdir(parents=True, exist_ok=True)
    with run.lock():
        done, state = _begun(run, many)
        if done == first.steps:
            log.say(f"{len(members)} runs have their {first.steps} steps already")
            return _sealed(members, path, data, many, state, done)
        logs = [
            Log(path / one.name, resume_step=done or None, terminal=io.StringIO())
            for one in members
        ]
        try:
            said = f"resuming at step {done} of" if done else "training"
            log.say(f"{len(members)} runs by {many.by}: {said} {first.steps} steps")
            loop = _Loop(members, data, many, run, log, logs, asked)
            done, state = loop.run(done, state)
        finally:
            for one in logs:
                one.close()
        run.wait()
        return done == first.steps and _sealed(members, path, data, many, state, done)


def _sealed(
    members: Sequence[Member], path: Path, data: Prepared, many: Many, state: Any, done: int
) -> bool:
    """Makes the directory of each run; true, since that is the end."""
    states = many.fetch(state)
    for index, member in enumerate(members):
        seal(member, path / member.name, data, index, states, done)
    return True


def _begun(run: Run, many: Many) -> tuple[int, step.TrainState]:
    """Returns the newest intact state, or the initial one; on the devices."""
    shapes = {"params": many.state.trainable, "opt_state": many.state.opt_state}
    restored = run.restore(shapes)
    if restored is None:
        return 0, many.place(many.init())
    done, trees = restored
    number = np.full(many.count, done, np.int32)
    return done, many.place(step.TrainState(number, trees["params"], trees["opt_state"]))


class _Loop:
    """Steps, evaluations and saves of the runs of one program."""

    def __init__(
        self,
        members: Sequence[Member],
        data: Prepared,
        many: Many,
        run: Run,
        log: Log,
        logs: Sequence[Log],
        asked: Callable[[], bool],
    ):
        self._members, self._data, self._many = members, data, many
        self._run, self._log, self._logs, self._asked = run, log, logs, asked
        self._experiment = members[0].experiment
        self._pending: tuple[int, Any] | None = None
        self._since: tuple[float, int] | None = None

    def run(self, first: int, state: step.TrainState) -> tuple[int, step.TrainState]:
        """Steps until the end or an interruption; returns the last step and state."""
        experiment, done = self._experiment, first
        every = experiment.checkpoints.every or experiment.evaluation.every
        for done in range(first + 1, experiment.steps + 1):
            state, metrics = self._many.step(state, self._many.batch(done - 1))
            self._finish()
            self._pending = done, metrics
            last = done == experiment.steps
            if last or done % experiment.evaluation.every == 0:
                figures = self._evaluate(state, last)
                self._finish(figures)
            if last or done % every == 0 or self._asked():
                self._finish()
                self._save(done, state)
            if self._asked() and not last:
                self._log.say(f"stopped at step {done} and saved it; the same command resumes")
                return done, state
        return done, state

    def _finish(self, figures: Sequence[Mapping[str, float]] | None = None) -> None:
        """Records the metrics of the step before, which were not waited for."""
        if self._pending is None:
            return
        done, metrics = self._pending
        self._pending = None
        values = self._many.fetch(metrics)
        losses = values["loss"]
        for index, log in enumerate(self._logs):
            own = {name: float(value[index]) for name, value in values.items()}
            skipped = {"skipped": 1} if own.pop("skipped") else {}
            tokens = {"tokens": done * self._experiment.tokens_per_step}
            log.record(done, {**tokens, **own, **skipped, **(figures[index] if figures else {})})
        if self._since is None:
            self._since = time.monotonic(), done  # the first step compiles
        if done % self._experiment.log_every == 0 or done == self._experiment.steps:
            self._log.progress(self._line(done, losses))

    def _line(self, done: int, losses: np.ndarray) -> str:
        steps = self._experiment.steps
        words = [f"step {done}/{steps}  {100 * done // steps:>2}%"]
        words.append(f"loss {_span(losses, 3)}")
        begun, first = self._since or (0.0, done)
        if done > first:
            speed = (done - first) / (time.monotonic() - begun)
            words.append(f"{speed * len(self._members):.1f} steps/s of all runs")
            words.append(f"eta {duration((steps - done) / speed)}")
        return "  ".join(words)

    def _evaluate(self, state: step.TrainState, last: bool) -> list[dict[str, float]] | None:
        store, experiment = self._data.validation, self._experiment
        if store is None:
            return None
        rows = None if last else experiment.evaluation.rows
        found = held_out_of_each(self._many, state, experiment, store, rows)
        losses = np.asarray([one["validation_loss"] for one in found])
        self._log.say(f"validation loss {_span(losses, 4)}")
        return found

    def _save(self, done: int, state: step.TrainState) -> None:
        for log in self._logs:
            log.flush()
        self._run.save(done, saved.trees(self._many.fetch(state)))


def held_out_of_each(
    many: Many, states: Any, experiment: Experiment, store: Store, rows: int | None
) -> list[dict[str, float]]:
    """Returns the held-out figures of each run, as `evaluate` gives them for one, with the prefix
    `validation_`."""
    lone = make_mesh(experiment.mesh, jax.devices()[:1])
    plan, batch = evaluation_batches(experiment, store, lone)
    count = plan.batches_per_epoch
    if rows is not None:
        count = min(count, -(-rows // plan.rows))
    sums = [
        many.fetch(many.evaluate(states, jax.device_get(batch(number)))) for number in range(count)
    ]
    total = jax.tree.map(lambda *parts: np.asarray(parts, np.float64).sum(axis=0), *sums)

    def of(index: int) -> dict[str, float]:
        own = jax.tree.map(lambda leaf: leaf[index], total)
        figures = figures_of(own, experiment, store)
        return {f"validation_{name}": value for name, value in figures.items()}

    return [of(index) for index in range(many.count)]


def seal(
    member: Member, path: Path, data: Prepared, index: int, state: step.TrainState, done: int
) -> None:
    """Makes a run's directory what `gptjax train` would have made it: its config, its tokenizer and
    its last checkpoint, which other commands open."""
    run, experiment = Run(path), member.experiment
    if max(run.steps(), default=-1) >= done:  # `gptjax train` may have made it longer
        return
    settled = identity.settle(experiment, path, data, done=None, allow=False)
    shapes = jax.eval_shape(
        lambda: step.init(state_of(state, index).trainable, placement.optimizer(experiment))
    )
    own = state_of(state, index)
    leaves = jax.tree.leaves(own.opt_state)  # a chain without decay has one part less, but no leaf
    own = own._replace(opt_state=jax.tree.unflatten(jax.tree.structure(shapes.opt_state), leaves))
    counts = {"rows": done * experiment.batch, "tokens": done * experiment.tokens_per_step}
    with run.lock():
        identity.commit(path, settled, data.tokenizer, resuming=False)
        figures = last_figures(path, done)
        run.save(done, saved.trees(own), {**figures, **counts, "context": experiment.model.context})
        run.wait()


def state_of(state: Any, index: int) -> Any:
    """Returns the part of one run of a tree with a leading axis of runs."""
    return jax.tree.map(lambda leaf: leaf[index], state)


def _span(losses: np.ndarray, digits: int) -> str:
    """The least and the largest loss; those of runs that diverged are no numbers."""
    found = losses[np.isfinite(losses)]
    return f"{found.min():.{digits}f} to {found.max():.{digits}f}" if found.size else "nan"


def last_figures(path: Path, steps: int) -> dict[str, float]:
    """Returns the figures of a run's last evaluation within so many steps; without held-out text
    the mean loss of their last tenth, as `loss`."""
    lines = [line for line in read_metrics(path) if line["step"] <= steps]
    evaluated = [line for line in lines if "validation_loss" in line]
    if evaluated:
        return {
            name: math.nan if value is None else value
            for name, value in evaluated[-1].items()
            if name.startswith("validation_")
        }
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    tail = losses[-max(1, len(losses) // 10) :]
    return {"loss": float(np.mean(tail))} if tail else {}
