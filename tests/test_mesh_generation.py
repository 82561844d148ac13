"""Laws of generation on several devices: weights and cache are split, and the tokens are those of
one device."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_generate import TOKENIZER, weights
from variants import VARIANTS

import gptjax
from gptjax import formats, generate, model
from gptjax.core.config import ConfigError
from gptjax.formats import OpenedModel
from gptjax.generate import GenerateConfig
from gptjax.sharding.mesh import MeshConfig, make_mesh, param_shardings

SPLITS = {
    "data 2 x fsdp 2 x tensor 2": (MeshConfig(data=2, fsdp=2, tensor=2), 4),
    "tensor 8": (MeshConfig(tensor=8), 8),
}
"""How eight devices share a model, and its query heads."""
MODELS = ("gpt2", "gqa", "window_with_sinks", "experts", "latent")
PROMPTS = ["ab", "c" * 14, "defg", "h", "ijk" * 4, "lm"]
SETTINGS = [GenerateConfig(new_tokens=4 + n, temperature=0.6 * (n % 2), seed=n) for n in range(6)]


def config_of(name: str, heads: int) -> model.ModelConfig:
    """A variant whose heads `tensor` divides as often as it may."""
    config = dataclasses.replace(VARIANTS[name], vocab_size=264, context=32, num_layers=1)
    kv_heads = config.num_kv_heads and config.num_kv_heads * heads // config.num_heads
    return dataclasses.replace(config, num_heads=heads, num_kv_heads=kv_heads)


@pytest.mark.parametrize(
    "split", [pytest.param(n, marks=pytest.mark.slow if n == "tensor 8" else ()) for n in SPLITS]
)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "gqa" else pytest.mark.slow) for n in MODELS]
)
def test_a_mesh_writes_the_tokens_of_one_device(name, split):
    """Six prompts in four rows, so that two enter beside others."""
    sizes, heads = SPLITS[split]
    config, mesh = config_of(name, heads), make_mesh(sizes)
    params = weights(config)
    shardings = param_shardings(mesh, model.axes(config), model.shapes(config))
    split_params = jax.device_put(params, shardings)
    one = generate.complete(config, params, TOKENIZER, PROMPTS, SETTINGS, batch=4)
    several = generate.complete(
        config, split_params, TOKENIZER, PROMPTS, SETTINGS, batch=4, mesh=mesh
    )
    assert [done.ids for done in several] == [done.ids for done in one]
    for a, b in zip(several, one, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.mark.parametrize("kind", ["full", "int4"])
def test_the_cache_of_a_mesh_is_split_over_rows_and_heads(kind):
    config, mesh = config_of("gqa", 8), make_mesh(MeshConfig(data=2, tensor=4))
    params = jax.device_put(
        weights(config), param_shardings(mesh, model.axes(config), model.shapes(config))
    )
    tokens, four = np.zeros((4, 16), np.int32), np.full(4, 4, np.int32)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        state = generate.prefill(config, params, tokens, four, four, slots=32, kv_cache=kind)
    (group,) = state.cache.groups
    for leaf in (group.keys, group.key_scales):
        if leaf is not None:
            layers, rows, heads, *rest = leaf.shape
            split = leaf.sharding.shard_shape(leaf.shape)
            assert split == (layers, rows // 2, heads // 4, *rest)


def test_a_loaded_model_may_lie_on_a_mesh(tmp_path):
    config = dataclasses.replace(VARIANTS["gqa"], vocab_size=TOKENIZER.vocab_size, num_layers=1)
    formats.save_model(tmp_path / "m", OpenedModel(config, weights(config), TOKENIZER))
    settings = {"new_tokens": 6, "temperature": 1.0}
    on_mesh = gptjax.load(tmp_path / "m", mesh=MeshConfig(fsdp=2, tensor=2))
    assert dict(on_mesh.mesh.shape)["tensor"] == 2
    assert on_mesh.generate("ab", **settings) == gptjax.load(tmp_path / "m").generate(
        "ab", **settings
    )
    with pytest.raises(
        ConfigError, match="generation uses only the axes data, fsdp, expert and tensor"
    ):
        gptjax.load(tmp_path / "m", mesh=MeshConfig(stage=2))
    few = settings | {"kv_cache": "int4"}
    assert on_mesh.generate("ab", **few) == gptjax.load(tmp_path / "m").generate("ab", **few)
    for stored in ("int8", "int4", "w8a8", "q8_0"):
        several = on_mesh.prepared(stored)
        up = several.params["layers"]["mlp"]["up"]["kernel"]
        assert hasattr(up, "base") == (stored == "q8_0")
        up = getattr(up, "base", up)
        assert up.values.sharding.spec == P(None, "fsdp", "tensor")
        assert up.scales.sharding.spec[-1] == "tensor"
        assert several.generate("ab", **settings) == gptjax.load(tmp_path / "m").prepared(
            stored
        ).generate("ab", **settings)


def test_a_missing_model_is_reported_before_missing_devices(tmp_path):
    with pytest.raises(ConfigError, match="nothing is not a directory"):
        gptjax.load(tmp_path / "nothing", mesh=MeshConfig(tensor=3))
    with pytest.raises(ConfigError, match="but there is 1 device; change"):
        make_mesh(MeshConfig(tensor=2), jax.devices()[:1])
