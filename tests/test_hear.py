"""Laws of hearing: padding frames change nothing, a cache neither; times obey their rules; windows
lose no sound; a transcript depends on its own sound alone; choices hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hearing import END, FIRST_TIME, WHISPER, small, speech, tokenizer, write_wav

import gptjax
from gptjax import formats, model
from gptjax.api import Model
from gptjax.cli import main as cli
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Transcription
from gptjax.data.tokenizers.tokenizer import train_tokenizer
from gptjax.formats import About, OpenedModel
from gptjax.generate.history import History
from gptjax.generate.timestamps import Spoken, spoken_rules
from gptjax.hear import Hearing, transcribe_sounds
from gptjax.hear.segments import cut_ids, repetition
from gptjax.hear.windows import Windows, spoken_part, voiced
from gptjax.model.inputs.audio import RATE
from gptjax.model.inputs.audio_files import sound_of
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import MeshConfig, make_mesh, replicated

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 6)), jnp.int32)
VALUES = jax.random.normal(jax.random.key(1), (2, 30, 8))


@jax.jit
def read(params, values, tokens, positions=None):
    frames = model.Frames(values, positions)
    return model.forward(WHISPER, params, tokens, frames=frames).hidden


def difference(one, other) -> float:
    return float(jnp.abs(one - other).max())


def test_frames_by_convolutions_are_those_of_the_formula():
    config, params = WHISPER, small().params["frames"]
    positions = jnp.arange(30)[None].repeat(2, 0)
    found, where = model.inputs.frames.enter_frames(config, params, VALUES, positions)
    x = np.asarray(VALUES, np.float64)
    for name, stride in (("input", 1), ("strided", 2)):
        kernel, bias = (np.asarray(params[name][part], np.float64) for part in ("kernel", "bias"))
        wide = np.pad(x, ((0, 0), (1, 1), (0, 0)))
        rows = [
            np.einsum("btc,tcd->bd", wide[:, i : i + 3], kernel) + bias
            for i in range(0, x.shape[1], stride)
        ]
        x = np.asarray(jax.nn.gelu(jnp.asarray(np.stack(rows, 1)), approximate=False))
    np.testing.assert_allclose(found, x, atol=1e-4)
    assert where[0].tolist() == list(range(15))


def test_every_frame_is_read_and_padding_changes_nothing():
    params = small().params
    slopes = jax.jit(jax.grad(lambda v: jnp.square(read(params, v, TOKENS)).sum()))(VALUES)
    assert jnp.abs(slopes).max(-1).min() > 0
    for count in (30, 21):  # also an odd number
        wide = jnp.full((2, 40, 8), 9.0).at[:, :count].set(VALUES[:, :count])
        positions = jnp.where(jnp.arange(40) < count, jnp.arange(40), -1)[None].repeat(2, 0)
        alone = read(params, VALUES[:, :count], TOKENS)
        assert difference(read(params, wide, TOKENS, positions), alone) < 1e-4


def test_a_text_is_written_behind_a_cache_and_sees_nothing_later():
    params, where = small().params, jnp.arange(6)[None].repeat(2, 0)
    whole = read(params, VALUES, TOKENS)
    memory = model.encode(WHISPER, params, frames=model.Frames(VALUES))
    cache, outputs = model.empty_cache(WHISPER, 2, 6), []
    for part in (slice(0, 4), slice(4, 6)):
        out = model.forward(
            WHISPER,
            params,
            TOKENS[:, part],
            positions=where[:, part],
            memory=memory,
            cache=cache,
        )
        cache = out.cache
        outputs.append(out.hidden)
    assert difference(jnp.concatenate(outputs, 1), whole) < 1e-4
    changed = read(params, VALUES, TOKENS.at[:, 4].set(7))
    assert difference(changed[:, :4], whole[:, :4]) == 0 < difference(changed[:, 4:], whole[:, 4:])


def test_a_mesh_hears_what_one_device_does():
    params, made = small().params, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put((params, VALUES, TOKENS), replicated(made))
    with use_mesh(made):
        found = jax.jit(read.__wrapped__)(*placed)
    assert difference(found, read(params, VALUES, TOKENS)) < 1e-4


# --- times


def allowed_by_hand(ids: list[int], first: int, end: int, latest: int, size: int) -> np.ndarray:
    """The rules of Whisper's code, one after the other, for one row."""
    ok = np.ones(size, bool)
    times = [i for i in ids if i >= first]
    if not ids:
        ok[:first] = False
        ok[first + latest + 1 :] = False
        return ok
    last, before = ids[-1] >= first, len(ids) < 2 or ids[-2] >= first
    if last and before:
        ok[first:] = False
    elif last:
        ok[:end] = False
    if times:
        ok[first : times[-1] if last and not before else times[-1] + 1] = False
    return ok


