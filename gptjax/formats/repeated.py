"""What files of other programs say twice: numbers that are the same in all models of a family, and
copies of a tensor. Ours have no leaves for them, so they are compared and left."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np

from gptjax.core.config import require
from gptjax.formats.layout import Place


def require_constants(
    places: Sequence[Place], take: Callable[[str], np.ndarray], where: str
) -> None:
    """Compares the numbers of a file that are the same in all models of its family.

    Raises:
      ConfigError: one is another than a rounding of what it should be.
    """
    for place in places:
        wanted = place.entry.constant
        if wanted is not None:
            found = float(take(place.name))
            require(
                math.isclose(found, wanted, rel_tol=0.01),
                f"{where} has {place.name} {found:g}; this program computes with {wanted:g} only.",
            )


def require_copies(
    places: Sequence[Place], take: Callable[[str], np.ndarray], names: Collection[str], where: str
) -> None:
    """Compares the tensors of a file that repeat another one.

    Raises:
      ConfigError: one holds other numbers.
    """
    first = {place.parts: place.name for place in places if not place.entry.copy}
    for place in places:
        if place.entry.copy and place.name in names:
            original = first[place.parts]
            require(
                np.array_equal(take(place.name), take(original)),
                f"{where} has {place.name} that is not its {original}, which blocks of further"
                " tokens share here; this program can't read it.",
            )
