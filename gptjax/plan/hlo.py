"""What an optimised program costs, read from its HLO text: FLOPs, memory traffic, collectives,
kernels, the compiler's own cycles.

XLA's `cost_analysis` counts a loop's body once, knows nothing of Pallas kernels and gives nothing
for GPUs; here loops count as often as they turn. Read `analyse`, then what it calls; `text` reads
instructions, `collectives` what devices exchange.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from gptjax.plan import text as hlo
from gptjax.plan.collectives import Collective, collectives
from gptjax.plan.text import Computation, Instruction, Module, Run, first


class Operation(NamedTuple):
    """One instruction of the schedule, all turns together."""

    source: str
    """The traced operation that it comes from."""
    name: str
    kind: str
    """`product`, `kernel` (a hand-written one), or `other`."""
    shape: tuple[int, ...]
    """Of its first result."""
    operands: tuple[tuple[int, ...], ...]
    times: float
    flops: float
    """Of matrix products each time; of a kernel, what it says of itself, or 0."""
    traffic: float
    """Bytes to and from the device's memory each time, roughly: operands and results that are not
    fused away."""
    cycles: float
    """The compiler's own estimate each time; 0 where it gives none."""


class Analysis(NamedTuple):
    """One step of one device."""

    operations: list[Operation]
    """Of the schedule, without collectives."""
    collectives: list[Collective]
    kept: float
    """Bytes that forward loops stack up for the backward pass; 0 where layers are not a loop."""
    endless: list[str]
    """Loops whose length could not be told; they count once."""

    @property
    def flops(self) -> float:
        """Of matrix products, hand-written kernels apart."""
        return self.total("flops", "product")

    def total(self, what: str, *kinds: str) -> float:
        """A figure summed over all operations, or those of some kinds, all turns."""
        return sum(
            one.times * getattr(one, what)
            for one in self.operations
            if not kinds or one.kind in kinds
        )


def analyse(text: str, shape: dict[str, int]) -> Analysis:
    """Walks the program once, every computation as often as it runs.

    Args:
      shape: the mesh's axes and their sizes, outermost first.
    """
    module = hlo.parse(text)
    runs, endless = hlo.runs(module)
    operations = [
        _operation(module, module.computations[name], one, run.times)
        for name, run in runs.items()
        if not run.fused
        for one in module.computations[name].values()
        if one.op not in SILENT
    ]
    return Analysis(operations, collectives(module, runs, shape), _kept(module, runs), endless)


SILENT = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call", "after-all", "partition-id", "replica-id", "iota",
    "optimization-barrier", "async-start", "async-update", "async-done", "copy-done", "slice-done", "send", "send-done", "recv", "recv-done",
    *(f"{kind}{end}" for kind in ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast", "ragged-all-to-all")
      for end in ("", "-start", "-done")),
}  # fmt: skip
"""Instructions that move or compute nothing themselves, and collectives, which are counted
apart."""

KERNELS = ("tpu_custom_call", "__cudnn", "__cublas", "triton")
"""Custom calls that compute: Pallas, cuDNN, cuBLAS."""


def _operation(module: Module, where: Computation, one: Instruction, times: float) -> Operation:
    flops = _flops(module, where, one)
    operands = tuple(
        where[name].shapes[0].dims for name in one.operands if name in where and where[name].shapes
    )
    kind, cycles = (
        "product" if flops else "other",
        float(first(r'"estimated_cycles":"(\d+)"', one.attributes) or 0),
    )
    if one.op == "custom-call" and one.target.startswith(KERNELS):
        kind, flops = (
            "kernel",
            float(first(r'"cost_estimate":\{[^}]*"flops":"(\d+)"', one.attributes) or 0),
        )
    name = f"{one.name} {one.target}" if kind == "kernel" else one.name
    return Operation(
        one.source,
        name,
        kind,
        one.shapes[0].dims if one.shapes else (),
        operands,
        times,
        flops,
        _traffic(module, where, one),
        cycles,
    )


# --- matrix products
# ---------------------------------------------------------------------------------------------


def _flops(module: Module, where: Computation, one: Instruction) -> float:
    """Of the product that an instruction is, or of those inside of it."""
    if one.op == "dot":
        return dot_flops(one, where[one.operands[0]].shapes[0].dims)
    if one.op == "convolution":
        return convolution_flops(one, *(where[name].shapes[0].dims for name in one.operands[:2]))
    if one.op == "fusion":
        inner = module.computations[one.called("calls")[0]]
        return sum(_flops(module, inner, part) for part in inner.values())
    return 0.0


