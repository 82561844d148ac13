"""The `gptjax` command: one subcommand a room, each a few lines. jax is imported only after the CPU
flags are chosen."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.core import backend, config, processes
from gptjax.core.config import ConfigError, require


def _begun() -> float:
    """When this program began, on the monotonic clock: as long ago as it has computed so far, or
    now, where that was much else before, as in a notebook.

    The process may be older: a shell that ends with this program becomes it, and what that did
    before is not ours.
    """
    spent = time.process_time()
    return time.monotonic() - (spent if spent < 60 else 0)


BEGUN = _begun()

USAGE = """usage: gptjax COMMAND [...] --help

  train CONFIG [--dir DIR] [--section.key VALUE ...]   train, or go on; CONFIG is a Python config file or a run's config.json
  sample MODEL [--prompt TEXT] [--temperature 0.8 ...] write text with a trained model; --interactive, --prompt-file FILE --out FILE
  chat MODEL [--system TEXT] [--temperature 0.8 ...]   talk with a model: a run directory, a Hugging Face directory or a .gguf file
  convert SRC DST [--dtype bfloat16 ...]               run, Hugging Face directory or GGUF file to another of them; proves that it is the same
  inspect CONFIG|RUN|PRESET                            parameters, FLOPs and memory, without allocating anything
  plan CONFIG --target v5p:4x4x4 [--fast] [--search]   what a step needs on a machine that is not here: does it fit, how fast, what to change
  scaling fit RUN RUN ... [--predict RUN ...]          the law of loss and compute of small runs, and what it says of a dearer one
  verify [CONFIG|RUN] [--only NAME ...] [--json]       proofs that a config computes what it says, on this machine
  doctor                                               versions, devices, flags, known-bad pairs
