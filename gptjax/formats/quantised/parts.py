"""The tensors that make up one quantised weight: `Parts`, whose types and shapes are checked before
any is read, `Scheme`, a way of storing weights, and `assembled`, which finds them in a directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from gptjax.core.config import require
from gptjax.formats.keys import Keys
from gptjax.formats.quantised.grid import Grid, widened

FLOATS = ("F16", "BF16", "F32")
"""Types of scales."""


class Raw(Protocol):
    """A tensor of a file, not yet read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """From the header."""
        ...

    @property
    def dtype(self) -> str:
        """F32, I32, …"""
        ...

    def take(self) -> np.ndarray:
        """Reads it."""
        ...


class Parts(NamedTuple):
    """The tensors of one weight by the ends of their names."""

    name: str
    """What their names begin with."""
    where: str
    tensors: Mapping[str, Raw]

    def has(self, end: str) -> bool:
        """Whether there is such a tensor."""
        return end in self.tensors

    def need(self, end: str, dtypes: Collection[str], *shapes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a tensor, which must be there and of one of these types and shapes;
        without `shapes` any is right.

        Raises:
          ConfigError: names what it is, and what it should be.
        """
        require(
            end in self.tensors,
            f"{self.where} lacks {self.name}{end}, without which the quantised {self.name} can't be"
            " read; get it again.",
        )
        tensor = self.tensors[end]
        allowed = " or ".join(map(str, map(list, shapes)))
        require(
            tensor.dtype in dtypes and (not shapes or tensor.shape in shapes),
            f"{self.where} has {self.name}{end} as {tensor.dtype} {list(tensor.shape)}; its"
            f" quantisation needs {' or '.join(dtypes)} {allowed}: get it again.",
        )
        return tensor.shape

    def matrix(self, end: str, dtypes: Collection[str]) -> tuple[int, int]:
        """Returns the shape of a tensor of two dimensions that is not empty.

        Raises:
          ConfigError: it is absent, of another type, or no such matrix.
        """
        shape = self.need(end, dtypes)
        self.check(len(shape) == 2 and min(shape) > 0, end, f"has the shape {list(shape)}")
        return shape[0], shape[1]

    def check(self, good: bool, end: str, what: str) -> None:
        """Refuses a tensor: it `what`.

        Raises:
          ConfigError: it is not good.
        """
        require(good, f"{self.where} has a damaged {self.name}{end}: it {what}; get it again.")

    def take(self, end: str) -> np.ndarray:
        """Reads a tensor.

        Raises:
          ConfigError: it has numbers that are not finite.
        """
        values = self.tensors[end].take()
        if values.dtype.kind not in "iu":
            self.check(bool(np.isfinite(values).all()), end, "has numbers that are not finite")
        return values


class Scheme(NamedTuple):
    """A way of storing weights in several tensors."""

    method: str
    """Its name in config.json."""
    main: str
    """The end of the name of the tensor that holds the values."""
    beside: tuple[str, ...]
    """The ends of the names of those that belong to it."""
    weight: str
    """The end of the weight's own name."""
    check: Callable[[Parts], tuple[int, ...]]
    """Returns the weight's shape, from the headers alone."""
    read: Callable[[Parts], Grid]
    unused: str = r"(?!)"
    """Pattern of names of further tensors that no weight needs: scales of activations."""


class QuantisedTensor(NamedTuple):
    """A weight that several tensors make up; read like any other."""

    parts: Parts
    scheme: Scheme
    shape: tuple[int, ...]
    dtype: str = "F32"
    """What `take` gives."""

    def grid(self) -> Grid:
        """Reads it as it is stored.

        Raises:
          ConfigError: a part is damaged.
        """
        grid = self.scheme.read(self.parts)
        if grid.shape != self.shape:
            raise ValueError(f"{self.parts.name} was read as {grid.shape}, not {self.shape}.")
        return grid

    def take(self) -> np.ndarray:
        """Reads it in float32.

        Raises:
          ConfigError: a part is damaged, or a number is too large.
        """
        with np.errstate(all="ignore"):
            numbers = widened(self.grid())
        self.parts.check(bool(np.isfinite(numbers).all()), self.scheme.main, "is not finite")
        return numbers


def assembled(
    tensors: Mapping[str, Any], scheme: Scheme | None, where: str
) -> dict[str, Raw | QuantisedTensor]:
    """Returns the tensors of a directory with each quantised weight as one, under its own name.

    Raises:
      ConfigError: a weight lacks a part, or one is of the wrong type or shape.
    """
    if scheme is None:
        return dict(tensors)
    left = {name: raw for name, raw in tensors.items() if not re.search(scheme.unused, name)}
    result: dict[str, Raw | QuantisedTensor] = {}
    for name in [name for name in left if name.endswith(scheme.main)]:
        start = name.removesuffix(scheme.main)
        found = {end: left.pop(start + end) for end in scheme.beside if start + end in left}
        if not found and scheme.main == scheme.weight:
            continue  # a plain weight
        weight = start + scheme.weight
        parts = Parts(start, where, {scheme.main: left.pop(name), **found})
        require(
            weight not in left and weight not in result,
            f"{where} has {weight} and, quantised, {name}; get it again.",
        )
        result[weight] = QuantisedTensor(parts, scheme, scheme.check(parts))
    return {**left, **result}


# --- what config.json says


def finish_settings(keys: Keys, harmless: Collection[str]) -> None:
    """Refuses settings of a quantisation that nothing took and that are not known to be harmless.

    Raises:
      ConfigError: names each with its value.
    """
    unknown = {
        key: value
        for key, value in keys.left.items()
        if key not in harmless and value not in (None, [], {})
    }
    listed = ", ".join(f"{key!r}: {str(value)[:60]}" for key, value in sorted(unknown.items()))
    require(
        not unknown,
        f"{keys.where} has {listed}, which may change what the weights are and is not known here;"
        " use the unquantised model.",
    )
