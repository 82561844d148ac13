"""Writes GGUF files, holding one tensor in memory at a time.

`gguf.GGUFWriter` is not used: it refuses an empty list, which the merges of a tokenizer of bytes
are (llama.cpp needs the key).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from gptjax.formats.gguf_file import FLOAT, LIST, SCALARS, STRING


class Planned(NamedTuple):
    """A tensor to write."""

    name: str
    shape: tuple[int, ...]
    kind: Kind


def write_gguf(
    path: Path | str,
    architecture: str,
    fields: Mapping[str, Any],
    planned: Sequence[Planned],
    values: Iterable[np.ndarray],
) -> None:
    """Writes a file. It gets its name only once it is complete.

    Args:
      fields: metadata: integers (32 bits), booleans, floats (32 bits), strings, or lists of these.
      values: of the planned tensors, in their order: numbers, or their bytes.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(_padded(_header({"general.architecture": architecture, **fields}, planned)))
            for t, value in zip(planned, values, strict=True):
                ready = value.dtype == np.uint8  # blocks already
                blocks = value if ready else gguf.quantize(_contiguous(value), t.kind)
                file.write(_padded(blocks.tobytes()))
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _contiguous(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value, np.float32)


def _header(fields: Mapping[str, Any], planned: Sequence[Planned]) -> bytes:
    """The counts, the metadata and the table of tensors."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(planned), len(fields))]
    for key, value in fields.items():
        parts += [_packed(key), struct.pack("<I", _TYPES[type(value)]), _packed(value)]
    offset = 0
    for t in planned:
        block, block_bytes = gguf.GGML_QUANT_SIZES[t.kind]
        num_dims = len(t.shape)
        described = struct.pack(f"<I{num_dims}QIQ", num_dims, *t.shape[::-1], t.kind, offset)
        parts += [_packed(t.name), described]
        offset += _aligned(math.prod(t.shape) // block * block_bytes)
    return b"".join(parts)


def _aligned(size: int) -> int:
    return -(-size // 32) * 32


def _padded(data: bytes) -> bytes:
    return data.ljust(_aligned(len(data)), b"\0")


_TYPES = {bool: 7, int: 4, float: FLOAT, str: STRING, list: LIST}
_SIGNED = 5
"""Type of integers in a list."""


def _packed(value: Any) -> bytes:
    """A value without its type."""
    if isinstance(value, str):
        return struct.pack("<Q", len(value.encode())) + value.encode()
    if not isinstance(value, list):
        return struct.pack("<" + SCALARS[_TYPES[type(value)]], value)
    kind = _TYPES[type(value[0])] if value else STRING
    if kind == _TYPES[int]:
        kind = _SIGNED
    if kind == STRING:
        items = b"".join(map(_packed, value))
    else:
        items = struct.pack(f"<{len(value)}{SCALARS[kind]}", *value)
    return struct.pack("<IQ", kind, len(value)) + items
