"""Plans a training step for a machine: whether it fits, how long it takes and what bounds it, as
plain values.

Read `plan_step`, then `timed`. `compiled` makes the program, `report` formats the plan, `search`
looks for changes that make it fit.
"""

from __future__ import annotations

import collections
import math
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from gptjax.model import flops_per_token
from gptjax.model.attention.order import context_order
from gptjax.model.config import ModelConfig
from gptjax.model.cost import products_per_key, seen, seen_by_each
from gptjax.plan import sampling
from gptjax.plan import target as targets
from gptjax.plan.collectives import Collective
from gptjax.plan.compiled import Compiled, compile_step
from gptjax.plan.hlo import Operation
from gptjax.plan.published import expected
from gptjax.plan.target import Target
from gptjax.plan.text import visits
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import bytes_per_device
from gptjax.sharding.zigzag import zigzag_positions
from gptjax.train import placement
from gptjax.train.experiment import Experiment, guessed
from gptjax.train.overview import model_facts

KERNELS = 0.5
"""Share of the peak that hand-written attention is assumed to reach on a TPU; nothing here can
measure it."""

PRODUCTS = 0.6
"""The same for matrix products on GPUs, whose compiler gives no estimates of its own."""

MARGIN = 0.2
"""Relative error of the predicted time. Against two published runs on TPU v5e and v6e predictions
were 15 and 19 % too slow (`docs/reports/scaling.md`); GPUs were compared with nothing."""


def plan_step(experiment: Experiment, target: Target, *, fast: bool = False) -> dict[str, Any]:
    """Compiles an experiment's step for a target and returns its costs.

    Returns:
      `fits`; `peak_bytes_per_device` of `memory_bytes_per_device`, and `memory`, its parts;
      `weights`, see `weight_bytes`;
      `parameters`, `active_parameters`; `flops_per_step` of the model on all devices, and `flops`:
      `model`, `hardware`, `kernels` of one device, and `as_xla_counts`; `collectives`, rows of
      kind, axes, network, times, bytes and seconds; `step_seconds`, `tokens_per_second` and `mfu`,
      each from full overlap to none (the first is the better), within `margin`, or `None` if no
      time can be predicted; `seconds`, the parts of the time, and `bound`, the longest of them, all
      of the device with most to do;
      where devices share the positions of a row `context`: their `order` and why, and `slowest`,
      by how much that device computes longer than the mean of all (1 is perfect);
      `dearest`, the ten costliest operations; `notes`;
      `published`, what a step of this size takes by those that others published, see
      `published.expected`, if all of the model trains;
      of a run that learns from rewards `rollout`, see `sampling.plan_rollout`; it has to fit too.

    Raises:
      ConfigError: see `compile_step`.
    """
    experiment = guessed(experiment)
    done = compile_step(experiment, target, fast=fast)
    limit = target.chip.memory if target.chip else targets.host_bytes() / target.shape[0]
    facts = model_facts(experiment.model)
    shape = {axis: size for axis, size in done.mesh.shape.items() if size > 1}
    summary = {
        "target": str(target),
        "chip": target.chip.name if target.chip else "CPU",
        "devices": done.mesh.size,
        "mesh": shape,
        "fast": fast,
        "fits": done.analysis is not None and done.memory.peak <= limit,
        "peak_bytes_per_device": round(done.memory.peak),
        "memory_bytes_per_device": round(limit),
        "memory": {name: round(value) for name, value in done.memory._asdict().items()},
        "weights": weight_bytes(experiment, done.mesh),
        "parameters": facts["parameters"],
        "active_parameters": facts["active_parameters"],
        "tokens_per_step": experiment.tokens_per_step,
        "flops_per_step": facts["flops_per_token"] * experiment.tokens_per_step,
        "compile_seconds": round(done.seconds, 1),
    }
    whole = set(summary["weights"]) == {"train"} and experiment.rollout is None
    each = experiment.tokens_per_step / done.mesh.size
    summary["published"] = expected(experiment.model, target.kind, each) if whole else None
    if experiment.rollout is not None:
        state = done.memory.parameters + done.memory.optimizer
        written = sampling.plan_rollout(experiment, target, done.mesh, state)
        written["fits"] = written["peak_bytes_per_device"] <= limit
        summary |= {"rollout": written, "fits": summary["fits"] and written["fits"]}
    return summary | _costs(experiment, target, done, fast) | {"notes": _notes(target, done, fast)}


def weight_bytes(experiment: Experiment, mesh: Mesh) -> dict[str, int]:
    """Returns the bytes of a device's weights: those that `train` (of an adapter it alone), the
    `frozen` ones of the model, and those of each further model that the loss has in memory, by its
    name; `cached` are the bytes of what it reads of each example instead."""
    state, frozen = placement.abstract(experiment, mesh)
    named = {"frozen" if name == "params" else name: tree for name, tree in frozen.items()}
    sizes = {"train": state.trainable, **named}
    found = {name: bytes_per_device(tree) for name, tree in sizes.items()}
    cached = sum(4 * math.prod(shape) for shape in experiment.objective.columns.values())
    return found | ({"cached": cached} if cached else {})