"""


def main(args: list[str] | None = None) -> int:
    """Runs one command and gives its exit status: 0; 2 for what the user can mend in a config or
    flag; 1 otherwise."""
    args = sys.argv[1:] if args is None else args
    commands = {
        one.__name__: one
        for one in (train, sample, chat, convert, inspect, plan, scaling, verify, doctor)
    }
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if args[0] not in commands:
        print(
            f"error: {args[0]!r} is not a command.{config.nearest(args[0], commands)} See gptjax"
            " --help.",
            file=sys.stderr,
        )
        return 2
    return guarded(commands[args[0]], args[1:])


def guarded(command: Callable[[list[str]], None], args: list[str]) -> int:
    """Runs a command; an error becomes one line on stderr. `GPTJAX_DEBUG=1` shows the traceback
    too."""
    status, said = _outcome(command, args)
    if processes.several():
        processes.leave(status, said)
    elif said:
        print(said, file=sys.stderr)
    return status


def _outcome(command: Callable[[list[str]], None], args: list[str]) -> tuple[int, str]:
    """Runs a command; gives its exit status and what to say of its error."""
    try:
        command(args)
        return 0, ""
    except SystemExit as stop:  # --help
        return int(stop.code or 0), ""
    except KeyboardInterrupt as interrupt:
        number, said = interrupt.args or (signal.SIGINT, "interrupted")
        return 128 + number, said
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    except Exception as error:
        if os.environ.get("GPTJAX_DEBUG"):
            if not processes.several():
                raise
            traceback.print_exc()
        kind = (
            ""
            if isinstance(error, (ConfigError, FloatingPointError, OSError))
            else f"{type(error).__name__}: "
        )
        hint = "" if isinstance(error, ConfigError) else " (GPTJAX_DEBUG=1 shows where)"
        said = (
            ". ".join([str(error).rstrip("."), *getattr(error, "__notes__", ())])
            if hasattr(error, "__notes__")
            else str(error)
        )
        return (
            2 if isinstance(error, ConfigError) else 1
        ), f"error: {processes.lost(error)}{kind}{' '.join(said.split())}{hint}"


# --- train
# -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainOptions:
    """Flags of `train` beside those of the experiment."""

    dir: str | None = None
    """Run directory; none is runs/NAME for a config file NAME.py, or the directory of the given
    config.json."""
    allow_changes: bool = False
    """Resume even where the experiment differs from the run's own."""
    rollback_to: int | None = None
    """Go on from this step of the run; later ones are moved aside, not deleted."""
    cast: bool = False
    """Resume from a checkpoint whose arrays have other types, rounding them to this
    experiment's."""
    fall_back: bool = True
    """A damaged newest step gives way to the one before it; --no-fall-back ends with its reason
    instead."""
    distributed: bool = False
    """Be one process of several: JAX finds the others on TPU pods, Slurm, GKE and MPI; elsewhere
    give the next three."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 listens and the others find it."""
    num_processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which one this is, from 0."""
    init_timeout: float = 300.0
    """Seconds within which all processes must have come."""
    heartbeat_timeout: int = 100
    """Seconds of silence after which a process counts as dead."""


def train(args: list[str]) -> None:
    """Trains an experiment or resumes a run."""
    from gptjax.train.guard import abrupt

    with abrupt():
        _train(args)


def _train(args: list[str]) -> None:
    chosen = backend.configure()
    path, flags = _positional(
        args,
        "gptjax train CONFIG [flags]",
        "a config file or a run's config.json, for example configs/quickstart.py",
    )
    if path and path.exists() and "--distributed" not in flags:
        print(f"{path}: loading JAX", flush=True)  # which takes seconds
    from gptjax.train.experiment import Experiment

    experiment, home = _experiment(path) if path else (Experiment(), Path("runs/run"))
    options, experiment = config.cli(
        TrainOptions,
        flags,
        prog="gptjax train CONFIG",
        description="Trains an experiment, or goes on where its run stopped.",
        base=experiment,
    )
    if options.distributed:
        together = {
            "init_timeout": options.init_timeout,
            "heartbeat_timeout": options.heartbeat_timeout,
        }
        processes.join(options.coordinator, options.num_processes, options.process, **together)
    else:
        given = [
            name
            for name in ("coordinator", "num_processes", "process")
            if getattr(options, name) is not None
        ]
        require(
            not given,
            f"--{(given or [''])[0].replace('_', '-')} is for a process of several; add"
            " --distributed.",
        )
    from gptjax.train.loop import train as run

    where, resuming = (
        Path(options.dir) if options.dir else home,
        {
            "allow_changes": options.allow_changes,
            "rollback_to": options.rollback_to,
            "cast": options.cast,
            "fall_back": options.fall_back,
        },
    )
    run(experiment, where, **resuming, notes=(_flags_note(chosen),), begun=BEGUN)


def _flags_note(chosen: backend.Choice) -> str:
    return f"{' '.join(chosen.flags)} ({chosen.reason})" if chosen.flags else chosen.reason


def _positional(args: list[str], usage: str, needed: str) -> tuple[Path | None, list[str]]:
    """The first argument, which is not a flag; none when only help is wanted."""
    if args and not args[0].startswith("-"):
        return Path(args[0]), args[1:]
    require(
        "--help" in args or "-h" in args,
        f"{usage}: the first argument is missing; it needs {needed}.",
    )
    return None, args


def _experiment(path: Path) -> tuple[Any, Path]:
    """Reads an experiment, and says in which directory its run lives."""
    from gptjax.train.experiment import Experiment

    if path.is_dir():
        require(
            (path / "config.json").is_file(),
            f"{path} holds no config.json, so it is not a run; give a config file or a run"
            " directory.",
        )
        path = path / "config.json"
    if path.suffix == ".json":
        return config.load(Experiment, path), path.parent
    return config.load_python(Experiment, path), Path("runs") / path.stem


# --- sample
# ------------------------------------------------------------------------------------------------------


def sample(args: list[str]) -> None:
    """Writes text with a trained model."""
    backend.configure()
    from gptjax.cli.sample import GenerateConfig, SampleOptions, run

    path, flags = _positional(
        args,
        "gptjax sample RUN [flags]",
        "a run, a Hugging Face directory or a GGUF file, for example runs/quickstart",
    )
    description = (
        "Writes text with a trained model, streamed to the terminal; or answers a file of prompts"
        " (--prompt-file), or you (--interactive)."
    )
    options, settings = config.cli(
        SampleOptions,
        flags,
        prog="gptjax sample RUN",
        description=description,
        base=GenerateConfig(),
    )
    from gptjax.train.forecast import explained

    with explained():
        run(path, options, settings)


# --- chat
# --------------------------------------------------------------------------------------------------------


def chat(args: list[str]) -> None:
    """Talks with a model."""
    backend.configure()
    from gptjax.cli.chat import ChatOptions, GenerateConfig, run

    path, flags = _positional(
        args,
        "gptjax chat MODEL [flags]",
        "a model: a run directory, a Hugging Face directory or a .gguf file",
    )
    description = (
        "Talks with a model in the terminal; lines that are piped in are answered one by one."
    )
    options, settings = config.cli(
        ChatOptions,
        flags,
        prog="gptjax chat MODEL",
        description=description,
        base=GenerateConfig(new_tokens=512),
    )
    from gptjax.train.forecast import explained

    with explained():
        run(path, options, settings)


# --- convert
# -----------------------------------------------------------------------------------------------------


def convert(args: list[str]) -> None:
    """Writes a model in another format and compares the two; exit status 1 if they differ by more
    than the threshold."""
    backend.configure()
    from gptjax.cli.convert import ConvertOptions
    from gptjax.cli.convert import convert as run

    paths = [arg for arg in args[:2] if not arg.startswith("-")]
    description = (
        "Writes a model in another format, reads it again and compares what both compute. SRC is a"
        " run, a Hugging Face directory, a .gguf or llama2.c file."
    )
    options = config.cli(
        ConvertOptions, args[len(paths) :], prog="gptjax convert SRC DST", description=description
    )
    require(
        len(paths) == 2,
        f"convert has {len(paths)} paths; it needs what to read and what to write: gptjax convert"
        " runs/quickstart exported.",
    )
    if not run(Path(paths[0]), Path(paths[1]), options, functools.partial(print, flush=True)):
        raise SystemExit(1)


# --- inspect, verify and doctor
# ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class InspectOptions:
    """Flags of `inspect`."""

    json: bool = False
    """Print one JSON object."""


def inspect(args: list[str]) -> None:
    """Prints parameters, FLOPs and memory of a config, a run or a preset."""
    path, flags = _positional(
        args,
        "gptjax inspect CONFIG|RUN|PRESET",
        "a config file, a run directory or a preset, for example configs/quickstart.py or"
        " llama-3-8b",
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    options = config.cli(
        InspectOptions,
        flags,
        prog="gptjax inspect CONFIG|RUN|PRESET",
        description="Parameters, FLOPs and memory, without allocating anything.",
    )
    require(
        path is not None, "inspect needs a config file, a run directory or the name of a preset."
    )
    from gptjax.train.overview import overview, table

    facts = overview(
        _experiment(path)[0]
        if path.exists() or path.suffix in (".py", ".json")
        else _of_preset(str(path))
    )
    print(json.dumps(facts, indent=2) if options.json else table(facts))


def _of_preset(name: str) -> Any:
    from gptjax.data import DataConfig, LanguageModel, MaskedLanguageModel, SpanCorruption
    from gptjax.model.presets import preset
    from gptjax.train.experiment import Experiment

    model = preset(name)
    task = (
        LanguageModel()
        if model.continues
        else SpanCorruption()
        if model.encoder_layers
        else MaskedLanguageModel()
    )
    return Experiment(model=model, data=DataConfig(task=task), batch=1)


@dataclass(frozen=True)
class PlanOptions:
    """Flags of `plan` beside those of the experiment."""

    target: str
    """The machine: v5p:4x8x8, 2*v6e:16x16 (two slices), h100:32x8 (hosts × GPUs), cpu:8. Kinds: v4,
    v5e, v5p, v6e, tpu7x, a100, h100, b200, cpu."""
    fast: bool = False
    """Compile with little optimisation: two to five times faster, without time on TPUs."""
    search: bool = False
    """Try meshes, batches and remat, and name the quickest that fit."""
    sampling: bool = False
    """Plan writing text instead of training: cache, largest batch, speed that memory allows."""
    length: int | None = None
    """Tokens of a text, with --sampling; none is the context."""
    json: bool = False
    """Print one JSON object; progress goes to standard error."""


def plan(args: list[str]) -> None:
    """Compiles a config's training step for a machine and says what it needs there; exit status 3
    if that is too much."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # no device is opened, whatever is here
    path, flags = _positional(
        args,
        "gptjax plan CONFIG|RUN|PRESET --target T",
        "a config file, a run directory or a preset, for example configs/gpt2_124m.py",
    )
    from gptjax.train.experiment import Experiment

    experiment = (
        Experiment()
        if path is None
        else (
            _experiment(path)[0]
            if path.exists() or path.suffix in (".py", ".json")
            else _of_preset(str(path))
        )
    )
    options, experiment = config.cli(
        PlanOptions,
        flags,
        prog="gptjax plan CONFIG|RUN|PRESET",
        description=(plan.__doc__ or "").strip(),
        base=experiment,
    )
    from gptjax.plan import command

    if not command.run(experiment, **dataclasses.asdict(options)):
        raise SystemExit(3)


