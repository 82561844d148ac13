"""Parses optimised HLO text into instructions, and counts how often each computation runs. `hlo`
counts what they cost.

Read `parse`, then `runs` (the count of every computation, loops included), then `trips`, which
evaluates a loop's counters.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

BYTES = {
    **dict.fromkeys(("s2", "u2"), 0.25),
    **dict.fromkeys(("s4", "u4"), 0.5),
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3", "f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz"), 1),
    **dict.fromkeys(("s16", "u16", "bf16", "f16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    "c128": 16,
}
"""Bytes per element; tokens and other opaque types have none."""


class Shape(NamedTuple):
    """The type of one array."""

    dtype: str
    dims: tuple[int, ...]
    space: int
    """Memory space: 0 is the device's main memory, others are on the chip or on the host."""

    @property
    def bytes(self) -> float:
        """Size without the padding of tiles."""
        return BYTES[self.dtype] * math.prod(self.dims)


class Instruction(NamedTuple):
    """An instruction, one line of a computation."""

    name: str
    op: str
    shapes: tuple[Shape, ...]
    """Shapes of the result; of a tuple, those of its parts in order."""
    operands: tuple[str, ...]
    inside: str
    """Text between the parentheses: a constant's value, a parameter's number."""
    attributes: str
    root: bool

    def called(self, *keys: str) -> list[str]:
        """Names of the computations under the given attribute keys."""
        groups = re.findall(
            rf"\b(?:{'|'.join(keys)})=\{{?((?:%[^\s,}}]+(?:, )?)+)", self.attributes
        )
        return [name for group in groups for name in re.findall(r"%([^\s,}]+)", group)]

    @property
    def source(self) -> str:
        """Path of the traced operation that it comes from."""
        return first_match(r'op_name="([^"]*)"', self.attributes) or ""

    @property
    def target(self) -> str:
        """Target of a custom call."""
        return first_match(r'custom_call_target="([^"]*)"', self.attributes) or ""


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str
    partitions: int


def first_match(pattern: str, text: str) -> str | None:
    """Returns the group of the pattern's first match, or `None`."""
    match = re.search(pattern, text)
    return match[1] if match else None


# --- parsing ---


def parse(text: str) -> Module:
    """Parses the output of `compiled.as_text()`."""
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
        elif instruction := _instruction(line.strip()):
            current[instruction.name] = instruction
    partitions = first_match(r"num_partitions=(\d+)", text[:1_000_000])
    return Module(computations, entry, int(partitions or 1))


def _lines(text: str) -> Iterator[str]:
    """Yields lines, joining an instruction whose attributes contain line ends, as Pallas' do."""
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
        name=head[2],
        op=op[1],
        shapes=_shapes(kind),
        operands=tuple(re.findall(r"%([^\s,()]+)", inside)),
        inside=inside.strip(),
        attributes=attributes,
        root=bool(head[1]),
    )


def _type(text: str) -> tuple[str, str]:
    """Splits a text after the type at its start."""
    if text.startswith("("):
        return _closed(text[1:])
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == " " and not depth:
            return text[:i], text[i:]
    return text, ""


