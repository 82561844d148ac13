"""Conformance of attention: every implementation is the reference, forward and backward, and the
reference is the sum written out.

Read `CASES` (every pair of choices stands together in one of them), then `by_hand`, then the laws.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import model
from gptjax.data import Batch
from gptjax.losses import CrossEntropy
from gptjax.model import Layer, ModelConfig, cost, positions
from gptjax.model.attention import biases as distances
from gptjax.model.attention import causal_blocks as causal
from gptjax.model.attention import kernels
from gptjax.model.attention import layer as attention
from gptjax.model.attention import mask as mask_inputs
from gptjax.sharding.zigzag import Starts

PLAIN = ModelConfig(vocab_size=61, context=32, width=32, num_layers=2, num_heads=4)
B, T, N, H = 2, 16, 4, 8
PIECES = (5, 7, 4)
"""Lengths of the texts that share a row."""

LAYERS = {
    "all": Layer(),
    "window": Layer("window", 5),
    "window with sinks": Layer("window", 3, sinks=2),
    "chunk": Layer("chunk", 3),
    "strided": Layer("strided", 3),
    "fixed": Layer("fixed", 4, summary=2),
}
SEEN = LAYERS | {"chunk with sinks": Layer("chunk", 3, sinks=2)}
CHOICES = {
    "layer": LAYERS,
    "segmented": (False, True),
    "kv_heads": (4, 2, 1),
    "cap": (None, 1.5),
    "bias": ("none", "alibi", "t5"),
    "sink": (False, True),
}


class Case(NamedTuple):
    """One combination."""

    layer: str
    segmented: bool
    kv_heads: int
    cap: float | None
    bias: str
    sink: bool


def pairs(case: Case) -> set:
    return set(itertools.combinations(zip(CHOICES, case, strict=True), 2))


def covering() -> list[Case]:
    """Few cases in which every two choices meet: again and again the one that brings most new
    pairs."""
    every = [Case(*values) for values in itertools.product(*CHOICES.values())]
    missing, chosen = set().union(*map(pairs, every)), []
    while missing:
        chosen.append(max(every, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


CASES = covering()
AT_ONCE = [
    case if i < 3 else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(CASES)
]
"""The first ones bring most pairs; each is a compilation of three implementations, forward and
backward."""


def difference(found: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest value, of any leaf."""

    def one(a, b):
        return float(np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-30))

    return max(
        jax.tree.leaves(
            jax.tree.map(one, found, jax.tree.map(lambda x: np.asarray(x, np.float64), wanted))
        )
    )


class Given(NamedTuple):
    """What attention differentiates."""

    q: Any
    k: Any
    v: Any
    table: Any
    sink: Any


def given(
    case: Case, length: int = T, seed: int = 0
) -> tuple[Given, mask_inputs.MaskInputs, mask_inputs.ScoreConfig]:
    draw = np.random.default_rng(seed)
    q = draw.standard_normal((B, length, N, H))
    k, v = draw.standard_normal((2, B, length, case.kv_heads, H))
    table = {"none": None, "alibi": distances.alibi_slopes(N), "t5": draw.standard_normal((8, N))}[
        case.bias
    ]
    sink = draw.standard_normal(N) if case.sink else None
    where, piece = np.arange(length), np.ones(length)
    if case.segmented:
        lengths = [n * length // T for n in PIECES]
        where, piece = (
            np.concatenate([np.arange(n) for n in lengths]),
            np.repeat((1, 2, 3), lengths),
        )
    where, piece = (jnp.asarray(np.tile(x, (B, 1)), jnp.int32) for x in (where, piece))
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), Given(q, k, v, table, sink))
    whole = mask_inputs.MaskInputs(where, where, *((piece, piece) if case.segmented else ()))
    return (
        arrays,
        whole,
        mask_inputs.ScoreConfig(LAYERS[case.layer], cap=case.cap, bias=case.bias, farthest=10),
    )


def sees(layer: Layer, t: int, s: int) -> bool:
    """Whether the token at position t sees the one at s, in words of its own."""
    same = t // layer.span == s // layer.span if layer.span else True
    match layer.sees:
        case "window":
            near = s > t - layer.span or s in range(layer.sinks)
        case "chunk":
            near = same or s in range(layer.sinks)
        case "strided":
            near = s > t - layer.span or s in range(t, -1, -layer.span)
        case "fixed":
            near = same or s % layer.span in range(layer.span - layer.summary, layer.span)
        case _:
            near = True
    return 0 <= s <= t and near


