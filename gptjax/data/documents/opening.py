"""Opens a file of text: unpacked, and recoded to UTF-8.

Read `opened`, then how a compressed file is unpacked (`_Unpacking`) and another encoding recoded
(`_Recoded`).
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.encodings import explain

UNPACKED = 2**26
"""Bytes (64 MiB) that any compressed file may unpack to."""
RATIO = 100
"""Beyond `UNPACKED` a file that unpacks to more than this multiple of its size is refused: no text
compresses so well."""


def bare_name(path: Path) -> str:
    """Returns the file's name in lower case, without the suffix of a compression."""
    name = path.name.lower()
    return name[: -len(path.suffix)] if path.suffix.lower() in COMPRESSIONS else name


@contextlib.contextmanager
def opened(path: Path, encoding: str = "utf-8") -> Iterator[BinaryIO]:
    """Opens a file as a stream of UTF-8 bytes.

    Args:
      encoding: of the file. Bytes of UTF-8 are given as they are, unchecked.

    Raises:
      ConfigError: on opening or reading: the file can't be read, is damaged, or is not in this
        encoding.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(path.open("rb"))
            compression = compression or _seen(stream.peek(10))
            if compression:
                unpacked = stack.enter_context(compression[1](stream))
                stream = io.BufferedReader(_Unpacking(unpacked, path))
            if encoding != "utf-8":
                stream = io.BufferedReader(_Recoded(stream, path, encoding))
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if compression and getattr(error, "errno", None) is None:
            raise ConfigError(
                f"{path} is not a whole {compression[0]} file ({error}); fetch it again, or pass"
                " another with --data.source.path FILE."
            ) from None
        raise ConfigError(
            f"{path} can't be read ({getattr(error, 'strerror', error)}); fix that, or pass"
            " another with --data.source.path FILE."
        ) from None


def _unzstd(stream: BinaryIO) -> Any:
    try:
        from pyarrow import CompressedInputStream
    except ImportError:
        raise ConfigError(
            f"reading {stream.name} needs pyarrow; run `pip install pyarrow`, or unpack the file."
        ) from None
    return CompressedInputStream(stream, "zstd")


COMPRESSIONS = {
    ".gz": ("gzip", lambda stream: gzip.GzipFile(fileobj=stream)),
    ".bz2": ("bzip2", bz2.BZ2File),
    ".xz": ("xz", lzma.LZMAFile),
    ".zst": ("zstd", _unzstd),
}
"""Suffix → (name, what unpacks a stream)."""
SIGNATURES = {
    b"\x1f\x8b\x08": ".gz",
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    **{b"BZh%d1AY&SY" % level: ".bz2" for level in range(1, 10)},
}
"""First bytes of a compressed file → its suffix."""


def _seen(start: bytes) -> Any:
    """The compression of a file without such a suffix, by its first bytes."""
    return next(
        (COMPRESSIONS[SIGNATURES[mark]] for mark in SIGNATURES if start.startswith(mark)), None
    )


class Unpacked:
    """Counts what a packed file holds, and refuses more than can be text."""

    def __init__(self, path: Path):
        self.path, self.size, self.count = path, path.stat().st_size, 0

    def add(self, count: int) -> None:
        """Counts bytes.

        Raises:
          ConfigError: there are too many for a file of this size.
        """
        self.count += count
        require(
            self.count <= max(UNPACKED, RATIO * self.size),
            f"{self.path} unpacks to more than {RATIO} times its size, at least"
            f" {self.count >> 20} MiB, as no text does; if you trust it, unpack it yourself, or"
            " pass another with --data.source.path FILE.",
        )


class _Unpacking(io.RawIOBase):
    """Reads a compressed file as far as it can be text."""

    def __init__(self, stream: Any, path: Path):
        self.stream, self.unpacked = stream, Unpacked(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(len(buffer))
        buffer[: len(content)] = content
        self.unpacked.add(len(content))
        return len(content)


class _Recoded(io.RawIOBase):
    """Reads a file in another encoding as UTF-8."""

    def __init__(self, stream: BinaryIO, path: Path, encoding: str):
        self.stream, self.path, self.encoding = stream, path, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.waiting, self.read_bytes = b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.waiting:
            content = self.stream.read(len(buffer))
            try:
                text = self.decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                raise ConfigError(
                    explain(self.path, error, self.read_bytes, self.encoding)
                ) from None
            self.read_bytes += len(content)
            self.waiting = text.encode("utf-8", "surrogatepass")
            if not content:
                break
        part, self.waiting = self.waiting[: len(buffer)], self.waiting[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
