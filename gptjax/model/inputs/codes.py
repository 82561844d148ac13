"""Pictures as numbers of a codebook (VQ): an encoder looks at a window around each patch, the
nearest of a few learned vectors takes the place of what it says, and a decoder paints the patch
from the vectors around it.

Everything but the file is a pure function of arrays, numpy's or JAX's: `xp` is either module. Read
`Codes` (the parameters), then `encode_patches`, `nearest_codes` and `paint_patches`. `lab.codes`
fits them.

Source: van den Oord et al. 2017, Neural Discrete Representation Learning, arXiv:1711.00937.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.arrays import Float, Int, Num, Numbers
from gptjax.core.config import ConfigError, require


class Codes(NamedTuple):
    """The parameters. A patch has P × P pixels, a vector V numbers, and both sides one hidden layer
    of F."""

    enter: Float[Numbers, "4·P·P F"]
    """From a window of twice the patch's side."""
    enter_bias: Float[Numbers, " F"]
    narrow: Float[Numbers, "F V"]
    book: Float[Numbers, "K V"]
    """The codes' vectors."""
    widen: Float[Numbers, "9·V F"]
    """From the vectors of a patch and of those around it."""
    widen_bias: Float[Numbers, " F"]
    leave: Float[Numbers, "F P·P"]
    leave_bias: Float[Numbers, " P·P"]

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        return round(self.leave_bias.shape[0] ** 0.5)


def encode_patches(
    codes: Codes, pictures: Num[Numbers, "N H W"], xp: Any = np
) -> Float[Numbers, "N h w V"]:
    """Returns what the encoder says of each patch.

    Args:
      pictures: grey levels in [0, 1].
    """
    half = codes.patch // 2
    wide = xp.pad(pictures, ((0, 0), (half, half), (half, half)))
    windows = _windows(wide, 2 * codes.patch, codes.patch, xp)
    inner = xp.maximum(windows @ codes.enter + codes.enter_bias[None, None, None], 0)
    return inner @ codes.narrow


def _windows(x: Any, side: int, step: int, xp: Any) -> Any:
    """Squares of pixels, flat, each some steps from the one before [N h w side·side]."""
    down, across = ((size - side) // step + 1 for size in x.shape[1:3])
    pixels = [
        x[:, y : y + (down - 1) * step + 1 : step, z : z + (across - 1) * step + 1 : step]
        for y in range(side)
        for z in range(side)
    ]
    return xp.stack(pixels, axis=-1)


def nearest_codes(codes: Codes, said: Float[Numbers, "N h w V"]) -> Int[Numbers, "N h w"]:
    """Returns the number of the nearest vector to each."""
    book = codes.book
    products = said @ book.T
    return ((book * book).sum(-1)[None, None, None] - 2 * products).argmin(-1)


def paint_patches(
    codes: Codes, vectors: Float[Numbers, "N h w V"], xp: Any = np
) -> Float[Numbers, "N H W"]:
    """Returns the pictures that vectors of codes stand for, about in [0, 1]."""
    count, down, across, _ = vectors.shape
    wide = xp.pad(vectors, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = [wide[:, y : y + down, x : x + across] for y in range(3) for x in range(3)]
    near = xp.concatenate(around, axis=-1) @ codes.widen
    inner = xp.maximum(near + codes.widen_bias[None, None, None], 0)
    side = codes.patch
    flat = inner @ codes.leave + codes.leave_bias[None, None, None]
    patches = flat.reshape(count, down, across, side, side)
    return patches.transpose(0, 1, 3, 2, 4).reshape(count, down * side, across * side)


def picture_codes(codes: Codes, picture: Num[np.ndarray, "H W 3"]) -> Int[np.ndarray, "h w"]:
    """Returns the codes of a picture, 8 bits a colour."""
    grey = picture.astype(np.float32).mean(-1)[None] / 255
    return np.asarray(nearest_codes(codes, encode_patches(codes, grey))[0], np.int32)


def painted(codes: Codes, numbers: Int[np.ndarray, "h w"]) -> Num[np.ndarray, "H W 3"]:
    """Returns the picture of codes, 8 bits a colour."""
    grey = paint_patches(codes, codes.book[numbers][None])[0]
    pixels = np.round(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=-1)


# --- files


def save_codes(path: Path | str, codes: Codes) -> None:
    """Writes the parameters as a .npz file."""
    arrays: dict[str, Any] = {name: np.asarray(x) for name, x in codes._asdict().items()}
    np.savez(path, **arrays)


def load_codes(path: Path | str) -> tuple[Codes, str]:
    """Reads what `save_codes` wrote; also its sha256, in hex.

    Raises:
      ConfigError: the file is absent or is something else.
    """
    path = Path(path)
    require(path.is_file(), f"{path} is not there; give a codebook (--data.task.codes FILE).")
    try:
        with np.load(path) as arrays:
            codes = Codes(**{name: arrays[name].astype(np.float32) for name in Codes._fields})
        whole = codes.patch**2 == codes.leave_bias.shape[0]
    except (OSError, ValueError, KeyError, EOFError, AttributeError) as error:
        raise ConfigError(f"{path} is no codebook ({error}); write one with save_codes.") from None
    require(whole, f"{path} is no codebook: its patches are not square.")
    return codes, hashlib.sha256(path.read_bytes()).hexdigest()
