"""What all tokenizers share: a table of what each id spells, and how texts are cut to be spelled on
all cores."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from gptjax.core.config import ConfigError

Ids = np.ndarray
"""int32 [n]"""
CONFIG_FILE = "tokenizer_config.json"
UNKNOWN_BYTES = "\ufffd".encode()
"""What a piece for the unknown spells."""


class Control(NamedTuple):
    """A control token: its id, and whether it swallows the white space to its left or right."""

    id: int
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Special:
    """What a tokenizer's file does not say of its control tokens; kept beside it in
    `special.json`."""

    bos: int | None = None
    """Id that begins a text."""
    eos: int | None = None
    """Id that ends a text."""
    begins: bool = False
    """`bos` stands before each text."""
    ends: tuple[int, ...] = ()
    """More ids that end an answer."""
    control: tuple[int, ...] | None = None
    """Ids that no text may yield; none is those that tokenizer.json calls special (or
    tokenizer.model control), but that of the unknown."""
    template: str | None = None
    """The model's own chat template, in Jinja; `chat` runs it in a sandbox."""


def control_ids(
    added: Sequence[Mapping[str, Any]], template: str | None, ends: tuple[int | None, ...]
) -> tuple[int, ...] | None:
    """Returns the ids that no text may yield, where a chat template uses tokens that their file
    does not call special; `None` means the special ones.

    Args:
      added: added tokens, as in tokenizer.json.
      ends: ids that begin or end texts and answers.
    """
    written = {
        token["id"]
        for token in added
        if template and (token["content"] in template or token["id"] in ends)
    }
    special = {token["id"] for token in added if token["special"]}
    marks = {token["id"] for token in added if _MARK.fullmatch(token["content"])}
    missing = written & marks - special
    return tuple(sorted(special | missing)) if missing else None


_MARK = re.compile(r"(?=.*\w)(?=.*[^\w\s])\S+")
"""Letters and signs without white space, such as `<think>`; unlike a word or a line break."""


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Satisfies `Tokenizer`.

    `pieces` says what each id spells, with nothing for control ids; `spell` gives the ids of texts
    known to be UTF-8. `leading_space`: `encode` puts a space before the text, which `decode` takes
    off again. `spell_after`: spells what follows a control token, where that differs. `special`: of
    published tokenizers.
    """

    kind: str
    pieces: tuple[bytes, ...]
    end_of_document: int | None
    payload: Mapping[str, bytes]
    spell: Callable[[list[str]], list[Ids]]
    leading_space: bool = False
    spell_after: Callable[[list[str]], list[Ids]] | None = None
    special: Special | None = None
    controls: Mapping[str, Control] = field(default_factory=dict)

    @property
    def begin_of_document(self) -> int | None:
        """What stands before a text: where documents are made here, the id that also ends them."""
        if self.special is None:
            return self.end_of_document
        return self.special.bos if self.special.begins else None

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer, beside `end_of_document`."""
        return self.special.ends if self.special else ()

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> Ids:
        return self.encode_all([text])[0]

    def encode_after(self, text: str) -> Ids:
        utf8(text)
        return (self.spell_after or self.spell)([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        for text in texts:
            utf8(text)
        return self.spell(list(texts))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        text = self.token_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.leading_space else text

    def token_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        ids = np.asarray(ids if hasattr(ids, "__len__") else list(ids)).ravel().tolist()
        for i in ids:
            if not 0 <= i < len(self.pieces):
                raise ValueError(
                    f"the id {i} is outside the vocabulary, which has 0 to {len(self.pieces) - 1}."
                )
        return b"".join(map(self.pieces.__getitem__, ids))

    def files(self) -> dict[str, bytes]:
        hashes = {
            name: hashlib.sha256(content).hexdigest() for name, content in self.payload.items()
        }
        described = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "end_of_document": self.end_of_document,
            "sha256": hashes,
        }
        return {CONFIG_FILE: (json.dumps(described, indent=2) + "\n").encode(), **self.payload}


def utf8(text: str) -> bytes:
    """Gives the bytes of a text.

    Raises:
      ConfigError: it has a lone surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = (
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character"
            f" {error.start}"
        )
        raise ConfigError(
            f"{found}, which UTF-8 can't hold; remove it, for example with text.encode('utf-8',"
            " 'ignore').decode()."
        ) from None


def in_chunks(
    texts: list[str],
    spell: Callable[[list[str]], Iterable[Sequence[int]]],
    cut: Callable[[str], list[str]],
) -> list[Ids]:
    """Cuts texts into chunks, spells those, and joins the ids again: one long text then uses all
    cores too."""
    chunks = [cut(text) for text in texts]
    flat = [chunk for of_text in chunks for chunk in of_text]
    # A slice at a time, because a speller and its lists of Python integers need many times the
    # memory of the array.
    slices = np.cumsum([len(chunk) for chunk in flat]) // SLICE
    spelled = iter(
        [
            np.asarray(ids, np.int32)
            for _, part in itertools.groupby(zip(slices, flat, strict=True), lambda pair: pair[0])
            for ids in spell([c for _, c in part])
        ]
    )
    return [
        np.concatenate([np.zeros(0, np.int32), *(next(spelled) for _ in of_text)])
        for of_text in chunks
    ]


def at_newlines(text: str) -> Iterator[str]:
    """Cuts before a newline that follows a visible character: no piece of ours or of GPT-2's ever
    crosses that.

    BPE gives the same ids with and without cuts; unigram may give another of two equally likely
    spellings. Sixteen chunks without such a newline are cut anywhere, since spelling needs far more
    memory than the text: the ids there may differ, the text not.
    """
    start = 0
    while len(text) - start > CHUNK:
        found = _NEWLINE.search(text, start + CHUNK, start + 16 * CHUNK)
        end = found.start() if found else start + 16 * CHUNK
        if end >= len(text):
            break
        yield text[start:end]
        start = end
    yield text[start:]


CHUNK = 1 << 16
"""Characters."""
SLICE = 1 << 20
"""Characters, of many chunks, that all cores spell together."""
_NEWLINE = re.compile(r"(?<=\S)\n")


def letters() -> dict[str, int]:
    """The visible letter by which GPT-2's files write each byte: itself where it is visible, else
    one from U+0100 on."""
    visible = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


PROBE = " \n a  b\t\r\n\n\0ﬁ①e\u0301é\u3000\u2581\u2581 \U0001f642\u200d\ufeff<unk></s><0x41> "
"""All that usual normalisation changes."""
