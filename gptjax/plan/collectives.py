"""Counts what devices exchange in a compiled program: how much each must send, along which axes of
the mesh, inside a slice or between slices.

Read `collectives`, then `members` (which devices a group holds).
"""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

import numpy as np

from gptjax.plan.text import Computation, Instruction, Module, Run, first_match

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Collective(NamedTuple):
    """An exchange between devices, all its runs together."""

    kind: str
    """One of `KINDS`, or `send`: between slices, by the host's network."""
    axes: tuple[str, ...]
    """Mesh axes along which it exchanges, of those longer than 1."""
    group: tuple[int, ...]
    """Numbers of the devices of the first group."""
    times: float
    wire: float
    """Bytes that each device must send at least, per run."""
    shape: tuple[int, ...]
    source: str


def collectives(module: Module, runs: dict[str, Run], shape: dict[str, int]) -> list[Collective]:
    """Returns each exchange once, however many instructions it is written as.

    An asynchronous one appears in the fusion that starts it, in each that it overlaps and in the
    one that ends it, all of one schedule and with one channel; only starts count. The channel alone
    is not enough: calls of one function share its channels. A reduce-scatter is written for TPUs
    as a fusion `all-reduce-scatter` around an all-reduce.
    """
    groups: dict[tuple, list[tuple[bool, Collective]]] = collections.defaultdict(list)
    for name, run in runs.items():
        where = module.computations[name]
        starts = any(
            one.op == "custom-call" and "AsyncCollectiveStart" in one.target
            for one in where.values()
        )
        for one in where.values():
            collective = _collective(where, one, name, run.times, module.partitions, shape)
            if collective is not None:
                channel = first_match(r"channel_id=(\d+)", one.attributes) or one.name
                key = (run.owner, collective.kind, channel, collective.shape)
                groups[key].append((starts, collective))
    counted = []
    for group in groups.values():
        begun = [collective for starts, collective in group if starts]
        counted += begun or [collective for _, collective in group]
    return counted


def _collective(
    where: Computation, one: Instruction, name: str, times: float, count: int, shape: dict[str, int]
) -> Collective | None:
    operands = [
        where[operand].shapes[0]
        for operand in one.operands
        if operand in where and where[operand].shapes
    ]
    size = sum(part.bytes for part in operands)
    if one.op.startswith("ragged-all-to-all"):  # rows, where they go, and numbers about both
        size = min(part.bytes for part in operands[:2])
    dims = operands[0].dims if operands else ()
    if one.op == "send" and "xla_megascale" in one.attributes:
        return Collective(
            kind="send",
            axes=("slice",),
            group=(),
            times=times,
            wire=size,
            shape=dims,
            source=one.source,
        )
    kind = one.op.removesuffix("-start")
    if kind not in KINDS or one.op.endswith("-done"):
        return None
    if kind == "all-reduce" and "all-reduce-scatter" in name.replace("_", "-"):
        kind = "reduce-scatter"
    group = members(one, count)
    others, n = len(group) - 1, len(group)
    sent = {
        "all-gather": others,
        "all-reduce": 2 * others / n,
        "collective-permute": 1,
        "collective-broadcast": 1,
    }.get(kind, others / n)
    return Collective(
        kind=kind,
        axes=spanned(group, shape),
        group=group,
        times=times,
        wire=size * sent,
        shape=dims,
        source=one.source,
    )


def members(one: Instruction, count: int) -> tuple[int, ...]:
    """Returns the devices of an instruction's first group; all `count` of them if it names none.

    XLA lists groups, or writes them as the rows of a reshaped and transposed range, or as axes of a
    mesh with names of its own.
    """
    text = one.attributes
    if pairs := first_match(r"source_target_pairs=\{(\{[0-9,]*\}(?:,\{[0-9,]*\})*)\}", text):
        ways = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{([0-9,]+)\}", pairs)]
        return next((way for way in ways if way[0] != way[1]), ways[0])  # some send to themselves
    if written := first_match(r"replica_groups=\{\{([0-9,]*)\}", text):
        return tuple(int(n) for n in written.split(","))
    if rows := first_match(r"replica_groups=(\[[0-9,]+\]<=\[[0-9,]+\](?:T\([0-9,]+\))?)", text):
        groups, size = (int(n) for n in first_match(r"\[([0-9,]+)\]<=", rows).split(","))
        devices = np.arange(groups * size).reshape(
            [int(n) for n in first_match(r"<=\[([0-9,]+)\]", rows).split(",")]
        )
        if order := first_match(r"T\(([0-9,]+)\)", rows):
            devices = devices.transpose([int(n) for n in order.split(",")])
        return tuple(devices.reshape(groups, size)[0].tolist())
    if mesh := first_match(r"replica_groups=mesh\[([^\]]*)\]", text):
        return _named(
            mesh, first_match(r"replica_groups=mesh\[[^\]]*\][^{]*\{([^}]*)\}", text) or ""
        )
    return tuple(range(count))


def _named(mesh: str, axes: str) -> tuple[int, ...]:
    """Returns the first group of a mesh `'a'=8,'b'=4` along `'b'`, or along a part `'a':(2)4` of an
    axis: behind the first 2, the next 4."""
    sizes = {
        part.split("=")[0].strip().strip("'\""): int(part.split("=")[1])
        for part in mesh.split(",")
        if "=" in part
    }
    devices = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    pick: list = [slice(0, 1)] * devices.ndim
    for part in axes.replace('"', "'").split("'")[1:]:
        name = part if part in sizes else None
        if name:
            pick[list(sizes).index(name)] = slice(None)
            last = name
        elif ":(" in part:
            before, size = int(first_match(r":\((\d+)\)", part)), int(first_match(r"\)(\d+)", part))
            step = sizes[last] // (before * size)
            pick[list(sizes).index(last)] = slice(0, size * step, step)
    return tuple(devices[tuple(pick)].reshape(-1).tolist())


def spanned(group: tuple[int, ...], shape: dict[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of a group differ."""
    if not group or max(group) >= math.prod(shape.values()):
        return ()
    places = np.stack(np.unravel_index(np.asarray(group), tuple(shape.values())))
    return tuple(
        axis for axis, row in zip(shape, places, strict=True) if len(set(row.tolist())) > 1
    )
