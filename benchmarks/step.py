"""A training step against PyTorch's: the same GPT, the same optimizer, in turns.

    # 4 layers, width 128; 6 layers, width 384; GPT-2 124M with 1,024 tokens
    python benchmarks/step.py --peer-python ../torch/bin/python
    python benchmarks/step.py --peer-python ../torch/bin/python --shape middle
    python benchmarks/step.py --peer-python ../torch/bin/python --shape gpt2

The peers are a plain GPT (`torch_gpt.py`, with PyTorch's own attention) and, for GPT-2,
`transformers`' GPT2LMHeadModel; each eager and with `torch.compile`, in float32 and under autocast
to bfloat16, with fused AdamW and clipping. gptjax runs `train.step.train_step` as `gptjax train`
does. Dropout is 0 everywhere. A turn is a few steps; the figure is the time of one.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, NamedTuple

import paired

HERE = paired.ROOT / "benchmarks/step.py"


class Shape(NamedTuple):
    """A model and its batch."""

    layers: int
    width: int
    heads: int
    length: int
    rows: int
    vocabulary: int
    steps: int
    """Steps of a turn."""


SHAPES = {
    "small": Shape(4, 128, 4, 64, 12, 65, 25),
    "middle": Shape(6, 384, 6, 256, 64, 65, 1),
    "gpt2": Shape(12, 768, 12, 1024, 1, 50_304, 1),
    "quickstart": Shape(4, 192, 4, 128, 16, 2048, 8),
}


def main() -> None:
    """Takes the turns and prints the ratios."""
    parser = paired.parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument(
        "--ours", nargs="+", default=["float32", "bfloat16"], help="compute types of gptjax"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        default=["eager float32", "compile float32", "eager bfloat16", "compile bfloat16"],
    )
    parser.add_argument(
        "--micro-batches",
        type=int,
        default=1,
        help="gptjax reads the batch in this many parts, as --micro-batch does",
    )
    parser.add_argument(
        "--transformers", action="store_true", help="the peers are transformers' GPT-2 too"
    )
    options = parser.parse_args()
    if options.worker:
        settings = json.loads(options.worker)
        work = {"gptjax": _gptjax, "torch": _torch}[settings.pop("stack")]
        work(Shape(*settings.pop("shape")), **settings)
        return
    shape = SHAPES[options.shape]
    told = {"stack": "gptjax", "shape": shape, "micro_batches": options.micro_batches}
    ways = {
        f"gptjax {kind}": paired.Way(sys.executable, HERE, told | {"compute": kind})
        for kind in options.ours
    }
    for peer in options.peers:
        how, kind = peer.split()
        for model in ("plain", "transformers")[: 1 + options.transformers]:
            told = {"stack": "torch", "shape": shape, "how": how, "compute": kind, "model": model}
            ways[f"torch {model} {peer}"] = paired.Way(options.peer_python, HERE, told)
    found = paired.in_turns(ways, options.turns)
    ours, theirs = (
        paired.best(found, [name for name in found if name.startswith(stack)])
        for stack in ("gptjax", "torch")
    )
    print(
        f"a training step, {options.shape}: {shape.layers} layers, width {shape.width}, T"
        f" {shape.length}, B {shape.rows}, V {shape.vocabulary:,}"
    )
    print(*paired.told(found, lambda s: f"{1e3 * s:.1f} ms"), sep="\n")
    times, memory = (
        paired.ratio(found[theirs], found[ours]),
        found[ours].facts["peak_bytes"] / found[theirs].facts["peak_bytes"],
    )
    print(
        f"{ours} is {times} times as fast as {theirs}; its peak memory is {memory:.2f} of that"
        " one's"
    )
    plain = {name: f for name, f in found.items() if "float32" in name}
    losses = ", ".join(f"{name} {f.facts['loss']:.4f}" for name, f in plain.items())
    print(f"first losses: {losses}")
    paired.write(
        options.out,
        {
            "shape": shape._asdict(),
            "ways": {n: f._asdict() for n, f in found.items()},
            "ours": ours,
            "theirs": theirs,
            "times": times,
            "memory": memory,
        },
    )


def _gptjax(shape: Shape, compute: str, micro_batches: int = 1, **changes: Any) -> None:
    from gptjax.cli import process
    from gptjax.core import backend

    backend.configure()
    process.keep_freed_memory()  # as the command does
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    from gptjax import model
    from gptjax.data import Batch
    from gptjax.losses import CrossEntropy
    from gptjax.train import optim, step

    config = model.ModelConfig(
        vocab_size=shape.vocabulary,
        context=shape.length,
        width=shape.width,
        num_layers=shape.layers,
        num_heads=shape.heads,
        bias=False,
        compute=compute,
        **changes,
    )
    rate = optim.learning_rate(optim.Schedule(), 1e-3, 1000)
    optimizer = optim.build_optimizer(optim.AdamW(), rate)
    told = {
        "loss": CrossEntropy().build(config),
        "optimizer": optimizer,
        "rate": rate,
        "seed": 0,
        "micro_batches": micro_batches,
        "dropout": False,
    }
    one = functools.partial(step.train_step, **told)
    state = jax.jit(lambda key: step.init(model.init(config, key), optimizer))(jax.random.key(0))
    ids = np.random.default_rng(0).integers(
        0, shape.vocabulary, (shape.rows, shape.length + 1), np.int32
    )
    batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((shape.rows, shape.length), np.float32))
    batch = jax.tree.map(jnp.asarray, batch)
    begun = time.perf_counter()
    compiled = jax.jit(one, donate_argnums=0).lower(state, {}, batch).compile()
    seconds = time.perf_counter() - begun
    state, first = compiled(state, {}, batch)

    def turn() -> float:
        nonlocal state
        begun = time.perf_counter()
        for _ in range(shape.steps):
            state, metrics = compiled(state, {}, batch)
        metrics["loss"].block_until_ready()
        return (time.perf_counter() - begun) / shape.steps

    paired.serve(
        turn,
        compile_seconds=seconds,
        loss=float(first["loss"]),
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
    )


def _torch(shape: Shape, how: str, compute: str, model: str) -> None:
    import torch

    torch.manual_seed(0)
    if model == "transformers":
        from transformers import GPT2Config, GPT2LMHeadModel

        settings = {
            "vocab_size": shape.vocabulary,
            "n_positions": shape.length,
            "n_embd": shape.width,
            "n_layer": shape.layers,
            "n_head": shape.heads,
        }
        module = GPT2LMHeadModel(
            GPT2Config(**settings, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
        )

        def loss_of(x, y):
            return module(input_ids=x, labels=torch.cat([x[:, :1], y], 1)[:, : x.shape[1]]).loss

    else:
        from torch_gpt import GPT

        module = GPT(shape.vocabulary, shape.length, shape.width, shape.heads, shape.layers)
        loss_of = module
    run = torch.compile(loss_of) if how == "compile" else loss_of
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    ids = torch.randint(shape.vocabulary, (shape.rows, shape.length + 1))
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def one() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute == "bfloat16"):
            loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    begun = time.perf_counter()
    first = one()
    seconds = time.perf_counter() - begun

    def turn() -> float:
        begun = time.perf_counter()
        for _ in range(shape.steps):
            one()
        return (time.perf_counter() - begun) / shape.steps

    paired.serve(turn, compile_seconds=seconds, loss=first)


if __name__ == "__main__":
    main()
