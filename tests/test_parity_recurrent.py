"""Recurrent layers against `transformers`: gradients of each kind of layer. Their logits and texts
are in `test_parity_decoders.py`. Weights are random and made here: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch
from test_parity_decoders import IDS, built

from gptjax import formats, model
from gptjax.formats import layout
from gptjax.formats.huggingface_families import FAMILIES
from gptjax.formats.recurrent_decoders import RECURRENT


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_gradients_agree(name: str, tmp_path: Path, record_property: Any) -> None:
    """Kernels are half as large as those of `built`, with which norms of small sums amplify
    rounding: by chunks and by steps, `transformers` itself then differs by 5e-5 in a logit."""
    theirs = built(name)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.mul_(0.5 if weight.ndim > 1 else 1.0)
    theirs.save_pretrained(tmp_path)
    found = formats.load_model(tmp_path)
    ids = torch.tensor(IDS, dtype=torch.long)
    theirs(ids, labels=ids).loss.backward()
    wanted = {
        name: weight.grad.numpy()
        for name, weight in theirs.named_parameters()
        if ".mlp.experts." not in name  # one tensor of all experts there, but not in files
    }

    @jax.jit
    @jax.grad
    def gradient(params):
        hidden = model.forward(found.config, params, IDS).hidden
        logits = model.unembed(found.config, params, hidden)[:, :-1]
        nats = jax.nn.logsumexp(logits, -1)
        return (nats - jnp.take_along_axis(logits, IDS[:, 1:, None], -1)[..., 0]).mean()

    plain = [
        place._replace(entry=place.entry._replace(plus=0.0))
        for place in FAMILIES[name].places(found.config)
    ]
    ours = dict(layout.tensors(gradient(found.params), plain))
    apart = {
        tensor: float(np.abs(ours[tensor] - value).max() / np.abs(value).max())
        for tensor, value in wanted.items()
    }
    worst = max(apart, key=lambda tensor: apart[tensor])
    print(f"{name}: gradients within {apart[worst]:.1e} of each tensor's largest ({worst})")
    record_property("figure", f"{name} {apart[worst]:.1e}")
    assert apart[worst] <= 1e-4, worst


def test_the_text_model_of_qwen3_5_is_read_without_its_images(tmp_path: Path) -> None:
    built("qwen3_5_text").save_pretrained(tmp_path)
    plain, path = formats.load_model(tmp_path), tmp_path / "config.json"
    data = json.loads(path.read_text())
    whole = {"model_type": "qwen3_5", "image_token_id": 5, "vision_config": {}}
    path.write_text(json.dumps(whole | {"text_config": data}))
    found = formats.load_model(tmp_path)
    assert found.config == plain.config and found.about.family == "qwen3_5_text"
    jax.tree.map(np.testing.assert_array_equal, found.params, plain.params)
