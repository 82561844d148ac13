"""Smaller models: narrow weights, zeros, parts taken out; each is what its formula says, and the
files and runs that follow keep it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quantised_files import TINY, tiny
from variants import VARIANTS

import gptjax
from gptjax import compress, formats, model, weights
from gptjax.cli.main import main
from gptjax.compress.awq import scaled_for_rounding
from gptjax.compress.gptq import gptq
from gptjax.core.config import ConfigError
from gptjax.data import Bytes
from gptjax.data.layouts import Batch
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.data.tokenizers.spelling import Special
from gptjax.losses import CrossEntropy, Distillation, QuantisationAware
from gptjax.train.optim import AdamW, Lion, Muon, build_optimizer
from gptjax.train.sparse import Prune
from gptjax.weights import LoRA, dense
from gptjax.weights.kernels import kernels_of, leaves_of
from gptjax.weights.rounding import GGUF_GRIDS, Rounding, rounded, straight_through
from gptjax.weights.weight import MATRIX

GRIDS = {
    "int8": Rounding("int8", None),
    "int4": Rounding("int4", 16),
    "int4 zero": Rounding("int4", 16, "zero", scale="float16"),
    "int4 minimum": Rounding("int4", 16, "minimum", scale="float16"),
    "int4 as qwix": Rounding("int4", 16, convention="qwix"),
    "int3": Rounding("int3", 16),
    "int2": Rounding("int2", 16),
    "nf4": Rounding("nf4", 16),
    **GGUF_GRIDS,
}
KERNEL = jnp.asarray(np.random.default_rng(0).normal(size=(64, 24)), jnp.float32)


def drawn(name: str, seed: int = 0):
    config = VARIANTS[name]
    return config, model.init(config, jax.random.key(seed))


def ids(config, rows: int = 4, length: int = 16, seed: int = 1) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.integers(0, config.vocab_size, (rows, length)).astype(np.int32)


# --- grids ---


@pytest.mark.parametrize("name", GRIDS)
def test_rounding_is_near_twice_the_same_and_straight_through_is_equal(name):
    grid = GRIDS[name]
    narrow = rounded(grid, KERNEL, MATRIX)
    numbers = np.asarray(dense(narrow))
    scales = np.asarray(weights.weight.per_block(narrow.scales, narrow.shape))
    step = np.abs(scales) * (0.16 if grid.kind == "nf4" else 0.5)
    step = step + 2e-3 * np.abs(KERNEL)  # scales of 16 bits
    if grid.convention == "gguf":  # the largest of the other sign is cut
        step = step * 2.1
    assert (np.abs(numbers - KERNEL) <= step + 1e-6).all()
    again = rounded(grid, jnp.asarray(numbers), MATRIX)
    if grid.convention != "qwix":  # whose largest number is half a step inside its range
        np.testing.assert_allclose(dense(again), numbers, rtol=2e-3, atol=2e-3)
    through, pull = jax.vjp(lambda w: straight_through(grid, w, MATRIX), jnp.asarray(KERNEL))
    np.testing.assert_array_equal(through, numbers)
    np.testing.assert_array_equal(pull(jnp.ones_like(through))[0], 1.0)


def test_the_grid_of_int8_is_that_of_quantize():
    one, other = rounded(GRIDS["int8"], KERNEL, MATRIX), weights.quantize(KERNEL, "int8")
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", GGUF_GRIDS)
def test_ggufs_grids_are_those_of_its_own_quantisers_bit_for_bit(name):
    draw = np.random.default_rng(3)
    rows = draw.normal(size=(256, 512)).astype(np.float32) * draw.lognormal(size=(256, 1))
    rows[0] = 0.0
    rows = rows.astype(np.float32)
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    wanted = gguf.dequantize(gguf.quantize(rows, kind), kind)
    found = dense(rounded(GGUF_GRIDS[name], jnp.asarray(rows.T), MATRIX))
    np.testing.assert_array_equal(np.asarray(found).T, wanted)


@pytest.mark.parametrize("name", ["gqa", "experts_by_group", "deepseek", "delta", "gpt2"])
def test_every_kind_of_layer_is_rounded_and_runs(name):
    """Kernels are narrow, routers and norms are not, and what runs are the very numbers."""
    config, params = drawn(name)
    how = compress.Quantising(Rounding("int4", 16), outer="same")
    narrow = compress.quantise_weights(config, params, how)
    roles = model.roles(config)
    paths = {path for path, _, _ in kernels_of(params, roles, ("*layers",))}
    found = dict(leaves_of(narrow))
    assert all(isinstance(found[path], weights.Quantized) for path in paths)
    assert not any(isinstance(found[p], weights.Quantized) for p in found if "router" in p)
    wide = jax.tree.map(dense, narrow, is_leaf=lambda leaf: not isinstance(leaf, dict))
    tokens = ids(config)
    one, other = (model.forward(config, tree, tokens).hidden for tree in (narrow, wide))
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_four_bits_take_less_than_a_fifth_of_the_memory():
    config = model.llama(
        "7b",
        num_layers=2,
        vocab_size=256,
        width=128,
        num_heads=4,
        num_kv_heads=None,
        feed_forward=256,
        tied=True,
    )
    narrow = compress.quantise_weights(
        config, model.init(config, jax.random.key(0)), compress.Quantising()
    )
    assert compress.bits_per_weight(narrow) <= 32 / 5
    values = narrow["layers"]["mlp"]["up"]["kernel"].values
    assert values.dtype.name == "int4"
    if jax.__version_info__ >= (0, 12):  # jax 0.10 stores half a byte too, but reports a whole one
        assert values.on_device_size_in_bytes() <= values.size // 2 + 64


# --- calibration ---


def test_moments_are_the_products_of_the_inputs_with_themselves():
    config, params = drawn("gqa")
    tokens = ids(config, 6)
    found = compress.input_moments(config, params, tokens)
    seen = model.forward(config, params, tokens, observe=("attention", "mlp")).observed
    for name, path in (("attention", "attention/out"), ("mlp", "mlp/down")):
        x = np.asarray(seen[name]).reshape(config.num_layers, tokens.size, -1)
        wanted = np.einsum("lti,ltj->lij", x, x)
        np.testing.assert_allclose(found[f"layers/{path}/kernel"], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["layers/mlp/up/kernel"], found["layers/mlp/gate/kernel"])


def test_each_expert_has_the_moments_of_its_own_tokens():
    config, params = drawn("experts_by_group")
    found = compress.input_moments(config, params, ids(config))
    own = found["layers/moe/experts/up/kernel"]
    assert own.shape[1] == config.experts.count
    shared = found["layers/moe/shared/up/kernel"]  # reads every token once
    np.testing.assert_allclose(own.sum(1), config.experts.active * shared, rtol=1e-4, atol=1e-4)


def independent_gptq(grid, weight, moments, damping):
    """Optimal brain surgery, one input after the other, with the inverse of what is left."""
    weight = np.array(weight, np.float64)
    moments = moments + damping * np.diag(moments).mean() * np.eye(len(moments))
    numbers, steps = np.zeros_like(weight), None
    for i in range(len(weight)):
        if i % grid.group == 0:
            block = weight[i : i + grid.group]
            steps = np.maximum(np.abs(block).max(0), 1e-30) / 7
        numbers[i] = np.clip(np.round(weight[i] / steps), -7, 7) * steps
        inverse = np.linalg.inv(moments[i:, i:])
        error = (weight[i] - numbers[i]) / inverse[0, 0]
        weight[i:] -= inverse[:, :1] * error
    return numbers


def test_gptq_is_optimal_brain_surgery_and_better_than_the_nearest():
    draw = np.random.default_rng(5)
    x = draw.normal(size=(200, 64)) @ draw.normal(size=(64, 64))
    moments = x.T @ x
    grid = Rounding("int4", 16)
    narrow = gptq(grid, KERNEL, MATRIX, jnp.asarray(moments, jnp.float32))
    wanted = independent_gptq(grid, KERNEL, moments.astype(np.float32), 0.01)
    numbers = np.asarray(dense(narrow))
    assert (np.abs(numbers - wanted) > 1e-4).mean() < 0.01  # but for ties

    def lost(numbers):
        return np.square(x @ (numbers - KERNEL)).sum()

    assert lost(numbers) < 0.6 * lost(np.asarray(dense(rounded(grid, KERNEL, MATRIX))))


@pytest.mark.parametrize("name", ["gqa", "gpt2", "qkv_bias", "experts"])
def test_scaling_for_rounding_changes_nothing_but_rounding(name):
    config, params = drawn(name)
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)  # no bias is 0
    params["layers"]["attention_norm"]["scale"] *= jnp.exp(
        jax.random.normal(jax.random.key(1), (config.num_layers, config.width))
    )
    tokens, grid = ids(config), Rounding("int4", 16)
    moments = compress.input_moments(config, params, tokens)
    scaled = scaled_for_rounding(config, params, model.roles(config), grid, moments)
    changed = scaled["layers"]["attention"]["query"]["kernel"]
    assert not np.allclose(changed, params["layers"]["attention"]["query"]["kernel"])
    one, other = (model.forward(config, tree, tokens).hidden for tree in (params, scaled))
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_calibrated_rounding_without_text_is_refused():
    config, params = drawn("gqa")
    with pytest.raises(ConfigError, match="--calibrate FILE"):
        compress.quantise_weights(config, params, compress.Quantising(method="gptq"))


# --- zeros ---


def test_wanda_leaves_out_of_each_output_the_inputs_that_matter_least():
    config, params = drawn("gqa")
    moments = compress.input_moments(config, params, ids(config))
    how = compress.Pruning(0.5, None, "wanda")
    pruned = compress.prune_weights(config, params, how, moments)
    path = "layers/mlp/down/kernel"
    kernel = np.asarray(dict(leaves_of(params))[path])
    norms = np.sqrt(np.diagonal(np.asarray(moments[path]), axis1=1, axis2=2))
    scores = np.abs(kernel) * norms[..., None]
    gone = np.zeros(kernel.shape, bool)
    for layer in range(len(kernel)):
        for output in range(kernel.shape[2]):
            worst = np.argsort(scores[layer, :, output])[: kernel.shape[1] // 2]
            gone[layer, worst, output] = True
    found = np.asarray(dict(leaves_of(pruned))[path])
    np.testing.assert_array_equal(found, np.where(gone, 0, kernel))


def test_of_a_pattern_each_group_keeps_its_largest():
    config, params = drawn("gqa")
    pruned = compress.prune_weights(config, params, compress.Pruning(pattern="2:4"))
    kernel = np.asarray(pruned["layers"]["mlp"]["up"]["kernel"])
    groups = kernel.reshape(len(kernel), -1, 4, kernel.shape[-1])
    assert ((groups != 0).sum(2) == 2).all()
    whole = np.abs(np.asarray(params["layers"]["mlp"]["up"]["kernel"]).reshape(groups.shape))
    assert (
        np.where(groups != 0, whole, np.inf).min(2) >= np.where(groups == 0, whole, 0).max(2)
    ).all()
    with pytest.raises(ConfigError, match="N:M"):
        compress.Pruning(pattern="4:2")


@pytest.mark.parametrize("kind", [AdamW(), Lion(), Muon()], ids=lambda kind: type(kind).__name__)
def test_zeros_stay_zero_under_every_optimizer_while_all_else_trains(kind):
    config, params = drawn("gqa")
    pruned = compress.prune_weights(config, params, compress.Pruning(0.5))
    pruned["layers"]["mlp"]["gate"]["kernel"] *= 0.0  # a kernel that begins as nothing trains
    roles = model.roles(config)
    optimizer = build_optimizer(kind, optax.constant_schedule(1e-2), roles, Prune(keep_zeros=True))
    state, now = optimizer.init(pruned), pruned
    for number in range(3):
        grads = jax.tree.map(lambda leaf, n=number: jnp.cos(leaf + n), now)
        updates, state = optimizer.update(grads, state, now, step=jnp.int32(number))
        now = optax.apply_updates(now, updates)
    for name in ("up", "down"):
        old, new = (np.asarray(tree["layers"]["mlp"][name]["kernel"]) for tree in (pruned, now))
        np.testing.assert_array_equal(old == 0, new == 0)
        assert (old != new)[old != 0].mean() > 0.99
    assert (now["layers"]["mlp"]["gate"]["kernel"] != 0).all()


@pytest.mark.parametrize(
    "told", [Prune(0.5, begin=1, end=5, every=2), Prune(pattern="2:4", begin=2)]
)
def test_weights_become_zero_when_it_is_time_and_stay_so(told):
    config, now = drawn("gqa")
    optimizer = build_optimizer(AdamW(), optax.constant_schedule(1e-2), model.roles(config), told)
    state, shares = optimizer.init(now), []
    for number in range(8):
        grads = jax.tree.map(lambda leaf, n=number: jnp.cos(leaf + n), now)
        updates, state = optimizer.update(grads, state, now, step=jnp.int32(number))
        now = optax.apply_updates(now, updates)
        shares.append(float((now["layers"]["mlp"]["up"]["kernel"] == 0).mean()))
    assert shares[0] == 0 and sorted(shares) == shares
    assert shares[-1] == pytest.approx(0.5, abs=1e-3) and shares[5] == shares[-1]


# --- parts taken out ---


def test_parts_that_write_nothing_are_taken_out_and_the_model_stays_the_same():
    config, params = drawn("gqa")
    config = dataclasses.replace(config, num_layers=3)
    params = model.init(config, jax.random.key(0))
    layers = params["layers"]
    kernel = layers["attention"]["out"]["kernel"]
    layers["attention"]["out"]["kernel"] = kernel.at[:, :2].set(0.0)  # of the first kv head
    layers["mlp"]["down"]["kernel"] = layers["mlp"]["down"]["kernel"].at[:, ::2].set(0.0)
    for part, name in (("attention", "out"), ("mlp", "down")):
        layers[part][name]["kernel"] = layers[part][name]["kernel"].at[1].set(0.0)
    tokens = ids(config)
    moments = compress.input_moments(config, params, tokens)
    how = compress.Smaller(layers=2, kv_heads=1, columns=config.mlp_dim // 2)
    small, left = compress.take_out(config, params, how, tokens, moments)
    assert (small.num_layers, small.num_heads, small.kv_heads) == (2, 2, 1)
    jax.tree.map(lambda leaf, shape: leaf.shape == shape.shape or 1 / 0, left, model.shapes(small))
    one = model.forward(config, params, tokens).hidden
    other = model.forward(small, left, tokens).hidden
    np.testing.assert_allclose(one, other, atol=1e-5)
    sloped = dataclasses.replace(config, positions="alibi")  # a head's slope is its place
    with pytest.raises(ConfigError, match="biases by distance"):
        compress.take_out(sloped, params, compress.Smaller(kv_heads=1), tokens, moments)
    with pytest.raises(ConfigError, match="keep from 1 to 3"):
        compress.take_out(config, params, compress.Smaller(layers=4), tokens, moments)


def joining(pairs: list[tuple[str, str]]) -> tok.Tokenizer:
    """A tokenizer of bytes that joins pairs, with a control token after them."""
    single = [chr(i) for i in range(33, 127)] + ["Ġ"]
    ids = {piece: i for i, piece in enumerate([*single, *map("".join, pairs)])}
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "use_regex": False,
        "trim_offsets": True,
    }
    end = {"id": len(ids), "content": "<end>", "special": True}
    described = {
        "version": "1.0",
        "added_tokens": [
            end | dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        ],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": ids, "merges": [list(pair) for pair in pairs]},
    }
    special = Special(eos=len(ids))
    return tok.published("tokenizer.json", json.dumps(described).encode(), special)


def test_a_vocabulary_cut_to_a_text_reads_it_as_before():
    pairs = [("t", "h"), ("th", "e"), ("the", "n"), ("x", "y"), ("xy", "z"), ("Ġ", "the")]
    tokenizer = joining(pairs)
    config = dataclasses.replace(TINY, vocab_size=tokenizer.vocab_size)
    opened = tiny(config, tokenizer)
    last = tokenizer.vocab_size - 1
    told = {"eos_token_id": [last], "suppress_tokens": [last, last - 2], "max_new_tokens": 9}
    opened = opened._replace(
        params=jax.tree.map(jnp.asarray, opened.params),
        about=dataclasses.replace(opened.about, generation=told),
    )
    text = "then the the end then"
    small = compress.trim_vocabulary(opened, [text])
    assert small.config.vocab_size == tokenizer.vocab_size - 2  # xy, xyz
    old, new = (np.asarray(one.tokenizer.encode(text)) for one in (opened, small))
    assert [opened.tokenizer.pieces[i] for i in old] == [small.tokenizer.pieces[i] for i in new]
    one, other = (
        model.forward(each.config, each.params, tokens[None]).hidden
        for each, tokens in ((opened, old), (small, new))
    )
    np.testing.assert_array_equal(one, other)
    logits = model.unembed(small.config, small.params, other)
    assert logits.shape[-1] == small.config.vocab_size
    last = small.config.vocab_size - 1
    assert small.tokenizer.end_of_document == last
    told = {"eos_token_id": [last], "suppress_tokens": [last], "max_new_tokens": 9}
    assert small.about.generation == told
    assert small.tokenizer.decode(small.tokenizer.encode("xyz")) == "xyz"  # by single letters


# --- training on a grid ---


def batch_of(config) -> Batch:
    tokens = ids(config, 4, 17)
    ones = jnp.ones((4, 16), jnp.float32)
    return Batch(
        tokens=jnp.asarray(tokens[:, :-1]), targets=jnp.asarray(tokens[:, 1:]), weights=ones
    )


@pytest.mark.parametrize("name", ["int4", "int3", "q4_0", "nf4"])
def test_training_on_a_grid_reads_what_rounding_writes(name):
    config, params = drawn("gqa")
    loss = QuantisationAware(GRIDS[name]).build(config)
    narrow = compress.quantise_weights(
        config, params, compress.Quantising(GRIDS[name], outer="float")
    )
    wide = jax.tree.map(dense, narrow, is_leaf=lambda leaf: not isinstance(leaf, dict))
    batch = batch_of(config)
    plain = CrossEntropy().build(config)
    assert float(loss(params, {}, batch, None)[0]) == float(plain(wide, {}, batch, None)[0])
    held = loss.held_out(())
    assert float(held(params, {}, batch, None)[0]) == float(plain(wide, {}, batch, None)[0])
    on_grid = jax.grad(lambda p: loss(p, {}, batch, None)[0])(params)
    wanted = jax.grad(lambda p: plain(p, {}, batch, None)[0])(wide)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), on_grid, wanted)


def test_a_grid_composes_with_adapters_and_distillation():
    config, params = drawn("gqa")
    adapters = LoRA(rank=2).init(params, model.roles(config), jax.random.key(3))
    adapters = jax.tree.map(lambda leaf: leaf + 0.02, adapters)
    inner = Distillation("teacher", share=0.5)
    loss = QuantisationAware(Rounding("int3", 16), inner=inner).build(config, teacher=config)
    frozen, batch = {"teacher": params}, batch_of(config)
    narrow = compress.quantise_weights(
        config, params, compress.Quantising(Rounding("int3", 16), outer="float")
    )
    plain = inner.build(config, teacher=config)
    one = loss(weights.attach(params, adapters), frozen, batch, None)[0]
    wide = jax.tree.map(dense, narrow, is_leaf=lambda leaf: not isinstance(leaf, dict))
    other = plain(weights.attach(wide, adapters), frozen, batch, None)[0]
    assert float(one) == float(other)


# --- files ---

TEXT = "the harbour was quiet in the early morning, and nobody answered. " * 80


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A small model of bytes in a Hugging Face directory, and a text beside it."""
    folder = tmp_path_factory.mktemp("small")
    opened = tiny(TINY, tok.train_tokenizer(Bytes(), []))
    formats.save_model(folder / "model", opened)
    (folder / "text.txt").write_text(TEXT)
    return folder


