"""The steps in a run's `checkpoints/` folder: which exist, which are intact, which are best; moving
and deleting them. Nothing here reads an array.

`checkpoints/STEP/` holds one Orbax folder for each tree (`params/`, `opt_state/`, …) and the
manifest. Names that begin with a dot are not steps: `.saving-*` is being written, `.trash-*` is
being deleted, `.replaced-*` is the old version of a step that is being replaced.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

from gptjax.core.config import ConfigError, require
from gptjax.runs import lock as locks
from gptjax.runs import manifest as manifests
from gptjax.runs.manifest import Damaged, Manifest


def folders(checkpoints: Path) -> list[int]:
    """Lists everything that looks like a step, oldest first: a decimal name without leading zeros,
    and something inside."""
    try:
        places = [
            place
            for place in checkpoints.iterdir()
            if place.name.isascii()
            and place.name.isdecimal()
            and str(int(place.name)) == place.name
        ]
        return sorted(int(p.name) for p in places if p.is_dir() and any(p.iterdir()))
    except FileNotFoundError:
        return []


def committed(checkpoints: Path) -> list[int]:
    """Lists the steps whose manifest is intact, oldest first."""
    steps = []
    for step in folders(checkpoints):
        with contextlib.suppress(Damaged):
            manifests.read_manifest(checkpoints / str(step))
            steps.append(step)
    return steps


def strays(checkpoints: Path) -> list[str]:
    """Lists names in the folder that are neither steps nor ours."""
    if not checkpoints.is_dir():
        return []
    known = {str(step) for step in folders(checkpoints)}
    ours = (".", "rolled-back-", "damaged-")
    names = sorted(place.name for place in checkpoints.iterdir())
    return [name for name in names if name not in known and not name.startswith(ours)]


def list_steps(checkpoints: Path) -> str:
    """Lists the committed steps, for a message."""
    return ", ".join(map(str, committed(checkpoints))) or "none yet"


def by_loss(checkpoints: Path, steps: Iterable[int]) -> list[int]:
    """Sorts the steps that have a finite `validation_loss` by it, best first."""
    losses: dict[int, float] = {}
    for step in steps:
        with contextlib.suppress(Damaged, ConfigError):
            loss = manifests.read_manifest(checkpoints / str(step)).metrics.get("validation_loss")
            if loss is not None and math.isfinite(loss):
                losses[step] = loss
    return sorted(losses, key=lambda step: (losses[step], step))


def publish(checkpoints: Path, folder: Path, manifest: Manifest) -> None:
    """Gives a written folder its final name. A step of that number stays if it is intact and holds
    the same bits."""
    final = checkpoints / str(manifest.step)
    replaced = checkpoints / f".replaced-{manifest.step}"
    if final.exists():
        with contextlib.suppress(Damaged, ConfigError):
            present = manifests.verify(final)
            leaves = itertools.chain.from_iterable(manifest.trees.values())
            known = all(leaf.crc32 is not None for leaf in leaves)
            if known and (present.trees, present.metrics) == (manifest.trees, manifest.metrics):
                shutil.rmtree(folder)
                return
        shutil.rmtree(replaced, ignore_errors=True)
        # A crash between the two renames leaves `replaced`, which `locks.clean` puts back.
        final.rename(replaced)
    folder.rename(final)
    manifests.sync_folder(checkpoints)
    shutil.rmtree(replaced, ignore_errors=True)


def retain(checkpoints: Path, newest: int, keep_newest: int | None, keep_best: int) -> None:
    """Deletes steps up to `newest` that are neither among the latest nor among the best.

    Later ones stay: they exist only if they were found damaged, so they may not displace a good
    one. A step that is being read is left to the next call.
    """
    if keep_newest is None:
        return
    steps = [step for step in committed(checkpoints) if step <= newest]
    keep = {*steps[-keep_newest:], *by_loss(checkpoints, steps)[:keep_best]}
    for step in (step for step in steps if step not in keep):
        folder, trash = checkpoints / str(step), checkpoints / f".trash-{step}"
        with locks.unread(folder / manifests.NAME) as unread:
            if unread:
                shutil.rmtree(trash, ignore_errors=True)
                folder.rename(trash)  # a kill during the deletion leaves no half of a step
                shutil.rmtree(trash, ignore_errors=True)


def require_intact(checkpoints: Path, step: int) -> None:
    """Refuses a step to roll back to that is absent or damaged.

    Raises:
      ConfigError: names the steps that there are.
    """
    run, listed = checkpoints.parent, list_steps(checkpoints)
    require(
        step in folders(checkpoints),
        f"{run} has no step {step}; it has {listed} (--rollback-to).",
    )
    try:
        manifests.verify(checkpoints / str(step))
    except Damaged as damage:
        raise ConfigError(
            f"{checkpoints / str(step)} is damaged: {damage}. Choose another step (--rollback-to)."
        ) from None


def set_aside(checkpoints: Path, steps: Iterable[int], why: str) -> None:
    """Moves steps to `WHY-N/STEP`, for the first N that is free."""
    for step in steps:
        places = (checkpoints / f"{why}-{n}" / str(step) for n in itertools.count(1))
        aside = next(place for place in places if not place.exists())
        aside.parent.mkdir(exist_ok=True)
        (checkpoints / str(step)).rename(aside)
    manifests.sync_folder(checkpoints)
