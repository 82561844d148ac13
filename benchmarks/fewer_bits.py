"""What fewer bits of keys, values and activations cost: `python benchmarks/fewer_bits.py cache` or
`products`, SmolLM2-135M.

`cache`: bytes of a token in the cache, and the loss of held-out text that is read through it.
`products`: the loss of the same text with kernels of each type and, with `--turns`, milliseconds to
read a prompt of 512 tokens and to write one after it, each way in turn; medians of processor time,
which other processes do not lengthen. For one core `taskset -c 0 python …`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small import BOOKS, chapters

from gptjax import generate, model
from gptjax.compress.moments import text_rows
from gptjax.formats import OpenedModel
from gptjax.generate.batch import padded_size
from gptjax.runs.open import open_model

CACHES = ("full", "int8", "int4")
PRODUCTS = ("bfloat16", "int8", "w8a8", "w8a8-prefill")
TOKENS, PROMPT = 1024, 512


def main() -> None:
    """Measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("cache", "products"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--books", type=Path, default=BOOKS)
    parser.add_argument("--rows", type=int, default=4, help="texts of 1,024 tokens")
    parser.add_argument("--turns", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=PRODUCTS, choices=PRODUCTS)
    options = parser.parse_args()
    opened = open_model(options.model)
    assert opened.tokenizer is not None
    with tempfile.TemporaryDirectory() as folder:
        _, held_out = chapters(options.books, Path(folder))
        rows = np.asarray(text_rows(opened.tokenizer, held_out, TOKENS, options.rows))
    if options.what == "cache":
        caches(opened, rows)
    else:
        products(opened, rows, options.turns, options.kinds)


def caches(opened: OpenedModel, rows: np.ndarray) -> None:
    """Bytes and losses of each kind of cache."""
    print("| cache | bytes of a token | loss | change |\n|---|---|---|---|")
    first = None
    for kind in CACHES:
        groups = jax.eval_shape(
            lambda kind=kind: model.empty_cache(opened.config, 1, TOKENS, kv_cache=kind)
        ).groups
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(groups)) / TOKENS
        found = loss(opened.config, opened.params, rows, kind)
        first = found if first is None else first
        print(f"| {kind} | {size:,.0f} | {found:.4f} | {found - first:+.4f} |", flush=True)


def products(opened: OpenedModel, rows: np.ndarray, turns: int, kinds: Sequence[str]) -> None:
    """Losses, and medians of times, of each way of multiplying."""
    ways = {
        kind: model.prepare_weights(opened.config, opened.params, kind)  # type: ignore[arg-type]
        for kind in kinds
    }
    losses = {kind: loss(*way, rows) for kind, way in ways.items()}
    taken = times({kind: timed(*way) for kind, way in ways.items()}, turns) if turns else {}
    print("| kernels | loss | change | ms for 512 tokens | ms for one |\n|---|---|---|---|---|")
    for kind, found in losses.items():
        cells = [f"{ms:.1f}" for ms in taken[kind]] if turns else ["", ""]
        change = found - losses[kinds[0]]
        print(f"| {kind} | {found:.4f} | {change:+.4f} | {' | '.join(cells)} |", flush=True)


def loss(config: model.ModelConfig, params: Any, rows: np.ndarray, kind: Any = None) -> float:
    """Nats a token of texts, read through a cache of this kind; `None` is without a cache."""

    @jax.jit
    def nats(params: Any, ids: jax.Array) -> jax.Array:
        cache = kind and model.empty_cache(config, 1, TOKENS, kv_cache=kind, at_once=TOKENS)
        positions = jnp.arange(TOKENS)[None]
        hidden = model.forward(config, params, ids, positions=positions, cache=cache).hidden
        logp = jax.nn.log_softmax(model.unembed(config, params, hidden)[0, :-1], axis=-1)
        return -jnp.take_along_axis(logp, ids[0, 1:, None], axis=-1).mean()

    return float(np.mean([nats(params, row[None, :TOKENS]) for row in rows]))


def timed(config: model.ModelConfig, params: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Reading a prompt; writing one token after it."""
    prompt = np.random.default_rng(0).integers(0, config.vocabulary, (1, PROMPT)).astype(np.int32)
    length, limit = np.int32([PROMPT]), np.int32([8])
    slots = padded_size(PROMPT + 8, config.context)

    def read() -> Any:
        return generate.prefill(config, params, prompt, length, limit, slots=slots)

    def forward(params: Any, cache: Any, one: jax.Array) -> jax.Array:
        hidden, _ = model.forward(config, params, one, positions=one * 0 + PROMPT, cache=cache)[:2]
        return model.unembed(config, params, hidden)

    cache, compiled = read().cache, jax.jit(forward)
    return read, lambda: compiled(params, cache, prompt[:, :1])


def times(ways: dict[str, tuple[Callable[[], Any], ...]], turns: int) -> dict[str, list[float]]:
    """Median milliseconds of each function, one after the other in every turn."""
    found: dict[str, list[list[float]]] = {name: [[] for _ in way] for name, way in ways.items()}
    for turn in range(turns + 1):
        for name, way in ways.items():
            for taken, run in zip(found[name], way, strict=True):
                begun = time.process_time()
                jax.block_until_ready(run())
                if turn:  # the first one compiles
                    taken.append(1000 * (time.process_time() - begun))
    return {name: [statistics.median(one) for one in taken] for name, taken in found.items()}


if __name__ == "__main__":
    main()
