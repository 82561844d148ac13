"""`--prompts FILE --named NAME --values …`: prompts of a library, for the commands that ask a
model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gptjax.core.config import ConfigError, require
from gptjax.data.prompt_library import (
    PromptTemplate,
    Values,
    choose_prompt,
    fill_prompt,
    parse_values,
    prompt_messages,
    prompt_text,
    read_library,
)
from gptjax.data.tokenizers import chat

if TYPE_CHECKING:
    from gptjax.data.tasks import Task
    from gptjax.data.tokenizers.tokenizer import Tokenizer
    from gptjax.generate import GenerateConfig

Form = Literal["auto", "chat", "text"]


@dataclass(frozen=True)
class LibraryOptions:
    """Flags that choose a prompt of a library."""

    prompts: str | None = None
    """Library of prompts, a TOML file of templates with variables; --named chooses one."""
    named: str | None = None
    """Name of the template."""
    values: tuple[str, ...] = ()
    """Values of its variables, NAME=TEXT or NAME=@FILE; `@-` is standard input."""
    form: Form = "auto"
    """How a template is written: `chat` by the model's chat template, `text` to be continued;
    `auto` is `chat` where the model has a chat template."""


class LibraryPrompt(NamedTuple):
    """A template, and the values of each prompt to write with it."""

    template: PromptTemplate
    records: tuple[Values, ...]
    form: Form


def library_prompt(options: LibraryOptions, file: str | None = None) -> LibraryPrompt | None:
    """Returns the prompt that flags choose, with its values; `None` where they choose none.

    Args:
      file: JSON lines, each with values of one prompt. Fields of a record that the template does
        not name are left out; `options.values` are those of all records.

    Raises:
      ConfigError: a flag lacks another one, or the values do not fit the template.
    """
    if options.prompts is None:
        given = [name for name in ("named", "values") if getattr(options, name)]
        require(not given, f"--{given and given[0]} needs a library (--prompts FILE.toml).")
        require(options.form == "auto", "--form needs a library (--prompts FILE.toml).")
        return None
    library = read_library(options.prompts)
    if options.named is None:
        raise ConfigError(
            f"--named is missing; {options.prompts} has {', '.join(library)} (--named NAME)."
        )
    template = choose_prompt(library, options.named, options.prompts)
    values = parse_values(options.values)
    records: tuple[Values, ...] = (values,)
    if file is not None:
        known = set(template.variables)
        records = tuple(
            {**{k: v for k, v in one.items() if k in known}, **values}
            for one in _read_records(Path(file))
        )
    for number, one in enumerate(records, 1):
        fill_prompt(template, one, f"{file}:{number}: {template.name}" if file else "")
    return LibraryPrompt(template, records, options.form)


def _read_records(file: Path) -> list[Mapping[str, Any]]:
    require(
        file.suffix == ".jsonl",
        f"{file} is no .jsonl file; the values of a template are JSON objects, one a line"
        " (--prompt-file FILE.jsonl).",
    )
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{file} cannot be read as text (--prompt-file FILE.jsonl).") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        require(isinstance(record, dict), f"{file}:{number} is no JSON object.")
        records.append(record)
    require(bool(records), f"{file} is empty; give values, one JSON object a line.")
    return records


def written_prompts(
    asked: LibraryPrompt, tokenizer: Tokenizer, task: Task, settings: GenerateConfig
) -> tuple[list[str | list[int]], GenerateConfig]:
    """Returns the prompts as the model takes them, and the settings, by which an answer in a chat
    also ends where the chat template ends it.

    Raises:
      ConfigError: a chat is wanted, and the model reads texts alone.
    """
    form, writes = asked.form, task.writes and not task.answers
    if form == "auto":
        form = "chat" if tokenizer.template and writes else "text"
    if form == "text":
        return [prompt_text(asked.template, one) for one in asked.records], settings
    require(writes, "this model reads texts and no conversations; use --form text.")
    template = chat.choose_template(None, tokenizer)
    ids = [
        chat.render(template, prompt_messages(asked.template, one), tokenizer)
        for one in asked.records
    ]
    closing = chat.ends(template, tokenizer)
    stop, stop_ids = (*settings.stop, *closing.texts), (*settings.stop_ids, *closing.ids)
    return [*ids], dataclasses.replace(settings, stop=stop, stop_ids=stop_ids)
