"""How the cost of a training step grows with length, width, depth, batch and vocabulary, against
PyTorch: figures, and a plot.

    python benchmarks/growth.py --peer-python ../torch/bin/python --plot docs/reports/growth.svg

Starting from one shape, one size at a time is halved and doubled. gptjax and the plain GPT of
`torch_gpt.py`, eager, both in float32, take turns at each size (see `step.py`). The slope is that
of ln time over ln size between the two largest sizes: 1 is proportional. Needs
`pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

import paired
import step

BASE = step.Shape(layers=4, width=128, heads=4, length=128, rows=8, vocabulary=512, steps=4)
SIZES = {
    "length": (32, 64, 128, 256, 512),
    "width": (64, 128, 256, 512),
    "layers": (2, 4, 8, 16),
    "rows": (2, 4, 8, 16, 32),
    "vocabulary": (128, 512, 2048, 8192, 32768),
}
WORDS = {
    "length": "tokens of a row",
    "width": "width",
    "layers": "layers",
    "rows": "rows of a batch",
    "vocabulary": "vocabulary",
}

Series = dict[str, list[tuple[int, float, float]]]
"""Stack → (size, seconds of a step, peak bytes) of each size."""


def main() -> None:
    """Measures each dimension, prints its table, and draws all."""
    parser = paired.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--plot", type=Path, help="write the plots here; SVG or PNG")
    options = parser.parse_args()
    found = {}
    for name in options.sizes:
        found[name] = grown(name, options.peer_python, options.turns)
        print(f"\n{WORDS[name]}: milliseconds of a step")
        for stack, points in found[name].items():
            (a, early, _), (b, late, _) = points[-2:]
            row = "  ".join(f"{size}: {1e3 * seconds:.1f}" for size, seconds, _ in points)
            print(
                f"  {stack:8} {row}   slope at the end"
                f" {math.log(late / early) / math.log(b / a):.2f}",
                flush=True,
            )
    paired.write(options.out, {"base": BASE._asdict(), "found": found})
    if options.plot:
        draw(found, options.plot)
        print(f"wrote {options.plot}")


def grown(name: str, peer_python: str, turns: int) -> Series:
    """Medians at each size of one dimension; both stacks take turns at a size."""
    series: Series = {"gptjax": [], "PyTorch": []}
    for size in SIZES[name]:
        shape = BASE._replace(**{name: size})
        ways = {
            "gptjax": paired.Way(
                sys.executable, step.HERE, {"stack": "gptjax", "shape": shape, "compute": "float32"}
            ),
            "PyTorch": paired.Way(
                peer_python,
                step.HERE,
                {
                    "stack": "torch",
                    "shape": shape,
                    "how": "eager",
                    "compute": "float32",
                    "model": "plain",
                },
            ),
        }
        for stack, one in paired.in_turns(ways, turns).items():
            series[stack].append((size, statistics.median(one.seconds), one.facts["peak_bytes"]))
    return series


def draw(found: dict[str, Series], path: Path) -> None:
    """A plot for each dimension, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 3.2), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for name, ax in zip(found, axes, strict=True):
        for stack, points in found[name].items():
            ax.plot(
                [size for size, *_ in points],
                [1e3 * seconds for _, seconds, _ in points],
                marker="o",
                label=stack,
            )
        ax.set(
            xscale="log",
            yscale="log",
            xlabel=WORDS[name],
            xticks=SIZES[name],
            xticklabels=[f"{size:,}" for size in SIZES[name]],
        )
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds of a training step")
    axes[0].legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
