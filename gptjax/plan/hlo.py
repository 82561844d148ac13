"""Counts the costs of an optimised program from its HLO text: FLOPs, memory traffic, collectives,
kernels, and the compiler's own cycles.

XLA's `cost_analysis` counts the body of a loop once, ignores Pallas kernels and returns nothing for
GPUs; here loops count with their iterations. Read `analyse`, then what it calls; `text` parses
instructions, `collectives` counts what devices exchange.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

from gptjax.plan import text as hlo
from gptjax.plan.collectives import Collective, collectives
from gptjax.plan.text import Computation, Instruction, Module, Run, first_match


class Operation(NamedTuple):
    """An instruction of the schedule, all its runs together."""

    source: str
    """Path of the traced operation that it comes from."""
    name: str
    kind: str
    """`product`, `kernel` (hand-written), or `other`."""
    shape: tuple[int, ...]
    """Shape of its first result."""
    operands: tuple[tuple[int, ...], ...]
    times: float
    flops: float
    """FLOPs of matrix products per run; of a kernel, its own estimate, or 0."""
    traffic: float
    """Bytes to and from the device's memory per run, roughly: operands and results that are not
    fused away."""
    cycles: float
    """The compiler's own estimate per run; 0 without one."""
    narrow: bool
    """Its products are of 8-bit floats."""


class Analysis(NamedTuple):
    """Costs of one step on one device."""

    operations: list[Operation]
    """Operations of the schedule, without collectives."""
    collectives: list[Collective]
    kept: float
    """Bytes that forward loops stack up for the backward pass; 0 if layers are not a loop."""
    endless: list[str]
    """Loops of unknown length, which count once."""

    @property
    def flops(self) -> float:
        """FLOPs of matrix products, without hand-written kernels."""
        return self.total("flops", "product")

    def total(self, what: str, *kinds: str) -> float:
        """Sums a field over all runs of all operations, or of those of the given kinds."""
        return sum(
            one.times * getattr(one, what)
            for one in self.operations
            if not kinds or one.kind in kinds
        )


def analyse(text: str, shape: dict[str, int]) -> Analysis:
    """Counts the costs of a program.

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


COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
SILENT = {
    *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "iota", "after-all"),
    *("while", "conditional", "call", "partition-id", "replica-id", "optimization-barrier"),
    *("async-start", "async-update", "async-done", "copy-done", "slice-done"),
    *("send", "send-done", "recv", "recv-done"),
    *(f"{kind}{end}" for kind in COLLECTIVES for end in ("", "-start", "-done")),
}
"""Instructions that move or compute nothing themselves, and collectives, which are counted
separately."""

KERNELS = ("tpu_custom_call", "__cudnn", "__cublas", "triton")
"""Custom calls that compute: Pallas, cuDNN, cuBLAS."""


def _operation(module: Module, where: Computation, one: Instruction, times: float) -> Operation:
    flops = _flops(module, where, one)
    kind, name = "product" if flops else "other", one.name
    if one.op == "custom-call" and one.target.startswith(KERNELS):
        kind, name = "kernel", f"{one.name} {one.target}"
        estimate = first_match(r'"cost_estimate":\{[^}]*"flops":"(\d+)"', one.attributes)
        flops = float(estimate or 0)
    return Operation(
        source=one.source,
        name=name,
        kind=kind,
        shape=one.shapes[0].dims if one.shapes else (),
        operands=tuple(
            where[operand].shapes[0].dims
            for operand in one.operands
            if operand in where and where[operand].shapes
        ),
        times=times,
        flops=flops,
        traffic=_traffic(module, where, one),
        cycles=float(first_match(r'"estimated_cycles":"(\d+)"', one.attributes) or 0),
        narrow=_narrow(module, where, one),
    )


# --- matrix products ---


def _flops(module: Module, where: Computation, one: Instruction) -> float:
    """FLOPs of the product that an instruction is, or of those inside it."""
    if one.op == "dot":
        return dot_flops(one, where[one.operands[0]].shapes[0].dims)
    if one.op == "convolution":
        return convolution_flops(one, *(where[name].shapes[0].dims for name in one.operands[:2]))
    if one.op == "fusion":
        inner = module.computations[one.called("calls")[0]]
        return sum(_flops(module, inner, part) for part in inner.values())
    return 0.0


def _narrow(module: Module, where: Computation, one: Instruction) -> bool:
    """Whether an instruction multiplies 8-bit floats, and nothing else."""
    if one.op == "fusion":
        where = module.computations[one.called("calls")[0]]
    parts = where.values() if one.op == "fusion" else (one,)
    factors = [part.operands[:2] for part in parts if part.op in ("dot", "convolution")]
    kinds = [where[name].shapes[0].dtype for pair in factors for name in pair]
    return bool(kinds) and all(kind.startswith("f8") for kind in kinds)


def dot_flops(one: Instruction, left: tuple[int, ...]) -> float:
    """FLOPs of a matrix product: two for each multiplication."""
    contracted = first_match(r"lhs_contracting_dims=\{([0-9,]*)\}", one.attributes) or ""
    sizes = [left[int(dim)] for dim in contracted.split(",") if dim]
    return 2.0 * math.prod(one.shapes[0].dims) * math.prod(sizes)


def convolution_flops(one: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """FLOPs of a convolution, the form in which XLA writes products for TPUs; multiplications with
    padding are not counted."""
    inputs, kernel, outputs = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes).groups()
    written = first_match(r"window=\{([^}]*)\}", one.attributes) or ""
    window = dict(part.split("=", 1) for part in written.split())
    groups = math.prod(
        int(first_match(rf"{kind}_group_count=(\d+)", one.attributes) or 1)
        for kind in ("feature", "batch")
    )
    out, total = one.shapes[0].dims, 1.0
    for axis, letter in enumerate(sorted(set(outputs) - {"b", "f"})):

        def of(key: str, default: int | str, axis: int = axis) -> int | str:
            return window[key].split("x")[axis] if key in window else default

        low = int(of("pad", "0_0").split("_")[0])
        sizes = left[inputs.index(letter)], out[outputs.index(letter)], right[kernel.index(letter)]
        total *= _pairs(
            *sizes, int(of("stride", 1)), low, int(of("lhs_dilate", 1)), int(of("rhs_dilate", 1))
        )
    features = left[inputs.index("f")] * out[outputs.index("f")]
    return 2.0 * features * left[inputs.index("b")] * total / groups


def _pairs(
    inputs: int, outputs: int, kernel: int, stride: int, low: int, left: int, right: int
) -> int:
    """Number of pairs of an output and a kernel position along one axis that meet an input, not
    padding or a hole."""
    at = np.arange(outputs)[:, None] * stride - low + np.arange(kernel)[None] * right
    return int(((at >= 0) & (at <= (inputs - 1) * left) & (at % left == 0)).sum())


# --- memory ---


def _traffic(module: Module, where: Computation, one: Instruction) -> float:
    """Bytes of results and operands in the device's main memory; of an operand that is read or
    written in slices, those of the slices."""

    def size(instruction: Instruction) -> float:
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
    """Bytes that forward loops stack up, one slice per iteration: the residual streams and whatever
    else the backward pass needs."""
    total = 0.0
    for name, run in runs.items():
        for loop in module.computations[name].values():
            if loop.op != "while" or "transpose(" in loop.source or run.times > 1:
                continue
            turns = hlo.trips(module, module.computations[name], loop)
            body = module.computations[loop.called("body")[0]]
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
