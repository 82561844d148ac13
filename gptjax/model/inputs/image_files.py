"""Pictures in files: PNG and PPM by themselves, other kinds with Pillow (extra `image`).

Read `read_image`. Whatever a file holds, it ends in a picture or in one line, and memory is bounded
by `MOST_BYTES` and `MOST_PIXELS`: sizes are compared before anything is unpacked.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np

from gptjax.core.arrays import Num
from gptjax.core.config import ConfigError, require

MOST_BYTES = 2**27
"""Largest file that is read."""
MOST_PIXELS = 2**25
"""Most pixels of a picture, 33.5 million: 100 MB unpacked."""
OTHERS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Kinds that Pillow may read: none that starts another program."""
WHITE = 255
"""What is behind a picture that is partly transparent."""


def read_image(path: Path | str) -> Num[np.ndarray, "H W 3"]:
    """Reads a picture: red, green and blue, 8 bits each. What is transparent becomes white.

    Raises:
      ConfigError: the file is absent, empty, too large, damaged, or of a kind that needs Pillow
        where that is not installed.
    """
    path = Path(path)
    require(path.is_file(), f"{path} is not a file; give a picture, such as a PNG file.")
    size = path.stat().st_size
    require(size > 0, f"{path} is empty; give a picture, such as a PNG file.")
    require(
        size <= MOST_BYTES,
        f"{path} has {size:,} bytes, and pictures of up to {MOST_BYTES:,} are read; make it"
        " smaller.",
    )
    return decoded(path.read_bytes(), str(path))


def decoded(
    content: bytes, name: str = "the picture", most: int = MOST_PIXELS
) -> Num[np.ndarray, "H W 3"]:
    """Returns the picture that bytes of a file hold; see `read_image`.

    Args:
      name: what errors call it.
      most: pixels that are unpacked at most.
    """
    try:
        if content.startswith(PNG):
            image = _png(content, most)
        elif re.match(rb"P[56]\s", content):
            image = _ppm(content, most)
        else:
            image = _by_pillow(content, name, most)
    except _Unusual:
        image = _by_pillow(content, name, most)
    except (ValueError, IndexError, KeyError, struct.error, zlib.error) as error:
        what = " ".join(str(error).split())[:120]
        raise ConfigError(f"{name} is a damaged picture ({what}); give another.") from None
    return image


class _Unusual(Exception):
    """The file is intact, and of a kind that is left to Pillow."""


def _require_size(width: int, height: int, most: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"it says that it is {width} × {height} pixels")
    if width * height > most:
        raise ValueError(f"it says {width} × {height} pixels; at most {most:,} are read")


# --- PNG ---