def _closed(text: str) -> tuple[str, str]:
    """Splits a text at the parenthesis that closes one opened before it."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return text[: match.start()], text[match.end() :]
    return text, ""


def _shapes(text: str) -> tuple[Shape, ...]:
    arrays = re.findall(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\](?:\{([^}]*)\})?", text)

    def space(layout: str) -> int:
        return int(first_match(r"S\((\d+)\)", layout) or 0)

    return tuple(
        Shape(kind, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), space(layout))
        for kind, dims, layout in arrays
        if kind in BYTES
    )


# --- counting runs ---


class Run(NamedTuple):
    """How often a computation runs in one step."""

    times: float
    fused: bool
    """It is the body of a fused kernel."""
    owner: str
    """The computation whose schedule it is part of: itself, or the caller of the fused kernel."""


def runs(module: Module) -> tuple[dict[str, Run], list[str]]:
    """Returns the run count of every computation that runs on the device with most to do, and the
    names of loops of unknown length, which count once.

    Every branch of a conditional counts as run.
    """
    times: dict[str, float] = collections.defaultdict(float)
    owners, endless = {}, []

    def visit(name: str, count: float, owner: str | None) -> None:
        times[name] += count
        owners[name] = owner or name
        for one in module.computations[name].values():
            if one.op == "while":
                length = trips(module, module.computations[name], one)
                if length is None and one.source.endswith("/while"):
                    length = visits(one.source.removesuffix("/while"))[0] or None
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
"""Iterations after which the length of a loop counts as unknown."""

SCALAR_OPS: dict[str, Callable[[int, int], int]] = {
    "add": int.__add__,
    "subtract": int.__sub__,
    "multiply": int.__mul__,
    "and": int.__and__,
    "or": int.__or__,
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "LT": int.__lt__,
    "LE": int.__le__,
    "GT": int.__gt__,
    "GE": int.__ge__,
    "EQ": int.__eq__,
    "NE": int.__ne__,
}


def trips(module: Module, around: Computation, loop: Instruction) -> int | None:
    """Returns the number of iterations of a loop, as noted by XLA or by evaluating its integer
    counters; `None` if neither is possible."""
    noted = first_match(r"known_trip_count[^0-9]*(\d+)", loop.attributes)
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
        tested = module.computations[condition]
        continues = _value(module, tested, _root(tested).name, state)
        if continues is None:
            return None
        if not continues:
            return turn
        moved = {
            i: _value(module, module.computations[body], root.operands[i], state) for i in counters
        }
        counters = [i for i, value in moved.items() if value is not None]
        state = [moved.get(i) for i in range(len(state))]
    return None


def visits(source: str) -> tuple[float, float]:
    """Returns how often the loop that an operation is in, or is, turns on average on the device
    where it turns most often, and on all, as `model.attention.blockwise` notes it in the path;
    zeros if it is no such loop."""
    found = re.search(r"visits_([0-9.e+]+)_([0-9.e+]+)", source)
    return (float(found[1]), float(found[2])) if found else (0.0, 0.0)


def _root(computation: Computation) -> Instruction:
    return next((one for one in computation.values() if one.root), list(computation.values())[-1])


def _value(
    module: Module,
    where: Computation,
    name: str,
    state: list[int | None] | None,
    arguments: tuple[int | None, ...] = (),
) -> int | None:
    """Evaluates an integer or boolean scalar; `None` if it is neither.

    Args:
      state: the loop's tuple, if `where` is a condition or a body.
      arguments: the parameters, if `where` is a fusion.
    """
    one = where.get(name)
    if one is None:
        return None

    def operand(number: int) -> int | None:
        return _value(module, where, one.operands[number], state, arguments)

    match one.op:
        case "constant":
            booleans = {"true": 1, "false": 0}
            is_int = re.fullmatch(r"-?\d+", one.inside)
            return int(one.inside) if is_int else booleans.get(one.inside)
        case "parameter":
            number = int(one.inside)
            return arguments[number] if number < len(arguments) else None
        case "get-tuple-element":
            source = where.get(one.operands[0])
            index = int(first_match(r"index=(\d+)", one.attributes) or 0)
            from_state = state and source is not None and source.op == "parameter"
            return state[index] if from_state else None
        case "copy" | "bitcast" | "convert" | "reshape":
            return operand(0)
        case "fusion" | "call" if len(one.operands) < 8:
            called = module.computations[one.called("calls", "to_apply")[0]]
            values = tuple(operand(number) for number in range(len(one.operands)))
            return _value(module, called, _root(called).name, None, values)
        case "compare":
            direction = first_match(r"direction=(\w+)", one.attributes) or "LT"
            return _applied(COMPARISONS[direction], operand(0), operand(1))
        case op if op in SCALAR_OPS:
            return _applied(SCALAR_OPS[op], operand(0), operand(1))
    return None


def _applied(
    function: Callable[[int, int], int], left: int | None, right: int | None
) -> int | None:
    return None if left is None or right is None else int(function(left, right))
