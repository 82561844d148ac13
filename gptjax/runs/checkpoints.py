"""Saves and restores the steps of a run: written in the background, committed by one rename,
verified before they are read.

Read `Run.save` and `Run._commit`, then `Run.restore`. `steps` lists, keeps and deletes steps,
`manifest` proves that one is intact, `payload` is the door to Orbax. Of several processes each
writes and reads its own shards; the first decides which step counts.

Orbax's `CheckpointManager` was tried in place of this module: it leaves the temporary folder of a
failed save behind, silently drops a save of an older step, takes an empty folder for the newest
step and does not notice readers, so all of that would have to be written around it.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core import processes
from gptjax.core.config import first_line, require
from gptjax.runs import lock as locks
from gptjax.runs import manifest as manifests
from gptjax.runs import payload
from gptjax.runs import steps as on_disk
from gptjax.runs.manifest import Damaged, Leaf

Trees = Mapping[str, Any]
"""Name of each saved tree (`params`, `opt_state`, …) to the tree."""

METADATA_BYTES = 1_000_000
"""Room that a step needs besides its arrays."""


class Pending(NamedTuple):
    """A step that is being written."""

    step: int
    metrics: dict[str, float]
    leaves: dict[str, tuple[Leaf, ...]]
    num_bytes: int
    folder: Path


class Run:
    """The checkpoints of a run directory. Reading needs no lock and changes nothing; saving needs
    `with run.lock():`.

    Args:
      keep_newest: number of most recent steps to keep; `None` keeps all.
      keep_best: number of further steps to keep, those with the lowest `validation_loss`.
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
        """Returns a context in which this process is the run's only trainer. Entering cleans up
        after a trainer that died, leaving waits for the last save.

        Raises:
          ConfigError: on entering: another process trains here, or the directory can't be written.
        """
        return self._lock

    # --- saving ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Imports what saving needs in a thread, so that neither the start nor the first save waits
        for it. Further calls do nothing."""
        if self._importing is None:
            self._importing = threading.Thread(target=payload.orbax, name="import", daemon=True)
            self._importing.start()

    def save(self, step: int, trees: Trees, metrics: Mapping[str, float] | None = None) -> None:
        """Copies the trees to the host and returns; they are written and committed in the
        background.

        The arrays may be donated or changed at once. A save in progress is waited for first. When
        the process ends, a pending save is finished; if that fails, the exit status is 1.

        Raises:
          OSError: this save or the previous one failed; says what is needed. Earlier steps are
            intact.
          ConfigError: the keys of a tree are ambiguous.
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
        pending = Pending(
            step,
            metrics={name: float(value) for name, value in (metrics or {}).items()},
            # Hashed now, before Orbax's threads take the cores.
            leaves={tree: manifests.summarize(leaves) for tree, leaves in named.items()},
            num_bytes=sum(
                leaf.size * leaf.dtype.itemsize
                for leaves in named.values()
                for leaf in leaves.values()
            ),
            folder=self.checkpoints / f".saving-{step}",
        )
        if failure := processes.by_first("room", lambda: self._make_room(pending)):
            raise OSError(failure)
        try:
            writer = payload.start_writing(pending.folder, named)
        except Exception as error:
            raise self._failed(pending, error) from error
        self._thread = threading.Thread(
            target=self._commit, args=(writer, pending), name=f"save-{step}"
        )
        self._thread.start()
        if not locks.finish_at_exit(self._finish):
            self._join()

    def _make_room(self, pending: Pending) -> str | None:
        """Says why a step can't be saved, if the disk is known to be too full: TensorStore prints a
        lot when it fails halfway."""
        self._discard()
        if shutil.disk_usage(self.checkpoints).free >= pending.num_bytes + METADATA_BYTES:
            return None
        return str(self._failed(pending, OSError(errno.ENOSPC, "the disk is full")))

    def _commit(self, writer: Any, pending: Pending) -> None:
        """Waits for the writer, then makes a step of what it wrote. Runs in the background."""
        try:
            writer.wait_until_finished()
            index = processes.index()
            mine = manifests.written_by(pending.folder, index) if processes.several() else {}
            shards = processes.gather("shards", mine)
        except BaseException as error:  # raised at the next save, or at the end
            self._failure = self._failed(pending, error)
            return
        finally:
            payload.close(writer)
        hashed = {name: tuple(entry) for shard in shards for name, entry in shard.items()}
        failure = processes.by_first("commit", lambda: self._seal(pending, hashed))
        self._failure = OSError(failure) if failure else None

    def _seal(self, pending: Pending, hashed: dict[str, tuple]) -> str | None:
        """Adds the manifest, gives the step its name and deletes what need not be kept; says what
        failed. Of several processes only the first calls it."""
        folder, step = pending.folder, pending.step
        try:
            folder.mkdir(exist_ok=True)  # trees without a single array write nothing
            manifest = manifests.make_manifest(
                folder, step, pending.metrics, pending.leaves, hashed
            )
            manifests.write_manifest(folder, manifest)
            on_disk.publish(self.checkpoints, folder, manifest)
        except BaseException as error:
            return str(self._failed(pending, error))
        try:
            on_disk.retain(self.checkpoints, step, self._keep_newest, self._keep_best)
        except OSError as error:
            return (
                f"step {step} was saved, but older steps can't be deleted from {self.checkpoints}:"
                f" {error.strerror}."
            )
        return None

    def wait(self) -> int | None:
        """Blocks until the pending save is committed; returns the newest step on disk.

        Raises:
          OSError: the save failed.
        """
        self._join()
        return processes.by_first("newest", lambda: next(reversed(self.steps()), None))

    def rollback(self, step: int) -> list[int]:
        """Moves the steps after `step` to `checkpoints/rolled-back-N/`, so that training can resume
        from `step`; returns the moved ones.

        Raises:
          ConfigError: there is no such step, or it is damaged. Nothing is moved then.
        """
        self._need_lock()
        self._join()
        return processes.by_first("rollback", lambda: self._roll_back(step))

    def _roll_back(self, step: int) -> list[int]:
        on_disk.require_intact(self.checkpoints, step)
        later = [other for other in on_disk.folders(self.checkpoints) if other > step]
        on_disk.set_aside(self.checkpoints, later, "rolled-back")
        return later

    def require_intact(self, step: int) -> None:
        """Refuses a step to roll back to that is absent or damaged.

        Raises:
          ConfigError: names the steps that there are.
        """
        processes.by_first("intact", lambda: on_disk.require_intact(self.checkpoints, step))

    # --- restoring -------------------------------------------------------------------------------

    def trees(self, step: int) -> tuple[str, ...]:
        """Returns the names of a step's trees; none if it is absent or damaged."""
        try:
            return tuple(manifests.read_manifest(self.checkpoints / str(step)).trees)
        except Damaged:
            return ()

    def metrics(self, step: int) -> dict[str, float | None]:
        """Returns what was saved with a step besides its trees."""
        return manifests.read_manifest(self.checkpoints / str(step)).metrics

    def steps(self) -> list[int]:
        """Lists the steps on disk that were committed and whose manifest is intact, oldest
        first."""
        return on_disk.committed(self.checkpoints)

    def best(self) -> int | None:
        """Returns the step with the lowest `validation_loss`."""
        return next(iter(on_disk.by_loss(self.checkpoints, self.steps())), None)

    def restore(
        self,
        abstract: Trees,
        *,
        step: int | None = None,
        fall_back: bool = True,
        cast: bool = False,
        say: Callable[[str], Any] = print,
    ) -> tuple[int, dict[str, Any]] | None:
        """Reads the newest intact step up to `step`, bit for bit as it was saved; `None` if there
        is no step at all.

        Only the trees in `abstract` are verified and read. A trainer moves damaged steps to
        `checkpoints/damaged-N/`; a reader leaves them.

        Args:
          abstract: for each wanted tree, a tree of `jax.ShapeDtypeStruct` (those without a sharding
            go to the default device), or a function that makes it of the leaves that were saved.
          step: where to start; it has to exist. `None` means the newest.
          fall_back: replace a damaged step by the next older one and `say` why; otherwise it is an
            error.
          cast: round arrays of another dtype to that of `abstract`; otherwise they are an error.

        Raises:
          ConfigError: the step is absent or does not fit `abstract`, or no step is intact.
        """
        self._join()
        say = say if processes.first() else lambda line: None
        if strays := on_disk.strays(self.checkpoints):
            say(f"{self.path}/checkpoints: ignoring {', '.join(strays)}, which are not steps.")
        require(
            step is None or step in on_disk.folders(self.checkpoints),
            f"{self.path} has no step {step}; it has {on_disk.list_steps(self.checkpoints)}.",
        )
        damaged: dict[int, str] = {}
        while (newest := self._newest(step, damaged)) is not None:
            folder = self.checkpoints / str(newest)
            try:
                with locks.shared(folder / manifests.NAME):
                    trees = self._read(folder, abstract, cast)
            except Damaged as damage:
                if step is None and not folder.exists():
                    continue  # a trainer deleted it meanwhile
                damaged[newest] = str(damage)
                self._report(newest, damage, fall_back, say)
                continue
            if self._lock.held and processes.first():
                on_disk.set_aside(self.checkpoints, damaged, "damaged")
            return newest, trees
        reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        require(
            not damaged, f"{self.path} has no whole step: {reasons}. Start in another directory."
        )
        return None

    def _newest(self, most: int | None, damaged: Mapping[int, str]) -> int | None:
        """The newest step that is not known to be damaged; listed anew each time, since a trainer
        may delete steps meanwhile."""

        def candidates() -> int | None:
            present = on_disk.folders(self.checkpoints)
            steps = (s for s in present if s not in damaged and (most is None or s <= most))
            return max(steps, default=None)

        return processes.by_first("step", candidates)

    def _report(self, step: int, damage: Damaged, fall_back: bool, say: Callable) -> None:
        message = f"{self.path}/checkpoints/{step} is damaged: {damage}"
        require(
            fall_back,
            f"{message}. Choose another step (--rollback-to), or let the previous one be used"
            " (omit --no-fall-back).",
        )
        say(f"{message}; looking for an older step.")

    def _read(self, folder: Path, abstract: Trees, cast: bool) -> dict[str, Any]:
        manifest = manifests.read_manifest(folder)
        for tree in abstract:
            require(
                tree in manifest.trees,
                f"step {manifest.step} of {self.path} has no {tree!r}; it has"
                f" {', '.join(manifest.trees)}.",
            )
        named = {
            tree: manifests.named(value(manifest.trees[tree]) if callable(value) else value)
            for tree, value in abstract.items()
        }
        wanted = {tree: leaves for tree, (leaves, _) in named.items()}
        for tree, leaves in wanted.items():
            manifests.require_same(manifest.step, tree, manifest.trees[tree], leaves, cast=cast)
        dtypes = {tree: {leaf.path: leaf.dtype for leaf in manifest.trees[tree]} for tree in wanted}
        check = manifests.checked_together if processes.several() else manifests.checked
        with check(folder, abstract):
            arrays = payload.read_leaves(folder, wanted, dtypes)
        trees = {}
        for tree, (leaves, structure) in named.items():
            # Again, since JAX without x64 makes an int32 of an int64.
            manifests.require_same(manifest.step, tree, manifest.trees[tree], arrays[tree])
            read = arrays[tree]
            if cast:
                read = {name: leaf.astype(leaves[name].dtype) for name, leaf in read.items()}
            trees[tree] = structure.unflatten([read[name] for name in leaves])
        return trees

    # --- waiting and failing ---------------------------------------------------------------------

    def _finish(self) -> OSError | None:
        """Waits for a pending save and returns the failure that has not been raised yet."""
        if self._thread is not None:
            self._thread.join()
        return self._failure

    def _need_lock(self) -> None:
        if not self._lock.held:
            raise RuntimeError("Changing a run needs its lock: with run.lock(): …")

    def _join(self, patience: float | None = None) -> None:
        """Waits for a pending save, at most `patience` seconds, and raises its failure."""
        if self._thread is not None:
            self._thread.join(patience)
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _failed(self, pending: Pending, error: BaseException) -> OSError:
        """Removes what a failed save left and returns the error for the user."""
        free = shutil.disk_usage(self.checkpoints).free if self.checkpoints.exists() else 0
        self._discard()
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or first_line(error)[:200]
        return OSError(
            f"step {pending.step} could not be saved in {self.checkpoints}: {reason} (it needs"
            f" {pending.num_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free). Earlier steps are"
            " intact."
        )

    def _discard(self) -> None:
        for place in self.checkpoints.glob(".saving-*"):
            shutil.rmtree(place, ignore_errors=True)


def leaves(path: Path | str, step: int | None = None, tree: str = "params") -> list[Leaf]:
    """Returns name, shape and dtype of each array of a saved tree, from the newest step or `step`,
    without reading an array.

    Raises:
      ConfigError: there is no such step or tree.
    """
    run = Run(path)
    steps = run.steps()
    require(bool(steps), f"{path} holds no checkpoint; train first.")
    require(
        step is None or step in steps,
        f"{path} has no step {step}; it has {on_disk.list_steps(run.checkpoints)}.",
    )
    manifest = manifests.read_manifest(run.checkpoints / str(steps[-1] if step is None else step))
    require(
        tree in manifest.trees,
        f"step {manifest.step} of {path} has no {tree!r}; it has {', '.join(manifest.trees)}.",
    )
    return list(manifest.trees[tree])
