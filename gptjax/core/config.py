"""Frozen dataclasses to and from JSON, strictly.

Read in this order: `ConfigError`; `to_dict` and `from_dict`, on which everything else stands;
`Open` and `formerly`, for classes defined elsewhere and for names of earlier versions;
`save_config` and `load_config` (JSON files); `differences`. What a user writes (Python files,
flags) is in `user_config`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

T = TypeVar("T")
Classes = tuple[type, ...]


class ConfigError(Exception):
    """The user asked for something impossible. The message is one line: what was found, what is
    needed, and which flag or edit fixes it."""


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Returns ` Did you mean 'x'?` for the known word most similar to `word`, or an empty
    string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def suggestion(cls: type, key: str, names: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the setting that an unknown key may mean: what the class's
    `SYNONYMS` say, where it has them, else the nearest name."""
    synonym = getattr(cls, "SYNONYMS", {}).get(key)
    return f" Did you mean {synonym!r}?" if synonym else nearest(key, names)


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- classes from elsewhere, and names from earlier versions


class Open:
    """Base of a family of config classes that code outside gptjax may extend.

    A field annotated `A | B | Family`, where `Family` derives from `Open`, also takes any dataclass
    that derives from `Family`. Such a class is read back only by a caller who passes it as `known`:
    reading a file never imports code.
    """


class Former(NamedTuple):
    """How earlier versions wrote a class; see `formerly`."""

    names: tuple[str, ...]
    fields: Mapping[str, str]
    added: tuple[str, ...]
    migrate: Callable[[dict], dict] | None


def formerly(
    *names: str,
    fields: Mapping[str, str] | None = None,
    added: tuple[str, ...] = (),
    migrate: Callable[[dict], dict] | None = None,
) -> Callable[[type[T]], type[T]]:
    """Decorates a config class that earlier versions wrote differently, so that their files load.

    Args:
      names: earlier names of the class, the oldest first.
      fields: earlier name of a field → its present name.
      added: fields that earlier versions did not have. While they hold their defaults,
        `stable_dict` omits them, so that adding a field changes no fingerprint.
      migrate: turns the JSON object of an earlier version into the present form, for changes that
        names cannot express. It sees every object of the class, so it returns present ones as
        they are.
    """

    def decorate(cls: type[T]) -> type[T]:
        cls._former = Former(names, fields or {}, added, migrate)  # type: ignore[attr-defined]
        return cls

    return decorate


def _former(cls: type) -> Former:
    return vars(cls).get("_former", Former((), {}, (), None))  # a subclass does not inherit it


# --- dataclass to and from plain values


def to_dict(config: Any, hint: Any = None) -> Any:
    """Returns plain JSON values. Where a field takes several classes, the object names its class
    under `kind`.

    Args:
      hint: type of the field that holds the value; `None` is the class of the value.
    """
    return _plain(config, hint or type(config), stable=False)


def stable_dict(config: Any) -> Any:
    """Returns `to_dict` under the oldest names, without `added` fields at their defaults.

    Fingerprints are made of it, so that a rename or a new field does not change what a run is.
    """
    return _plain(config, type(config), stable=True)


def _plain(value: Any, hint: Any, stable: bool) -> Any:
    if dataclasses.is_dataclass(value):
        return _plain_dataclass(value, hint, stable)
    if isinstance(value, (tuple, list)):
        inner = typing.get_args(hint) or (Any,)
        fixed = inner[-1] is not Ellipsis and len(inner) == len(value)
        hints = inner if fixed else (inner[0],) * len(value)
        return [_plain(v, h, stable) for v, h in zip(value, hints, strict=True)]
    return value


