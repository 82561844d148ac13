"""The arrays of a step, written and read by Orbax: `start_writing`, `close`, `read_leaves`."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from gptjax.runs import manifest as manifests


def start_writing(folder: Path, trees: dict[str, dict[str, Any]]) -> Any:
    """Copies the arrays to the host and starts writing them; returns the object to wait on."""
    ocp = orbax()
    trees = _with_bytes(trees)
    # If folders are created in the background, a failed save blocks the end of the process for 20
    # minutes.
    options = ocp.AsyncOptions(create_directories_asynchronously=False)
    writer = ocp.AsyncCheckpointer(_handler(ocp, trees), async_options=options)
    try:
        if trees:
            writer.save(
                folder,
                args=ocp.args.Composite(
                    **{
                        t: ocp.args.PyTreeSave(manifests.nested(leaves))
                        for t, leaves in trees.items()
                    }
                ),
            )
    except BaseException:
        close(writer)
        raise
    return writer


def close(writer: Any) -> None:
    """Ends a writer's threads."""
    with contextlib.suppress(Exception):  # its errors were raised before
        writer.close()


def read_leaves(
    folder: Path, trees: dict[str, dict[str, Any]], dtypes: dict[str, dict[str, str]]
) -> dict[str, dict[str, Any]]:
    """Reads the leaves of each tree onto their devices, in the dtypes in which they were saved."""
    import jax

    ocp = orbax()
    default = jax.numpy.zeros(()).sharding

    def place(leaf: Any) -> Any:
        return getattr(leaf, "sharding", None) or default

    as_saved = {
        t: {
            n: jax.ShapeDtypeStruct(leaf.shape, dtypes[t][n], sharding=place(leaf))
            for n, leaf in leaves.items()
        }
        for t, leaves in trees.items()
    }
    full = _with_bytes(as_saved)
    args = {}
    for tree, leaves in full.items():
        restore_args = {
            n: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=leaf.sharding)
            for n, leaf in leaves.items()
        }
        args[tree] = ocp.args.PyTreeRestore(
            manifests.nested(leaves), restore_args=manifests.nested(restore_args)
        )
    restored: Any = {}
    if args:
        with contextlib.closing(ocp.Checkpointer(_handler(ocp, full))) as reader:
            restored = reader.restore(folder, args=ocp.args.Composite(**args))
    arrays = {tree: manifests.named(restored[tree])[0] if tree in full else {} for tree in trees}
    for tree, leaves in as_saved.items():
        arrays[tree] |= {
            n: jax.numpy.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
            for n, leaf in leaves.items()
            if not leaf.size
        }
    return arrays


def orbax() -> Any:
    """Imports Orbax when it is needed, since that takes a second, and keeps its log off the
    terminal: its errors reach us as exceptions."""
    import orbax.checkpoint

    # After the import, in which absl creates its logger.
    logging.getLogger("absl").addFilter(_not_from_orbax)
    return orbax.checkpoint


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _handler(ocp: Any, trees: Any) -> Any:
    # Weights hardly compress (8 %), and not trying saves a third of the time.
    return ocp.CompositeCheckpointHandler(
        **{tree: ocp.PyTreeCheckpointHandler(use_compression=False) for tree in trees}
    )


def _with_bytes(trees: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Omits what Orbax refuses: arrays without elements, and trees without arrays, such as the
    state of plain SGD."""
    full = {
        tree: {name: leaf for name, leaf in leaves.items() if leaf.size}
        for tree, leaves in trees.items()
    }
    return {tree: leaves for tree, leaves in full.items() if leaves}
