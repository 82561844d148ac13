"""The manifest of a saved step: what it holds, and the hashes that prove it unchanged.

Read in this order: `named` (a tree to names and leaves) and `nested` (names to Orbax's tree);
`Manifest`; `make_manifest` and `write_manifest`, when saving; `read_manifest`, `checked` and
`verify`, when restoring; `require_same`, which compares what is saved with what is wanted.

Orbax 0.12 has no checksum of its payload: all of 150 random bit flips came back as wrong weights,
silently. So a step carries `manifest.json`, with the size and SHA-256 of every file,
and `manifest.sha256`, with the hash of the manifest (`sha256sum -c` reads it).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core import processes
from gptjax.core.config import ConfigError, nearest, require

VERSION = 1
NAME, SEAL = "manifest.json", "manifest.sha256"


class Damaged(Exception):
    """A step on disk differs from what was saved. The message names the file and the reason."""


class Leaf(NamedTuple):
    """One saved array. `crc32` is of its bytes in C order; `None` if no process held all of
    them."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    crc32: int | None


class Manifest(NamedTuple):
    """The contents of a step on disk."""

    step: int
    metrics: dict[str, float | None]  # a value that is not finite is None: JSON has no NaN
    trees: dict[str, tuple[Leaf, ...]]
    files: dict[str, tuple[int, str]]  # below the step's folder → (bytes, SHA-256)
    versions: dict[str, str]


# --- trees ----------------------------------------------------------------------------------------


def named(tree: Any) -> tuple[dict[str, Any], Any]:
    """Returns the leaves of a tree by name, such as `layers/attention/query`, and the structure to
    rebuild it.

    Optimizer states nest NamedTuples with and without arrays, for which Orbax has no stable form;
    names are stable.

    Raises:
      ConfigError: two leaves would have the same name in Orbax, which joins keys by dots and keeps
        the last silently.
    """
    import jax

    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for path, leaf in pairs:
        parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
        name, shown = "/".join(parts), jax.tree_util.keystr(path)
        other = seen.setdefault(name.replace("/", "."), shown)
        require(
            other == shown,
            f"the leaves {other} and {shown} would have the same name when saved; rename one.",
        )
        leaves[name] = leaf
    for shown, (path, _) in zip(seen.values(), pairs, strict=True):
        for part in (jax.tree_util.keystr((key,), simple=True) for key in path):
            require(
                part != "" and not set(part) & set("./"),
                f"the key {part!r} of the leaf {shown} can't be saved; use a name without '.' and"
                " '/'.",
            )
        require(len(path) > 0, "a bare array can't be saved as a tree; put it into a dict.")
    return leaves, structure


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Returns the nested dicts that the names of `named` describe: an ordinary tree for any reader
    of Orbax."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return tree


def summarize(leaves: dict[str, Any]) -> tuple[Leaf, ...]:
    """Returns shape, dtype and checksum of each array, reading all their bytes."""
    return tuple(
        Leaf(name, tuple(leaf.shape), str(leaf.dtype), crc32(leaf)) for name, leaf in leaves.items()
    )


def crc32(array: Any) -> int | None:
    """Returns the CRC-32 of an array's bytes in C order; `None` if this process does not hold all
    of them."""
    import numpy as np

    if not (getattr(array, "is_fully_addressable", True) or array.is_fully_replicated):
        return None
    return zlib.crc32(np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8))


def require_same(
    step: int, tree: str, saved: Iterable[Leaf], wanted: dict[str, Any], *, cast: bool = False
) -> None:
    """Compares what a step holds with the arrays that the caller wants; nothing is cast or omitted
    silently.

    Args:
      cast: accept another dtype.

    Raises:
      ConfigError: names up to 20 leaves that are missing, unknown, or of another shape or dtype.
    """
    have = {leaf.path: leaf for leaf in saved}
    wrong = [
        f"{n} is not in the checkpoint.{nearest(n, have)}".rstrip(".")
        for n in wanted
        if n not in have
    ]
    wrong += [f"{n} is only in the checkpoint" for n in have if n not in wanted]
    for name in [n for n in wanted if n in have]:
        (shape, dtype), leaf = (tuple(wanted[name].shape), str(wanted[name].dtype)), have[name]
        if leaf.shape != shape:
            wrong.append(f"{name} has shape {list(leaf.shape)}, wanted {list(shape)}")
        if leaf.dtype != dtype and not cast:
            wrong.append(f"{name} is {leaf.dtype}, wanted {dtype} (--cast allows that)")
    more = f"; and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    require(
        not wrong,
        f"{tree} of step {step} does not fit the config: {'; '.join(wrong[:20])}{more}. Use the"
        " config that it was trained with.",
    )


# --- writing --------------------------------------------------------------------------------------


def written_by(folder: Path, process: int) -> dict[str, tuple[int, str]]:
    """Hashes the files below `folder` that one of several processes wrote (Orbax gives each a
    folder), and flushes them to disk."""
    names = sorted(
        str(p.relative_to(folder))
        for p in folder.glob(f"*/ocdbt.process_{process}/**/*")
        if p.is_file()
    )
    return {name: _measure(folder / name, sync=True) for name in names}