def _costs(experiment: Experiment, target: Target, done: Compiled, fast: bool) -> dict[str, Any]:
    model, analysis, tokens = experiment.model, done.analysis, experiment.tokens_per_step
    each = flops_per_token(model, model.context) * tokens / done.mesh.size
    names = ("flops", "context", "step_seconds", "tokens_per_second", "mfu", "seconds", "bound")
    unknown = dict.fromkeys(names)
    if analysis is None:
        return unknown | {"collectives": [], "dearest": []}
    most = most_attention(model, done.mesh)
    kernels = most * sum(
        one.times * kernel_flops(one, model) for one in analysis.operations if one.kind == "kernel"
    )
    flops = {
        "model": each,
        "hardware": analysis.flops + kernels,
        "kernels": kernels,
        "as_xla_counts": done.counted,
    }
    times = timed(model, target, done, fast, most)
    rows = _collected(target, done)
    known = unknown | {"flops": flops, "collectives": rows, "dearest": times.dearest}
    known["context"] = _context(model, done.mesh, times.slowest)
    if times.compute is None:
        return known
    busy, waiting = times.compute + times.kernels, sum(row["seconds"] for row in rows)
    low, high = max(busy, waiting), busy + waiting
    parts = {"compute": times.compute, "kernels": times.kernels} | {
        network: sum(row["seconds"] for row in rows if row["network"] == network)
        for network in dict.fromkeys(row["network"] for row in rows)
    }
    attended = np.mean([seen(layer, model.context, model.causal) for layer in model.stack])
    unseen = 6 * model.num_layers * products_per_key(model) * (model.context - attended)
    square = each + unseen * tokens / done.mesh.size

    def mfu(flops: float, step: float) -> float:
        return flops / (step * target.chip.peak)

    return known | {
        "step_seconds": [low, high],
        "tokens_per_second": [tokens / low, tokens / high],
        "mfu": [mfu(each, low), mfu(each, high)],
        "mfu_whole_square": [mfu(square, low), mfu(square, high)],
        "margin": MARGIN,
        "seconds": parts,
        "bound": max(parts, key=parts.get),
    }


def _notes(target: Target, done: Compiled, fast: bool) -> list[str]:
    notes = []
    if fast and target.platform == "tpu":
        notes.append(
            "compiled with little optimisation (--fast): memory within about a tenth, no time"
        )
    if done.analysis is None:
        notes.append(
            "the compiler refused the program; the memory needed is its own figure, of temporaries"
            " alone if the state fits"
        )
    elif done.analysis.endless:
        notes.append(f"{len(done.analysis.endless)} loops of unknown length count once")
    if target.platform == "gpu" and done.memory.peak > 0.75 / 0.95 * target.chip.memory:
        notes.append(
            "a program gets 75 % of a GPU's memory unless XLA_CLIENT_MEM_FRACTION=0.95 is set"
        )
    if target.platform == "gpu":
        notes.append(
            "time on GPUs is a bound by peak, bandwidth and network; it was compared with no run"
        )
    if target.platform == "tpu" and target.chip.clock is None:
        notes.append(
            "the clock of this TPU is unknown; time is a bound by peak, bandwidth and network"
        )
    if target.platform == "cpu":
        notes.append("the speed of this CPU is unknown, so no time is predicted")
    return notes


# --- time ---


class Times(NamedTuple):
    """Seconds of one device in one step."""

    compute: float | None
    """All but kernels and collectives; `None` if it can't be predicted."""
    kernels: float
    slowest: float
    """Time without collectives, of the device with most to do by that of the mean device."""
    dearest: list[dict[str, Any]]


def timed(model: ModelConfig, target: Target, done: Compiled, fast: bool, most: float) -> Times:
    """Adds up the time of each operation on the device with most to do, by the compiler's cycles,
    or without them by peak and bandwidth.

    Args:
      most: see `most_attention`.

    With little optimisation TPU cycles mean nothing; then, and on a CPU, operations are ranked by
    FLOPs and bytes.
    """
    chip, analysis = target.chip, done.analysis
    by_cycles = chip is not None and chip.clock is not None and not fast

    def seconds(one: Operation) -> float:
        if one.kind == "kernel":
            return most * kernel_flops(one, model) / ((chip.peak if chip else 1e11) * KERNELS)
        if by_cycles:
            return one.cycles / chip.clock
        peak, bandwidth = (chip.peak, chip.bandwidth) if chip else (1e11, 1e10)
        peak *= 2 if one.narrow else 1  # data sheets of all that multiply 8-bit floats
        return max(one.flops / (peak * PRODUCTS), one.traffic / bandwidth)

    def total(*kinds: str) -> float:
        return sum(one.times * seconds(one) for one in analysis.operations if one.kind in kinds)

    def on_average(one: Operation) -> float:
        turns, mean = (most, 1.0) if one.kind == "kernel" else visits(one.source)
        return one.times * seconds(one) * (mean / turns if turns else 1.0)

    costs: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for one in analysis.operations:
        row = costs[readable(one.source) or one.name, one.shape]
        row[0] += one.times * seconds(one)
        row[1] = max(row[1], one.times)
    for one in analysis.collectives:
        name = f"{one.kind} over {' '.join(one.axes) or 'one device'}: {readable(one.source)}"
        row = costs[name, one.shape]
        row[0] += one.times * exchanged(one, target, done.mesh)
        row[1] = max(row[1], one.times)
    ranked = sorted(costs.items(), key=lambda item: -item[1][0])[:10]
    timed = chip is not None and not (fast and target.platform == "tpu")
    dearest = [
        {
            "operation": name,
            "shape": list(shape),
            "times": times,
            "seconds": cost if timed else None,
        }
        for (name, shape), (cost, times) in ranked
    ]
    busy, mean = total("product", "other"), sum(on_average(one) for one in analysis.operations)
    slowest = (busy + total("kernel")) / mean if mean else 1.0
    return Times(busy if timed else None, total("kernel"), slowest, dearest)