PNG = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers of a pixel, by colour type: grey, colours, palette, and the first two with opacity."""


def _png(content: bytes, most: int) -> np.ndarray:
    """Reads a PNG file. Source: W3C, Portable Network Graphics, sections 5 to 9."""
    chunks, at = {}, len(PNG)
    packed: list[bytes] = []
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        if len(data) != length or at + 12 + length > len(content):
            raise ValueError("it ends in the middle")
        if zlib.crc32(kind + data) != struct.unpack_from(">I", content, at + 8 + length)[0]:
            raise ValueError(f"the check sum of its part {kind!r} is wrong")
        packed.append(data) if kind == b"IDAT" else chunks.setdefault(kind, data)
        at += 12 + length
        if kind == b"IEND":
            break
    else:
        raise ValueError("it has no end")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    _require_size(width, height, most)
    if depth != 8 or interlaced or colour not in CHANNELS:
        raise _Unusual
    count = CHANNELS[colour]
    lines = _unpacked(b"".join(packed), height * (1 + width * count))
    lines = lines.reshape(height, 1 + width * count)
    pixels = _unfiltered(lines[:, 0], lines[:, 1:].reshape(height, width, count))
    if colour == 3:
        return _coloured(pixels[..., 0], chunks)
    if b"tRNS" in chunks:
        raise _Unusual
    return flattened(pixels)


def _unpacked(packed: bytes, size: int) -> np.ndarray:
    """The bytes of a zlib stream, which have to be so many; no more are unpacked."""
    unpacker = zlib.decompressobj()
    lines = unpacker.decompress(packed, size)
    if len(lines) != size:
        raise ValueError(f"it holds {len(lines):,} of {size:,} bytes")
    return np.frombuffer(lines, np.uint8)


def _unfiltered(kinds: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Adds to each byte what its line's filter predicts from the pixels to the left, above, and
    left above, along one diagonal after another: they need those before them alone."""
    if kinds.max() > 4:
        raise ValueError(f"line {int(kinds.argmax())} has an unknown filter")
    height, width, count = lines.shape
    whole = np.zeros((height + 1, width + 1, count), np.int16)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, above, corner = whole[y + 1, x], whole[y, x + 1], whole[y, x]
        by_left, by_above = np.abs(above - corner), np.abs(left - corner)
        by_corner = np.abs(left + above - 2 * corner)
        nearest = np.where(
            (by_left <= by_above) & (by_left <= by_corner),
            left,
            np.where(by_above <= by_corner, above, corner),
        )
        guesses = (np.zeros_like(left), left, above, (left + above) // 2, nearest)
        guess = np.choose(kinds[y, None].astype(np.intp), guesses)
        whole[y + 1, x + 1] = (lines[y, x] + guess) % 256
    return whole[1:, 1:].astype(np.uint8)


def _coloured(numbers: np.ndarray, chunks: dict[bytes, bytes]) -> np.ndarray:
    """The colours of a palette, those without opacity on white."""
    palette = np.frombuffer(chunks.get(b"PLTE", b""), np.uint8).reshape(-1, 3)
    if numbers.max() >= len(palette):
        raise ValueError(f"its palette has {len(palette)} colours and it uses more")
    opacity = np.full((len(palette), 1), 255, np.uint8)
    known = np.frombuffer(chunks.get(b"tRNS", b""), np.uint8)[: len(palette)]
    opacity[: len(known), 0] = known
    return flattened(np.concatenate([palette, opacity], axis=1)[numbers])


def flattened(pixels: np.ndarray) -> np.ndarray:
    """Three colours of grey or colours, with or without opacity."""
    count = pixels.shape[-1]
    colours = pixels[..., : 3 if count > 2 else 1]
    if count in (2, 4):
        opacity = pixels[..., -1:].astype(np.float32) / 255
        colours = np.round(colours * opacity + WHITE * (1 - opacity)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:-1], 3)))


def save_png(path: Path | str, image: Num[np.ndarray, "H W 3"]) -> None:
    """Writes a picture, 8 bits a colour, as a PNG file."""
    height, width, _ = image.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)
    lines[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    Path(path).write_bytes(PNG + b"".join(chunks))


# --- others ---


def _ppm(content: bytes, most: int) -> np.ndarray:
    """Reads PPM (P6) and PGM (P5), binary, 8 bits."""
    match = re.match(rb"P([56])(?:\s+|#[^\n]*\n)*(\d{1,9})\s+(\d{1,9})\s+(\d{1,5})\s", content)
    if match is None:
        raise _Unusual
    kind, width, height, top = (int(number) for number in match.groups())
    _require_size(width, height, most)
    if top != 255:
        raise _Unusual
    count = 3 if kind == 6 else 1
    data = content[match.end() : match.end() + width * height * count]
    if len(data) != width * height * count:
        raise ValueError(f"it holds {len(data):,} of {width * height * count:,} bytes")
    return flattened(np.frombuffer(data, np.uint8).reshape(height, width, count))


def _by_pillow(content: bytes, name: str, most: int) -> np.ndarray:
    """Reads other kinds of pictures, of which the first is taken where there are several, upright
    as a camera says that it was held."""
    import io
    import warnings

    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ConfigError(
            f"{name} is no plain PNG or PPM file, and other pictures need Pillow, which is not"
            " installed; convert it, or pip install 'gptjax[image]'."
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own guess of what is too large
            with Image.open(io.BytesIO(content), formats=OTHERS) as opened:
                _require_size(*opened.size, most)
                upright = ImageOps.exif_transpose(opened)
                wide = upright.mode[0] in "IF"  # Pillow cuts these at 255 instead of scaling them
                pixels = np.asarray(upright if wide else upright.convert("RGBA"))
        return flattened(_narrowed(pixels) if wide else pixels)
    except Exception as error:  # its readers raise whatever they come upon
        what = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{name} is no picture that can be read ({what}); give a PNG or JPEG file."
        ) from None


def _narrowed(grey: np.ndarray) -> np.ndarray:
    """8 bits of grey of 16."""
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() >= 2**16:
        raise ValueError("its grey is no whole number of 16 bits")
    return (grey.astype(np.int64) >> 8).astype(np.uint8)[..., None]
