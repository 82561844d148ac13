"""The `gptjax` command: chooses a subcommand, reports its errors in one line, ends the process.

Each subcommand has a file of its own beside this one. jax is imported only after the XLA flags of
the CPU are set, so subcommands import what needs it inside their functions.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from gptjax import __version__
from gptjax.cli.arguments import first_path
from gptjax.cli.card import card_command
from gptjax.cli.doctor import doctor_command
from gptjax.cli.evaluate import evaluate_command
from gptjax.cli.harness import harness_command
from gptjax.cli.help import USAGE, completion_command, example_of
from gptjax.cli.inspect import inspect_command
from gptjax.cli.look import look_command
from gptjax.cli.plan import plan_command
from gptjax.cli.private import private_command
from gptjax.cli.probe import probe_command
from gptjax.cli.process import GARBAGE_THRESHOLD, keep_freed_memory, leave_quickly
from gptjax.cli.scaling import scaling_command
from gptjax.cli.score import score_command
from gptjax.cli.sweep import sweep_command
from gptjax.cli.train import train_command
from gptjax.cli.transcribe import transcribe_command
from gptjax.cli.verify import verify_command
from gptjax.cli.watermark import watermark_command
from gptjax.core import backend, config, processes, remote, user_config
from gptjax.core.config import ConfigError, require


def main(args: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status: 0; 2 for an error that the user can mend in
    a config or flag; 1 for any other."""
    args = sys.argv[1:] if args is None else args
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": train_command,
        "sweep": sweep_command,
        "private": private_command,
        "sample": _sample_command,
        "chat": _chat_command,
        "serve": _serve_command,
        "evaluate": evaluate_command,
        "probe": probe_command,
        "look": look_command,
        "card": card_command,
        "lm-eval": harness_command,
        "detect-watermark": watermark_command,
        "score": score_command,
        "clean": _clean_command,
        "transcribe": transcribe_command,
        "convert": _convert_command,
        "inspect": inspect_command,
        "plan": plan_command,
        "scaling": scaling_command,
        "verify": verify_command,
        "doctor": doctor_command,
        "completion": completion_command,
    }
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if args == ["--version"]:
        print(f"gptjax {__version__}")
        return 0
    if args[0] not in commands:
        nearest = config.nearest(args[0], commands)
        print(
            f"error: {args[0]!r} is not a command.{nearest} See gptjax --help.",
            file=sys.stderr,
        )
        return 2

    def with_example(flags: list[str]) -> None:
        try:
            commands[args[0]](flags)
        except SystemExit as stop:
            if stop.code:
                raise
        if user_config.asks_for_help(flags):
            print(f"\n{example_of(args[0])}")

    return guarded(with_example, args[1:])


def guarded(command: Callable[[list[str]], None], args: list[str]) -> int:
    """Runs a subcommand and returns its exit status; an error becomes one line on stderr.
    `GPTJAX_DEBUG=1` shows the traceback too."""
    status, message = _outcome(command, args)
    if processes.several():
        processes.leave(status, message)
    elif message:
        print(message, file=sys.stderr)
    return status


def _outcome(command: Callable[[list[str]], None], args: list[str]) -> tuple[int, str]:
    """Runs a subcommand; returns its exit status and the line that reports its error."""
    try:
        command(args)
        return 0, ""
    except SystemExit as stop:  # --help
        return int(stop.code or 0), ""
    except KeyboardInterrupt as interrupt:
        number, message = interrupt.args or (signal.SIGINT, "interrupted")
        return 128 + number, message
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    except Exception as error:
        if os.environ.get("GPTJAX_DEBUG"):
            if not processes.several():
                raise
            traceback.print_exc()
        return 2 if isinstance(error, ConfigError) else 1, _error_line(error)


def _error_line(error: Exception) -> str:
    """The message of an error in one line, with its notes and, if it is unexpected, its type."""
    expected = isinstance(error, ConfigError | FloatingPointError | OSError)
    kind = "" if expected else f"{type(error).__name__}: "
    hint = "" if isinstance(error, ConfigError) else " (GPTJAX_DEBUG=1 shows where)"
    notes = [one for one in getattr(error, "__notes__", ()) if not one.startswith("-----")]  # JAX's
    message = ". ".join([str(error).rstrip("."), *notes]) if notes else str(error)
    return f"error: {processes.lost(error)}{kind}{' '.join(message.split())}{hint}"


