"""Writes GGUF files, one tensor in memory at a time.

`gguf.GGUFWriter` is not used: it refuses an empty list, which a tokenizer of bytes needs (llama.cpp
wants the key of its merges).
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
    """A tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    kind: Kind


def write(
    path: Path | str,
    architecture: str,
    fields: Mapping[str, Any],
    planned: Sequence[Planned],
    values: Iterable[np.ndarray],
) -> None:
    """Writes a file, one tensor in memory at a time. It has its name only once it is whole.

    Args:
      fields: whole numbers (32 bits), true or false, numbers (32 bits), texts, or lists of one of
        these.
      values: of the planned tensors, in their order.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    named = {"general.architecture": architecture, **fields}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(planned), len(named))
    head += b"".join(
        _packed(key) + struct.pack("<I", _kind(value)) + _packed(value)
        for key, value in named.items()
    )
    at = 0
    for t in planned:
        block, size = gguf.GGML_QUANT_SIZES[t.kind]
        head += _packed(t.name) + struct.pack(
            f"<I{len(t.shape)}QIQ", len(t.shape), *t.shape[::-1], t.kind, at
        )
        at += _aligned(math.prod(t.shape) // block * size)
    try:
        with beside.open("wb") as file:
            file.write(head.ljust(_aligned(len(head)), b"\0"))
            for t, value in zip(planned, values, strict=True):
                data = gguf.quantize(np.ascontiguousarray(value, np.float32), t.kind).tobytes()
                file.write(data.ljust(_aligned(len(data)), b"\0"))
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)


def _aligned(size: int) -> int:
    return -(-size // 32) * 32


_KINDS = {bool: 7, int: 4, float: FLOAT, str: STRING, list: LIST}


def _kind(value: Any) -> int:
    return _KINDS[type(value)]


def _packed(value: Any) -> bytes:
    """A value without its type. Whole numbers in a list have a sign."""
    if isinstance(value, str):
        return struct.pack("<Q", len(value.encode())) + value.encode()
    if not isinstance(value, list):
        return struct.pack("<" + SCALARS[_kind(value)], value)
    kind = 5 if value and type(value[0]) is int else _kind(value[0]) if value else STRING
    numbers = (
        b"".join(map(_packed, value))
        if kind == STRING
        else struct.pack(f"<{len(value)}{SCALARS[kind]}", *value)
    )
    return struct.pack("<IQ", kind, len(value)) + numbers
