"""Faults on demand, to try a recovery before it is needed: `GPTJAX_FAULT=kind@step[:rank]`, several
parted by commas.

`KINDS` says what there is. Steps are those of the log: the first is 1. A rank is a process of a run
on several hosts; without one, every process meets the fault. While the variable is not set, neither
the compiled step nor the loop holds anything of this file.

Read `planned` (what was asked for), then the two places where faults enter: `in_gradients` and
`in_batches`.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from gptjax.core.config import nearest, require

KINDS = {
    "nan_grad": "the gradients of the step are NaN",
    "nan_from": "those of this step and of every later one are NaN",
    "scale_grad": "the gradients are 1e30 times too large",
    "spike_grad": "the gradients are 100 times too large",
    "stall": "the step never ends on the devices",
    "data_error": "reading the batch of the step fails",
    "data_stall": "reading it never ends",
    "slow": "reading the batches from this step on takes 50 ms longer",
    "term": "SIGTERM arrives before the step, as from a scheduler that wants the machine back",
    "kill": "SIGKILL arrives before the step, as from the kernel when memory is short",
}

GRADIENTS = {
    "nan_grad": float("nan"),
    "nan_from": float("nan"),
    "scale_grad": 1e30,
    "spike_grad": 100.0,
}


class Fault(NamedTuple):
    """One fault to come."""

    kind: str
    step: int
    rank: int | None


def planned() -> tuple[Fault, ...]:
    """The faults that `GPTJAX_FAULT` asks for; none if it is not set.

    Raises:
      ConfigError: an unknown kind, or not of the form kind@step[:rank].
    """
    found = []
    for word in filter(None, os.environ.get("GPTJAX_FAULT", "").replace(" ", "").split(",")):
        parts = re.fullmatch(r"(\w+)@(\d+)(?::(\d+))?", word)
        require(
            parts is not None,
            f"GPTJAX_FAULT is {word!r}; it needs kind@step or kind@step:rank, for example kill@20.",
        )
        kind, step, rank = parts[1], int(parts[2]), None if parts[3] is None else int(parts[3])
        require(
            kind in KINDS,
            f"GPTJAX_FAULT has the kind {kind!r}; it can be"
            f" {', '.join(KINDS)}.{nearest(kind, KINDS)}",
        )
        require(step >= 1, f"GPTJAX_FAULT is {word!r}; the first step is 1.")
        require(
            rank is None or kind not in GRADIENTS,
            f"GPTJAX_FAULT is {word!r}; gradients are the same on every rank, so leave out"
            f" ':{rank}'.",
        )
        found.append(Fault(kind, step, rank))
    return tuple(found)


def in_gradients(faults: tuple[Fault, ...], gradients: Callable, finished: Any) -> Callable:
    """Wraps a gradient function (see `train.step.Gradients`) in those faults that spoil gradients;
    without any it is returned as it is.

    Args:
      finished: number of finished steps, traced.
    """
    mine = [fault for fault in faults if fault.kind in GRADIENTS or fault.kind == "stall"]
    if not mine:
        return gradients
    import jax

    def spoiled(*args: Any) -> Any:
        outputs, grads = gradients(*args)
        for fault in mine:
            if fault.kind == "stall":
                jax.debug.callback(_stall, finished, fault=fault)
            else:
                grads = _scaled(grads, finished, fault)
        return outputs, grads

    return spoiled


def _scaled(grads: Any, finished: Any, fault: Fault) -> Any:
    import jax
    import jax.numpy as jnp

    forever = fault.kind == "nan_from"
    hit = finished + 1 >= fault.step if forever else finished + 1 == fault.step
    return jax.tree.map(lambda g: jnp.where(hit, g * GRADIENTS[fault.kind], g), grads)


def _stall(finished: Any, fault: Fault) -> None:
    if finished + 1 == fault.step and _here(fault):
        _sleep()


def in_batches(
    faults: tuple[Fault, ...], source: Callable[[int, Any], Any]
) -> Callable[[int, Any], Any]:
    """Wraps a source of batches (finished steps, state) in those faults that happen while a batch
    is read."""
    mine = {
        fault.step: fault
        for fault in faults
        if fault.kind in ("data_error", "data_stall", "term", "kill")
    }
    slow = [fault for fault in faults if fault.kind == "slow"]
    if not mine and not slow:
        return source

    def spoiled(finished: int, state: Any) -> Any:
        if any(finished + 1 >= fault.step and _here(fault) for fault in slow):
            time.sleep(0.05)
        fault = mine.get(finished + 1)
        if fault and _here(fault):
            match fault.kind:
                case "data_error":
                    raise OSError(f"GPTJAX_FAULT: the batch of step {fault.step} can't be read")
                case "data_stall":
                    _sleep()
                case "term" | "kill":
                    os.kill(os.getpid(), signal.SIGTERM if fault.kind == "term" else signal.SIGKILL)
        return source(finished, state)

    return spoiled


def _here(fault: Fault) -> bool:
    import jax

    return fault.rank is None or fault.rank == jax.process_index()


def _sleep() -> None:
    threading.Event().wait()
