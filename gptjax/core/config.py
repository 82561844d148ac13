"""Frozen dataclass ↔ JSON ↔ command line, strictly.

Read in this order: `ConfigError`; `to_dict`, `from_dict` (the strict pair on which all else
stands); `save`, `load` (JSON files); `load_python` (a config file); `cli` (flags over a default);
`differences` (two configs compared).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import math
import re
import runpy
import traceback
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

T = TypeVar("T")


class ConfigError(Exception):
    """Something the user wrote can't be used. The message is one line: what was found, what is
    needed, what mends it."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Gives ` Did you mean 'x'?` for the known word that looks most like `word`, or an empty
    string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


# --- dataclass ↔ plain values
# ------------------------------------------------------------------------------------


def to_dict(config: Any) -> Any:
    """Gives plain JSON values. A dataclass that stands where several kinds may stand carries its
    class name as `kind`."""
    return _plain(config, type(config))


def _plain(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value):
        hints = _hints(type(value))
        plain = {
            f.name: _plain(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)
        }
        return {"kind": type(value).__name__, **plain} if len(_kinds(hint)) > 1 else plain
    if isinstance(value, (tuple, list)):
        inner = typing.get_args(hint) or (Any,)
        hints = (
            inner
            if inner[-1] is not Ellipsis and len(inner) == len(value)
            else (inner[0],) * len(value)
        )
        return [_plain(v, h) for v, h in zip(value, hints, strict=True)]
    return value


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """The inverse of `to_dict`: unknown keys, wrong types and unknown kinds are refused by name.

    Raises:
      ConfigError: says the key, what was found and what is needed, with the nearest right name.
    """
    return _parse(cls, data, where)


def _parse(hint: Any, value: Any, where: str) -> Any:
    name = where or "the config"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _parse(args[0], value, where)
    if hint is Any:
        return value
    kinds = _kinds(hint)
    if kinds and isinstance(value, dict):
        return _parse_dataclass(_choose(kinds, value, name), value, where, len(kinds) > 1)
    if dataclasses.is_dataclass(hint):
        raise ConfigError(f"{name} is {value!r}; it needs an object of {hint.__name__}'s fields.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        for option in rest[:-1]:
            with contextlib.suppress(ConfigError):
                return _parse(option, value, where)
        return _parse(rest[-1], value, where)
    if origin is typing.Literal:
        options = ", ".join(repr(a) for a in args)
        if not any(value == a and type(value) is type(a) for a in args):
            raise ConfigError(
                f"{name} is {value!r}; it can be"
                f" {options}.{nearest(value, args) if isinstance(value, str) else ''}"
            )
        return value
    if origin is tuple:
        require(isinstance(value, (list, tuple)), f"{name} is {value!r}; it needs a list.")
        hints = (args[0],) * len(value) if args[-1] is Ellipsis else args
        require(len(hints) == len(value), f"{name} has {len(value)} values; it needs {len(hints)}.")
        return tuple(
            _parse(h, v, f"{where}.{i}") for i, (h, v) in enumerate(zip(hints, value, strict=True))
        )
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf
    require(
        type(value) is hint,
        f"{name} is {value!r}, a {_words(type(value))}; it needs {_words(hint, article=True)}.",
    )
    require(
        hint is not float or math.isfinite(value), f"{name} is {value!r}; it needs a finite number."
    )
    return value


def _parse_dataclass(cls: type, value: dict, where: str, tagged: bool) -> Any:
    hints, known = _hints(cls), [f.name for f in dataclasses.fields(cls)]
    given = {k: v for k, v in value.items() if not (tagged and k == "kind")}
    for key in given:
        if key not in known:  # to look for the nearest takes time
            raise ConfigError(
                f"{f'{where}.{key}'.lstrip('.')} is not a setting of"
                f" {cls.__name__}.{nearest(key, known)}"
            )
    for f in dataclasses.fields(cls):
        optional = (
            f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        )
        require(
            f.name in given or optional,
            f"{where or 'the config'} lacks {f.name!r}, which {cls.__name__} needs.",
        )
    return cls(**{k: _parse(hints[k], v, f"{where}.{k}".lstrip(".")) for k, v in given.items()})


def _choose(kinds: list[type], value: dict, name: str) -> type:
    if len(kinds) == 1:
        return kinds[0]
    by_name = {k.__name__: k for k in kinds}
    kind = value.get("kind")
    require(
        isinstance(kind, str) and kind in by_name,
        f"{name}.kind is {kind!r}; it can be {', '.join(by_name)}.{nearest(str(kind), by_name)}",
    )
    return by_name[kind]


def _kinds(hint: Any) -> list[type]:
    """The dataclasses that may stand at `hint`."""
    if typing.get_origin(hint) is Annotated:
        return _kinds(typing.get_args(hint)[0])
    options = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )
    return [o for o in options if dataclasses.is_dataclass(o)]


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _words(kind: Any, article: bool = False) -> str:
    word = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "true/false",
        type(None): "null",
        list: "list",
        dict: "object",
    }.get(kind, str(kind))
    return f"a {word}" if article and kind is not str else word


