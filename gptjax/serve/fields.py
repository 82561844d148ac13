"""JSON objects ↔ dataclasses, strictly: `read_fields` reads a body, `json_schema_of` describes it.

A dataclass is the one place that says what an object may hold. Limits stand beside a type, as
keywords of JSON Schema: `n: Annotated[int, limits(minimum=1)]`. `null` is the same as absence,
whatever its name: clients write out what they do not use. Further names are class variables:

* `REFUSED`: name → why it can't be served. A value that asks for nothing (false, 0, "") is fine.
* `IGNORED`: names that are accepted and have no effect.
* `ALIASES`: other name → field.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from gptjax.core.config import nearest
from gptjax.serve.protocol import BadRequest

T = TypeVar("T")


def limits(**keywords: float | str) -> tuple[tuple[str, float | str], ...]:
    """Returns keywords of JSON Schema as an annotation, which has to be hashable."""
    return tuple(keywords.items())


def parse_object(body: bytes) -> dict[str, Any]:
    """Returns the JSON object that a body is.

    Raises:
      BadRequest: it is no such object, names a key twice, or holds what UTF-8 or JSON can't.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except BadRequest:
        raise
    except UnicodeEncodeError:
        raise BadRequest("the body has a lone surrogate; remove it.", code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        told = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"the body is not JSON: {told}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest(f"the body is {_shown(value)}; it needs an object.", code="invalid_json")
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRequest(f"duplicate key {twice!r}; keep one of them.", param=twice)
    return value


def _no_constant(word: str) -> Any:
    raise BadRequest(f"{word} is not a JSON number; write a finite one.", code="invalid_json")


def read_fields(cls: type[T], body: bytes | Mapping[str, Any]) -> tuple[T, tuple[str, ...]]:
    """Returns a body as the dataclass that describes it, and the names of its fields without
    effect.

    Raises:
      BadRequest: names the first field that is wrong, what it is and what it needs.
    """
    value = parse_object(body) if isinstance(body, bytes) else body
    ignored: list[str] = []
    return _object(cls, value, "", ignored), tuple(ignored)


def _object(cls: Any, value: Mapping[str, Any], where: str, ignored: list[str]) -> Any:
    names = [field.name for field in dataclasses.fields(cls)]
    refused, without_effect = getattr(cls, "REFUSED", {}), getattr(cls, "IGNORED", ())
    aliases = getattr(cls, "ALIASES", {})
    given: dict[str, Any] = {}
    for key, inner in value.items():
        path, name = f"{where}.{key}".lstrip("."), aliases.get(key, key)
        if inner is None:
            continue
        if name in given:
            raise BadRequest(f"{path} is {name} by another name; give one of them.", param=path)
        if name in names:
            given[name] = _value(_types(cls)[name], inner, path, ignored)
        elif name in refused:
            if inner not in (False, 0, "", [], {}):
                raise BadRequest(f"{path} is not served: {refused[name]}", path, "unsupported")
        elif name in without_effect:
            ignored.append(path)
        else:
            known = [*names, *aliases, *without_effect]
            hint = nearest(key, known) if len(key) < 100 else ""
            raise BadRequest(f"{path} is not a field here.{hint}", path, "unknown_field")
    for field in dataclasses.fields(cls):
        if field.name not in given and not _optional(field):
            path = f"{where}.{field.name}".lstrip(".")
            raise BadRequest(f"{path} is missing; it is needed.", path, "missing")
    return cls(**given)


@functools.cache
def _types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _optional(field: dataclasses.Field) -> bool:
    return (
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )


def _value(hint: Any, value: Any, where: str, ignored: list[str]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        _check_limits(dict(args[1]), value, where)
        return _value(args[0], value, where, ignored)
    if origin in (typing.Union, types.UnionType):
        return _one_of(args, value, where, ignored)
    if not _fits(hint, value):
        raise BadRequest(f"{where} is {_shown(value)}; it needs {_words(hint)}.", where)
    if origin is Literal and value not in args:
        close = nearest(value, args) if isinstance(value, str) and len(value) < 100 else ""
        raise BadRequest(
            f"{where} is {_shown(value)}; it can be {', '.join(map(repr, args))}.{close}", where
        )
    if origin is tuple:
        items = enumerate(value)
        return tuple(_value(args[0], item, f"{where}.{i}", ignored) for i, item in items)
    if dataclasses.is_dataclass(hint):
        return _object(hint, value, where, ignored)
    if hint is float:
        number = float(value) if abs(value) < 2**1023 else math.inf
        if not math.isfinite(number):
            raise BadRequest(f"{where} is {_shown(value)}; it needs a finite number.", where)
        return number
    return value


def _one_of(args: tuple, value: Any, where: str, ignored: list[str]) -> Any:
    """The value as the first type that takes it; what is wrong with the last that might."""
    options = [a for a in args if a is not type(None)]
    fitting = [a for a in options if _fits(a, value)]
    if not fitting:
        words = " or ".join(dict.fromkeys(map(_words, options)))
        raise BadRequest(f"{where} is {_shown(value)}; it needs {words}.", where)
    for option in fitting[:-1]:
        try:
            return _value(option, value, where, ignored)
        except BadRequest:
            continue
    return _value(fitting[-1], value, where, ignored)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the JSON type that a hint begins with."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(args[0], value)
    if hint is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(a) for a in args)
    if origin is tuple:  # of a list of lists the first item decides
        return isinstance(value, list) and (not value or _fits(args[0], value[0]))
    if hint is dict or dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _check_limits(limits: Mapping[str, Any], value: Any, where: str) -> None:
    """Checks limits of the JSON type that the value has; its type is checked afterwards."""

    def check(holds: bool, need: str) -> None:
        if not holds:
            raise BadRequest(f"{where} is {_shown(value)}; it needs {need}.", where)

    if type(value) in (int, float):
        low, high = limits.get("minimum"), limits.get("maximum")
        within = (low is None or value >= low) and (high is None or value <= high)
        check(within, f"a number from {low} to {high}" if high is not None else f"{low} or more")
        above = limits.get("exclusiveMinimum", -math.inf)
        check(value > above, f"a number above {above}")
    if isinstance(value, list):
        least, most = limits.get("minItems", 0), limits.get("maxItems", math.inf)
        count = f"{where} has {len(value)} items; it needs"
        if len(value) < least:
            raise BadRequest(f"{count} at least {least}.", where)
        if len(value) > most:
            raise BadRequest(f"{count} at most {most}.", where)
    if isinstance(value, str):
        check(len(value) >= limits.get("minLength", 0), "text that is not empty")
        most = limits.get("maxLength", math.inf)
        check(len(value) <= most, f"at most {most} characters")
        pattern = limits.get("pattern")
        check(pattern is None or bool(re.fullmatch(pattern, value)), f"to match {pattern}")
    if isinstance(value, dict):
        most = limits.get("maxProperties", math.inf)
        if len(value) > most:
            raise BadRequest(f"{where} has {len(value)} entries; it needs at most {most}.", where)


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
    text = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _words(args[0])
    if origin is tuple:
        return "a list"
    if origin is Literal:
        return " or ".join(map(repr, args))
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return words.get(hint, "an object")


# --- as JSON Schema -----------------------------------------------------------------------------


def json_schema_of(hint: Any) -> dict[str, Any]:
    """Returns the JSON schema of what `read_fields` takes for a type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        inner = json_schema_of(args[0])
        more = dict(args[1])
        return {**inner, **more} if "anyOf" not in inner else {**inner, "allOf": [more]}
    if origin in (typing.Union, types.UnionType):
        options = [a for a in args if a is not type(None)]
        schemas = [json_schema_of(a) for a in options]
        schemas += [{"type": "null"}] * (len(options) < len(args))
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": json_schema_of(args[0])}
    if dataclasses.is_dataclass(hint):
        return _object_schema(hint)
    kinds = {int: "integer", float: "number", str: "string", bool: "boolean", dict: "object"}
    return {"type": kinds[hint]} if hint in kinds else {}


def _object_schema(cls: Any) -> dict[str, Any]:
    fields = dataclasses.fields(cls)
    properties = {field.name: _property(field, _types(cls)[field.name]) for field in fields}
    for alias, name in getattr(cls, "ALIASES", {}).items():
        properties[alias] = properties[name]
    properties |= {name: {} for name in getattr(cls, "IGNORED", ())}
    return {
        "type": "object",
        "properties": properties,
        "required": [field.name for field in fields if not _optional(field)],
        "additionalProperties": False,
    }


def _property(field: dataclasses.Field, hint: Any) -> dict[str, Any]:
    """The schema of a field; `null` is the same as absence where that is possible."""
    schema, null = json_schema_of(hint), {"type": "null"}
    if not _optional(field) or null in schema.get("anyOf", ()):
        return schema
    return {"anyOf": [schema, null]}
