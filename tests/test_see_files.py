"""Pictures in files: what is written is read, and whatever a file holds ends in a picture or in one
line."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from gptjax.core.config import ConfigError
from gptjax.model.inputs.image import prepared, resized
from gptjax.model.inputs.image_files import PNG, decoded, read_image, save_png

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, lines: bytes, colour: int = 2, more: bytes = b"") -> bytes:
    """A PNG file whose header says these sizes and whose lines are given."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    packed = chunk(b"IDAT", zlib.compress(lines))
    return PNG + header + more + packed + chunk(b"IEND", b"")


def filtered(kind: int) -> bytes:
    """The lines of `PICTURE` under one of PNG's filters, byte by byte as the standard has it."""
    lines, before = b"", np.zeros((7, 3), int)
    for line in PICTURE.astype(int):
        row = bytes([kind])
        for x in range(7):
            a = line[x - 1] if x else np.zeros(3, int)
            b, c = before[x], before[x - 1] if x else np.zeros(3, int)
            p = a + b - c
            near = np.where(
                (abs(p - a) <= abs(p - b)) & (abs(p - a) <= abs(p - c)),
                a,
                np.where(abs(p - b) <= abs(p - c), b, c),
            )
            guess = (0 * a, a, b, (a + b) // 2, near)[kind]
            row += bytes(((line[x] - guess) % 256).tolist())
        lines, before = lines + row, line
    return lines


@pytest.mark.parametrize("kind", range(5))
def test_every_filter_of_png_is_undone(kind):
    np.testing.assert_array_equal(decoded(png(7, 9, filtered(kind))), PICTURE)


def test_a_written_picture_is_read_again_and_transparency_is_white(tmp_path):
    save_png(tmp_path / "a.png", PICTURE)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PICTURE)
    clear = png(1, 1, bytes([0, 10, 20, 30, 0]), colour=6)
    assert decoded(clear).tolist() == [[[255, 255, 255]]]
    grey = png(2, 1, bytes([0, 5, 9]), colour=0)
    assert decoded(grey).tolist() == [[[5] * 3, [9] * 3]]
    palette = png(2, 1, bytes([0, 1, 0]), 3, chunk(b"PLTE", bytes([1, 2, 3, 4, 5, 6])))
    assert decoded(palette).tolist() == [[[4, 5, 6], [1, 2, 3]]]
    ppm = b"P6\n# a comment\n7 9\n255\n" + PICTURE.tobytes()
    np.testing.assert_array_equal(decoded(ppm), PICTURE)


WHOLE = png(7, 9, filtered(1))
HOSTILE = {
    "empty": b"",
    "text": b"not a picture at all",
    "cut": WHOLE[:60],
    "cut before its end": WHOLE[:-12],
    "no header": PNG + chunk(b"IEND", b""),
    "one bit wrong": WHOLE[:50] + bytes([WHOLE[50] ^ 1]) + WHOLE[51:],
    "no pixels": png(0, 9, b""),
    "says it is huge": png(2**31 - 1, 2**31 - 1, b"\0"),
    "a bomb": png(2**16, 2**16, b"\0" * 10),
    "unpacks to less": png(7, 9, b"\0" * 20),
    "unknown filter": png(7, 9, bytes([9]) + filtered(0)[1:]),
    "palette without colours": png(2, 1, bytes([0, 1, 0]), colour=3),
    "a length beyond its end": PNG + struct.pack(">I", 2**31) + b"IHDR",
    "PPM cut": b"P6 7 9 255\n" + b"\0" * 9,
    "PPM huge": b"P6 999999999 999999999 255\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_line_with_bounded_memory(name, tmp_path):
    (tmp_path / "x.png").write_bytes(HOSTILE[name])
    tracemalloc.start()
    with pytest.raises(ConfigError) as found:
        read_image(tmp_path / "x.png")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(found.value) and "x.png" in str(found.value)
    assert most < 2**24


def test_what_unpacks_to_more_than_its_header_says_is_not_unpacked():
    """Sixty megabytes behind a header of 189 bytes: no more are unpacked than the header names."""
    bomb = png(7, 9, filtered(0) + bytes(60_000_000))
    tracemalloc.start()
    np.testing.assert_array_equal(decoded(bomb), PICTURE)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22


def test_a_picture_keeps_its_mean_and_its_shape_fits():
    assert prepared(PICTURE, (9, 7)) is PICTURE
    flat = np.full((40, 20, 3), 77, np.uint8)
    for cubic in (False, True):
        assert (resized(flat, (13, 31), cubic) == 77).all()
    halves = np.repeat([[[0] * 3, [200] * 3]], 10, axis=1).repeat(8, axis=0).astype(np.uint8)
    small = resized(halves, (2, 2))
    assert small[:, 0].max() < 60 and small[:, 1].min() > 140
    assert prepared(flat, (16, 16), "crop").shape == (16, 16, 3)
    padded = prepared(flat, (16, 16), "pad")
    assert (padded[:, 4:12] == 77).all() and (padded[:, :4] == 128).all()


def test_resizing_is_pillows_within_one_level():
    image = pytest.importorskip("PIL.Image", reason="compared with Pillow: 'gptjax[image]'")
    large = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    for size in ((16, 24), (50, 70)):
        for cubic, how in ((False, image.Resampling.BILINEAR), (True, image.Resampling.BICUBIC)):
            theirs = np.asarray(image.fromarray(large).resize(size[::-1], how)).astype(int)
            assert np.abs(resized(large, size, cubic) - theirs).max() <= 1


def test_other_kinds_are_read_by_pillow(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="JPEG needs Pillow: 'gptjax[image]'")
    smooth = resized(PICTURE, (64, 64))
    image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).mean() < 4
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:300])
    with pytest.raises(ConfigError, match=r"b\.jpg is no picture that can be read"):
        read_image(tmp_path / "b.jpg")
    image.fromarray(PICTURE).convert("L").convert("1").save(tmp_path / "c.png")
    assert set(read_image(tmp_path / "c.png").ravel().tolist()) <= {0, 255}


def test_a_photograph_is_upright_and_sixteen_bits_of_grey_are_scaled(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="JPEG needs Pillow: 'gptjax[image]'")
    held = image.fromarray(np.zeros((4, 8, 3), np.uint8))
    exif = held.getexif()
    exif[0x0112] = 6  # turned by a quarter
    held.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (8, 4, 3)
    wide = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    image.fromarray(wide).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[..., 0], wide >> 8)
    image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "c.tif")
    with pytest.raises(ConfigError, match="no whole number of 16 bits"):
        read_image(tmp_path / "c.tif")
