"""Beginnings of prompts that were read before: keys and values of whole parts, by the hash of all
that made them.

A key holds everything on which the block depends: the tokens up to its end, through the key of the
block before; the pictures of the prompt; model, adapter and programs; and a salt, so that tenants
cannot see from the speed of an answer what others asked. The hash is sha256 over fields with their
names and lengths, which nobody can make collide.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from gptjax.serve.slots import PART, Block


def block_keys(
    ids: Sequence[int],
    *,
    model: str,
    adapter: int | None = None,
    salt: bytes = b"",
    shown: bytes = b"",
) -> list[bytes]:
    """The key of each whole part that some ids begin with, 32 bytes each.

    Args:
      model: names weights, tokenizer, and the programs that compute keys and values.
      shown: hash of the pictures whose embeddings stand in place of some ids.
    """
    fields = {"model": model.encode(), "adapter": repr(adapter).encode(), "salt": salt}
    fields |= {"shown": shown}
    keys, parent = [], _hash(fields)
    for end in range(PART, len(ids) + 1, PART):
        part = np.asarray(ids[end - PART : end], "<i4").tobytes()
        parent = _hash({"parent": parent, "ids": part})
        keys.append(parent)
    return keys


def _hash(fields: dict[str, bytes]) -> bytes:
    whole = hashlib.sha256()
    for name, value in fields.items():
        for one in (name.encode(), value):
            whole.update(len(one).to_bytes(8, "little") + one)
    return whole.digest()


class Prefixes:
    """Blocks by key, at most so many bytes of them; the least recently used goes first."""

    def __init__(self, most: int) -> None:
        self.most, self.nbytes = most, 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def longest(self, keys: Sequence[bytes]) -> list[Block]:
        """The blocks of the longest beginning that is known, in order."""
        found = []
        for key in keys:
            if key not in self._blocks:
                break
            found.append(self._blocks[key])
        for key in reversed(keys[: len(found)]):  # a beginning outlives what follows it
            self._blocks.move_to_end(key)
        return found

    def add(self, key: bytes, block: Block) -> None:
        """Keeps a block, and drops the least recently used ones for which no room is left."""
        if block.nbytes > self.most or key in self._blocks:
            return
        self._blocks[key] = block
        self.nbytes += block.nbytes
        while self.nbytes > self.most:
            _, old = self._blocks.popitem(last=False)
            self.nbytes -= old.nbytes

    def clear(self) -> None:
        """Forgets everything."""
        self._blocks.clear()
        self.nbytes = 0
