"""What a user writes: a Python config file, and flags on the command line.

Read `load_python` and `cli`; both end in the strict parser of `config`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import runpy
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from gptjax.core.config import (
    ConfigError,
    classes_in,
    field_types,
    from_dict,
    nearest,
    require,
    to_dict,
)

T = TypeVar("T")

# --- Python files


def load_python(cls: type[T], path: Path | str, name: str = "experiment") -> T:
    """Runs a Python config file and returns its variable `name`, checked as strictly as JSON.

    Raises:
      ConfigError: the file is absent, fails, or does not define `name` as a `cls`.
    """
    path = Path(path)
    require(
        path.is_file(),
        f"{path} is not there; give a config file, for example configs/quickstart.py.",
    )
    try:
        config = runpy.run_path(str(path)).get(name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # any mistake in the user's file becomes one line
        if isinstance(error, TypeError):
            _explain_type_error(error, path, cls)
        raise ConfigError(
            f"{path} fails in line {_line_in(path, error)} with {type(error).__name__}:"
            f" {' '.join(str(error).split())}."
        ) from error
    require(
        isinstance(config, cls),
        f"{path} must define `{name}`, a {cls.__name__}; it defines {type(config).__name__}.",
    )
    return from_dict(cls, to_dict(config), known=classes_in(config))


def _explain_type_error(error: TypeError, path: Path, cls: type) -> None:
    """Raises a `ConfigError` if the error is an unknown keyword of a config class, or a value of
    the wrong type in one."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        value = frame.f_locals.get("self")
        if frame.f_code.co_name == "__post_init__" and dataclasses.is_dataclass(value):
            for name, hint in field_types(type(value)).items():
                where = f"{path}: {type(value).__name__}'s {name}"
                from_dict(hint, to_dict(getattr(value, name), hint), where)
    unknown = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if unknown:
        kind, keyword = unknown.groups()
        matches = (c for c in _reachable(cls) if c.__name__ == kind)
        fields = [f.name for c in matches for f in dataclasses.fields(c)]
        raise ConfigError(
            f"{path}: {keyword} is not a setting of {kind}.{nearest(keyword, fields)}"
        ) from error


def _line_in(path: Path, error: BaseException) -> str:
    """The line of the user's file in which it failed, with its text."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{frames[-1].lineno} ({frames[-1].line})" if frames else "?"


def _reachable(cls: type) -> set[type]:
    """All dataclasses that a value of `cls` may hold."""
    reached, todo = set(), [cls]
    while todo:
        hint = todo.pop()
        if dataclasses.is_dataclass(hint) and hint not in reached:
            reached.add(hint)
            todo += list(field_types(hint).values())
        todo += [a for a in typing.get_args(hint) if a is not Ellipsis and not isinstance(a, str)]
    return reached


# --- command line


def cli(
    options: type[T], args: list[str], *, prog: str, description: str = "", base: Any = None
) -> Any:
    """Parses flags.

    Args:
      options: a dataclass of the command's own flags.
      args: what the user typed.
      base: a config whose values flags may change too (`--model.num-layers 6`). Classes stay.

    Returns:
      The options; with `base`, the pair (options, changed base).

    Raises:
      ConfigError: an unknown flag (with the nearest right one) or a value of the wrong type.
      SystemExit: `--help` was given, and printed.
    """
    import tyro

    hint: Any = options
    if base is not None:
        unnamed = tyro.conf.arg(name="")
        base_hint = Annotated[tyro.conf.FlagConversionOff[type(base)], unnamed]
        hint = dataclasses.make_dataclass(
            "Command",
            [
                ("options", Annotated[options, unnamed]),
                ("base", base_hint, dataclasses.field(default=base)),
            ],
        )
    hint = tyro.conf.AvoidSubcommands[tyro.conf.FlagCreatePairsOff[hint]]
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            parsed = tyro.cli(hint, args=args, prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        synonyms = getattr(type(base), "SYNONYMS", {})
        raise ConfigError(_one_line(output.getvalue(), synonyms)) from None
    if base is None:
        return parsed
    return parsed.options, from_dict(
        type(base), to_dict(parsed.base), known=classes_in(parsed.base)
    )


def _one_line(box: str, synonyms: Mapping[str, str]) -> str:
    """Turns the box that tyro draws around an error into one line.

    Args:
      synonyms: other names of flags, and their own.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = (line.strip("╭╮╰╯│|+ ") for line in text.splitlines()[1:])  # ASCII where it has to be
    parts = [part for part in re.split(r"[─-]{4,}", " ".join(lines)) if part.strip()]
    flags = re.findall(r"--[\w.-]+", " ".join(parts[1:]).replace("--help", ""))
    message = re.sub(r"\s+", " ", parts[0]).strip(" .")
    unknown = re.match(r"Unrecognized options: (\S+)", message)
    if not unknown:
        return f"{message}; see --help."
    word = unknown[1].rstrip(",")
    if not word.startswith("-"):
        return f"{word!r} was not expected here; flags start with --."
    synonym = synonyms.get(word.removeprefix("--").replace("-", "_"))
    flags = [f"--{synonym.replace('_', '-')}"] if synonym else flags
    close = difflib.get_close_matches(word, flags, n=1, cutoff=0.4) or flags[:1]
    hint = f"Did you mean '{close[0]}'?" if close else "See --help for all flags."
    return f"{word} is not a flag. {hint}"
