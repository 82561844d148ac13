"""What a store's examples show or sound like, on disk beside its ids: arrays of one shape (pixels,
log-mel frames), each once.

The folder `frames` of a store holds `values.bin` (all arrays), `numbers.bin` (those of each
example, one example after another, int32), `begins.bin` (where each example's begin, int64),
`header.json` and `frames.sha256`, the hashes of these. Read `FrameWriter`, then `Frames`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gptjax.core.config import ConfigError, require

FRAMES = "frames"
SEAL = "frames.sha256"
FILES = ("header.json", "values.bin", "numbers.bin", "begins.bin")


class FrameWriter:
    """Writes the arrays of a store, example by example; one that several examples have is written
    once. Memory is bounded by one array and a few bytes for each example.

    Args:
      path: folder of the store.
      shape: that of each array.
      made: gives the array of a name.
    """

    def __init__(
        self, path: Path, shape: Sequence[int], dtype: str, made: Callable[[str], np.ndarray]
    ):
        self.path, self.shape, self.dtype, self.made = path / FRAMES, shape, dtype, made
        self.path.mkdir(parents=True)
        self.known: dict[str, int] = {}
        self.numbers: list[int] = []
        self.begins = [0]
        self._file = open(self.path / "values.bin", "wb")  # noqa: SIM115 `close` closes it
        weakref.finalize(self, self._file.close)

    def add(self, names: Sequence[str]) -> None:
        """Appends the arrays of one example.

        Raises:
          ConfigError: one of them can't be made.
        """
        for name in names:
            if name not in self.known:
                self._file.write(self.made(name).astype(self.dtype).tobytes())
                self.known[name] = len(self.known)
            self.numbers.append(self.known[name])
        self.begins.append(len(self.numbers))

    def close(self) -> None:
        """Writes the other files, and the seal last."""
        self._file.close()
        header = {"dtype": self.dtype, "shape": [len(self.known), *self.shape]}
        (self.path / "header.json").write_text(json.dumps(header))
        (self.path / "numbers.bin").write_bytes(np.asarray(self.numbers, np.int32).tobytes())
        (self.path / "begins.bin").write_bytes(np.asarray(self.begins, np.int64).tobytes())
        (self.path / SEAL).write_text(_sealed(self.path), encoding="utf-8")


class Frames:
    """The arrays of a store. The file is read, not mapped into memory: the kernel kills a process
    that touches a mapped file which was truncated.

    Args:
      shape: the number of arrays, and the shape of each.
    """

    def __init__(
        self,
        path: Path,
        dtype: str,
        shape: Sequence[int],
        numbers: np.ndarray,
        begins: np.ndarray,
    ):
        self.path, self.dtype, self.shape = path, np.dtype(dtype), tuple(shape)
        self.numbers, self.begins = numbers, begins
        self._file = os.open(path / "values.bin", os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    @property
    def counts(self) -> np.ndarray:
        """Number of arrays of each example."""
        return np.diff(self.begins)

    def values(self, example: int) -> np.ndarray:
        """Returns the arrays of an example, one behind the other.

        Raises:
          ConfigError: the file is shorter than when it was opened.
        """
        each = self.dtype.itemsize * math.prod(self.shape[1:])
        found = self.numbers[self.begins[example] : self.begins[example + 1]]
        content = b"".join(os.pread(self._file, each, int(number) * each) for number in found)
        if len(content) != each * len(found):
            raise ConfigError(
                f"{self.path}/values.bin is shorter than when it was opened; delete the folder"
                f" {self.path.parent.parent}, it is made again."
            )
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


def open_frames(path: Path) -> Frames:
    """Opens the arrays of a store, after hashing all of them.

    Raises:
      ConfigError: files are missing, or changed.
    """
    again = f"delete the folder {path.parent.parent}, it is made again"
    try:
        sealed = (path / SEAL).read_text("utf-8", "replace")
        require(
            sealed == _sealed(path),
            f"{path} holds other files than those that {path / SEAL} vouches for; {again}.",
        )
        header = json.loads((path / "header.json").read_bytes())
        numbers = np.frombuffer((path / "numbers.bin").read_bytes(), np.int32)
        begins = np.frombuffer((path / "begins.bin").read_bytes(), np.int64)
        return Frames(path, header["dtype"], header["shape"], numbers, begins)
    except (OSError, ValueError, KeyError) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"the frames {path} are damaged ({what}); {again}.") from None


def _sealed(path: Path) -> str:
    """A line with the hash of each file."""
    lines = []
    for name in FILES:
        with open(path / name, "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)
