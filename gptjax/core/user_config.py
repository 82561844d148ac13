"""What a user writes: a Python config file, and flags on the command line.

Read `load_python`, `relocated` and `cli`; all end in the strict parser of `config`. A flag changes
a value (`--optim.peak 0.1`) or, where a field takes several classes, chooses one (`--optim sgd`).
A file may define a function of its own flags in place of a config (`load_with_flags`).
`load_function` is for settings that name a function of the user.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import io
import os
import pkgutil
import re
import runpy
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from gptjax.core.class_flags import choose_kinds, class_choices, split_flag
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


def load_python(
    cls: type[T], path: Path | str, name: str = "experiment", absent: T | None = None
) -> T:
    """Runs a Python config file and returns its variable `name`, checked as strictly as JSON.

    Args:
      absent: what a file stands for that does not define the variable; `None` refuses it.

    Raises:
      ConfigError: the file is absent, fails, or does not define `name` as a `cls`.
    """
    return load_with_flags(cls, path, [], name, absent)[0]


def load_with_flags(
    cls: type[T], path: Path | str, flags: list[str], name: str = "experiment", absent: Any = None
) -> tuple[T, list[str]]:
    """Like `load_python`, where the variable may also be a function that returns a `cls`: its
    parameters (`depth: int = 4`) are flags (`--depth 8`).

    Returns:
      The config, and the flags that are not the function's.

    Raises:
      ConfigError: as `load_python`; a parameter has no type or no value, or a wrong one.
    """
    path = Path(path)
    require(
        path.is_file(),
        f"{path} is not there; give a config file, for example configs/quickstart.py.",
    )
    config = _run(path, cls).get(name, absent)
    if inspect.isfunction(config):
        given, flags = _given(config, flags, path)
        with _in_one_line(path, cls):
            config = config(**given)
    require(
        isinstance(config, cls),
        f"{path} must define `{name}`, a {cls.__name__} or a function that returns one; it gives"
        f" {type(config).__name__}.",
    )
    return from_dict(cls, to_dict(config), known=classes_in(config)), flags


def _given(function: Callable[..., Any], flags: list[str], path: Path) -> tuple[dict, list[str]]:
    """Returns the arguments of a config's function that flags give, and the other flags; of
    `--help` the function's own is printed."""
    hints, parameters = typing.get_type_hints(function), inspect.signature(function).parameters
    for parameter in parameters:
        require(
            parameter in hints,
            f"{path}: {parameter} of {function.__name__} has no type; write"
            f" {parameter}: int = 1, so that --{parameter.replace('_', '-')} is read rightly.",
        )
    own, rest, mine = [], [], False
    for word in (word for flag in flags for word in split_flag(flag)):
        if word.startswith("--"):
            mine = word.removeprefix("--").replace("-", "_") in parameters
        elif mine and not own[-1].startswith("--"):
            raise ConfigError(
                f"{path}: {word} is one value too many; a flag of a config file's own takes one, so"
                " run the command once for each."
            )
        (own if mine else rest).append(word)
    fields = [
        (each.name, hints[each.name])
        if each.default is each.empty
        else (each.name, hints[each.name], dataclasses.field(default=each.default))
        for each in parameters.values()
    ]
    kind = dataclasses.make_dataclass("Given", fields, frozen=True, kw_only=True)
    about = {"prog": str(path), "description": inspect.getdoc(function) or "Flags of the file."}
    if asks_for_help(rest):
        with contextlib.suppress(SystemExit):
            cli(kind, ["--help"], **about)
    return dict(vars(cli(kind, own, **about))), rest


def function_file(name: str) -> Path:
    """Returns the file of a function that is named as FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.

    Raises:
      ConfigError: the name has another form, or there is no such file.
    """
    where, _, function = name.rpartition(":")
    require(
        bool(where) and function.isidentifier(),
        f"{name!r} does not name a function; write FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.",
    )
    file = Path(where)
    if not where.endswith(".py"):
        with contextlib.suppress(ImportError, ValueError):
            found = importlib.util.find_spec(where)
            file = Path(found.origin) if found and found.origin else file
    require(
        file.is_file(),
        f"{where} is not there, so {function} can't be loaded from it; give a Python file"
        " (FILE.py:FUNCTION) or a module of an installed package.",
    )
    return file


def load_function(name: str) -> Callable[..., Any]:
    """Runs the file of a function, or imports its module, and returns the function.

    Raises:
      ConfigError: there is no such file, it fails, or it does not define the function.
    """
    file = function_file(name)
    where, _, function = name.rpartition(":")
    try:
        names = _run(file) if where.endswith(".py") else vars(pkgutil.resolve_name(where))
    except ImportError as error:
        raise ConfigError(f"{where} can't be imported: {error}; install what it needs.") from error
    require(
        callable(names.get(function)),
        f"{where} has no function {function!r}.{nearest(function, names)}",
    )
    return names[function]


