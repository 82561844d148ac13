"""`gptjax serve MODEL`: an OpenAI-compatible server for one model.

Read `ServeOptions`, then `run_serve`: keys, socket, model, engine, and `_run` until a signal ends
it. The socket comes first, so that a port in use is reported before a model is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptjax.api import Model, load
from gptjax.cli.adapters import holding
from gptjax.core.config import require
from gptjax.data.prompt_library import PromptTemplate, read_library
from gptjax.generate.watermark import read_watermark
from gptjax.model import KVCache
from gptjax.sharding.mesh import MeshConfig
from gptjax.weights import Prepared

NEEDED = ("starlette", "uvicorn", "prometheus_client")
"""Packages of the extra `serve`."""


@dataclass(frozen=True)
class ServeOptions:
    """Flags of `serve`."""

    slots: int = 8
    """Requests that are answered at the same time."""
    context: int = 2048
    """Tokens of a request, prompt and answer together, at most the model's context. Each slot
    has as many."""
    host: str = "127.0.0.1"
    """Address to listen at. One that other machines reach needs --key-file."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    name: str | None = None
    """Name under which clients ask for the model; `None` means that of its file or
    directory."""
    key_file: str | None = None
    """File of the keys by which clients may ask, one `name key` a line."""
    cache_gib: float = 1.0
    """Memory for the beginnings of prompts, which later prompts reuse."""
    packed: bool = False
    """Keep weights that the model's files quantise as they are stored, instead of widening them."""
    kv_cache: KVCache = "full"
    """How keys and values are kept, of requests and of the prefix cache."""
    weights: Prepared | None = None
    """How weights are stored; `None` keeps the type in which the model computes."""
    step: int | None = None
    """Checkpoint of a run; `None` means the newest."""
    live: bool = False
    """Take the latest weights of a run, also where it kept averaged ones (--optim.ema)."""
    adapter: tuple[str, ...] = ()
    """NAME=DIR of an adapter to load beside the model, which clients ask for by its name; may
    be repeated."""
    prompts: str | None = None
    """Library of prompts, a TOML file of templates, which clients may ask for by name."""
    moderate: str | None = None
    """Run of a classifier that reads what clients send and are sent, and stops what is harmful."""
    moderate_allow: tuple[str, ...] = ("harmless",)
    """Labels of the classifier that may pass."""
    moderate_threshold: float = 0.5
    """Probability of harm from which a text is stopped; larger lets more pass."""
    watermark: str | None = None
    """Key file of the watermark that all answers get; `gptjax detect-watermark` finds it."""
    template: str | None = None
    """Chat template: a name such as chatml, or a .jinja file; `None` means the model's own."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices that share the model. Without any --mesh flag it is on one device."""
    drain: float = 10.0
    """Seconds that answers have to end after SIGTERM or Ctrl-C."""
    allow_origin: tuple[str, ...] = ()
    """Origins of web pages on other servers that may ask: https://example.org."""
    allow_host: tuple[str, ...] = ()
    """Names by which clients call this server, besides localhost and addresses in digits."""
    max_waiting: int = 256
    """Requests that may wait for a slot; further ones are told to come again."""
    max_waiting_tokens: int = 1 << 20
    """Prompt tokens of the requests that may wait."""
    access_log: bool = True
    """Write a line of JSON for each request on standard error."""


def run_serve(path: Path, options: ServeOptions) -> int:
    """Serves a model as the flags say until a signal ends it, and returns the exit status: 0, or 1
    if the engine failed.

    Raises:
      ConfigError: a flag or the model can't be used, or the port is taken.
    """
    _require_usable(options)
    from gptjax.serve.engine_config import EngineConfig
    from gptjax.serve.limits import Guard, read_keys, require_origins
    from gptjax.serve.listen import bound

    settings = EngineConfig(
        slots=options.slots,
        context=options.context,
        cache_gib=options.cache_gib,
        kv_cache=options.kv_cache,
        max_waiting=options.max_waiting,
        max_waiting_tokens=options.max_waiting_tokens,
    )
    require_origins(options.allow_origin)
    if options.watermark is not None:
        read_watermark(options.watermark)
    prompts = {} if options.prompts is None else read_library(options.prompts)
    keys = [] if options.key_file is None else read_keys(Path(options.key_file))
    hosts = [options.host, *options.allow_host]
    guard = Guard(keys=keys, hosts=hosts, origins=options.allow_origin)
    with contextlib.closing(bound(options.host, options.port, has_keys=bool(keys))) as opened:
        moderator = _moderator(options)
        model = _opened_model(path, options)
        engine = model.engine(**asdict(settings))
        try:
            name = options.name or path.name.removesuffix(".gguf")
            return _run(engine, name, guard, opened, options, prompts, moderator)
        finally:
            engine.close()


