"""A library of prompts: a TOML file of named templates with variables in braces.

    [translation]
    prompt = "Translate into {language}: {text}"
    defaults = { language = "German" }

Read `PromptTemplate`, `read_library` and `choose_prompt`; then what a template becomes:
`prompt_text`, for a model that continues text, and `prompt_messages`, for one that was trained to
chat. `parse_values` reads values from a command line.

Values are put in once and never looked at again: braces in a value are plain text, and nothing in
a template is executed. Tokenizers and chat templates in turn write a text without control tokens,
whatever it says.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError, nearest, require
from gptjax.data.tokenizers.chat import Message

Values = Mapping[str, Any]
"""Variable → text, number, or a list of texts, which is written as numbered lines."""

ANSWER = "answer"
"""Key of an example that holds its answer."""


class PromptTemplate(NamedTuple):
    """A prompt with variables."""

    name: str
    prompt: str
    """`{name}` is a variable; `{{` and `}}` are braces."""
    system: str = ""
    """What stands before all examples: the system prompt of a chat. It may have variables too."""
    about: str = ""
    """What it is for, in a sentence."""
    defaults: Values = MappingProxyType({})
    """Values of variables that need not be given."""
    examples: tuple[Values, ...] = ()
    """Worked examples, each with values of the variables and an `answer`."""
    labels: tuple[Mapping[str, str], ...] = ()
    """Label → the word that stands for it in an answer, of a template that classifies; several
    choices of words may be tried by a search."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables in the order in which they appear."""
        names = (m["name"] for m in _PIECE.finditer(self.system + self.prompt) if m["name"])
        return tuple(dict.fromkeys(names))


_PIECE = re.compile(r"\{\{|\}\}|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<lone>[{}])")
_KEYS = ("prompt", "system", "about", "defaults", "examples", "labels")
_EXAMPLE = 'prompt = "Summarise: {text}"'


# --- files


