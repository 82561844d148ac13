"""Videos: frames of files, drawn ones, and what a model learns of their order. The laws that hold
for pictures too are in `test_see`."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import tracemalloc

import jax
import numpy as np
import pytest

from gptjax import api, generate, model
from gptjax.core.config import ConfigError, from_dict, to_dict
from gptjax.data import (
    Characters,
    DataConfig,
    Media,
    MovingShapes,
    VideoAnswers,
    VisualAnswers,
    batches,
    prepare,
)
from gptjax.data.documents.media import Pictured, read_media
from gptjax.data.documents.moving import WAYS, draw_video, read_moving
from gptjax.model import ModelConfig, Vision
from gptjax.model.inputs import video_files
from gptjax.model.inputs.image_files import save_png
from gptjax.model.inputs.video_files import read_video, sampled
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

VIDEO = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
"""Twelve frames, six pixels high."""


def animated(kind: str, frames: np.ndarray = VIDEO, **how) -> bytes:
    """The content of an animation that Pillow writes."""
    image = pytest.importorskip("PIL.Image", reason="animations need Pillow: 'gptjax[image]'")
    first, *rest = map(image.fromarray, frames)
    made = io.BytesIO()
    first.save(made, kind, save_all=True, append_images=rest, duration=40, **how)
    return made.getvalue()


# --- files ---


def test_frames_are_taken_at_even_distances_from_the_first_to_the_last():
    assert sampled(12, 4).tolist() == [0, 4, 7, 11]
    assert sampled(4, 4).tolist() == [0, 1, 2, 3]
    assert sampled(2, 4).tolist() == [0, 0, 1, 1]
    assert sampled(1, 3).tolist() == [0, 0, 0]
    for total, count in itertools.product((1, 2, 7, 30), (2, 5)):
        chosen = sampled(total, count)
        assert (chosen[0], chosen[-1]) == (0, total - 1) and (np.diff(chosen) >= 0).all()


def test_a_folder_and_an_array_give_the_frames_that_they_hold(tmp_path):
    """Frame 2 stands before frame 10, whatever the names sort like."""
    (tmp_path / "clip").mkdir()
    for n, frame in enumerate(VIDEO):
        save_png(tmp_path / f"clip/frame {n}.png", frame)
    (tmp_path / "clip/notes.txt").write_text("no frame")
    np.save(tmp_path / "a.npy", VIDEO)
    np.save(tmp_path / "grey.npy", VIDEO[..., :1])
    for name in ("clip", "a.npy"):
        found = np.stack(list(read_video(tmp_path / name, 4)))
        np.testing.assert_array_equal(found, VIDEO[[0, 4, 7, 11]])
    grey = np.stack(list(read_video(tmp_path / "grey.npy", 12)))
    np.testing.assert_array_equal(grey, np.repeat(VIDEO[..., :1], 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_an_animation_gives_its_frames(kind, tmp_path):
    flat = np.broadcast_to(VIDEO[:, :1, :1], VIDEO.shape).copy()  # a palette holds these colours
    how = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "a").write_bytes(animated(kind, flat, **how))
    found = np.stack(list(read_video(tmp_path / "a", 4))).astype(int)
    assert np.abs(found - flat[[0, 4, 7, 11]]).max() <= (0 if kind != "GIF" else 2)
    still = animated(kind, flat[:1], **how)
    (tmp_path / "still").write_bytes(still)
    assert len({frame.tobytes() for frame in read_video(tmp_path / "still", 3)}) == 1


def npy(
    shape: tuple[int, ...], content: bytes = b"", kind: str = "|u1", order: bool = False
) -> bytes:
    """The content of an .npy file that says these sizes."""
    made = io.BytesIO()
    header = {"descr": kind, "fortran_order": order, "shape": shape}
    np.lib.format.write_array_header_1_0(made, header)
    return made.getvalue() + content


WHOLE = npy((2, 2, 2, 3), bytes(24))
HOSTILE = {
    "empty": b"",
    "text": b"not a video at all",
    "array cut": WHOLE[:-1],
    "array cut in its header": WHOLE[:40],
    "array of a later version": WHOLE[:6] + b"\x09\x00" + WHOLE[8:],
    "array without frames": npy((0, 2, 2, 3)),
    "array of too many frames": npy((10**9, 1, 1, 1), bytes(10)),
    "array that is huge": npy((2, 2**31, 2**31, 3), bytes(10)),
    "array without pixels": npy((2, 0, 2, 3)),
    "array of negative size": npy((2, -2, -2, 3), bytes(24)),
    "array of numbers": npy((2, 2, 2, 3), bytes(96), "<f4"),
    "array of objects": npy((2, 2, 2, 3), b"cos\nsystem\n(S'true'\ntR.", "|O"),
    "array of a picture": npy((2, 2, 3), bytes(12)),
    "array of columns": npy((2, 2, 2, 3), bytes(24), order=True),
    "array of five colours": npy((2, 2, 2, 5), bytes(40)),
}
CUT = {
    "GIF cut": lambda: animated("GIF")[:-40],
    "GIF without an end": lambda: animated("GIF")[:-1],
    "PNG cut": lambda: animated("PNG")[:-300],
    "PNG that says more frames": lambda: animated("PNG").replace(
        b"acTL\x00\x00\x00\x0c", b"acTL\x00\x00\x00\x7f"
    ),
    "WebP cut": lambda: animated("WEBP")[:-100],
}


@pytest.mark.parametrize("name", [*HOSTILE, *CUT])
def test_a_hostile_video_ends_in_one_line_with_bounded_memory(name, tmp_path):
    content = CUT[name]() if name in CUT else HOSTILE[name]
    (tmp_path / "x.npy").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ConfigError) as found:
        list(read_video(tmp_path / "x.npy", 4))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(found.value) and "x.npy" in str(found.value)
    assert most < 2**24


def test_folders_and_animations_of_no_or_too_many_frames_are_refused(tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    with pytest.raises(ConfigError, match="clip has no frames; give a video of 1 to"):
        list(read_video(tmp_path / "clip", 4))
    with pytest.raises(ConfigError, match="none is not there; give a video"):
        list(read_video(tmp_path / "none", 4))
    for n, frame in enumerate(VIDEO):
        save_png(tmp_path / f"clip/{n}.png", frame)
    (tmp_path / "a.gif").write_bytes(animated("GIF"))
    monkeypatch.setattr(video_files, "MOST_FRAMES", 5)
    for name in ("clip", r"a\.gif"):
        with pytest.raises(ConfigError, match=rf"{name} has more than 5 frames"):
            list(read_video(tmp_path / name.replace("\\", ""), 4))
    monkeypatch.setattr(video_files, "MOST_FRAMES", 50)
    monkeypatch.setattr(video_files, "MOST_MOVING", 100)
    with pytest.raises(ConfigError, match=r"a\.gif is a damaged video .*more than 100 pixels"):
        list(read_video(tmp_path / "a.gif", 4))
    (tmp_path / "clip/3.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"3\.png is empty"):
        list(read_video(tmp_path / "clip", 12))


def test_a_folder_of_frames_is_a_record_by_its_content(tmp_path):
    def of() -> str:
        (document,) = read_media(Media(str(tmp_path / "x.jsonl")))
        return Pictured.load(document.text).pictures[0]

    (tmp_path / "clip").mkdir()
    save_png(tmp_path / "clip/1.png", VIDEO[0])
    save_png(tmp_path / "clip/2.png", VIDEO[1])
    (tmp_path / "x.jsonl").write_text('{"image": "clip", "answer": "a"}')
    before = of()
    save_png(tmp_path / "clip/1.png", VIDEO[1])
    save_png(tmp_path / "clip/2.png", VIDEO[0])
    assert of() != before, "the same frames in another order are another video"


# --- drawn videos ---


def test_the_last_frame_of_a_drawn_video_does_not_tell_its_direction():
    """What moves ends where it would have ended on any other way."""
    documents = list(read_moving(MovingShapes(count=300, held_out_count=50)))
    assert sum(one.held_out for one in documents) >= 50
    assert not {d.source for d in documents if d.held_out} & {
        d.source for d in documents if not d.held_out
    }
    ends: dict[str, list] = {way: [] for way in WAYS}
    for one in documents:
        record = Pictured.load(one.text)
        things = json.loads(one.source.removeprefix("moving:"))
        words = record.prompt.removeprefix("which way does the ").removesuffix(" move?")
        (thing,) = [t for t in things if f"{t[1]} {t[0]}" == words]
        right, down = WAYS[record.answer]
        assert (np.sign(thing[5]), np.sign(thing[6])) == (right, down)
        ends[record.answer].append(thing[2:4])
    means = np.asarray([np.mean(some, axis=0) for some in ends.values()])
    assert np.abs(means - means.mean(0)).max() < 0.06
    name = 'moving:[["square", "red", 0.5, 0.5, 0.1, 0.3, 0.0]]'
    frames = draw_video(name, (20, 20), 4).astype(int)
    reds = [np.argwhere(frame[..., 1] < 100)[:, 1].mean() for frame in frames]
    assert np.all(np.diff(reds) > 1) and abs(reds[-1] - 9.5) < 0.6


# --- what a model sees ---

SIZE, FRAMES = (8, 8), 3
TASK = VideoAnswers(SIZE, tokens=4, frames=FRAMES)
SEEING = ModelConfig(
    vocab_size=64,
    context=40,
    width=32,
    num_layers=1,
    num_heads=4,
    positions="rope",
    vision=Vision(
        SIZE, patch=4, num_layers=1, width=16, num_heads=2, projector="linear", frames=FRAMES
    ),
)


def test_each_frame_has_its_own_place_in_time():
    """The embeddings of one picture at two times differ by the places, and by nothing else."""
    params = model.init(SEEING, jax.random.key(0))
    one = VIDEO[:1, :6, :8]
    still = np.repeat(np.pad(one, ((0, 0), (0, 2), (0, 0), (0, 0))), FRAMES, axis=0)[None]
    found = np.asarray(model.see(SEEING, params, still)).reshape(FRAMES, 4, 32)
    times = np.asarray(params["vision"]["frames"])
    assert times.shape == (FRAMES, 32) and np.abs(times).min(1).max() > 0
    bare = found - times[:, None]
    np.testing.assert_allclose(bare, np.broadcast_to(bare[:1], bare.shape), atol=1e-5)
    slopes = jax.grad(
        lambda own: jax.numpy.square(
            model.see(SEEING, {**params, "vision": {**params["vision"], "frames": own}}, still)
        ).sum()
    )(params["vision"]["frames"])
    assert np.abs(np.asarray(slopes)).min() > 0
    with pytest.raises(ValueError, match="videos of 3 frames, and got 4"):
        model.see(SEEING, params, np.repeat(still[:, :1], 4, axis=1))


def test_frames_of_a_video_are_changed_alike_and_a_still_one_shows_the_last(tmp_path):
    flat = np.arange(1, FRAMES + 1, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, 3), int
    )
    flat[:, :, 0] = 200
    np.save(tmp_path / "a.npy", flat.astype(np.uint8))
    (tmp_path / "x.jsonl").write_text('{"image": "a.npy", "prompt": "b", "answer": "a"}\n' * 4)
    task = dataclasses.replace(TASK, shift=3, flip=True)
    data = prepare(
        DataConfig(
            Media(str(tmp_path / "x.jsonl")),
            Characters(),
            validation=0.0,
            task=task,
            cache=str(tmp_path / "cache"),
        )
    )

    def pixels(task, seed):
        plan = batches.plan(data.train, length=40, rows=4, seed=seed, task=task)
        return batches.batch(data.train, plan, 0).columns["pixels"]

    whole = pixels(task, None)
    assert whole.shape == (4, FRAMES, *SIZE, 3)
    np.testing.assert_array_equal(whole[0], flat)
    shifted = pixels(task, 1)
    edges = shifted[..., 0] == 200
    assert (edges == edges[:, :1]).all() and len(np.unique(edges[:, 0], axis=0)) > 1
    still = pixels(dataclasses.replace(task, still=True), None)
    np.testing.assert_array_equal(still, np.repeat(whole[:, -1:], FRAMES, axis=1))


def test_a_model_of_pictures_and_one_of_videos_are_told_apart(tmp_path):
    source = MovingShapes(count=4, held_out_count=2)
    Experiment(model=SEEING, data=DataConfig(source, Characters(), validation=0.0, task=TASK))
    media = Media(str(tmp_path))
    for task in (dataclasses.replace(TASK, frames=4), VisualAnswers(SIZE, tokens=4)):
        data = DataConfig(media, Characters(), validation=0.0, task=task)
        with pytest.raises(ConfigError, match=r"frames at once and model\.vision\.frames is 3"):
            Experiment(model=SEEING, data=data)
    with pytest.raises(ConfigError, match=r"data\.task\.frames is 1"):
        VideoAnswers(frames=1)
    with pytest.raises(ConfigError, match=r"model\.vision\.frames is 0"):
        Vision(frames=0)


def test_a_run_learns_the_order_of_frames_and_commands_show_videos(tmp_path, capsys, monkeypatch):
    """Two videos of the same frames, forward and backward: only who sees their order can tell."""
    levels = np.asarray([20, 120, 230], np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, 3), np.uint8
    )
    np.save(tmp_path / "rise.npy", levels)
    np.save(tmp_path / "fall.npy", levels[::-1])
    lines = [
        json.dumps({"image": f"{name}.npy", "prompt": "which", "answer": name})
        for name in ("rise", "fall") * 8
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    experiment = Experiment(
        model=dataclasses.replace(SEEING, vocab_size=None),
        data=DataConfig(
            Media(str(tmp_path / "x.jsonl")),
            Characters(),
            validation=0.0,
            task=TASK,
            cache=str(tmp_path / "cache"),
        ),
        optim=AdamW(peak=1e-2),
        schedule=Schedule(warmup=5),
        steps=120,
        batch=8,
    )
    assert from_dict(Experiment, to_dict(experiment)) == experiment
    train(experiment, tmp_path / "run")
    found = api.load(tmp_path / "run")
    for name, video in (("rise", levels), ("fall", levels[::-1])):
        assert found.answer([tmp_path / f"{name}.npy"], "which").text == name
        assert found.answer([video], "which").text == name
    from gptjax.cli import main as cli
    from gptjax.cli.pictures import ask_about

    capsys.readouterr()
    shown = [str(tmp_path / "run"), "--prompt", "which", "--video", str(tmp_path / "fall.npy")]
    cli.main(["sample", *shown])
    assert capsys.readouterr().out == "fall\n"
    lines = iter(["first", "/image a.png", f"/video '{tmp_path}/rise.npy'", "which"])

    def line_of():
        for line in lines:
            return line
        raise EOFError

    ask_about(found, (), generate.GenerateConfig(), line_of)
    out, err = capsys.readouterr()
    assert out == "rise\n"
    assert err.splitlines() == [
        "error: there is no video yet; show one with /video FILE.",
        "error: this model reads videos, not pictures; use --video FILE.",
    ]
