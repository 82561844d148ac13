"""The `chat` command: a conversation in the terminal, with any model that `gptjax.load` opens.

Read `ChatOptions`, then `run_chat` (lines become turns), then `Talk`, the state of a conversation,
and `answer_message`, which adds a turn. What a person says of an answer is in `feedback`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.api import Model, load
from gptjax.cli import feedback
from gptjax.cli.adapters import holding
from gptjax.cli.pictures import PictureOptions, ask_about, require_without, shown_files
from gptjax.cli.terminal import Speed, changed, remembered_lines
from gptjax.core.config import ConfigError, require
from gptjax.data.tasks import VisualAnswers
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import ChatTemplate, Message
from gptjax.generate import Completion, GenerateConfig, Prefix
from gptjax.generate.constraints import compiled
from gptjax.sharding.mesh import MeshConfig
from gptjax.weights import Prepared

__all__ = ["ChatOptions", "GenerateConfig", "run_chat"]


@dataclass(frozen=True)
class ChatOptions(PictureOptions):
    """Flags of `chat`, besides those of the generator."""

    system: str | None = None
    """System prompt; `None` means the template's default, often no system prompt."""
    template: str | None = None
    """Chat template: a name such as chatml, or a .jinja file; `None` means the model's own."""
    context: int = 2048
    """Maximum number of tokens to remember, answers included, at most the model's context. The
    oldest turns are dropped first."""
    step: int | None = None
    """Checkpoint of a run; `None` means the newest."""
    adapter: tuple[str, ...] = ()
    """NAME=DIR of an adapter to load beside the model, a run or PEFT's directory; may be repeated.
    --use NAME chooses one."""
    live: bool = False
    """Take the latest weights of a run, also where it kept averaged ones (--optim.ema)."""
    packed: bool = False
    """Keep weights that the model's files quantise as they are stored, instead of widening them."""
    weights: Prepared | None = None
    """How weights are stored while generating; `None` keeps the type in which the model
    computes."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices that share the model. Without any --mesh flag it is on one device."""
    feedback: str | None = None
    """File to which /good, /bad and /better TEXT append what they say of the last answer, as
    records to learn from."""
    progress: bool | None = None
    """Report tokens/s and the time to the first token on standard error; `None` means only on a
    terminal."""


@dataclass(frozen=True)
class Changes:
    """What a line of flags may change besides the settings; each starts a new conversation."""

    system: str | None = None
    """Another system prompt."""
    template: str | None = None
    """Another chat template."""
    forget: bool = False
    """Start a new conversation."""


class Talk(NamedTuple):
    """A conversation, and how much of it the model has read."""

    template: ChatTemplate
    messages: list[Message]
    read: Prefix | None = None
    note: str = ""
    """Why the last answer ended, where the model did not end it."""


class Session(NamedTuple):
    """Everything that a line of input may change."""

    options: ChatOptions
    settings: GenerateConfig
    talk: Talk


def run_chat(path: str | Path | None, options: ChatOptions, settings: GenerateConfig) -> None:
    """Answers lines of standard input until it ends, typed by a person or piped in.

    Raises:
      ConfigError: the flags or the model cannot be used.
    """
    require(
        path is not None,
        "chat needs a model: a run directory, a Hugging Face directory or a .gguf file.",
    )
    opened = load(path, options.step, options.mesh, live=options.live, packed=options.packed)
    model = holding(opened, options.adapter)
    model = _within(model.prepared(options.weights), options.context)
    model.using(settings.use)
    _require_usable(model, settings)
    if options.image or options.video or isinstance(model.task, VisualAnswers):
        require_without(options, "system", "template", "feedback")
        ask_about(model, shown_files(model.task, options), settings, _line)
        return
    if options.feedback is not None:
        feedback.require_writable(Path(options.feedback))
    session = Session(options, settings, start_talk(model, options.template, options.system))
    if sys.stdin.isatty():
        _greet(model, session.talk.template.name, options.feedback)
    with remembered_lines():
        while True:
            try:
                line = _line()
                if line.startswith("--"):
                    session = _changed(model, session, line)
                elif feedback.is_judgement(line, options.feedback is not None):
                    session = session._replace(talk=_judged(model, session, line))
                elif line.strip():
                    session = session._replace(talk=_turn(model, session, line))
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
            except ConfigError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)


def _greet(model: Model, template: str, kept_in: str | None) -> None:
    print(
        f"Template {template}, {model.config.context} tokens of context. Write a message; end a"
        " line with \\ to continue it on the next."
    )
    print("Change settings like --temperature 0.5; start anew with --system TEXT or --forget.")
    if kept_in is not None:
        print(f"Judge an answer with /good, /bad or /better TEXT; {kept_in} keeps it.")
    print("Ctrl-C ends an answer, Ctrl-D ends the conversation.")


def _judged(model: Model, session: Session, line: str) -> Talk:
    """Keeps what a line says of the last answer; a better one takes its place."""
    talk, file = session.talk, Path(session.options.feedback or "")
    found = feedback.judged(line, talk.messages, cut=bool(talk.note))
    try:
        feedback.keep(file, {**found.record, "model": model.about.source})
    except OSError as error:
        raise ConfigError(f"{file} did not take it ({error.strerror}); say it again.") from None
    print(f"[kept in {file}]", file=sys.stderr, flush=True)
    return talk._replace(messages=found.messages)


