"""What the commands that talk with a person share: lines that are remembered, settings that a line
of flags changes, speed."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.cli.model_settings import with_key
from gptjax.core import config, user_config
from gptjax.core.config import ConfigError, require
from gptjax.generate import GenerateConfig


class Speed:
    """Counts tokens against the clock, and says so on standard error."""

    def __init__(self, shown: bool) -> None:
        self._shown, self._begun, self._first, self._tokens = shown, time.monotonic(), None, 0
        self._lives = shown and sys.stderr.isatty() and not sys.stdout.isatty()

    def __call__(self, tokens: int) -> None:
        """Takes note that there are so many tokens now."""
        self._tokens = tokens
        if self._first is None:
            self._first = time.monotonic() - self._begun
        if self._lives:
            print(f"\r{self._line()}\x1b[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Says the last word."""
        if self._shown:
            print(f"{chr(13) if self._lives else ''}{self._line()}", file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds, first = time.monotonic() - self._begun, self._first
        said = f"{self._tokens} tokens in {seconds:.2f} s"
        if first is None or self._tokens < 2:
            return said
        return (
            f"{said}, the first after {first:.2f} s, then"
            f" {(self._tokens - 1) / max(seconds - first, 1e-9):.1f} tokens/s"
        )


@dataclass(frozen=True)
class NoOptions:
    """A line that has no flags but those of the generator."""


def changed(
    options: type,
    settings: GenerateConfig,
    line: str,
    check: Callable[[GenerateConfig], None] | None = None,
) -> tuple[Any, GenerateConfig]:
    """Gives the flags of a line: those of `options`, and the settings with what it changes, which
    is printed.

    Args:
      check: raises where the new settings cannot be used.

    Raises:
      ConfigError: a flag is unknown, or asks for what can't be streamed.
    """
    try:
        found, new = user_config.cli(
            options, shlex.split(line), prog="", description="Settings.", base=settings
        )
    except ValueError as error:
        raise ConfigError(f"{error}; close it.") from None
    except SystemExit:  # --help
        return options(), settings
    require(
        streams(new), "beams, several samples and best_of can't be streamed; leave them away here."
    )
    new = with_key(new)
    if check:
        check(new)
    for name, (old, value) in config.differences(settings, new).items():
        shown = "" if name == "watermark" else f": {old} → {value}"  # it is a secret
        print(f"{name}{shown or ' changed'}")
    return found, new


def streams(s: GenerateConfig) -> bool:
    """Whether there is one answer, which grows from left to right."""
    return s.beams == 1 and (s.best_of or s.num_samples) == 1


@contextlib.contextmanager
def remembered_lines() -> Iterator[None]:
    """Keys for editing and the lines of earlier sessions, where the terminal can."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = (
        Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
        / "gptjax"
        / "history"
    )
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
