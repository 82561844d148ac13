"""Optimised HLO text → instructions, and how often each computation runs. What it all costs is
counted in `hlo`.

Read `parse`, then `runs` (every computation's count, loops included), then `trips`, which runs a
loop's counter by hand.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

BYTES = {
    "pred": 1, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f8e4m3": 1, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3b11fnuz": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
"""Bytes of one element; tokens and other opaque types have none."""


class Shape(NamedTuple):
    """One array's type."""

    dtype: str
    dims: tuple[int, ...]
    space: int
    """Memory space: 0 is the device's main memory, others are on the chip or on the host."""

    @property
    def bytes(self) -> float:
        """Without the padding of tiles."""
        return BYTES[self.dtype] * math.prod(self.dims)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    op: str
    shapes: tuple[Shape, ...]
    """Of the result; a tuple's parts one after another."""
    operands: tuple[str, ...]
    inside: str
    """What stands between the parentheses: a constant's value, a parameter's number."""
    attributes: str
    root: bool

    def called(self, *keys: str) -> list[str]:
        """Names of the computations that the attributes name under one of the keys."""
        found = re.findall(rf"\b(?:{'|'.join(keys)})=\{{?((?:%[^\s,}}]+(?:, )?)+)", self.attributes)
        return [name for group in found for name in re.findall(r"%([^\s,}]+)", group)]

    @property
    def source(self) -> str:
        """The traced operation that it comes from."""
        return first(r'op_name="([^"]*)"', self.attributes) or ""

    @property
    def target(self) -> str:
        """What a custom call calls."""
        return first(r'custom_call_target="([^"]*)"', self.attributes) or ""


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str
    partitions: int


def first(pattern: str, text: str) -> str | None:
    """What the pattern's group matches first, or none."""
    found = re.search(pattern, text)
    return found[1] if found else None


# --- reading
# -----------------------------------------------------------------------------------------------------


def parse(text: str) -> Module:
    """Reads what `compiled.as_text()` gives."""
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    for line in _lines(text):
        if current is None:
            head = re.match(r"(ENTRY )?%?(\S+) \(.*\) -> .* \{$", line)
            if head:
                current = computations[head[2]] = {}
                entry = head[2] if head[1] else entry
        elif line == "}" or line.startswith("}, execution_thread"):
            current = None
        elif found := _instruction(line.strip()):
            current[found.name] = found
    return Module(computations, entry, int(first(r"num_partitions=(\d+)", text[:1_000_000]) or 1))


def _lines(text: str) -> Iterator[str]:
    """Lines; an instruction whose attributes hold line ends, as Pallas' do, is one."""
    held = ""
    for line in text.splitlines():
        if (
            held.startswith("  ")
            and not line.startswith("  ")
            and line != "}"
            and not line.startswith("}, execution_thread")
        ):
            held += line
        else:
            yield held
            held = line
    yield held


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"(ROOT )?%?(\S+) = ", line)
    if not head:
        return None
    kind, rest = _type(line[head.end() :])
    op = re.match(r"\s*([a-z][a-z0-9\-]*)\(", rest)
    if not op:
        return None
    inside, attributes = _closed(rest[op.end() :])
    return Instruction(
        head[2],
        op[1],
        _shapes(kind),
        tuple(re.findall(r"%([^\s,()]+)", inside)),
        inside.strip(),
        attributes,
        bool(head[1]),
    )


def _type(text: str) -> tuple[str, str]:
    """The type at the begin of a text, and the rest."""
    if text.startswith("("):
        inside, rest = _closed(text[1:])
        return inside, rest
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == " " and not depth:
            return text[:i], text[i:]
    return text, ""


