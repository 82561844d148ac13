"""Pieces of tokenised text, chosen at random: what memorisation is measured on.

`pieces_of` chooses them in a store; `texts_as_store` makes one in memory of the texts of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gptjax.core.config import require
from gptjax.data.store import Header, Store
from gptjax.data.tokenizers.tokenizer import Tokenizer


def pieces_of(store: Store, count: int, size: int, seed: int) -> list[list[int]]:
    """Returns pieces of `size` ids that do not overlap, each inside one example; all that there are
    if they are fewer than `count`.

    No example gives a second piece before each that is long enough has given one: pieces of the
    same document are alike, and figures take pieces as independent.

    Raises:
      ConfigError: no example is that long.
    """
    lengths = np.diff(store.offsets)
    places = lengths // size
    where = store.path or "the text"
    require(
        bool(places.sum()),
        f"no document of {where} has {size} tokens; measure shorter pieces (--prefix, --length).",
    )
    numbers = np.random.default_rng(seed)
    pieces: list[list[int]] = []
    examples = numbers.permutation(np.flatnonzero(places))
    orders: dict[int, np.ndarray] = {}
    for turn in range(int(places.max())):
        for example in examples[places[examples] > turn].tolist():
            if len(pieces) == count:
                return pieces
            order = orders.setdefault(example, numbers.permutation(places[example]))
            begin = int(store.offsets[example]) + int(order[turn]) * size
            pieces.append(np.asarray(store.ids[begin : begin + size]).tolist())
    return pieces


def texts_as_store(texts: Iterable[str], tokenizer: Tokenizer) -> Store:
    """Returns a store in memory, each text between the ids that begin and end a document."""
    begin, end = tokenizer.begin_of_document, tokenizer.end_of_document
    examples = []
    for text in texts:
        ids = [[begin], tokenizer.encode(text), [end]]
        examples.append(np.concatenate([part for part in ids if list(part) != [None]]))
    return ids_as_store(examples, tokenizer.vocab_size)


def ids_as_store(examples: Sequence[np.ndarray], vocab_size: int) -> Store:
    """Returns a store in memory of examples given as ids."""
    offsets = np.cumsum([0, *map(len, examples)]).astype(np.int64)
    header = Header("int32", vocab_size, int(offsets[-1]), len(examples), 0, "", {})
    ids = np.concatenate([np.zeros(0), *examples]).astype(np.int32)
    return Store(header, ids, offsets)
