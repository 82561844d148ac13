"""Laws of exchange with `transformers` for the decoders of `decoder_families`: the same logits, the
same text, and what we write it opens. Weights are random and made here: nothing is downloaded."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from decoder_families import CONFIGS
from peers import torch, transformers
from test_interop import randomly

from gptjax import api, formats, model
from gptjax.cli.convert import ConvertOptions, convert
from gptjax.data import Bytes
from gptjax.data.tokenizers.tokenizer import train_tokenizer
from gptjax.formats import OpenedModel
from gptjax.model import ModelConfig

LENGTH = 20
"""Tokens of greedy text."""
BYTES = train_tokenizer(Bytes(), ())
IDS = np.random.default_rng(0).integers(0, 256, (2, 33)).astype(np.int32)


def built(name: str) -> Any:
    """Their model with random weights, biases and norms too. Of a router's bias only the order
    among experts counts, so it is as large as the scores."""
    end = {"bos_token_id": 1, "eos_token_id": BYTES.end_of_document, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(name, **CONFIGS[name] | end)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    random = torch.Generator().manual_seed(1)
    biases = (b for n, b in theirs.named_buffers() if n.endswith("e_score_correction_bias"))
    with torch.no_grad():
        for weight in (*theirs.parameters(), *biases):
            drawn = 0.2 * torch.randn(weight.shape, generator=random)
            weight.copy_(weight * (weight.ndim == 1) + drawn)
    return theirs.eval()


@functools.partial(jax.jit, static_argnums=0)
def logits(c: ModelConfig, params: Any, tokens: Any) -> Any:
    c = replace(c, attention="reference", layers="scan")
    return model.unembed(c, params, model.forward(c, params, tokens).hidden)


def difference(theirs: Any, ours: OpenedModel) -> float:
    """The largest of a logit, over two rows of 33 tokens."""
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS)).logits.numpy()
    return float(np.abs(logits(ours.config, ours.params, IDS) - wanted).max())


def greedy(theirs: Any, ours: OpenedModel) -> tuple[list[int], list[int]]:
    """What each writes after the first tokens of a row."""
    prompt = IDS[0, :12]
    written = theirs.generate(torch.tensor(prompt[None]), do_sample=False, max_new_tokens=LENGTH)
    opened = api.Model(ours.config, ours.params, BYTES)
    done = opened.complete([prompt.tolist()], new_tokens=LENGTH, temperature=0.0)
    return written[0, len(prompt) :].tolist(), done[0].ids


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_both_compute_and_write_the_same(name: str, tmp_path: Path, record_property: Any) -> None:
    theirs = built(name)
    theirs.save_pretrained(tmp_path / "theirs")
    found = formats.load_model(tmp_path / "theirs")
    first = difference(theirs, found)
    text, own_text = greedy(theirs, found)

    ours = found._replace(params=randomly(found.config, seed=2))
    formats.save_model(tmp_path / "ours", ours)
    loaded, told = type(theirs).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    second = difference(loaded.eval(), ours)
    print(f"{name}: largest difference of a logit {first:.1e} read, {second:.1e} written")
    record_property("figure", f"{name} {max(first, second):.1e}")
    assert not [*told["missing_keys"], *told["unexpected_keys"]], told
    assert first <= 1e-4 and second <= 1e-4
    assert own_text == text and len({*text}) > 1

    again = formats.load_model(tmp_path / "ours")
    assert again.config == found.config
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)


IN_CI = {"glm4_moe"}
"""Of families whose conversion is proved by default; that of all with `-m slow`."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in CONFIGS],
)
def test_what_convert_writes_is_the_same_model_there(name: str, tmp_path: Path) -> None:
    theirs, said = built(name), []
    theirs.save_pretrained(tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "ours", ConvertOptions(), say=said.append)
    assert done, said
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    )
    assert type(loaded) is type(theirs)
    exact = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(loaded.state_dict(), theirs.state_dict(), **exact)
    with torch.no_grad():
        wanted, found = (one(torch.tensor(IDS)).logits for one in (theirs, loaded.eval()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
