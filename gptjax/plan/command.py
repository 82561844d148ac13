"""What `gptjax plan` does with its flags."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from typing import Any

import jax

from gptjax.plan import report, sampling, search
from gptjax.plan import target as targets
from gptjax.plan.plan import plan
from gptjax.train.experiment import Experiment, guessed


def run(
    experiment: Experiment,
    *,
    target: str,
    fast: bool,
    search: bool,
    sampling: bool,
    length: int | None,
    json: bool,
) -> bool:
    """Plans, prints, and says whether it fits."""
    machine = targets.read(target)
    if machine.platform == "cpu" and "host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        with contextlib.suppress(
            RuntimeError
        ):  # the CPU is in use already, with the devices that it has
            jax.config.update("jax_num_cpu_devices", machine.shape[0])
    say = functools.partial(print, file=sys.stderr if json else sys.stdout, flush=True)
    facts, lines = (
        _sampled(experiment, machine, length)
        if sampling
        else (_searched if search else _planned)(experiment, machine, fast, say)
    )
    print(_json(facts) if json else lines)
    return facts["fits"]


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False)


def _sampled(
    experiment: Experiment, machine: targets.Target, length: int | None
) -> tuple[dict[str, Any], str]:
    facts = sampling.sampling(guessed(experiment).model, machine, length)
    return facts, sampling.text(facts)


def _planned(
    experiment: Experiment, machine: targets.Target, fast: bool, say: search.Say
) -> tuple[dict[str, Any], str]:
    facts = plan(experiment, machine, fast=fast)
    if not facts["fits"]:
        say("it does not fit; trying what would:")
        facts["change"] = (
            search.mend(experiment, machine, say)
            or "none of these is enough: more devices, a smaller model or shorter rows"
        )
    return facts, report.text(facts)


def _searched(
    experiment: Experiment, machine: targets.Target, fast: bool, say: search.Say
) -> tuple[dict[str, Any], str]:
    """Searches, then plans the best that was found."""
    found = search.search(experiment, machine, say)
    rows = [row for _, row in found]
    if not rows or not rows[0]["fits"]:
        facts, lines = _planned(experiment, machine, True, say)
        return facts | {"search": rows}, f"nothing that was tried fits\n{lines}"
    best = found[0][0]
    facts = plan(best.experiment, machine, fast=fast) | {"search": rows, "flags": best.flags}
    table = "\n".join(search.line(row) for row in rows)
    return facts, f"{table}\n\nbest         {best.flags}\n{report.text(facts)}"
