"""Array types, and the one alphabet of shape letters that the whole project uses.

    B rows          T positions          S positions attended to      D width
    N query heads   K key/value heads    G = N/K queries a key head   H head width
    F feed-forward  V vocabulary         L layers                     M new tokens

No letter means two things. Einsum strings use the same letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray
from jaxtyping import Key as KeyArray

Key = PRNGKeyArray
"""A typed key of `jax.random.key`."""

Keys = KeyArray[Array, " B"]
"""One typed key for each row."""

Numbers = Array | np.ndarray
"""What a function takes that moves its arguments to the device itself."""

Params = Mapping[str, Any]
"""A tree (nested dicts) of weights, the trained values of a model."""

Share = Any
"""A number in [0, 1): a float, or one that is an argument of the program (`train.traced`)."""

Node = Any
"""A part of `Params`, down to one weight: what functions that walk the tree take and return."""

Axes = Any
"""A tree like `Params` whose leaves are tuples of logical axis names, one name for each
dimension."""

__all__ = [
    "Array",
    "Axes",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Keys",
    "Node",
    "Num",
    "Numbers",
    "Params",
    "Share",
]
