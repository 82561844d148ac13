"""Proofs about the forward pass: which token sees which, what the loss is, and that the gradient is
its slope. (Setting) → Figure or Skipped."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.trees import paths
from gptjax.data import batches
from gptjax.model.attention.layer import attend, select_attention
from gptjax.model.attention.mask import MaskInputs, ScoreConfig
from gptjax.model.config import Layer, ModelConfig
from gptjax.verify.setting import (
    Figure,
    Setting,
    Skipped,
    apart,
    compile_functions,
    difference,
    euclidean_norm,
    packed_places,
    pieces,
    precise,
    unpacked_places,
    with_positions,
    without_dropout,
)

ROUNDING = 1e-5
"""Allowed difference of two ways of computing the same in float32, relative to the largest value:
about a hundred roundings."""


# --- which token sees which ---


def causal(setting: Setting) -> Figure:
    """Changes one token in all rows: nothing before it may change in any bit, and it must itself be
    seen."""
    tokens, (where, piece) = setting.batch.tokens, unpacked_places(*setting.batch.tokens.shape)

    def read(tokens):
        return np.asarray(setting.functions.hidden(setting.params, tokens, where, piece))

    before, length, wrong = read(tokens), tokens.shape[1], 0
    for t in (1, length // 2, length - 1):
        changed = tokens.copy()
        changed[:, t] = (tokens[:, t] + 1) % setting.exact.vocabulary
        moved = (read(changed) != before).any(axis=-1)
        wrong += int(moved[:, :t].sum()) + int((~moved[:, t : t + 2]).sum())
    return Figure(wrong, 0, "positions that see a later token, or miss an earlier one")


def packed(setting: Setting) -> Figure:
    """Compares three texts in one row to each alone; then changes all texts but one, which may not
    change in any bit."""
    tokens = setting.batch.tokens
    rows, length = tokens.shape
    where, piece = packed_places(rows, length)

    def read(tokens, where, piece):
        return np.asarray(setting.functions.hidden(setting.params, tokens, where, piece))

    together, others = read(tokens, where, piece), (tokens + 1) % setting.exact.vocabulary
    apart, start = 0.0, 0
    for number, size in enumerate(pieces(length), start=1):
        mine, index = slice(start, start + size), np.arange(length)
        alone = np.where(index < size, np.roll(tokens, -start, axis=1), 0)
        found = read(
            alone,
            np.tile(np.where(index < size, index, -1).astype(np.int32), (rows, 1)),
            np.tile((index < size).astype(np.int32), (rows, 1)),
        )
        apart = max(apart, difference(together[:, mine], found[:, :size]))
        leaks = int(
            (
                read(np.where(piece == number, tokens, others), where, piece)[:, mine]
                != together[:, mine]
            ).sum()
        )
        if leaks:
            return Figure(leaks, 0, f"values of text {number} of a row that depend on another text")
        start += size
    return Figure(
        apart,
        ROUNDING,
        "relative difference between a text in a shared row and alone; nothing leaks",
    )


def attention(setting: Setting) -> Figure:
    """Compares the attention implementation of each kind of layer to softmax attention in float64,
    forward and gradients.

    Rotations and biases by distance are left to other proofs: `cache` and `packed` would fail if
    they were wrong in one place only.
    """
    c = setting.experiment.model
    length, worst, kinds = min(c.context, 256), 0.0, []
    for layer in dict.fromkeys(c.stack):
        kind = select_attention(c, c.context, layer)[0]
        kind = select_attention(dataclasses.replace(c, attention=kind), length, layer)[0]
        kinds.append(kind)
        worst = max(worst, _apart_from_hand(c, layer, kind, length))
    words = (
        f"relative difference of {' and '.join(repr(kind) for kind in dict.fromkeys(kinds))} from"
        f" float64 by hand, at {length} positions, forward and gradients"
    )
    return Figure(worst, ROUNDING, words)


def _apart_from_hand(c: ModelConfig, layer: Layer, kind: str, length: int) -> float:
    draw, (where, piece) = np.random.default_rng(0), packed_places(2, length)
    q, cotangent = (
        draw.standard_normal((2, length, c.num_heads, c.head_dim)).astype(np.float32)
        for _ in range(2)
    )
    k, v = (
        draw.standard_normal((2, length, c.kv_heads, c.head_dim)).astype(np.float32)
        for _ in range(2)
    )
    mask_inputs, how = (
        MaskInputs(*map(jnp.asarray, (where, where, piece, piece))),
        ScoreConfig(layer, cap=c.attention_cap, causal=c.causal),
    )

    def both_ways(q, k, v):
        out, back = jax.vjp(
            lambda *qkv: attend(*qkv, mask_inputs, how, implementation=kind), q, k, v
        )
        return out, *back(jnp.asarray(cotangent))

    seen = seen_by_hand(layer, where[:, :, None], where[:, None, :], c.causal) & (
        piece[:, None, :] == piece[:, :, None]
    )
    pairs = zip(
        jax.jit(precise(both_ways))(q, k, v),
        by_hand(q, k, v, cotangent, seen, c.attention_cap),
        strict=True,
    )
    return max(difference(*pair) for pair in pairs)


def seen_by_hand(
    layer: Layer, query: np.ndarray, key: np.ndarray, causal: bool = True
) -> np.ndarray:
    """Returns where a layer lets a query at one position see a key of the same text."""
    match layer.sees:
        case "window":
            near = (query - key < layer.span) & (key - query < layer.span)
            kept = near | (key < layer.sinks)
        case "chunk":
            kept = (query // layer.span == key // layer.span) | (key < layer.sinks)
        case "strided":
            kept = (query - key < layer.span) | ((query - key) % layer.span == 0)
        case "fixed":
            kept = (query // layer.span == key // layer.span) | (
                key % layer.span >= layer.span - layer.summary
            )
        case _:
            kept = np.ones_like(query - key, bool)
    return kept & (key <= query) if causal else kept


def by_hand(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cotangent: np.ndarray,
    seen: np.ndarray,
    cap: float | None = None,
) -> tuple[np.ndarray, ...]:
    """Softmax attention written out in float64: output [B T N H] and the gradients of q, k and v
    under a cotangent.

    Args:
      seen: [B T S], true where a query sees a key.
      cap: scores s are cap · tanh(s / cap).
    """
    group = q.shape[2] // k.shape[2]

    def heads_first(x):
        return np.swapaxes(x.astype(np.float64), 1, 2)

    q, k, v, out_bar = (
        heads_first(q),
        *(np.repeat(heads_first(x), group, axis=1) for x in (k, v)),
        heads_first(cotangent),
    )
    plain = q @ np.swapaxes(k, 2, 3) / math.sqrt(q.shape[-1])
    capped, slope = (
        (plain, 1.0) if cap is None else (cap * np.tanh(plain / cap), 1 / np.cosh(plain / cap) ** 2)
    )
    scores = np.where(seen[:, None], capped, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    weights_bar = out_bar @ np.swapaxes(v, 2, 3)
    scores_bar = (
        weights
        * (weights_bar - (weights * weights_bar).sum(axis=-1, keepdims=True))
        * slope
        / math.sqrt(q.shape[-1])
    )

    def grouped(x):
        return x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(axis=2)

    every_head = (
        weights @ v,
        scores_bar @ k,
        np.swapaxes(scores_bar, 2, 3) @ q,
        np.swapaxes(weights, 2, 3) @ out_bar,
    )
    return tuple(np.swapaxes(x if i < 2 else grouped(x), 1, 2) for i, x in enumerate(every_head))


# --- the loss ---


def labels(setting: Setting) -> Figure:
    """Computes the loss of the longest of the first texts by hand: −ln p(next id), with ids taken
    straight from the store."""
    store, (rows, length) = setting.data.train, setting.batch.tokens.shape
    sizes = np.diff(store.offsets[:1001])
    longest = int(sizes.argmax())
    begin = int(store.offsets[longest])
    ids = store.ids[begin : begin + min(int(sizes[longest]), rows * length + 1)].astype(np.int32)
    text = store._replace(
        ids=ids,
        offsets=np.asarray([0, len(ids)]),
        header=dataclasses.replace(store.header, num_tokens=len(ids), num_examples=1),
    )
    total, weight = setting.functions.loss(
        setting.params,
        with_positions(
            batches.batch(text, batches.plan(text, length=length, rows=rows, seed=None), 0)
        ),
        None,
    )
    wanted = 0.0
    for start in range(0, len(ids) - 1, length):
        row = ids[start : start + length + 1]
        # of the usual shape, so that nothing is compiled for this proof alone
        known = np.zeros((rows, length), np.int32)
        known[:, : len(row) - 1] = row[:-1]
        states = setting.functions.hidden(setting.params, known, *unpacked_places(rows, length))
        logits = np.asarray(setting.functions.logits(setting.params, states[0]), np.float64)[
            : len(row) - 1
        ]
        wanted += float(
            (np.logaddexp.reduce(logits, axis=-1) - logits[np.arange(len(row) - 1), row[1:]]).sum()
        )
    found, by = float(total) / float(weight), wanted / (len(ids) - 1)
    return Figure(
        abs(found - by) / by,
        ROUNDING,
        f"relative difference of the loss ({found:.4f} nats per token) from −ln p(next id) by hand",
    )


def initial_loss(setting: Setting) -> Figure:
    """Compares the loss before the first step to that of a guess, ln V.

    It may be higher by what the spread of the initial logits explains: half their variance, and,
    with a tied output, the product of a token's embedding with itself. A twentieth of ln V is
    allowed in addition.
    """
    c = setting.exact
    params = setting.functions.init(jax.random.key(setting.small.seed))
    total, weight = setting.functions.loss(params, setting.batch, None)
    loss, guess = float(total) / float(weight), math.log(c.vocabulary)
    spread = c.init_std**2 * c.width / 2 + (
        math.log1p(math.exp(min(c.init_std * c.width, 700)) / c.vocabulary) if c.tied else 0.0
    )
    beyond = max(guess - loss, loss - guess - spread) / guess
    return Figure(
        beyond,
        0.05,
        f"share of ln V by which the first loss, {loss:.3f}, misses ln V = {guess:.3f} (to"
        f" {guess + spread:.3f})",
    )


# --- the gradient ---


STEP = 0.02
"""Step of a finite difference, relative to the spread of a leaf's values: large enough for float32
to resolve the change of the loss."""


def gradients(setting: Setting) -> Figure:
    """Compares the gradient to finite differences along random directions, two in every leaf and
    two through all.

    Four points per direction cancel the second and third order (f′ ≈ (8 f(h) − 8 f(−h) − f(2h) +
    f(−2h)) / 12h). The error is relative to the slope of a random direction in that leaf,
    √(Σ gradient² · spread²), and at least to a hundredth of the largest such slope: a leaf without
    influence, such as the bias of a key, has a gradient of rounding alone.
    """
    params, batch, draw = setting.params, setting.batch, np.random.default_rng(1)
    (_, weight), grads = setting.functions.gradient(params, batch, None)
    leaves, structure = jax.tree.flatten(params)
    slopes = [np.asarray(g, np.float64) / float(weight) for g in jax.tree.leaves(grads)]
    spreads = [float(np.asarray(leaf).std()) for leaf in leaves]
    typical = [euclidean_norm(g) * s for g, s in zip(slopes, spreads, strict=True)]

    def loss(direction: list[Any], h: float) -> float:
        moved = [
            leaf if d is None else leaf + jnp.float32(h) * d
            for leaf, d in zip(leaves, direction, strict=True)
        ]
        return float(
            setting.functions.loss(jax.tree.unflatten(structure, moved), batch, None)[0]
        ) / float(weight)

    errors: dict[str, float] = {}
    for name, chosen in [
        *((name, [i]) for i, name in enumerate(paths(params))),
        ("all leaves", range(len(leaves))),
    ] * 2:
        direction = [
            (
                spreads[i] * draw.standard_normal(leaf.shape).astype(np.float32)
                if i in chosen
                else None
            )
            for i, leaf in enumerate(leaves)
        ]
        slope = sum(float((slopes[i] * direction[i]).sum()) for i in chosen)
        difference_quotient = (
            8 * (loss(direction, STEP) - loss(direction, -STEP))
            - loss(direction, 2 * STEP)
            + loss(direction, -2 * STEP)
        ) / (12 * STEP)
        scale = max(math.sqrt(sum(typical[i] ** 2 for i in chosen)), 0.01 * max(typical), 1e-30)
        error = abs(difference_quotient - slope) / scale
        errors[name] = max(errors.get(name, 0.0), error if math.isfinite(error) else math.inf)
    worst = max(errors, key=errors.__getitem__)
    return Figure(
        errors[worst],
        0.05,
        f"relative error of the slope along {2 * len(leaves) + 2} random directions, the largest in"
        f" {worst}",
    )


def bfloat16(setting: Setting) -> Figure:
    """Compares the gradient under bfloat16 compute to that under float32; logits, loss and
    gradients must be float32 in both.

    The bound counts roundings: each is at most 2⁻⁹ of a value, a block makes about ten in a row,
    independent ones add up as a root, and the computation may amplify them by two.
    """
    if setting.experiment.model.compute == "float32":
        return Skipped("the config computes in float32")
    c = without_dropout(setting.small.model)
    half = compile_functions(c)
    (_, weight), wanted = setting.functions.gradient(setting.params, setting.batch, None)
    (total, _), found = half.gradient(setting.params, setting.batch, None)
    logits = jax.eval_shape(
        half.logits, setting.params, jax.ShapeDtypeStruct((1, c.width), c.compute)
    )
    results = {
        "logits": logits,
        "loss": total,
        **dict(zip(paths(found), jax.tree.leaves(found), strict=True)),
    }
    narrow = [name for name, leaf in results.items() if leaf.dtype != jnp.float32]
    if narrow:
        return Figure(len(narrow), 0, f"values that are not float32: {', '.join(narrow[:3])}")
    bound = 2 * 2**-9 * math.sqrt(10 * c.num_layers + 10)
    return Figure(
        apart(found, wanted),
        bound,
        "relative difference of the gradient from float32's; loss"
        f" {float(total) / float(weight):.4f} nats per token",
    )
