"""Conversations as ids: a template writes messages, and nothing that a message says can become a
control token.

Read `Message`, `ChatTemplate` and `choose_template` (which template a model wants), then `parts`
(messages → ids, the answers apart from what the model reads), `render` and `ends`.

A model's own template is a program in Jinja, run by `sandbox` so that each character of what it
writes is known to be its own or a message's. Control tokens are looked for in the former alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError, nearest, require
from gptjax.data.tokenizers.chat_forms import FORMS
from gptjax.data.tokenizers.chat_spelling import spell_pieces
from gptjax.data.tokenizers.sandbox import Conversation
from gptjax.data.tokenizers.spelling import Control
from gptjax.data.tokenizers.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    """One of `ROLES`."""
    text: str
    more: Mapping[str, Any] = MappingProxyType({})
    """Further fields that a template may use, such as `tool_calls` or `reasoning_content`."""


@dataclass(frozen=True)
class ChatTemplate:
    """How conversations are written for a model."""

    name: str
    source: str
    """In Jinja, with the variables that `transformers` gives to templates."""
    needs: tuple[str, ...] = ()
    """Control tokens without which the template cannot be used."""


class Part(NamedTuple):
    """Consecutive ids of a rendered conversation: an answer, or what the model reads before it.

    An answer begins where the prompt for it ends and includes the token that ends it, so the ids
    to learn are those of parts with an answer.
    """

    ids: list[int]
    answer: int | None
    """Number of the assistant's message; `None` means that the model did not write this."""
    prompted: bool = True
    """What comes before an answer is the prompt for it. Some templates write earlier answers in
    another way, for example without their thoughts."""


class Ends(NamedTuple):
    """What ends an answer, besides the ids that the tokenizer names itself."""

    ids: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()


# --- which template


def choose_template(name: str | None, tokenizer: Tokenizer) -> ChatTemplate:
    """Returns the template of that name or in that `.jinja` file.

    Args:
      name: `None` means the model's own, called `own`, or `plain` where it has none. The source of
        a template, in Jinja, is taken as it is.

    Raises:
      ConfigError: there is no such template.
    """
    if name is None and tokenizer.template:
        return ChatTemplate("own", tokenizer.template)
    return named_template(name or "plain")


def named_template(name: str) -> ChatTemplate:
    """Returns the template of that name, in that `.jinja` file, or with that source in Jinja.

    Raises:
      ConfigError: there is no such template.
    """
    if "{{" in name or "{%" in name:
        return ChatTemplate("own", name)
    if name.endswith((".jinja", ".jinja2")):
        return ChatTemplate(name, _read(Path(name)))
    require(
        name in FORMS,
        f"{name!r} is not a template; there are {', '.join(FORMS)}, and FILE.jinja"
        f" (--template).{nearest(name, FORMS)}",
    )
    return ChatTemplate(name, *FORMS[name])


def usable_forms(tokenizer: Tokenizer) -> list[str]:
    """Returns the names of templates whose control tokens the tokenizer has."""
    return [name for name, (_, needs) in FORMS.items() if tokenizer.controls.keys() >= {*needs}]


