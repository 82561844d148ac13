"""Conversations as ids: messages and templates are data, and what a person writes can never become
a control token.

Read `Template` (the form), `TEMPLATES` (the published ones), `render` (messages → ids), then
`choose` (which template a model wants).

A model's own template is a program in Jinja. It is never run: `recognised` finds by its marks which
published form it has, and what it says when nobody gives a system prompt; a form that is not known
is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gptjax.core.config import ConfigError, from_dict, nearest, require
from gptjax.data.tokenizers.spelling import Control
from gptjax.data.tokenizers.tokenizer import Tokenizer


class Message(NamedTuple):
    """What somebody said."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Template:
    """How messages are written for a model.

    Each field is a text in which `{text}` is a message, `{system}` the system prompt, `{bos}` and
    `{eos}` the ids that begin and end documents (nothing, where a tokenizer has none), and any
    other name in braces the control token of that name; `{~NAME}` is a mark that is a control token
    in some tokenizers and plain text in others.
    """

    user: str
    """A message of the person."""
    assistant: str
    """An answer of the model, with what ends it."""
    prompt: str = ""
    """What asks for the next answer; the answer's form begins with it."""
    begin: str = ""
    """Before all messages."""
    system: str = ""
    """The system prompt as a message of its own; empty where the first message carries it."""
    first: str = ""
    """The first message of the person together with `{system}`, where that is no message of its
    own."""
    ends: tuple[str, ...] = ()
    """Control tokens that end an answer, beside the end of a document."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    default: str | None = None
    """The system prompt when nobody gives one; none leaves it away."""
    trim: bool = False
    """White space around messages is taken off."""

    def __post_init__(self) -> None:
        for name in (
            "user",
            "assistant",
            *(("first",) if self.first else ()),
            *(("system",) if self.system else ()),
        ):
            require(
                "{text}" in getattr(self, name),
                f"the template's {name} has no {{text}}, the place of the message.",
            )
        require(
            not self.first or "{system}" in self.first,
            "the template's first has no {system}, the place of the system prompt.",
        )
        require(
            self.assistant.startswith(self.prompt),
            "the template's assistant does not begin with its prompt, which the model goes on"
            " from.",
        )


def _headed(header: str, end: str, **more: str | tuple | bool | None) -> Template:
    """A template whose messages of all three roles are alike: `header` with ROLE, the text,
    `end`."""
    turn = {role: header.replace("ROLE", role) for role in ("system", "user", "assistant")}
    forms = {role: f"{head}{{text}}{end}" for role, head in turn.items()}
    return Template(**forms, prompt=turn["assistant"], **more)


_LLAMA_3 = _headed(
    "{<|start_header_id|>}ROLE{<|end_header_id|>}\n\n",
    "{<|eot_id|>}",
    begin="{bos}",
    ends=("<|eot_id|>", "<|eom_id|>"),
    trim=True,
)
_DATED = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
_TEKKEN = {"begin": "{bos}", "user": "{[INST]}{text}{[/INST]}", "assistant": "{text}{eos}"}

TEMPLATES: dict[str, Template] = {
    "chatml": _headed("{<|im_start|>}ROLE\n", "{<|im_end|>}\n", ends=("<|im_end|>",)),
    "llama-2": Template(
        first="{bos}{~[INST]} <<SYS>>\n{system}\n<</SYS>>\n\n{text} {~[/INST]}",
        user="{bos}{~[INST]} {text} {~[/INST]}",
        assistant=" {text} {eos}",
        trim=True,
    ),
    "llama-3": _LLAMA_3,
    "llama-3.1": dataclasses.replace(
        _LLAMA_3, system=_LLAMA_3.system.replace("{text}", _DATED + "{text}"), default=""
    ),
    "gemma": Template(
        begin="{bos}",
        first="{<start_of_turn>}user\n{system}\n\n{text}{<end_of_turn>}\n",
        user="{<start_of_turn>}user\n{text}{<end_of_turn>}\n",
        assistant="{<start_of_turn>}model\n{text}{<end_of_turn>}\n",
        prompt="{<start_of_turn>}model\n",
        ends=("<end_of_turn>",),
        trim=True,
    ),
    "mistral-v1": Template(
        begin="{bos}",
        first="{~[INST]} {system}\n\n{text} {~[/INST]}",
        user="{~[INST]} {text} {~[/INST]}",
        assistant=" {text}{eos}",
    ),
    "mistral-v3": Template(
        begin="{bos}",
        first="{[INST]} {system}\n\n{text}{[/INST]}",
        user="{[INST]} {text}{[/INST]}",
        assistant=" {text}{eos}",
    ),
    "mistral-tekken": Template(**_TEKKEN, first="{[INST]}{system}\n\n{text}{[/INST]}"),
    "mistral-v7": Template(**_TEKKEN, system="{[SYSTEM_PROMPT]}{text}{[/SYSTEM_PROMPT]}"),
    "phi-3": _headed("{<|ROLE|>}\n", "{<|end|>}\n", ends=("<|end|>",)),
    "phi-4": _headed("{<|im_start|>}ROLE{<|im_sep|>}", "{<|im_end|>}", ends=("<|im_end|>",)),
    "zephyr": _headed("{~<|ROLE|>}\n", "{eos}\n"),
    "plain": Template(
        system="{text}\n\n",
        user="User: {text}\n",
        assistant="Assistant: {text}\n",
        prompt="Assistant:",
        stop=("\nUser:",),
    ),
}
"""Sources: OpenAI's ChatML; Meta's pages on prompt formats of Llama 2, 3 and 3.1; Google's on
Gemma; mistral-common; Microsoft's model cards of Phi-3 and Phi-4; Hugging Face's of Zephyr.
Differences: Llama 3.1's date is the one that its template has where none is given; Mistral 1 and 3
and Gemma have no system prompt of their own, it stands before the first message, as in their later
templates; Llama 2's first message is trimmed by itself, not together with the system prompt."""


