"""Laws of learning from sounds: a store holds the frames of each once, a batch is a function of the
step with its changes too, only the text is learned, and a run hears what it has learned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hearing import WHISPER, speech, write_wav

import gptjax
from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, DataConfig, Media, Prepared, Transcription, batches, prepare
from gptjax.data.store import open_store
from gptjax.model import FrameEncoder, ModelConfig
from gptjax.model.inputs.audio import log_mel
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train

FRAMES, MELS = 100, 8
TASK = Transcription(frames=FRAMES, mels=MELS)
CHANGED = dataclasses.replace(
    TASK, time_masks=2, mel_masks=1, mel_width=3, pitch=1, delay=9, stretch=0.2
)
WORDS = ("ja", "nein", "doch", "na", "so", "ach")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sounds")
    for n, word in enumerate(WORDS):
        write_wav(path / f"{n}.wav", speech(0.3 + 0.1 * n, n))
        (path / f"{n}.txt").write_text(word)
    lines = [{"audio": f"{n % 6}.wav", "text": word} for n, word in enumerate(WORDS * 2)]
    for name, some in (("train", lines[:10]), ("test", lines[10:])):
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    return path


def prepared(folder: Path, task: Transcription = TASK, **changes) -> Prepared:
    fields = {"image": "audio", "answer": "text", "held_out": str(folder / "test.jsonl")}
    source = Media(str(folder / "train.jsonl"), **fields | changes)
    settings = DataConfig(source, Bytes(), task=task, cache=str(folder / "cache"))
    return prepare(settings)


def row(data: Prepared, task: Transcription, step: int, seed: int | None = 0, rows: int = 4):
    plan = batches.plan(data.train, length=16, rows=rows, seed=seed, task=task)
    return batches.batch(data.train, plan, step)


def test_a_store_holds_the_frames_of_each_sound_once(folder: Path):
    data = prepared(folder)
    sounds = data.train.frames
    assert sounds.shape == (6, FRAMES, MELS) and len(sounds.numbers) == 10
    whole = row(data, TASK, 0, None, 10)
    for n in range(10):
        samples = speech(0.3 + 0.1 * (n % 6), n % 6)
        wanted = log_mel(np.pad(samples, (0, FRAMES * 160 - len(samples))), MELS)
        np.testing.assert_allclose(whole.side.values[n], wanted, atol=2e-3)
        word = WORDS[n % 6].encode()
        count = len(word) + 1
        assert whole.targets[n, :count].tolist() == [*word, 256]
        assert whole.tokens[n, 0] == 257, "the id that the task adds"
        assert whole.weights[n].tolist() == [1.0] * count + [0.0] * (16 - count)


def test_only_what_follows_the_marks_is_learned(folder: Path):
    task = dataclasses.replace(TASK, begin=(7, 9), ids=6)
    batch = row(prepared(folder, task), task, 0, None, 1)
    assert batch.tokens[0].tolist() == [7, 9, *b" ja", 0]
    assert batch.targets[0].tolist()[:5] == [9, *b" ja", 256]
    assert batch.weights[0].tolist() == [0, 1, 1, 1, 1, 0]


def test_a_batch_is_a_function_of_the_step_with_changes_too(folder: Path):
    data = prepared(folder, CHANGED)
    one, again, other = (row(data, CHANGED, step) for step in (3, 3, 4))
    np.testing.assert_array_equal(one.side.values, again.side.values)
    assert not np.array_equal(one.side.values, other.side.values)
    part = batches.batch(
        data.train,
        batches.plan(data.train, length=16, rows=4, seed=0, task=CHANGED),
        3,
        np.asarray([2]),
    )
    np.testing.assert_array_equal(part.side.values[0], one.side.values[2])
    still = row(data, CHANGED, 0, None)
    np.testing.assert_array_equal(still.side.values, row(data, TASK, 0, None).side.values)


def test_a_folder_of_sounds_and_texts_is_read(folder: Path):
    source = Media(str(folder))
    settings = DataConfig(source, Bytes(), task=TASK, validation=0, cache=str(folder / "cache"))
    data = prepare(settings)
    assert data.train.header.num_examples == 6


def test_what_can_not_be_learned_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"0\.\d0 seconds of sound and the model hears 0\.30"):
        prepared(folder, dataclasses.replace(TASK, frames=30, time_width=5))
    data = DataConfig(Media("a"), Bytes(), task=TASK)
    with pytest.raises(ConfigError, match="hears nothing"):
        Experiment(model=model.small("tiny", encoder_layers=1), data=data)
    with pytest.raises(ConfigError, match=r"--data\.task\.frames 100 --data\.task\.mels 8"):
        wrong = dataclasses.replace(TASK, frames=50)
        Experiment(model=WHISPER, data=DataConfig(Media("a"), Bytes(), task=wrong))
    data = prepared(folder)
    path = data.train.path / "frames" / "values.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match="holds other files"):
        open_store(data.train.path)
    path.write_bytes(whole)


def test_a_run_hears_what_it_has_learned(folder: Path, tmp_path: Path):
    frames = FrameEncoder(
        channels=MELS,
        stem="convolutions",
        context=FRAMES // 2,
        width=16,
        num_layers=1,
        num_heads=2,
        projected=False,
    )
    fields = {"image": "audio", "answer": "text", "held_out": str(folder / "test.jsonl")}
    experiment = Experiment(
        model=ModelConfig(context=8, width=16, num_layers=1, num_heads=2, frames=frames),
        data=DataConfig(
            Media(str(folder / "train.jsonl"), **fields),
            Bytes(),
            task=CHANGED,
            cache=str(folder / "cache"),
        ),
        evaluation=Evaluation(every=2),
        steps=2,
        batch=8,
    )
    train(experiment, tmp_path / "run")
    heard = gptjax.load(tmp_path / "run")
    found = heard.transcribe(folder / "0.wav", choices=WORDS, temperatures=(0.0,))
    assert found.text in WORDS and found.language is None
    written = heard.transcribe(folder / "0.wav", temperatures=(0.0,))
    assert len(written.segments) <= 1 and 258 not in [i for s in written.segments for i in s.ids]
