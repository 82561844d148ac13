"""Laws of pictures that are written as tokens: what a picture is as text, which part of it is
learned, and what is drawn of a caption. Read `store_of` and `drawing` first."""

from __future__ import annotations

import dataclasses
import gzip
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import api, generate
from gptjax.cli.main import main
from gptjax.core.config import ConfigError
from gptjax.data import (
    Characters,
    DataConfig,
    Document,
    Idx,
    LanguageModel,
    MaskedPictureTokens,
    Media,
    Noise,
    PictureTokens,
    batches,
    prepare,
)
from gptjax.data.documents.idx import grey_name, grey_pixels, read_idx
from gptjax.data.documents.media import Pictured
from gptjax.data.tasks.picture_tokens import alphabet, from_levels, quantised, spelled, unspelled
from gptjax.data.tasks.pictures import named_picture
from gptjax.lab.codes import (
    CodeFit,
    Running,
    begin_codes,
    code_figures,
    fit_codes,
    objective,
    restarted,
)
from gptjax.losses import CrossEntropy, Diffusion
from gptjax.model import ModelConfig
from gptjax.model.inputs.codes import (
    Codes,
    encode_patches,
    nearest_codes,
    paint_patches,
    save_codes,
)
from gptjax.model.inputs.image_files import read_image, save_png
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

SIDE = 4
BAR, CROSS = np.zeros((2, SIDE, SIDE), np.uint8)
BAR[:, 1] = CROSS[2] = CROSS[:, 2] = 255


def idx_files(folder: Path, count: int = 40) -> Idx:
    """Bars with the label 1 and crosses with the label 8, in turn."""
    pictures = np.stack([(BAR, CROSS)[i % 2] for i in range(count)])
    labels = np.asarray([(1, 8)[i % 2] for i in range(count)], np.uint8)
    content = struct.pack(">HBB3I", 0, 8, 3, *pictures.shape) + pictures.tobytes()
    (folder / "pictures.gz").write_bytes(gzip.compress(content))
    (folder / "labels").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes())
    return Idx(str(folder / "pictures.gz"), str(folder / "labels"), held_out_count=8)


def data_of(folder: Path, task: PictureTokens) -> DataConfig:
    folder.mkdir(exist_ok=True)
    return DataConfig(
        idx_files(folder), Characters(), validation=0.0, task=task, cache=str(folder / "cache")
    )


AR = PictureTokens((SIDE, SIDE), drop=0.3)
MASKED = MaskedPictureTokens((SIDE, SIDE), drop=0.3)


@pytest.fixture(scope="module", params=[AR, MASKED], ids=["one by one", "masked"])
def run(request, tmp_path_factory) -> Path:
    """A model that has learned which picture belongs to which label."""
    task, folder = request.param, tmp_path_factory.mktemp("drawing")
    tiny = ModelConfig(context=17, width=32, num_layers=1, num_heads=4, causal=task is AR)
    train(
        Experiment(
            model=tiny,
            data=data_of(folder / "data", task),
            loss=CrossEntropy() if task is AR else Diffusion(),
            optim=AdamW(peak=1e-2),
            schedule=Schedule("constant", warmup=5),
            steps=100,
            batch=32,
        ),
        folder / "run",
    )
    return folder / "run"


@pytest.fixture(scope="module")
def drawing(run: Path) -> api.Model:
    return api.load(run)


# --- pictures as text


@pytest.mark.parametrize("levels", [2, 3, 5, 16, 256])
def test_a_picture_spelled_and_read_again_is_the_picture(levels: int):
    assert len(set(alphabet(levels))) == levels
    numbers = np.random.default_rng(0).integers(0, levels, (5, 7))
    read = unspelled(spelled(numbers, levels), levels).reshape(5, 7)
    np.testing.assert_array_equal(read, numbers)
    np.testing.assert_array_equal(quantised(from_levels(numbers, levels), levels), numbers)


