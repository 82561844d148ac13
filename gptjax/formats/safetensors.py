"""Safetensors files: read by the `safetensors` library behind a check of the header's size, and
written one tensor at a time.

A file is eight bytes of length, that many bytes of JSON, and the tensors. The library parses and
checks the JSON, but accepts up to 100 MB of it, which costs several times that in memory. It writes
only what is in memory as a whole, hence our own `write_safetensors`.
"""

from __future__ import annotations

import functools
import json
import math
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from gptjax.core.config import ConfigError, require

LONGEST = 4 << 20
"""Maximum size of a header, in bytes: about 35,000 tensors, many times what the largest shards
hold."""

DTYPES = {
    "float32": ("F32", np.dtype("<f4")),
    "float16": ("F16", np.dtype("<f2")),
    "bfloat16": ("BF16", np.dtype(jax.numpy.bfloat16)),
}
"""Types in which whole models are written, and their names in the file."""

WRITTEN = DTYPES | {
    "int32": ("I32", np.dtype("<i4")),
    "int64": ("I64", np.dtype("<i8")),
    "uint8": ("U8", np.dtype("u1")),
}
"""Those of single tensors."""

NARROW = {
    "F8_E4M3": jax.numpy.float8_e4m3fn,
    "F8_E5M2": jax.numpy.float8_e5m2,
    "F8_E8M0": jax.numpy.float8_e8m0fnu,
}
"""Types of quantised weights and their scales."""


class Tensor(NamedTuple):
    """What a header says about one tensor."""

    dtype: str
    """F32, BF16, I64, …"""
    shape: tuple[int, ...]


class File:
    """An open file: `tensors` lists what is in it, `take(name)` reads one.

    Raises:
      ConfigError: the file is absent, not a regular file, damaged, or has too long a header.
    """

    def __init__(self, path: Path):
        self.path, self._size = path, _checked_size(path)
        try:
            self._file = safe_open(path, "numpy")
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{path} is damaged, or not a safetensors file: {reason}; get it again."
            ) from None
        self.tensors: dict[str, Tensor] = {}
        for name in self._file.keys():  # noqa: SIM118 it is not a dict
            described = self._file.get_slice(name)
            self.tensors[name] = Tensor(described.get_dtype(), tuple(described.get_shape()))

    def take(self, name: str) -> np.ndarray:
        """Reads a tensor.

        Raises:
          ConfigError: the file is shorter than when it was opened.
        """
        require(  # the library maps the file: reading behind its end would kill the process
            self.path.stat().st_size == self._size,
            f"{self.path} was cut short while it was read; get the file again.",
        )
        if self.tensors[name].dtype in NARROW:  # which the library does not give as numpy's arrays
            begin, end = self._places[name]
            data = np.fromfile(self.path, np.uint8, end - begin, offset=begin)
            kind = np.dtype(NARROW[self.tensors[name].dtype])
            return data.view(kind).reshape(self.tensors[name].shape)
        return self._file.get_tensor(name)

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Where each tensor begins and ends in the file, by the header that the library checked."""
        with self.path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        return {
            name: (8 + size + entry["data_offsets"][0], 8 + size + entry["data_offsets"][1])
            for name, entry in header.items()
        }


def _checked_size(path: Path) -> int:
    """Returns the size of a file whose header is short enough for the library to parse."""
    try:
        status = path.stat()
        require(stat.S_ISREG(status.st_mode), f"{path} is not a regular file; get the file again.")
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; get the file again.") from None
    length = int.from_bytes(start[:8], "little")
    broken = f"{path} is cut short, or not a safetensors file; get the file again."
    require(len(start) == 9 and length <= status.st_size - 8, broken)
    require(
        length <= LONGEST,
        f"{path} has a header of {length:,} bytes; at most {LONGEST:,} are read. Split the file"
        " into smaller shards.",
    )
    require(start[8:] == b"{", broken)
    return status.st_size


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    values: Iterable[tuple[str, np.ndarray]],
    dtype: str | Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file, holding one tensor at a time.

    Args:
      shapes: of all tensors, in the order in which `values` yields them.
      dtype: one of `WRITTEN` for all tensors, or for each; values are rounded to it.

    Raises:
      ValueError: `values` yields something else than `shapes` promises.
    """
    kinds = {
        tensor: WRITTEN[dtype if isinstance(dtype, str) else dtype[tensor]] for tensor in shapes
    }
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor, shape in shapes.items():
        name, stored = kinds[tensor]
        begin, end = end, end + math.prod(shape) * stored.itemsize
        header[tensor] = {"dtype": name, "shape": list(shape), "data_offsets": [begin, end]}
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for (tensor, shape), (given, value) in zip(shapes.items(), values, strict=True):
            if (given, value.shape) != (tensor, shape):
                raise ValueError(f"{given} {value.shape} was given instead of {tensor} {shape}.")
            data = np.ascontiguousarray(value.astype(kinds[tensor][1], copy=False))
            file.write(memoryview(data.view(np.uint8).reshape(-1)))
