"""What all tokenizers share: `Tokenizer`, a table of what each id spells and a function that spells
texts; and how long texts are cut so that all cores spell them."""

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
from gptjax.data.tokenizers.around import Around

Ids = np.ndarray
"""int32 [n]"""
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
"""A chat template that a tokenizer was given here; it takes the place of the model's own."""
UNKNOWN_BYTES = "\ufffd".encode()
"""What the piece for unknown text spells."""


class Control(NamedTuple):
    """A control token: its id, and whether it swallows the white space to its left or right."""

    id: int
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Special:
    """What a published tokenizer's file does not say of its control tokens; kept beside it in
    `special.json`."""

    bos: int | None = None
    """Id that begins a text."""
    eos: int | None = None
    """Id that ends a text."""
    begins: bool = False
    """Whether `bos` is put before each text."""
    ends: tuple[int, ...] = ()
    """Further ids that end an answer."""
    control: tuple[int, ...] | None = None
    """Ids that no text may yield; `None` means those that tokenizer.json calls special (or
    tokenizer.model control), except that of the unknown."""
    template: str | None = None
    """The model's own chat template, in Jinja; `chat` runs it in a sandbox."""


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """Text ↔ ids, whatever kind it was made from."""

    kind: str
    pieces: tuple[bytes, ...]
    """What each id spells; nothing for control tokens."""
    end_of_document: int | None
    """Id put after each document, which also ends an answer."""
    payload: Mapping[str, bytes]
    """The files that make the tokenizer, by name."""
    spell: Callable[[list[str]], list[Ids]]
    """Returns the ids of texts that are known to be valid UTF-8."""
    leading_space: bool = False
    """Whether `encode` puts a space before the text, which `decode` takes off again."""
    spell_after: Callable[[list[str]], list[Ids]] | None = None
    """Like `spell`, for texts that follow a control token, where that differs."""
    spell_answer: Callable[[list[str]], list[Ids]] | None = None
    """Like `spell`, for texts that answer others, where that differs (Marian's translations)."""
    around: Around = ((), ())
    """Ids that a published tokenizer puts before and after a text by itself."""
    special: Special | None = None
    """Of published tokenizers, the ids with a meaning, and the chat template."""
    controls: Mapping[str, Control] = field(default_factory=dict)
    """Control tokens by name: ids that mean something to the model and spell nothing."""
    unknown: int | None = None
    """Of characters, the id of those that the training text lacks; `None` refuses them."""

    @property
    def begin_of_document(self) -> int | None:
        """Id put before each text; `None` means that texts begin bare. Where documents are made
        here, it is the id that also ends them."""
        if self.special is None:
            return self.end_of_document
        return self.special.bos if self.special.begins else None

    @property
    def template(self) -> str | None:
        """Source of the model's own chat template, in Jinja."""
        if TEMPLATE_FILE in self.payload:
            return self.payload[TEMPLATE_FILE].decode()
        return self.special.template if self.special else None

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer, besides `end_of_document`."""
        return self.special.ends if self.special else ()

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    def encode(self, text: str) -> Ids:
        """Returns the ids of a text; whatever it says, no control token and no end of a document is
        among them.

        Raises:
          ConfigError: the text has a lone surrogate, or a character that a `Characters` vocabulary
            lacks.
        """
        return self.encode_all([text])[0]

    def encode_after(self, text: str) -> Ids:
        """Like `encode`, for a text that follows a control token: some tokenizers put a space
        before the first text only."""
        utf8(text)
        return (self.spell_after or self.spell)([text])[0]

    def encode_answers(self, texts: Sequence[str]) -> list[Ids]:
        """Like `encode_all`, for texts that answer others: some models of translation spell these
        with pieces of their own."""
        for text in texts:
            utf8(text)
        return (self.spell_answer or self.spell)(list(texts))

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        """Returns the ids of every text, using all cores."""
        for text in texts:
            utf8(text)
        return self.spell(list(texts))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text; the end of a document spells nothing, invalid UTF-8 becomes U+FFFD.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        text = self.token_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.leading_space else text

    def token_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        """Returns the exact bytes of ids; those of a concatenation are the concatenation of theirs,
        so they can be streamed.

        Raises:
          ValueError: an id is outside the vocabulary.
        """
        ids = np.asarray(ids if hasattr(ids, "__len__") else list(ids)).ravel().tolist()
        for i in ids:
            if not 0 <= i < len(self.pieces):
                raise ValueError(
                    f"the id {i} is outside the vocabulary, which has 0 to {len(self.pieces) - 1}."
                )
        return b"".join(map(self.pieces.__getitem__, ids))

    def files(self) -> dict[str, bytes]:
        """Returns what `save_tokenizer` writes, by file name."""
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


def control_ids(
    added: Sequence[Mapping[str, Any]], template: str | None, ends: tuple[int | None, ...]
) -> tuple[int, ...] | None:
    """Returns the ids that no text may yield, where a chat template uses tokens that their file
    does not call special; `None` means the special ones.

    Args:
      added: added tokens, as in tokenizer.json.
      ends: ids that begin or end texts and answers.
    """
    used = {
        token["id"]
        for token in added
        if template and (token["content"] in template or token["id"] in ends)
    }
    special = {token["id"] for token in added if token["special"]}
    marks = {token["id"] for token in added if _MARK.fullmatch(token["content"])}
    missing = used & marks - special
    return tuple(sorted(special | missing)) if missing else None


_MARK = re.compile(r"(?=.*\w)(?=.*[^\w\s])\S+")
"""Letters and signs without white space, such as `<think>`; unlike a word or a line break."""


def utf8(text: str) -> bytes:
    """Returns the UTF-8 bytes of a text.

    Raises:
      ConfigError: it has a lone surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character"
            f" {error.start}, which UTF-8 can't hold; remove it, for example with"
            " text.encode('utf-8', 'ignore').decode()."
        ) from None


def in_chunks(
    texts: list[str],
    spell: Callable[[list[str]], Iterable[Sequence[int]]],
    cut: Callable[[str], list[str]],
) -> list[Ids]:
    """Spells texts in chunks, so that one long text uses all cores too.

    Args:
      spell: returns the ids of chunks.
      cut: cuts a text into chunks that are spelled independently.
    """
    chunks = [cut(text) for text in texts]
    flat = [chunk for of_text in chunks for chunk in of_text]
    # A slice at a time: a speller's lists of Python integers need many times the memory of arrays.
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
    """Cuts before a newline that follows a visible character, which no piece learned here crosses.

    BPE gives the same ids with and without cuts; unigram may give another of two equally likely
    spellings. Sixteen chunks without such a newline are cut anywhere, since spelling needs far more
    memory than the text: the ids there may differ, the text does not.
    """
    start = 0
    while len(text) - start > CHUNK:
        newline = _NEWLINE.search(text, start + CHUNK, start + 16 * CHUNK)
        end = newline.start() if newline else start + 16 * CHUNK
        if end >= len(text):
            break
        yield text[start:end]
        start = end
    yield text[start:]


CHUNK = 1 << 16
"""Minimum length of a chunk, in characters."""
SLICE = 1 << 20
"""Length of the chunks that all cores spell together, in characters."""
_NEWLINE = re.compile(r"(?<=\S)\n")


def letters() -> dict[str, int]:
    """Returns visible letter → byte, as GPT-2's files write bytes: as the character itself where
    that is visible, else as one from U+0100 on."""
    visible = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


PROBE = " \n a  b\t\r\n\n\0ﬁ①e\u0301é\u3000\u2581\u2581 \U0001f642\u200d\ufeff<unk></s><0x41> "
"""Everything that common normalisations change."""
