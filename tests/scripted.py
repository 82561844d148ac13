"""A server whose engine follows a script, for tests of everything around the engine."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections import namedtuple
from typing import Any

import httpx
import numpy as np

from gptjax import model
from gptjax.data import Bytes
from gptjax.data.tokenizers.tokenizer import train_tokenizer
from gptjax.serve.access import line_writer
from gptjax.serve.constraints import Compiler
from gptjax.serve.http import Service, application
from gptjax.serve.limits import Guard
from gptjax.serve.metrics import Metrics
from gptjax.serve.protocol import served_model
from gptjax.serve.stream import Piece, Stream, Unwell, Usage

TOKENIZER = train_tokenizer(Bytes(), [])
CONFIG = model.small("tiny", vocab_size=TOKENIZER.vocab_size, context=256)
KEY = "correct-horse-battery-staple"
SECRET = "my-secret-prompt"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}]}

Counts = namedtuple("Counts", "rows writing waiting written_tokens compiles")


class Scripted:
    """An engine that answers with the words of a script, one each `pause` seconds; an exception in
    it is raised there. No answer has more words than tokens were asked for."""

    def __init__(self, *script: Any, pause=0.0):
        self.script, self.pause = script or ("Hel", "lo", "!"), pause
        self.state, self.running, self.refuse = "ready", 0, None
        self.asked, self.ended, self.streams, self.stuck = [], [], [], False

    def facts(self):
        return Counts(rows=8, writing=self.running, waiting=0, written_tokens=7, compiles=2)

    def submit(self, ask):
        if self.refuse:
            raise self.refuse
        self.asked.append(ask)
        stream = Stream(lambda: self.ended.append(ask))
        self.streams.append(stream)
        self.running += 1
        asyncio.get_running_loop().create_task(self._write(stream, ask))
        return stream

    async def _write(self, stream, ask):
        try:
            if ask.wants == "embedding":
                one = np.ones(4, np.float32) / 2
                stream.put(Piece(reason="stop", embedding=one, usage=Usage(3, 0, 0)))
                return
            for word in self.script[: ask.request.settings.new_tokens]:
                await asyncio.sleep(self.pause)
                if any(one is ask for one in self.ended):
                    return
                if isinstance(word, Exception):
                    stream.fail(word)
                    return
                ids = list(word.encode())
                stream.put(Piece(text=word, ids=ids, logprobs=[-1.0] * len(ids)))
            stream.put(Piece(reason="length", usage=Usage(3, 1, 6)))
        finally:
            self.running -= 1

    def close(self, drain=0.0):
        self.state, self.refuse = "draining", Unwell("the engine is draining.")
        until = time.monotonic() + drain
        while self.running and time.monotonic() < until:
            time.sleep(0.01)
        if self.stuck:
            threading.Event().wait(30)
        for stream in self.streams:
            stream.fail(Unwell("the engine was closed."))
        self.state = "closed"


def app_of(engine=None, guard=None, out=None, moderator=None):
    """The server of an engine; its log goes to `out`."""
    engine = engine or Scripted()
    served = served_model("tiny", CONFIG, TOKENIZER, context=256)
    service = Service(engine, served, Compiler(TOKENIZER), Metrics(engine, "tiny"), moderator)
    return application(service, guard or Guard(), [line_writer(out or io.StringIO())])


def ask(app, method, path, *, host="127.0.0.1:8000", headers=(), **body):
    """One request, answered whole."""

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            told = {"host": host, **dict(headers)}
            return await client.request(method, path, headers=told, **body)

    return asyncio.run(run())