def read_library(path: Path | str) -> dict[str, PromptTemplate]:
    """Returns the templates of a TOML file by name, in the order of the file.

    Raises:
      ConfigError: the file cannot be read, or a template is malformed; names the template.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"{path} cannot be read as text; give a library of prompts in TOML (--prompts FILE)."
        ) from None
    return parse_library(text, str(path))


def parse_library(text: str, where: str) -> dict[str, PromptTemplate]:
    """Returns the templates of a library's text; see `read_library`.

    Args:
      where: name of the file, for errors.
    """
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}.") from None
    stray = [name for name, table in tables.items() if not isinstance(table, dict)]
    require(
        not stray,
        f"{where}: {stray and stray[0]!r} stands outside of a template; begin one with a line such"
        " as [summary].",
    )
    require(bool(tables), f"{where} has no templates; write a table such as [summary], {_EXAMPLE}.")
    return {name: _template(name, table, f"{where}: {name}") for name, table in tables.items()}


def library_text(templates: Iterable[PromptTemplate]) -> str:
    """Returns the text of a library; `parse_library` reads it back."""
    tables = []
    for one in templates:
        fields: list[tuple[str, Any]] = [("prompt", one.prompt)]
        fields += [(k, getattr(one, k)) for k in ("about", "system") if getattr(one, k)]
        fields += [
            (k, getattr(one, k)) for k in ("defaults", "examples", "labels") if getattr(one, k)
        ]
        lines = [f"{key} = {_toml(value)}" for key, value in fields]
        tables.append("\n".join([f"[{_toml(one.name)}]", *lines]) + "\n")
    return "\n".join(tables)


def _toml(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def choose_prompt(
    library: Mapping[str, PromptTemplate], name: str, where: str = "the library"
) -> PromptTemplate:
    """Returns the template of that name.

    Raises:
      ConfigError: there is none.
    """
    require(
        name in library,
        f"{where} has no prompt {name!r}; it has {', '.join(library)}.{nearest(name, library)}",
    )
    return library[name]


def _template(name: str, table: Mapping[str, Any], where: str) -> PromptTemplate:
    for key in table:
        require(key in _KEYS, f"{where} has {key!r}, which no template has.{nearest(key, _KEYS)}")
    for key in ("prompt", "system", "about"):
        require(isinstance(table.get(key, ""), str), f"{where}.{key} needs to be a text.")
    require(bool(table.get("prompt")), f"{where} has no prompt; write {_EXAMPLE}.")
    for key in ("prompt", "system"):
        _require_braces(table.get(key, ""), f"{where}.{key}")
    made = PromptTemplate(
        name=name,
        prompt=table["prompt"],
        system=table.get("system", ""),
        about=table.get("about", ""),
        defaults=_values(table.get("defaults", {}), f"{where}.defaults"),
        labels=_labels(table.get("labels", ()), f"{where}.labels"),
    )
    require(
        ANSWER not in made.variables,
        f"{where} has a variable {ANSWER!r}, the name of an example's answer; choose another.",
    )
    _require_known(made.defaults, made.variables, f"{where}.defaults")
    return made._replace(examples=_examples(made, table.get("examples", ()), f"{where}.examples"))


def _require_braces(text: str, where: str) -> None:
    lone = next((m for m in _PIECE.finditer(text) if m["lone"]), None)
    if lone is not None:
        near = " ".join(text[max(0, lone.start() - 10) : lone.end() + 10].split())
        raise ConfigError(
            f"{where} has a single {lone[0]} near {near!r}; write {lone[0] * 2} for a brace, or"
            " {name} for a variable."
        )


def _examples(template: PromptTemplate, given: Any, where: str) -> tuple[Values, ...]:
    require(isinstance(given, list | tuple), f"{where} needs a list of tables.")
    made = []
    for number, one in enumerate(given, 1):
        here = f"{where}, number {number},"
        values = _values(one, here)
        require(isinstance(values.get(ANSWER), str), f"{here} has no text in {ANSWER!r}.")
        fill_prompt(template, {k: v for k, v in values.items() if k != ANSWER}, here)
        made.append(values)
    return tuple(made)


def _labels(given: Any, where: str) -> tuple[Mapping[str, str], ...]:
    choices = [given] if isinstance(given, dict) else given
    usable = isinstance(choices, list | tuple) and all(
        isinstance(words, dict)
        and len({*words.values()}) == len(words) >= 2
        and all(isinstance(word, str) and word for word in words.values())
        for words in choices
    )
    require(usable, f"{where} needs two or more labels, each with a word of its own.")
    keys = {tuple(sorted(words)) for words in choices}
    require(len(keys) <= 1, f"{where} differs in its labels; each choice of words needs all.")
    return tuple(MappingProxyType(dict(words)) for words in choices)


def _values(given: Any, where: str) -> Values:
    require(isinstance(given, dict), f"{where} needs a table of values.")
    for name, value in given.items():
        _written(value, f"{where}.{name}")
    return MappingProxyType(dict(given))


def _written(value: Any, where: str) -> str:
    """The text that a value is in a prompt."""
    if isinstance(value, list | tuple):
        require(all(isinstance(one, str) for one in value), f"{where} has parts that are no texts.")
        return "\n".join(f"[{number}] {one}" for number, one in enumerate(value, 1))
    usable = isinstance(value, str | int | float) and not isinstance(value, bool)
    require(usable, f"{where} is {value!r}; it needs a text, a number or a list of texts.")
    return str(value)


# --- a template and values become a prompt


class Filled(NamedTuple):
    """A template whose variables have values."""

    system: str
    prompt: str


def fill_prompt(template: PromptTemplate, values: Values, where: str = "") -> Filled:
    """Returns the template with values in place of its variables.

    Args:
      where: begins errors; by default the name of the template.

    Raises:
      ConfigError: a variable has no value, a value no variable, or a value is not text.
    """
    where, names = where or f"the prompt {template.name}", template.variables
    _require_known(values, names, where)
    given = {**template.defaults, **values}
    missing = [name for name in names if name not in given]
    require(
        not missing,
        f"{where} has no value for {' and '.join(map(repr, missing))}; its variables are"
        f" {', '.join(names)}.",
    )
    texts = {name: _written(given[name], f"{where}: {name}") for name in names}

    def put(match: re.Match[str]) -> str:
        return texts[match["name"]] if match["name"] else match[0][0]

    return Filled(_PIECE.sub(put, template.system), _PIECE.sub(put, template.prompt))


def _require_known(values: Iterable[str], names: Sequence[str], where: str) -> None:
    unused = [name for name in values if name not in names]
    shown = ", ".join(names) or "none"
    require(
        not unused,
        f"{where} has no variable {unused and unused[0]!r}; its variables are {shown}."
        f"{nearest(unused[0], names) if unused else ''}",
    )


def prompt_text(
    template: PromptTemplate,
    values: Values,
    examples: Sequence[Values] | None = None,
) -> str:
    """Returns the prompt for a model that continues text: the system text, the examples with their
    answers, the prompt, an empty line between each two. It ends without a space, which belongs to
    the answer (`answer_after`).

    Args:
      examples: `None` takes the template's own.

    Raises:
      ConfigError: as of `fill_prompt`.
    """
    filled = fill_prompt(template, values)
    parts = [filled.system.strip()]
    for one in template.examples if examples is None else examples:
        asked = fill_prompt(template, _without_answer(one)).prompt.strip()
        parts.append(asked + answer_after(asked, str(one[ANSWER])))
    parts.append(filled.prompt.strip())
    return "\n\n".join(part for part in parts if part)


def answer_after(prompt: str, answer: str) -> str:
    """Returns an answer as it follows a prompt: after a space, as a word follows a word."""
    return answer if not prompt or prompt[-1].isspace() else f" {answer}"


def prompt_messages(
    template: PromptTemplate,
    values: Values,
    examples: Sequence[Values] | None = None,
) -> list[Message]:
    """Returns the prompt as a conversation: a system message where there is system text, each
    example as a question and its answer, then the prompt.

    Args:
      examples: `None` takes the template's own.

    Raises:
      ConfigError: as of `fill_prompt`.
    """
    filled = fill_prompt(template, values)
    talk = [Message("system", filled.system.strip())] if filled.system.strip() else []
    for one in template.examples if examples is None else examples:
        asked = fill_prompt(template, _without_answer(one)).prompt.strip()
        talk += [Message("user", asked), Message("assistant", str(one[ANSWER]))]
    return [*talk, Message("user", filled.prompt.strip())]


def _without_answer(example: Values) -> dict[str, Any]:
    return {name: value for name, value in example.items() if name != ANSWER}


# --- values of a command line


def parse_values(given: Sequence[str], flag: str = "--values") -> dict[str, str]:
    """Returns values written as NAME=TEXT or NAME=@FILE; `@-` is standard input, and `@@` begins a
    text with an @.

    Raises:
      ConfigError: a value has another form, a name is given twice, or a file cannot be read.
    """
    values: dict[str, str] = {}
    for one in given:
        name, equals, text = one.partition("=")
        require(
            bool(name and equals) and name not in values,
            f"{flag} has {one!r}; it needs NAME=TEXT or NAME=@FILE, each name once.",
        )
        values[name] = _given_text(text, f"{flag} {name}")
    return values


def _given_text(text: str, where: str) -> str:
    if not text.startswith("@") or text.startswith("@@"):
        return text.removeprefix("@")
    file = text[1:]
    try:
        if file == "-":
            return sys.stdin.buffer.read().decode("utf-8").strip("\n")
        return Path(file).read_text(encoding="utf-8").strip("\n")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"{where} is in {file}, which cannot be read as text; write @@ before a text that"
            " begins with @."
        ) from None
