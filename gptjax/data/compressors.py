"""Bits per byte of general-purpose compressors, to compare a model's with."""

from __future__ import annotations

import lzma
import zlib

MOST = 2**22
"""Only the first 4 MiB are compressed, so that neither time nor memory grows with the text."""


class Compressors:
    """gzip -9 and xz -9 over the same bytes, one stream each."""

    def __init__(self) -> None:
        lzma_filter = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": MOST}
        self.streams = {
            "gzip -9": zlib.compressobj(9, wbits=31),
            "xz -9": lzma.LZMACompressor(filters=[lzma_filter]),
        }
        self.sizes = dict.fromkeys(self.streams, 0)
        self.read = 0

    def add(self, data: bytes) -> None:
        """Compresses further bytes."""
        data = data[: MOST - self.read]
        self.read += len(data)
        for name, stream in self.streams.items():
            self.sizes[name] += len(stream.compress(data))

    def bits_per_byte(self) -> dict[str, float]:
        """Returns compressed bits per byte of text, by compressor. Nothing can be added after
        it."""
        return {
            name: 8 * (self.sizes[name] + len(stream.flush())) / max(1, self.read)
            for name, stream in self.streams.items()
        }
