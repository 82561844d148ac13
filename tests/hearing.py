"""A tiny speech recogniser with random weights, its tokenizer, and sound files for the tests."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax import model
from gptjax.api import Model
from gptjax.data.tasks import Transcription
from gptjax.data.tokenizers import json_form
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.spelling import Special, Tokenizer, letters
from gptjax.formats import About
from gptjax.model import FrameEncoder, ModelConfig
from gptjax.model.inputs.audio import RATE

END = 256
CONTROLS = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>"),
    *("<|transcribe|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)
FIRST_TIME = END + len(CONTROLS)
WHISPER = ModelConfig(
    vocab_size=FIRST_TIME + 51,
    context=64,
    width=32,
    num_layers=2,
    num_heads=4,
    feed_forward=48,
    activation="gelu_exact",
    key_bias=False,
    frames=FrameEncoder(
        channels=8,
        stem="convolutions",
        context=50,
        width=32,
        num_layers=3,
        num_heads=2,
        feed_forward=40,
        positions="learned",
        activation="gelu_exact",
        key_bias=False,
        projected=False,
    ),
)
"""Windows of one second; bytes, marks, and times from 0 to 1 second."""


@functools.cache
def tokenizer() -> Tokenizer:
    spelled = {byte: letter for letter, byte in letters().items()}
    described = json_form.byte_level({spelled[i]: i for i in range(256)}, ())
    described["added_tokens"] = [
        json_form.added(END + i, name, special=True) for i, name in enumerate(CONTROLS)
    ]
    content = json.dumps(described).encode()
    return tokenizers.published("tokenizer.json", content, Special(eos=END))


@functools.cache
def small(several: bool = False) -> Model:
    """The recogniser, of one language or several."""
    generation = {"is_multilingual": several, "decoder_start_token_id": END + 1}
    params = jax.tree.map(lambda leaf: 3 * leaf, model.init(WHISPER, jax.random.key(0)))
    about = About("whisper", generation=generation)
    return Model(WHISPER, params, tokenizer(), about, Transcription(begin=(END + 1,)))


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Something like speech: tones that come and go, in noise."""
    count = round(seconds * RATE)
    time = np.arange(count) / RATE
    tones = sum(np.sin(2 * np.pi * f * time + f) for f in (140, 280, 420 + 60 * seed))
    loud = np.maximum(0, np.sin(2 * np.pi * 2.5 * time)) ** 2
    noise = np.random.default_rng(seed).normal(size=count)
    return (0.2 * tones * loud + 0.001 * noise).astype(np.float32)


def write_wav(
    path: Path, samples: np.ndarray, rate: int = RATE, bits: int = 16, form: int = 1, **more: Any
) -> Path:
    """Writes a WAV file by hand; `more` changes what its header says."""
    shape = samples[:, None] if samples.ndim == 1 else samples
    if form == 3:
        content = shape.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        content = (np.round(shape * 127) + 128).astype(np.uint8).tobytes()
    else:
        whole = np.round(shape * (2 ** (bits - 1) - 1)).astype("<i4")
        content = whole.view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    channels = more.get("channels", shape.shape[1])
    each = shape.shape[1] * bits // 8
    fmt = struct.pack("<HHIIHH", form, channels, rate, rate * each & 0xFFFFFFFF, each, bits)
    if more.get("extensible"):
        fmt = struct.pack("<H", 0xFFFE) + fmt[2:]
        fmt += struct.pack("<HHIH", 22, bits, 0, form) + b"\x00\x00\x00\x00\x10\x00" + bytes(8)
    length = more.get("length", len(content))
    head = struct.pack("<4sI4s4sI", b"RIFF", 36 + len(content), b"WAVE", b"fmt ", len(fmt))
    path.write_bytes(head + fmt + struct.pack("<4sI", b"data", length) + content)
    return path
