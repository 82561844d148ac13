"""A training step of recurrent layers against attention at the same width, by length of the text.

    python benchmarks/recurrent.py                       times, milliseconds a step
    python benchmarks/recurrent.py --memory              XLA's memory of the compiled step instead
    python benchmarks/recurrent.py --lengths 512 2048 --width 384

One layer of each kind with its MLP, one row of T tokens, float32, loss and gradient as training
computes them; attention as `auto` chooses it. Steps are taken in turns, so that a machine that
other programs share slows all of them alike; the figure is the least time of a turn. With
`--memory` nothing runs: the figure is what the program holds beside its arguments.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core import backend
from gptjax.losses import token_losses
from gptjax.model import DeltaNet, Layer, Mamba2, ModelConfig, ShortConvolution

RECURRENT = {"pattern": (Layer(recurrent=True),)}


def kinds(width: int) -> dict[str, dict[str, Any]]:
    """What differs between the models; states have about as many numbers."""
    heads = max(1, width // 64)
    return {
        "attention": {},
        "gated DeltaNet": RECURRENT | {"recurrent": DeltaNet(heads, key_width=64)},
        "Mamba 2": RECURRENT | {"recurrent": Mamba2(2 * heads, 64, state_width=64)},
        "short convolution": RECURRENT | {"recurrent": ShortConvolution()},
    }


def config_of(width: int, length: int, changes: dict[str, Any]) -> ModelConfig:
    """One layer, which costs the same but for what mixes tokens."""
    return ModelConfig(
        vocab_size=256,
        context=length,
        width=width,
        num_layers=1,
        num_heads=max(1, width // 64),
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        **changes,
    )


def gradient(config: ModelConfig) -> Callable[[Any, jax.Array], Any]:
    """The gradient of the mean loss of one row."""

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        out = model.forward(config, params, tokens[:, :-1])
        return token_losses(model.unembed(config, params, out.hidden), tokens[:, 1:]).mean()

    return jax.grad(loss)


def compiled(config: ModelConfig) -> Any:
    """The step as XLA compiles it."""
    tokens = jax.ShapeDtypeStruct((1, config.context + 1), jnp.int32)
    return jax.jit(gradient(config)).lower(model.shapes(config), tokens).compile()


def main() -> None:
    """Prints one row for each length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    args = parser.parse_args()
    backend.configure()
    names = kinds(args.width)
    print(f"| T | {' | '.join(names)} |")
    print("|---" * (1 + len(names)) + "|")
    for length in args.lengths:
        configs = {n: config_of(args.width, length, more) for n, more in names.items()}
        programs = {name: compiled(config) for name, config in configs.items()}
        if args.memory:
            sizes = [one.memory_analysis().temp_size_in_bytes for one in programs.values()]
            cells = [f"{size / 2**20:,.1f} MiB" for size in sizes]
        else:
            best = dict.fromkeys(programs, float("inf"))
            given = {name: model.init(one, jax.random.key(0)) for name, one in configs.items()}
            tokens = jax.random.randint(jax.random.key(1), (1, length + 1), 0, 256)
            for turn in range(args.turns + 1):
                for name, program in programs.items():
                    begin = time.perf_counter()
                    jax.block_until_ready(program(given[name], tokens))
                    taken = time.perf_counter() - begin
                    best[name] = min(best[name], taken) if turn else best[name]
            cells = [f"{1000 * one:,.1f} ms" for one in best.values()]
        print(f"| {length:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
