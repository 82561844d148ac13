"""The same GGUF file in gptjax and in llama.cpp: the same text, the same loss, and how fast.

    python benchmarks/llama_cpp.py text
    python benchmarks/llama_cpp.py speed --turns 9

`text` writes SmolLM2-135M-Instruct as Q8_0 and Q4_0, asks both programs for 32 greedy tokens after
each of 20 prompts, and compares ln p of the tokens of a text. `speed` decodes one row in turns; a
turn is an answer of `--tokens` tokens, with the prompt read again by both. gptjax keeps the file's
codes and rounds activations in blocks, as llama.cpp does (`--packed --weights q8_0`), unless
`--weights None` says otherwise. llama.cpp is the package `xllamacpp`, with as many threads as
cores.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import paired

HERE = Path(__file__)
BOOKS = HERE.parents[1] / "../shared/data/books/books.jsonl.gz"
PACKED = ("q8_0", "q4_0")
KINDS = ("float32", *PACKED)
TOKENS, PREFIX, SCORED, VOCABULARY = 32, 16, 48, 49_152
PROMPTS = (
    "The harbour was quiet",
    "To make bread you need",
    "The capital of France is",
    "Once upon a time there was a king who",
    "In physics, energy is",
    "def fibonacci(n):",
    "The most important thing about sleep is",
    "She opened the letter and",
    "A prime number is",
    "The Roman Empire",
    "Water boils at",
    "Dear Sir or Madam,",
    "The three primary colours are",
    "My favourite season is",
    "To learn a language",
    "The sun is a star that",
    "Photosynthesis is the process by which",
    "He had never seen the sea before, and",
    "The heart pumps blood",
    "A good teacher",
)


def main() -> None:
    """Compares texts and losses, or takes the turns."""
    parser = paired.parser(__doc__)
    parser.add_argument("what", nargs="?", choices=("text", "speed"), default="text")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--weights", default="q8_0", help="of packed files; None rounds nothing")
    options = parser.parse_args()
    if options.worker:
        told = json.loads(options.worker)
        {"gptjax": _ours, "llama.cpp": _theirs}[told.pop("stack")](**told)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: written(options.model, kind, Path(folder)) for kind in options.kinds}
        if options.what == "text":
            texts(files, options)
        else:
            speeds(files, options)


def written(model: str, kind: str, folder: Path) -> Path:
    """The model's GGUF file of one kind."""
    from gptjax.formats import gguf
    from gptjax.runs.open import open_model

    path = folder / f"{kind}.gguf"
    gguf.save_gguf(path, open_model(model), kind)
    return path


# --- text


def opened(path: str, kind: str, weights: str) -> Any:
    """The file as it is decoded from here."""
    import gptjax

    if kind not in PACKED:
        return gptjax.load(path).prepared(kind)  # type: ignore[arg-type]
    stored = None if weights == "None" else weights
    return gptjax.load(path, packed=True).prepared(stored)  # type: ignore[arg-type]


def texts(files: dict[str, Path], options: Any) -> None:
    """Prints, for each file, how many answers agree, and the mean −ln p of the same tokens."""

    with gzip.open(BOOKS, "rt", encoding="utf-8") as books:
        book = json.loads(next(books))["text"]
    print("| file | same text | shared beginning | loss here | loss of llama.cpp |")
    print("|---|---|---|---|---|")
    for kind, path in files.items():
        ours = opened(str(path), kind, options.weights)
        theirs = server(path, options.threads)
        mine = ours.complete(PROMPTS, new_tokens=TOKENS, temperature=0.0)
        shares = []
        for prompt, answer in zip(PROMPTS, mine, strict=True):
            ids = ours.tokenizer.encode(prompt).tolist()
            other = [one["id"] for one in asked(theirs, ids, n_predict=TOKENS, n_probs=1)]
            same = [a == b for a, b in zip(answer.ids, other, strict=False)]
            shares.append((*same, False).index(False) / len(answer.ids))
        ids = ours.tokenizer.encode(book)[: PREFIX + SCORED].tolist()
        print(
            f"| {kind} | {sum(share == 1 for share in shares)} of {len(PROMPTS)} |"
            f" {statistics.mean(shares):.1%} | {loss_here(ours, ids):.4f} |"
            f" {loss_there(theirs, ids):.4f} |",
            flush=True,
        )