def test_times_come_in_pairs_and_never_go_back():
    random, size, first, end = np.random.default_rng(0), 40, 24, 20
    rows = []
    for _ in range(200):
        count = int(random.integers(0, 7))
        ids = np.sort(random.integers(first, size, count))
        text = random.random(count) < 0.5
        rows.append(np.where(text, random.integers(0, end, count), ids).tolist())
    prompt = 3
    padded = np.zeros((len(rows), 16), np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[:prompt], row[prompt : prompt + len(ids)] = first + 9, ids
    lengths = np.asarray([prompt + len(ids) for ids in rows], np.int32)
    each = len(rows)
    history = History(padded, np.full(each, prompt), lengths)
    blank = np.zeros((each, size), bool)
    rules = Spoken(np.full(each, first), np.full(each, end), np.full(each, 5), blank)
    logits = random.normal(size=(each, size)).astype(np.float32)
    logits[:, :first] += 9  # so that times are never likelier together than a text
    found = np.asarray(spoken_rules(jnp.asarray(logits), history, rules))
    for row, ids in enumerate(rows):
        ok = allowed_by_hand(ids, first, end, 5, size)
        if ok[:first].any():
            assert (np.isfinite(found[row]) == ok).all(), ids
        else:
            assert np.isfinite(found[row]).any() and not np.isfinite(found[row][~ok]).any()
    logits[:, first:] += 30
    found = np.asarray(spoken_rules(jnp.asarray(logits), history, rules))
    for row, ids in enumerate(rows):
        if allowed_by_hand(ids, first, end, 5, size)[first:].any():
            assert not np.isfinite(found[row, :first]).any(), "times are likelier, so one comes"
    rules = rules._replace(first=np.full(each, size), blank=blank | (np.arange(size) == 3))
    free = np.isfinite(np.asarray(spoken_rules(jnp.asarray(logits), history, rules)))
    assert free.sum() == free.size - (lengths == prompt).sum(), "without times all but a blank"


def test_segments_end_where_times_meet():
    a, t = 5, FIRST_TIME
    pieces, ended = cut_ids([t, a, a, t + 20, t + 20, a, t + 40], t, 1.0)
    assert [(p.start, p.end) for p in pieces] == [(0.0, 0.4), (0.4, 0.8)]
    assert ended == 1.0, "the last text is complete"
    pieces, ended = cut_ids([t, a, t + 30, t + 30, a, a], t, 1.0)
    assert [(p.start, p.end) for p in pieces] == [(0.0, 0.6)]
    assert ended == 0.6, "what has begun is read again"
    assert cut_ids([a, a], t, 0.7) == ([(0.0, 0.7, [a, a])], 0.7)
    assert cut_ids([t, a, t, t, a], t, 1.0)[1] == 0.5, "a window never stands still"
    assert cut_ids([], t, 1.0)[1] == 1.0
    assert repetition("na " * 200) > 10 > 2.4 > repetition("four score and seven years ago")


# --- windows


def test_windows_hold_every_sample_once():
    samples, random = speech(3.0), np.random.default_rng(0)
    parts = np.split(samples, np.sort(random.integers(0, len(samples), 9)))
    windows, begin = Windows(parts, RATE), 0
    while len(found := windows.at(begin)):
        assert np.array_equal(found, samples[begin : begin + RATE])
        begin += int(random.integers(1, RATE))
    with pytest.raises(ValueError, match="not held"):
        windows.at(0)


def test_voice_is_told_from_silence_and_steady_noise():
    random = np.random.default_rng(0)
    noise = 0.1 * random.normal(size=2 * RATE)
    assert not voiced(noise).any() and not voiced(np.zeros(RATE)).any()
    clip = np.concatenate([0 * noise, speech(1.0), 0 * noise])
    begin, end = spoken_part(clip + 1e-4 * random.normal(size=len(clip)))
    assert 1.7 * RATE < begin <= 2.1 * RATE and 2.7 * RATE < end < 3.5 * RATE
    assert spoken_part(noise) == (0, 0)


# --- transcripts


def test_a_transcript_depends_on_its_own_sound_alone():
    clips = [speech(seconds, seed) for seed, seconds in enumerate((0.6, 2.3, 1.4))]
    how = Hearing(temperatures=(0.0,), max_no_speech=1.0, language="de")
    alone = [small(True).transcribe(clip, **dataclasses.asdict(how)) for clip in clips]
    sounds = [sound_of(clip) for clip in clips]
    together = list(transcribe_sounds(small(True), sounds, how, batch=2))
    for one, other in zip(alone, together, strict=True):
        assert [s.ids for s in one.segments] == [s.ids for s in other.segments]
    assert any(len(one.segments) > 1 for one in alone)
    assert all(one.language == "de" for one in alone if one.segments)


def test_only_choices_are_said():
    choices = ("seven", "neun")
    for seed in range(3):
        found = small().transcribe(speech(0.7, seed), choices=choices)
        assert found.text in choices


def test_a_model_that_reads_no_text_before_writes_in_all_of_its_context():
    config = dataclasses.replace(WHISPER, vocab_size=258, context=8)
    params = jax.tree.map(lambda leaf: 3 * leaf, model.init(config, jax.random.key(0)))
    own = Model(config, params, train_tokenizer(Bytes(), []), About("run"), Transcription())
    choices = ("seven", "eight", "three")  # with their end more than half of the context
    assert own.transcribe(speech(0.7), choices=choices).text in choices


@pytest.mark.parametrize("vad", [False, True])
def test_nothing_is_said_in_silence(vad: bool):
    for samples in (np.zeros(0, np.float32), np.zeros(3 * RATE, np.float32)):
        found = small().transcribe(samples, vad=vad)
        assert (found.text, found.segments) == ("", [])
    noise = 0.3 * np.random.default_rng(0).normal(size=5 * RATE)
    if vad:
        assert small().transcribe(noise, vad=True).segments == []


def test_what_a_model_cannot_hear_is_refused():
    with pytest.raises(ConfigError, match="does not know the language 'xx'"):
        small(True).transcribe(speech(0.2), language="xx")
    with pytest.raises(ConfigError, match="knows English only"):
        small().transcribe(speech(0.2), language="de")
    with pytest.raises(ConfigError, match="not what follows a prompt"):
        small().generate("hello")
    text = small()._replace(config=dataclasses.replace(WHISPER, frames=None))
    with pytest.raises(ConfigError, match="reads no sound"):
        text.transcribe(speech(0.2))


def test_a_folder_is_transcribed_and_what_is_wrong_in_it_is_named(tmp_path: Path, capsys):
    opened = small()
    formats.save_model(tmp_path / "model", OpenedModel(*opened[:5]))
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    write_wav(sounds / "a.wav", speech(0.5))
    write_wav(sounds / "silent.wav", np.zeros(RATE))
    (sounds / "broken.wav").write_bytes(b"RIFF0000WAVE")
    flags = ["--model", str(tmp_path / "model"), "--choices", "ja", "nein"]
    assert cli.main(["transcribe", str(sounds), *flags, "--json"]) == 1
    out, err = capsys.readouterr()
    found = {Path(r["file"]).name: r for r in map(json.loads, out.splitlines())}
    assert found["a.wav"]["text"] in ("ja", "nein") and found["a.wav"]["seconds"] == 0.5
    assert found["silent.wav"]["text"] == "" and "cut off" in found["broken.wav"]["error"]
    assert "heard 1.5 s of 1.5 s" in err and err.count("error:") == 1
    assert cli.main(["transcribe", str(sounds / "broken.wav"), *flags]) == 2
    assert cli.main(["transcribe", str(sounds / "a.wav"), *flags]) == 0
    assert capsys.readouterr().out.strip() in ("ja", "nein")


# --- files


def test_a_directory_of_ctranslate2_is_the_same_model(tmp_path: Path):
    from ctranslate2_files import write_ctranslate2

    opened = small()
    write_ctranslate2(tmp_path, opened)
    found = formats.load_model(tmp_path)
    assert found.config == WHISPER
    jax.tree.map(
        lambda one, other: np.testing.assert_array_equal(
            one, np.asarray(other, np.float16).astype(np.float32)
        ),
        found.params,
        opened.params,
    )
    assert found.about.generation["decoder_start_token_id"] == END + 1
    whole = (tmp_path / "model.bin").read_bytes()
    for content in (whole[:100], whole[: len(whole) // 2], whole[:4], b"\xff" * 64, whole[:-3]):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            formats.load_model(tmp_path)
        assert "\n" not in str(caught.value)


def test_export_and_reload_is_bit_equal_and_says_the_same(tmp_path: Path):
    formats.save_model(tmp_path / "m", OpenedModel(*small()[:5]))
    found = formats.load_model(tmp_path / "m")
    jax.tree.map(np.testing.assert_array_equal, found.params, small().params)
    assert found.config == WHISPER, "times are not taken for padding"
    assert found.tokenizer is not None
    assert found.tokenizer.vocab_size == tokenizer().vocab_size == FIRST_TIME


JFK = Path(__file__).parents[1].parent / "shared/data/speech/jfk.flac"


@pytest.mark.slow
def test_tiny_en_writes_what_the_reference_does():
    pytest.importorskip("soundfile", reason="pip install 'gptjax[audio]'")
    try:
        heard = gptjax.load("whisper")
    except ConfigError as error:
        pytest.skip(str(error))
    if not JFK.is_file():
        pytest.skip("needs ../shared/data/speech")
    found = heard.transcribe(JFK)
    assert found.segments[0].ids[:8] == [843, 523, 616, 5891, 3399, 1265, 407, 644]
    for words in ("my fellow Americans", "your country", "do for you"):
        assert words in found.text
    timed = heard.transcribe(JFK, timestamps=True)
    assert [(s.start, s.end) for s in timed.segments] == [(0.0, 8.0), (8.0, 11.0)]
