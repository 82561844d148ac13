"""The cost of generation: figures of docs/reports/performance.md. Comparisons run in turns; the
result is the median of the ratios.

    # a token under a constraint against an unconstrained one, 135M parameters
    python benchmarks/generation.py constraints --spelling FOLDER
    # prompt look-up against plain greedy decoding, on a text that repeats its prompt
    python benchmarks/generation.py lookup MODEL
    # time and memory of a token with full, windowed and 8-bit caches
    python benchmarks/generation.py cache

FOLDER holds `encoder.json` and `vocab.bpe`; without it tokens are bytes. MODEL is a run, a Hugging
Face directory or a GGUF file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
import typing
from collections.abc import Callable
from typing import Any

import gptjax  # first: it chooses the CPU's flags

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np

from gptjax import formats, model
from gptjax.data import GPT2, Bytes
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.chat import Message, render
from gptjax.generate import Columns, GenerateConfig, Sampling, advance, fill, prefill
from gptjax.generate.batch import Job, batch_of, room_for
from gptjax.generate.request import Request, requests
from gptjax.generate.schedule import Call, Engine
from gptjax.generate.strategies import open_writer
from gptjax.weights import Stored

ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"type": "number"},
        "tag": {"enum": ["a", "b", None]},
    },
}
FORMS = {
    "free": {},
    "schema": {"schema": json.dumps({"type": "array", "items": ITEM, "minItems": 40})},
    "regex": {"regex": r"(\w{2,8} (19|20)\d{2}-(0[1-9]|1[0-2])-[0-3]\d, ){12}"},
    "grammar": {
        "grammar": (
            'root ::= sum\nsum ::= (term [-+] ){40} term\nterm ::= [0-9]+ | "(" term ([-+]'
            ' term)* ")"'
        )
    },
}


def in_turns(ways: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Seconds of each way, once a turn; a first turn, in which programs are compiled, does not
    count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            seconds = way()
            if turn:
                found[name].append(seconds)
    return found


def told(name: str, seconds: list[float], base: list[float]) -> str:
    """One line of a comparison."""
    ratios = sorted(a / b for a, b in zip(seconds, base, strict=True))
    middle, usual = statistics.median(ratios), 1e3 * statistics.median(seconds)
    return (
        f"{name:24} {usual:9.2f} ms   {middle:6.3f} of the first (in turns {ratios[0]:.3f} to"
        f" {ratios[-1]:.3f}; least times {min(seconds) / min(base):.3f})"
    )


def weights(config: model.ModelConfig):
    """Random weights; what a token costs does not depend on them."""
    return jax.jit(model.init, static_argnums=0)(config, jax.random.key(0))


def constraints(
    spelling: str | None, forms: list[str], turns: int, count: int, rows: int = 8
) -> None:
    """Milliseconds of a token of `rows` rows, free and under each kind of constraint."""
    tokenizer = (
        tokenizers.train_tokenizer(GPT2(spelling), [])
        if spelling
        else tokenizers.train_tokenizer(Bytes(), [])
    )
    config = model.smollm("2-135m", vocab_size=-(-tokenizer.vocab_size // 64) * 64, context=512)
    params = weights(config)

    def way(form: str) -> Callable[[], float]:
        settings = [
            GenerateConfig(new_tokens=300, temperature=1.0, seed=i, **FORMS[form])
            for i in range(rows)
        ]
        asked = requests(config, tokenizer, ["The answer: "] * rows, settings)
        room = room_for(config, tokenizer, asked)
        jobs = {row: Job(request) for row, request in enumerate(asked)}

        def run() -> float:
            engine = Engine(Call(config, params, tokenizer), room, rows=rows).admit(jobs)
            engine = engine.advance(1, pause=False)
            jax.block_until_ready(engine.slots)
            begun = time.perf_counter()
            engine = engine.advance(count - 1, pause=False)
            jax.block_until_ready(engine.slots)
            seconds = time.perf_counter() - begun
            steps = int((engine.text.history.length - engine.text.history.prompt).max()) - 1
            assert steps > count // 2, f"{form}: no answer was longer than {steps}"
            return seconds / steps

        return run

    found = in_turns({form: way(form) for form in forms}, turns)
    print(
        f"a token of {rows} rows, {count} tokens in a turn, {turns} turns, {tokenizer.vocab_size}"
        f" tokens, {config.compute}"
    )
    for form, seconds in found.items():
        print(told(form, seconds, found[forms[0]]))


def lookup(
    path: str,
    turns: int,
    count: int,
    guesses: list[int],
    stored: Stored | None,
    room: int = 128,
) -> None:
    """Seconds of a whole greedy answer, prompt included, whose text says much of the prompt
    again."""
    config, params, tokenizer = (
        formats.load_model(path) if formats.kind(path) else gptjax.load(path)
    )[:3]
    if stored:
        config, params = model.prepare_weights(config, params, stored)
    asked = [Message("user", f"Summarise these notes. Use their own sentences.\n\n{NOTES}")]
    ids = render(chat.choose_template(None, tokenizer), asked, tokenizer)

    def way(**more) -> Callable[[], float]:
        settings = GenerateConfig(new_tokens=room, temperature=0.0, **more)

        def run() -> float:
            begun = time.perf_counter()
            asked = [Request("", ids, settings)]
            room = room_for(config, tokenizer, asked)
            batch = batch_of(config, tokenizer, asked, room, 1)
            writer = open_writer(config, params, batch, None, None)
            written[more.get("draft_tokens", 0)] = jax.block_until_ready(writer.until(count).state)
            return time.perf_counter() - begun

        return run

    written: dict[int, Any] = {}
    found = in_turns(
        {
            "plain greedy": way(),
            **{f"look-up, {n} guesses": way(lookup=True, draft_tokens=n) for n in guesses},
        },
        turns,
    )

    def taken(h):
        return [int(i) for i in h.ids[0, h.prompt[0] : min(h.length[0], h.prompt[0] + count)]]

    texts = {n: taken(state.text.history) for n, state in written.items()}
    kept = ", ".join(f"{int(written[n].kept[0])} of {n} at once" for n in guesses)
    print(
        f"{path}: {len(texts[0])} tokens after a prompt of {len(ids)}; the same ids:"
        f" {len(set(map(tuple, texts.values()))) == 1}; guesses kept: {kept}"
    )
    print(repr(tokenizer.decode(texts[0])))
    base = found["plain greedy"]
    for name, seconds in found.items():
        print(
            told(name, seconds, base),
            f"  {statistics.median(b / a for a, b in zip(seconds, base, strict=True)):.2f} times as"
            " fast",
        )


NOTES = (
    "The committee met on Monday to discuss the new bridge over the river. The bridge will be 240"
    " metres long and will cost 18 million euros. Work on the bridge begins in April and ends two"
    " years later. Until then the old ferry will carry cars and bicycles across the river. The"
    " committee also discussed the library. The library will stay open until nine in the evening. A"
    " new roof for the library will be built in the summer. The next meeting of the committee is on"
    " the first of March.\n"
)


def cache(turns: int, slots: int = 4096, rows: int = 2) -> None:
    """Milliseconds of a token, and bytes, behind full caches of each kind."""
    base = model.smollm("2-135m", num_layers=6, vocab_size=256, context=slots)
    window = dataclasses.replace(
        base, pattern=(model.Layer("window", 512), model.Layer("window", 512), model.Layer())
    )
    kinds = {
        "whole": (base, "full"),
        "8 bits": (base, "int8"),
        "4 bits": (base, "int4"),
        "two of three windows": (window, "full"),
        "windows in 8 bits": (window, "int8"),
    }
    ways, sizes = {}, {}
    for name, (config, kept) in kinds.items():
        params = weights(config)
        prompt, lengths, limit = (
            np.ones((rows, slots - 64), np.int32),
            np.full(rows, slots - 64, np.int32),
            np.full(rows, 64, np.int32),
        )
        state = jax.block_until_ready(
            prefill(config, params, prompt, lengths, limit, slots=slots, kv_cache=kept)
        )
        sizes[name] = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache))
        greedy = Sampling(
            np.zeros(rows, np.float32), np.full(rows, 256, np.int32), np.ones(rows, np.float32)
        )

        def run(config=config, params=params, state=state, greedy=greedy) -> float:
            copy = jax.block_until_ready(jax.tree.map(jnp.copy, state))
            begun = time.perf_counter()
            keys, stop = jax.random.split(jax.random.key(0), rows), np.full((rows, 1), -1, np.int32)
            slots = fill(copy, None, Columns(keys, greedy, stop))
            jax.block_until_ready(advance(config, params, slots, 16, 256))
            return (time.perf_counter() - begun) / 16

        ways[name] = run
    found = in_turns(ways, turns)
    print(
        f"a token of {rows} rows behind {slots - 64} others, 6 layers of SmolLM2-135M, {turns}"
        " turns"
    )
    for name, seconds in found.items():
        print(told(name, seconds, found["whole"]), f"  {sizes[name] / 2**20:8.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["constraints", "lookup", "cache"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--spelling")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=list(FORMS),
        default=list(FORMS),
        help="the first is what the others are compared with",
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--guesses", type=int, nargs="+", default=[8])
    parser.add_argument(
        "--weights",
        choices=typing.get_args(Stored),
        help=(
            "lay look-up's model out for decoding, as gptjax sample does; without, it is read as it"
            " was loaded"
        ),
    )
    given = parser.parse_args()
    match given.what:
        case "constraints":
            constraints(given.spelling, given.forms, given.turns, given.tokens)
        case "lookup":
            lookup(given.model, given.turns, given.tokens, given.guesses, given.weights)
        case "cache":
            cache(given.turns)


if __name__ == "__main__":
    main()