def _plain_dataclass(value: Any, hint: Any, stable: bool) -> dict:
    cls, hints, kinds = type(value), field_types(type(value)), _kinds(hint)
    former = _former(cls) if stable else Former((), {}, (), None)
    present_to_former = {present: old for old, present in former.fields.items()}
    plain = {}
    if _is_tagged(hint):
        foreign = cls not in kinds and cls.__name__ in {kind.__name__ for kind in kinds}
        require(
            not foreign,
            f"a class is named {cls.__name__} as one of gptjax is, so a saved config would be"
            " ambiguous; rename yours.",
        )
        plain["kind"] = former.names[0] if former.names else cls.__name__
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if field.name not in former.added or inner != _default(field):
            name = present_to_former.get(field.name, field.name)
            plain[name] = _plain(inner, hints[field.name], stable)
    return plain


def from_dict(cls: type[T], data: Any, where: str = "", known: Classes = ()) -> T:
    """The inverse of `to_dict`.

    Args:
      where: dotted path of `data`, for messages.
      known: classes defined outside gptjax that `data` may name.

    Raises:
      ConfigError: an unknown key, a wrong type or an unknown class; names the key, what was found
        and what is needed, with the nearest right name.
    """
    return _parse(cls, data, where, known)


def _parse(hint: Any, value: Any, where: str, known: Classes = ()) -> Any:
    name = where or "the config"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _parse(args[0], value, where, known)
    if hint is Any:
        return value
    if isinstance(value, dict) and (_kinds(hint) or _families(hint)):
        cls = _choose(hint, value, name, known) if _is_tagged(hint) else _kinds(hint)[0]
        return _parse_dataclass(cls, value, where, _is_tagged(hint), known)
    if dataclasses.is_dataclass(hint):
        raise ConfigError(
            f"{name} is {value!r}; it needs an object of {_kinds(hint)[0].__name__}'s fields."
        )
    if origin in (typing.Union, types.UnionType):
        return _parse_union(args, value, where, known)
    if origin is typing.Literal:
        options = ", ".join(repr(a) for a in args)
        if not any(value == a and type(value) is type(a) for a in args):
            hint_text = nearest(value, args) if isinstance(value, str) else ""
            raise ConfigError(f"{name} is {value!r}; it can be {options}.{hint_text}")
        return value
    if origin is tuple:
        require(isinstance(value, (list, tuple)), f"{name} is {value!r}; it needs a list.")
        hints = (args[0],) * len(value) if args[-1] is Ellipsis else args
        require(len(hints) == len(value), f"{name} has {len(value)} values; it needs {len(hints)}.")
        pairs = enumerate(zip(hints, value, strict=True))
        return tuple(_parse(inner, v, f"{where}.{i}", known) for i, (inner, v) in pairs)
    return _parse_scalar(hint, value, name)


def _parse_scalar(hint: Any, value: Any, name: str) -> Any:
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf
    require(
        type(value) is hint,
        f"{name} is {value!r}, {_words(type(value))}; it needs {_words(hint)}.",
    )
    finite = hint is not float or math.isfinite(value)
    require(finite, f"{name} is {value!r}; it needs a finite number.")
    return value


def _parse_union(args: tuple, value: Any, where: str, known: Classes) -> Any:
    if value is None and type(None) in args:
        return None
    options = [a for a in args if a is not type(None) and a not in _families(a)]
    for option in options[:-1]:
        with contextlib.suppress(ConfigError):
            return _parse(option, value, where, known)
    return _parse(options[-1], value, where, known)


def _parse_dataclass(cls: type, value: dict, where: str, tagged: bool, known: Classes) -> Any:
    former, fields = _former(cls), dataclasses.fields(cls)
    given = {k: v for k, v in value.items() if not (tagged and k == "kind")}
    given = former.migrate(given) if former.migrate else given
    given = {former.fields.get(k, k): v for k, v in given.items()}
    names = [field.name for field in fields]
    for key in given:
        if key not in names:  # `nearest` is slow, so it is called only for a wrong key
            path = f"{where}.{key}".lstrip(".")
            raise ConfigError(
                f"{path} is not a setting of {cls.__name__}.{suggestion(cls, key, names)}"
            )
    for field in fields:
        require(
            field.name in given or _default(field) is not dataclasses.MISSING,
            f"{where or 'the config'} lacks {field.name!r}, which {cls.__name__} needs.",
        )
    hints = field_types(cls)
    return cls(
        **{k: _parse(hints[k], v, f"{where}.{k}".lstrip("."), known) for k, v in given.items()}
    )


