"""Flags that choose a class: `--optim sgd` where a field takes several.

Read `choose_kinds`, which `user_config.cli` asks before it parses what is left.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from gptjax.core.config import classes_in, field_types, from_dict, nearest, require, to_dict


def choose_kinds(base: Any, args: list[str]) -> tuple[Any, list[str]]:
    """Returns `base` with the classes that flags name, and the other flags.

    A required field of a new class keeps the value that the old one has under its name; otherwise
    its own flag has to give it.
    """
    plain, rest = to_dict(base), []
    words = [word for arg in args for word in split_flag(arg)]
    changed, at = False, 0
    while at < len(words):
        kinds = _kinds_at(type(base), words[at])
        name = words[at + 1].replace("-", "").replace("_", "").lower() if words[at + 1 :] else ""
        if not kinds:
            rest.append(words[at])
            at += 1
            continue
        require(
            name in kinds,
            f"{words[at]} is {name!r}; it can be {', '.join(kinds)}.{nearest(name, kinds)}",
        )
        _replace(plain, words[at], kinds[name], words)
        changed, at = True, at + 2
    if not changed:
        return base, args
    return from_dict(type(base), plain, known=classes_in(base)), rest


def split_flag(arg: str) -> list[str]:
    """`--name=value` as two words."""
    return arg.split("=", 1) if re.match(r"--[\w.-]+=", arg) else [arg]


def keys_of(flag: str) -> list[str]:
    """`--model.num-layers` as the names of fields."""
    return flag.removeprefix("--").replace("-", "_").split(".")


def class_choices(cls: type, above: str = "") -> Iterator[str]:
    """Yields each flag that chooses a class, with the names that it takes."""
    for name, hint in field_types(cls).items():
        flag = f"--{above}{name}".replace("_", "-")
        if kinds := _kinds_at(cls, f"--{name}"):
            line = f"  {flag} {', '.join(kinds)}"
            yield textwrap.fill(line, 80, subsequent_indent=" " * 6, break_on_hyphens=False)
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from class_choices(hint, f"{above}{name}.")


def _kinds_at(cls: type, flag: str) -> dict[str, type]:
    """The classes, by lower-case name, that the field of a flag takes; none if it takes one."""
    hint: Any = cls
    for key in keys_of(flag) if flag.startswith("--") else ():
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            return {}
        hint = field_types(hint).get(key)
    options = [
        option
        for option in typing.get_args(hint)
        if isinstance(option, type) and dataclasses.is_dataclass(option)
    ]
    return {kind.__name__.lower(): kind for kind in options} if len(options) > 1 else {}


def _replace(plain: dict, flag: str, kind: type, words: list[str]) -> None:
    """Puts the defaults of a class into the plain values of a config."""
    *above, last = keys_of(flag)
    for key in above:
        plain = plain[key]
    old, new = plain[last], {"kind": kind.__name__}
    for field in dataclasses.fields(kind):
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        own_flag = f"{flag}.{field.name}".replace("_", "-")
        flags = [word.replace("_", "-") for word in words]
        if required and own_flag in flags[:-1]:
            new[field.name] = words[flags.index(own_flag) + 1]
        elif required and old.get(field.name) is not None:
            new[field.name] = old[field.name]
    plain[last] = new