# --- messages → ids
# ----------------------------------------------------------------------------------------------


def render(
    template: Template, messages: Sequence[Message], tokenizer: Tokenizer, *, reply: bool = True
) -> list[int]:
    """Gives the ids of a conversation: texts between control tokens are encoded as text, whatever
    they say.

    Args:
      messages: a system prompt or none, then a message of the person and an answer in turns.
      reply: end with what asks the model for an answer.

    Raises:
      ConfigError: the messages are in another order, the template has no place for a system prompt
        or the tokenizer lacks one of its control tokens.
    """
    told = [m.text for m in messages if m.role == "system"]
    turns = [m for m in messages if m.role != "system"]
    ordered = [m.role for m in messages] == ["system"] * len(told) + ["user", "assistant"] * (
        len(turns) // 2
    ) + ["user"] * (len(turns) % 2)
    require(
        ordered and len(told) <= 1,
        "messages are a system prompt or none, and then user and assistant in turns.",
    )
    system = told[0] if told else template.default
    require(
        system is None or bool(template.system or template.first),
        "this template has no place for a system prompt; leave it away, or choose another"
        " (--template).",
    )
    parts = _filled(template.begin, tokenizer, "", "")
    if system is not None and template.system:
        parts += _filled(
            template.system, tokenizer, system.strip() if template.trim else system, ""
        )
    for n, (role, text) in enumerate(turns):
        form = (
            template.first
            if n == 0 and system is not None and not template.system
            else getattr(template, role)
        )
        parts += _filled(form, tokenizer, text.strip() if template.trim else text, system or "")
    return _encoded(
        parts + (_filled(template.prompt, tokenizer, "", "") if reply else []), tokenizer
    )


def _filled(form: str, tokenizer: Tokenizer, text: str, system: str) -> list[str | Control]:
    """A form with its places filled: control tokens, and text."""
    special = tokenizer.special
    known = {"bos": special.bos if special else None, "eos": tokenizer.end_of_document}
    parts: list[str | Control] = []
    for n, part in enumerate(_PLACE.split(form)):
        if n % 2 == 0 or part in ("text", "system"):
            parts.append({"text": text, "system": system}[part] if n % 2 else part)
        elif part in known:
            parts += [] if known[part] is None else [_control(tokenizer, known[part])]
        else:
            name = part.removeprefix("~")
            require(
                name in tokenizer.controls or part != name,
                f"the template wants the control token {name}, which this tokenizer lacks;"
                f" {_CHOOSE}.",
            )
            parts.append(tokenizer.controls.get(name, name))
    return parts


_PLACE = re.compile(r"\{([^{}\s]+)\}")


def _control(tokenizer: Tokenizer, i: int) -> Control:
    return next((c for c in tokenizer.controls.values() if c.id == i), Control(i))


def _encoded(parts: list[str | Control], tokenizer: Tokenizer) -> list[int]:
    """The ids: texts that touch are one text, which has to give way where a control token swallows
    white space."""
    ids: list[int] = []
    text, before = "", None
    for part in (*parts, None):
        if isinstance(part, str):
            text += part
            continue
        if before is not None and before.rstrip:
            text = text.lstrip()
        if part is not None and part.lstrip:
            text = text.rstrip()
        if text:
            ids += (
                tokenizer.encode(text) if before is None else tokenizer.encode_after(text)
            ).tolist()
        ids += [] if part is None else [part.id]
        text, before = "", part
    return ids