def _choose(hint: Any, value: dict, name: str, known: Classes) -> type:
    """The class that an object with `kind` names."""
    kinds, families = _kinds(hint), tuple(_families(hint))
    by_name = {former: kind for kind in kinds for former in _former(kind).names}
    by_name |= {kind.__name__: kind for kind in known if families and issubclass(kind, families)}
    by_name |= {kind.__name__: kind for kind in kinds}
    kind = value.get("kind")
    if isinstance(kind, str) and kind in by_name:
        return by_name[kind]
    options = ", ".join(cls.__name__ for cls in kinds)
    close = nearest(str(kind), by_name, cutoff=0.8 if families else 0.5)
    if families and isinstance(kind, str) and not close:
        raise ConfigError(
            f"{name}.kind is {kind!r}, which is not a class of gptjax ({options}); use the Python"
            f" config file that defines {kind}, or pass known=({kind},) to load_config."
        )
    raise ConfigError(f"{name}.kind is {kind!r}; it can be {options}.{close}")


def _options(hint: Any) -> tuple:
    if typing.get_origin(hint) is Annotated:
        return _options(typing.get_args(hint)[0])
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _kinds(hint: Any) -> list[type]:
    """The dataclasses that `hint` names."""
    return [
        option
        for option in _options(hint)
        if isinstance(option, type) and dataclasses.is_dataclass(option)
    ]


def _families(hint: Any) -> list[type]:
    """The open families that `hint` names."""
    return [
        option
        for option in _options(hint)
        if isinstance(option, type) and issubclass(option, Open) and option not in _kinds(option)
    ]


def _is_tagged(hint: Any) -> bool:
    """Whether an object has to name its class under `kind`."""
    return len(_kinds(hint)) > 1 or bool(_families(hint))


def classes_in(config: Any) -> Classes:
    """Returns the dataclasses that a config holds: `known`, for reading it back."""
    if isinstance(config, (tuple, list)):
        return tuple(cls for value in config for cls in classes_in(value))
    if not dataclasses.is_dataclass(config):
        return ()
    values = tuple(getattr(config, field.name) for field in dataclasses.fields(config))
    return (type(config), *classes_in(values))


def field_types(cls: type) -> dict[str, Any]:
    """Returns the type of each field of a config class."""
    return typing.get_type_hints(cls, include_extras=True)


def _default(field: dataclasses.Field) -> Any:
    """The default of a field, or MISSING."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _words(kind: Any) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true/false",
        type(None): "null",
        list: "a list",
        dict: "an object",
    }
    return words.get(kind, str(kind))


# --- files


def save_config(path: Path | str, config: Any) -> None:
    """Writes the whole resolved config as JSON."""
    text = json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n"
    Path(path).write_text(text, encoding="utf-8")


def load_config(cls: type[T], path: Path | str, known: Classes = ()) -> T:
    """Reads a config that `save_config` wrote, by this version or an earlier one. Executes nothing.

    Args:
      known: classes defined outside gptjax that the file may name.

    Raises:
      ConfigError: the file is absent, is not JSON, has a duplicate key, or does not fit `cls`.
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
        return from_dict(cls, data, known=known)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        require(key not in seen, f"duplicate key {key!r}; keep one of them.")
        seen[key] = value
    return seen


def _no_constant(word: str) -> Any:
    raise ConfigError(f"{word} is not a JSON number; write a finite one.")


# --- comparison


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Returns `{dotted field: (old, new)}` for every value in which two configs differ."""
    a, b = dict(flat_settings(to_dict(old))), dict(flat_settings(to_dict(new)))
    keys = [*a, *(key for key in b if key not in a)]
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def flat_settings(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted field and value of everything in a plain config."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat_settings(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        for i, inner in enumerate(value):
            yield from flat_settings(inner, f"{where}.{i}")
    else:
        yield where, value
