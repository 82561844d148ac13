"""Whisper is that of `transformers`: frames, logits, gradients, greedy ids, and files both ways.

Weights are random and made here: nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hearing import speech
from peers import torch, transformers

from gptjax import formats, model
from gptjax.data import Batch, Heard
from gptjax.formats import OpenedModel, layout
from gptjax.formats.whisper import WHISPER
from gptjax.losses import CrossEntropy
from gptjax.model.inputs.audio import RATE, log_mel

SHAPE = {
    "vocab_size": 97,
    "num_mel_bins": 8,
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "max_source_positions": 25,
    "max_target_positions": 24,
    "pad_token_id": 90,
    "bos_token_id": 91,
    "eos_token_id": 92,
    "decoder_start_token_id": 93,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "dropout": 0.0,
    "attn_implementation": "eager",
}


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    found = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SHAPE)).eval()
    with torch.no_grad():
        for name, weight in found.named_parameters():
            spread = 0.05 if "norm" in name or "bias" in name else 0.25
            if "embed_positions" not in name:
                weight.add_(spread * torch.randn_like(weight))
    return found


@pytest.fixture(scope="module")
def ours(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    path = tmp_path_factory.mktemp("whisper")
    theirs.save_pretrained(path)
    return formats.load_model(path)


FRAMES = np.random.default_rng(0).normal(size=(2, 50, 8)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 90, (2, 12))


def inputs() -> dict[str, Any]:
    frames = torch.tensor(FRAMES).transpose(1, 2)
    return {"input_features": frames, "decoder_input_ids": torch.tensor(TOKENS)}


def test_logits_are_those_of_transformers(theirs: Any, ours: OpenedModel) -> None:
    config, params = ours.config, ours.params
    frames = model.Frames(jnp.asarray(FRAMES))
    found = model.unembed(
        config, params, model.forward(config, params, TOKENS, frames=frames).hidden
    )
    with torch.no_grad():
        wanted = theirs(**inputs()).logits.numpy()
    assert wanted.std() > 0.3, "flat logits prove nothing"
    print(f"largest difference of a logit {np.abs(found - wanted).max():.1e}")
    assert np.abs(found - wanted).max() <= 1e-4


def test_gradients_are_those_of_torch(theirs: Any, ours: OpenedModel) -> None:
    batch = Batch(
        tokens=TOKENS[:, :-1].astype(np.int32),
        targets=TOKENS[:, 1:].astype(np.int32),
        weights=np.ones((2, 11), np.float32),
        side=Heard(FRAMES),
    )
    loss = CrossEntropy().build(ours.config)

    def mean(params: Any) -> jax.Array:
        total, weight, _ = loss(params, {}, batch, None)
        return total / weight

    mine = jax.jit(jax.grad(mean))(ours.params)
    theirs.zero_grad()
    logits = theirs(**inputs()).logits[:, :-1]
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(TOKENS[:, 1:]).flatten()
    ).backward()
    theirs.proj_out.weight = theirs.model.decoder.embed_tokens.weight
    grads = {
        name: np.zeros(tuple(w.shape), np.float32) if w.grad is None else w.grad.numpy()
        for name, w in theirs.named_parameters()
    }
    wanted = layout.read_params(ours.config, WHISPER.places(ours.config), grads.__getitem__)
    worst = 0.0
    for (path, one), (_, other) in zip(
        *map(jax.tree_util.tree_leaves_with_path, (mine, wanted)), strict=True
    ):
        if jax.tree_util.keystr(path).startswith("['frames']['positions']"):
            continue  # fixed there
        apart = float(np.linalg.norm(one - other) / np.linalg.norm(other))
        worst = max(worst, apart)
        assert apart <= 1e-4, path
    print(f"largest relative difference of a gradient {worst:.1e}")


def test_greedy_ids_are_those_of_transformers(theirs: Any, ours: OpenedModel) -> None:
    config, params = ours.config, ours.params
    encoded = model.encode(config, params, frames=model.Frames(jnp.asarray(FRAMES)))
    cache, last = model.empty_cache(config, 2, 24), np.full((2, 1), 93, np.int32)
    found = []
    for place in range(20):
        where = np.full((2, 1), place, np.int32)
        out = model.forward(config, params, last, positions=where, memory=encoded, cache=cache)
        cache, logits = out.cache, model.unembed(config, params, out.hidden[:, 0])
        last = np.asarray(logits.argmax(-1), np.int32)[:, None]
        found.append(last[:, 0])
    ids = torch.full((2, 1), 93)
    with torch.no_grad():
        for _ in range(20):
            features = inputs()["input_features"]
            logits = theirs(input_features=features, decoder_input_ids=ids).logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert np.stack(found, 1).tolist() == ids[:, 1:].tolist()


def test_what_is_written_transformers_reads_and_again_it_is_bit_equal(
    theirs: Any, ours: OpenedModel, tmp_path: Path
) -> None:
    formats.save_model(tmp_path / "again", ours)
    read = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "again")
    for (name, one), (_, other) in zip(
        read.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    found = formats.load_model(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, found.params, ours.params)
    assert found.about.generation["decoder_start_token_id"] == 93


@pytest.mark.parametrize("mels", [80, 128])
def test_frames_are_those_of_transformers(mels: int) -> None:
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    random = np.random.default_rng(0)
    sounds = {
        "speech": speech(3.0),
        "noise": random.normal(size=2 * RATE).astype(np.float32) / 4,
        "loud and quiet": speech(2.0) * np.logspace(-4, 0, 2 * RATE).astype(np.float32),
        "silence": np.zeros(RATE, np.float32),
    }
    for name, samples in sounds.items():
        whole = np.pad(samples, (0, 30 * RATE - len(samples)))
        wanted = extractor._np_extract_fbank_features(whole[None], "cpu")[0].T
        apart = float(np.abs(log_mel(whole, mels) - wanted).max())
        print(f"{name}: largest difference {apart:.1e}")
        assert apart <= 1e-5, name
        other = extractor(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0].T
        assert np.abs(log_mel(whole, mels) - other).max() <= 1e-4, name
