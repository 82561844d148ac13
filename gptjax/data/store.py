"""Tokenised examples on disk: flat, read piece by piece, with a header that says what they were
made of and a seal that proves it.

A store is a folder: `header.json`, `ids.bin` (all examples one after another), `offsets.bin` (where
each begins, int64), and `store.sha256` (the hashes of these; `sha256sum -c` reads it). Read
`Writer` and `open_store`, then `Tokens`.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.frames import FRAMES, Frames, open_frames

FORMAT = 1
SEAL = "store.sha256"
SEALED = ("header.json", "ids.bin", "offsets.bin")
AT_ONCE = 2**30
"""Bytes read at once; Linux reads at most 2 GiB."""


@dataclass(frozen=True)
class Header:
    """The contents of a store, and what they were made of."""

    dtype: str
    vocab_size: int
    num_tokens: int
    num_examples: int
    num_bytes: int
    """UTF-8 bytes of the text that the ids spell; bits per byte divide by it."""
    fingerprint: str
    """Hash of source, tokenizer and settings."""
    facts: dict[str, Any]
    """Further figures, for example bits per byte of gzip and xz."""
    format: int = FORMAT


class Tokens:
    """The ids of a store: `tokens[a:b]` reads that part of the file, every id of it.

    The file is read, not mapped into memory: the kernel kills a process that touches a mapped file
    which was truncated.
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
            os.pread(self._file, min(AT_ONCE, end - at), at) for at in range(begin, end, AT_ONCE)
        )
        if len(content) != end - begin:
            size, wanted = os.fstat(self._file).st_size, self._count * self.dtype.itemsize
            raise ConfigError(
                f"{self.path} had {wanted} bytes when it was opened and now has {size}; delete the"
                f" folder {self.path.parent}, it is made again."
            )
        return np.frombuffer(content, self.dtype)

    def digest(self) -> str:
        """Returns the sha256 of the whole file, in hex."""
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


class Store(NamedTuple):
    """An open store. `ids[offsets[i] : offsets[i + 1]]` is example i."""

    header: Header
    ids: Tokens | np.ndarray
    """Anything that returns an array of ids for `ids[a:b]`."""
    offsets: np.ndarray
    """int64 [num_examples + 1]."""
    path: Path | None = None
    """Its folder, if it is on disk."""
    columns: Mapping[str, np.ndarray] | None = None
    """Further values of each example [num_examples ...], by name, which tasks of pairs put into
    their batches."""
    frames: Frames | None = None
    """The pictures or sounds of examples, where the store has any."""


# --- writing


class Writer:
    """Writes a store example by example. Memory is bounded by the largest example and eight bytes
    for each."""

    def __init__(self, path: Path, vocab_size: int):
        path.mkdir(parents=True)
        self.path, self.vocab_size = path, vocab_size
        self.offsets = [0]
        self._dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
        self._digest = hashlib.sha256()
        self._file = open(path / "ids.bin", "wb")  # noqa: SIM115 `close` closes it
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
        """Writes header and offsets, and the seal last."""
        self._file.close()
        header = Header(
            dtype=self._dtype.name,
            vocab_size=self.vocab_size,
            num_tokens=self.offsets[-1],
            num_examples=len(self.offsets) - 1,
            num_bytes=num_bytes,
            fingerprint=fingerprint,
            facts=facts,
        )
        described = json.dumps(asdict(header), indent=2).encode()
        offsets = np.asarray(self.offsets, np.int64).tobytes()
        (self.path / "offsets.bin").write_bytes(offsets)
        (self.path / "header.json").write_bytes(described)
        (self.path / SEAL).write_text(
            "".join(_seal(described, self._digest.hexdigest(), offsets)), encoding="utf-8"
        )
        return header


def _seal(described: bytes, ids_digest: str, offsets: bytes) -> list[str]:
    """A line with the hash of each sealed file."""
    digests = (
        hashlib.sha256(described).hexdigest(),
        ids_digest,
        hashlib.sha256(offsets).hexdigest(),
    )
    return [f"{digest}  {name}\n" for digest, name in zip(digests, SEALED, strict=True)]


# --- reading


def is_sealed(path: Path) -> bool:
    """Whether a store was written completely."""
    return (path / SEAL).is_file()


def open_store(path: Path) -> Store:
    """Opens a store, after hashing all of it.

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
    _check_header(header, path, again)
    ids = Tokens(path / "ids.bin", header.dtype, header.num_tokens)
    offsets = (path / "offsets.bin").read_bytes()
    sealed = (path / SEAL).read_text("utf-8", "replace") if is_sealed(path) else ""
    lines = _seal(described, ids.digest(), offsets)
    for name, line in zip(SEALED, lines, strict=True):
        require(
            line in sealed,
            f"{path / name} is not the file that {path / SEAL} vouches for; {again}.",
        )
    frames = open_frames(path / FRAMES) if (path / FRAMES).is_dir() else None
    return Store(header, ids, np.frombuffer(offsets, np.int64), path, frames=frames)


def _check_header(header: Header, path: Path, again: str) -> None:
    """Refuses a header that cannot be, or that the sizes of files contradict."""
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
    sizes = {
        "ids.bin": header.num_tokens * np.dtype(header.dtype).itemsize,
        "offsets.bin": 8 * (header.num_examples + 1),
    }
    for name, size in sizes.items():
        actual = (path / name).stat().st_size if (path / name).is_file() else None
        require(
            actual == size, f"{path / name} has {actual} bytes, its header says {size}; {again}."
        )
