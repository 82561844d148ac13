"""`--adapter NAME=DIR` of the commands that generate text."""

from __future__ import annotations

from collections.abc import Sequence

from gptjax.api import Model
from gptjax.core.config import require


def holding(model: Model, flags: Sequence[str]) -> Model:
    """The model with the adapters that flags name, each NAME=DIR.

    Raises:
      ConfigError: a flag is of another form, or its adapter does not fit.
    """
    if not flags:
        return model
    named: dict[str, str] = {}
    for flag in flags:
        name, _, path = flag.partition("=")
        require(
            bool(name and path) and name not in named,
            f"--adapter is {flag!r}; it needs NAME=DIR, each name once.",
        )
        named[name] = path
    return model.with_adapters(named)


def gather_flag(args: Sequence[str], flag: str) -> list[str]:
    """Arguments in which a flag that is given several times is given once, with all its values."""
    rest: list[str] = []
    values: list[str] = []
    words = [
        word
        for one in args
        for word in (one.split("=", 1) if one.startswith(f"{flag}=") else [one])
    ]
    while words:
        word = words.pop(0)
        if word != flag:
            rest.append(word)
            continue
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
    return [*rest, flag, *values] if values else rest
