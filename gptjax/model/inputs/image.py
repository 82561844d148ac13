"""Pictures of any size as pixels of the size that a model reads. Everything here is numpy.

Read `prepared`. Files are read in `image_files`; `vision` cuts pixels into patches.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from gptjax.core.arrays import Float, Num

Fit = Literal["stretch", "crop", "pad"]
"""How a picture of another shape fits: its sides are stretched, its longer side is cropped to the
centre, or its shorter side is padded with grey."""

GREY = 127.5
"""What is beside a picture that is padded."""


def prepared(
    image: Num[np.ndarray, "H W C"],
    size: tuple[int, int],
    fit: Fit = "stretch",
    cubic: bool = False,
) -> Num[np.ndarray, "h w C"]:
    """Returns a picture at the size (height, width) that a model reads, 8 bits a colour.

    Args:
      cubic: interpolate by cubic curves, as CLIP and SigLIP do, instead of lines.
    """
    height, width = size
    if image.shape[:2] == size:
        return image
    if fit == "stretch":
        return resized(image, size, cubic)
    choose = max if fit == "crop" else min
    scale = choose(height / image.shape[0], width / image.shape[1])
    inner = tuple(max(1, round(side * scale)) for side in image.shape[:2])
    scaled = resized(image, (inner[0], inner[1]), cubic)
    if fit == "crop":
        top, left = (inner[0] - height) // 2, (inner[1] - width) // 2
        return scaled[top : top + height, left : left + width]
    whole = np.full((height, width, image.shape[2]), round(GREY), np.uint8)
    inner = min(inner[0], height), min(inner[1], width)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    whole[top : top + inner[0], left : left + inner[1]] = scaled[: inner[0], : inner[1]]
    return whole


def resized(
    image: Num[np.ndarray, "H W C"], size: tuple[int, int], cubic: bool = False
) -> Num[np.ndarray, "h w C"]:
    """Returns a picture at another size, 8 bits a colour: each new pixel is a weighted mean of the
    old ones around it, of more of them where the picture becomes smaller.

    Within one level of Pillow's BILINEAR and BICUBIC, which round between the two directions too.
    """
    rows, columns = (
        _weights(before, after, cubic) for before, after in zip(image.shape[:2], size, strict=True)
    )
    pixels = np.einsum("wv,hvc->hwc", columns, image.astype(np.float32), optimize=True)
    pixels = np.clip(np.floor(pixels + 0.5), 0, 255)
    pixels = np.einsum("gh,hwc->gwc", rows, pixels, optimize=True)
    return np.clip(np.floor(pixels + 0.5), 0, 255).astype(np.uint8)


def _weights(before: int, after: int, cubic: bool) -> Float[np.ndarray, "after before"]:
    """How much each old pixel of a line is part of each new one; each row adds up to 1.

    Source: Keys 1981, Cubic Convolution Interpolation, with a = −1/2; stretched where a picture
    shrinks, so that no pixel is passed over.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    centres = (np.arange(after) + 0.5) * scale
    x = np.abs((np.arange(before)[None] + 0.5 - centres[:, None]) / stretch)
    if cubic:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    else:
        weights = np.maximum(1 - x, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
