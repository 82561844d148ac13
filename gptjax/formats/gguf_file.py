"""Reads GGUF files: the header, strictly and in bounded memory, and the tensors, one at a time.

Read `open_file`, which reads the header, then `numbers`, which reads a tensor.

The package `gguf` dequantises blocks. Its reader is not used: it makes an array of every string of
the vocabulary (5 s and 150 MB for 49,152 tokens on two shared cores of an AMD EPYC, 2026-11-25) and
trusts every count in the file. Tensors are read with plain reads instead of a memory map, since
reading a map of a file that was cut short kills the process.

Source: the format's specification, ggml's docs/gguf.md, version 3; what is read here is the same in
version 2.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from gptjax.core.config import ConfigError, require

HEADER = 32 << 20
"""Maximum size of a header, in bytes; a vocabulary of 440,000 merges needs 11 million."""
STRINGS = 1 << 20
"""Maximum number of strings in all lists of a header."""
COUNT = 1 << 16
"""Maximum number of keys, and of tensors."""
SLAB = 1 << 16
"""Numbers read at a time: their temporaries fit into a core's cache."""

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
FLOAT, STRING, LIST = 6, 8, 9
_BLOCKS = frozenset(kind.value for kind in Kind)


class Tensor(NamedTuple):
    """The place of a tensor."""

    name: str
    shape: tuple[int, ...]
    """In numpy's order, the reverse of the file's."""
    kind: Kind
    offset: int
    """Its first byte in the file."""
    part: Path | None = None
    """The file, where a model is split into several."""


class File(NamedTuple):
    """The contents of a header."""

    path: Path
    fields: Mapping[str, Any]
    """Metadata: numbers, strings, numpy arrays; lists of strings as `Texts`."""
    tensors: Mapping[str, Tensor]

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Returns a field of a type; the default if it is absent.

        Raises:
          ConfigError: it is of another type, or absent without a default.
        """
        if key not in self.fields and default is not None:
            return default
        require(
            key in self.fields,
            f"{self.path} lacks {key!r}, so the model can't be built; get it again, or convert it"
            " again.",
        )
        value = self.fields[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        require(
            isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)),
            f"{self.path}: {key} is {abbreviate(value)}; it needs"
            f" {' or '.join(k.__name__ for k in kinds)}.",
        )
        return value


class Texts(NamedTuple):
    """A list of strings, decoded on demand."""

    data: bytes
    count: int
    where: str

    def decoded(self) -> list[str]:
        """Returns the strings.

        Raises:
          ConfigError: one is not UTF-8.
        """
        texts, at = [], 0
        for n in range(self.count):
            (length,) = struct.unpack_from("<Q", self.data, at)
            at += 8
            try:
                texts.append(self.data[at : at + length].decode())
            except UnicodeDecodeError:
                raise ConfigError(
                    f"{self.where}, number {n}, is not UTF-8; the file is damaged."
                ) from None
            at += length
        return texts


# --- reading --------------------------------------------------------------------------------------


class _Header:
    """Takes a header's values one after another, never beyond its end."""

    def __init__(self, path: Path, data: bytes, whole: bool) -> None:
        self.path, self.data, self.whole, self.at, self.strings = path, data, whole, 0, 0

    def wrong(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self.path} is not a usable GGUF file: {what}; get it again from where it came."
        )

    def skip(self, size: int, what: str) -> int:
        """Skips `size` bytes and returns where they begin."""
        if size > len(self.data) - self.at:
            raise self.wrong(
                f"{what} of {size} bytes reaches past"
                f" {'the end' if self.whole else f'the {HEADER} bytes that a header may have'}"
            )
        self.at += size
        return self.at - size

    def take(self, form: str, what: str) -> Any:
        """Takes one number, or several."""
        begin = self.skip(struct.calcsize("<" + form), what)
        values = struct.unpack_from("<" + form, self.data, begin)
        return values[0] if len(values) == 1 else values

    def text(self, what: str, most: int) -> str:
        """Takes a string of at most `most` bytes."""
        length = self.take("Q", what)
        if length > most:
            raise self.wrong(f"{what} has {length} bytes, more than {most}")
        start = self.skip(length, what)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not UTF-8") from None

    def value(self, key: str) -> Any:
        """Takes a metadata value, which its type precedes."""
        kind = self.take("I", key)
        if kind == STRING:
            return self.text(key, HEADER)
        if kind in SCALARS:
            value = self.take(SCALARS[kind], key)
            # The shortest decimal: 1e-05, not 9.999999747378752e-06.
            return float(str(np.float32(value))) if kind == FLOAT else value
        if kind != LIST:
            raise self.wrong(f"{key} is of the unknown type {kind}")
        inner, count = self.take("IQ", key)
        if inner == STRING:
            return self.texts(key, count)
        if inner not in SCALARS:
            raise self.wrong(f"{key} is a list of the type {inner}, which no model has")
        start = self.skip(
            count * struct.calcsize("<" + SCALARS[inner]), f"{key}, a list of {count} numbers,"
        )
        return np.frombuffer(self.data[start : self.at], np.dtype(SCALARS[inner]).newbyteorder("<"))

    def texts(self, key: str, count: int) -> Texts:
        """Takes a list of strings, without decoding them."""
        self.strings += count
        if self.strings > STRINGS:
            raise self.wrong(
                f"{key} is a list of {count} texts, and all lists together may have {STRINGS}"
            )
        start, at, last = self.at, self.at, len(self.data) - 8
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):  # inlined, since it may run half a million times
            at = at + 8 + length_at(self.data, at)[0] if at <= last else len(self.data) + 1
            if at > len(self.data):
                raise self.wrong(f"{key}, a list of {count} texts, reaches past the end")
        self.at = at
        return Texts(self.data[start:at], count, f"{self.path}: {key}")


