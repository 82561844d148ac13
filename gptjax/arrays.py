"""Array types, and the one alphabet of shape letters that the whole project uses.

    B rows          T positions          S positions attended to      D width
    N query heads   K key/value heads    G = N/K queries a key head   H head width
    F feed-forward  V vocabulary         L layers                     M new tokens

No letter means two things. Einsum strings use the same letters.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Key = PRNGKeyArray
"""A typed key of `jax.random.key`."""

Params = Any
"""A tree (nested dicts) of arrays, the trained values of a model."""

Axes = Any
"""A tree like `Params` whose leaves are tuples of logical axis names, one name for each dimension."""

__all__ = ["Array", "Axes", "Bool", "Float", "Int", "Key", "Params"]
