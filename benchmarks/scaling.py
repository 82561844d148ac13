"""Weak and strong scaling of one config over slices of v5p, from the program that each slice would
run; docs/reports/scaling.md shows the output.

    python benchmarks/scaling.py configs/large/llama2_7b.py

Programs are compiled with little optimisation, which changes neither FLOPs nor bytes sent. Time is
FLOPs at `plan.PRODUCTS` of the peak, and the network's time beside it, hidden or not. Needs the
extra plan-tpu.
"""

import dataclasses
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from gptjax.core import user_config
from gptjax.plan import target as targets
from gptjax.plan.plan import plan_step
from gptjax.plan.search import rough
from gptjax.train.experiment import Experiment

WEAK = [
    ("v5p:2x2x2", 16, {"fsdp": 8}),
    ("v5p:4x4x4", 128, {"fsdp": 64}),
    ("v5p:8x8x8", 1024, {"fsdp": 512}),
    ("v5p:16x16x32", 16_384, {"data": 16, "fsdp": 512}),
]
STRONG = [
    ("v5p:4x4x4", 1024, {"fsdp": 64}),
    ("v5p:8x8x8", 1024, {"fsdp": 512}),
    ("v5p:16x16x16", 1024, {"fsdp": 512, "tensor": 8}),
    ("v5p:16x16x32", 1024, {"fsdp": 512, "tensor": 16}),
]


def row(experiment: Experiment, name: str, batch: int, mesh: dict[str, int]) -> str:
    """One line of a table."""
    target = targets.parse_target(name)
    placed = dataclasses.replace(experiment.mesh, **({"data": 1, "fsdp": 1, "tensor": 1} | mesh))
    found = plan_step(
        dataclasses.replace(experiment, batch=batch, micro_batch=None, mesh=placed),
        target,
        fast=True,
    )
    if not found["fits"]:
        return (
            f"| {found['devices']:,} | {batch:,} | does not fit:"
            f" {found['peak_bytes_per_device'] / 2**30:.1f} GiB |"
        )
    products, wires = rough(found, target)
    sent = max(
        found["collectives"],
        key=lambda one: one["seconds"],
        default={"kind": "none", "axes": [], "seconds": 0},
    )
    low, high = max(products, wires), products + wires
    share = found["flops"]["model"] / target.chip.peak
    cells = [
        f"{found['devices']:,}",
        " × ".join(f"{axis} {size}" for axis, size in found["mesh"].items()),
        f"{batch:,}",
        f"{found['peak_bytes_per_device'] / 2**30:.1f}",
        f"{sum(one['bytes_per_device'] for one in found['collectives']) / 1e9:.1f}",
        f"{1e3 * products:,.0f}",
        f"{1e3 * wires:,.0f}",
        f"{share / high:.0%} … {share / low:.0%}",
        f"{sent['kind']} over {' '.join(sent['axes'])}, {1e3 * sent['seconds']:,.0f} ms",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    chosen = user_config.load_python(Experiment, Path(sys.argv[1]))
    for title, cases in (("weak: two rows a chip", WEAK), ("strong: 1,024 rows", STRONG)):
        columns = (
            "chips",
            "mesh",
            "rows",
            "peak GiB",
            "sent GB",
            "products ms",
            "network ms",
            "MFU",
            "dearest collective",
        )
        print(f"\n{title}\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
        for case in cases:
            print(row(chosen, *case), flush=True)
