"""Trains an experiment: step, log, evaluate, save.

Read `train`, the whole story of a run, then `_loop`. The other functions stand in the order in
which `train` calls them. What is called from here is pure, or an observer (see `observe/`).
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from gptjax.core import config, faults, processes
from gptjax.data.prepare import Prepared, prepare
from gptjax.model import flops_per_token
from gptjax.observe.goodput import Clock
from gptjax.observe.hook import Hook, Hooks
from gptjax.observe.learning import Learning
from gptjax.observe.log import Log, Silent, history, validation_losses
from gptjax.observe.progress import Progress
from gptjax.observe.spikes import SkippedSteps, Spikes
from gptjax.observe.watch import Watch
from gptjax.observe.watchdog import interruptible, watchdog
from gptjax.runs import Run, frozen
from gptjax.train import forecast, identity, program, saved, watched
from gptjax.train import start as starts
from gptjax.train.evaluator import Evaluator, prompt_of
from gptjax.train.experiment import Experiment
from gptjax.train.facts import (
    attention_kernels,
    banner,
    facts,
    num_parameters,
    peak_flops,
    signs_of,
)
from gptjax.train.saved import Begun, Saver
from gptjax.train.sources import Source
from gptjax.train.step import Gradients, TrainState, default_gradients


def train(
    experiment: Experiment,
    path: Path,
    *,
    allow_changes: bool = False,
    rollback_to: int | None = None,
    cast: bool = False,
    fall_back: bool = True,
    notes: tuple[str, ...] = (),
    begun: float | None = None,
    source: Callable[[Source], Source] | None = None,
    gradients: Gradients = default_gradients,
    hooks: Sequence[Hook] = (),
) -> Path:
    """Trains an experiment in a run directory, or resumes the run there; returns the path of its
    report.

    However often it is interrupted and resumed, a run ends in the same bits. If several processes
    train together (`processes.join`), each calls this with the same experiment; the first one
    prints, logs and commits.

    Args:
      allow_changes: resume even with changes that alter the course of the run.
      rollback_to: resume from this step; later ones are moved aside, once it is restored.
      cast: accept a checkpoint whose arrays have other dtypes, rounding them.
      fall_back: if the newest checkpoint is damaged, resume from the one before it.
      notes: lines for the banner.
      begun: `time.monotonic()` at the start of the process.
      source: takes the source of stored batches and returns the one to train on.
      gradients: see `train_step`.
      hooks: loggers, a profile and others that follow the run; the first process calls them.

    Raises:
      ConfigError: something the user chose does not fit.
      FloatingPointError: five steps in a row were skipped.
    """
    planned, clock = faults.planned(), Clock(begun or time.monotonic())
    kept = experiment.checkpoints
    run = Run(path, keep_newest=kept.keep_newest, keep_best=kept.keep_best)
    guard = watchdog(clock, experiment.watchdog, path / processes.own_log())
    with run.lock(), clock, forecast.explained(experiment, path), guard:
        plan = _compared(_plan(experiment, run, clock, allow_changes, gradients), clock)
        built = _compile(plan, planned, clock, source, gradients)
        begun = saved.restore_or_init(
            *(run, built, plan.experiment, plan.settled.old, cast, fall_back, plan.start.params),
            rollback_to,
        )
        rolled_back = () if rollback_to is None else (_roll_back(run, rollback_to),)
        plan = plan._replace(start=starts.Start())  # its parameters are in the state now
        _commit(path, plan)
        clock.resumed(begun.step or 0)
        said = (*notes, *plan.notes, *begun.notes, *rolled_back, *_warnings(plan, built, planned))
        with (
            Log(path, resume_step=begun.step) if processes.first() else Silent() as log,
            contextlib.closing(Hooks(log, hooks if processes.first() else ())) as also,
            interruptible() as asked,
        ):
            log.say(_banner(plan, path, built, begun, clock, said))
            state, early = _loop(plan, run, built, begun, log, clock, processes.Votes(asked), also)
            return _finish(plan, run, log, clock, begun, state, early)


class Plan(NamedTuple):
    """What a run will do, resolved: nothing of it changes any more."""

    experiment: Experiment
    mesh: Mesh
    data: Prepared
    start: starts.Start
    settled: identity.Settled
    resuming: bool
    notes: tuple[str, ...]
    """Lines for the banner."""
    tasks: watched.Tasks | None = None
    """What is answered while training."""

    @property
    def fresh(self) -> bool:
        """The run begins with random parameters."""
        return self.start.params is None and not self.resuming


def _plan(
    experiment: Experiment, run: Run, clock: Clock, allow_changes: bool, gradients: Gradients
) -> Plan:
    """Prepares the data and resolves the experiment; writes nothing in the run directory.

    Raises:
      ConfigError: something does not fit.
    """
    path, say = run.path, print if processes.first() else lambda line: None
    if gradients is default_gradients:
        identity.require_unpromised(path)
    mesh = None if experiment.adapter else forecast.require_possible(experiment)
    with clock.during("data", "preparing the data"), processes.in_turn("data"):
        resuming = bool(run.steps())
        experiment, start, adopted = starts.begin_run(experiment, path, resuming=resuming)
        mesh = mesh or forecast.require_possible(experiment)  # an adapter is that of its base
        data = prepare(experiment.data, say=say, given=start.tokenizer, kept=start.kept)
    experiment = identity.resolve(experiment, data)
    start = starts.with_classes(experiment, start)
    attention_kernels(experiment, mesh)
    prompt_of(experiment, data)
    tasks = watched.tasks_of(experiment, data, mesh)
    identity.require_same_run(experiment, data, start)
    done = max(run.steps()) if resuming else None
    settled = identity.settle(experiment, path, data, done=done, allow=allow_changes, start=start)
    if processes.first():
        clock.keep(path, max(run.steps(), default=0))
    return Plan(
        experiment=settled.experiment,
        mesh=mesh,
        data=data,
        start=start,
        settled=settled,
        resuming=resuming,
        notes=(*adopted, *settled.notes),
        tasks=tasks,
    )


def _compared(plan: Plan, clock: Clock) -> Plan:
    """Adds to the data what the loss reads of its reference."""
    if not plan.experiment.objective.columns:
        return plan
    from gptjax.train import references  # few losses keep one

    say = print if processes.first() else lambda line: None
    with clock.during("data", "computing the reference"):
        data = references.add(
            *(plan.experiment, plan.data, plan.mesh),
            record=plan.settled.record,
            params=plan.start.params,
            say=say,
        )
    return plan._replace(data=data)


def _compile(
    plan: Plan,
    planned: tuple[faults.Fault, ...],
    clock: Clock,
    source: Callable[[Source], Source] | None,
    gradients: Gradients,
) -> program.Program:
    """Compiles the step, and refuses one that does not fit the devices."""
    with clock.during("compile", "compiling"):
        built = program.build(
            plan.experiment, plan.data, planned, plan.mesh, plan.fresh, source, gradients
        )
    forecast.require_fits(plan.experiment, built)
    return built


def _roll_back(run: Run, step: int) -> str:
    aside = ", ".join(map(str, run.rollback(step))) or "nothing"
    return f"rolled back to step {step}; set aside: {aside}"


def _banner(
    plan: Plan, path: Path, built: program.Program, begun: Begun, clock: Clock, said: tuple
) -> str:
    seconds, step = clock.seconds(), int(begun.state.step)
    return banner(plan.experiment, path, plan.data, built, begun.frozen, seconds, step, said)


def _warnings(plan: Plan, built: program.Program, planned: tuple) -> Iterator[str]:
    """Warns of examples that are longer than a row, and of injected faults."""
    longer = f"longer than a row of {plan.experiment.model.context} tokens and are"
    if built.cut:
        yield f"{built.cut:,} training examples are {longer} cut (--model.context)"
    if built.left_out:
        yield f"{built.left_out:,} training examples are {longer} left out (--model.context)"
    yield from (f"GPTJAX_FAULT: {fault.kind} at step {fault.step}" for fault in planned)


def _commit(path: Path, plan: Plan) -> None:
    """Writes down what the run is, now that it is known to work."""
    if processes.first():
        record = {**plan.settled.record, **frozen.record(path, plan.experiment.freeze)}
        settled = plan.settled._replace(record=record)
        identity.commit(path, settled, plan.data.tokenizer, resuming=plan.resuming)


# --- the loop


def _loop(
    plan: Plan,
    run: Run,
    built: program.Program,
    begun: Begun,
    log: Log,
    clock: Clock,
    interrupted: processes.Votes,
    hooks: Hooks,
) -> tuple[TrainState, bool]:
    """Steps until the end or an interruption; returns the last state, and whether the validation
    loss ended the run early.

    The metrics of a step are fetched while the next one runs, so that the devices never wait for
    the host.
    """
    experiment, state, rest = plan.experiment, begun.state, begun.frozen
    first, updates = int(state.step), experiment.rollout.updates if experiment.rollout else 1
    shift, seen = begun.read.rows - first * experiment.batch, _seen(experiment, log)
    batches = built.batches(shift, rest, seen)
    in_a_row, evaluated = processes.by_first("history", lambda: history(run.path, first or None))
    losses = processes.by_first("losses", lambda: validation_losses(run.path, first))
    watch = _watch(experiment, begun, run, log, clock, interrupted, in_a_row, hooks)
    given = (plan.data, built, rest, log, clock, interrupted, losses, plan.tasks)
    evaluator = Evaluator(experiment, *given)
    saver = Saver(run, log, clock, experiment, begun)
    pending: tuple[int, Any] | None = None
    whole = evaluator.make_up(state, watch, evaluated=evaluated)
    if not whole or evaluator.waited_enough():
        return state, whole  # where it is not, one more step would skip this evaluation for good
    for done in range(first + 1, experiment.steps + 1):
        if pending and experiment.rollout:  # which begins with what the last step has learned
            watch.finished(*pending)
            pending = None
        try:
            with watch.reading(done, pending, "rollout" if experiment.rollout else "data"):
                batch = batches(done - 1, state)
        except Exception as error:
            kept = _give_up(watch, saver, state, pending)
            error.add_note(f"It happened while the batch of step {done} was read; {kept}.")
            raise
        with watch.waiting():
            state, metrics = built.step(state, rest, batch)
        if pending:
            watch.finished(*pending)
            saver.prepare()
        pending = done, metrics
        figures = evaluator.evaluate(state, watch) if evaluator.due(done) else {}
        early = bool(figures) and evaluator.waited_enough() and done < experiment.steps
        stopped = (interrupted(*watch.step_seconds()) or early) and done % updates == 0
        saving = stopped or saver.due(done)
        if saving or evaluator.due(done):
            watch.finished(*pending, figures)  # before the save: a resumed run will not repeat it
            pending = None
        if saving:
            saver.save(state, figures, watch)
        if stopped:
            return state, early
    return state, False


def _watch(
    experiment: Experiment,
    begun: Begun,
    run: Run,
    log: Log,
    clock: Clock,
    votes: processes.Votes,
    in_a_row: int,
    hooks: Hooks,
) -> Watch:
    progress = Progress(
        log,
        steps=experiment.steps,
        tokens=lambda step: begun.read.until(step, experiment).tokens,
        log_every=experiment.log_every,
        pauses_every=experiment.evaluation.every,
        flops_per_token=flops_per_token(experiment.model, experiment.model.context),
        peak_flops=peak_flops(),
    )
    skip_score = experiment.spike_score if experiment.skip_spikes else None
    hooks.start(run.path, config.to_dict(experiment), begun.step or 0)
    return Watch(
        log,
        clock,
        votes,
        progress,
        Spikes(log, experiment.spike_score),
        SkippedSteps(in_a_row, experiment.skip_norm, skip_score, run.wait),
        Learning(log, signs_of(experiment)),
        hooks,
    )


def _seen(experiment: Experiment, log: Log) -> Callable | None:
    """Returns what writes rollouts to the log."""
    every = experiment.rollout.log_every if experiment.rollout else 0
    if not every or experiment.rollout is None:
        return None
    from gptjax.train.rollout_figures import log_rollout

    return functools.partial(log_rollout, experiment.rollout, log)


def _give_up(watch: Watch, saver: Saver, state: TrainState, pending: tuple[int, Any] | None) -> str:
    """Keeps what was reached when no batch can be read, if that takes no other process; says what
    is kept."""
    if processes.several():
        return "the same command resumes from the last checkpoint"
    with contextlib.suppress(OSError):
        if pending:
            watch.finished(*pending)
        saver.save(state, {}, watch)
    return "all steps before are saved"


# --- after the last step


def _finish(
    plan: Plan, run: Run, log: Log, clock: Clock, begun: Begun, state: TrainState, early: bool
) -> Path:
    """Makes sure that the checkpoint is on disk, writes the report, and suggests what to type
    next."""
    from gptjax.observe import report  # the start does not wait for it

    path, done = run.path, int(state.step)
    with clock.during("checkpoint", f"saving step {done}", watched=True):
        on_disk = run.wait()
    if on_disk != done:
        raise OSError(
            f"the checkpoint of step {done} is not on disk; the newest whole one is {on_disk}."
        )
    if not processes.first():
        return path / "report.html"
    clock.turn("evaluation", "writing the report")
    parameters = num_parameters(state.trainable, begun.frozen)
    read = begun.read.until(done, plan.experiment)
    content = facts(plan.experiment, path, plan.data, clock, parameters, read)
    try:
        page = report.write_run_report(path, content)
    except OSError as error:  # all that matters is saved
        log.say(
            f"warning: the report can't be written ({error.strerror}); the same command makes up"
            " for it"
        )
        page = path / "report.html"
    if early:
        patience = plan.experiment.evaluation.patience
        log.say(
            f"stopped early at step {done}: {patience} evaluations in a row did not lower the"
            f" validation loss; to train on: python train.py {path}/config.json"
            f" --evaluation.patience {2 * (patience or 1)}"
        )
    elif done < plan.experiment.steps:
        log.say(
            f"stopped at step {done} and saved it; to resume, repeat the command, or: python"
            f" train.py {path}/config.json"
        )
    if done < plan.experiment.steps and not early:
        return page
    next_commands = [f"  {command}" for command in content["next"]]
    lines = [f"done: {report.headline(content)}", f"report: {page}", "next:", *next_commands]
    log.say("\n".join(lines))
    return page
