"""Training text as words, document by document, in bounded memory.

`store_documents` reads it from a run's own token store, `text_documents` from documents; both give
documents as pieces of text, which `word_pieces` cuts into words.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator

from gptjax.data.store import Store
from gptjax.data.tokenizers.tokenizer import Tokenizer

PIECE = 2**16
"""Ids of a store that are decoded at once."""

Documents = Iterable[Iterable[str]]
"""Documents, each in pieces that follow each other without a gap."""

_WORDS = re.compile(r"[㐀-䶿一-鿿豈-﫿぀-ヿ]|[^\W_㐀-䶿一-鿿豈-﫿぀-ヿ]+")
"""Runs of letters and digits; each Chinese character and each kana is a word, since there are no
spaces."""


def plain_words(text: str) -> list[str]:
    """Returns the words of a text, in lower case and without punctuation."""
    return _WORDS.findall(text.lower().replace("’", "").replace("'", ""))


def word_pieces(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Yields the words of a document, piece by piece; a word that two pieces share is whole."""
    waiting = ""
    for piece in pieces:
        text = waiting + piece
        # What follows the last white space may be the beginning of a longer word.
        cut = max(text.rfind(" "), text.rfind("\n")) + 1
        if not cut and len(text) < PIECE:
            waiting = text
            continue
        cut = cut or len(text)
        waiting = text[cut:]
        yield plain_words(text[:cut])
    yield plain_words(waiting)


def store_documents(
    store: Store, tokenizer: Tokenizer, *, backward: bool = False
) -> Iterator[Iterator[str]]:
    """Yields the documents of a store as text. Ids that spell nothing, such as the ends of
    documents and the marks of a task, become line breaks.

    Args:
      backward: the store holds each document from its end to its beginning.
    """
    for begin, end in zip(store.offsets[:-1].tolist(), store.offsets[1:].tolist(), strict=True):
        yield _decoded(store, tokenizer, begin, end, backward)


def _decoded(
    store: Store, tokenizer: Tokenizer, begin: int, end: int, backward: bool
) -> Iterator[str]:
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    starts = range(begin, end, PIECE)
    for at in reversed(starts) if backward else starts:
        ids = store.ids[at : min(at + PIECE, end)].tolist()
        ids = ids[::-1] if backward else ids
        spelled = (tokenizer.pieces[i] if i < tokenizer.vocab_size else b"" for i in ids)
        yield utf8.decode(b"".join(piece or b"\n" for piece in spelled))
    yield utf8.decode(b"", final=True)


def text_documents(texts: Iterable[str]) -> Iterator[Iterator[str]]:
    """Yields texts that are in memory as documents in pieces."""
    for text in texts:
        yield (text[at : at + PIECE] for at in range(0, len(text), PIECE))
