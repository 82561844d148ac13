"""`gptjax train`: trains an experiment or resumes its run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptjax.cli.arguments import describe_flags, first_path, read_with_flags
from gptjax.cli.process import STARTED
from gptjax.core import backend, processes, remote, user_config
from gptjax.core.config import require

if TYPE_CHECKING:
    from gptjax.lab.observing import Observer
    from gptjax.observe.hook import Hook
    from gptjax.train.experiment import Experiment


@dataclass(frozen=True)
class TrainOptions:
    """Flags of `train` besides those of the experiment."""

    dir: str | None = None
    """Run directory, or a URL such as gs://bucket/run, to which it is mirrored. The default is
    runs/NAME for a config file NAME.py, or the directory of the given config.json."""
    allow_changes: bool = False
    """Resume even if the experiment differs from the run's own."""
    rollback_to: int | None = None
    """Resume from this earlier checkpoint; later ones are moved aside, not deleted."""
    cast: bool = False
    """Resume from a checkpoint with other dtypes, rounding its arrays to this experiment's."""
    fall_back: bool = True
    """Resume from the checkpoint before, if the newest is damaged; --no-fall-back stops with the
    reason instead."""
    profile: str | None = None
    """Trace these steps, such as 20:25, into the run's profile folder, for XProf and TensorBoard,
    and print the costliest operations."""
    loggers: tuple[str, ...] = ()
    """Also log to wandb, mlflow or trackio, as many as are named; each has to be installed."""
    project: str = "gptjax"
    """The project of those loggers."""
    observe: str | None = None
    """Measure while training: noise (the gradient noise scale), curvature (of the loss), or both as
    noise,curvature; in the run's observed.jsonl."""
    observe_every: int = 100
    """Steps between these measurements."""
    distributed: bool = False
    """Run as one of several processes. JAX finds the others on TPU pods, Slurm, GKE and MPI;
    elsewhere give the next three flags."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where the others connect."""
    num_processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Index of this process, from 0."""
    init_timeout: float = 300.0
    """Seconds to wait for all processes to connect."""
    heartbeat_timeout: int = 100
    """Seconds without a heartbeat after which a process counts as dead."""


def train_command(args: list[str]) -> None:
    """Trains an experiment or resumes its run."""
    from gptjax.observe.watchdog import abrupt

    with abrupt():
        _train(args)


def _train(args: list[str]) -> None:
    chosen = backend.configure()
    path, flags = first_path(
        args,
        "gptjax train CONFIG [flags]",
        "a config file or a run's config.json, for example configs/quickstart.py",
    )
    if path and path.exists() and "--distributed" not in flags:
        print(f"{path}: loading JAX", flush=True)  # which takes seconds

    experiment, directory, flags = read_with_flags(path, flags)
    options, experiment = user_config.cli(
        TrainOptions,
        flags,
        prog="gptjax train CONFIG",
        description="Trains an experiment, or resumes its run.",
        base=experiment,
    )
    _connect(options)
    from gptjax.runs import mirrored
    from gptjax.train.loop import train

    observer = _observer(options, experiment)
    with mirrored(options.dir or _own_url(args) or directory) as directory:
        train(
            experiment,
            directory,
            allow_changes=options.allow_changes,
            rollback_to=options.rollback_to,
            cast=options.cast,
            fall_back=options.fall_back,
            notes=(describe_flags(chosen),),
            begun=STARTED,
            hooks=(*_hooks(options), *((observer,) if observer else ())),
            source=observer.source if observer else None,
        )


def _own_url(args: list[str]) -> str | None:
    """The run directory that is given by a URL, or by that of its config.json."""
    url = remote.as_url(args[0]) if args else None
    return None if url is None or url.endswith(".py") else url.removesuffix("/config.json")


def _hooks(options: TrainOptions) -> tuple[Hook, ...]:
    """Returns what follows the run besides its own log."""
    from gptjax.observe.loggers import loggers
    from gptjax.observe.profile import Profile, steps_of

    profile = () if options.profile is None else (Profile(*steps_of(options.profile)),)
    return (*profile, *loggers(options.loggers, options.project))


def _observer(options: TrainOptions, experiment: Experiment) -> Observer | None:
    """Returns what measures noise and curvature, with --observe.

    Raises:
      ConfigError: the run has several processes, or weights that do not train.
    """
    if options.observe is None:
        return None
    require(not options.distributed, "--observe is for runs of one process; leave it out.")
    from gptjax.lab.observing import Observer

    return Observer(options.observe.split(","), options.observe_every, experiment)


def _connect(options: TrainOptions) -> None:
    """Joins the other processes, with --distributed.

    Raises:
      ConfigError: an address or number of a process is given without --distributed.
    """
    if options.distributed:
        processes.join(
            options.coordinator,
            options.num_processes,
            options.process,
            init_timeout=options.init_timeout,
            heartbeat_timeout=options.heartbeat_timeout,
        )
        return
    for name in ("coordinator", "num_processes", "process"):
        require(
            getattr(options, name) is None,
            f"--{name.replace('_', '-')} is for one of several processes; add --distributed.",
        )
