"""Pictures with labels in the IDX files of MNIST.

Read `Idx`, then `read_idx`; `grey_name` and `grey_pixels` carry a picture as the name of one.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.document import Document
from gptjax.data.documents.media import Pictured

GREY = "grey:"
"""A picture whose name begins so is in the name itself: height, width, and its packed pixels."""
BYTES = 8
"""IDX's code of unsigned bytes, the only type that is read."""
MOST = 2**31
"""Largest size of an unpacked file, in bytes."""


@dataclass(frozen=True)
class Idx:
    """Grey pictures and their labels in two IDX files, each plain or packed by gzip. The label is
    a picture's answer, as text; there is no prompt. The last pictures are held out."""

    path: str
    """The pictures: unsigned bytes [n H W]."""
    labels: str
    """Their labels: unsigned bytes [n]."""
    held_out_count: int = 1000
    """Number of pictures at the end that are held out."""

    def __post_init__(self) -> None:
        require(
            self.held_out_count >= 0,
            f"data.source.held_out_count is {self.held_out_count}; it needs 0 or more: pass"
            " --data.source.held-out-count N.",
        )


def read_idx(source: Idx) -> Iterator[Document]:
    """Yields each picture as a document, as `Media` does.

    Raises:
      ConfigError: a file is absent or no IDX file of unsigned bytes, the two differ in number, or
        nothing is left to train on.
    """
    pictures, labels = idx_array(Path(source.path), 3), idx_array(Path(source.labels), 1)
    require(
        len(pictures) == len(labels),
        f"{source.path} has {len(pictures):,} pictures and {source.labels} {len(labels):,} labels;"
        " give files that belong together.",
    )
    begin = len(pictures) - source.held_out_count
    require(
        begin > 0,
        f"{source.path} has {len(pictures):,} pictures and data.source.held_out_count is"
        f" {source.held_out_count:,}; hold out fewer: --data.source.held-out-count N.",
    )
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        digest = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()
        yield Document(
            Pictured("", str(int(label)), (digest,)).dump(),
            f"{Path(source.path).name}:{number}",
            source=digest,
            held_out=number >= begin,
            pictures=(grey_name(picture),),
        )


def idx_array(path: Path, rank: int) -> np.ndarray:
    """Returns the unsigned bytes of an IDX file.

    Args:
      rank: number of dimensions that it needs.

    Source: LeCun, Cortes and Burges, The MNIST Database, "The IDX file format".
    """
    require(path.is_file(), f"{path} is not there; give an IDX file (--data.source.path FILE).")
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            with gzip.open(path) as file:
                content = file.read(MOST)
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise ConfigError(f"{path} is a damaged IDX file ({error}); give another.") from None
    require(
        zero == 0 and kind == BYTES and dimensions == rank,
        f"{path} is no IDX file of unsigned bytes with {rank} dimensions; give another.",
    )
    data = content[4 + 4 * dimensions :]
    require(
        len(data) == math.prod(shape) and all(shape),
        f"{path} says {' × '.join(map(str, shape))} bytes and holds {len(data):,}; it is damaged.",
    )
    return np.frombuffer(data, np.uint8).reshape(shape)


def grey_name(picture: np.ndarray) -> str:
    """Returns a grey picture [H W], 8 bits a pixel, as a name."""
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(picture).tobytes())).decode()
    return f"{GREY}{picture.shape[0]}:{picture.shape[1]}:{packed}"


def grey_pixels(name: str) -> np.ndarray:
    """Returns the picture of such a name, 8 bits a colour [H W 3]."""
    height, width, packed = name.removeprefix(GREY).split(":")
    pixels = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    grey = pixels.reshape(int(height), int(width), 1)
    return np.repeat(grey, 3, axis=-1)