def _run(path: Path, cls: type | None = None) -> dict[str, Any]:
    """The variables of a Python file after it has run; any mistake in it becomes one line.

    Args:
      cls: a config class whose misuses are explained.
    """
    with _in_one_line(path, cls):
        return runpy.run_path(str(path))


@contextlib.contextmanager
def _in_one_line(path: Path, cls: type | None) -> Iterator[None]:
    """Turns any mistake in a Python file into one line that names the place."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, TypeError) and cls is not None:
            _explain_type_error(error, path, cls)
        raise ConfigError(
            f"{path} fails in line {_line_in(path, error)} with {type(error).__name__}:"
            f" {' '.join(str(error).split())}."
        ) from error


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


PLACES = ("path", "held_out", "run", "start", "files", "folder")
"""Fields of configs that name a file or a folder, or several."""


def relocated(config: T, folders: Iterable[Path]) -> T:
    """Returns a config whose relative paths that are not here are taken against the first of the
    folders that has them: that of the config file, or where the run was first started."""
    folders = list(folders)

    def place(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(place(part) for part in value)
        if not isinstance(value, str) or not value or Path(value).exists():
            return value
        return next((str(f / value) for f in folders if (f / value).exists()), value)

    def walk(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(walk(part) for part in value)
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        old = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        new = {name: place(v) if name in PLACES else walk(v) for name, v in old.items()}
        changes = {name: v for name, v in new.items() if v != old[name]}
        return dataclasses.replace(value, **changes) if changes else value

    return walk(config)


# --- command line


def asks_for_help(flags: Iterable[str]) -> bool:
    """Whether `--help` or `-h` is among the flags."""
    return not {"-h", "--help"}.isdisjoint(flags)


def cli(
    options: type[T], args: list[str], *, prog: str, description: str = "", base: Any = None
) -> Any:
    """Parses flags.

    Args:
      options: a dataclass of the command's own flags.
      args: what the user typed.
      base: a config that flags may change too: its values (`--model.num-layers 6`), and the class
        of a field that takes several (`--optim sgd`), which then has its defaults.

    Returns:
      The options; with `base`, the pair (options, changed base).

    Raises:
      ConfigError: an unknown flag (with the nearest right one) or a value of the wrong type.
      SystemExit: `--help` was given, and printed.
    """
    if not args and _complete(options):  # tyro takes a quarter of a second
        return options() if base is None else (options(), base)
    import tyro

    hint: Any = options
    if base is not None:
        base, args = choose_kinds(base, args)
        if asks_for_help(args) and (choices := "\n".join(class_choices(type(base)))):
            description += f"\n\nclasses by flag:\n{choices}"
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
        with contextlib.redirect_stderr(output), _readable_help(args):
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


@contextlib.contextmanager
def _readable_help(args: list[str]) -> Iterator[None]:
    """Mends two things of tyro's help: colours in spite of NO_COLOR, and docstrings whose lines
    stay apart, since they are joined while they are still indented."""
    if not asks_for_help(args):
        yield
        return
    from tyro import _strings

    joined = _strings.remove_single_line_breaks
    _strings.remove_single_line_breaks = lambda text: joined(inspect.cleandoc(text))
    shown = io.StringIO()  # no terminal, so tyro does not colour it
    plain = contextlib.redirect_stdout(shown) if os.environ.get("NO_COLOR") else None
    try:
        with plain or contextlib.nullcontext():
            yield
    finally:
        _strings.remove_single_line_breaks = joined
        sys.stdout.write(shown.getvalue())


def _complete(cls: type) -> bool:
    """Every field of a dataclass has a default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(cls)
    return all(f.default is not missing or f.default_factory is not missing for f in fields)


WORDS = {
    r"invalid literal for int\(\) with base 10": "a whole number",
    "could not convert string to float": "a number",
}
"""How Python refuses a value, and what it should be."""


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
        for words, kind in WORDS.items():
            message = re.sub(
                rf"Error parsing (\S+): {words}: (.*)", rf"\1 is \2, not {kind}", message
            )
        return f"{message}; see --help."
    word = unknown[1].rstrip(",")
    if not word.startswith("-"):
        return f"{word!r} was not expected here; flags start with --."
    synonym = synonyms.get(word.removeprefix("--").replace("-", "_"))
    flags = [f"--{synonym.replace('_', '-')}"] if synonym else flags
    close = difflib.get_close_matches(word, flags, n=1, cutoff=0.4) or flags[:1]
    hint = f"Did you mean '{close[0]}'?" if close else "See --help for all flags."
    return f"{word} is not a flag. {hint}"