def require_controls(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Refuses a template that needs control tokens which the tokenizer lacks."""
    missing = [name for name in template.needs if name not in tokenizer.controls]
    require(
        not missing,
        f"the template {template.name} needs the control token {missing and missing[0]}, which this"
        f" tokenizer lacks; it can write {', '.join(usable_forms(tokenizer))} (--template).",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"{path} cannot be read as text; give a file with a template in Jinja, or a name:"
            f" {', '.join(FORMS)} (--template)."
        ) from None


# --- messages → ids


def render(
    template: ChatTemplate,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    reply: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """Returns the ids of a conversation; see `parts`."""
    made = parts(template, messages, tokenizer, reply=reply, tools=tools)
    return [i for part in made for i in part.ids]


def parts(
    template: ChatTemplate,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    reply: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[Part]:
    """Returns the ids of a conversation, answers apart from what the model reads.

    The ids are those of `transformers`, with two differences. What a message says is plain text,
    control tokens are the template's alone. No token reaches across the border between the prompt
    for an answer and the answer: the ids that ask for an answer are a prefix of those that have it.

    Args:
      reply: end with what asks the model for an answer.
      tools: descriptions of functions, as JSON schemas, for templates that offer them.

    Raises:
      ConfigError: the template refuses the messages, leaves one out, or cannot be followed; or the
        tokenizer lacks a control token that the template needs.
    """
    _require_usable(template, messages, tokenizer)
    tokens = _control_tokens(tokenizer)
    conversation = _conversation(template, messages, tokenizer, tools)
    text = conversation.text(len(messages), reply)
    conversation.require_exact(text, reply)
    _require_whole(messages, conversation, text)
    cuts, made = [0], [Part([], None)]
    for n, prompted, start, end in _answers(messages, conversation, text, _pattern(tokens)):
        cuts += [start, end]
        made += [Part([], n, prompted), Part([], None)]
    pieces = [
        (place, tokens[piece] if piece in tokens else conversation.stand_ins.shown(piece))
        for place, (start, end) in enumerate(pairwise([*cuts, len(text)]))
        for piece in _pattern(tokens).split(text[start:end])
    ]
    for place, ids in spell_pieces(pieces, tokenizer):
        made[place].ids.extend(ids)
    return [part for part in made if part.ids]


def _require_usable(
    template: ChatTemplate, messages: Sequence[Message], tokenizer: Tokenizer
) -> None:
    wrong = [m.role for m in messages if m.role not in ROLES]
    require(
        not wrong,
        f"{wrong and wrong[0]!r} is not the role of a message; there are {', '.join(ROLES)}.",
    )
    require(bool(messages), "the conversation has no messages; give at least one of the user.")
    require_controls(template, tokenizer)


def _control_tokens(tokenizer: Tokenizer) -> dict[str, Control]:
    """The tokenizer's control tokens by name; ids without one that begin and end documents have
    names that no text can have."""
    names = {control.id for control in tokenizer.controls.values()}
    bos = tokenizer.special.bos if tokenizer.special else None
    unnamed = {_BOS: bos, _EOS: tokenizer.end_of_document}
    return {
        **tokenizer.controls,
        **{name: Control(i) for name, i in unnamed.items() if i is not None and i not in names},
    }


_BOS, _EOS = "\U0010fffe", "\U0010ffff"
"""Code points that are not characters."""


def _conversation(
    template: ChatTemplate,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Conversation:
    tokens = _control_tokens(tokenizer)
    names = {control.id: name for name, control in tokens.items()}
    bos = tokenizer.special.bos if tokenizer.special else None
    special = {"bos_token": names.get(bos), "eos_token": names.get(tokenizer.end_of_document)}
    variables = {name: token for name, token in special.items() if token is not None}
    fields = [{**m.more, "role": m.role, "content": m.text} for m in messages]
    return Conversation(
        template.source,
        fields,
        variables | {"tools": list(tools) or None, "documents": None},
        reserved="".join(tokens),
    )


def _require_whole(messages: Sequence[Message], conversation: Conversation, text: str) -> None:
    """Refuses a template that leaves out a message of the user or the system."""
    origins = {conversation.stand_ins.origin(c) for c in set(text)}
    for n, message in enumerate(messages):
        asked = message.role in ("system", "developer", "user")
        require(
            n in origins or not asked or not message.text.strip(),
            f"the template has no place for message {n + 1}, of the role {message.role}; omit it,"
            " or choose another template (--template).",
        )


def _answers(
    messages: Sequence[Message], conversation: Conversation, text: str, controls: re.Pattern
) -> Iterator[tuple[int, bool, int, int]]:
    """Yields of each answer the number of its message, whether it begins where a prompt for it
    ends, and where it begins and ends in `text`.

    It begins where a prompt for it would end. Templates that write a prompt in another way than
    an answer's beginning, for example with an empty thought, have no such place: it begins where
    the message does.
    """
    spans, before = _spans(conversation, text), 0
    for n, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = _written(conversation, text, n, reply=True)
        if prompt is None and n not in spans:
            continue
        first, last = spans.get(n, (prompt, prompt))
        start = first if prompt is None else prompt
        if not before <= start <= last:
            continue
        closed = _written(conversation, text, n + 1, reply=False)
        following = min((s for s, _ in spans.values() if s >= last), default=len(text))
        control = controls.search(text, last, following if closed is None else closed)
        before = control.end() if control else closed or last
        yield n, prompt is not None, start, before


def _written(conversation: Conversation, text: str, count: int, reply: bool) -> int | None:
    """Length of what the template writes of the first `count` messages alone, if `text` begins
    with that."""
    try:
        beginning = conversation.text(count, reply) if count else ""
    except ConfigError:
        return None
    return len(beginning) if beginning and text.startswith(beginning) else None


def _spans(conversation: Conversation, text: str) -> dict[int, tuple[int, int]]:
    """Of each message that is in `text`, where it begins and ends there."""
    spans: dict[int, tuple[int, int]] = {}
    for at, character in enumerate(text):
        origin = conversation.stand_ins.origin(character)
        if origin is not None:
            spans[origin] = (spans.get(origin, (at, at))[0], at + 1)
    return spans


def _pattern(tokens: Mapping[str, Control]) -> re.Pattern:
    """Finds control tokens, the longest of those that begin at one place."""
    names = sorted(tokens, key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, names)) or "(?!)") + ")")


def written_text(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Returns a conversation as text, without ids that have no name: what a tokenizer for it has to
    spell.

    Args:
      messages: fields as a template sees them: `role`, `content` and others.
    """
    variables = {"tools": list(tools) or None, "documents": None}
    conversation = Conversation(template.source, messages, variables)
    return conversation.stand_ins.shown(conversation.text(len(messages), reply=False))


def rendered_text(
    template: ChatTemplate,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    reply: bool = True,
) -> str:
    """Returns a conversation as `transformers` writes it: control tokens by their names, which
    `spell_rendered` turns into ids, those that messages say too.

    Args:
      reply: end with what asks the model for an answer, not with the last message's last character.
    """
    _require_usable(template, messages, tokenizer)
    conversation = _conversation(template, messages, tokenizer)
    text = conversation.text(len(messages), reply)
    whole = (0, len(text))
    end = len(text) if reply else _spans(conversation, text).get(len(messages) - 1, whole)[1]
    return conversation.stand_ins.shown(text[:end])


def spell_rendered(text: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of a text in which names of control tokens are these tokens."""
    tokens = _control_tokens(tokenizer)
    pieces = [(0, tokens.get(piece, piece)) for piece in _pattern(tokens).split(text)]
    return [i for _, ids in spell_pieces(pieces, tokenizer) for i in ids]


# --- the end of an answer, and of the context


def ends(template: ChatTemplate, tokenizer: Tokenizer) -> Ends:
    """Returns what a template writes after an answer: a control token, or the text that leads to
    the user's next message. `Ends()` means that the tokenizer's own ids must do."""
    probe = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    tokens = _control_tokens(tokenizer)
    for count in (3, 2):
        conversation = _conversation(template, probe[:count], tokenizer)
        try:
            text = conversation.text(count, reply=False)
        except ConfigError:
            continue
        spans = _spans(conversation, text)
        if 1 not in spans:
            continue
        end, following = spans[1][1], spans.get(2, (len(text), 0))[0]
        control = _pattern(tokens).search(text, end, following)
        if control:
            ended = tokens[control[0]].id
            known = (tokenizer.end_of_document, *tokenizer.ends)
            return Ends(() if ended in known else (ended,))
        closing = text[end:following].rstrip(" ")
        return Ends((), (closing,) if closing.strip() else ())
    return Ends()


def fit_context(
    template: ChatTemplate, messages: Sequence[Message], tokenizer: Tokenizer, room: int
) -> tuple[list[int], int]:
    """Returns the ids of as much of a conversation as fits, and how many of the oldest messages
    were dropped; the system prompt stays.

    Args:
      room: maximum number of ids.

    Raises:
      ConfigError: the newest message alone does not fit.
    """
    first = 1 if messages and messages[0].role == "system" else 0
    for dropped in range(0, len(messages) - first, 2):
        ids = render(template, [*messages[:first], *messages[first + dropped :]], tokenizer)
        if len(ids) <= room:
            return ids, dropped
    raise ConfigError(
        f"the message takes {len(ids)} tokens, with the system prompt, and there is room for"
        f" {room}; shorten it, or use more --context or fewer --new-tokens."
    )