def by_hand(case: Case, arrays: Given, whole: mask_inputs.MaskInputs) -> np.ndarray:
    """Softmax attention written out, one query at a time, in float64."""
    q, k, v, table, sink = (None if x is None else np.asarray(x, np.float64) for x in arrays)
    where, piece = (
        np.asarray(whole.queries),
        np.asarray(whole.query_segments if case.segmented else whole.queries * 0),
    )
    out, group = np.zeros(q.shape), N // case.kv_heads
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = [
            s
            for s in range(q.shape[1])
            if piece[b, s] == piece[b, t] and sees(LAYERS[case.layer], where[b, t], where[b, s])
        ]
        scores = k[b, seen, n // group] @ q[b, t, n] / math.sqrt(H)
        scores = scores if case.cap is None else case.cap * np.tanh(scores / case.cap)
        back = where[b, t] - where[b, seen]
        if case.bias == "alibi":
            scores -= back * table[n]
        if (
            case.bias == "t5"
        ):  # 8 buckets up to a distance of 10: 0, 1, 2, 3, then steps of ln(10/4)/4
            far = [4 + int(math.log(d / 4) / math.log(10 / 4) * 4) if d > 3 else d for d in back]
            scores += table[np.minimum(far, 7), n]
        chance = np.exp(scores)
        out[b, t, n] = (
            chance / (chance.sum() + (np.exp(sink[n]) if case.sink else 0)) @ v[b, seen, n // group]
        )
    return out


@pytest.mark.parametrize("name", SEEN)
def test_as_many_keys_are_counted_as_are_seen(name):
    layer, where = SEEN[name], jnp.arange(29)[None]
    visible = np.asarray(mask_inputs.visible(mask_inputs.MaskInputs(where, where), layer)[0])
    assert visible.tolist() == [[sees(layer, t, s) for s in range(29)] for t in range(29)]
    assert cost.seen(layer, 29) == pytest.approx(visible.sum(-1).mean())


HERE = ("reference", "causal_blocks", "blockwise")


def both_ways(implementation: str, arrays: Given, cotangent, whole, how, **told):
    """Output and gradients under a random cotangent."""
    out, back = jax.vjp(
        lambda a: attention.attend(
            a.q, a.k, a.v, whole, how, a.table, a.sink, implementation=implementation, **told
        ),
        arrays,
    )
    return out, back(cotangent)[0]


def test_every_two_choices_meet_in_a_case():
    every = set().union(*(pairs(Case(*values)) for values in itertools.product(*CHOICES.values())))
    assert set().union(*map(pairs, CASES)) == every and len(CASES) < 30


@pytest.mark.parametrize("case", AT_ONCE, ids=lambda case: " ".join(map(str, case)))
def test_every_implementation_is_the_reference_and_that_is_the_sum_by_hand(case, record_property):
    arrays, whole, how = given(case)
    cotangent = jnp.asarray(np.random.default_rng(9).standard_normal((B, T, N, H)), jnp.float32)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def all_ways(arrays, cotangent):
        return {name: both_ways(name, arrays, cotangent, whole, how) for name in HERE}

    found = jax.device_get(all_ways(arrays, cotangent))
    out, _ = found["reference"]
    assert difference(out, by_hand(case, arrays, whole)) <= 1e-5
    if case.bias == "alibi":  # slopes are constants: what would change them is nobody's
        found = {name: (out, grads._replace(table=None)) for name, (out, grads) in found.items()}
    for name in HERE[1:]:
        worst = difference(found[name], found["reference"])
        record_property(f"{name}_relative_error", worst)
        assert worst <= 1e-5, name


@pytest.mark.parametrize(
    "length", [17, *(pytest.param(length, marks=pytest.mark.slow) for length in (1, 3, 30))]
)
def test_blocks_that_do_not_divide_the_row_are_filled_up(length):
    case = Case("window", False, 2, None, "alibi", True)
    arrays, whole, how = given(case, length)
    cotangent = jnp.ones((B, length, N, H))
    wanted, found = (
        jax.jit(functools.partial(both_ways, name, whole=whole, how=how))(arrays, cotangent)
        for name in ("reference", "blockwise")
    )
    assert difference(found, wanted) <= 1e-5


def test_queries_that_are_a_part_of_the_tokens_see_all_keys_before_them():
    """As those of one device do where a mesh splits positions; they begin inside of a block."""
    arrays, whole, how = given(Case("window", False, 2, None, "none", False), 20)
    wanted = attention.attend(*arrays[:3], whole, how)
    for begin in (5, 10):
        part = slice(begin, begin + 10)
        found = attention.attend(
            arrays.q[:, part],
            *arrays[1:3],
            whole._replace(queries=whole.queries[:, part]),
            how,
            implementation="blockwise",
            starts=Starts(((begin,),)),
        )
        assert difference(found, wanted[:, part]) <= 1e-5


@pytest.mark.parametrize(
    "case",
    [Case("window", True, 2, 1.5, "none", False), Case("all", True, 4, None, "none", False)],
    ids=["window, groups", "all"],
)
def test_causal_blocks_of_a_few_heads_at_a_time_are_the_reference(case, monkeypatch):
    monkeypatch.setattr(
        causal, "IN_CACHE", 2 * N // case.kv_heads * T * T // causal.BLOCKS
    )  # two of all key heads
    arrays, whole, how = given(case)
    cotangent = jnp.asarray(np.random.default_rng(9).standard_normal((B, T, N, H)), jnp.float32)

    def run(name):
        return jax.jit(functools.partial(both_ways, name, whole=whole, how=how))

    assert "while" in run("causal_blocks").lower(arrays, cotangent).as_text()
    wanted, found = (run(name)(arrays, cotangent) for name in ("reference", "causal_blocks"))
    assert difference(found, wanted) <= 1e-5


@pytest.mark.parametrize("implementation", ["reference", "causal_blocks"])
def test_a_bfloat16_step_has_few_products_of_float32(implementation):
    """Scores and logits alone are given in float32, of bfloat16 operands; what comes back to them
    is rounded, so that gradients are bfloat16 products too."""
    config = dataclasses.replace(PLAIN, attention=implementation, compute="bfloat16")
    params = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    ints, floats = (jax.ShapeDtypeStruct((B, T), kind) for kind in (jnp.int32, jnp.float32))

    def total(params, batch):
        return CrossEntropy().build(config)(params, {}, batch, None)[0]

    text = str(jax.make_jaxpr(jax.grad(total))(params, Batch(ints, ints, floats, ints, ints)))
    products = [line.split("=")[0] for line in text.splitlines() if "dot_general[" in line]
    wide = [line for line in products if ":f32[" in line]
    scores = config.num_layers * (1 if implementation == "reference" else causal.BLOCKS)
    assert len(products) > 20 and len(wide) == scores + 1, wide


def test_blockwise_drops_the_same_weights_in_both_passes():
    """The output is linear in the values, so their gradient must be the output's own weights,
    dropout included."""
    arrays, whole, how = given(Case("all", True, 2, None, "none", False))
    told = {"rate": 0.4, "key": jax.random.key(3)}
    attend = jax.jit(
        lambda a: attention.attend(a.q, a.k, a.v, whole, how, implementation="blockwise", **told)
    )
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((B, T, N, H)), jnp.float32)
    _, grads = jax.jit(functools.partial(both_ways, "blockwise", whole=whole, how=how, **told))(
        arrays, cotangent
    )
    assert float((grads.v * arrays.v).sum()) == pytest.approx(
        float((attend(arrays) * cotangent).sum()), rel=1e-4
    )
    direction = jnp.asarray(np.random.default_rng(2).standard_normal(arrays.q.shape), jnp.float32)
    ahead, behind = (
        attend(arrays._replace(q=arrays.q + step * direction)) for step in (1e-2, -1e-2)
    )
    slope = float(((ahead - behind) / 2e-2 * cotangent).sum())
    assert slope == pytest.approx(float((grads.q * direction).sum()), rel=2e-2)


@pytest.mark.slow
def test_blockwise_dropout_keeps_the_expectation():
    arrays, whole, how = given(Case("all", False, 4, None, "none", False))

    def attend(key):
        return attention.attend(
            arrays.q, arrays.k, arrays.v, whole, how, implementation="blockwise", rate=0.5, key=key
        )

    mean = jnp.mean(jax.vmap(attend)(jax.random.split(jax.random.key(0), 2000)), axis=0)
    plain = attention.attend(arrays.q, arrays.k, arrays.v, whole, how)
    assert float(jnp.abs(mean - plain).max()) < 0.15


# --- cost ---


def temporary_bytes(implementation: str, length: int) -> int:
    """Memory of one gradient of a small model's loss besides its arguments, as compiled. Nothing
    runs."""
    config = dataclasses.replace(PLAIN, attention=implementation, context=length, positions="rope")
    params = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    ints, floats = (jax.ShapeDtypeStruct((1, length), kind) for kind in (jnp.int32, jnp.float32))
    batch = Batch(ints, ints, floats, ints, ints)

    def total(params, batch):
        return CrossEntropy().build(config)(params, {}, batch, None)[0]

    return (
        jax.jit(jax.grad(total)).lower(params, batch).compile().memory_analysis().temp_size_in_bytes
    )


@pytest.mark.slow
def test_blockwise_trains_8192_tokens_in_a_quarter_of_the_references_memory(record_property):
    reference, ours, half = (
        temporary_bytes("reference", 8192),
        temporary_bytes("blockwise", 8192),
        temporary_bytes("blockwise", 4096),
    )
    record_property("reference_bytes", reference)
    record_property("blockwise_bytes", ours)
    assert ours <= 0.25 * reference
    assert ours <= 2.2 * half, "its memory grows faster than the row"


# --- other people's kernels ---


@pytest.mark.slow
def test_splash_is_the_reference():
    """Pallas' interpreter computes on a CPU what the TPU would."""
    for case in (
        Case("all", True, 2, 1.5, "none", True),
        Case("window", False, 4, None, "none", False),
    ):
        arrays, whole, how = given(case, 128)
        out, back = jax.vjp(
            lambda a, whole=whole, how=how: kernels.splash(
                a.q, a.k, a.v, whole, how, a.sink, interpret=True
            ),
            arrays,
        )
        wanted, grads = both_ways("reference", arrays, jnp.cos(out), whole, how)
        assert difference(out, wanted) <= 1e-5
        assert difference(back(jnp.cos(out))[0], grads) <= 1e-5, case


@pytest.mark.parametrize(
    "case", [Case("window", True, 2, None, "none", False)], ids=lambda case: case.layer
)
def test_the_call_of_cudnn_is_the_reference(case):
    """The same call with XLA in cuDNN's place."""
    arrays, whole, how = given(case)
    found = kernels.cudnn(arrays.q, arrays.k, arrays.v, whole, how, implementation="xla")
    assert difference(found, attention.attend(arrays.q, arrays.k, arrays.v, whole, how)) <= 1e-5


@pytest.mark.parametrize("backward", [False, True])
def test_a_model_with_splash_lowers_for_tpu(backward):
    changes = {
        "context": 256,
        "head_width": 64,
        "num_kv_heads": 2,
        "attention_cap": 20.0,
        "pattern": (Layer("window", 100), Layer()),
    }
    config = dataclasses.replace(PLAIN, attention="splash", **changes)
    params = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    ints = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def total(params, tokens, segments):
        return model.forward(config, params, tokens, segments=segments).hidden.sum()

    lowered = (
        jax.jit(jax.grad(total) if backward else total)
        .trace(params, ints, ints)
        .lower(lowering_platforms=("tpu",))
        .as_text()
    )
    kernels_per_layer = 3 if backward else 1
    assert lowered.count("tpu_custom_call") == config.num_layers * kernels_per_layer


# --- the dispatcher ---


def test_attention_says_why_it_was_chosen():
    chosen = {
        (256, False, "cpu"): "causal_blocks",
        (257, False, "cpu"): "reference",
        (16, False, "cpu"): "reference",
        (1, True, "cpu"): "reference",
        (8192, True, "cpu"): "reference",
        (8192, False, "cpu"): "blockwise",
        (256, False, "gpu"): "cudnn",
        (255, False, "gpu"): "reference",
        (8191, False, "gpu"): "blockwise",
        (256, False, "tpu"): "reference",
    }
    for (length, cached, backend), wanted in chosen.items():
        kind, reason = attention.select_attention(
            dataclasses.replace(PLAIN, compute="bfloat16"), length, cached=cached, backend=backend
        )
        assert kind == wanted and reason
    assert attention.select_attention(PLAIN, 256, backend="gpu")[0] == "reference", (
        "cuDNN has no float32"
    )


def test_a_single_tpu_takes_splash(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert attention.select_attention(PLAIN, 256, backend="tpu")[0] == "splash"
    assert attention.select_attention(PLAIN, 250, backend="tpu")[0] == "reference"


BFLOAT16 = dataclasses.replace(PLAIN, compute="bfloat16")
REFUSED = {
    "causal_blocks, rows that do not divide": (PLAIN, "causal_blocks", 18, Layer(), "18 queries"),
    "splash, rows that do not divide": (PLAIN, "splash", 200, Layer(), "multiple of 128"),
    "splash, chunks": (PLAIN, "splash", 256, Layer("chunk", 64), "'chunk'"),
    "splash, sinks": (PLAIN, "splash", 256, Layer("window", 64, sinks=4), "sinks"),
    "splash, alibi": (PLAIN, "splash", 256, Layer(positions="alibi"), "biases"),
    "splash, t5": (dataclasses.replace(PLAIN, positions="t5"), "splash", 256, Layer(), "biases"),
    "splash, dropout": (
        dataclasses.replace(PLAIN, attention_dropout=0.1),
        "splash",
        256,
        Layer(),
        "dropout",
    ),
    "cudnn, float32": (PLAIN, "cudnn", 256, Layer(), "float32"),
    "cudnn, heads": (
        dataclasses.replace(BFLOAT16, head_width=12),
        "cudnn",
        256,
        Layer(),
        "heads of 12",
    ),
    "cudnn, odd rows": (BFLOAT16, "cudnn", 255, Layer(), "255 queries"),
    "cudnn, strided": (BFLOAT16, "cudnn", 256, Layer("strided", 16), "'strided'"),
    "cudnn, cap": (
        dataclasses.replace(BFLOAT16, attention_cap=30.0),
        "cudnn",
        256,
        Layer(),
        "caps",
    ),
    "cudnn, learned sinks": (
        dataclasses.replace(BFLOAT16, attention_sink=True),
        "cudnn",
        256,
        Layer(),
        "sinks",
    ),
    "cudnn, dropout": (
        dataclasses.replace(BFLOAT16, attention_dropout=0.1),
        "cudnn",
        256,
        Layer(),
        "dropout",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_implementation_that_cannot_serve_a_case_says_so(name):
    config, implementation, length, layer, word = REFUSED[name]
    with pytest.raises(ValueError, match=rf"can't serve .*{word}.*--model\.attention auto"):
        attention.select_attention(
            dataclasses.replace(config, attention=implementation), length, layer
        )


@pytest.mark.parametrize(("implementation", "home"), [("splash", "tpu"), ("cudnn", "gpu")])
def test_a_kernel_is_refused_on_another_backend(implementation, home):
    config = dataclasses.replace(BFLOAT16, attention=implementation)
    with pytest.raises(ValueError, match=f"cpu, only {home}"):
        attention.select_attention(config, 256, backend="cpu")
    assert attention.select_attention(config, 256, backend=home)[0] == implementation


@pytest.mark.parametrize("name", ["causal_blocks", "blockwise", "splash"])
def test_a_model_that_names_its_attention_begins_and_decodes(name):
    config, one = (
        dataclasses.replace(PLAIN, attention=name),
        jax.ShapeDtypeStruct((1, 1), jnp.int32),
    )
    params = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    cache = jax.eval_shape(lambda: model.empty_cache(config, 1, T))

    def read(params, tokens, positions, cache):
        return model.forward(config, params, tokens, positions=positions, cache=cache)

    assert jax.eval_shape(read, params, one, one, cache).hidden.shape == (1, 1, config.width)


def test_halves_of_a_head_change_places_as_a_product_or_apart():
    """The form of rotations that TPUs compute is the other one, bit for bit."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    for kind in (jnp.float32, jnp.bfloat16):
        first, second = jnp.split(x.astype(kind).astype(jnp.float32), 2, axis=-1)
        np.testing.assert_array_equal(
            positions.swapped(x.astype(kind)), jnp.concatenate([-second, first], axis=-1)
        )


def test_rotations_of_a_tpu_are_those_of_other_machines(monkeypatch):
    x, angles = (
        jax.random.normal(jax.random.key(1), (2, 5, 3, 8)),
        positions.turns(jnp.arange(5)[None], 6, 1e4),
    )
    here = positions.rotate(x, angles)
    monkeypatch.setattr(positions, "platform", lambda: "tpu")
    np.testing.assert_allclose(positions.rotate(x, angles), here, rtol=1e-6, atol=1e-7)


def test_slopes_and_buckets_are_those_of_their_papers():
    """ALiBi's for 12 heads are those of 8 and every second one of 16's; a T5 bucket begins where
    the distances of those before it end."""
    eight, sixteen = ([2 ** (-8 * (i + 1) / n) for i in range(n)] for n in (8, 16))
    np.testing.assert_allclose(distances.alibi_slopes(12), [*eight, *sixteen[0:8:2]], rtol=1e-6)
    np.testing.assert_allclose(distances.alibi_slopes(8), eight, rtol=1e-6)
    buckets, farthest = 32, 128
    begins = [*range(16), *(math.ceil(16 * 8 ** (i / 16) - 1e-9) for i in range(16))]
    far = np.arange(-3, 200)
    wanted = [max(n for n, begin in enumerate(begins) if begin <= max(d, 0)) for d in far]
    found = distances.distance_bucket(jnp.asarray(far)[None, None], buckets, farthest)[0, 0]
    np.testing.assert_array_equal(found, wanted)