def ends(template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer, beside those of the tokenizer."""
    return tuple(
        tokenizer.controls[name].id for name in template.ends if name in tokenizer.controls
    )


def fit(
    template: Template, messages: Sequence[Message], tokenizer: Tokenizer, room: int
) -> tuple[list[int], int]:
    """Gives the ids of as much of a conversation as has room, and how many of the oldest messages
    were left away; the system prompt stays.

    Raises:
      ConfigError: the newest message alone has no room.
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


# --- which template
# ----------------------------------------------------------------------------------------------


def choose(name: str | None, tokenizer: Tokenizer) -> tuple[str, Template]:
    """Gives a template and what it is called: the named one, or that of a JSON file, or the model's
    own; without any, `plain`.

    Raises:
      ConfigError: there is no such template, or the model's own is not known here.
    """
    own = tokenizer.special and tokenizer.special.template
    if name is None:
        return recognised(own) if own else ("plain", TEMPLATES["plain"])
    if name.endswith(".json"):
        return name, _read(Path(name))
    require(
        name in TEMPLATES,
        f"{name!r} is no template; there are {', '.join(TEMPLATES)}, and FILE.json"
        f" (--template).{nearest(name, TEMPLATES)}",
    )
    same = own and _kind(own) == name
    return recognised(own) if same else (name, TEMPLATES[name])


def _read(path: Path) -> Template:
    """A template of one's own: a JSON object with the fields of `Template`."""
    try:
        found = json.loads(path.read_bytes())
    except OSError:
        raise ConfigError(
            f"{path} can't be read; {_CHOOSE}, or a JSON file with the fields of a template."
        ) from None
    except (ValueError, RecursionError):
        raise ConfigError(
            f"{path} is not JSON; write an object with the fields of a template, at least user and"
            " assistant."
        ) from None
    require(
        isinstance(found, dict),
        f"{path} is no JSON object; it needs the fields of a template, at least user and"
        " assistant.",
    )
    try:
        return from_dict(Template, found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def recognised(jinja: str) -> tuple[str, Template]:
    """Gives the published template that a Jinja text writes, with its own default system prompt,
    and what it is called. The text is not run.

    Raises:
      ConfigError: it is none of those that are known.
    """
    name = _kind(jinja)
    require(
        name is not None,
        "the model's chat template is none of those known here (it begins"
        f" {' '.join(jinja.split())[:60]!r}); {_CHOOSE}.",
    )
    template = TEMPLATES[name]
    said = _DEFAULT.search(_unescaped(jinja)) if name == "chatml" else None
    return name, dataclasses.replace(template, default=said[1]) if said else template


_CHOOSE = f"choose one with --template: {', '.join(TEMPLATES)}"
_DEFAULT = re.compile(r"<\|im_start\|>system\n([^'\"{}<>]+)<\|im_end\|>")
"""The literal system prompt in a Jinja text of ChatML."""

MARKS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("phi-4", ("<|im_start|>", "<|im_sep|>", "<|im_end|>"), ()),
    ("chatml", ("<|im_start|>", "<|im_end|>"), ("<|im_sep|>",)),
    (
        "llama-3.1",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "Cutting Knowledge Date"),
        (),
    ),
    ("llama-3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), ()),
    ("gemma", ("<start_of_turn>", "<end_of_turn>", "model"), ()),
    ("llama-2", ("[INST]", "[/INST]", "<<SYS>>"), ()),
    ("mistral-v7", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]"), ("[SYSTEM_PROMPT] ", "[INST] ")),
    ("mistral-v1", ("[INST] ", " [/INST]"), ("[SYSTEM_PROMPT]",)),
    ("mistral-v3", ("[INST] ", "[/INST]"), ("[SYSTEM_PROMPT]", " [/INST]")),
    ("mistral-tekken", ("[INST]", "[/INST]"), ("[SYSTEM_PROMPT]", "[INST] ", " [/INST]")),
    ("phi-3", ("<|user|>\n", "<|assistant|>\n", "<|end|>\n"), ()),
    (
        "phi-3",
        (
            "'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n'",
            "<|assistant|>\n",
        ),
        (),
    ),
    ("zephyr", ("<|user|>\n", "<|assistant|>", "eos_token"), ("<|end|>",)),
)
"""Template → marks that its Jinja text has, and marks that it has not; the first line that holds
decides."""


def _kind(jinja: str) -> str | None:
    text = _unescaped(jinja)
    return next(
        (
            name
            for name, has, lacks in MARKS
            if all(m in text for m in has) and not any(m in text for m in lacks)
        ),
        None,
    )


def _unescaped(jinja: str) -> str:
    return jinja.replace("\\n", "\n").replace('"', "'")
