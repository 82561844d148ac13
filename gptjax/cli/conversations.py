"""`gptjax inspect FILE`: conversations as the model will read them, each token marked by whether it
counts, in the terminal and as a page.

Read `ConversationOptions` and `show_conversations`, then `shown_tokens`, then the two forms:
`in_terminal` and `as_page`.
"""

from __future__ import annotations

import html
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.conversations import Conversations, load_record, read_conversations
from gptjax.data.tasks.chat import Chat, Rendered, Writer, render_record
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Bytes, Tokenizer
from gptjax.runs.open import open_tokenizer


@dataclass(frozen=True)
class ConversationOptions:
    """Flags of `inspect` for a file of conversations."""

    template: str | None = None
    """Chat template: a name such as chatml, or a .jinja file; `None` is the model's own."""
    model: str | None = None
    """Run, Hugging Face directory, GGUF file or smollm2, whose tokenizer is used; `None` uses
    bytes."""
    loss_on: Literal["all", "last"] = "all"
    """Answers that are learned: all of a conversation, or the last."""
    completion: str = "completion"
    """Key of what answers a `prompt`."""
    context: int | None = None
    """Tokens of a row; says which conversations would be left out."""
    rows: int = 3
    """Number of records to show."""
    html: str | None = None
    """File to write as a page, instead of showing records here."""


class Token(NamedTuple):
    """A token as it is shown."""

    text: str
    """What it spells, or the name of a control token."""
    id: int
    counts: bool
    control: bool


class Shown(NamedTuple):
    """A record as it is shown."""

    name: str
    tokens: list[Token]
    too_long: bool


def show_conversations(path: Path, options: ConversationOptions) -> None:
    """Prints what of the first records counts, or writes it as a page; then the share of all
    records.

    Raises:
      ConfigError: a record or the template cannot be used.
    """
    require(options.rows >= 0, f"rows is {options.rows}; it needs 0 or more (--rows 3).")
    base = (
        tokenizers.train_tokenizer(Bytes(), [])
        if options.model is None
        else open_tokenizer(options.model)
    )
    task = Chat(options.template, options.loss_on).resolve(())
    tokenizer = task.equip(base)
    records = _records(path, options, tokenizer)
    first = list(itertools.islice(records, options.rows))
    if options.html is None:
        colours = sys.stdout.isatty()
        for record in first:
            print(in_terminal(record, colours), end="\n\n")
    count = learned = tokens = left_out = 0
    for record in itertools.chain(first, records):
        count, left_out = count + 1, left_out + record.too_long
        learned += sum(token.counts for token in record.tokens)
        tokens += len(record.tokens)
    says = (
        f"{path}: {count:,} records, {learned:,} of {tokens:,} tokens count"
        f" ({learned / max(1, tokens):.0%})"
    )
    if options.context:
        says += f"; {left_out:,} longer than a row of {options.context} are left out"
    if options.html is not None:
        Path(options.html).write_text(as_page(first, says), encoding="utf-8")
        says += f"; the first {len(first)} are in {options.html}"
    print(says)


def _records(path: Path, options: ConversationOptions, tokenizer: Tokenizer) -> Iterator[Shown]:
    writer = Writer.of(tokenizer)
    for document in read_conversations(Conversations(str(path), options.completion)):
        try:
            made = render_record(load_record(document.text), writer, options.loss_on)
        except ConfigError as error:
            raise ConfigError(f"{document.name} {error}") from None
        too_long = options.context is not None and len(made.ids) - 1 > options.context
        yield Shown(document.name, shown_tokens(made, tokenizer), too_long)


def shown_tokens(made: Rendered, tokenizer: Tokenizer) -> list[Token]:
    """Returns the tokens of a record. A character that several tokens spell is at the last of them,
    so that the texts together are the text."""
    names = {control.id: name for name, control in tokenizer.controls.items()}
    tokens, waiting = [], b""
    for i, counts in zip(made.ids.tolist(), made.counts.tolist(), strict=True):
        spelled = waiting + tokenizer.token_bytes([i])
        control = i in names or not tokenizer.pieces[i]
        try:
            text, waiting = spelled.decode(), b""
        except UnicodeDecodeError as error:
            whole = len(spelled) - error.start < 4 and error.reason == "unexpected end of data"
            cut = error.start if whole else len(spelled)
            text, waiting = spelled[:cut].decode(errors="replace"), spelled[cut:]
        text = names.get(i, "⟨end⟩") if control else text
        tokens.append(Token(text, i, counts, control))
    return tokens


# --- in the terminal

COUNTED, READ, CONTROL, PLAIN = "\x1b[30;42m", "\x1b[2m", "\x1b[35m", "\x1b[0m"


def in_terminal(record: Shown, colours: bool) -> str:
    """Returns a record as lines: what counts on green, or between ⟦ and ⟧ without colours."""
    count = sum(token.counts for token in record.tokens)
    note = ", longer than a row: left out" if record.too_long else ""
    lines = [f"{record.name}: {count} of {len(record.tokens)} tokens count{note}"]
    text = ""
    for counts, tokens in itertools.groupby(record.tokens, lambda token: token.counts):
        if colours:
            text += "".join(_coloured(token) for token in tokens)
        else:
            said = "".join(_visible(token.text) for token in tokens)
            text += f"⟦{said}⟧" if counts else said
    return "\n".join([*lines, text])


def _coloured(token: Token) -> str:
    style = COUNTED if token.counts else READ + (CONTROL if token.control else "")
    shown = _visible(token.text)
    if token.counts:
        shown = shown.replace("\n", "↵\n")
    return "\n".join(f"{style}{line}{PLAIN}" if line else "" for line in shown.split("\n"))


def _visible(text: str) -> str:
    """The text without characters that would command the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


# --- as a page

STYLE = """\
:root { color-scheme: light dark }
body { font: 15px/1.6 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
h2 { font-size: 1em; margin: 2em 0 .4em }
pre { font: 14px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 0; padding: 1em; border: 1px solid #8886; border-radius: 6px }
span { border-radius: 3px; box-shadow: inset 0 0 0 1px #8882 }
.n { background: #2a9d4a55 }
.c { font-weight: 600; color: #a03ab8 }
@media (prefers-color-scheme: dark) { .c { color: #d89be6 } }
"""


def as_page(records: Sequence[Shown], says: str) -> str:
    """Returns a page of HTML that needs nothing else; a token's id and weight show under the
    pointer.

    Args:
      says: what is above the records.
    """
    parts = []
    for record in records:
        tokens = "".join(
            f'<span class="{"n" * token.counts}{" c" * token.control}" title="id {token.id},'
            f' weight {int(token.counts)}">{_escaped(token)}</span>'
            for token in record.tokens
        )
        note = " (longer than a row: left out)" if record.too_long else ""
        parts.append(f"<h2>{html.escape(record.name)}{note}</h2>\n<pre>{tokens}</pre>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">\n<title>What counts</title>\n'
        f"<style>\n{STYLE}</style>\n<h1>What counts</h1>\n<p>{html.escape(says)}. Tokens on"
        ' <span class="n">green</span> have the weight 1: the model learns to write them. It only'
        f" reads the others.</p>\n{body}\n</html>\n"
    )


def _escaped(token: Token) -> str:
    text = html.escape(_visible(token.text))
    return text.replace("\n", "↵\n") if token.counts else text
