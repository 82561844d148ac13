"""Activations and attention patterns are those of `transformers` with the same random weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parity import CASES, ENCODERS, Pair, pair_of, some_ids, torch

from gptjax.lab import look

NAMES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "bert")
LOOKED = [case for case in (*CASES, *ENCODERS) if case.name in NAMES]


@pytest.fixture(scope="module", params=LOOKED, ids=lambda case: case.name)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


def worst(found, wanted) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())


def test_streams_and_patterns_are_the_hidden_states_and_attentions_of_transformers(pair: Pair):
    ids = jnp.asarray(some_ids(2, 24))
    told = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        theirs = pair.theirs(torch.tensor(np.asarray(ids)), **told)
    states = [state.numpy() for state in theirs.hidden_states]
    streams = jax.jit(lambda p: look.residual_streams(pair.config, p, ids))(pair.params)
    patterns = jax.jit(lambda p: look.attention_patterns(pair.config, p, ids))(pair.params)
    assert len(states) == len(streams) and len(theirs.attentions) == len(patterns)
    for level, state in enumerate(states[:-1]):  # their last is behind the last norm
        assert worst(streams[level], state) <= 1e-5, level
    logits = look.lens_logits(pair.config, pair.params, streams[-1])
    assert worst(logits, theirs.logits.numpy()) <= 1e-5
    for layer, attention in enumerate(theirs.attentions):
        found = np.asarray(patterns[layer])
        assert np.abs(found - attention.numpy()).max() <= 1e-5, layer
        sharp = found[..., 8:, :].max(-1).mean()
        assert sharp > 0.2, "nearly uniform attention proves nothing"


def test_means_over_heads_roll_out_to_rows_of_one(pair: Pair):
    patterns = look.attention_patterns(pair.config, pair.params, jnp.asarray(some_ids(1, 8)))
    np.testing.assert_allclose(look.attention_rollout(patterns).sum(-1), 1.0, atol=1e-5)