def _changed(model: Model, session: Session, line: str) -> Session:
    """Applies a line of flags; nothing changes if one of them cannot be used."""

    def check(new: GenerateConfig) -> None:
        _require_usable(model, new)
        model.using(new.use)

    changes, settings = changed(Changes, session.settings, line, check=check)
    talk = session.talk
    if settings.use != session.settings.use:
        talk = talk._replace(read=None)  # it was read with another adapter
    if changes == Changes():
        return Session(session.options, settings, talk)
    options = dataclasses.replace(
        session.options,
        system=changes.system or session.options.system,
        template=changes.template or session.options.template,
    )
    talk = start_talk(model, options.template, options.system)
    print(f"a new conversation, template {talk.template.name}", file=sys.stderr)
    return Session(options, settings, talk)


def _turn(model: Model, session: Session, line: str) -> Talk:
    """Answers a message, and reports the speed where that is wanted."""
    progress = session.options.progress
    speed = Speed(sys.stderr.isatty() if progress is None else progress)
    chosen = model.using(session.settings.use)
    settings = dataclasses.replace(session.settings, use=None)
    talk = answer_message(chosen, session.talk, line, settings, _print, speed)
    print(flush=True)
    if talk.note:
        print(f"[{talk.note}]", file=sys.stderr, flush=True)
    speed.end()
    return talk


def _require_usable(model: Model, settings: GenerateConfig) -> None:
    """Refuses settings that would fail with every message."""
    others = [name for name in settings.strategies if name != "lookup"]
    require(not others, f"chat writes one token at a time; omit {' and '.join(others)}.")
    if settings.constraint:
        try:
            compiled(*settings.constraint, model.tokenizer)
        except ConfigError as error:
            raise ConfigError(f"{error} In a line of chat, put it in single quotes.") from None


def _within(model: Model, context: int) -> Model:
    """The model with a context of at most `context` tokens, since its cache is allocated whole at
    the start, and with its layers compiled as a loop.

    SmolLM2's 30 layers unrolled gave the first token after 56 s and then 3.6 tokens/s; as a loop,
    after 6.1 s and 5.3 tokens/s (2026-11-25, two shared cores of an AMD EPYC without AVX-512,
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
    """Reads a line, and the lines that a backslash at its end joins to it."""
    interactive = sys.stdin.isatty()
    lines = [input("> " if interactive else "")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("… " if interactive else ""))
    return "\n".join(lines)


def _fills_in(model: Model) -> bool:
    """Whether the model writes by filling in masks."""
    return model.task.mask_id(model.tokenizer) is not None


def _print(piece: str) -> None:
    print(piece, end="", flush=True)


# --- a conversation


def start_talk(model: Model, template: str | None = None, system: str | None = None) -> Talk:
    """Starts a conversation with the system prompt alone.

    Raises:
      ConfigError: there is no such template, it does not fit the tokenizer, or it has no place for
        a system prompt.
    """
    require(
        not model.config.has_encoder,
        "this model answers one text at a time and remembers no conversation; give it to gptjax"
        " sample MODEL --prompt TEXT.",
    )
    require(
        model.config.continues or _fills_in(model),
        "this model is an encoder: it fills in masked tokens and does not generate text; try gptjax"
        ' sample MODEL --prompt "The cat [MASK] on the mat."',
    )
    chosen = chat.choose_template(template, model.tokenizer)
    messages = [] if system is None else [Message("system", system)]
    chat.render(chosen, [*messages, Message("user", "")], model.tokenizer)
    return Talk(chosen, messages)


def answer_message(
    model: Model,
    talk: Talk,
    text: str,
    settings: GenerateConfig,
    show: Callable[[str], Any],
    speed: Callable[[int], Any] | None = None,
) -> Talk:
    """Returns the conversation with a message and the model's answer; Ctrl-C ends the answer.

    Only what is new is read: the cache of earlier turns is kept. Turns that no longer fit are
    dropped, with a note on standard error.

    Args:
      show: called with each piece of the answer as it is generated.
      speed: called with the number of tokens so far.

    Raises:
      ConfigError: the message does not fit, or the settings cannot be used; `talk` stays valid.
    """
    template, tokenizer = talk.template, model.tokenizer
    room = min(settings.new_tokens, model.config.context // 2)
    messages = [*talk.messages, Message("user", text)]
    ids, dropped = chat.fit_context(template, messages, tokenizer, model.config.context - room)
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
    if _fills_in(model):  # it reads each conversation as a whole
        read, new = None, ids
    else:
        read, new = model.prefix(ids[len(known) :] if before else ids, before), []
    ends = chat.ends(template, tokenizer)
    settings = dataclasses.replace(
        settings,
        stop=(*settings.stop, *ends.texts),
        stop_ids=(*settings.stop_ids, *ends.ids),
    )
    reply, note = _generated(model, new, read, settings, show, speed)
    messages = [*messages, Message("assistant", reply)] if reply else messages[:-1]
    return Talk(template, messages, read, note)


def _generated(
    model: Model,
    new: list[int],
    read: Prefix | None,
    settings: GenerateConfig,
    show: Callable[[str], Any],
    speed: Callable[[int], Any] | None,
) -> tuple[str, str]:
    """Returns the answer, as far as it got when Ctrl-C ended it, and why it ended if the model did
    not end it; shows it piece by piece."""
    reply, note = "", ""
    try:
        for piece in model.stream(new, settings, prefix=read, watch=speed):
            if isinstance(piece, Completion):
                reasons = {
                    "length": f"cut after {len(piece.ids)} tokens; --new-tokens N allows more",
                    "time": "cut after --max-seconds",
                }
                note = reasons.get(piece.reason, "")
            else:
                shown = piece if reply else piece.lstrip()
                reply += shown
                show(shown)
    except KeyboardInterrupt:
        note = "ended"
    return reply.rstrip(), note