def test_levels_are_equal_parts_of_the_range():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=-1)
    for levels in (2, 4, 16):
        assert np.bincount(quantised(grey, levels)[0]).tolist() == [256 // levels] * levels


def test_a_label_and_its_picture_are_read_from_idx_files(tmp_path: Path):
    documents = list(read_idx(idx_files(tmp_path)))
    assert [d.held_out for d in documents] == [False] * 32 + [True] * 8
    assert AR.texts(documents[1]) == ("8", spelled(CROSS // 255, 2))
    picture = np.random.default_rng(0).integers(0, 256, (3, 5), dtype=np.uint8)
    np.testing.assert_array_equal(grey_pixels(grey_name(picture))[..., 1], picture)
    np.testing.assert_array_equal(named_picture(grey_name(BAR), (SIDE, SIDE))[..., 0], BAR)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "damaged"),
        (lambda content: b"\x00\x00\x0d\x03" + content[4:], "unsigned bytes"),
        (lambda content: gzip.compress(content)[:-9], "damaged"),
        (lambda content: b"", "damaged"),
    ],
    ids=["short", "floats", "cut gzip", "empty"],
)
def test_a_damaged_idx_file_ends_in_one_line(tmp_path: Path, change, message: str):
    source = idx_files(tmp_path)
    file = Path(source.path)
    file.write_bytes(change(gzip.decompress(file.read_bytes())))
    with pytest.raises(ConfigError, match=message):
        list(read_idx(source))
    with pytest.raises(ConfigError, match="belong together"):
        list(read_idx(dataclasses.replace(idx_files(tmp_path), labels=str(_labels(tmp_path, 3)))))


def _labels(folder: Path, count: int) -> Path:
    (folder / "few").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + bytes(count))
    return folder / "few"


# --- what is learned


@pytest.mark.parametrize("task", [AR, MASKED], ids=["one by one", "masked"])
def test_pictures_are_learned_behind_captions_of_which_a_share_is_hidden(tmp_path: Path, task):
    found = prepare(data_of(tmp_path, task))
    unknown = found.tokenizer.vocab_size
    labels = {int(i) for i in found.tokenizer.encode("18")}
    plan = batches.plan(found.train, length=20, rows=64, seed=3, task=task)
    again, first = (batches.batch(found.train, plan, 5) for _ in range(2))
    np.testing.assert_array_equal(again.tokens, first.tokens)
    many = [batches.batch(found.train, plan, step) for step in range(20)]
    captions = np.concatenate([one.tokens[:, 0] for one in many])
    hidden = (captions == unknown).mean()
    assert abs(hidden - task.drop) < 0.05
    assert set(captions.tolist()) == labels | {unknown}
    for one in many:
        learned = one.weights > 0
        assert not set(one.targets[learned].tolist()) & (labels | {unknown})
        assert (learned.sum(1) == 16).all() if task is AR else learned.sum(1).max() <= 16
    assert found.validation is not None
    held_out = batches.plan(found.validation, length=20, rows=8, seed=None, task=task)
    one = batches.batch(found.validation, held_out, 0)
    assert set(one.tokens[:, 0].tolist()) == labels


def test_hiding_a_caption_says_nothing_about_how_much_is_masked(tmp_path: Path):
    task = dataclasses.replace(MASKED, drop=0.5, noise=Noise(stratified=False))
    found = prepare(data_of(tmp_path, task))
    plan = batches.plan(found.train, length=17, rows=64, seed=3, task=task)
    many = [batches.batch(found.train, plan, step) for step in range(40)]
    hidden = np.concatenate([one.tokens[:, 0] == found.tokenizer.vocab_size for one in many])
    masked = np.concatenate([(one.weights > 0).sum(1) for one in many])
    assert abs(masked[hidden].mean() - masked[~hidden].mean()) < 1


def test_a_caption_of_several_tokens_is_not_learned(tmp_path: Path):
    ids = np.asarray([5, 6, 7, *[1] * 16], np.int32)
    piece = dataclasses.replace(AR, drop=0.0)._behind(ids, 9, hide=False)
    assert piece.weights.tolist() == [0, 0, *[1] * 16]
    assert piece.targets[piece.weights > 0].tolist() == [1] * 16


