"""`gptjax serve` beside other servers on the same weights, in turns, and its latencies.

    python benchmarks/serving.py peers --model MODEL --gguf FILE --peer-python PYTHON
    python benchmarks/serving.py library --model MODEL
    python benchmarks/serving.py latency --model MODEL

`peers`: 8 clients in a closed loop, conversations of 64 to 512 tokens, 64 new tokens each, greedy.
llama.cpp's own server comes from the package `xllamacpp`, `transformers serve
--continuous-batching` from `transformers[serving]`, both of `--peer-python`. `library`: the same
prompts through `Model.complete`, with 1 and 8 rows. `latency`: time to the first token, cold and
after a prefix of 1,000 tokens that was read before; gaps between tokens while another client sends
a prompt of 2,000; time from the start of the process to the first answer.

Servers that wait for their turn stay loaded and idle.
"""

from __future__ import annotations

import argparse
import datetime as dt
import http.client
import itertools
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LLAMA_CPP = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_parallel, params.n_ctx = int(sys.argv[3]), int(sys.argv[3]) * 2048
params.hostnames, params.port, params.verbosity = ["127.0.0.1"], int(sys.argv[2]), 0
params.cpuparams.n_threads = int(sys.argv[4])
if len(sys.argv) > 5:
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1e6)
"""


class Told(NamedTuple):
    """What a client saw of one answer."""

    first: float
    """Seconds to the first text."""
    gaps: list[float]
    """Seconds between texts."""
    tokens: int
    seconds: float
    cached: int = 0


class Server(NamedTuple):
    """A contestant."""

    name: str
    process: subprocess.Popen
    port: int
    model: str
    more: dict[str, Any]
    """Fields of its requests."""

    def ask(self, text: str, new_tokens: int = 64) -> Told:
        """One streamed answer."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.more,
        }
        since = time.perf_counter()
        wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        wire.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body),
            {"Content-Type": "application/json"},
        )
        answer = wire.getresponse()
        if answer.status != 200:
            raise SystemExit(f"{self.name}: {answer.status} {answer.read()[:500]!r}")
        times, usage, pieces = [], {}, 0
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            told = json.loads(line[6:])
            usage = told.get("usage") or usage
            if any((c.get("delta") or {}).get("content") for c in told.get("choices", ())):
                times.append(time.perf_counter())
                pieces += 1
        wire.close()
        details = usage.get("prompt_tokens_details") or {}
        return Told(
            first=times[0] - since if times else float("nan"),
            gaps=[b - a for a, b in itertools.pairwise(times)],
            tokens=usage.get("completion_tokens") or pieces,
            seconds=time.perf_counter() - since,
            cached=details.get("cached_tokens") or 0,
        )


def texts(count: int, words: tuple[int, int] = (45, 360), seed: int = 0) -> list[str]:
    """Passages of our own documentation, about 64 to 512 tokens each."""
    pages = sorted(path for path in (ROOT / "docs").glob("*.md") if ".zh" not in path.suffixes)
    whole = " ".join(path.read_text() for path in pages).split()
    draw, found = random.Random(seed), []
    for _ in range(count):
        size = draw.randint(*words)
        at = draw.randrange(len(whole) - size)
        found.append("Summarise: " + " ".join(whole[at : at + size]))
    return found


# --- servers


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def started(command: list[str], port: int, log: Path, path: str = "/health") -> subprocess.Popen:
    """Starts a server and waits until it listens."""
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    until = time.monotonic() + 600
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"{command[:4]} ended:\n{log.read_text()[-2000:]}")
        try:
            wire = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            wire.request("GET", path)
            if wire.getresponse().status < 500:
                return process
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"{command[:4]} does not answer.")


def gptjax_server(options: argparse.Namespace, folder: Path, *flags: str) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "gptjax", "serve", options.model, "--port", str(port)]
    command += ["--slots", str(options.clients), "--name", "m", "--no-access-log", *flags]
    command += ["--weights", options.weights] if options.weights else []
    process = started(command, port, folder / "gptjax.log")
    return Server("gptjax", process, port, "m", {"ignore_eos": True})


def llama_server(options: argparse.Namespace, folder: Path) -> Server:
    port = free_port()
    threads = str(os.cpu_count())
    command = [options.peer_python, "-c", LLAMA_CPP, options.gguf, str(port)]
    command += [str(options.clients), threads, "f32"]
    process = started(command, port, folder / "llama.log")
    return Server("llama.cpp", process, port, "m", {"ignore_eos": True})


def transformers_server(options: argparse.Namespace, folder: Path) -> Server:
    port = free_port()
    binary = str(Path(options.peer_python).parent / "transformers")
    command = [binary, "serve", options.hf, "--continuous-batching", "--port", str(port)]
    command += ["--device", "cpu", "--dtype", options.dtype]
    process = started(command, port, folder / "transformers.log")
    config = {"eos_token_id": None, "max_new_tokens": 64, "do_sample": False}
    more = {"generation_config": json.dumps(config)}
    return Server("transformers", process, port, options.hf, more)


def loop(server: Server, prompts: list[str], clients: int) -> tuple[float, list[Told]]:
    """Tokens per second of so many clients, each with one request at a time."""
    since = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        told = list(pool.map(server.ask, prompts))
    return sum(one.tokens for one in told) / (time.perf_counter() - since), told


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


# --- what is measured


