"""Tokenised examples on disk: flat, read piece by piece, with a header that knows what it was made
of and a seal that proves it.

A store is a folder: `header.json`, `ids.bin` (all examples one after another), `offsets.bin` (where
each begins, int64), and `store.sha256` (the hashes of these; `sha256sum -c` reads it). Read
`Writer` and `open_store`, then `Tokens`.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require

FORMAT = 1
SEAL = "store.sha256"
SEALED = ("header.json", "ids.bin", "offsets.bin")


@dataclass(frozen=True)
class Header:
    """What a store holds, and of what it was made."""

    dtype: str
    vocab_size: int
    num_tokens: int
    num_examples: int
    num_bytes: int
    """UTF-8 bytes of the text behind the ids: bits per byte divide by it."""
    fingerprint: str
    """Hash of source, tokenizer and settings."""
    facts: dict[str, Any]
    """What else is worth knowing, for example bits per byte of gzip and xz."""
    format: int = FORMAT


class Tokens:
    """The ids of a store: `tokens[a:b]` reads that part of the file, every id of it.

    It is read, not mapped into memory: the kernel ends a process that touches a mapped file which
    someone cut short.
    """

    def __init__(self, path: Path, dtype: str, count: int):
        self.path, self.dtype, self._count = path, np.dtype(dtype), count
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> np.ndarray:
        first, last, _ = part.indices(self._count)
        begin, end = first * self.dtype.itemsize, max(first, last) * self.dtype.itemsize
        content = b"".join(
            os.pread(self._file, min(2**30, end - at), at) for at in range(begin, end, 2**30)
        )  # Linux reads at most 2 GiB at once
        if len(content) != end - begin:
            size, wanted = os.fstat(self._file).st_size, self._count * self.dtype.itemsize
            raise ConfigError(
                f"{self.path} had {wanted} bytes when it was opened and now has {size}; delete the"
                f" folder {self.path.parent}, it is made again."
            )
        return np.frombuffer(content, self.dtype)

    def digest(self) -> str:
        """Gives the sha256 of the whole file, in hex."""
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


class Store(NamedTuple):
    """An open store. `ids[offsets[i] : offsets[i + 1]]` is example i."""

    header: Header
    ids: Tokens | np.ndarray
    """Whatever gives an array of ids for `ids[a:b]`."""
    offsets: np.ndarray
    path: Path | None = None
    """Its folder, if it lies on the disk."""


# --- writing


class Writer:
    """Writes a store example by example, in memory bounded by the largest and eight bytes for
    each."""

    def __init__(self, path: Path, vocab_size: int):
        path.mkdir(parents=True)
        self.path, self.vocab_size = path, vocab_size
        self.offsets = [0]
        self._dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
        self._digest = hashlib.sha256()
        self._file = open(path / "ids.bin", "wb")
        weakref.finalize(self, self._file.close)

    def add(self, ids: np.ndarray) -> None:
        """Appends one example.

        Raises:
          ValueError: an id is outside [0, vocab_size).
        """
        low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"example {len(self.offsets) - 1} has the id {low if low < 0 else high}, outside"
                f" [0, {self.vocab_size})."
            )
        content = ids.astype(self._dtype).tobytes()
        self._digest.update(content)
        self._file.write(content)
        self.offsets.append(self.offsets[-1] + len(ids))

    def close(self, *, num_bytes: int, fingerprint: str, facts: dict[str, Any]) -> Header:
        """Writes what stands beside the ids, the seal last."""
        self._file.close()
        offsets = np.asarray(self.offsets, np.int64).tobytes()
        header = Header(
            self._dtype.name,
            self.vocab_size,
            self.offsets[-1],
            len(self.offsets) - 1,
            num_bytes,
            fingerprint,
            facts,
        )
        described = json.dumps(asdict(header), indent=2).encode()
        (self.path / "offsets.bin").write_bytes(offsets)
        (self.path / "header.json").write_bytes(described)
        hashes = (
            hashlib.sha256(described).hexdigest(),
            self._digest.hexdigest(),
            hashlib.sha256(offsets).hexdigest(),
        )
        (self.path / SEAL).write_text(
            "".join(f"{digest}  {name}\n" for digest, name in zip(hashes, SEALED, strict=True))
        )
        return header


# --- reading


def is_sealed(path: Path) -> bool:
    """Says whether a store was written to its end."""
    return (path / SEAL).is_file()


def open_store(path: Path) -> Store:
    """Opens a store for layer_inputs, after hashing all of it.

    Raises:
      ConfigError: files are missing, of another format, not as long as the header says, or changed.
    """
    again = f"delete the folder {path}, it is made again"
    try:
        described = (path / "header.json").read_bytes()
        header = Header(**json.loads(described))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"the token store {path} is damaged ({' '.join(str(error).split())}); {again}."
        ) from None
    counts = (header.num_tokens, header.num_examples, header.num_bytes, header.vocab_size)
    require(
        all(type(count) is int and count >= 0 for count in counts),
        f"the token store {path} has counts {counts}; {again}.",
    )
    require(
        header.format == FORMAT,
        f"the token store {path} has format {header.format}, this gptjax reads {FORMAT}; {again}.",
    )
    require(
        header.dtype in ("uint16", "int32"),
        f"the token store {path} says dtype {header.dtype!r}; {again}.",
    )
    for name, size in (
        ("ids.bin", header.num_tokens * np.dtype(header.dtype).itemsize),
        ("offsets.bin", 8 * (header.num_examples + 1)),
    ):
        found = (path / name).stat().st_size if (path / name).is_file() else None
        require(found == size, f"{path / name} has {found} bytes, its header says {size}; {again}.")
    ids, offsets = (
        Tokens(path / "ids.bin", header.dtype, header.num_tokens),
        (path / "offsets.bin").read_bytes(),
    )
    hashes = (
        hashlib.sha256(described).hexdigest(),
        ids.digest(),
        hashlib.sha256(offsets).hexdigest(),
    )
    sealed = (path / SEAL).read_bytes() if is_sealed(path) else b""
    for name, digest in zip(SEALED, hashes, strict=True):
        require(
            f"{digest}  {name}\n".encode() in sealed,
            f"{path / name} is not the file that {path / SEAL} vouches for; {again}.",
        )
    return Store(header, ids, np.frombuffer(offsets, np.int64), path)