def _closed(text: str) -> tuple[str, str]:
    """What stands before the parenthesis that closes one opened before, and what after."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return text[: found.start()], text[found.end() :]
    return text, ""


def _shapes(text: str) -> tuple[Shape, ...]:
    found = re.findall(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\](?:\{([^}]*)\})?", text)

    def number(layout):
        return int(first(r"S\((\d+)\)", layout) or 0)

    return tuple(
        Shape(kind, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), number(layout))
        for kind, dims, layout in found
        if kind in BYTES
    )


# --- how often
# ---------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """How often a computation runs in one step, and whether it is the inside of one fused
    kernel."""

    times: float
    fused: bool
    owner: str
    """The computation whose schedule it is part of: its own name, or that of what calls the fused
    kernel."""


def runs(module: Module) -> tuple[dict[str, Run], list[str]]:
    """Every computation that runs, with its count; and the loops whose length could not be told,
    which count once.

    Of a conditional every branch counts as run.
    """
    times: dict[str, float] = collections.defaultdict(float)
    owners, endless = {}, []

    def visit(name: str, count: float, owner: str | None) -> None:
        times[name] += count
        owners[name] = owner or name
        for one in module.computations[name].values():
            if one.op == "while":
                length = trips(module, module.computations[name], one)
                if length is None:
                    endless.append(one.name)
                for body in one.called("body"):
                    visit(body, count * (1 if length is None else length), None)
            elif one.op == "fusion":
                for body in one.called("calls"):
                    visit(body, count, owner or name)
            elif one.op in ("call", "async-start", "custom-call", "conditional"):
                keys = (
                    "calls",
                    "to_apply",
                    "called_computations",
                    "branch_computations",
                    "true_computation",
                    "false_computation",
                )
                for body in one.called(*keys):
                    visit(body, count, owner)

    visit(module.entry, 1.0, None)
    return {
        name: Run(count, owners[name] != name, owners[name]) for name, count in times.items()
    }, endless


LONGEST = 100_000
"""Turns after which a loop counts as one whose length can't be told."""


def trips(module: Module, around: Computation, loop: Instruction) -> int | None:
    """The turns of a counted loop: what XLA notes, or else the turns of its integer counters, run
    here; none if they can't be told."""
    noted = first(r"known_trip_count[^0-9]*(\d+)", loop.attributes)
    if noted:
        return int(noted)
    (condition,), (body,) = loop.called("condition"), loop.called("body")
    begin = around.get(loop.operands[0])
    if begin is None or begin.op != "tuple":
        return None
    state = [_value(module, around, operand, None) for operand in begin.operands]
    root = _root(module.computations[body])
    if root.op != "tuple" or len(root.operands) != len(state):
        return None
    counters = [i for i, value in enumerate(state) if value is not None]
    for turn in range(LONGEST):
        goes_on = _value(
            module,
            module.computations[condition],
            _root(module.computations[condition]).name,
            state,
        )
        if goes_on is None:
            return None
        if not goes_on:
            return turn
        moved = {
            i: _value(module, module.computations[body], root.operands[i], state) for i in counters
        }
        counters = [i for i, value in moved.items() if value is not None]
        state = [moved.get(i) for i in range(len(state))]
    return None


def _root(computation: Computation) -> Instruction:
    return next((one for one in computation.values() if one.root), list(computation.values())[-1])


COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": int.__lt__, "LE": int.__le__, "GT": int.__gt__, "GE": int.__ge__, "EQ": int.__eq__, "NE": int.__ne__,
}  # fmt: skip


def _value(
    module: Module,
    where: Computation,
    name: str,
    given: list[int | None] | None,
    arguments: tuple[int | None, ...] = (),
) -> int | None:
    """The value of an integer or boolean scalar; none where it is neither.

    Args:
      given: the loop's tuple, where `where` is a condition or a body.
      arguments: the parameters, where `where` is a fusion.
    """
    one = where.get(name)
    if one is None:
        return None

    def inner(operand):
        return _value(module, where, operand, given, arguments)

    match one.op:
        case "constant":
            return (
                int(one.inside)
                if re.fullmatch(r"-?\d+", one.inside)
                else {"true": 1, "false": 0}.get(one.inside)
            )
        case "parameter":
            number = int(one.inside)
            return arguments[number] if number < len(arguments) else None
        case "get-tuple-element":
            source, index = (
                where.get(one.operands[0]),
                int(first(r"index=(\d+)", one.attributes) or 0),
            )
            return (
                given[index] if given and source is not None and source.op == "parameter" else None
            )
        case "copy" | "bitcast" | "convert" | "reshape":
            return inner(one.operands[0])
        case "fusion" | "call":
            called = module.computations[one.called("calls", "to_apply")[0]]
            return (
                _value(
                    module,
                    called,
                    _root(called).name,
                    None,
                    tuple(inner(operand) for operand in one.operands),
                )
                if len(one.operands) < 8
                else None
            )
        case "add" | "subtract" | "multiply" | "and" | "or" | "compare":
            left, right = (inner(operand) for operand in one.operands)
            if left is None or right is None:
                return None
            if one.op == "compare":
                return int(COMPARE[first(r"direction=(\w+)", one.attributes) or "LT"](left, right))
            return {
                "add": left + right,
                "subtract": left - right,
                "multiply": left * right,
                "and": left & right,
                "or": left | right,
            }[one.op]
    return None
