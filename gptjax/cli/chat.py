"""The `chat` command: a conversation in the terminal, with any model that `gptjax.load` opens.

Read `ChatOptions`, then `run` (lines become turns), then `Talk`, which is all that is remembered,
and `answer`, which adds a turn.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.api import Model, load
from gptjax.cli.terminal import Speed, changed, remembered_lines
from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import Message, Template
from gptjax.generate import Completion, GenerateConfig, Prefix
from gptjax.model import Stored

__all__ = ["ChatOptions", "GenerateConfig", "run"]


@dataclass(frozen=True)
class ChatOptions:
    """Flags of `chat` beside those of the generator."""

    system: str | None = None
    """What the model is told before all; none is what its template says, which is often nothing."""
    template: str | None = None
    """How messages are written: a name such as chatml, or a JSON file; none is the model's own."""
    context: int = 2048
    """Tokens that are remembered, answers included; a model with less takes its own. Older turns
    give way."""
    step: int | None = None
    """Checkpoint of a run; none is the newest."""
    weights: Stored | None = None
    """How weights are stored while generating; none keeps the type in which the model computes."""
    progress: bool | None = None
    """Say tokens/s and the time to the first token on standard error; by default if that is a
    terminal."""


@dataclass(frozen=True)
class Changes:
    """What a line of flags may change beside the settings; each begins a new conversation."""

    system: str | None = None
    """Another system prompt."""
    template: str | None = None
    """Another template."""
    forget: bool = False
    """Begin anew."""


class Talk(NamedTuple):
    """A conversation: what was said, and how far the model has read it."""

    template: Template
    messages: list[Message]
    read: Prefix | None = None
    note: str = ""
    """Why the last answer ended, where the model did not end it."""


def run(path: str | Path | None, options: ChatOptions, settings: GenerateConfig) -> None:
    """Talks until the end of input: with a person, or line by line with what is piped in.

    Raises:
      ConfigError: something in the flags or the model can't be used.
    """
    require(
        path is not None,
        "chat needs a model: a run directory, a Hugging Face directory or a .gguf file.",
    )
    _require_simple(settings)
    model = _within(load(path, step=options.step).prepared(options.weights), options.context)
    name, talk = begin(model, options.template, options.system)
    shown = sys.stderr.isatty() if options.progress is None else options.progress
    if sys.stdin.isatty():
        print(
            f"Template {name}, {model.config.context} tokens of context. Write a message; \\ at its"
            " end goes on in the next line."
        )
        print("Change settings like --temperature 0.5; begin anew with --system TEXT or --forget.")
        print("Ctrl-C ends an answer, Ctrl-D ends it all.")
    with remembered_lines():
        while True:
            try:
                line = _line()
                if line.startswith("--"):
                    said, settings = changed(Changes, settings, line)
                    _require_simple(settings)
                    if said != Changes():
                        options = dataclasses.replace(
                            options,
                            system=said.system or options.system,
                            template=said.template or options.template,
                        )
                        name, talk = begin(model, options.template, options.system)
                        print(f"a new conversation, template {name}", file=sys.stderr)
                elif line.strip():
                    speed = Speed(shown)
                    talk = answer(model, talk, line, settings, _print, speed)
                    print(flush=True)
                    if talk.note:
                        print(f"[{talk.note}]", file=sys.stderr, flush=True)
                    speed.end()
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
            except ConfigError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)


def _require_simple(settings: GenerateConfig) -> None:
    others = [name for name in settings.strategies if name != "lookup"]
    require(
        not others, f"chat writes one token after the other; leave {' and '.join(others)} away."
    )


