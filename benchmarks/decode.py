"""Greedy decoding at the shape of SmolLM2-135M against `transformers`, in turns.

    python benchmarks/decode.py --peer-python ../torch/bin/python
    python benchmarks/decode.py --peer-python ../torch/bin/python --rows 8

Weights are random: the cost of a token does not depend on them. A turn is one answer of `--tokens`
tokens after a prompt of `--prompt`; the figure is the time of a token of all rows, the prompt
included for both. gptjax runs `generate.generate` on weights from `model.prepare_weights`; the peer
runs `generate` with its cache.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import paired

HERE = paired.ROOT / "benchmarks/decode.py"


def main() -> None:
    """Takes the turns and prints the ratios."""
    parser = paired.parser(__doc__)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=16, help="tokens that are read first")
    parser.add_argument(
        "--ours",
        nargs="+",
        default=["float32", "bfloat16", "int8"],
        help="how gptjax stores weights",
    )
    parser.add_argument("--peers", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    if options.worker:
        settings = json.loads(options.worker)
        work = {"gptjax": _gptjax, "transformers": _transformers}[settings.pop("stack")]
        work(**settings)
        return
    job = {"rows": options.rows, "tokens": options.tokens, "prompt": options.prompt}
    ways = {
        f"gptjax {kind}": paired.Way(sys.executable, HERE, dict(stack="gptjax", kind=kind, **job))
        for kind in options.ours
    }
    ways |= {
        f"transformers {kind}": paired.Way(
            options.peer_python, HERE, dict(stack="transformers", kind=kind, **job)
        )
        for kind in options.peers
    }
    found = paired.in_turns(ways, options.turns, patience=30)
    print(
        f"decoding, SmolLM2-135M's shape, {options.rows} rows, {options.tokens} tokens after"
        f" {options.prompt}"
    )
    print(*paired.told(found, lambda s: f"{options.rows / s:.1f} tok/s"), sep="\n")
    peers, times = [name for name in found if name.startswith("transformers")], {}
    for ours in (name for name in found if name.startswith("gptjax")):
        for theirs in peers:
            times[f"{ours} / {theirs}"] = paired.ratio(found[theirs], found[ours])
            print(f"{ours} is {times[f'{ours} / {theirs}']} times as fast as {theirs}")
    for name, way in found.items():
        if "bytes" in way.facts:
            print(
                f"{name} reads {way.facts['bytes'] / 1e6:.0f} MB of weights a token:"
                f" {way.facts['bytes'] / statistics.median(way.seconds) / 1e9:.1f} GB/s"
            )
    paired.write(
        options.out, dict(**job, ways={n: f._asdict() for n, f in found.items()}, times=times)
    )


def _gptjax(kind: str, rows: int, tokens: int, prompt: int) -> None:
    from gptjax.cli import process
    from gptjax.core import backend

    backend.configure()
    process.keep_freed_memory()  # as the command does
    import jax
    import numpy as np

    from gptjax import generate, model

    config = model.smollm("2-135m", context=2048)
    config, params = model.prepare_weights(
        config, jax.jit(model.init, static_argnums=0)(config, jax.random.key(0)), kind
    )
    jax.block_until_ready(params)
    ids, keys = (
        np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt), np.int32),
        jax.random.split(jax.random.key(0), rows),
    )
    greedy = generate.Sampling(
        np.zeros(rows, np.float32),
        np.full(rows, config.vocab_size, np.int32),
        np.ones(rows, np.float32),
    )

    def turn() -> float:
        begun = time.perf_counter()
        out = generate.generate(
            config, params, ids, np.full(rows, prompt), keys, sampling=greedy, new_tokens=tokens
        )
        assert out.lengths.tolist() == [tokens] * rows
        return (time.perf_counter() - begun) / tokens

    begun = time.perf_counter()
    turn()
    read = sum(
        leaf.nbytes
        for leaf in jax.tree.leaves(
            {name: tree for name, tree in params.items() if name != "embedding"}
        )
    )
    paired.serve(turn, compile_seconds=time.perf_counter() - begun, bytes=read)


def _transformers(kind: str, rows: int, tokens: int, prompt: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    module = (
        LlamaForCausalLM(
            LlamaConfig(**shape, tie_word_embeddings=True, max_position_embeddings=2048)
        )
        .to(getattr(torch, kind))
        .eval()
    )
    ids = torch.randint(49_152, (rows, prompt))
    settings = {
        "do_sample": False,
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "pad_token_id": 0,
        "eos_token_id": None,
    }

    @torch.inference_mode()
    def turn() -> float:
        begun = time.perf_counter()
        out = module.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert out.shape[1] == prompt + tokens
        return (time.perf_counter() - begun) / tokens

    paired.serve(turn)


if __name__ == "__main__":
    main()
