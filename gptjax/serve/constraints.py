"""Compiles constraints in a process of its own, which is ended where that takes too long.

A schema of a kilobyte may take minutes to compile, and nothing in Python stops a thread. So a
client's constraint is compiled by a child process before its request is admitted; the automaton
travels on with the request (`Request.automaton`), and equal constraints share one.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from gptjax.core.config import ConfigError
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.batch import never_written
from gptjax.generate.constraints import TokenAutomaton, ends_of, spell
from gptjax.generate.request import Request
from gptjax.serve.stream import Busy

SECONDS = 5.0
"""Time that one constraint may take to compile."""

START_SECONDS = 60.0
"""Time in which the child has to be ready: it imports jax."""

WAITING = 8
"""Constraints that may wait while another is compiled."""

KEPT = 64
"""Automata that are kept, the latest used ones."""

MEMORY = 4 << 30
"""Bytes that the child may allocate."""


class Compiler:
    """The child process, and the automata that it made. Methods may be called by any thread."""

    def __init__(self, tokenizer: Tokenizer, seconds: float = SECONDS) -> None:
        self._tokenizer, self._seconds = tokenizer, seconds
        self._turn, self._waiting = threading.Lock(), 0
        self._made: collections.OrderedDict[Any, TokenAutomaton] = collections.OrderedDict()
        self._child: Any = None
        self._pipe: Connection | None = None

    async def prepared(self, request: Request) -> Request:
        """The request with its constraint compiled, if it has one.

        Raises:
          ConfigError: the constraint is malformed, too large, or takes too long to compile.
          Busy: too many others wait to be compiled.
        """
        constraint = request.settings.constraint
        if constraint is None:
            return request
        banned = never_written(request.settings, self._tokenizer)
        automaton = await asyncio.to_thread(self.compile_within, *constraint, banned)
        return request._replace(automaton=automaton)

    def compile_within(
        self, kind: str, source: Any, banned: frozenset[int] = frozenset()
    ) -> TokenAutomaton:
        """Like `generate.constraints.compiled`, within the seconds that this compiler allows.

        Raises:
          ConfigError: as `compiled`, or it took too long.
          Busy: too many others wait to be compiled.
        """
        key = (kind, source, banned)
        if (known := self._known(key)) is not None:
            return known
        if self._waiting >= WAITING:
            raise Busy(f"{WAITING} other constraints wait to be compiled.", round(self._seconds))
        self._waiting += 1
        try:
            with self._turn:
                made = self._known(key) or self._ask(kind, source, banned)
        finally:
            self._waiting -= 1
        self._made[key] = made
        with contextlib.suppress(KeyError):
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
        return made

    def start(self) -> None:
        """Starts the child if there is none, and waits until it is ready."""
        with self._turn:
            self._started()

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.join()

    def _known(self, key: Any) -> TokenAutomaton | None:
        found = self._made.get(key)
        if found is not None:
            with contextlib.suppress(KeyError):
                self._made.move_to_end(key)
        return found

    def _ask(self, kind: str, source: Any, banned: frozenset[int]) -> TokenAutomaton:
        pipe = self._started()
        try:
            pipe.send((kind, source, banned))
            if not pipe.poll(self._seconds):
                raise ConfigError(
                    f"the {kind} takes more than {self._seconds:g} seconds to compile; use shorter"
                    " repetitions, fewer items or flatter nesting."
                )
            answer = pipe.recv()
        except ConfigError:
            self.close()
            raise
        except (EOFError, OSError):
            self.close()
            raise ConfigError(
                f"the {kind} needs too much memory to compile; use shorter repetitions, fewer items"
                " or flatter nesting."
            ) from None
        if isinstance(answer, str):
            raise ConfigError(answer)
        return answer

    def _started(self) -> Connection:
        if self._child is None or self._pipe is None or not self._child.is_alive():
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            given = (theirs, spell(self._tokenizer), ends_of(self._tokenizer))
            child = context.Process(target=_work, args=given, daemon=True)
            child.start()
            theirs.close()
            self._child, self._pipe = child, ours
            try:
                ready = ours.poll(START_SECONDS) and ours.recv()
            except (EOFError, OSError):
                ready = False
            if not ready:
                self.close()
                raise RuntimeError("the process that compiles constraints did not start.")
        return self._pipe


def _work(pipe: Connection, pieces: np.ndarray, ends: tuple[int, ...]) -> None:
    """The child: compiles one constraint after another, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    from gptjax.generate.constraints import compile_tokens

    _bound_memory()
    pipe.send(True)
    while True:
        try:
            kind, source, banned = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(compile_tokens(kind, source, pieces, ends, banned))
        except ConfigError as error:
            pipe.send(str(error))
        except (MemoryError, RecursionError):
            pipe.send(f"the {kind} is too large to compile.")
        except Exception as error:
            pipe.send(f"the {kind} can't be compiled ({type(error).__name__}).")


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _bound_memory() -> None:
    """Lets allocations beyond `MEMORY` fail, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
