"""Weights of a run that do not train: saved once, beside the checkpoints, in `RUN/frozen`.

Checkpoints then hold only what trains. `restore_params` puts both together.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from gptjax.core import processes
from gptjax.core.arrays import Params
from gptjax.runs.checkpoints import Run, leaves
from gptjax.runs.manifest import Leaf

FOLDER = "frozen"


def save_frozen(path: Path, params: Params) -> None:
    """Saves the frozen half of the parameters in a run directory, in place of any earlier one.

    Raises:
      OSError: there is no room.
    """
    if processes.first():
        shutil.rmtree(path / FOLDER, ignore_errors=True)
    run = Run(path / FOLDER)
    with run.lock():
        run.save(0, {"params": params})
        run.wait()


def restore(path: Path, shapes: Params) -> Params:
    """Reads what `save_frozen` wrote, and verifies it.

    Raises:
      ConfigError: it is absent, damaged, or does not fit the shapes.
    """
    return Run(path / FOLDER).restore({"params": shapes}, step=0, fall_back=False)[1]["params"]


def hash_frozen(path: Path) -> str:
    """Returns a hash of names, shapes, types and contents of a run's frozen weights; empty if there
    are none."""
    if not (path / FOLDER).is_dir():
        return ""
    lines = sorted(str(tuple(leaf)) for leaf in leaves(path / FOLDER))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def record(path: Path, freeze: tuple[str, ...]) -> dict[str, str]:
    """Returns what a run's identity says of its frozen weights."""
    return {"frozen": hash_frozen(path)} if freeze else {}


def restore_params(
    path: Path, shapes: Params, *, tree: str = "params", step: int | None = None
) -> Params | None:
    """Reads all parameters of a run: those that train from a checkpoint, the others from
    `RUN/frozen`. `None` if there is no intact checkpoint.

    Args:
      shapes: of all parameters.
      tree: `params`, or `ema` for the averaged weights.
      step: of the checkpoint; `None` means the newest.

    Raises:
      ConfigError: the run does not fit the shapes.
    """
    from gptjax.core.trees import combine, partition, paths  # the room imports no JAX by itself

    if not (path / FOLDER).is_dir():
        restored = Run(path).restore({tree: partial(_as_kept, shapes)}, step=step)
        return restored and _widened(restored[1][tree], shapes)
    import jax

    frozen = {leaf.path for leaf in leaves(path / FOLDER)}
    trains: Any = jax.tree.unflatten(
        jax.tree.structure(shapes), [name not in frozen for name in paths(shapes)]
    )
    trainable, rest = partition(shapes, trains)
    restored = Run(path).restore({tree: partial(_as_kept, trainable)}, step=step)
    if restored is None:
        return None
    own = _widened(restored[1][tree], trainable)
    return combine({"params": restore(path, rest)}, own)


def _as_kept(shapes: Params, saved: tuple[Leaf, ...]) -> Params:
    """The shapes, with the type of each leaf that a run keeps in bfloat16 (`optim.weights`)."""
    import jax

    from gptjax.core.trees import paths

    narrow = {leaf.path for leaf in saved if leaf.dtype == "bfloat16"}
    leaves, structure = jax.tree.flatten(shapes)
    named = zip(paths(shapes), leaves, strict=True)
    return structure.unflatten(
        [leaf.update(dtype="bfloat16") if name in narrow else leaf for name, leaf in named]
    )


def _widened(params: Params, shapes: Params) -> Params:
    import jax

    return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), params, shapes)