def most_attention(model: ModelConfig, mesh: Mesh) -> float:
    """Returns by how much the queries of one device see more keys than the mean, of the device
    where they see most."""
    length, parts = model.context, mesh.shape["context"]
    with use_mesh(mesh):
        order, _ = context_order(model, length)
    keys = np.sum([seen_by_each(layer, length, model.causal) for layer in model.stack], axis=0)
    where = zigzag_positions(length, parts) if order == "zigzag" else np.arange(length)
    return float(keys[where].reshape(parts, -1).mean(1).max() / keys.mean())


def _context(model: ModelConfig, mesh: Mesh, slowest: float) -> dict[str, Any] | None:
    if mesh.shape["context"] == 1:
        return None
    with use_mesh(mesh):
        order, why = context_order(model, model.context)
    return {"order": order, "why": why, "devices": mesh.shape["context"], "slowest": slowest}


def kernel_flops(one: Operation, model: ModelConfig) -> float:
    """Returns the FLOPs of one call of a hand-written kernel: its own estimate, or for attention
    those of the products where a query sees a key.

    Splash attention has two products forward, three for the gradient of queries and four for that
    of keys and values; cuDNN has five backward.
    """
    if one.flops:
        return one.flops
    factors = {"fwd": 2, "dkv": 4, "dq": 3, "Backward": 5, "fmha": 2}
    factor = next((n for word, n in factors.items() if word in one.name), 0)
    queries = next(
        (dims for dims in one.operands if len(dims) >= 3 and dims[-1] == model.query_width), ()
    )  # [B N T H], or [N T H] of one row
    share = np.mean([seen(layer, model.context, model.causal) for layer in model.stack])
    return factor * 2.0 * math.prod(queries) * float(share) if queries else 0.0


def readable(source: str) -> str:
    """Returns the path of a traced operation without what JAX wraps around it."""
    way = "backward: " if "transpose(" in source else ""
    again = "forward again: " if "rematted" in source else ""
    noise = (
        *("jit(", "jvp(", "transpose(", "vmap(", "while", "body", "cond", "branch", "visits_"),
        *("eval_jaxpr", "checkpoint", "rematted", "closed_call", "shard_map"),
    )
    parts = [part for part in source.split("/") if not part.startswith(noise)]
    return (again or way) + "/".join(parts)


# --- networks ---


def _collected(target: Target, done: Compiled) -> list[dict[str, Any]]:
    """Sums up collectives by kind, axes and network, most bytes first."""
    rows: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    for one in done.analysis.collectives:
        row = rows[one.kind, one.axes, network(one, target, done.mesh)]
        row[0] += one.times
        row[1] += one.times * one.wire
        row[2] += one.times * exchanged(one, target, done.mesh)
    named = [
        {
            "kind": kind,
            "axes": list(axes),
            "network": where,
            "times": times,
            "bytes_per_device": wire,
            "seconds": seconds,
        }
        for (kind, axes, where), (times, wire, seconds) in rows.items()
        if wire
    ]
    return sorted(named, key=lambda row: -row["bytes_per_device"])


def network(one: Collective, target: Target, mesh: Any) -> str:
    """Returns the network of an exchange: `ici` between chips of a slice, `dcn` between slices,
    `nvlink` in a host, `nic` between hosts."""
    if target.platform == "cpu":
        return "memory"
    if target.platform == "tpu":
        return "dcn" if one.kind == "send" or (target.slices > 1 and "slice" in one.axes) else "ici"
    hosts = {mesh.devices.flat[number].process_index for number in one.group}
    return "nic" if len(hosts) > 1 else "nvlink"


def exchanged(one: Collective, target: Target, mesh: Any) -> float:
    """Returns the seconds of one exchange at full speed of the links that its group can use at
    once, without latency."""
    where, chip = network(one, target, mesh), target.chip
    if chip is None:
        return 0.0
    members = [mesh.devices.flat[number] for number in one.group]
    if where == "ici":
        places = [tuple(device.coords) for device in members]
        return one.wire / (chip.link * targets.torus_links(target, places))
    if where == "nic":
        hosts = collections.Counter(device.process_index for device in members)
        # each GPU of a host carries its share on an adapter of its own
        return one.wire / (chip.network * min(hosts.values()))
    return one.wire / (chip.network if where == "dcn" else chip.link)