def _within(model: Model, context: int) -> Model:
    """The model with a context of at most so many tokens, because its cache has room for all of
    them from the start, and compiled as a loop.

    Of SmolLM2's 30 layers in a row, the first token came after 56 s and the rest at 3.6 a second;
    in a loop after 6.1 s, and at 5.3 (2026-11-25, two shared cores of an AMD EPYC without AVX-512,
    Python 3.12).
    """
    require(
        context >= 16,
        f"context is {context}; a conversation needs at least 16 tokens (--context 2048).",
    )
    own = model.config.context
    known = own if model.config.positions == "learned" else min(context, own)
    layers = "scan" if model.config.layers == "auto" else model.config.layers
    return model._replace(config=dataclasses.replace(model.config, context=known, layers=layers))


def _line() -> str:
    """A line of input, and those that a backslash at its end joins to it."""
    asks = sys.stdin.isatty()
    lines = [input("> " if asks else "")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("… " if asks else ""))
    return "\n".join(lines)


def _print(piece: str) -> None:
    print(piece, end="", flush=True)


# --- a conversation
# ----------------------------------------------------------------------------------------------


def begin(model: Model, template: str | None = None, system: str | None = None) -> tuple[str, Talk]:
    """Gives a conversation in which nothing was said but the system prompt, and what its template
    is called.

    Raises:
      ConfigError: there is no such template, it does not fit the tokenizer, or it has no place for
        a system prompt.
    """
    require(
        model.config.continues,
        "this model has an encoder: it fills in what is hidden, and does not answer.",
    )
    name, chosen = chat.choose(template, model.tokenizer)
    messages = [] if system is None else [Message("system", system)]
    chat.render(chosen, [*messages, Message("user", "")], model.tokenizer)
    return name, Talk(chosen, messages)


def answer(
    model: Model,
    talk: Talk,
    text: str,
    settings: GenerateConfig,
    show: Callable[[str], Any],
    speed: Callable[[int], Any] | None = None,
) -> Talk:
    """Gives the conversation with a message and the model's answer, which `show` gets piece by
    piece; Ctrl-C ends an answer.

    Of what the model has read, only what is new is read: the cache of the earlier turns stays.
    Turns that no longer fit are left away, and said so.

    Raises:
      ConfigError: the message has no room, or settings can't be used. The conversation that was
        given goes on then.
    """
    template, tokenizer = talk.template, model.tokenizer
    room = min(settings.new_tokens, model.config.context // 2)
    messages = [*talk.messages, Message("user", text)]
    ids, dropped = chat.fit(template, messages, tokenizer, model.config.context - room)
    if dropped:
        first = 1 if messages[0].role == "system" else 0
        messages = messages[:first] + messages[first + dropped :]
        print(
            f"[the {dropped} oldest messages are forgotten: the context is {model.config.context}"
            " tokens]",
            file=sys.stderr,
            flush=True,
        )
    known = talk.read.ids if talk.read else []
    before = talk.read if 0 < len(known) < len(ids) and ids[: len(known)] == known else None
    read = model.prefix(ids[len(known) :] if before else ids, before)
    stops = {
        "stop": (*settings.stop, *template.stop),
        "stop_ids": (*settings.stop_ids, *chat.ends(template, tokenizer)),
    }
    said, note = _written(model, read, dataclasses.replace(settings, **stops), show, speed)
    return Talk(
        template, [*messages, Message("assistant", said)] if said else messages[:-1], read, note
    )


def _written(
    model: Model,
    read: Prefix,
    settings: GenerateConfig,
    show: Callable[[str], Any],
    speed: Callable[[int], Any] | None,
) -> tuple[str, str]:
    """The answer, shown as it is written (what there is of it when someone ends it), and why it
    ended if the model did not end it."""
    said, note = "", ""
    try:
        for piece in model.stream([], settings, prefix=read, watch=speed):
            if isinstance(piece, Completion):
                cut = {
                    "length": f"cut after {len(piece.ids)} tokens; --new-tokens N allows more",
                    "time": "cut after --max-seconds",
                }
                note = cut.get(piece.reason, "")
            else:
                piece = piece if said else piece.lstrip()
                said += piece
                show(piece)
    except KeyboardInterrupt:
        note = "ended"
    return said.rstrip(), note
