"""`gptjax card RUN`: a model card made of what a run and its evaluations wrote down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptjax.cli.arguments import first_path
from gptjax.core import user_config
from gptjax.core.config import ConfigError


@dataclass(frozen=True)
class CardOptions:
    """Flags of `card`."""

    out: str | None = None
    """File to write the card to; `None` is standard output."""
    evaluations: tuple[str, ...] = ()
    """Files of `gptjax evaluate` (eval.json) and of `gptjax probe --out` whose figures it
    shows."""


def card_command(args: list[str]) -> None:
    """Prints the card of a run, or writes it."""
    usage = "gptjax card RUN [--evaluations FILE ...] [--out README.md]"
    path, flags = first_path(args, usage, "a run directory, for example runs/quickstart")
    options = user_config.cli(
        CardOptions,
        flags,
        prog="gptjax card RUN",
        description="Makes a model card of what a run wrote down: data, cleaning, training,"
        " figures, limits.",
    )
    if path is None:
        raise ConfigError(f"{usage}: a run directory is missing.")
    from gptjax.evaluate.card import run_card

    card = run_card(path, [Path(one) for one in options.evaluations])
    if options.out is None:
        print(card, end="")
        return
    try:
        Path(options.out).write_text(card, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{options.out} can't be written ({error.strerror}); choose another file (--out)."
        ) from None
