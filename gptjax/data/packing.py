"""Packs whole examples into rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Packing(NamedTuple):
    """Rows of whole examples: row r holds `order[firsts[r] : firsts[r + 1]]`."""

    order: np.ndarray
    """int64: examples in the order in which they lie in rows."""
    firsts: np.ndarray
    """int64: place in `order` of each row's first example, then the number of examples."""
    cut: int
    """Number of examples that are longer than a row, and lose their end."""


def pack(sizes: np.ndarray, order: np.ndarray, room: int) -> Packing:
    """Fills row after row with examples in their order; one that no longer fits begins the next
    row.

    Args:
      sizes: [n k]: positions that each example takes of each of k kinds of rows (that of the
        decoder, that of the encoder).
      room: positions of a row of each kind.
    """
    firsts, used = [0], [0] * sizes.shape[1]
    for number, size in enumerate(np.minimum(sizes[order], room).tolist()):
        used = [a + b for a, b in zip(used, size, strict=True)]
        if max(used) > room:
            firsts.append(number)
            used = size
    return Packing(
        order=order,
        firsts=np.asarray([*firsts, len(order)], np.int64),
        cut=int((sizes > room).any(axis=1).sum()),
    )
