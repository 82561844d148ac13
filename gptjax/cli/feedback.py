"""Judgements of a person who chats, kept as records to learn from.

Read `judged`, which makes a record of a line, then `keep`, which appends it to the file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError, nearest, require
from gptjax.data.tokenizers.chat import Message

COMMANDS = ("/good", "/bad", "/better")


class Judgement(NamedTuple):
    """A judged answer."""

    record: dict[str, Any]
    """As `Comparisons` reads it."""
    messages: list[Message]
    """The conversation, in which a better answer takes the place of the model's."""


def is_judgement(line: str, keeping: bool) -> bool:
    """Whether a line of input judges an answer.

    Args:
      keeping: judgements are kept; then every line that begins with a slash and a word is meant as
        one.

    Raises:
      ConfigError: it looks like a judgement and can be none.
    """
    word = line.split(maxsplit=1)[0] if line[:1] == "/" else ""
    if word in COMMANDS:
        require(keeping, f"{word} needs a file to keep it; start chat with --feedback FILE.")
        return True
    require(
        not (keeping and word[1:].isalpha()),
        f"{word} is no judgement.{nearest(word, COMMANDS)} Write /good, /bad or /better TEXT; a"
        " message may begin with a space.",
    )
    return False


def judged(line: str, messages: Sequence[Message], cut: bool) -> Judgement:
    """Returns what a line says of the last answer of a conversation.

    Args:
      cut: the answer was ended before the model ended it.

    Raises:
      ConfigError: there is no answer, or the line cannot judge it.
    """
    word, _, text = line.strip().partition(" ")
    require(
        bool(messages) and messages[-1].role == "assistant",
        f"{word} judges an answer, and there is none yet; write a message first.",
    )
    *prompt, answer = messages
    asked = [_plain(message) for message in prompt]
    if word == "/better":
        better = Message("assistant", text.strip())
        require(bool(better.text), "/better needs the better answer: /better TEXT.")
        require(better.text != answer.text, "/better has the answer that the model gave.")
        pair = {"chosen": [_plain(better)], "rejected": [_plain(answer)]}
        return Judgement({"prompt": asked, **pair}, [*prompt, better])
    require(not text.strip(), f"{word} stands alone; for a better answer write /better TEXT.")
    require(
        not (cut and word == "/good"),
        "the answer was cut, so /good would teach to end there; let it end (--new-tokens), or write"
        " /better TEXT.",
    )
    label = {"completion": [_plain(answer)], "label": word == "/good"}
    return Judgement({"prompt": asked, **label}, list(messages))


def _plain(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.text, **message.more}


def keep(file: Path, record: dict[str, Any]) -> None:
    """Appends a record as one line, which is on disk when this returns. What is there is never
    changed; a line that a kill has torn is ended first.

    Raises:
      OSError: there is no room.
    """
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with open(file, "a+b", buffering=0) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        size = stream.seek(0, os.SEEK_END)
        if size and os.pread(stream.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[stream.write(line) :]
        os.fsync(stream.fileno())


def require_writable(file: Path) -> None:
    """Creates the file of judgements where it is absent.

    Raises:
      ConfigError: it cannot be written.
    """
    try:
        with open(file, "ab") as stream:
            os.fsync(stream.fileno())
        folder = os.open(file.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise ConfigError(
            f"{file} can't be written ({error.strerror}); choose another file (--feedback)."
        ) from None
