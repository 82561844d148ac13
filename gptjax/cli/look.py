"""`gptjax look`: what a model computes from one prompt, as one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptjax.cli.arguments import first_path
from gptjax.core import backend, user_config
from gptjax.core.config import ConfigError, require


@dataclass(frozen=True)
class LookOptions:
    """Flags of `look`."""

    prompt: str
    """What the model reads; an encoder fills in its first [MASK]."""
    out: str = "look.html"
    """File of the page."""
    against: str | None = None
    """Another prompt of as many tokens, with another answer: shows which parts of this one's
    activations bring its answer back there."""
    answer: str | None = None
    """The token that is looked at, with its space if it has one; the default is the likeliest."""
    foil: str | None = None
    """The token that the answer is compared with; the default is the likeliest after --against, or
    the second likeliest."""
    points: int = 64
    """Points of integrated gradients; the page says how far their sum is off."""
    step: int | None = None
    """Checkpoint of a run; the default is the newest."""
    seed: int = 0
    """Of the random tokens that tell kinds of heads apart."""


def look_command(args: list[str]) -> None:
    """Writes the page of a model and a prompt."""
    backend.configure()
    usage = "gptjax look MODEL --prompt TEXT [--against TEXT] [--out page.html]"
    path, flags = first_path(
        args, usage, "a run directory, a Hugging Face directory or a .gguf file"
    )
    options = user_config.cli(
        LookOptions,
        flags,
        prog="gptjax look MODEL",
        description="Draws what a model computes from a prompt: what each layer would answer, which"
        " tokens, heads and MLPs the answer comes from, and what heads look at, in one page that"
        " needs no network.",
    )
    if path is None:
        raise ConfigError(f"{usage}: a model is missing.")
    require(options.points >= 1, f"--points is {options.points}; it needs at least 1.")
    require(
        Path(options.out).parent.is_dir(),
        f"{options.out} is in no folder that exists; choose another file (--out).",
    )
    from gptjax.lab.look.looking import look_at
    from gptjax.lab.look.page import look_page
    from gptjax.runs.open import open_model

    look = look_at(
        open_model(path, options.step),
        str(path),
        options.prompt,
        against=options.against,
        answer=options.answer,
        foil=options.foil,
        points=options.points,
        seed=options.seed,
    )
    try:
        page = look_page(look).encode("utf-8", "xmlcharrefreplace")
        Path(options.out).write_bytes(page)
    except OSError as error:
        raise ConfigError(
            f"{options.out} can't be written ({error.strerror}); choose another file (--out)."
        ) from None
    print(f"{options.out}: {look.answer!r} with probability {look.chances[0]:.3f}")