# --- files
# -------------------------------------------------------------------------------------------------------


def save(path: Path | str, config: Any) -> None:
    """Writes the whole resolved config as JSON."""
    Path(path).write_text(
        json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def load(cls: type[T], path: Path | str) -> T:
    """Reads a config that `save` wrote. Nothing in the file is executed.

    Raises:
      ConfigError: the file is absent, is not JSON, has a key twice, or does not fit `cls`.
    """
    path = Path(path)
    require(path.is_file(), f"{path} is not there; give a config file or a run's config.json.")
    try:
        data = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not JSON: {error}. Restore it, or start from a config file again."
        ) from None
    try:
        return from_dict(cls, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        require(key not in seen, f"the key {key!r} stands twice; keep one of them.")
        seen[key] = value
    return seen


def _no_constant(word: str) -> Any:
    raise ConfigError(f"{word} is not a JSON number; write a finite one.")


def load_python(cls: type[T], path: Path | str, name: str = "experiment") -> T:
    """Runs a Python config file and gives its variable `name`, checked as strictly as JSON.

    Raises:
      ConfigError: the file is absent, fails, or does not define `name` as a `cls`.
    """
    path = Path(path)
    require(
        path.is_file(),
        f"{path} is not there; give a config file, for example configs/quickstart.py.",
    )
    try:
        found = runpy.run_path(str(path)).get(name)
    except ConfigError:
        raise
    except TypeError as error:
        _blame_type(error, path)
        unknown = re.search(
            r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
        )
        if not unknown:
            raise ConfigError(
                f"{path} fails in line {_line_in(path, error)} with TypeError:"
                f" {' '.join(str(error).split())}."
            ) from error
        kinds = {k.__name__: k for k in _reachable(cls)}
        fields = (
            [f.name for f in dataclasses.fields(kinds[unknown[1]])] if unknown[1] in kinds else []
        )
        raise ConfigError(
            f"{path}: {unknown[2]} is not a setting of {unknown[1]}.{nearest(unknown[2], fields)}"
        ) from error
    except (
        Exception,
        SystemExit,
    ) as error:  # whatever the user's file does wrong is theirs to read, in one line
        raise ConfigError(
            f"{path} fails in line {_line_in(path, error)} with {type(error).__name__}:"
            f" {' '.join(str(error).split())}."
        ) from error
    require(
        isinstance(found, cls),
        f"{path} must define `{name}`, a {cls.__name__}; it defines {type(found).__name__}.",
    )
    return from_dict(cls, to_dict(found))


def _blame_type(error: TypeError, path: Path) -> None:
    """Where a dataclass's own checks failed over a value of a wrong type, says which setting holds
    it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        value = frame.f_locals.get("self")
        if frame.f_code.co_name == "__post_init__" and dataclasses.is_dataclass(value):
            for name, hint in _hints(type(value)).items():
                _parse(
                    hint,
                    _plain(getattr(value, name), hint),
                    f"{path}: {type(value).__name__}'s {name}",
                )


def _line_in(path: Path, error: BaseException) -> str:
    """The line of the user's file in which it failed, with its text."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{frames[-1].lineno} ({frames[-1].line})" if frames else "?"


def _reachable(cls: type) -> set[type]:
    """All dataclasses that a value of `cls` may hold."""
    found, todo = set(), [cls]
    while todo:
        hint = todo.pop()
        if dataclasses.is_dataclass(hint) and hint not in found:
            found.add(hint)
            todo += list(_hints(hint).values())
        todo += [a for a in typing.get_args(hint) if a is not Ellipsis and not isinstance(a, str)]
    return found


# --- command line
# ------------------------------------------------------------------------------------------------


def cli(
    options: type[T], args: list[str], *, prog: str, description: str = "", base: Any = None
) -> Any:
    """Reads flags.

    Args:
      options: a dataclass of the command's own flags.
      args: what the user typed.
      base: a config whose values flags may change too (`--model.num-layers 6`). Kinds stay as they
        are.

    Returns:
      The options; with `base`, the pair (options, changed base).

    Raises:
      ConfigError: an unknown flag (with the nearest right one) or a value of a wrong type.
      SystemExit: `--help` was asked for, which is printed.
    """
    import tyro

    hint: Any = options
    if base is not None:
        fields = [("options", Annotated[options, tyro.conf.arg(name="")], dataclasses.MISSING)]
        fields += [
            (
                "base",
                Annotated[tyro.conf.FlagConversionOff[type(base)], tyro.conf.arg(name="")],
                base,
            )
        ]
        hint = dataclasses.make_dataclass(
            "Command",
            [
                (n, h) if d is dataclasses.MISSING else (n, h, dataclasses.field(default=d))
                for n, h, d in fields
            ],
        )
    hint = tyro.conf.AvoidSubcommands[tyro.conf.FlagCreatePairsOff[hint]]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(hint, args=args, prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_line(said.getvalue(), args)) from None
    if base is None:
        return parsed
    return parsed.options, from_dict(type(base), to_dict(parsed.base))


def _one_line(box: str, args: list[str]) -> str:
    """tyro draws a box; we say one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = (
        line.strip("╭╮╰╯│|+ ") for line in text.splitlines()[1:]
    )  # tyro draws with ASCII where the terminal needs it
    parts = [part for part in re.split(r"[─-]{4,}", " ".join(lines)) if part.strip()]
    flags = re.findall(r"--[\w.-]+", " ".join(parts[1:]).replace("--help", ""))
    message = re.sub(r"\s+", " ", parts[0]).strip(" .")
    unknown = re.match(r"Unrecognized options: (\S+)", message)
    if unknown:
        word = unknown[1].rstrip(",")
        close = difflib.get_close_matches(word, flags, n=1, cutoff=0.4) or flags[:1]
        hint = f" Did you mean '{close[0]}'?" if close else " See --help for all flags."
        return (
            f"{word} is not a flag.{hint}"
            if word.startswith("-")
            else f"{word!r} was not expected here; flags start with --."
        )
    return f"{message}; see --help."


# --- comparison
# --------------------------------------------------------------------------------------------------


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Gives `{dotted field: (old, new)}` for every value in which two configs differ."""
    return {
        key: (a.get(key), b.get(key))
        for a, b in [(dict(_flat(to_dict(old))), dict(_flat(to_dict(new))))]
        for key in list(a) + [k for k in b if k not in a]
        if a.get(key) != b.get(key)
    }


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{where}.{i}")
    else:
        yield where, value
