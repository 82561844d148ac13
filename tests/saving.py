"""A small training state, runs that hold it, and processes that save it and die."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.runs import Run, manifest

ROOT = Path(__file__).parents[1]
PARAMS = {
    "embed": {"table": np.linspace(-1, 1, 96, dtype=np.float32).reshape(12, 8)},
    "layers": {
        "attention": {"query": np.arange(64, dtype=np.float32).reshape(8, 8)},
        "scale": np.array([1.5, -0.0, np.nan, np.inf], np.float32),
    },
}


def params(seed: int = 0):
    return jax.tree.map(lambda x: jnp.asarray(x) + seed, PARAMS)


def optimizer():
    schedule = optax.linear_schedule(1e-3, 0, 10)
    masked = {"embed": True, "layers": {"attention": False, "scale": False}}
    return optax.chain(
        optax.clip_by_global_norm(1),
        optax.adamw(schedule, mu_dtype=jnp.bfloat16),
        optax.masked(optax.trace(0.9), masked),
    )


@jax.jit
def state(seed: int = 0):
    weights = params(seed)
    steps = optimizer()
    _, opt_state = steps.update(jax.tree.map(jnp.ones_like, weights), steps.init(weights), weights)
    return {"params": weights, "opt_state": opt_state}


def shapes(trees):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trees)


def assert_same_bits(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(path, *steps, trees=state, metrics=None, **options):
    run = Run(path, **options)
    with run.lock():
        for step in steps:
            run.save(step, trees(step), (metrics or {}).get(step))
    return run


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def files_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def python(code: str, *args, **options) -> subprocess.Popen:
    head = "import sys\nfrom gptjax.runs import Run\nrun = Run(sys.argv[1])\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", head + textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


SAVES = """
    import jax, jax.numpy as jnp
    def tree(step):
        return {
            "w": jnp.full((300, 1000), step, jnp.float32),
            "v": jnp.arange(step, step + 9),
        }
"""


def kill_while_saving(path: Path, seed: int, **options) -> None:
    code = (
        SAVES
        + f"    run = Run(sys.argv[1], **{options})\n"
        + """
    with run.lock():
        found = run.restore({"params": jax.eval_shape(lambda: tree(0))})
        for step in range(found[0] + 1 if found else 1, 10**6):
            run.save(step, {"params": tree(step)}, {"validation_loss": 1.0})
            print(step, flush=True)
    """
    )
    child = python(code, path)
    first = int(child.stdout.readline())
    child.stdout.readline()  # a save returns when the one before is on disk
    time.sleep(random.Random(seed).uniform(0.0, 0.3))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    run = Run(path)
    shape = {
        "w": jax.ShapeDtypeStruct((300, 1000), jnp.float32),
        "v": jax.ShapeDtypeStruct((9,), jnp.int32),
    }
    for step in run.steps():
        manifest.verify(run.checkpoints / str(step))
    if first > 1:
        step, trees = run.restore({"params": shape}, say=pytest.fail)
        assert step >= first - 1
        assert_same_bits(
            trees["params"],
            {
                "w": jnp.full((300, 1000), step, jnp.float32),
                "v": jnp.arange(step, step + 9, dtype=jnp.int32),
            },
        )
    with run.lock():
        assert not [p for p in os.listdir(run.checkpoints) if p.startswith(".")]