def test_a_picture_without_a_caption_begins_with_the_id_that_says_nothing(tmp_path: Path):
    tokenizer = prepare(data_of(tmp_path, AR)).tokenizer
    unknown, pixel, label = tokenizer.vocab_size, *tokenizer.encode("·8").tolist()
    for ids, read in (([], [unknown]), ([pixel], [unknown, pixel]), ([label], [label])):
        assert AR.prompt(ids, tokenizer, False) == ([], read)


def test_the_nats_of_a_picture_are_those_of_its_tokens():
    assert PictureTokens((2, 3)).derived(0.5) == {"nats_per_picture": 3.0}


def test_a_caption_that_could_be_pixels_is_refused(tmp_path: Path):
    save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "a.txt").write_text("a · b", encoding="utf-8")
    source = Media(str(tmp_path))
    config = DataConfig(source, Characters(), validation=0.0, task=AR, cache=str(tmp_path / "c"))
    with pytest.raises(ConfigError, match="characters of pixels"):
        prepare(config)


# --- what is drawn


def test_of_a_label_its_own_picture_is_drawn(drawing: api.Model):
    for label, picture in (("1", BAR), ("8", CROSS)):
        drawn = drawing.draw([label], temperature=0.0)
        np.testing.assert_array_equal(drawn[0, ..., 0], picture)


def test_what_is_there_of_a_picture_stays(drawing: api.Model):
    begun = spelled(np.asarray([1, 1, 1, 1, 0]), 2)
    for caption in ("1", ""):
        drawn = drawing.draw([caption + begun], temperature=1.0, top_p=1.0)[0, ..., 0]
        assert (drawn.ravel()[:5] == [255, 255, 255, 255, 0]).all()


def test_guidance_of_one_is_drawing_without_and_of_zero_drawing_without_a_caption(drawing):
    settings = {"temperature": 1.0, "top_p": 1.0, "num_samples": 6, "seed": 4}
    plain = drawing.draw(["1"], **settings)
    np.testing.assert_array_equal(drawing.draw(["1"], guidance=1.0, **settings), plain)
    likeliest = drawing.draw(["", "1", "8"], temperature=0.0, guidance=0.0)
    np.testing.assert_array_equal(drawing.draw([""] * 3, temperature=0.0), likeliest)


def test_pictures_are_written_to_a_file_as_a_grid(run: Path, tmp_path: Path, capsys):
    file = str(tmp_path / "drawn.png")
    flags = ["--prompt", "1", "8", "--temperature", "0"]
    assert main(["sample", str(run), *flags, "--picture", file]) == 0
    assert "2 pictures" in capsys.readouterr().out
    grid = read_image(file)
    assert grid.shape == (112 * 2 + 2, 112, 3)
    np.testing.assert_array_equal(grid[14:112:28, 14::28, 0], BAR)
    np.testing.assert_array_equal(grid[114 + 14 :: 28, 14::28, 0], CROSS)
    for more, words in ((["--json"], "omit --json"), (["--prefix", "a"], "omit --prefix")):
        assert main(["sample", str(run), *flags, "--picture", file, *more]) == 2
        assert words in capsys.readouterr().err


def test_a_model_of_text_draws_nothing():
    with pytest.raises(ConfigError, match=r"LanguageModel, not PictureTokens.*omit --picture"):
        generate.drawing_task(LanguageModel())


def test_a_prompt_needs_room_for_a_picture(drawing: api.Model):
    whole = spelled(np.zeros(16, int), 2)
    for prompt in ("1" + whole, whole[:2] + "1"):
        with pytest.raises(ConfigError, match="leaves no picture to draw"):
            drawing.draw([prompt])


# --- codes


SMALL = CodeFit(patch=4, codes=6, vector=3, width=16, steps=400, batch=8, peak=2e-2, restart=0.2)


def scribbles(count: int = 64) -> np.ndarray:
    """Pictures of 8 × 12 whose patches are white, black, or half of each."""
    draw = np.random.default_rng(0)
    kinds = np.stack([np.zeros((4, 4)), np.full((4, 4), 255), np.tri(4) * 255]).astype(np.uint8)
    rows = kinds[draw.integers(0, 3, (count, 2, 3))]
    return rows.transpose(0, 1, 3, 2, 4).reshape(count, 8, 12)


