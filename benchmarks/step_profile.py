"""Where the time of a training step goes: `jax.profiler` over one turn of `step.py`, summed by kind
of operation.

    python benchmarks/step_profile.py --shape small
    python benchmarks/step_profile.py --shape gpt2 --out benchmarks/results/profile_gpt2.txt

Milliseconds are summed over all threads; a oneDNN product counts once, though it uses every core.
`--trace FOLDER` keeps the trace itself, for Perfetto or TensorBoard.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import paired
import step


def main() -> None:
    """Takes the profile and prints the kinds of operations that cost most."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=step.SHAPES, default="small")
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument(
        "--trace", type=Path, help="leave the trace here; otherwise it is thrown away"
    )
    parser.add_argument("--out", type=Path, help="write the table here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        folder = options.trace or Path(empty)
        paired.serve = lambda turn, **facts: _trace(turn, folder)
        shape = step.SHAPES[options.shape]
        step._gptjax(shape, options.compute, options.micro_batches)
        from gptjax.observe.profile import newest, summary  # not before step chose XLA's flags

        lines = summary(newest(folder), options.top, steps=shape.steps)
    told = paired.machine()
    head = (
        f"{options.shape}, {options.compute}, {told['date']}, {told['processor']}, XLA_FLAGS"
        f" {os.environ.get('XLA_FLAGS', '')}"
    )
    table = "\n".join([head, *lines])
    print(table)
    if options.out:
        options.out.write_text(table + "\n")


def _trace(turn: Callable[[], float], folder: Path) -> None:
    import jax

    turn()
    with jax.profiler.trace(str(folder)):
        seconds = turn()
    print(f"a step took {1e3 * seconds:.1f} ms under the profiler")


if __name__ == "__main__":
    main()