def _sample_command(args: list[str]) -> None:
    """Generates text with a trained model."""
    backend.configure()
    from gptjax.cli.adapters import gather_flag
    from gptjax.cli.model_settings import settings_of, with_key
    from gptjax.cli.sample import GenerateConfig, SampleOptions, run_sample

    path, flags = first_path(
        args,
        "gptjax sample MODEL [flags]",
        "a run, a Hugging Face directory or a GGUF file, for example runs/quickstart",
    )
    options, settings = user_config.cli(
        SampleOptions,
        gather_flag(flags, "--adapter"),
        prog="gptjax sample MODEL",
        description="Generates text with a trained model, streamed to the terminal; or answers a"
        " file of prompts (--prompt-file), or you (--interactive).",
        base=settings_of(path, GenerateConfig()),
    )
    from gptjax.train.forecast import explained

    with explained():
        run_sample(path, options, with_key(settings))


def _chat_command(args: list[str]) -> None:
    """Talks with a model."""
    backend.configure()
    from gptjax.cli.adapters import gather_flag
    from gptjax.cli.chat import ChatOptions, GenerateConfig, run_chat
    from gptjax.cli.model_settings import settings_of, with_key

    path, flags = first_path(
        args,
        "gptjax chat MODEL [flags]",
        "a model: a run directory, a Hugging Face directory or a .gguf file",
    )
    options, settings = user_config.cli(
        ChatOptions,
        gather_flag(flags, "--adapter"),
        prog="gptjax chat MODEL",
        description="Talks with a model in the terminal; piped lines are answered one by one.",
        base=settings_of(path, GenerateConfig(new_tokens=512)),
    )
    from gptjax.train.forecast import explained

    with explained():
        run_chat(path, options, with_key(settings))


def _serve_command(args: list[str]) -> None:
    """Serves a model until a signal ends it; exits with status 1 if its engine failed."""
    backend.configure()
    from gptjax.cli.adapters import gather_flag
    from gptjax.cli.serve import ServeOptions, run_serve

    usage = "gptjax serve MODEL [flags]"
    needed = "a model: a run directory, a Hugging Face directory or a .gguf file"
    path, flags = first_path(args, usage, needed)
    for flag in ("--adapter", "--allow-origin", "--allow-host"):
        flags = gather_flag(flags, flag)
    options = user_config.cli(
        ServeOptions,
        flags,
        prog="gptjax serve MODEL",
        description="Serves a model over HTTP, as OpenAI's clients speak it, with a page to talk to"
        " it. Only this machine can reach it unless --host says otherwise.",
    )
    if path is None:
        raise ConfigError(f"{usage}: it needs {needed}.")
    from gptjax.train.forecast import explained

    with explained():
        status = run_serve(path, options)
    if status:
        raise SystemExit(status)


def _clean_command(args: list[str]) -> None:
    """Cleans training text."""
    from gptjax.cli.clean import clean_command  # its flags are made of the settings in `data`

    clean_command(args)


def _convert_command(args: list[str]) -> None:
    """Writes a model in another format and compares the two; exits with status 1 if they differ by
    more than the threshold."""
    backend.configure()
    from gptjax.cli.convert import ConvertOptions, convert

    paths = [arg for arg in args[:2] if not arg.startswith("-")]
    options = user_config.cli(
        ConvertOptions,
        args[len(paths) :],
        prog="gptjax convert SRC DST",
        description="Writes a model in another format, reads it again and compares what both"
        " compute. SRC is a run, a Hugging Face directory, a .gguf or llama2.c file.",
    )
    require(
        len(paths) == 2,
        f"convert has {len(paths)} paths; it needs what to read and what to write: gptjax convert"
        " runs/quickstart exported.",
    )
    remote.require_local(paths[1], "a converted model")
    if not convert(Path(paths[0]), Path(paths[1]), options, functools.partial(print, flush=True)):
        raise SystemExit(1)


def console() -> None:
    """The `gptjax` console script: runs `main` in a process of its own, changed as
    `gptjax/cli/process.py` says."""
    status = leave_quickly()
    gc.set_threshold(GARBAGE_THRESHOLD)
    keep_freed_memory()
    status.value = main()
    sys.exit(status.value)