def loss_here(ours: Any, ids: list[int]) -> float:
    """Mean −ln p of the tokens after the first `PREFIX`."""
    import jax
    import jax.numpy as jnp

    from gptjax import model

    @jax.jit
    def nats(params: Any, ids: jax.Array) -> jax.Array:
        hidden = model.forward(ours.config, params, ids).hidden
        return jax.nn.log_softmax(model.unembed(ours.config, params, hidden)[0])

    log_probs = nats(ours.params, jnp.array([ids]))
    places = np.arange(PREFIX, len(ids))
    return -float(np.asarray(log_probs)[places - 1, np.array(ids)[places]].mean())


def loss_there(server: Any, ids: list[int]) -> float:
    """The same of llama.cpp's server, a question for each token."""
    found = []
    for place in range(PREFIX, len(ids)):
        answer = asked(server, ids[:place], n_predict=1, n_probs=VOCABULARY)
        likely = answer[0]["top_logprobs"]
        found.append(next(one["logprob"] for one in likely if one["id"] == ids[place]))
    return -statistics.mean(found)


def server(path: Path, threads: int) -> Any:
    """llama.cpp's server within this process, for one row, its cache in float32 as ours is."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_batch, params.n_parallel = 512, 512, 1
    params.cpuparams.n_threads, params.warmup, params.verbosity = threads, False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def asked(server: Any, ids: list[int], **more: Any) -> list[dict[str, Any]]:
    """Its greedy answer to a prompt's ids: id and ln p of each token, if `n_probs` is given."""
    ask = {"prompt": ids, "temperature": 0.0, "cache_prompt": False}
    answer = server.handle_completions(ask | more)
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    return answer["choices"][0]["logprobs"]["content"]


# --- speed


def speeds(files: dict[str, Path], options: Any) -> None:
    """Prints tokens a second of both programs, and the ratio of turns beside each other."""
    import gptjax

    for kind, path in files.items():
        ids = gptjax.load(str(path)).tokenizer.encode(PROMPTS[0])
        told = {
            "path": str(path),
            "kind": kind,
            "tokens": options.tokens,
            "threads": options.threads,
            "weights": options.weights,
        }
        told["ids"] = [int(one) for one in ids]
        ways = {
            name: paired.Way(sys.executable, HERE, {"stack": name} | told)
            for name in ("gptjax", "llama.cpp")
        }
        found = paired.in_turns(ways, options.turns, patience=300)  # the first turn compiles
        print(f"{kind}, one row, {options.tokens} tokens after {len(ids)}")
        print(*paired.told(found, lambda second: f"{1 / second:.1f} tok/s"), sep="\n")
        times = paired.ratio(found["llama.cpp"], found["gptjax"])
        print(f"gptjax is {times} times as fast as llama.cpp", flush=True)


def _ours(path: str, kind: str, tokens: int, threads: int, weights: str, ids: list[int]) -> None:
    from gptjax.cli import process
    from gptjax.core import backend

    backend.configure()
    process.keep_freed_memory()  # as the command does

    del threads  # XLA takes the cores that there are
    ours = opened(path, kind, weights)

    def turn() -> float:
        begun = time.perf_counter()
        answer = ours.complete([ids], new_tokens=tokens, min_new_tokens=tokens, temperature=0.0)
        return (time.perf_counter() - begun) / len(answer[0].ids)

    paired.serve(turn)


def _theirs(path: str, kind: str, tokens: int, threads: int, weights: str, ids: list[int]) -> None:
    del kind, weights
    started = server(Path(path), threads)

    def turn() -> float:
        begun = time.perf_counter()
        answer = asked(started, ids, n_predict=tokens, n_probs=1, ignore_eos=True)
        return (time.perf_counter() - begun) / len(answer)

    paired.serve(turn)


if __name__ == "__main__":
    main()
