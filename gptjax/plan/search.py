"""Looks for a change that makes a step fit, or for the fastest of many ways to split it. Every way
is compiled.

Read `first_fitting` and `changes`, then `search_ways` and `ways`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError
from gptjax.model import ModelConfig
from gptjax.plan.plan import PRODUCTS, plan_step
from gptjax.plan.report import gib
from gptjax.plan.target import Target, stand_in_devices
from gptjax.train.experiment import Experiment

Say = Callable[[str], None]


class Way(NamedTuple):
    """An experiment, and the flags that turn the given one into it."""

    flags: str
    experiment: Experiment


def first_fitting(experiment: Experiment, target: Target, say: Say) -> str | None:
    """Returns the flags of the first of `changes` that fits, with its peak; `None` if none does."""
    for way, facts in _plans(changes(experiment, target), target, say):
        peak = gib(facts["peak_bytes_per_device"])
        say(f"  {way.flags}: {peak} GiB")
        if facts["fits"]:
            return f"{way.flags} fits with {peak} GiB per device"
    return None


def _plans(ways: Iterable[Way], target: Target, say: Say) -> Iterator[tuple[Way, dict[str, Any]]]:
    """Yields each way with its plan, compiled with little optimisation; reports those refused."""
    for way in ways:
        try:
            yield way, plan_step(way.experiment, target, fast=True)
        except ConfigError as error:
            say(f"  {way.flags}: {error}")


def changes(experiment: Experiment, target: Target) -> Iterator[Way]:
    """Yields changes that save memory and keep the run's numbers, the cheapest in time first, each
    alone and then together.

    State over all devices costs bytes on the wire, fewer rows at once the same bytes more often,
    the loss by parts of the vocabulary one more product of the output, and computing blocks again a
    third more FLOPs.
    """
    count, mesh, model = len(stand_in_devices(target)), experiment.mesh, experiment.model
    others = count // (mesh.stage * mesh.expert * mesh.context * mesh.tensor * target.slices)
    known: list[Way] = []
    if mesh.fsdp != others:
        known.append(
            Way(
                f"--mesh.fsdp {others}",
                dataclasses.replace(
                    experiment, mesh=dataclasses.replace(mesh, fsdp=others, data=None)
                ),
            )
        )
    parts = count // (mesh.stage * mesh.context * mesh.tensor)
    rows = experiment.batch // experiment.micro_batches
    fewer = [n for n in range(parts, rows, parts) if experiment.batch % n == 0]
    known += [
        Way(f"--micro-batch {n}", dataclasses.replace(experiment, micro_batch=n))
        for n in dict.fromkeys(fewer[-1:] + fewer[:1])
    ]
    if getattr(experiment.loss, "vocab_parts", None) == 1:
        known.append(
            Way(
                "--loss.vocab-parts 8",
                dataclasses.replace(
                    experiment, loss=dataclasses.replace(experiment.loss, vocab_parts=8)
                ),
            )
        )
    if model.remat != "full":
        known.append(Way("--model.remat full", _with(experiment, remat="full")))
    yield from known
    together, flags = experiment, []
    for way in known:
        name = way.flags.split()[0]
        changed = {
            "--mesh.fsdp": "mesh",
            "--micro-batch": "micro_batch",
            "--loss.vocab-parts": "loss",
            "--model.remat": "model",
        }[name]
        together = dataclasses.replace(together, **{changed: getattr(way.experiment, changed)})
        flags = [flag for flag in flags if not flag.startswith(name)] + [way.flags]
        if len(flags) > 1:
            yield Way(" ".join(flags), together)


def _with(experiment: Experiment, **changed: Any) -> Experiment:
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **changed))


# --- search ---


def search_ways(
    experiment: Experiment, target: Target, say: Say
) -> list[tuple[Way, dict[str, Any]]]:
    """Plans each of `ways` with little optimisation; returns those that fit, the fastest first,
    then those that do not, each with a row of figures.

    Speed here is only for comparison: products at the share of the peak that they reach, plus the
    network's time, none of it hidden.
    """
    rows = []
    for way, facts in _plans(ways(experiment, target), target, say):
        row = {
            "flags": way.flags,
            "fits": facts["fits"],
            "peak_bytes_per_device": facts["peak_bytes_per_device"],
            "tokens_per_second": None,
            "bytes_per_device": None,
        }
        if facts["flops"] and target.chip:
            row["bytes_per_device"] = sum(one["bytes_per_device"] for one in facts["collectives"])
            row["tokens_per_second"] = facts["tokens_per_step"] / sum(rough(facts, target))
        rows.append((way, row))
        say(f"  {format_way(row)}")
    return sorted(rows, key=lambda ranked: _rank(ranked[1]))


def _rank(row: dict[str, Any]) -> tuple:
    speed = row["tokens_per_second"] or 0
    return not row["fits"], -speed, row["peak_bytes_per_device"]


def rough(facts: dict[str, Any], target: Target) -> tuple[float, float]:
    """Returns the seconds of a step's products, at the share of the peak that they reach, and of
    its network, for a plan without times of its own."""
    products = facts["flops"]["hardware"] / (PRODUCTS * target.chip.peak)
    return products, sum(one["seconds"] for one in facts["collectives"])


def ways(experiment: Experiment, target: Target) -> Iterator[Way]:
    """Yields every mesh of `fsdp` with `tensor` 1, 2, 4 or 8, and `expert` if there are experts;
    half, one and two times the batch; every remat policy."""
    count = len(stand_in_devices(target))
    remats = typing.get_args(typing.get_type_hints(ModelConfig)["remat"])
    experts = experiment.model.experts.count if experiment.model.experts else 1
    for tensor in (1, 2, 4, 8):
        for expert in dict.fromkeys((1, experts)):
            fsdp, left = divmod(count // target.slices, tensor * expert)
            if left or fsdp < 1 or experiment.model.kv_heads % tensor:
                continue
            mesh = dataclasses.replace(
                experiment.mesh,
                data=None,
                fsdp=fsdp,
                tensor=tensor,
                expert=expert,
                context=1,
                stage=1,
            )
            for batch in dict.fromkeys(
                (experiment.batch // 2, experiment.batch, 2 * experiment.batch)
            ):
                if batch % (count // tensor):
                    continue
                for remat in remats if batch == experiment.batch else (experiment.model.remat,):
                    flags = (
                        f"--mesh.fsdp {fsdp}"
                        + f" --mesh.tensor {tensor}" * (tensor > 1)
                        + f" --mesh.expert {expert}" * (expert > 1)
                    )
                    changed = dataclasses.replace(
                        _with(experiment, remat=remat), batch=batch, micro_batch=None, mesh=mesh
                    )
                    yield Way(f"{flags} --batch {batch} --model.remat {remat}", changed)


def format_way(row: dict[str, Any]) -> str:
    """Formats one way of a search."""
    speed = f"{row['tokens_per_second']:12,.0f} tokens/s" if row["tokens_per_second"] else " " * 21
    return (
        f"{'fits' if row['fits'] else 'too large':9}  {gib(row['peak_bytes_per_device']):>7} GiB "
        f" {speed}  {row['flags']}"
    )