def _require_usable(options: ServeOptions) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    require(
        not missing,
        f"serving needs {', '.join(missing)}; install them: pip install 'gptjax[serve]'.",
    )
    context = options.context
    require(context >= 16, f"context is {context}; it needs at least 16 (--context).")
    require(options.drain >= 0, f"drain is {options.drain}; it needs 0 or more seconds (--drain).")
    require(0 <= options.port < 65536, f"port is {options.port}; ports are 0 to 65535 (--port).")


def _opened_model(path: Path, options: ServeOptions) -> Model:
    opened = load(path, options.step, options.mesh, live=options.live, packed=options.packed)
    return holding(opened, options.adapter).prepared(options.weights)


def _moderator(options: ServeOptions) -> Any:
    """The filter that was asked for, which has read a text already, so that it is compiled."""
    if options.moderate is None:
        return None
    from gptjax.serve.moderation import Moderator

    made = Moderator(load(options.moderate), options.moderate_allow, options.moderate_threshold)
    made.stops(["Hello."])
    return made


def _run(
    engine: Any,
    name: str,
    guard: Any,
    opened: socket.socket,
    options: ServeOptions,
    prompts: Mapping[str, PromptTemplate],
    moderator: Any,
) -> int:
    """Serves until a signal ends it or the engine fails."""
    from gptjax.serve.access import line_writer
    from gptjax.serve.constraints import Compiler
    from gptjax.serve.http import Service, application
    from gptjax.serve.listen import listen, url_of
    from gptjax.serve.metrics import Metrics
    from gptjax.serve.protocol import served_model

    model = engine.model
    served = served_model(
        name,
        model.config,
        model.tokenizer,
        context=engine.context,
        fingerprint=engine.fingerprint,
        task=model.task,
        adapters=model.adapters,
        template=options.template,
        created=int(time.time()),
        prompts=prompts,
        watermark=read_watermark(options.watermark).text if options.watermark else "",
    )
    compiler = Compiler(model.tokenizer)
    service = Service(engine, served, compiler, Metrics(engine, name), moderator)
    app = application(service, guard, [line_writer()] if options.access_log else [])

    async def serving() -> int:
        status = await listen(
            app,
            engine,
            opened,
            drain=options.drain,
            ready=lambda: _greet(url_of(opened), name, engine, options, has_keys=bool(guard.keys)),
        )
        if status:
            print(f"error: the engine has failed{engine.why}.", file=sys.stderr, flush=True)
        # Threads that still tokenize must not hold up the end.
        leaving = threading.Timer(0.3, _leave, (status,))
        leaving.daemon = True
        leaving.start()
        return status

    try:
        return asyncio.run(serving())
    finally:
        compiler.close()


def _leave(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def _greet(url: str, name: str, engine: Any, options: ServeOptions, *, has_keys: bool) -> None:
    """Says where the server is, what it can do, and what to type next."""
    body = {"model": name, "messages": [{"role": "user", "content": "Hello!"}]}
    key = '-H "Authorization: Bearer KEY" ' if has_keys else ""
    facts = engine.facts()
    print(
        f"{name} is served at {url}: {facts.rows} slots of {engine.context} tokens"
        f" ({facts.slot_bytes / 2**30:.3g} GiB), and up to {options.cache_gib:g} GiB for beginnings"
        " of prompts\n"
        + (f"{options.moderate} reads what comes in and goes out\n" if options.moderate else "")
        + f"page: {url}/\n"
        f"try: curl {url}/v1/chat/completions {key}-d '{json.dumps(body)}'\n"
        "Ctrl-C ends it.",
        flush=True,
    )
