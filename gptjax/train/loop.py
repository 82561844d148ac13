"""Builds, restores, loops, logs, evaluates, saves. This room touches the world; what it calls is
pure.

Read `train` first: it is the whole story of a run. The functions below it stand in the order in
which it calls them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from gptjax import generate
from gptjax.core import faults, processes
from gptjax.core.arrays import Params
from gptjax.data.prepare import prepare
from gptjax.runs import Run, frozen
from gptjax.train import forecast, identity, program, report, saved
from gptjax.train import start as starts
from gptjax.train.evaluate import evaluate
from gptjax.train.experiment import Experiment
from gptjax.train.facts import Setting, attention, banner, facts, utilisation
from gptjax.train.goodput import Clock
from gptjax.train.guard import interruptible, unless, watchdog
from gptjax.train.metrics import Log, Silent, Smoothed, Throughput, history, progress_line, smooth
from gptjax.train.pace import Pace, compared
from gptjax.train.step import TrainState

STOP_AFTER = 5
"""Skipped steps in a row after which a run ends."""


def train(
    experiment: Experiment, path: Path, *, allow_changes: bool = False, rollback_to: int | None = None, cast: bool = False,
    fall_back: bool = True, notes: tuple[str, ...] = (), begun: float | None = None,
) -> Path:  # fmt: skip
    """Trains an experiment in a run directory, or goes on where that run stopped, and gives the
    path of its report.

    The same experiment, interrupted and resumed any number of times, ends in the same bits. Where
    several processes train together (`processes.join`), each calls this with the same experiment;
    the first one prints, logs and commits.

    Args:
      allow_changes: resume even where the experiment differs from the run's own in a way that
        changes its course.
      rollback_to: go on from this step; later ones are moved aside first.
      cast: take a checkpoint whose arrays have other dtypes, rounding them.
      fall_back: where the newest step is damaged, go on from the one before it.
      notes: lines for the banner.
      begun: `time.monotonic()` at the start of the process.

    Raises:
      ConfigError: something the user chose does not fit.
      FloatingPointError: five steps in a row were skipped.
    """
    planned, clock = faults.planned(), Clock(begun or time.monotonic())
    run = Run(
        path,
        keep_newest=experiment.checkpoints.keep_newest,
        keep_best=experiment.checkpoints.keep_best,
    )
    say = print if processes.first() else lambda line: None
    with (
        run.lock(),
        clock,
        forecast.explained(experiment),
        watchdog(clock, experiment.watchdog, path / f"log{_mark()}.txt"),
    ):
        mesh = forecast.require_possible(experiment)
        with clock.during("data", "preparing the data"), processes.in_turn("data"):
            resuming = bool(run.steps())
            start = starts.of(experiment, path, resuming=resuming)
            experiment, adopted = starts.adopted(experiment, start)
            data = prepare(experiment.data, say=say, given=start.tokenizer)
        experiment = identity.resolve(experiment, data)
        attention(experiment, mesh)
        identity.require_alike(experiment, data, start)
        settled = identity.settle(
            experiment, path, data, resuming=resuming, allow=allow_changes, start=start
        )
        experiment, changes = settled.experiment, (*adopted, *settled.notes)
        if processes.first():
            clock.keep(path, max(run.steps(), default=0))
        with clock.during("compile", "compiling"):
            built = program.build(
                experiment, data, planned, mesh, fresh=start.params is None and not resuming
            )
        forecast.require_fits(experiment, built)
        if rollback_to is not None:
            changes += (
                (
                    f"rolled back to step {rollback_to}; set aside:"
                    f" {', '.join(map(str, run.rollback(rollback_to))) or 'nothing'}"
                ),
            )
        if built.cut:
            changes += (
                (
                    f"{built.cut:,} training examples are longer than a row of"
                    f" {experiment.model.context} tokens and are cut (--model.context)"
                ),
            )
        state, rest, resumed = saved.begin(path, run, built, cast, fall_back, start.params)
        del start  # its parameters are in the state now
        if processes.first():
            record = {**settled.record, **frozen.record(path, experiment.freeze)}
            settled = settled._replace(record=record)
            identity.commit(path, settled, data.tokenizer, resuming=resuming)
        clock.resumed(resumed or 0)
        with (
            Log(path, resume_step=resumed) if processes.first() else Silent() as log,
            interruptible() as asked,
        ):
            setting = Setting(
                experiment, path, data, built, run, log, clock, processes.Votes(asked), rest
            )
            log.say(
                banner(
                    setting,
                    state,
                    (
                        *notes,
                        *changes,
                        *(f"GPTJAX_FAULT: {f.kind} at step {f.step}" for f in planned),
                    ),
                )
            )
            return _finish(setting, _loop(setting, state))


def _mark() -> str:
    """What tells the file of a process that does not log from that of the first."""
    return "" if processes.first() else f".{processes.index()}"


# --- the loop
# ----------------------------------------------------------------------------------------------------


def _loop(setting: Setting, state: TrainState) -> TrainState:
    """Steps until the end or an interruption, and gives the last state.

    Metrics of a step are fetched while the next one runs, so that the device never waits for the
    host.
    """
    experiment, built = setting.experiment, setting.program
    watch = _Watch(setting, state)
    every = experiment.checkpoints.every or experiment.evaluation.every
    pending: tuple[int, Any] | None = None
    if not watch.make_up(state):
        return state  # it is saved; one more step would leave this evaluation out for good
    for done in range(int(state.step) + 1, experiment.steps + 1):
        try:
            batch = watch.read(state, done, pending)
        except Exception as error:
            kept = watch.give_up(state, pending)
            error.add_note(f"It happened while the batch of step {done} was read; {kept}.")
            raise
        with watch.pace.waiting():
            state, metrics = built.step(state, setting.frozen, batch)
        if pending:
            watch.see(*pending)
            setting.run.prepare()
        pending, end = (done, metrics), done == experiment.steps
        evaluating = end or done % experiment.evaluation.every == 0
        figures = watch.evaluate(state, done) if evaluating else {}
        stopped = setting.interrupted(*watch.pace.turn())
        saving = end or stopped or done % every == 0
        if evaluating or saving:
            watch.see(*pending, figures)  # before the save: a resumed run does not repeat this step
            pending = None
            if saving:
                watch.save(state, figures)
        if stopped:
            break
    return state


class _Watch:
    """Looks at the run as it goes: progress, skipped steps, evaluations, checkpoints."""

    def __init__(self, setting: Setting, state: TrainState):
        self.setting, self.saved = setting, int(state.step) or None
        self.in_a_row, self.evaluated = processes.by_first(
            "history", lambda: history(setting.path, self.saved)
        )
        self.smoothed, self.speed, self.spiked = Smoothed(), Throughput(), False
        self.pace, self.slow = Pace(), -1  # the process that was last said to hold the others up
        self.known: set[str] = set()  # what was done before, and so is compiled

    def read(self, state: TrainState, done: int, pending: tuple[int, Any] | None) -> Any:
        """The batch of a step."""
        clock = self.setting.clock
        clock.turn("data", f"reading the batch of step {done}")
        batch = self.setting.program.batch(done - 1, state)
        busy = (
            pending is not None and not pending[1]["loss"].is_ready()
        )  # then nobody waited for the batch
        clock.turn("useful", f"beginning step {done}", was="useful" if busy else None)
        return batch

    def see(
        self, done: int, metrics: dict[str, Any], figures: dict[str, float] | None = None
    ) -> None:
        """Takes in one step's metrics, with what an evaluation after it found; stops a run that
        only skips."""
        experiment, log, clock = self.setting.experiment, self.setting.log, self.setting.clock
        clock.turn("useful", f"waiting for step {done}")
        with self.pace.waiting():
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        skipped = bool(values.pop("skipped"))
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.smoothed = smooth(self.smoothed, values["loss"], 0.98)
        self.speed = self.speed.at(time.monotonic(), done, done * experiment.tokens_per_step)
        rate = self.speed.tokens_per_second
        tokens = done * experiment.tokens_per_step
        extra = (
            ({"tokens_per_second": rate} if rate else {})
            | ({"skipped": 1} if skipped else {})
            | (figures or {})
        )
        log.record(done, {"tokens": tokens, **values, **extra})
        clock.reached(done)
        self._say_unusual(done, values, skipped)
        if found := compared(self.setting.interrupted.seen, done, self.slow):
            seconds, said, self.slow = found
            log.record(done, seconds)
            if said:
                log.say(said)
        _require_progress(self.in_a_row, done, self.setting)
        if done % experiment.log_every == 0 or done == experiment.steps:
            log.progress(self.line(done, values))

    def _say_unusual(self, done: int, values: dict[str, float], skipped: bool) -> None:
        spike = values["spike"] >= self.setting.experiment.spike_score
        said = f"loss {values['loss']:#.3g}, gradient norm {values['gradient_norm']:.3g}" + (
            f", {values['spike']:.3g} deviations above the steps before" if spike else ""
        )
        if skipped:
            self.setting.log.say(
                f"step {done} (batch {done - 1}) skipped: {said}; parameters unchanged"
            )
        elif spike and not self.spiked:  # of several in a row the first
            self.setting.log.say(
                f"step {done} (batch {done - 1}) is a spike: {said}; taken (--skip-spikes True"
                " skips such steps)"
            )
        self.spiked = spike

    def line(self, done: int, values: dict[str, float]) -> str:
        """How training stands."""
        experiment, rate = self.setting.experiment, self.speed.tokens_per_second
        left = (experiment.steps - done) // experiment.evaluation.every
        return progress_line(
            done, experiment.steps, loss=values["loss"], smoothed=self.smoothed.value, learning_rate=values["learning_rate"],
            gradient_norm=values["gradient_norm"], tokens_per_second=rate, mfu=utilisation(experiment, rate),
            eta=self.speed.eta(experiment.steps - done, evaluation=left, checkpoint=left),
        )  # fmt: skip

    def evaluate(self, state: TrainState, done: int) -> dict[str, float]:
        """Held-out loss and a sample, both printed; nothing if the run is interrupted meanwhile."""
        setting, params = self.setting, saved.weights(state, self.setting.frozen)
        rows = None if done == setting.experiment.steps else setting.experiment.evaluation.rows
        with self._pause("evaluation", f"evaluating step {done}"):
            figures = unless(setting.interrupted, lambda: held_out(setting, params, rows)) or {}
            if figures:
                more = ", ".join(
                    f"{value:.3f} {name.removeprefix('validation_').replace('_', ' ')}"
                    for name, value in figures.items()
                    if name != "validation_loss"
                )
                setting.log.progress(
                    f"step {done}: validation loss"
                    f" {figures['validation_loss']:.4f}{more and ', '}{more}",
                    keep=True,
                )
            elif setting.data.validation is not None:
                setting.log.say("this evaluation is left out; the same command makes up for it")
            if (prompt := prompt_of(setting)) is not None and not setting.interrupted():
                if (
                    text := unless(setting.interrupted, lambda: continued(setting, params, prompt))
                ) is not None:
                    setting.log.sample(done, prompt, text)
                    answered = " → " if setting.experiment.data.task.answers else ""
                    setting.log.say(
                        "\n".join(f"  │ {line}" for line in (prompt + answered + text).splitlines())
                    )
        return figures

    def make_up(self, state: TrainState) -> bool:
        """Evaluates the step that was restored, where an interruption left that out; false if it is
        interrupted once more."""
        done, experiment = int(state.step), self.setting.experiment
        due = (
            self.saved
            and (done % experiment.evaluation.every == 0 or done == experiment.steps)
            and self.setting.data.validation is not None
        )
        figures = self.evaluate(state, done) if due and not self.evaluated else None
        if figures:
            self.setting.log.record(done, figures)
        return figures != {}

    def save(self, state: TrainState, figures: dict[str, float]) -> None:
        """Begins to save the state; writing goes on beside the next steps."""
        done = int(state.step)
        if done == self.saved:
            return
        with self._pause("checkpoint", f"saving step {done}"):
            self.setting.clock.saving()
            self.setting.log.flush()
            self.setting.run.save(done, saved.trees(state), figures)
        self.saved = done

    def give_up(self, state: TrainState, pending: tuple[int, Any] | None) -> str:
        """Keeps what was reached when the run can't go on, if that takes no other process; says
        what is kept."""
        if processes.several():
            return "the same command goes on from the last checkpoint"
        with contextlib.suppress(OSError):
            if pending:
                self.see(*pending)
            self.save(state, {})
        return "all steps before are saved"

    @contextlib.contextmanager
    def _pause(self, what: str, doing: str) -> Iterator[None]:
        begun = time.monotonic()
        with self.setting.clock.during(what, doing, watched=what in self.known):
            yield
        self.known.add(what)
        self.speed = self.speed.pause(what, time.monotonic() - begun)
        self.pace.pause()


def _require_progress(in_a_row: int, done: int, setting: Setting) -> None:
    if in_a_row >= STOP_AFTER:
        kept, experiment = setting.run.wait(), setting.experiment
        spikes = (
            f", or were {experiment.spike_score:g} deviations above those before (--skip-spikes)"
            if experiment.skip_spikes
            else ""
        )
        raise FloatingPointError(
            f"{in_a_row} steps in a row up to step {done} had no finite loss and gradient below"
            f" {experiment.skip_norm:g}{spikes}; stopped. The last whole checkpoint is"
            f" {'step ' + str(kept) if kept is not None else 'none'}; go further back with"
            " --rollback-to STEP, or try a lower --optim.peak or a higher --skip-norm."
        )


def held_out(setting: Setting, params: Params, rows: int | None) -> dict[str, float]:
    """Returns the held-out figures, each with the prefix `validation_`; nothing without held-out
    data, or if the run is interrupted meanwhile."""
    store = setting.data.validation
    if store is None:
        return {}

    def stop() -> bool:
        setting.clock.beat()
        return setting.interrupted()

    figures = evaluate(
        setting.program, setting.experiment, store, params, setting.frozen, rows, stop
    )
    return {f"validation_{name}": value for name, value in (figures or {}).items()}


def prompt_of(setting: Setting) -> str | None:
    """What the model goes on with, or answers: a newline where it would be nothing to go on with,
    none where there is nothing to answer."""
    prompt, task = setting.experiment.evaluation.prompt, setting.experiment.data.task
    if not task.writes or (task.answers and not prompt):
        return None
    return prompt if prompt or setting.data.tokenizer.end_of_document is not None else "\n"


def continued(setting: Setting, params: Params, prompt: str) -> str:
    """What the model writes after the prompt; of several processes all write it, in step."""
    experiment, tokenizer = setting.experiment, setting.data.tokenizer
    return generate.complete(
        experiment.model,
        params,
        tokenizer,
        [prompt],
        experiment.evaluation.sample,
        task=experiment.data.task,
    )[0].text


# --- after the last step
# -----------------------------------------------------------------------------------------


def _finish(setting: Setting, state: TrainState) -> Path:
    """Makes sure that the checkpoint is on disk, writes the report, says what to type next."""
    log, done, path, clock = setting.log, int(state.step), setting.path, setting.clock
    with clock.during("checkpoint", f"saving step {done}", watched=True):
        on_disk = setting.run.wait()
    if on_disk != done:
        raise OSError(
            f"the checkpoint of step {done} is not on disk; the newest whole one is {on_disk}."
        )
    if not processes.first():
        return path / "report.html"
    clock.turn("evaluation", "writing the report")
    found = facts(setting, state)
    try:
        page = report.write(path, found)
    except OSError as error:  # all that matters is saved
        log.say(
            f"warning: the report can't be written ({error.strerror}); the same command makes up"
            " for it"
        )
        page = path / "report.html"
    if done < setting.experiment.steps:
        log.say(
            f"stopped at step {done} and saved it; the same command goes on, or: python train.py"
            f" {path}/config.json"
        )
    else:
        log.say(
            "\n".join(
                [
                    f"done: {report.headline(found)}",
                    f"report: {page}",
                    "next:",
                    *(f"  {line}" for line in found["next"]),
                ]
            )
        )
    return page
