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
    left_out: int = 0
    """Number of examples that are longer than a row, and are in none."""


def pack(sizes: np.ndarray, order: np.ndarray, room: int, *, cut: bool = True) -> Packing:
    """Fills row after row with examples in their order; one that no longer fits begins the next
    row.

    Args:
      sizes: [n k]: positions that each example takes of each of k kinds of rows (that of the
        decoder, that of the encoder).
      room: positions of a row of each kind.
      cut: longer examples have a row each, which holds their beginning; otherwise they are left
        out.
    """
    long = np.any(sizes > room, axis=1)
    if not cut:
        order = order[~long[order]]
    firsts, used = [0], [0] * sizes.shape[1]
    for number, size in enumerate(np.minimum(sizes[order], room).tolist()):
        used = [a + b for a, b in zip(used, size, strict=True)]
        if max(used) > room:
            firsts.append(number)
            used = size
    return Packing(
        order=order,
        firsts=np.asarray([*firsts, len(order)], np.int64),
        cut=int(long.sum()) if cut else 0,
        left_out=0 if cut else int(long.sum()),
    )