WAYS = {
    "int4": ["--quantise", "int4", "--group", "16"],
    "gptq": ["--quantise", "int4", "--calibrate", "text.txt", "--outer", "same"],
    "both": ["--quantise", "int4", "--calibrate", "text.txt", "--method", "awq+gptq"],
    "asymmetric": ["--quantise", "int4", "--asymmetric"],
    "int8 by column": ["--quantise", "int8", "--group", "None"],
    "nf4": ["--quantise", "nf4", "--outer", "same"],
}
GGUF_WAYS = {
    "gguf int4": ["--quantise", "int4", "--calibrate", "text.txt"],
    "gguf asymmetric": ["--quantise", "int4", "--asymmetric"],
    "gguf int8": ["--quantise", "int8"],
}


@pytest.mark.parametrize("name", [*WAYS, *GGUF_WAYS])
def test_convert_writes_what_was_rounded_and_opens_it_narrow(
    name, source, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(source)
    flags = {**WAYS, **GGUF_WAYS}[name]
    out = tmp_path / ("out.gguf" if name in GGUF_WAYS else "out")
    more = ["--held-out", "text.txt", "--calibrate-rows", "4", "--held-out-rows", "4"]
    assert main(["convert", "model", str(out), *flags, *more]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "a change of" in said and "bits per weight" in said and "files:" in said
    assert "largest difference of a logit: 0.00e+00" in said
    kept, plain = formats.load_model(out, packed=True), formats.load_model(out)
    narrow = {path: leaf for path, leaf in leaves_of(kept.params) if not hasattr(leaf, "astype")}
    roles = model.roles(kept.config)
    wanted = {path for path, _, _ in kernels_of(kept.params, roles, ("*layers", "head"))}
    assert {*narrow} == wanted | {"embedding/embedding"}
    wide = dict(leaves_of(plain.params))
    for path, leaf in narrow.items():
        np.testing.assert_array_equal(dense(leaf), wide[path], err_msg=path)
    assert main(["sample", str(out), "--packed", "--prompt", "the", "--new-tokens", "4"]) == 0


def test_convert_prunes_and_takes_out(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(source)
    flags = ["--calibrate", "text.txt", "--calibrate-rows", "4", "--held-out", "text.txt"]
    out = str(tmp_path / "sparse")
    assert main(["convert", "model", out, "--prune-pattern", "2:4", *flags]) == 0
    assert "zeros: 50.0%" in capsys.readouterr().out
    layers = formats.load_model("model").config.num_layers
    out = str(tmp_path / "short")
    assert (
        main(["convert", "model", out, "--keep-layers", "1", "--keep-columns", "32", *flags]) == 0
    )
    small = gptjax.load(out)
    assert small.config.num_layers == 1 < layers and small.config.mlp_dim == 32
    for flags, said in (
        (["--keep-layers", "1"], "--calibrate FILE"),
        (["--method", "gptq"], "--method changes nothing by itself"),
        (["--held-out", "text.txt"], "--held-out changes nothing by itself"),
        (["--prune", "0.3", "--prune-pattern", "2:4"], "omit one"),
        (["--prune-pattern", "2:7"], "that 7 divides, and a kernel has 96.\n"),
        (["--prune", "0.3", "--held-out", "nothing.txt"], "nothing.txt is no file"),
        (["--trim-vocabulary", "nothing.txt"], "nothing.txt is no file"),
        (["--prune", "0.3", "--held-out", "text.txt", "--held-out-rows", "0"], "at least 1"),
        (
            ["--keep-columns", "8", "--calibrate", "text.txt", "--targets", "layers/mlp"],
            "--targets changes nothing",
        ),
    ):
        assert main(["convert", "model", str(tmp_path / "no"), *flags]) == 2, flags
        assert said in capsys.readouterr().err, flags


def test_a_figure_of_a_narrow_model_needs_no_widening(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(source)
    assert main(["convert", "model", str(tmp_path / "q"), "--quantise", "int8"]) == 0
    capsys.readouterr()
    ask = ["--data.source.path", "text.txt", "--rows", "4", "--json"]
    losses = []
    for flags in ([], ["--packed"]):
        assert main(["evaluate", str(tmp_path / "q"), *ask, *flags]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
