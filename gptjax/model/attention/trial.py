"""Tries a vendor's attention kernel before it is trusted: forward and backward on the shapes of
the layer, against the reference.

Read `fault_of`. A kernel that does not compile, or computes something else, costs a run nothing:
`select_attention` takes the next one and says why.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array
from gptjax.core.backend import user_cache
from gptjax.core.config import first_line
from gptjax.model.attention import kernels
from gptjax.model.attention.mask import MaskInputs, ScoreConfig
from gptjax.model.attention.reference import reference
from gptjax.model.config import Layer, ModelConfig

LENGTH = 1024
"""Rows of a trial are at most as long: the reference holds the square of it."""

TOLERANCE = 0.03
"""Relative error of an output or a gradient that bfloat16 explains: three of its roundings of
2⁻⁸ and some room. A kernel that forgets the mask or the scale is off by 0.3 and more."""

KERNELS: dict[str, Callable[..., Array]] = {
    "cudnn": lambda q, k, v, seen, how, sink: kernels.cudnn(q, k, v, seen, how),
    "splash": kernels.splash,
}
"""What is tried, with one signature."""


class Case(NamedTuple):
    """What a kernel is asked to do in a layer; also the key under which a verdict is kept."""

    kernel: str
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    compute: str
    sees: str
    span: int | None
    scale: float | None
    cap: float | None
    sink: bool


def case_of(kernel: str, config: ModelConfig, length: int, layer: Layer) -> Case:
    """Returns the case of a layer, with rows of at most `LENGTH` and one group of heads."""
    shorter = min(length, LENGTH)
    return Case(
        kernel,
        shorter,
        heads=max(1, config.num_heads // config.kv_heads),
        kv_heads=1,
        head_dim=config.query_width,
        value_dim=config.value_width,
        compute=config.compute,
        sees=layer.sees,
        span=None if layer.span is None else min(layer.span, shorter),
        scale=config.scale,
        cap=config.attention_cap,
        sink=config.attention_sink,
    )


def fault_of(kernel: str, config: ModelConfig, length: int, layer: Layer) -> str | None:
    """Returns what is wrong with a kernel in this layer on this machine's device, or `None`.

    A verdict is kept for the versions, the device and the shapes that it was reached with: in the
    process, and in `kernels.json` in the user's cache. Where memory runs out there is none, since
    what else is held decides that: the kernel is tried again the next time.

    Args:
      kernel: one of `KERNELS`.
      length: queries of a row.
    """
    try:
        return _verdict(case_of(kernel, config, length, layer))
    except MemoryError as error:
        return f"no memory is left for it ({error})"


@functools.cache
def _verdict(case: Case) -> str | None:
    key = hashlib.sha256(json.dumps([*_machine(), *case]).encode()).hexdigest()[:32]
    known = _kept()
    if key not in known:
        # in a thread, since this one may be in the middle of tracing, and on a mesh
        with concurrent.futures.ThreadPoolExecutor(1) as alone:
            found = alone.submit(tried, case).result()
        known = {**_kept(), key: {**case._asdict(), "fault": found}}
        _keep(known)
    return known[key]["fault"]


def tried(case: Case, run: Callable[..., Array] | None = None) -> str | None:
    """Runs a kernel forward and backward, with a whole row and with a row of two documents.

    Args:
      run: the kernel; `KERNELS` has it if not given.

    Returns:
      What is wrong, in one line; `None` if all agrees with the reference to `TOLERANCE`.

    Raises:
      MemoryError: there was too little memory to tell.
    """
    run = run or KERNELS[case.kernel]
    how = ScoreConfig(Layer(case.sees, case.span), case.scale, case.cap)
    try:
        for documents in (1, 2):
            inputs, seen = _inputs(case, documents)

            def kernel(q, k, v, sink, seen=seen):
                return run(q, k, v, seen, how, sink)

            def exact(q, k, v, sink, seen=seen):
                return reference(q, k, v, seen, how, None, sink, 0.0, None)

            wide = tuple(None if x is None else x.astype(jnp.float32) for x in inputs)
            for name, found, true in zip(
                ("output", "gradient of queries", "gradient of keys", "gradient of values"),
                _forward_backward(kernel, inputs),
                _forward_backward(exact, wide),
                strict=True,
            ):
                wrong = _error(found, true)
                if not wrong <= TOLERANCE:
                    where = "" if documents == 1 else " of packed documents"
                    return f"its {name}{where} is off by {100 * wrong:.0f} %"
    except Exception as error:
        said = first_line(error)[:160]
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(said) from error
        return said
    return None


def _inputs(case: Case, documents: int) -> tuple[tuple[Array | None, ...], MaskInputs]:
    """Queries, keys, values and sinks of one row, and who sees whom."""
    shapes = (
        (1, case.length, case.heads, case.head_dim),
        (1, case.length, case.kv_heads, case.head_dim),
        (1, case.length, case.kv_heads, case.value_dim),
    )
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (
        jax.random.normal(key, shape).astype(case.compute)
        for key, shape in zip(keys[:3], shapes, strict=True)
    )
    sink = jax.random.normal(keys[3], (case.heads,)) if case.sink else None
    at = jnp.arange(case.length, dtype=jnp.int32)[None]
    if documents == 1:
        return (q, k, v, sink), MaskInputs(at, at)
    border = case.length // 3
    segment = (at >= border).astype(jnp.int32)
    at = jnp.where(segment == 0, at, at - border)
    return (q, k, v, sink), MaskInputs(at, at, segment, segment)


def _forward_backward(attention: Callable[..., Array], inputs: tuple) -> tuple[Array, ...]:
    """Returns the output, and the gradients by queries, keys and values for a fixed cotangent."""
    q, k, v, sink = inputs

    @jax.jit
    def both(q, k, v):
        out, back = jax.vjp(lambda *three: attention(*three, sink), q, k, v)
        towards = jax.random.normal(jax.random.key(1), out.shape).astype(out.dtype)
        return (out, *back(towards))

    return both(q, k, v)


def _error(found: Array, true: Array) -> float:
    """The norm of the difference relative to that of the true value; NaN if anything is."""
    found = found.astype(jnp.float32)
    return float(jnp.linalg.norm(found - true) / jnp.linalg.norm(true))


# --- what is remembered


def _machine() -> tuple[str, ...]:
    device = jax.local_devices()[0]
    return jax.__version__, device.device_kind, device.client.platform_version


def _kept() -> dict[str, dict]:
    try:
        return json.loads((user_cache() / "kernels.json").read_text())
    except (OSError, ValueError):
        return {}


def _keep(verdicts: dict[str, dict]) -> None:
    path = user_cache() / "kernels.json"
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(verdicts, indent=1))
        os.replace(partial, path)
    except OSError:  # a read-only home: it is tried again
        partial.unlink(missing_ok=True)


def trial_report(kernel: str) -> list[str]:
    """Returns a line for each shape of heads: whether a kernel may be used on this device."""
    lines = []
    for width in (64, 128, 256):
        for layer in (Layer(), Layer("window", 256)):
            config = ModelConfig(num_heads=2, head_width=width, compute="bfloat16", context=LENGTH)
            found = fault_of(kernel, config, LENGTH, layer) or "agrees with the reference"
            lines.append(f"{kernel}, heads of {width}, a layer that sees {layer.sees!r}: {found}")
    return lines