def dot_flops(one: Instruction, left: tuple[int, ...]) -> float:
    """Two for each multiplication of a product."""
    contracted = (first(r"lhs_contracting_dims=\{([0-9,]*)\}", one.attributes) or "").split(",")
    return 2.0 * math.prod(one.shapes[0].dims) * math.prod(left[int(d)] for d in contracted if d)


def convolution_flops(one: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Two for each multiplication of a convolution, which is how XLA writes products for TPUs;
    multiplications with padding are none."""
    inputs, kernel, outputs = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes).groups()
    window = dict(
        part.split("=", 1) for part in (first(r"window=\{([^}]*)\}", one.attributes) or "").split()
    )
    groups = int(first(r"feature_group_count=(\d+)", one.attributes) or 1) * int(
        first(r"batch_group_count=(\d+)", one.attributes) or 1
    )
    out, total = one.shapes[0].dims, 1.0
    for axis, letter in enumerate(sorted(set(outputs) - {"b", "f"})):

        def of(key, default, axis=axis):
            return window[key].split("x")[axis] if key in window else default

        low = int(of("pad", "0_0").split("_")[0])
        sizes = left[inputs.index(letter)], out[outputs.index(letter)], right[kernel.index(letter)]
        total *= _pairs(
            *sizes, int(of("stride", 1)), low, int(of("lhs_dilate", 1)), int(of("rhs_dilate", 1))
        )
    return (
        2.0
        * left[inputs.index("f")]
        * out[outputs.index("f")]
        * left[inputs.index("b")]
        * total
        / groups
    )


def _pairs(
    inputs: int, outputs: int, kernel: int, stride: int, low: int, left: int, right: int
) -> int:
    """Pairs of an output and a kernel position along one axis that meet an input, not padding or a
    hole."""
    at = np.arange(outputs)[:, None] * stride - low + np.arange(kernel)[None] * right
    return int(((at >= 0) & (at <= (inputs - 1) * left) & (at % left == 0)).sum())


# --- memory
# ------------------------------------------------------------------------------------------------------


def _traffic(module: Module, where: Computation, one: Instruction) -> float:
    """Bytes of results and operands in the device's main memory; of an operand that is read or
    written in slices, those."""

    def size(instruction):
        return sum(shape.bytes for shape in instruction.shapes if shape.space == 0)

    total = size(one)
    if one.op.endswith("-start"):  # source and destination are both in the result
        return total
    inner = module.computations[one.called("calls")[0]] if one.op == "fusion" else {}
    readers = {
        name: [p for p in inner.values() if name in p.operands]
        for name, p in inner.items()
        if p.op == "parameter"
    }
    numbers = {int(p.inside): name for name, p in inner.items() if p.op == "parameter"}
    for number, name in enumerate(one.operands):
        if name not in where:
            continue
        users = readers.get(numbers.get(number, ""), [])
        if one.op == "dynamic-slice" and number == 0:
            total += size(one)
        elif one.op == "dynamic-update-slice" and number == 0:
            total += 2 * size(where[one.operands[1]]) - size(one)
        elif users and all(p.op in ("dynamic-slice", "slice", "gather") for p in users):
            total += (
                sum(shape.bytes for p in users for shape in p.shapes) if size(where[name]) else 0
            )
        elif users and all(
            p.op == "dynamic-update-slice" and p.operands[0] == numbers[number] for p in users
        ):
            total += sum(2 * inner[p.operands[1]].shapes[0].bytes for p in users) - size(
                where[name]
            )
        else:
            total += size(where[name])
    return max(total, 0.0)


def _kept(module: Module, runs: dict[str, Run]) -> float:
    """Bytes of what forward loops stack up, a slice a turn: the residual streams and whatever else
    waits for the backward pass."""
    total = 0.0
    for name, run in runs.items():
        for loop in module.computations[name].values():
            if loop.op != "while" or "transpose(" in loop.source or run.times > 1:
                continue
            turns, body = (
                hlo.trips(module, module.computations[name], loop),
                module.computations[loop.called("body")[0]],
            )
            root = next(one for one in body.values() if one.root)
            made = (
                [body[part] for part in root.operands if part in body] if root.op == "tuple" else []
            )
            new = [
                one
                for one in made
                if one.op != "parameter"
                and not (one.op == "get-tuple-element" and body[one.operands[0]].op == "parameter")
            ]
            total += sum(
                one.shapes[0].bytes
                for one in new
                if one.shapes and len(one.shapes[0].dims) > 1 and one.shapes[0].dims[0] == turns
            )
    return total