@dataclass(frozen=True)
class ScalingOptions:
    """Flags of `scaling fit`."""

    predict: tuple[str, ...] = ()
    """Finished runs whose loss is predicted and compared; they are not fitted."""
    flops: float | None = None
    """An amount of compute to predict the loss of."""
    json: bool = False
    """Print one JSON object."""


def scaling(args: list[str]) -> None:
    """Fits loss against compute over finished runs, and predicts a dearer one."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    count = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    options = config.cli(
        ScalingOptions,
        args[count:],
        prog="gptjax scaling fit RUN RUN ...",
        description=(scaling.__doc__ or "").strip(),
    )
    require(
        args[:1] == ["fit"],
        f"scaling {' '.join(args[:1])}: there is one thing that it does: gptjax scaling fit RUN RUN"
        " RUN RUN.",
    )
    from gptjax.plan import scaling as law

    found = law.report(law.load(args[1:count]), law.wanted(options.predict, options.flops))
    print(json.dumps(found, indent=2) if options.json else law.text(found))


@dataclass(frozen=True)
class VerifyOptions:
    """Flags of `verify` beside those of the experiment."""

    only: tuple[str, ...] = ()
    """Names of proofs; none runs all."""
    report: str | None = None
    """File of the report, JSON; a text file of the same name stands beside it. None is verify.json
    in the run directory, or here."""
    json: bool = False
    """Print the report as one JSON object; progress goes to standard error."""


def verify(args: list[str]) -> None:
    """Runs the proofs over a config or a run; exit status 1 if one fails."""
    backend.configure()
    from gptjax import verify as proofs
    from gptjax.train.experiment import Experiment

    path, flags = (
        (Path(args[0]), args[1:]) if args and not args[0].startswith("-") else (None, args)
    )
    experiment, home = _experiment(path) if path else (Experiment(), None)
    description = (
        "Proves that a config computes what it says, on this machine. Without CONFIG: the default"
        " of every setting, a model of a million parameters over this Python's own library. Exit"
        " status 0 if all proofs pass, 1 if one fails. Proofs:"
        f" {', '.join(proof.name for proof in proofs.PROOFS)}."
    )
    options, experiment = config.cli(
        VerifyOptions,
        flags,
        prog="gptjax verify [CONFIG|RUN]",
        description=description,
        base=experiment,
    )
    run = home if home and (home / "identity.json").is_file() and path.suffix != ".py" else None
    say = functools.partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    report = proofs.verify(experiment, run=run, only=options.only, say=say)
    file = Path(options.report) if options.report else (run or Path()) / "verify.json"
    proofs.write(file, report)
    say(f"\n{proofs.verdict(report, file)}")
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    if not report["passed"]:
        raise SystemExit(1)


def doctor(args: list[str]) -> None:
    """Prints versions, devices and flags, and what is known to be wrong with them."""
    chosen = backend.configure()
    config.cli(
        DoctorOptions,
        args,
        prog="gptjax doctor",
        description="Versions, devices, flags, known-bad pairs.",
    )
    from gptjax.cli.doctor import diagnose

    lines, sound = diagnose(_flags_note(chosen))
    print("\n".join(lines))
    if not sound:
        raise ConfigError("something above is known not to work; see the lines marked ✗.")


@dataclass(frozen=True)
class DoctorOptions:
    """Flags of `doctor`: none."""


def console() -> None:
    """The `gptjax` console command, and the end of its process.

    Python's own end takes jax's programs and arrays apart, up to a second in which there is nothing
    left to do. What was registered to be done at the end is done, the last of it here.
    """
    status = 1

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)

    atexit.register(leave)  # before jax is imported, so it comes last
    gc.set_threshold(
        100_000
    )  # importing and tracing make a million objects that stay; to look through them every 700 takes half a second
    status = main()
    sys.exit(status)
