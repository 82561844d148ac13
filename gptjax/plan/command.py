"""Runs `gptjax plan`, given its flags."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from typing import Any

import jax

from gptjax.plan import sampling as generation
from gptjax.plan import search as ways
from gptjax.plan import serving
from gptjax.plan.plan import plan_step
from gptjax.plan.report import format_plan
from gptjax.plan.target import Target, parse_target
from gptjax.train.experiment import Experiment, guessed


def run_plan(
    experiment: Experiment,
    *,
    target: str,
    fast: bool,
    search: bool,
    sampling: bool,
    serve: bool,
    slots: int,
    cache_gib: float,
    length: int | None,
    json: bool,
) -> bool:
    """Plans and prints; returns whether the target fits."""
    machine = parse_target(target)
    counted = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if machine.platform == "cpu" and not counted:
        with contextlib.suppress(RuntimeError):  # the CPU is in use already, with its devices
            jax.config.update("jax_num_cpu_devices", machine.shape[0])
    say = functools.partial(print, file=sys.stderr if json else sys.stdout, flush=True)
    if serve:
        facts = serving.plan_serving(
            guessed(experiment).model, machine, slots=slots, context=length, cache_gib=cache_gib
        )
        lines = serving.format_serving(facts)
    elif sampling:
        facts, lines = _sampled(experiment, machine, length)
    else:
        facts, lines = (_searched if search else _planned)(experiment, machine, fast, say)
    print(_json(facts) if json else lines)
    return facts["fits"]


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False)


def _sampled(
    experiment: Experiment, machine: Target, length: int | None
) -> tuple[dict[str, Any], str]:
    facts = generation.plan_sampling(guessed(experiment).model, machine, length)
    return facts, generation.format_sampling(facts)


def _planned(
    experiment: Experiment, machine: Target, fast: bool, say: ways.Say
) -> tuple[dict[str, Any], str]:
    facts = plan_step(experiment, machine, fast=fast)
    if not facts["fits"]:
        say("it does not fit; trying what would:")
        facts["change"] = (
            ways.first_fitting(experiment, machine, say)
            or "none of these is enough: more devices, a smaller model or shorter rows"
        )
    return facts, format_plan(facts)


def _searched(
    experiment: Experiment, machine: Target, fast: bool, say: ways.Say
) -> tuple[dict[str, Any], str]:
    """Searches, then plans the best match."""
    ranked = ways.search_ways(experiment, machine, say)
    rows = [row for _, row in ranked]
    if not rows or not rows[0]["fits"]:
        facts, lines = _planned(experiment, machine, True, say)
        return facts | {"search": rows}, f"nothing that was tried fits\n{lines}"
    best = ranked[0][0]
    facts = plan_step(best.experiment, machine, fast=fast) | {"search": rows, "flags": best.flags}
    table = "\n".join(ways.format_way(row) for row in rows)
    return facts, f"{table}\n\nbest         {best.flags}\n{format_plan(facts)}"
