"""A run directory's steps: saved in the background, committed by one rename, verified before they
are read.

Read in this order: `Run.save` and `_commit` (how a step comes to exist), `_publish` and `_retain`
(which steps stay), `restore`; `leaves` answers questions about a step without touching an array.

Of several processes each writes and reads its own shards; the first alone decides which step
counts, and tells the others.

`checkpoints/STEP/` holds one Orbax folder for each tree (`params/`, `opt_state/`, …) and the
manifest. Whatever begins with a dot is not a step: `.saving-*` is being written, `.trash-*` is
being deleted, `.replaced-*` is the old of a step being replaced.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gptjax.core import processes
from gptjax.core.config import ConfigError, require
from gptjax.runs import lock as locks
from gptjax.runs import manifest as manifests
from gptjax.runs import payload
from gptjax.runs.manifest import Damaged, Leaf, Manifest


class Run:
    """The checkpoints of one run directory. Reading needs no lock and changes nothing; saving needs
    `with run.lock():`.

    Args:
      keep_newest: so many of the latest steps stay; None keeps all.
      keep_best: so many of the steps with the lowest `validation_loss` stay besides.
    """

    def __init__(self, path: Path | str, *, keep_newest: int | None = 2, keep_best: int = 1):
        require(
            keep_newest is None or keep_newest >= 1,
            f"keep_newest is {keep_newest}; keep at least 1 step, or the run can't be resumed.",
        )
        require(keep_best >= 0, f"keep_best is {keep_best}; it needs 0 or more.")
        self.path = Path(path)
        self.checkpoints = self.path.absolute() / "checkpoints"
        self._keep_newest, self._keep_best = keep_newest, keep_best
        self._lock = locks.Lock(self.path, self._join)
        self._thread: threading.Thread | None = None
        self._importing: threading.Thread | None = None
        self._failure: OSError | None = None

    def lock(self) -> locks.Lock:
        """Gives a context in which this process is the run's only trainer. Entering cleans up after
        one that died, leaving waits for the last save.

        Raises:
          ConfigError: on entering; another process trains here, or the directory can't be written.
        """
        return self._lock

    # --- saving -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Imports what saving needs, in a thread, so that nobody waits for it, neither at the start
        nor at the first save. May be called often."""
        if self._importing is None:
            self._importing = threading.Thread(target=payload.orbax, name="import", daemon=True)
            self._importing.start()

    def save(
        self, step: int, trees: dict[str, Any], metrics: dict[str, float] | None = None
    ) -> None:
        """Copies the trees to the host, then returns; writing and committing go on in the
        background.

        The arrays may be donated or changed at once. A save that is still going on is waited for
        first. At the end of the process a pending save is finished; if it fails then, the exit
        status is 1.

        Raises:
          OSError: this save or the one before failed; says what is needed. Earlier steps are
            intact.
          ConfigError: a tree's keys are ambiguous.
        """
        self._need_lock()
        self._join()
        step = int(step)
        require(step >= 0, f"the step to save is {step}; it needs 0 or more.")
        named = {tree: manifests.named(value)[0] for tree, value in trees.items()}
        require(
            all(tree.isidentifier() for tree in named),
            f"the trees to save are {list(named)}; use plain names.",
        )
        size = sum(
            leaf.size * leaf.dtype.itemsize for leaves in named.values() for leaf in leaves.values()
        )
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        summaries = {
            tree: manifests.summarize(leaves) for tree, leaves in named.items()
        }  # before Orbax's threads take the cores
        folder = self.checkpoints / f".saving-{step}"
        if trouble := processes.by_first("room", lambda: self._make_room(step, size)):
            raise OSError(trouble)
        try:
            writer = payload.start_writing(folder, named)
        except Exception as error:
            raise self._failed(step, size, error) from error
        self._thread = threading.Thread(
            target=self._commit,
            args=(writer, folder, step, numbers, summaries, size),
            name=f"save-{step}",
        )
        self._thread.start()
        if not locks.finish_at_exit(self._finish):
            self._join()

    def _make_room(self, step: int, size: int) -> str | None:
        """Why a step of so many bytes can't be saved, if that is known beforehand: TensorStore is
        loud when it fails half way."""
        self._discard()
        full = shutil.disk_usage(self.checkpoints).free < size + 1_000_000  # 1 MB for metadata
        return (
            str(self._failed(step, size, OSError(errno.ENOSPC, "the disk is full")))
            if full
            else None
        )

    def _commit(
        self,
        writer: Any,
        folder: Path,
        step: int,
        metrics: dict[str, float],
        trees: dict[str, tuple[Leaf, ...]],
        size: int,
    ) -> None:
        """Runs in the background."""
        try:
            writer.wait_until_finished()
            shards = processes.gather(
                "shards",
                manifests.written_by(folder, processes.index()) if processes.several() else {},
            )
        except BaseException as error:  # told at the next save, or at the end
            self._failure = self._failed(step, size, error)
            return
        finally:
            payload.close(writer)
        known = {name: tuple(found) for part in shards for name, found in part.items()}
        trouble = processes.by_first(
            "commit", lambda: self._seal(folder, step, metrics, trees, known, size)
        )
        self._failure = OSError(trouble) if trouble else None

    def _seal(
        self,
        folder: Path,
        step: int,
        metrics: dict[str, float],
        trees: dict[str, tuple[Leaf, ...]],
        known: dict,
        size: int,
    ) -> str | None:
        """Makes a step of what was written; says what went wrong. Of several processes only the
        first comes here."""
        try:
            folder.mkdir(exist_ok=True)  # trees without a single array write nothing
            manifest = manifests.describe(folder, step, metrics, trees, known)
            manifests.write(folder, manifest)
            self._publish(folder, manifest)
        except BaseException as error:
            return str(self._failed(step, size, error))
        try:
            self._retain(step)
        except OSError as error:
            return (
                f"step {step} was saved, but older steps can't be deleted from {self.checkpoints}:"
                f" {error.strerror}."
            )
        return None

    def _publish(self, folder: Path, manifest: Manifest) -> None:
        """Gives the folder its final name. A step that is there already stays if it is whole and
        holds the same bits."""
        final, old = (
            self.checkpoints / str(manifest.step),
            self.checkpoints / f".replaced-{manifest.step}",
        )
        if final.exists():
            with contextlib.suppress(Damaged, ConfigError):
                there = manifests.verify(final)
                known = all(
                    leaf.crc32 is not None for leaves in manifest.trees.values() for leaf in leaves
                )
                if known and (there.trees, there.metrics) == (manifest.trees, manifest.metrics):
                    shutil.rmtree(folder)
                    return
            shutil.rmtree(old, ignore_errors=True)
            final.rename(
                old
            )  # from here to the next rename a crash leaves `old`, which `locks.clean` puts back
        folder.rename(final)
        manifests.sync_folder(self.checkpoints)
        shutil.rmtree(old, ignore_errors=True)

    def _retain(self, step: int) -> None:
        """Deletes steps older than `step`, which was just committed, that are neither among the
        newest nor among the best.

        Newer ones are left alone: they are there only if they were found damaged, so they may not
        displace a good one.
        """
        if self._keep_newest is None:
            return
        found = [s for s in self.steps() if s <= step]
        keep = {*found[-self._keep_newest :], *self._best(found)[: self._keep_best]}
        for s in (s for s in found if s not in keep):
            with locks.unread(self.checkpoints / str(s) / manifests.NAME) as unread:
                if unread:  # one that is being read goes with the next save
                    trash = self.checkpoints / f".trash-{s}"
                    shutil.rmtree(trash, ignore_errors=True)
                    (self.checkpoints / str(s)).rename(
                        trash
                    )  # at once gone for readers; a kill in rmtree leaves no half step
                    shutil.rmtree(trash, ignore_errors=True)

    def _best(self, steps: list[int]) -> list[int]:
        """Sorts the steps with a finite `validation_loss` by it, best first."""
        losses = {}
        for step in steps:
            with contextlib.suppress(Damaged, ConfigError):
                losses[step] = manifests.read(self.checkpoints / str(step)).metrics.get(
                    "validation_loss"
                )
        return sorted(
            (s for s, loss in losses.items() if loss is not None and math.isfinite(loss)),
            key=lambda s: (losses[s], s),
        )

    def wait(self) -> int | None:
        """Blocks until the pending save is committed and gives the newest step that is then on
        disk.

        Raises:
          OSError: the save failed.
        """
        self._join()
        return processes.by_first("newest", lambda: next(reversed(self.steps()), None))

    def rollback(self, step: int) -> list[int]:
        """Moves the steps after `step` to `checkpoints/rolled-back-N/`, so that training can go on
        from `step`; gives what it moved.

        Raises:
          ConfigError: there is no such step, or it is damaged. Nothing is moved then.
        """
        self._need_lock()
        self._join()
        return processes.by_first("rollback", lambda: self._roll_back(step))

    def _roll_back(self, step: int) -> list[int]:
        require(
            step in self._folders(),
            f"{self.path} has no step {step}; it has {self._listed()} (--rollback-to).",
        )
        try:
            manifests.verify(self.checkpoints / str(step))
        except Damaged as damage:
            raise ConfigError(
                f"{self.path}/checkpoints/{step} is damaged: {damage}. Choose another step"
                " (--rollback-to)."
            ) from None
        newer = [s for s in self._folders() if s > step]
        self._set_aside(newer, "rolled-back")
        return newer

    def _set_aside(self, steps: Iterable[int], why: str) -> None:
        for step in steps:
            aside = next(
                p
                for n in itertools.count(1)
                if not (p := self.checkpoints / f"{why}-{n}" / str(step)).exists()
            )
            aside.parent.mkdir(exist_ok=True)
            (self.checkpoints / str(step)).rename(aside)
        manifests.sync_folder(self.checkpoints)

    # --- reading ----------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Lists, from the disk, the steps that were committed and whose manifest is intact, oldest
        first."""
        found = []
        for step in self._folders():
            with contextlib.suppress(Damaged):
                manifests.read(self.checkpoints / str(step))
                found.append(step)
        return found

    def best(self) -> int | None:
        """Gives the step with the lowest `validation_loss`."""
        return next(iter(self._best(self.steps())), None)

    def restore(
        self,
        abstract: dict[str, Any],
        *,
        step: int | None = None,
        fall_back: bool = True,
        cast: bool = False,
        say: Callable[[str], Any] = print,
    ) -> tuple[int, dict[str, Any]] | None:
        """Reads the newest whole step (or `step`), bit for bit as it was saved; None if there is no
        step at all.

        Only the trees in `abstract` are verified and read. A trainer moves damaged steps to
        `checkpoints/damaged-N/`; a reader leaves them.

        Args:
          abstract: for each tree that is wanted, a tree of `jax.ShapeDtypeStruct`; where one has no
            sharding, the default device.
          fall_back: a damaged step gives way to the next older one, and `say` is told why;
            otherwise it is an error.
          cast: arrays that were saved with another dtype are rounded to that of `abstract`;
            otherwise they are an error.

        Raises:
          ConfigError: the step is absent or does not fit `abstract`, or there are steps and none is
            whole.
        """
        self._join()
        say = say if processes.first() else lambda line: None
        tried: dict[int, str] = {}
        if strays := self._strays():
            say(f"{self.path}/checkpoints: ignoring {', '.join(strays)}, which no step is called.")
        require(
            step is None or step in self._folders(),
            f"{self.path} has no step {step}; it has {self._listed()}.",
        )
        while (newest := processes.by_first("step", lambda: self._newest(step, tried))) is not None:
            folder = self.checkpoints / str(newest)
            try:
                with locks.shared(folder / manifests.NAME):
                    trees = self._read(folder, abstract, cast)
                if self._lock.held and processes.first():
                    self._set_aside(tried, "damaged")
                return newest, trees
            except Damaged as damage:
                if step is None and not folder.exists():
                    continue
                tried[newest] = str(damage)
                message = f"{self.path}/checkpoints/{newest} is damaged: {damage}"
                require(
                    fall_back,
                    f"{message}. Choose another step (--rollback-to), or let the one before be used"
                    " (leave out --no-fall-back).",
                )
                say(f"{message}; looking for an older step.")
        reasons = "; ".join(f"{s}: {why}" for s, why in tried.items())
        require(not tried, f"{self.path} has no whole step: {reasons}. Start in another directory.")
        return None

    def _read(self, folder: Path, abstract: dict[str, Any], cast: bool) -> dict[str, Any]:
        named = {tree: manifests.named(value) for tree, value in abstract.items()}
        manifest = manifests.read(folder)
        for tree, (wanted, _) in named.items():
            require(
                tree in manifest.trees,
                f"step {manifest.step} of {self.path} has no {tree!r}; it has"
                f" {', '.join(manifest.trees)}.",
            )
            manifests.require_same(manifest.step, tree, manifest.trees[tree], wanted, cast=cast)
        saved = {tree: {leaf.path: leaf.dtype for leaf in manifest.trees[tree]} for tree in named}
        with (
            manifests.checked_together(folder, abstract)
            if processes.several()
            else manifests.checked(folder, abstract)
        ):
            arrays = payload.read(
                folder, {tree: wanted for tree, (wanted, _) in named.items()}, saved
            )
        for tree, (wanted, _) in named.items():
            manifests.require_same(
                manifest.step, tree, manifest.trees[tree], arrays[tree]
            )  # JAX without x64 makes int64 an int32
            if cast:
                arrays[tree] = {n: leaf.astype(wanted[n].dtype) for n, leaf in arrays[tree].items()}
        return {
            tree: structure.unflatten([arrays[tree][name] for name in wanted])
            for tree, (wanted, structure) in named.items()
        }

    # --- the rest ---------------------------------------------------------------------------------

    def _newest(self, most: int | None, tried: dict[int, str]) -> int | None:
        """The newest step that was not tried; listed anew each time, since a trainer may delete
        what a reader is about to read."""
        return max(
            (s for s in self._folders() if s not in tried and (most is None or s <= most)),
            default=None,
        )

    def _folders(self) -> list[int]:
        """What looks like a step: a decimal name without leading zeros, and something inside."""
        try:
            places = [
                p
                for p in self.checkpoints.iterdir()
                if p.name.isascii() and p.name.isdecimal() and str(int(p.name)) == p.name
            ]
            return sorted(int(p.name) for p in places if p.is_dir() and any(p.iterdir()))
        except FileNotFoundError:
            return []

    def _strays(self) -> list[str]:
        known = {str(step) for step in self._folders()}
        names = (
            sorted(p.name for p in self.checkpoints.iterdir()) if self.checkpoints.is_dir() else []
        )
        return [
            n
            for n in names
            if n not in known and not n.startswith((".", "rolled-back-", "damaged-"))
        ]

    def _listed(self) -> str:
        return ", ".join(map(str, self.steps())) or "none yet"

    def _finish(self) -> OSError | None:
        """Waits for a pending save and gives the failure that nobody has been told of."""
        if self._thread is not None:
            self._thread.join()
        return self._failure

    def _need_lock(self) -> None:
        if not self._lock.held:
            raise RuntimeError("Changing a run needs its lock: with run.lock(): …")

    def _join(self, patience: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(patience)
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _failed(self, step: int, size: int, error: BaseException) -> OSError:
        """Removes what the failed save left and gives the error for the user."""
        free = shutil.disk_usage(self.checkpoints).free if self.checkpoints.exists() else 0
        self._discard()
        why = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else (str(error).splitlines() or [type(error).__name__])[0][:200]
        )
        room = f"it needs {size / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
        return OSError(
            f"step {step} could not be saved in {self.checkpoints}: {why} ({room}). Earlier steps"
            " are intact."
        )

    def _discard(self) -> None:
        for place in self.checkpoints.glob(".saving-*"):
            shutil.rmtree(place, ignore_errors=True)


def leaves(path: Path | str, step: int | None = None, tree: str = "params") -> list[Leaf]:
    """Gives name, shape and dtype of each array of a saved tree, from the newest step or `step`,
    without reading an array.

    Raises:
      ConfigError: there is no such step or tree.
    """
    run = Run(path)
    steps = run.steps()
    require(bool(steps), f"{path} holds no checkpoint; train first.")
    require(step is None or step in steps, f"{path} has no step {step}; it has {run._listed()}.")
    manifest = manifests.read(run.checkpoints / str(steps[-1] if step is None else step))
    require(
        tree in manifest.trees,
        f"step {manifest.step} of {path} has no {tree!r}; it has {', '.join(manifest.trees)}.",
    )
    return list(manifest.trees[tree])
