"""Saving and restoring a checkpoint against writing and reading plain files, in turns.

    python benchmarks/checkpoint.py [--megabytes 256]

Both write to disk (fsync). The checkpoint has Orbax's files and a manifest of checksums, which
restoring verifies.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import paired

from gptjax.core import backend

backend.configure()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from gptjax.runs import Run  # noqa: E402


def main() -> None:
    """Takes the turns and prints rates and ratios."""
    parser = paired.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    tree = {
        f"leaf{i}": jax.numpy.asarray(
            draw.standard_normal((options.megabytes * 2**20 // 64, 1), np.float32).reshape(-1, 64)
        )
        for i in range(16)
    }
    size = sum(leaf.nbytes for leaf in tree.values())
    seconds: dict[str, list[float]] = {name: [] for name in ("save", "write", "restore", "read")}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", keep_newest=1)
        with run.lock():
            run.prepare()
            for turn in range(options.turns):
                for name, deed in _deeds(run, tree, Path(folder) / "plain", turn + 1).items():
                    begun = time.perf_counter()
                    deed()
                    seconds[name].append(time.perf_counter() - begun)
    found = {name: paired.Found(taken, {}) for name, taken in seconds.items()}
    for ours, plain in (("save", "write"), ("restore", "read")):
        rates = ", ".join(
            f"{name} {size / sorted(seconds[name])[len(seconds[name]) // 2] / 1e6:.0f} MB/s"
            for name in (ours, plain)
        )
        print(f"{rates}; {ours} takes {paired.ratio(found[ours], found[plain])} times as long")
    paired.write(options.out, {"bytes": size, "seconds": seconds})


def _deeds(run: Run, tree: dict, plain: Path, step: int) -> dict:
    def save() -> None:
        run.save(step, {"params": tree})
        run.wait()

    def write() -> None:
        with plain.open("wb") as file:
            for leaf in tree.values():
                file.write(np.asarray(leaf).data)
            file.flush()
            os.fsync(file.fileno())

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )

    def restore():
        return jax.block_until_ready(run.restore({"params": shapes})[1])

    return {"save": save, "write": write, "restore": restore, "read": plain.read_bytes}


if __name__ == "__main__":
    main()