def begun() -> tuple[Codes, np.ndarray]:
    x = scribbles(4)
    return jax.tree.map(np.asarray, begin_codes(jnp.asarray(x), SMALL)), x / np.float32(255)


def test_a_patch_is_encoded_from_the_window_around_it():
    codes, x = begun()
    said = encode_patches(codes, x)
    np.testing.assert_allclose(encode_patches(codes, jnp.asarray(x), jnp), said, atol=1e-5)
    window = np.pad(x[1], 2)[0:8, 4:12].ravel()
    inner = np.maximum(window @ codes.enter + codes.enter_bias, 0)
    np.testing.assert_allclose(said[1, 0, 1], inner @ codes.narrow, atol=1e-5)


def test_gradients_pass_codes_straight_through_and_vectors_have_none():
    codes, x = begun()
    gradient = jax.grad(lambda c: objective(c, jnp.asarray(x), 0.25)[0])(codes)
    assert not np.any(gradient.book)
    without = jax.grad(lambda c: objective(c, jnp.asarray(x), 0.0)[0])(codes)
    vectors = codes.book[nearest_codes(codes, encode_patches(codes, x))]

    def as_if_nothing_were_chosen(narrow):
        said = encode_patches(codes._replace(narrow=narrow), jnp.asarray(x), jnp)
        moved = vectors + said - jax.lax.stop_gradient(said)
        return jnp.square(paint_patches(codes, moved, jnp) - x).mean()

    expected = jax.grad(as_if_nothing_were_chosen)(codes.narrow)
    np.testing.assert_allclose(without.narrow, expected, atol=1e-6)
    assert np.abs(gradient.narrow - without.narrow).max() > 1e-6


def test_dead_codes_begin_anew_as_patches_of_the_step_and_others_stay():
    rows = jnp.arange(40.0).reshape(20, 2)
    counts, sums = jnp.asarray([4.0, 0.01, 0.4]), jnp.full((3, 2), -1.0)
    moved, dead = restarted(Running(counts, sums), rows, jax.random.key(0), 0.1)
    assert dead.tolist() == [False, True, False]
    assert moved.counts.tolist() == [4.0, 1.0, float(counts[2])]
    assert (moved.sums[jnp.asarray([0, 2])] == -1).all()
    assert any((moved.sums[1] == row).all() for row in rows)


def test_codes_are_a_function_of_the_seed_and_spell_pictures(tmp_path: Path):
    x = scribbles()
    (codes, told), (again, _) = (fit_codes(x, SMALL) for _ in range(2))
    for one, other in zip(codes, again, strict=True):
        np.testing.assert_array_equal(one, other)
    figures = code_figures(codes, x)
    assert told["loss"][-1] < told["loss"][0] / 4 and figures.error < 0.02
    assert 2.5 < figures.perplexity <= 6 * figures.used
    save_codes(tmp_path / "codes.npz", codes)
    task = PictureTokens((8, 12), levels=6, patch=4, codes=str(tmp_path / "codes.npz"))
    picture = np.repeat(x[0][..., None], 3, axis=-1)
    document = Document(Pictured("", "a", ("x",)).dump(), "a", pictures=(grey_name(x[0]),))
    caption, text = task.resolve(()).texts(document)
    assert (caption, len(text), task.places) == ("a", 6, 6)
    store = SimpleNamespace(header=SimpleNamespace(num_examples=5))
    assert "5 pictures of 2 × 3 tokens" in task.describe(cast(Any, store))
    assert np.abs(task.pictured(caption + text).astype(int) - picture).mean() < 30
    for wrong, words in (
        (dataclasses.replace(task, levels=5), "6 codes of patches of 4"),
        (dataclasses.replace(task, digest="0"), "another codebook"),
    ):
        with pytest.raises(ConfigError, match=words):
            wrong.texts(document)
    (tmp_path / "codes.npz").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="no codebook"):
        task.resolve(())
