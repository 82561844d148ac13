"""`gptjax evaluate MODEL --tasks FILE --prompts FILE --search`: the prompt that asks best.

Read `SearchOptions`, then `run_search`.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptjax.api import Model, load
from gptjax.core.config import ConfigError, require
from gptjax.data.prompt_library import library_text, read_library
from gptjax.data.tokenizers import chat as chats
from gptjax.evaluate.labelled import drawn_items, read_labelled
from gptjax.evaluate.prompt_search import PromptSearch, grid_of, search_prompts
from gptjax.evaluate.report import as_json
from gptjax.evaluate.respond import respond
from gptjax.evaluate.tasks import Chat


@dataclass(frozen=True)
class SearchOptions:
    """Flags of a search for a prompt."""

    tasks: str
    """File of labelled records: each has a `label`, and values of the variables of templates; or
    questions that share their choices."""
    prompts: str
    """Library of prompts, a TOML file of templates."""
    named: tuple[str, ...] = ()
    """Templates to try; by default all that fit the records and have labels."""
    shots: tuple[int, ...] = (0, 4)
    """Numbers of examples to try, drawn from the half that selects."""
    forms: tuple[Literal["text", "chat"], ...] = ("text",)
    """Forms to try: `text` to continue, `chat` by the chat template."""
    template: str | None = None
    """Chat template: a name such as chatml, or a .jinja file; `None` means the model's own."""
    limit: int | None = None
    """Number of items, of which one half selects; `None` is all."""
    seed: int = 0
    """Divides the items and draws examples."""
    encoding: str = "utf-8"
    """Encoding of the file, as Python names it."""
    out: str = "evaluations/search"
    """Folder for search.json, and for prompt.toml with the chosen prompt and its examples."""
    step: int | None = None
    """Checkpoint of a run; `None` means the newest."""
    live: bool = False
    """Take the latest weights of a run, also where it kept averaged ones (--optim.ema)."""
    rows: int = 4
    """Rows of 256 tokens that are computed together."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        require(
            bool(self.shots) and min(self.shots) >= 0,
            "shots needs numbers of examples, 0 or more (--shots 0 4).",
        )
        require(bool(self.forms), "forms needs text, chat or both (--forms text chat).")
        require(
            self.limit is None or self.limit >= 2,
            f"limit is {self.limit}; a search needs at least 2 items (--limit 200).",
        )


def run_search(path: Path, options: SearchOptions) -> None:
    """Searches, prints what was found, and keeps it.

    Raises:
      ConfigError: a file, a flag or the model cannot be used.
    """
    items = read_labelled(options.tasks, options.encoding)
    items = drawn_items(items, options.limit, options.seed)
    library = read_library(options.prompts)
    grid = grid_of(
        library,
        items,
        named=options.named,
        shots=options.shots,
        forms=options.forms,
        where=options.prompts,
    )
    print(f"{path}: {len(grid)} prompts on {len(items):,} items", file=sys.stderr, flush=True)
    model = load(path, options.step, live=options.live)
    chat = _chat(model, options.template) if "chat" in options.forms else None
    ask = functools.partial(respond, model, rows=options.rows)
    found = search_prompts(ask, grid, items, seed=options.seed, chat=chat)
    folder = Path(options.out)
    _write(found, folder)
    if options.json:
        print(json.dumps(search_json(found), ensure_ascii=False, allow_nan=False))
        return
    print("\n".join(search_lines(found)))
    values = " ".join(f"{name}=…" for name in found.chosen.template.variables)
    print(
        f"written to {folder}/prompt.toml and search.json; next: gptjax sample {path} --prompts"
        f" {folder}/prompt.toml --named chosen --form {found.chosen.form} --values {values}"
    )


def _chat(model: Model, template: str | None) -> Chat:
    form = chats.choose_template(template, model.tokenizer)
    chats.require_controls(form, model.tokenizer)
    return Chat(
        write=lambda messages: chats.render(form, messages, model.tokenizer),
        text=model.tokenizer.decode,
    )


def _write(found: PromptSearch, folder: Path) -> None:
    """Keeps the figures, and the chosen prompt as a library of one."""
    one = found.chosen
    chosen = one.template._replace(
        name="chosen",
        labels=(one.words,),
        examples=(*one.template.examples, *found.examples),
    )
    held = found.held_out
    head = f"# {one.name}; {held.value:.3f} on {held.n} items that it was not chosen by\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prompt.toml").write_text(head + library_text([chosen]), encoding="utf-8")
        text = json.dumps(search_json(found), ensure_ascii=False, indent=1, allow_nan=False)
        (folder / "search.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder} can't be written ({error.strerror}); choose another folder (--out DIR)."
        ) from None


def search_json(found: PromptSearch) -> dict[str, Any]:
    """Returns what a search found, for JSON."""
    return {
        "chosen": found.chosen.name,
        "held_out": as_json(found.held_out),
        "majority": found.majority,
        "gain": as_json(found.gain),
        "held_out_gain": as_json(found.held_out_gain),
        "survived": found.survived,
        "candidates": [as_json(row) for row in found.rows],
    }


MOST_LINES = 20
"""Candidates that are printed."""


def search_lines(found: PromptSearch) -> Sequence[str]:
    """Returns what a search found, for people."""
    held, gain, kept = found.held_out, found.gain, found.held_out_gain
    lines = ["selection  held out               prompt"]
    for number, row in enumerate(found.rows[:MOST_LINES]):
        one = row.held_out
        mark = "  ← chosen" if number == 0 else ""
        lines.append(
            f"{row.selection.value:9.3f}  {one.value:.3f} ({one.low:.3f}-{one.high:.3f})  "
            f"{row.name}{mark}"
        )
    if len(found.rows) > MOST_LINES:
        lines.append(f"… and {len(found.rows) - MOST_LINES} more, in search.json")
    share = "" if found.survived is None else f": {found.survived:.0%} of it survives"
    lines.append(
        f"{held.value:.3f} ({held.low:.3f} to {held.high:.3f}) on {held.n:,} items that did not"
        f" choose it; the commonest label has {found.majority:.3f}"
    )
    lines.append(
        f"gain over the mean of the grid: {gain.value:+.3f} on the items that chose it,"
        f" {kept.value:+.3f} ({kept.low:+.3f} to {kept.high:+.3f}) on the others{share}"
    )
    return lines