def peers(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Tokens per second of each, in turns."""
    makers: dict[str, Callable[[argparse.Namespace, Path], Server]] = {"gptjax": gptjax_server}
    if options.gguf:
        makers["llama.cpp"] = llama_server
    if options.hf:
        makers["transformers"] = transformers_server
    servers: dict[str, Server] = {}
    try:
        for name, make in makers.items():
            servers[name] = make(options, folder)
        ready(servers["gptjax"])
        for server in servers.values():
            loop(server, texts(options.clients, seed=99), options.clients)
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for turn in range(options.turns):
            prompts = texts(options.requests, seed=turn)
            for name, server in servers.items():
                rate, told = loop(server, prompts, options.clients)
                gaps = [gap for one in told for gap in one.gaps]
                rows[name].append(
                    {
                        "tokens_per_second": rate,
                        "tokens": sum(one.tokens for one in told),
                        "first_p50": quantile([one.first for one in told], 0.5),
                        "gap_p99": quantile(gaps, 0.99),
                    }
                )
                print(turn, name, {k: round(v, 3) for k, v in rows[name][-1].items()}, flush=True)
        ours = [row["tokens_per_second"] for row in rows["gptjax"]]
        ratios = {
            name: statistics.median(
                a / row["tokens_per_second"] for a, row in zip(ours, other, strict=True)
            )
            for name, other in rows.items()
        }
        print("gptjax / other, median of turns:", {k: round(v, 2) for k, v in ratios.items()})
        return {"rows": rows, "ratios": ratios}
    finally:
        for server in servers.values():
            server.process.terminate()


def ready(server: Server) -> None:
    """Waits until every program is compiled."""
    while True:
        wire = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        wire.request("GET", "/ready")
        if wire.getresponse().status == 200:
            return
        time.sleep(0.5)


def library(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The server against `Model.complete` of the same prompts, with 1 and 8 rows, in turns."""
    import gptjax
    from gptjax.data.tokenizers import chat

    model = gptjax.load(options.model).prepared()
    form = chat.choose_template(None, model.tokenizer)
    found: dict[str, Any] = {}
    for clients in (1, 8):
        options.clients = clients
        server = gptjax_server(options, folder)
        try:
            ready(server)
            ratios = []
            for turn in range(options.turns):
                prompts = texts(max(4, 2 * clients), seed=turn)
                rate, _ = loop(server, prompts, clients)
                messages = [[chat.Message("user", text)] for text in prompts]
                ids = [chat.render(form, one, model.tokenizer) for one in messages]
                settings = {"new_tokens": 64, "min_new_tokens": 64, "temperature": 0.0}
                settings |= {"top_p": 1.0, "batch": clients}
                model.complete(ids, **settings)  # compiles
                since = time.perf_counter()
                done = model.complete(ids, **settings)
                own = sum(len(one.ids) for one in done) / (time.perf_counter() - since)
                ratios.append(rate / own)
                print(clients, round(rate, 1), round(own, 1), round(rate / own, 3), flush=True)
            found[str(clients)] = {"ratio": statistics.median(ratios), "all": ratios}
        finally:
            server.process.terminate()
            server.process.wait()
    print({rows: round(one["ratio"], 3) for rows, one in found.items()})
    return found


def latency(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """First tokens and gaps of the server alone."""
    since = time.perf_counter()
    server = gptjax_server(options, folder, "--context", "4096")
    try:
        server.ask("Hello", 1)
        start = time.perf_counter() - since
        ready(server)
        cold, hit = [], []
        for turn in range(options.turns):
            (long,) = texts(1, (640, 640), seed=1000 + turn)
            cold.append(server.ask(long, 1).first)
            told = server.ask(long + " And then?", 1)
            hit.append(told.first)
        quiet = [server.ask(text).gaps for text in texts(3, seed=7)]
        gaps: list[float] = []
        for turn in range(options.turns):
            (huge,) = texts(1, (1300, 1300), seed=2000 + turn)
            other = threading.Thread(target=server.ask, args=(huge, 1))
            timer = threading.Timer(0.5, other.start)
            timer.start()
            gaps += server.ask(texts(1, seed=8 + turn)[0], 64).gaps
            timer.join()
            other.join()
        found = {
            "start_to_first_answer": start,
            "first_cold": statistics.median(cold),
            "first_hit": statistics.median(hit),
            "hit_cached_tokens": told.cached,
            "hit_over_cold": statistics.median(b / a for a, b in zip(cold, hit, strict=True)),
            "gap_p50_alone": quantile([gap for one in quiet for gap in one], 0.5),
            "gap_p99_beside_2000_tokens": quantile(gaps, 0.99),
        }
        print(json.dumps(found, indent=1))
        return found
    finally:
        server.process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("peers", "library", "latency"))
    parser.add_argument("--model", required=True)
    parser.add_argument(
        "--gguf", help="the same weights for llama.cpp: gptjax convert MODEL X.gguf"
    )
    parser.add_argument("--hf", help="the same weights for transformers, a directory")
    parser.add_argument("--weights", help="how gptjax keeps them: float32, bfloat16, int8")
    parser.add_argument("--dtype", default="float32", help="how transformers keeps them")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure = {"peers": peers, "library": library, "latency": latency}[options.what]
        found = measure(options, Path(folder))
    facts = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        **{k: str(v) for k, v in vars(options).items() if k not in ("out", "peer_python")},
        options.what: found,
    }
    if options.out:
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
