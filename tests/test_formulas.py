"""The small parts of a model as their papers write them: each is its formula, in float64.

Other laws compare one way of computing with another, and would not see a formula that is wrong in
both.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_laws import weights
from variants import PLAIN, RECURRENT, ROPE

from gptjax import model
from gptjax.model import (
    DeltaNet,
    LinearScaling,
    Llama3Scaling,
    Mamba2,
    NTKScaling,
    ShortConvolution,
    YarnScaling,
)
from gptjax.model.layers import Norm, activate
from gptjax.model.positions import rotate
from gptjax.model.rope_scaling import frequencies, magnitude
from gptjax.model.transformer import embed_tokens

PAIR = ("query", "key")
WIDTH, BASE = 24, 10_000.0
WAVES = BASE ** (-np.arange(0, WIDTH, 2) / WIDTH)
"""Radians a token of RoPE's waves, fastest first."""


def yarn(factor: float, original: int, fast: float, slow: float, whole: bool = True) -> list[float]:
    """arXiv:2309.00071, section 3.2, with the ramp over the number of the wave between whole
    numbers outside of both borders, as its code has it."""

    def wave_that_turns(times: float) -> float:
        return WIDTH * math.log(original / (times * 2 * math.pi)) / (2 * math.log(BASE))

    first, last = wave_that_turns(fast), wave_that_turns(slow)
    first, last = (math.floor(first), math.ceil(last)) if whole else (first, last)
    first, last = max(first, 0), min(last, WIDTH - 1)
    shares = [min(max((i - first) / (last - first), 0), 1) for i in range(WIDTH // 2)]
    return [wave * ((1 - s) + s / factor) for wave, s in zip(WAVES, shares, strict=True)]


def llama3(factor: float, original: int, low: float = 1.0, high: float = 4.0) -> list[float]:
    """Llama 3.1's code: by wavelength."""
    waves = []
    for wave in WAVES:
        length = 2 * math.pi / wave
        smooth = (original / length - low) / (high - low)
        if length < original / high:
            waves.append(wave)
        elif length > original / low:
            waves.append(wave / factor)
        else:
            waves.append((1 - smooth) * wave / factor + smooth * wave)
    return waves


STRETCHED = {
    "not": (None, WAVES),
    "linear": (LinearScaling(4.0), WAVES / 4),
    "ntk": (
        NTKScaling(4.0),
        (BASE * 4 ** (WIDTH / (WIDTH - 2))) ** (-np.arange(0, WIDTH, 2) / WIDTH),
    ),
    "yarn": (YarnScaling(4.0, original=2048), yarn(4.0, 2048, 32.0, 1.0)),
    "yarn with other borders": (
        YarnScaling(8.0, original=512, fast=16.0, slow=2.0),
        yarn(8.0, 512, 16.0, 2.0),
    ),
    "yarn between waves": (
        YarnScaling(4.0, original=2048, truncate=False),
        yarn(4.0, 2048, 32.0, 1.0, whole=False),
    ),
    "llama 3": (Llama3Scaling(8.0, original=1024), llama3(8.0, 1024)),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_waves_of_rope_are_stretched_as_their_papers_say(name):
    scaling, wanted = STRETCHED[name]
    np.testing.assert_allclose(frequencies(WIDTH, BASE, scaling), wanted, rtol=1e-5)
    louder = 0.1 * math.log(scaling.factor) + 1 if isinstance(scaling, YarnScaling) else 1.0
    assert magnitude(scaling) == pytest.approx(louder, rel=1e-6)


def test_rotating_is_multiplying_by_a_complex_number():
    """The halves of a head are the real and the imaginary parts; the rest of it stays."""
    draw = np.random.default_rng(0)
    x, angles = draw.standard_normal((2, 3, 4, 10)), draw.uniform(-7, 7, (2, 3, 4))
    pairs = (x[..., :4] + 1j * x[..., 4:8]) * 1.5 * np.exp(1j * angles)[:, :, None]
    wanted = np.concatenate([pairs.real, pairs.imag, x[..., 8:]], axis=-1)
    np.testing.assert_allclose(rotate(jnp.float32(x), jnp.float32(angles), 1.5), wanted, atol=1e-5)


def test_norms_are_those_of_their_papers():
    """With an epsilon that matters, whose place is under the root."""
    x = np.random.default_rng(0).standard_normal((3, 8)) * 0.1 + 0.2
    scale, bias, epsilon = np.linspace(0.5, 2, 8), np.linspace(-1, 1, 8), 0.01
    away = x - x.mean(-1, keepdims=True)
    wanted = {
        "rmsnorm": scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon),
        "layernorm": scale * away / np.sqrt((away**2).mean(-1, keepdims=True) + epsilon) + bias,
    }
    params = {"scale": jnp.float32(scale), "bias": jnp.float32(bias)}
    for kind, values in wanted.items():
        found = Norm(kind, 8, epsilon, bias=True).apply({"params": params}, jnp.float32(x))
        np.testing.assert_allclose(found, values, rtol=1e-5, err_msg=kind)


def test_activations_are_those_of_their_names():
    x = np.linspace(-4, 4, 33)
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    wanted = {
        "gelu": tanh,
        "geglu": tanh,
        "gelu_exact": [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x],
        "relu": np.maximum(x, 0),
        "relu2": np.maximum(x, 0) ** 2,
        "silu": x / (1 + np.exp(-x)),
        "swiglu": x / (1 + np.exp(-x)),
    }
    for kind, values in wanted.items():
        found = activate(kind, jnp.float32(x))
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=2e-6, err_msg=kind)


def test_scaled_embeddings_are_the_table_times_the_root_of_the_width():
    config = dataclasses.replace(PLAIN, width=16, scaled_embedding=True)
    table = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)
    params, ids = {"embedding": {"embedding": jnp.asarray(table)}}, jnp.asarray([[3, 0, 6]])
    found = embed_tokens(config, params, ids)
    np.testing.assert_allclose(found, 4 * table[np.asarray(ids)], rtol=1e-2)


