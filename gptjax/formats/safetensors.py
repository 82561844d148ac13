"""Safetensors files: a header that is checked before it is believed, tensors by memory map, and a
writer that holds one tensor.

Read `header` (what a file must say to be read), then `File`, then `write`. The format is a length,
so many bytes of JSON that name type, shape and place of each tensor, and the tensors:
https://github.com/huggingface/safetensors#format. We read it ourselves because a hostile header
costs the library much memory, and because that leaves it nothing to do.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.core.config import ConfigError, require

LONGEST = 4 << 20
"""Bytes of a header: about 35,000 tensors, many times what the largest shards have. It bounds what
a hostile one costs."""

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jax.numpy.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Types that we write."""


class Tensor(NamedTuple):
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Byte of the file."""
    end: int


def header(path: Path) -> dict[str, Tensor]:
    """Gives the tensors of a file, in the order of their bytes; none of their bytes is read.

    Raises:
      ConfigError: the file is not there or no regular file, or the header is damaged, or says
        something else than what lies behind it: every byte behind the header belongs to exactly one
        tensor.
    """
    restore = "get the file again"
    try:
        status = path.stat()
        require(stat.S_ISREG(status.st_mode), f"{path} is not a regular file; {restore}.")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            room = status.st_size - 8
            require(
                room >= 2,
                f"{path} has {status.st_size} bytes, too few for a safetensors file; {restore}.",
            )
            fits = f"{path} says that its header has {length:,} bytes"
            require(
                length <= room,
                f"{fits}, and has {room:,} in all: it is cut short, or no safetensors file;"
                f" {restore}.",
            )
            require(
                length <= LONGEST,
                f"{fits}; more than {LONGEST:,} are not read. Split the file into smaller shards.",
            )
            raw = file.read(length)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; {restore}.") from None
    try:
        found = _parsed(raw.decode("utf-8"))
        _check(found, room - length)
    except (ValueError, RecursionError) as error:
        what = (
            "it is not UTF-8"
            if isinstance(error, UnicodeDecodeError)
            else " ".join(str(error).split())[:200]
        )
        raise ConfigError(f"{path} has a damaged safetensors header: {what}; {restore}.") from None
    inside = {
        name: Tensor(t.dtype, t.shape, t.begin + 8 + length, t.end + 8 + length)
        for name, t in found.items()
    }
    return dict(sorted(inside.items(), key=lambda item: (item[1].begin, item[1].end)))


_TEXT = r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
MEMBER = re.compile(
    rf'\s*+{_TEXT}\s*+:\s*+(\{{[^{{}}"]*+(?:{_TEXT}[^{{}}"]*+)*+\}})\s*+([,}}])', re.S
)
"""A name and its flat object; possessive, so that no text takes more than one pass."""


def _parsed(text: str) -> dict[str, Tensor]:
    """The header's tensors, member by member, so that no nesting is ever built.

    Raises:
      ValueError: says what is wrong.
    """
    start = text.find("{")
    if start != 0:
        raise ValueError("it does not begin with {")
    found: dict[str, Tensor] = {}
    if not text[1:].strip(" \t\n\r}"):
        if text[1:].strip() == "}":
            return found
        raise ValueError("it is no JSON object")
    at, names, last = 1, set(), ","
    while last == ",":
        member = MEMBER.match(text, at)
        if member is None:
            raise ValueError(f"at character {at} no tensor is described: {text[at : at + 40]!r}")
        name, last, at = member[1], member[4], member.end()
        if "\\" in name or not name.isprintable():
            name = json.loads(f'"{name}"')
        if name in names:
            raise ValueError(f"{name[:100]!r} is there twice")
        names.add(name)
        if name == "__metadata__":
            _require_strings(member[2])
        else:
            found[name] = _tensor(name[:100], member[2])
    if text[at:].strip(" "):
        raise ValueError(f"something follows its end: {text[at : at + 40]!r}")
    return found


def _require_strings(text: str) -> None:
    if not all(isinstance(value, str) for value in json.loads(text).values()):
        raise ValueError("its metadata are not all texts")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without a key twice."""
    if len(pairs) != len(found := dict(pairs)):
        raise ValueError("a key is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _tensor(name: str, text: str) -> Tensor:
    if len(text) > 1000:
        raise ValueError(f"the description of {name!r} is {len(text)} characters long")
    described = _DECODER.decode(text)
    if described.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    listed = (
        type(dtype) is str
        and type(shape) is type(offsets) is list
        and len(offsets) == 2
        and len(shape) <= 32
    )
    if not (listed and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, *offsets))):
        raise ValueError(f"{name!r} has no sound dtype, shape and data_offsets")
    if dtype not in DTYPES:
        raise ValueError(
            f"{name!r} has the type {dtype[:20]!r}; those that can be read are {', '.join(DTYPES)}"
        )
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if size != offsets[1] - offsets[0]:
        raise ValueError(
            f"{name!r} is {dtype} {shape}, which is {size} bytes, and has {offsets[1] - offsets[0]}"
        )
    return Tensor(dtype, tuple(shape), *offsets)


def _check(found: Mapping[str, Tensor], room: int) -> None:
    """Holds the tensors to the bytes behind the header: without holes, without overlaps, to the
    end."""
    at = 0
    for name, tensor in sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            raise ValueError(
                f"{name[:100]!r} begins at byte {tensor.begin}; the tensors before it end at {at}"
            )
        at = tensor.end
    if at != room:
        raise ValueError(f"its tensors have {at:,} bytes, and {room:,} follow the header")


class File:
    """An open file: `file.tensors` says what is in it, `file.take(name)` gives one tensor."""

    def __init__(self, path: Path):
        self.path, self.tensors = path, header(path)

    def take(self, name: str) -> np.ndarray:
        """A view of the file, read as it is used; its pages go when the view goes.

        Raises:
          ConfigError: the tensor is quantised, or the file is shorter than it was.
        """
        tensor = self.tensors[name]
        require(
            tensor.end <= self.path.stat().st_size,
            f"{self.path} was cut short while it was read; get the file again.",
        )
        if not math.prod(tensor.shape):
            return np.empty(tensor.shape, DTYPES[tensor.dtype])
        return np.memmap(self.path, DTYPES[tensor.dtype], "r", tensor.begin, tensor.shape)


def write(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    values: Iterable[tuple[str, np.ndarray]],
    dtype: str,
    metadata: Mapping[str, str],
) -> None:
    """Writes a file, one tensor after another.

    Args:
      shapes: of all tensors, in the order in which `values` gives them.
      dtype: float32, float16 or bfloat16; values are rounded to it.
    """
    kind, at = DTYPES[NAMES[dtype]], 0
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, shape in shapes.items():
        size = math.prod(shape) * kind.itemsize
        described[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [at, at + size],
        }
        at += size
    head = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for (wanted, shape), (name, value) in zip(shapes.items(), values, strict=True):
            if (name, value.shape) != (wanted, shape):
                raise ValueError(
                    f"{name} {value.shape} was given in the place of {wanted} {shape}."
                )
            file.write(
                memoryview(
                    np.ascontiguousarray(value.astype(kind, copy=False)).view(np.uint8).reshape(-1)
                )
            )
