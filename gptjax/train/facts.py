"""What a run says of itself: the banner before the first step, and the facts of its report after
the last."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

import gptjax
from gptjax.core import config, processes
from gptjax.core.config import ConfigError
from gptjax.core.processes import Votes
from gptjax.data.prepare import Prepared
from gptjax.losses import Frozen
from gptjax.model import flops_per_token
from gptjax.model.attention.layer import choose
from gptjax.model.stack import scanned
from gptjax.runs import Run
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import describe_mesh
from gptjax.train import goodput, placement, program
from gptjax.train.experiment import Experiment
from gptjax.train.goodput import Clock
from gptjax.train.identity import backend, versions
from gptjax.train.metrics import Log, duration, human, memory, read
from gptjax.train.step import TrainState


class Setting(NamedTuple):
    """What every part of a run needs to know."""

    experiment: Experiment
    path: Path
    data: Prepared
    program: program.Program
    run: Run
    log: Log
    clock: Clock
    interrupted: Votes
    frozen: Frozen


def attention(experiment: Experiment, mesh: Mesh) -> list[tuple[str, str]]:
    """The implementations of attention that the layers will use, and why.

    Raises:
      ConfigError: the config names one that can't serve its layers here.
    """
    model, here = experiment.model, jax.default_backend()
    try:
        parts = (model, model.encoder) if model.encoder_layers else (model,)
        with use_mesh(mesh):
            return list(
                dict.fromkeys(
                    choose(part, part.context, layer, backend=here)
                    for part in parts
                    for layer in part.stack
                )
            )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def banner(setting: Setting, state: TrainState, notes: tuple[str, ...]) -> str:
    """Says on which machine what is about to be trained, and from which step."""
    experiment, built = setting.experiment, setting.program
    devices = jax.devices()
    parameters, idle = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in ((state.trainable, setting.frozen.get("params")), setting.frozen.get("params"))
    )
    among = f" in {processes.count()} processes" if processes.several() else ""
    train, held_out = setting.data.train.header, setting.data.validation
    lines = [
        f"gptjax {gptjax.__version__} · {setting.path}",
        (
            f"devices     {len(devices)} × {devices[0].device_kind}"
            f" ({devices[0].platform}){among}{f' as {describe_mesh(built.mesh)}' if len(devices) > 1 else ''},"
            f" jax {jax.__version__}, Python {platform.python_version()}"
        ),
        (
            f"model       {human(parameters)} parameters, {experiment.model.compute} compute,"
            f" layers {'scanned' if scanned(experiment.model) else 'unrolled'}"
        ),
        *([_frozen_line(setting, idle, parameters)] if idle else []),
        *(
            f"attention   {implementation}: {reason}"
            for implementation, reason in attention(experiment, built.mesh)
        ),
        (
            f"data        {human(train.num_tokens)} tokens to train,"
            f" {human(held_out.header.num_tokens) if held_out else 'none'} held out;"
            f" {experiment.data.tokenizer.__class__.__name__} of"
            f" {setting.data.tokenizer.vocab_size},"
            f" {train.num_bytes / max(1, train.num_tokens):.2f} bytes a token"
        ),
        (
            f"step        {human(experiment.tokens_per_step)} tokens,"
            f" {human(flops_per_token(experiment.model, experiment.model.context) * experiment.tokens_per_step)}FLOP;"
            f" state {placement.total_bytes(built.state) / 2**20:.0f} MiB, temporary"
            f" {built.temporary_bytes / 2**20:.0f} MiB"
        ),
        (
            "start      "
            f" {', '.join(f'{what} {duration(s)}' for what, s in setting.clock.seconds().items())}"
        ),
        *(f"note        {note}" for note in notes),
    ]
    at = int(state.step)
    if at >= experiment.steps:
        lines.append(f"finished already at step {at}; --steps {2 * at} goes on from there")
        return "\n".join(lines)
    lines.append(
        f"resuming at step {at} of {experiment.steps}"
        if at
        else f"training {experiment.steps} steps; interrupt when you like, the same command goes on"
    )
    return "\n".join(lines)


def _frozen_line(setting: Setting, frozen: int, parameters: int) -> str:
    count = len(jax.tree.leaves(setting.frozen["params"]))
    weights = count + len(jax.tree.leaves(setting.program.state.trainable))
    return (
        f"frozen      {count} of {weights} weights, {human(frozen)} of {human(parameters)}"
        f" parameters ({' '.join(setting.experiment.freeze)})"
    )


def facts(setting: Setting, state: TrainState) -> dict[str, Any]:
    """Gives what the report says of the whole run, over all its starts."""
    experiment, path = setting.experiment, setting.path
    lines = read(path)
    evaluated = [line for line in lines if "validation_loss" in line]
    final = (
        {k: v for k, v in evaluated[-1].items() if k.startswith("validation_")} if evaluated else {}
    )
    setting.clock.write()
    spent = goodput.read(path)
    seconds = spent.seconds or setting.clock.seconds()  # a full disk holds no record
    return {
        "name": path.name,
        "config": config.to_dict(experiment),
        "environment": versions() | backend() | {"processor": processor()},
        "parameters": sum(
            leaf.size for leaf in jax.tree.leaves((state.trainable, setting.frozen.get("params")))
        ),
        "tokens": int(state.step) * experiment.tokens_per_step,
        "seconds": {"total": sum(seconds.values()), **seconds},
        "goodput": {
            "useful_share": spent.share,
            "starts": spent.starts,
            "lost_steps": spent.lost_steps,
        },
        "final": {"step": int(state.step), **final, "peak_memory_bytes": memory()},
        "baselines": setting.data.validation.header.facts if setting.data.validation else {},
        "skipped_steps": sum(bool(line.get("skipped")) for line in lines),
        "warnings": (
            [f"{len(bad)} bad records were left out, the first: {bad[0]}"]
            if (bad := setting.data.passed_over)
            else []
        ),
        "passed_over_records": len(setting.data.passed_over),
        "spikes": sum((line.get("spike") or 0.0) >= experiment.spike_score for line in lines),
        "next": [
            f"python sample.py {path}"
            + (
                f" --prompt {shlex.quote(experiment.evaluation.prompt)}"
                if experiment.evaluation.prompt.strip()
                else ""
            ),
            f"python train.py {path}/config.json --steps {2 * experiment.steps}",
            f"tensorboard --logdir {path}",
        ],
    }


def utilisation(experiment: Experiment, tokens_per_second: float | None) -> float | None:
    """Model FLOPs utilisation of the devices, none where their peak is not known."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    if peak is None or tokens_per_second is None:
        return None
    return (
        flops_per_token(experiment.model, experiment.model.context)
        * tokens_per_second
        / (peak * jax.device_count())
    )


PEAK_FLOPS = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA B200": 2250e12,
}  # fmt: skip
"""Dense bfloat16 FLOP/s of one device by its kind, from the makers' data sheets."""


def processor() -> str:
    """The processor's name, as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
