"""Videos in files: a folder of pictures, an array in an .npy file, or what Pillow (extra `image`)
knows as an animation: GIF, PNG, WebP.

Read `read_video`. Frames are taken at even distances and given one by one, so memory is bounded by
one frame; whatever a file holds, it ends in frames or in one line.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.arrays import Int, Num
from gptjax.core.config import ConfigError, require
from gptjax.model.inputs.image_files import (
    MOST_BYTES,
    MOST_PIXELS,
    OTHERS,
    flattened,
    read_image,
)

MOST_FRAMES = 4096
"""Most frames of a video."""
MOST_MOVING = 2**30
"""Most pixels of all frames of an animation, of which each is unpacked after the one before."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""Names of frames in a folder end so."""


def sampled(total: int, count: int) -> Int[np.ndarray, " count"]:
    """Returns the numbers of `count` frames at even distances, the first and the last included; a
    video with fewer shows some of them again."""
    return np.floor(np.linspace(0, total - 1, count) + 0.5).astype(np.int64)


def read_video(path: Path | str, count: int) -> Iterator[Num[np.ndarray, "H W 3"]]:
    """Yields `count` frames of a video, those of `sampled`: red, green and blue, 8 bits each.

    Raises:
      ConfigError: the file is absent, empty, too large or damaged, has no frame or too many, or is
        of a kind that needs Pillow where that is not installed; on the way, not at the call.
    """
    path = Path(path)
    if path.is_dir():
        yield from _folder(path, count)
        return
    require(
        path.is_file(),
        f"{path} is not there; give a video: a folder of pictures, an .npy file or an animation.",
    )
    size = path.stat().st_size
    require(size > 0, f"{path} is empty; give a video.")
    with open(path, "rb") as file:
        array = file.read(6) == np.lib.format.MAGIC_PREFIX
    try:
        if array:
            yield from _array(path, count)
            return
        require(
            size <= MOST_BYTES,
            f"{path} has {size:,} bytes, and animations of up to {MOST_BYTES:,} are read; make it"
            " smaller, or give a folder of pictures.",
        )
        yield from _animation(path, count)
    except ConfigError:
        raise
    except Exception as error:  # Pillow's readers raise whatever they come upon
        what = " ".join(str(error).split())[:120]
        raise ConfigError(f"{path} is a damaged video ({what}); give another.") from None


def _require_count(name: Path, total: int) -> None:
    require(
        0 < total <= MOST_FRAMES,
        f"{name} has {f'more than {MOST_FRAMES:,}' if total else 'no'} frames; give a video of 1 to"
        f" {MOST_FRAMES:,}.",
    )


def _require_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise ValueError(f"it says {width} × {height} pixels; 1 to {MOST_PIXELS:,} are read")


# --- folders ---


def _folder(path: Path, count: int) -> Iterator[np.ndarray]:
    """The pictures of a folder in the order of the numbers in their names: 2 before 10."""
    names = (one for one in path.iterdir() if one.suffix.lower() in PICTURES and one.is_file())
    found = sorted(names, key=_in_order)
    _require_count(path, len(found))
    for number in sampled(len(found), count):
        yield read_image(found[number])


def _in_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    key = [(int(part) if part[0] in "0123456789" else -1, part) for part in parts]
    return [(number, "" if number >= 0 else part) for number, part in key], path.name


# --- arrays ---


def _array(path: Path, count: int) -> Iterator[np.ndarray]:
    """Frames of an array [frames H W C] of 8 bits, of which the chosen ones alone are read. The
    file is not mapped into memory: one that was truncated would end the process."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        headers: dict[tuple[int, int], Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in headers:
            raise ValueError(f"its version is {version}")
        shape, by_columns, kind = headers[version](file)
        begin = file.tell()
        if len(shape) != 4 or not 1 <= shape[3] <= 4 or kind != np.uint8 or by_columns:
            raise ValueError(
                f"it is {kind} {list(shape)}; needed is uint8 [frames height width 1..4]"
            )
        _require_count(path, shape[0])
        _require_size(*shape[1:3])
        each = math.prod(shape[1:])
        for number in sampled(shape[0], count).tolist():
            file.seek(begin + number * each)
            content = file.read(each)
            if len(content) != each:
                raise ValueError(f"frame {number} of {shape[0]} is not there")
            yield flattened(np.frombuffer(content, np.uint8).reshape(shape[1:]))


# --- animations ---


def _animation(path: Path, count: int) -> Iterator[np.ndarray]:
    """Frames of an animation, or of a picture, which is one frame."""
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError(
            f"{path} is neither a folder of pictures nor an .npy file, and animations need Pillow,"
            " which is not installed; convert it, or pip install 'gptjax[image]'."
        ) from None
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own guess of what is too large
        with Image.open(io.BytesIO(content), formats=OTHERS) as opened:
            total = _length(path, opened, content)
            for number in sampled(total, count).tolist():
                opened.seek(number)
                yield flattened(np.asarray(opened.convert("RGBA")))


def _length(path: Path, opened: Any, content: bytes) -> int:
    """The number of frames, each of which is sought: headers say anything."""
    width, height = opened.size
    _require_size(height, width)
    if opened.format == "GIF" and content.rstrip(b"\0")[-1:] != b";":
        raise ValueError("it ends in the middle")
    total = 1
    while True:
        try:
            opened.seek(total)
        except EOFError:
            break
        total += 1
        _require_count(path, total)
        if total * width * height > MOST_MOVING:
            raise ValueError(f"it unpacks to more than {MOST_MOVING:,} pixels")
    said = getattr(opened, "n_frames", 1)
    if said != total:
        raise ValueError(f"it says {said} frames and has {total}")
    return total