def test_queries_and_keys_are_as_loud_as_yarn_says():
    """Both of them, and of latents those parts that are rotated."""
    whole = dataclasses.replace(ROPE, num_layers=1)
    latent = dataclasses.replace(whole, latent=model.Latent(rank=8, rope_width=4, value_width=8))
    draw, ids = np.random.default_rng(0), jnp.arange(5)[None]
    for config, part in ((whole, slice(None)), (latent, slice(-4, None))):
        params = jax.tree.map(
            lambda leaf: jnp.asarray(draw.standard_normal(leaf.shape), jnp.float32),
            model.shapes(config),
        )

        def observed(loud: float, config=config, params=params) -> dict:
            scaling = YarnScaling(4.0, original=16, magnitude=loud)
            louder = dataclasses.replace(config, rope_scaling=scaling)
            read = jax.jit(lambda params: model.forward(louder, params, ids, observe=PAIR).observed)
            return read(params)

        plain, loud = observed(1.0), observed(3.0)
        for name in PAIR:
            np.testing.assert_allclose(3 * plain[name][..., part], loud[name][..., part], rtol=1e-4)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def convolved(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """[T …]: the last tokens of each channel, weighed by its taps [… W]."""
    count = taps.shape[-1]
    padded = np.concatenate([np.zeros((count - 1, *x.shape[1:])), x])
    return sum(padded[i : i + len(x)] * taps[..., i] for i in range(count))


def gated_delta_net(w: dict, x: np.ndarray, epsilon: float) -> np.ndarray:
    """arXiv:2412.06464, equation 10, as Qwen3-Next has it: value head g of key head k, token by
    token."""

    def heads(name: str) -> np.ndarray:
        return np.einsum("td,dkx->tkx", x, w[name]["kernel"])

    def short(name: str) -> np.ndarray:
        y = convolved(heads(name), w[f"{name}_convolution"]["taps"])
        return y * sigmoid(y)

    q, k, v, gate = short("query"), short("key"), short("value"), heads("gate")
    q = q / np.sqrt(np.square(q).sum(-1, keepdims=True) + 1e-6) / np.sqrt(q.shape[-1])
    k = k / np.sqrt(np.square(k).sum(-1, keepdims=True) + 1e-6)
    beta = sigmoid(heads("rate"))
    step = np.log1p(np.exp(heads("decay") + w["decay_bias"]))
    alpha = np.exp(-np.exp(w["decay_rate"]) * step)
    read = np.zeros((*beta.shape, v.shape[-1] // beta.shape[-1]))
    v = v.reshape(read.shape)
    for head, g in np.ndindex(beta.shape[1:]):
        state = np.zeros((v.shape[-1], k.shape[-1]))
        for t in range(len(x)):
            old = alpha[t, head, g] * state
            error = v[t, head, g] - old @ k[t, head]
            state = old + beta[t, head, g] * np.outer(error, k[t, head])
            read[t, head, g] = state @ q[t, head]
    size = np.sqrt(np.square(read).mean(-1, keepdims=True) + epsilon)
    read = (read / size * w["norm"]["scale"]).reshape(gate.shape) * gate * sigmoid(gate)
    return np.einsum("tkx,kxd->td", read, w["out"]["kernel"])


def mamba2(w: dict, x: np.ndarray, epsilon: float) -> np.ndarray:
    """arXiv:2405.21060, equation 16 and figure 6, token by token."""

    def projected(name: str) -> np.ndarray:
        return np.einsum("td,dkx->tkx", x, w[name]["kernel"])

    def short(name: str) -> np.ndarray:
        own = w[f"{name}_convolution"]
        y = convolved(projected(name), own["taps"]) + own["bias"]
        return y * sigmoid(y)

    v, b, c, gate = short("value"), short("key"), short("query"), projected("gate")
    step = np.minimum(np.log1p(np.exp(projected("step") + w["decay_bias"])), 1.0)
    read = np.zeros((*step.shape, v.shape[-1] // step.shape[-1]))
    v = v.reshape(read.shape)
    for group, head in np.ndindex(step.shape[1:]):
        state, rate = np.zeros((v.shape[-1], b.shape[-1])), -np.exp(w["decay_rate"][group, head])
        for t in range(len(x)):
            d = step[t, group, head]
            state = np.exp(d * rate) * state + d * np.outer(v[t, group, head], b[t, group])
            read[t, group, head] = state @ c[t, group]
    read = (read + w["skip"][..., None] * v).reshape(gate.shape) * gate * sigmoid(gate)
    size = np.sqrt(np.square(read).mean(-1, keepdims=True) + epsilon)
    return np.einsum("tkx,kxd->td", read / size * w["norm"]["scale"], w["out"]["kernel"])


def short_convolution(w: dict, x: np.ndarray, epsilon: float) -> np.ndarray:
    """LFM2, arXiv:2511.23404, section 2."""
    before, after, value = (x @ w[name]["kernel"] for name in ("before", "after", "value"))
    return after * convolved(before * value, w["convolution"]["taps"]) @ w["out"]["kernel"]


FORMULAS = {
    "mamba": (Mamba2(4, 8, groups=2, state_width=6, longest_step=1.0, chunk=8), mamba2),
    "convolution": (ShortConvolution(), short_convolution),
    "delta": (DeltaNet(2, 4, key_width=8, value_width=6, chunk=8), gated_delta_net),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_recurrent_layers_are_the_formulas_of_their_papers(name):
    options, formula = FORMULAS[name]
    config = dataclasses.replace(
        ROPE, num_layers=1, positions="none", recurrent=options, pattern=(RECURRENT,)
    )
    params, tokens = weights(config), jnp.arange(3, 15)[None]
    observe = ("stream", "attention_out")
    seen = jax.jit(lambda: model.forward(config, params, tokens, observe=observe).observed)()
    layer = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), params["layers"])
    x = np.asarray(seen["stream"][0, 0], np.float64)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.norm_epsilon)
    wanted = formula(layer[name], x * layer["attention_norm"]["scale"], config.norm_epsilon)
    np.testing.assert_allclose(
        seen["attention_out"][0, 0], wanted, atol=3e-6 * np.abs(wanted).max()
    )
