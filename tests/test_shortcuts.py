"""Shortcuts from the embedded tokens to every layer: what they add, and where they can't be. The
laws of all models are in test_laws.py."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import PLAIN, ROPE, SHRUNK, VARIANTS

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.formats import huggingface
from gptjax.lab import look
from gptjax.model import Latent, ModelConfig, Shortcuts
from gptjax.model.transformer import Soft

NAMES = ("shortcut_stream", "shortcut_first_values", "shortcut_table")
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 60, (2, 12)))


def with_factors(params: Any, stream: tuple | None, values: tuple | None) -> Any:
    """The same parameters with other factors; a factor is that of all layers, or of each."""
    layers = dict(params["layers"])
    if stream is not None and "stream" in layers:
        layers["stream"] = jnp.broadcast_to(jnp.asarray(stream, jnp.float32), (2, 2))
    if values is not None and "values" in layers["attention"]:
        factors = jnp.broadcast_to(jnp.asarray(values, jnp.float32), (2, 2))
        layers["attention"] = {**layers["attention"], "values": factors}
    return {**params, "layers": layers}


@pytest.mark.parametrize("name", NAMES)
def test_with_factors_1_and_0_a_model_is_the_one_without(name: str):
    config = VARIANTS[name]
    params = with_factors(model.init(config, jax.random.key(0)), (1, 0), (1, 0))
    read = jax.jit(lambda c, p: model.forward(c, p, TOKENS).hidden, static_argnums=0)
    plain = dataclasses.replace(config, shortcuts=None)
    rest = {key: tree for key, tree in params.items() if key != "values"}
    layers = {key: tree for key, tree in params["layers"].items() if key != "stream"}
    kept = {key: tree for key, tree in layers["attention"].items() if key != "values"}
    rest["layers"] = {**layers, "attention": kept}
    assert jax.tree.structure(rest) == jax.tree.structure(model.shapes(plain))
    np.testing.assert_allclose(read(config, params), read(plain, rest), atol=1e-6)


def test_the_stream_that_a_layer_adds_to_is_the_mixture():
    """Without what attention and MLP add, the stream is the embedded tokens times all factors."""
    config = dataclasses.replace(VARIANTS["shortcut_stream"], residual_init="zero")
    params = with_factors(model.init(config, jax.random.key(0)), ((2, 3), (5, 7)), None)
    seen = model.forward(config, params, TOKENS, observe=("stream", "embedding")).observed
    x = np.asarray(seen["embedding"])
    streams = np.asarray(look.residual_streams(config, params, TOKENS))
    np.testing.assert_allclose(streams[0], x, rtol=1e-6)
    np.testing.assert_allclose(streams[1], (2 + 3) * x, rtol=1e-5)
    np.testing.assert_allclose(streams[2], (5 * 5 + 7) * x, rtol=1e-5)


@pytest.mark.parametrize("compute", ["unroll", "scan"])
def test_first_values_are_those_of_the_first_layer(compute: str):
    config = dataclasses.replace(
        VARIANTS["shortcut_first_values"],
        shortcuts=Shortcuts(stream=False, values="first"),
        layers=compute,
    )
    params = with_factors(model.init(config, jax.random.key(0)), None, ((1, 0), (0, 1)))
    values = model.forward(config, params, TOKENS, observe=("value",)).observed["value"]
    assert np.abs(values).max() > 0.01
    np.testing.assert_allclose(values[1], values[0], atol=1e-6)


def test_a_table_of_values_goes_by_the_token_and_gives_none_to_what_replaces_one():
    config = dataclasses.replace(VARIANTS["shortcut_table"], qkv_clip=None)
    params = with_factors(model.init(config, jax.random.key(0)), None, (0, 1))
    table = np.asarray(params["values"]["embedding"])
    embedded = jax.random.normal(jax.random.key(1), (2, 1, config.width))
    soft = Soft(embedded, jnp.asarray([[3], [-1]]))
    seen = model.forward(config, params, TOKENS, soft=soft, observe=("value",)).observed["value"]
    wanted = table[np.asarray(TOKENS)]
    wanted[0, 3] = 0
    for layer in range(2):
        np.testing.assert_allclose(seen[layer].reshape(2, 12, -1), wanted, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_factor_learns(name: str):
    config = VARIANTS[name]
    params = model.init(config, jax.random.key(0))

    def loss(params):
        hidden = model.forward(config, params, TOKENS).hidden
        return jnp.square(model.unembed(config, params, hidden) - 1).mean()

    slopes = jax.jit(jax.grad(loss))(params)
    own = [slopes["layers"].get("stream"), slopes["layers"]["attention"].get("values")]
    assert all(np.all(one[:, 1] != 0) for one in own if one is not None)
    assert sum(one is not None for one in own) >= 1


IMPOSSIBLE = {
    "nothing": (lambda: Shortcuts(stream=False), "neither stream nor values; omit it"),
    "post-norm": (lambda: dataclasses.replace(PLAIN, **POST), "without norm_placement post"),
    "encoder": (lambda: dataclasses.replace(ROPE, encoder_layers=1, **SHORT), "encoder_layers"),
    "ahead": (lambda: dataclasses.replace(ROPE, ahead=1, **SHORT), "ahead"),
    "latent": (
        lambda: dataclasses.replace(
            ROPE, latent=Latent(rank=8, rope_width=4), shortcuts=Shortcuts(values="first")
        ),
        "shortcuts.values 'none'",
    ),
}
SHORT = {"shortcuts": Shortcuts()}
POST = SHORT | {"norm_placement": "post"}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_short_cuts_that_lead_nowhere_are_refused_in_one_line(name: str):
    make, said = IMPOSSIBLE[name]
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_would_be_wrong_with_short_cuts_is_refused():
    config = ModelConfig(**SHRUNK, shortcuts=Shortcuts())
    params = model.init(config, jax.random.key(0))
    with pytest.raises(ValueError, match="after each layer or multiplied by it"):
        look.direct_attribution(config, params, TOKENS, jnp.zeros(2, int), jnp.ones(2, int))
    with pytest.raises(ConfigError, match="shortcuts"):
        huggingface.family_of(config)