def make_manifest(
    folder: Path,
    step: int,
    metrics: dict[str, float],
    trees: dict[str, tuple[Leaf, ...]],
    known: dict[str, tuple[int, str]] | None = None,
) -> Manifest:
    """Hashes every file below `folder` and flushes it to disk.

    Args:
      known: files that other processes wrote and hashed.
    """
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    files = {
        name: tuple((known or {}).get(name) or _measure(folder / name, sync=True)) for name in names
    }
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return Manifest(step, finite, trees, files, _versions())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest and its seal, and flushes them and all folders to disk."""
    text = json.dumps({"version": VERSION, **manifest._asdict()}, allow_nan=False).encode() + b"\n"
    for name, content in ((NAME, text), (SEAL, _seal(text))):
        with open(folder / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for place in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_folder(place)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk; without it a power failure may undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _measure(path: Path, sync: bool = False) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, digest


def _seal(text: bytes) -> bytes:
    return f"{hashlib.sha256(text).hexdigest()}  {NAME}\n".encode()


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("gptjax", "jax", "orbax-checkpoint"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # gptjax in a checkout that is not installed
            versions[package] = "unknown"
    return versions


# --- reading --------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """Reads a step's manifest.

    Raises:
      Damaged: it is absent or has changed.
      ConfigError: a newer gptjax wrote it.
    """
    try:
        text, seal = (folder / NAME).read_bytes(), (folder / SEAL).read_bytes()
    except OSError as error:
        raise Damaged(f"{Path(error.filename).name} can't be read ({error.strerror})") from None
    if seal != _seal(text):
        raise Damaged(f"{NAME} does not match {SEAL}")
    data = json.loads(text)
    if data["version"] != VERSION:
        raise ConfigError(
            f"{folder} has format {data['version']}, this gptjax reads {VERSION}; use the gptjax"
            f" that wrote it ({data['versions']})."
        )
    trees = {
        tree: tuple(Leaf(n, tuple(s), d, c) for n, s, d, c in leaves)
        for tree, leaves in data["trees"].items()
    }
    return Manifest(
        data["step"],
        data["metrics"],
        trees,
        {n: (size, h) for n, (size, h) in data["files"].items()},
        data["versions"],
    )


LARGE = 2**20
"""Bytes. Smaller files are metadata, and a reader that trusts wrong metadata may fail in any way,
so they are checked before it starts."""


@contextlib.contextmanager
def checked_together(folder: Path, trees: Iterable[str] | None = None) -> Iterator[Manifest]:
    """Like `checked`, for several processes that all read this step: each hashes a share of the
    large files, before any process reads.

    Raises:
      Damaged: on entering, on all processes.
    """
    manifest, damage = None, None
    try:
        with checked(folder, trees, share=(processes.index(), processes.count())) as manifest:
            pass
    except Damaged as error:
        damage = str(error)
    if first := next(filter(None, processes.gather("checked", damage)), None):
        raise Damaged(first)
    yield manifest


@contextlib.contextmanager
def checked(
    folder: Path, trees: Iterable[str] | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[Manifest]:
    """Checks every file of `trees` (default: all) against the manifest while the caller reads
    them. What was read is valid once the context is left.

    Sizes and small files are checked on entering. Large files are hashed while they are read, which
    costs little if a core is free: hashing runs at 1.8 GB/s, about as fast as Orbax reads.

    Args:
      share: (i, n): check only the i-th of n shares of the large files.

    Raises:
      Damaged: on entering or leaving; names the first file that differs, even if reading failed.
    """
    manifest = read_manifest(folder)
    wanted = set(manifest.trees if trees is None else trees)
    if str(manifest.step) != folder.name:
        raise Damaged(f"{NAME} is that of step {manifest.step}")
    files = {
        name: known
        for name, known in manifest.files.items()
        if "/" not in name or name.split("/")[0] in wanted
    }
    for name, (size, _) in files.items():
        try:
            present = (folder / name).stat().st_size
        except OSError as error:
            raise Damaged(f"{name} can't be read ({error.strerror})") from None
        if present != size:
            raise Damaged(f"{name} has {present} bytes instead of {size}")
    large = sorted(
        (name for name, (size, _) in files.items() if size >= LARGE),
        key=lambda name: (-files[name][0], name),
    )
    mine, loads = [], [0] * share[1]
    for name in large:  # the next largest goes to the smallest share
        i = loads.index(min(loads))
        loads[i] += files[name][0]
        mine += [name] if i == share[0] else []
    files = {name: known for name, known in files.items() if name in mine or name not in large}
    # Threads suffice, since hashing releases the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting = {name: pool.submit(_try_measure, folder / name) for name in mine}
        _require_unchanged(
            files, {name: _try_measure(folder / name) for name in files if name not in waiting}
        )
        try:
            yield manifest
        finally:
            _require_unchanged(files, {name: future.result() for name, future in waiting.items()})


def verify(folder: Path, trees: Iterable[str] | None = None) -> Manifest:
    """Reads the manifest and checks every file of `trees` (default: all) against it.

    Raises:
      Damaged: names the first file that differs.
    """
    with checked(folder, trees) as manifest:
        return manifest


def _require_unchanged(
    files: dict[str, tuple[int, str]], hashes: dict[str, tuple[int, str] | None]
) -> None:
    for name, measured in hashes.items():
        if measured != files[name]:
            raise Damaged(f"{name} has changed since it was saved")


def _try_measure(path: Path) -> tuple[int, str] | None:
    try:
        return _measure(path)
    except OSError:
        return None