def open_file(path: Path | str) -> File:
    """Reads a header, at most 32 MiB of it.

    Raises:
      ConfigError: it is damaged or impossible; names the key or tensor in one line.
    """
    path = Path(path)
    require(path.is_file(), f"{path} is not there; give a .gguf file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = _Header(path, file.read(HEADER), size <= HEADER)
    if head.data[:4] != b"GGUF":
        raise head.wrong("it does not begin with 'GGUF'")
    head.at = 4
    version = head.take("I", "the version")
    if version not in (2, 3):
        backwards = version & 0xFFFF == 0 and version
        raise head.wrong(
            "its bytes are in big-endian order"
            if backwards
            else f"it is of version {version}, and 2 or 3 can be read"
        )
    num_tensors, num_fields = head.take("QQ", "the header")
    for what, count in (("tensors", num_tensors), ("keys", num_fields)):
        if count > COUNT:
            raise head.wrong(f"it counts {count} {what}, more than {COUNT}")
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        key = head.text("a key", 1024)
        if key in fields:
            raise head.wrong(f"duplicate key {abbreviate(key)}")
        fields[key] = head.value(abbreviate(key))
    return File(
        path, fields, _tensors(head, num_tensors, fields.get("general.alignment", 32), size)
    )


def _tensors(head: _Header, count: int, alignment: Any, size: int) -> dict[str, Tensor]:
    """The table of tensors. They lie in its order without holes, each at a multiple of the
    alignment, up to the end of the file."""
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise head.wrong(
            f"general.alignment is {abbreviate(alignment)}, not a power of two from 8 to 65536"
        )
    tensors: dict[str, Tensor] = {}
    for _ in range(count):
        name = head.text("a tensor's name", 256)
        if not name.isprintable():
            raise head.wrong(f"a tensor is called {abbreviate(name)}")
        dims = head.take("I", abbreviate(name))
        if not 1 <= dims <= 4:
            raise head.wrong(f"tensor {abbreviate(name)} has {dims} dimensions, not 1 to 4")
        shape = tuple(head.take("Q", abbreviate(name)) for _ in range(dims))[::-1]
        kind, offset = head.take("IQ", abbreviate(name))
        if name in tensors:
            raise head.wrong(f"duplicate tensor {abbreviate(name)}")
        if kind not in _BLOCKS:
            raise head.wrong(f"tensor {abbreviate(name)} is of the unknown type {kind}")
        if min(shape) < 1 or shape[-1] % gguf.GGML_QUANT_SIZES[Kind(kind)][0]:
            raise head.wrong(
                f"tensor {abbreviate(name)} has the shape {list(shape)}, which its type"
                f" {Kind(kind).name} can't have"
            )
        tensors[name] = Tensor(name, shape, Kind(kind), offset)
    base, at = -(-head.at // alignment) * alignment, 0
    for name, tensor in tensors.items():
        if tensor.offset != at:
            raise head.wrong(
                f"tensor {abbreviate(name)} begins at {tensor.offset}, where {at} is the end of the"
                " one before"
            )
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
        end = base + at + math.prod(tensor.shape) // block * block_bytes
        if end > size:
            raise head.wrong(
                f"tensor {abbreviate(name)} of the shape {list(tensor.shape)} ends at byte {end},"
                f" and the file at {size}"
            )
        tensors[name] = tensor._replace(offset=base + at)
        at = -(-(end - base) // alignment) * alignment
    if size - base > at:
        raise head.wrong(f"{size - base - at} bytes follow the last tensor")
    return tensors


def numbers(file: File, tensor: Tensor) -> np.ndarray:
    """Reads a tensor as float32, holding only a part of the stored bytes at a time.

    Raises:
      ConfigError: the block format is unknown, the file became shorter, or a number is not finite.
    """
    size, block = math.prod(tensor.shape), gguf.GGML_QUANT_SIZES[tensor.kind]
    values = np.empty(size, np.float32)
    path = tensor.part or file.path
    with path.open("rb") as data, np.errstate(all="ignore"):
        data.seek(tensor.offset)
        for start in range(0, size, SLAB):
            part = values[start : start + SLAB]
            raw = data.read(len(part) // block[0] * block[1])
            require(
                len(raw) == len(part) // block[0] * block[1],
                f"{path} has become shorter while {tensor.name!r} was read; get it again.",
            )
            try:
                part[:] = gguf.dequantize(np.frombuffer(raw, np.uint8)[None], tensor.kind)[0]
            except NotImplementedError:
                raise ConfigError(
                    f"{path}: {tensor.name!r} is stored as {tensor.kind.name}, which can't be"
                    " read; take another quantisation."
                ) from None
            # The sum of finite numbers is finite unless one is beyond 1e33.
            require(
                bool(np.isfinite(part.sum())),
                f"{path}: {tensor.name!r} has numbers that are not finite; the file is damaged.",
            )
    return values.reshape(tensor.shape)


def abbreviate(value: Any) -> str:
    """Returns a value for a message: one short line."""
    if isinstance(value, (Texts, np.ndarray)):
        return f"a list of {value.count if isinstance(value, Texts) else len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}…{text[0]}"
