"""Laws of looking inside a model: an edit changes its site alone and bit for bit, patching all of
one run is the other, lenses end in the logits, and attributions sum to what they explain.

Weights are those of test_laws: random, and large enough that attention is sharp.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_laws import assert_same_bits, difference, weights, whole_side
from variants import ROPE, VARIANTS

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.generate import Sampling, generate
from gptjax.lab import look
from gptjax.lab.look import Site
from gptjax.lab.look.autoencoder import Autoencoder, encode_features
from gptjax.lab.look.heads import KINDS, looked_at
from gptjax.lab.look.lens import lens_divergence
from gptjax.model import ModelConfig
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import MeshConfig, make_mesh, replicated

T, N, L = 9, ROPE.num_heads, ROPE.num_layers
CLEAN, CORRUPTED = (
    jnp.asarray(np.random.default_rng(seed).integers(0, 60, (2, T)), jnp.int32) for seed in (0, 1)
)
ONE_OFF = CLEAN.at[:, 4].set((CLEAN[:, 4] + 7) % 60)
"""The clean tokens but for the one at position 4."""
RIGHT, WRONG = jnp.asarray([3, 5]), jnp.asarray([8, 1])


def forward(config: ModelConfig, tokens=CLEAN, observe=(), intervene=None):
    memory = model.encode(config, weights(config), whole_side(config, len(tokens), T))
    return model.forward(
        config, weights(config), tokens, memory=memory, observe=observe, intervene=intervene
    )


def measure_of(config: ModelConfig, params=None):
    params = weights(config) if params is None else params
    return look.logit_difference(config, params, RIGHT, WRONG)


# --- edits


KINDS_OF_LAYERS = [
    *("gpt2", "latent", "experts_every_second", "deepseek", "beside_an_encoder", "encoder"),
    *("delta", "delta_and_attention", "mamba_and_attention", "experts_and_recurrent"),
]


def test_layers_have_the_activations_that_they_are_said_to_have():
    for name in KINDS_OF_LAYERS:
        config = VARIANTS[name]

        def read(params, config=config):
            memory = model.encode(config, params, whole_side(config, len(CLEAN), T))
            observe = tuple(model.ACTIVATIONS)
            return model.forward(config, params, CLEAN, memory=memory, observe=observe).observed

        observed = jax.eval_shape(read, model.shapes(config))
        for activation in model.ACTIVATIONS:
            numbers = look.layers_with(config, activation)
            if activation not in ("embedding", "hidden"):
                seen = observed.get(activation)
                assert len(numbers) == (0 if seen is None else len(seen)), (name, activation)


EDITED = ["gpt2", "local_and_global", "experts_by_group", "post_norm", "delta_and_attention"]


@pytest.mark.parametrize("name", EDITED)
def test_ablating_nothing_is_the_identity_bit_for_bit(name):
    config = VARIANTS[name]
    plain = forward(config).hidden
    edits = [
        look.ablate(config, Site("stream", jnp.zeros(config.num_layers, bool))),
        look.ablate(config, Site("attention", 1, head=jnp.zeros(config.num_heads, bool))),
        look.shift(config, Site("mlp_out", position=jnp.zeros((2, T), bool)), jnp.ones(32)),
        look.shift(config, Site("mlp_out"), jnp.zeros(32)),
    ]
    nothing = look.joined_edits(*edits)
    assert_same_bits(forward(config, intervene=nothing).hidden, plain)


@pytest.mark.parametrize("name", EDITED)
def test_patching_everything_is_the_other_run(name):
    config = VARIANTS[name]
    clean = forward(config, observe=("embedding", "stream"))
    for activation in ("embedding", "stream"):
        edit = look.patch(config, Site(activation), clean.observed)
        assert_same_bits(forward(config, CORRUPTED, intervene=edit).hidden, clean.hidden)
    half = look.patch(config, Site("stream", 0), clean.observed)  # the first layer is enough
    assert_same_bits(forward(config, CORRUPTED, intervene=half).hidden, clean.hidden)
    if config.causal:  # the last position of the last layer decides the last answer
        last = look.patch(config, Site("stream", config.num_layers - 1), clean.observed)
        found = forward(config, CORRUPTED, intervene=last).hidden
        assert_same_bits(found[:, -1], clean.hidden[:, -1])


@pytest.mark.parametrize("name", ["gqa", "local_and_global"])
@pytest.mark.parametrize(
    "site",
    [
        Site("attention", 1, 3, 2),
        Site("attention", 1, -2, jnp.asarray([True, False, False, True])),
        Site("value", 0, jnp.asarray([1, 5]), 1),
        Site("stream", 1, jnp.asarray([2, -1])),
        Site("mlp_out", jnp.asarray([False, True]), jnp.arange(T) > 5),
    ],
)
def test_an_edit_changes_its_site_and_nothing_else(name, site):
    config = VARIANTS[name]
    if not isinstance(site.layer, int):
        site = site._replace(layer=jnp.arange(config.num_layers) == 1)
    donor = forward(config, observe=(site.name,)).observed
    edit = look.patch(config, site, donor)
    before = forward(config, CORRUPTED, observe=(site.name,)).observed[site.name]
    after = forward(config, CORRUPTED, (site.name,), edit).observed[site.name]
    here = np.zeros(before.shape, bool)
    for row in range(2):
        position = np.arange(T) if site.position is None else np.asarray(site.position)
        position = position[row] if position.ndim == 1 and position.dtype != bool else position
        layer = 1 if not isinstance(site.layer, int) else site.layer
        part = here[layer, row, position]
        part[(...,) if site.head is None else (..., np.asarray(site.head), slice(None))] = True
        here[layer, row, position] = part
        earlier = np.s_[: layer + 1]
        wanted = np.where(here, donor[site.name], before)[earlier, row]
        np.testing.assert_array_equal(after[earlier, row], wanted)
    assert here.any() and not here.all()


def test_what_an_edit_could_not_change_is_refused():
    donor = forward(ROPE, observe=("stream",)).observed
    for site, said in (
        (Site("streem"), "'stream'"),
        (Site("stream", 2), "layer 2"),
        (Site("stream", head=0), "no heads"),
        (Site("attention", head=4), "heads 0 to 3"),
        (Site("router"), "no layer"),
        (Site("recurrent"), "no layer"),
    ):
        with pytest.raises(ValueError, match=said):
            look.ablate(ROPE, site)
    with pytest.raises(ValueError, match="observe it"):
        look.patch(ROPE, Site("mlp"), donor)
    with pytest.raises(ValueError, match="outside of the 9"):
        forward(ROPE, intervene=look.ablate(ROPE, Site("stream", 0, 9)))
    with pytest.raises(ValueError, match="no 'query'"):
        config = VARIANTS["delta_and_attention"]
        look.ablate(config, Site("query", 0))


def test_means_take_the_place_of_an_activation_and_a_direction_leaves_it():
    seen = forward(ROPE, observe=("mlp_out",)).observed["mlp_out"]
    means = {"mlp_out": seen.mean((1, 2))}
    edit = look.ablate(ROPE, Site("mlp_out", 1), means)
    found = forward(ROPE, observe=("mlp_out",), intervene=edit).observed["mlp_out"]
    np.testing.assert_array_equal(found[1], jnp.broadcast_to(means["mlp_out"][1], seen[1].shape))
    vector = jax.random.normal(jax.random.key(0), (ROPE.width,))
    gone = look.joined_edits(
        look.project_out(ROPE, Site("stream"), vector),
        look.shift(ROPE, Site("stream"), 2 * vector / (vector @ vector)),
    )
    stream = forward(ROPE, observe=("stream",), intervene=gone).observed["stream"]
    np.testing.assert_allclose(stream @ vector, 2.0, atol=1e-4)


# --- lenses


@pytest.mark.parametrize("name", ["gpt2", "post_norm", "sandwich", "parallel", "cohere2"])
def test_the_lens_of_a_layer_is_the_model_that_ends_there_and_of_the_last_the_logits(name):
    config, params = VARIANTS[name], weights(VARIANTS[name])
    streams = look.residual_streams(config, params, CLEAN)
    logits = look.lens_logits(config, params, streams)
    whole = model.unembed(config, params, forward(config).hidden)
    assert difference(logits[-1], whole) <= 1e-6
    reading = look.read_lens(config, params, CLEAN, top=3)
    ids, values = jax.lax.top_k(jax.nn.log_softmax(whole), 3)[::-1]
    assert_same_bits((reading.ids[-1], reading.logprobs[-1]), (ids, values))
    assert_same_bits(reading.divergence[-1], jnp.zeros((2, T)))
    for count in range(1, config.num_layers):
        short = dataclasses.replace(config, num_layers=count)
        layers = jax.tree.map(lambda leaf, count=count: leaf[:count], params["layers"])
        hidden = model.forward(short, {**params, "layers": layers}, CLEAN).hidden
        assert difference(logits[count], model.unembed(short, params, hidden)) <= 1e-6
        assert (reading.ids[count, ..., 0] == logits[count].argmax(-1)).all()
        assert reading.divergence[count].min() > 0


def test_a_tuned_lens_begins_as_the_logit_lens_and_comes_nearer():
    params = weights(ROPE)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 60, (32, T)), jnp.int32)
    zero = look.Translators(jnp.zeros((L, ROPE.width, ROPE.width)), jnp.zeros((L, ROPE.width)))
    before = lens_divergence(ROPE, params, CLEAN)
    np.testing.assert_allclose(lens_divergence(ROPE, params, CLEAN, zero), before, rtol=1e-6)
    translators, fitted = look.fit_tuned_lens(ROPE, params, tokens, steps=60, peak=1e-2)
    after = lens_divergence(ROPE, params, CLEAN, translators)
    assert (after < before).all() and after[1] < 0.8 * before[1], fitted.losses[::10]
    read = look.read_lens(ROPE, params, CLEAN, translators=translators)
    np.testing.assert_allclose(read.divergence[:-1].mean((1, 2)), after, rtol=1e-4)


# --- heads

ATTENDING = [
    *("gqa", "alibi", "t5", "capped", "attention_sink", "window_with_sinks", "latent"),
    *("encoder", "prefix_lm", "local_and_global", "delta_and_attention", "ministral3", "gpt_oss"),
]


@pytest.mark.parametrize("name", ATTENDING)
def test_a_pattern_is_what_attention_weighs_values_by(name):
    config = VARIANTS[name]
    inputs = {"prefix": jnp.full((2, T), 4)} if config.prefix_lm else {}
    names = ("value", "attention")
    seen = model.forward(config, weights(config), CLEAN, observe=names, **inputs).observed
    patterns = look.attention_patterns(config, weights(config), CLEAN, **inputs)
    groups = patterns.shape[2] // seen["value"].shape[3]
    values = jnp.repeat(seen["value"], groups, axis=3)
    assert difference(jnp.einsum("lbnts,lbsnh->lbtnh", patterns, values), seen["attention"]) < 1e-5
    if not config.attention_sink:
        np.testing.assert_allclose(patterns.sum(-1), 1.0, atol=1e-5)


def test_packed_texts_have_the_patterns_that_they_have_alone():
    segments = jnp.asarray([[1] * 4 + [2] * 5] * 2)
    positions = jnp.asarray([[*range(4), *range(5)]] * 2)
    told = {"segments": segments, "positions": positions}
    packed = look.attention_patterns(ROPE, weights(ROPE), CLEAN, **told)
    alone = look.attention_patterns(ROPE, weights(ROPE), CLEAN[:, 4:])
    assert difference(packed[..., 4:, 4:], alone) < 1e-5
    assert (packed[..., 4:, :4] == 0).all()


def test_a_perfect_head_of_a_kind_scores_one_and_others_do_not():
    tokens = look.repeated_tokens(jax.random.key(1), 3, 6, 60, first=2)
    assert (tokens[:, :6] == tokens[:, 6:]).all() and tokens.min() >= 2
    assert all(len({*row}) == 6 for row in tokens.tolist())
    perfect = []
    for kind in KINDS:
        flags = looked_at(kind, tokens)
        for row, (ids, own) in enumerate(zip(tokens.tolist(), flags.tolist(), strict=True)):
            for t in range(12):
                seen = {
                    "previous": {t - 1} & {*range(12)},
                    "duplicate": {s for s in range(t) if ids[s] == ids[t]},
                    "induction": {s + 1 for s in range(t) if ids[s] == ids[t]},
                }[kind]
                assert {s for s, one in enumerate(own[t]) if one} == seen, (kind, row, t)
        share = flags / jnp.maximum(flags.sum(-1, keepdims=True), 1)
        own = jnp.eye(12)[None] * ~flags.any(-1, keepdims=True)
        perfect.append(share + own)
    scores = look.head_scores(jnp.stack(perfect)[:, :, None], tokens)
    table = np.asarray([scores[kind][:, 0] for kind in KINDS])
    np.testing.assert_allclose(np.diag(table), 1.0, rtol=1e-6)
    assert table[~np.eye(3, dtype=bool)].max() < 0.1
    with pytest.raises(ValueError, match="do not fit"):
        look.repeated_tokens(jax.random.key(1), 1, 61, 60)


def test_rollout_is_the_product_of_layers_half_of_which_is_the_stream():
    patterns = look.attention_patterns(VARIANTS["encoder"], weights(VARIANTS["encoder"]), CLEAN)
    mixed = 0.5 * np.asarray(patterns).mean(2) + 0.5 * np.eye(T)
    found = look.attention_rollout(patterns)
    np.testing.assert_allclose(found, mixed[1] @ mixed[0], atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)


# --- patching


@functools.partial(jax.jit, static_argnums=(0, 4))
def grid(config: ModelConfig, params, clean, corrupted, together=1):
    measure = measure_of(config, params)
    return look.patch_positions(config, params, clean, corrupted, measure, together=together)


def test_the_one_token_that_differs_brings_all_back_and_earlier_ones_nothing():
    found = grid(ROPE, weights(ROPE), CLEAN, ONE_OFF)
    recovered = np.asarray(found.recovered)
    np.testing.assert_allclose(recovered[0, 4], 1.0, atol=1e-5)
    np.testing.assert_allclose(recovered[:, :4], 0.0, atol=1e-5)
    assert np.abs(recovered[1, 5:]).min() > 1e-4  # by now it has moved on
    measure = measure_of(ROPE)
    clean = forward(ROPE, observe=("stream",))
    edit = look.patch(ROPE, Site("stream", 1, 6), clean.observed)
    by_hand = measure(forward(ROPE, ONE_OFF, intervene=edit).hidden)
    np.testing.assert_allclose(found.cells[1, 6], by_hand, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.clean, measure(clean.hidden), rtol=1e-5)
    np.testing.assert_allclose(found.corrupted, measure(forward(ROPE, ONE_OFF).hidden), rtol=1e-5)


def test_all_cells_in_one_vmapped_call_under_scan_and_on_a_mesh_are_those_one_by_one():
    wanted = grid(ROPE, weights(ROPE), CLEAN, CORRUPTED)
    every = grid(ROPE, weights(ROPE), CLEAN, CORRUPTED, None)
    assert difference(every.cells, wanted.cells) < 1e-5
    scanned = dataclasses.replace(ROPE, layers="scan")
    assert difference(grid(scanned, weights(ROPE), CLEAN, CORRUPTED).cells, wanted.cells) < 1e-5
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put((weights(ROPE), CLEAN, CORRUPTED), replicated(mesh))
    with use_mesh(mesh):
        assert difference(grid(ROPE, *placed).cells, wanted.cells) < 1e-5
        patterns = jax.jit(functools.partial(look.attention_patterns, ROPE))(*placed[:2])
    assert difference(patterns, look.attention_patterns(ROPE, weights(ROPE), CLEAN)) < 1e-5


def test_columns_are_places_that_differ_from_row_to_row():
    columns = jnp.asarray([[4, 8], [2, 5]])
    given = (ROPE, weights(ROPE), CLEAN, CORRUPTED, measure_of(ROPE))
    found = look.patch_positions(*given, columns=columns)
    whole = grid(ROPE, weights(ROPE), CLEAN, CORRUPTED).cells
    np.testing.assert_allclose(found.cells[:, :, 0], whole[:, jnp.asarray([4, 8]), 0], atol=1e-5)
    np.testing.assert_allclose(found.cells[:, :, 1], whole[:, jnp.asarray([2, 5]), 1], atol=1e-5)
    with pytest.raises(ValueError, match="one shape"):
        look.patch_positions(*given[:3], CORRUPTED[:, 1:], given[4])


def test_heads_are_patched_alone_and_a_whole_layer_of_them_is_attention():
    config = VARIANTS["gqa"]
    measure = measure_of(config)
    found = look.patch_heads(config, weights(config), CLEAN, CORRUPTED, measure)
    clean = forward(config, observe=("attention",)).observed
    for layer, head in ((0, 3), (1, 1)):
        edit = look.patch(config, Site("attention", layer, head=head), clean)
        by_hand = measure(forward(config, CORRUPTED, intervene=edit).hidden)
        np.testing.assert_allclose(found.cells[layer, head], by_hand, rtol=1e-5, atol=1e-5)
    assert found.cells.shape == (L, N, 2)


def test_a_direct_path_is_what_the_head_wrote_and_no_path_leads_backwards():
    config = dataclasses.replace(ROPE, num_layers=3)
    params, measure = weights(config), measure_of(config)
    given = (config, params, CLEAN, CORRUPTED, measure)
    direct = look.path_effects(*given, through_mlps=False)
    names = ("stream", "attention", "attention_out", "mlp_out")
    clean, other = (forward(config, tokens, names) for tokens in (CLEAN, CORRUPTED))
    end = look.residual_streams(config, params, CLEAN)[-1]
    kernel = params["layers"]["attention"]["out"]["kernel"]
    for layer, head in ((0, 1), (2, 3)):
        moved = (other.observed["attention"] - clean.observed["attention"])[layer, :, :, head]
        logits = look.lens_logits(config, params, end + moved @ kernel[layer, head])[:, -1]
        wanted = logits[jnp.arange(2), RIGHT] - logits[jnp.arange(2), WRONG]
        np.testing.assert_allclose(direct.cells[layer, head], wanted, rtol=1e-4, atol=1e-4)
    with_mlps = look.path_effects(*given)
    assert difference(with_mlps.cells, direct.cells) > 1e-3
    to_query = look.path_effects(*given, receivers=(Site("query", 1, head=2),))
    clean_value = jnp.broadcast_to(measure(clean.hidden), (2, N, 2))
    np.testing.assert_allclose(to_query.cells[1:], clean_value, rtol=1e-5, atol=1e-5)
    assert jnp.abs(to_query.cells[0] - clean_value[0]).min() > 1e-5
    with pytest.raises(ValueError, match="no receiver"):
        look.path_effects(*given, receivers=(Site("mlp_out", 1),))


def test_gradients_flow_through_edits():
    measure = measure_of(ROPE)
    vector, along = jax.random.normal(jax.random.key(0), (2, ROPE.width))

    def pushed(vector):
        edit = look.shift(ROPE, Site("stream", 1, -1), vector)
        return measure(forward(ROPE, intervene=edit).hidden).sum()

    slope = jax.grad(pushed)(vector) @ along
    step = 1e-2
    numeric = (pushed(vector + step * along) - pushed(vector - step * along)) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=2e-2)
    together = jax.vmap(pushed)(jnp.stack([vector, along]))
    np.testing.assert_allclose(together, [pushed(vector), pushed(along)], rtol=1e-4)


# --- attribution


SUMS = [
    *("gpt2", "llama", "parallel", "capped", "sandwich", "latent", "three_to_one", "granite"),
    *("experts", "delta_and_attention", "cohere2"),
]


@pytest.mark.parametrize("name", SUMS)
def test_direct_attribution_sums_to_the_difference_of_logits(name):
    config, params = VARIANTS[name], weights(VARIANTS[name])
    found = look.direct_attribution(config, params, CLEAN, RIGHT, WRONG)
    assert difference(found.total, found.value) < 1e-5
    uncapped = dataclasses.replace(config, logit_cap=None)
    np.testing.assert_allclose(found.value, measure_of(uncapped)(forward(uncapped).hidden), 1e-4)
    if not config.bias and name in ("llama", "latent", "granite", "experts"):
        assert jnp.abs(found.others).max() < 1e-5 * jnp.abs(found.heads).max()


def test_direct_attribution_of_a_head_is_its_direct_path_under_a_frozen_norm():
    params, site = weights(ROPE), Site("attention", 1, head=2)
    found = look.direct_attribution(ROPE, params, CLEAN, RIGHT, WRONG).heads[1, 2]
    step, measure = 1e-3, measure_of(ROPE)
    seen = forward(ROPE, observe=("attention", "stream", "mlp_out")).observed
    end = look.residual_streams(ROPE, params, CLEAN)[-1]
    part = seen["attention"][1, :, :, 2] @ params["layers"]["attention"]["out"]["kernel"][1, 2]
    size = jnp.sqrt(jnp.square(end).mean(-1, keepdims=True) + ROPE.norm_epsilon)
    scaled = (part / size * params["norm"]["scale"][None, None])[:, -1]
    logits = model.unembed(ROPE, params, scaled)
    wanted = logits[jnp.arange(2), RIGHT] - logits[jnp.arange(2), WRONG]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    edit = look.edit_site(ROPE, site, lambda x, _: (1 - step) * x)
    assert measure(forward(ROPE, intervene=edit).hidden).shape == found.shape
    with pytest.raises(ValueError, match="normalised"):
        config = VARIANTS["post_norm"]
        look.direct_attribution(config, weights(config), CLEAN, RIGHT, WRONG)


@pytest.mark.parametrize("name", ["gpt2", "llama", "encoder"])
def test_integrated_gradients_are_complete_and_the_error_says_so(name):
    config, params = VARIANTS[name], weights(VARIANTS[name])
    given = (config, params, CLEAN, measure_of(config))
    found = jax.jit(lambda p: look.integrated_gradients(config, p, CLEAN, measure_of(config, p)))(
        params
    )
    whole = jnp.abs(found.value - found.baseline)
    assert (jnp.abs(found.error) <= 1e-3 * jnp.maximum(whole, 1)).all(), (found.error, whole)
    coarse = look.integrated_gradients(*given, steps=1)
    np.testing.assert_allclose(
        coarse.error, coarse.tokens.sum(-1) - (coarse.value - coarse.baseline), rtol=1e-6
    )
    assert jnp.abs(coarse.error).max() > 10 * jnp.abs(found.error).max()


def test_occlusion_hides_one_token_and_the_gradient_is_its_first_order():
    params, measure = weights(ROPE), measure_of(ROPE)
    given = (ROPE, params, CLEAN, measure)
    x = model.embed_tokens(ROPE, params, CLEAN)
    mean = params["embedding"]["embedding"].mean(0)
    found = look.occlusion(*given)
    soft = model.Soft(x.at[:, 3].set(mean[None]), jnp.broadcast_to(jnp.arange(T), (2, T)))
    hidden = model.forward(ROPE, params, CLEAN, soft=soft).hidden
    np.testing.assert_allclose(found.tokens[:, 3], found.value - measure(hidden), rtol=1e-4)
    near = x + 1e-3 * (mean[None, None] - x)
    first, exact = look.grad_input(*given, near), look.occlusion(*given, near)
    np.testing.assert_allclose(first.tokens, exact.tokens, atol=2e-2 * jnp.abs(exact.tokens).max())


# --- probes, steering, autoencoders


def test_a_probe_finds_what_is_there_and_nothing_where_there_is_nothing():
    draw = np.random.default_rng(0)
    tokens, labels = draw.integers(0, 400, 2000), draw.integers(0, 3, 2000)
    noise = draw.standard_normal((2000, 16))
    told = noise + 4 * np.eye(3, 16)[labels]
    held = np.arange(2000) >= 1500
    blind, seeing = look.probe_layers([noise, told], labels, tokens, held)
    assert seeing.accuracy > 0.95 and seeing.selectivity > 0.5
    for figure in (blind.accuracy, blind.control, seeing.control):
        assert abs(figure - 1 / 3) < 0.08
    assert blind.held_out == 500 and abs(blind.commonest - 1 / 3) < 0.08
    control = look.control_labels(tokens, labels)
    assert all(len({*control[tokens == one]}) == 1 for one in range(20))
    by_kind = np.eye(400)[tokens]
    (memory,) = look.probe_layers([by_kind], look.control_labels(tokens, labels), tokens, held)
    (guess,) = look.probe_layers([by_kind], labels, tokens, held)
    assert abs(guess.accuracy - 1 / 3) < 0.1  # what is held out is not fitted to
    assert memory.accuracy > 0.9  # a probe can learn what means nothing: that is what control is
    with pytest.raises(ValueError, match="held out"):
        look.probe_layers([noise], labels, tokens, held & False)


def test_a_direction_says_in_its_file_what_it_does_where_and_does_it(tmp_path):
    params = weights(ROPE)
    found = look.mean_difference(ROPE, params, CLEAN, CORRUPTED[:, :6], layer=1, note="toy")
    streams = [forward(ROPE, CLEAN, ("stream",)).observed["stream"][1][:, -1]]
    streams += [
        model.forward(ROPE, params, CORRUPTED[:, :6], observe=("stream",)).observed["stream"]
    ]
    wanted = streams[0].mean(0) - streams[1][1][:, -1].mean(0)
    np.testing.assert_allclose(found.vector, wanted, rtol=1e-4, atol=1e-5)
    file = tmp_path / "direction.json"
    look.save_steering(file, dataclasses.replace(found, strength=3.0))
    said = json.loads(file.read_text())
    assert (said["operation"], said["point"], said["layer"]) == ("add", "stream", 1)
    back = look.open_steering(file)
    np.testing.assert_array_equal(back.vector, found.vector)
    stream = forward(ROPE, observe=("stream",), intervene=look.steer(ROPE, back)).observed["stream"]
    plain = forward(ROPE, observe=("stream",)).observed["stream"]
    np.testing.assert_allclose(
        stream[1] - plain[1], jnp.broadcast_to(3 * wanted, stream[1].shape), atol=1e-4
    )
    np.testing.assert_array_equal(stream[0], plain[0])
    with pytest.raises(ValueError, match="another model"):
        look.steer(dataclasses.replace(ROPE, width=64), back)
    file.write_text(json.dumps(said | {"operation": "multiply"}))
    with pytest.raises(ConfigError, match="multiply"):
        look.open_steering(file)
    file.write_text("[]")
    with pytest.raises(ConfigError, match="no steering direction"):
        look.open_steering(file)


def test_writing_without_an_edit_is_greedy_decoding_and_a_strong_push_changes_it():
    params, prompt = weights(ROPE), CLEAN[0, :5]
    plain = look.write_under(ROPE, params, prompt, None, 6)
    greedy = Sampling(np.zeros(1, np.float32), np.full(1, 64, np.int32), np.ones(1, np.float32))
    keys = jax.random.split(jax.random.key(0), 1)
    told = {"sampling": greedy, "new_tokens": 6}
    wanted = generate(ROPE, params, prompt[None], np.asarray([5]), keys, **told).ids[0]
    np.testing.assert_array_equal(plain, wanted)
    push = look.shift(ROPE, Site("stream", 1), 20 * jax.random.normal(jax.random.key(3), (32,)))
    pushed = jax.jit(lambda p: look.write_under(ROPE, p, prompt, push, 6))(params)
    assert (pushed != plain).any()
    with pytest.raises(ValueError, match="context"):
        look.write_under(ROPE, params, prompt, None, 28)


def test_an_autoencoder_finds_planted_directions_and_says_what_it_loses():
    draw = np.random.default_rng(0)
    directions = draw.standard_normal((24, 12))
    which = np.argsort(draw.random((3000, 24)), axis=1)[:, :2]
    sizes = np.zeros((3000, 24))
    np.put_along_axis(sizes, which, 1 + draw.random((3000, 2)), axis=1)
    x = jnp.asarray(sizes @ directions + 5, jnp.float32)
    settings = {"features": 48, "active": 2, "steps": 600, "peak": 1e-2}
    autoencoder, fitted = look.fit_autoencoder(x[:2500], **settings)
    figures = look.autoencoder_figures(autoencoder, x[2500:], 2)
    assert figures.explained > 0.9 and 0 <= figures.dead < 0.6, (figures, fitted.losses[::50])
    values, ids = encode_features(autoencoder, x[2500:], 2)
    assert values.min() >= 0 and float(figures.active) == pytest.approx(
        float((values > 0).sum(1).mean())
    )
    dead = 1 - len({*np.asarray(ids)[np.asarray(values) > 0].tolist()}) / 48
    assert float(figures.dead) == pytest.approx(dead, abs=1e-6)
    centre = x[2500:].mean(0)
    blank = autoencoder._replace(
        centre=centre / autoencoder.scale, threshold=jnp.full(48, -1e3)
    )  # gives the mean alone
    silent = look.autoencoder_figures(blank, x[2500:], 2)
    assert abs(silent.explained) < 1e-5 and silent.dead == 1 and silent.active == 0


def test_a_perfect_reconstruction_recovers_the_loss_and_the_mean_nothing_of_it():
    params, width = weights(ROPE), ROPE.width
    both = jnp.concatenate([jnp.eye(width), -jnp.eye(width)])
    perfect = Autoencoder(both.T, both, jnp.zeros(width), jnp.zeros(2 * width), jnp.ones(()))
    site, mean = Site("mlp_out", 1), jnp.linspace(-1, 1, width)
    found = look.loss_recovered(ROPE, params, CLEAN, perfect, site, width, mean)
    assert float(found["recovered"]) == pytest.approx(1, abs=1e-4)
    blank = perfect._replace(centre=mean, threshold=jnp.full(2 * width, -1e3))
    found = look.loss_recovered(ROPE, params, CLEAN, blank, site, width, mean)
    assert float(found["recovered"]) == pytest.approx(0, abs=1e-4)
    assert found["ablated"] != found["clean"]


@pytest.mark.slow
def test_an_induction_head_forms_when_the_loss_on_repeats_drops():
    file = Path(__file__).parents[1] / "benchmarks/induction.py"
    spec = importlib.util.spec_from_file_location("induction", file)
    induction = importlib.util.module_from_spec(spec)
    sys.modules["induction"] = induction  # dataclasses look their module up
    spec.loader.exec_module(induction)
    growth = induction.grow(induction.Toy(steps=1500))
    assert growth.scores["induction"][-1].max() >= 0.4
    assert growth.scores["induction"][0].max() < 0.1
    assert growth.repeats[-1] < 0.1 * growth.repeats[0]
    assert abs(growth.drop - growth.risen("induction")) <= 100
