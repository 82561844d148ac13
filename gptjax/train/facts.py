"""What a run says of itself: the banner before the first step, and the facts of its report after
the last."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import Mesh

import gptjax
from gptjax.core import config, processes
from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError
from gptjax.data.prepare import Prepared
from gptjax.losses import Frozen, OwnAnswers
from gptjax.model import flops_per_token
from gptjax.model.attention.layer import select_attention
from gptjax.model.attention.order import context_order
from gptjax.model.stack import scanned
from gptjax.observe import goodput
from gptjax.observe.goodput import Clock
from gptjax.observe.learning import Sign, signs
from gptjax.observe.log import is_evaluated, read_metrics
from gptjax.observe.progress import duration, human, memory
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import describe_mesh
from gptjax.train import placement
from gptjax.train.experiment import Experiment
from gptjax.train.identity import backend, versions
from gptjax.train.program import Program
from gptjax.train.sources import Read
from gptjax.weights.float8 import multiplies_float8


def attention_kernels(experiment: Experiment, mesh: Mesh) -> list[tuple[str, str]]:
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
                    select_attention(part, part.context, layer, backend=here)
                    for part in parts
                    for layer in part.stack
                )
            )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def banner(
    experiment: Experiment,
    path: Path,
    data: Prepared,
    built: Program,
    frozen: Frozen,
    seconds: dict[str, float],
    step: int,
    notes: tuple[str, ...],
) -> str:
    """Says on which machine what is about to be trained, and from which step.

    Args:
      seconds: that each part of the start took.
    """
    spent = ", ".join(f"{part} {duration(value)}" for part, value in seconds.items())
    rows = [
        ("devices", _devices(built)),
        *_model_rows(experiment, built, frozen),
        *(
            ("attention", f"{name}: {why}")
            for name, why in attention_kernels(experiment, built.mesh)
        ),
        *_context(experiment, built.mesh),
        ("data", _data(experiment, data)),
        *((("learned", learned),) if (learned := data.task.describe(data.train)) else ()),
        ("step", _step(experiment, built)),
        ("start", spent),
        *(("note", note) for note in notes),
    ]
    lines = [
        f"gptjax {gptjax.__version__} · {path}",
        *(f"{name:<11} {text}" for name, text in rows),
    ]
    if step >= experiment.steps:
        last = f"finished already at step {step}; --steps {2 * step} resumes from there"
    elif step:
        last = f"resuming at step {step} of {experiment.steps}"
    else:
        last = (
            f"training {experiment.steps} steps; interrupt when you like, the same command resumes"
        )
    return "\n".join([*lines, last])


def _context(experiment: Experiment, mesh: Mesh) -> list[tuple[str, str]]:
    """The order in which devices hold the positions of a row, if they share them."""
    if mesh.shape["context"] == 1:
        return []
    with use_mesh(mesh):
        return [("context", ": ".join(context_order(experiment.model, experiment.model.context)))]


def _devices(built: Program) -> str:
    devices = jax.devices()
    processes_note = f" in {processes.count()} processes" if processes.several() else ""
    mesh = f" as {describe_mesh(built.mesh)}" if len(devices) > 1 else ""
    return (
        f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform}){processes_note}{mesh},"
        f" jax {jax.__version__}, Python {platform.python_version()}"
    )


def _model_rows(experiment: Experiment, built: Program, frozen: Frozen) -> list[tuple[str, str]]:
    parameters = num_parameters(built.state.trainable, frozen)
    layers = "scanned" if scanned(experiment.model) else "unrolled"
    rows = [
        (
            "model",
            f"{human(parameters)} parameters, {experiment.model.compute} compute, layers {layers}",
        )
    ]
    if experiment.base_width is not None:
        grown = experiment.model.width / experiment.base_width
        rows.append(("transfer", f"rates of width {experiment.base_width}, {grown:g} times wider"))
    if experiment.fp8:
        rows.append(("products", _float8(experiment, built.mesh)))
    if "params" in frozen:
        leaves = jax.tree.leaves(frozen["params"])
        total = len(leaves) + len(jax.tree.leaves(built.state.trainable))
        size = sum(leaf.size for leaf in leaves)
        rows.append(
            (
                "frozen",
                (
                    f"{len(leaves)} of {total} weights, {human(size)} of {human(parameters)}"
                    f" parameters ({_why_frozen(experiment)})"
                ),
            )
        )
    return rows


def _float8(experiment: Experiment, mesh: Mesh) -> str:
    """Which products are of 8-bit floats, and whether the device has such."""
    with use_mesh(mesh):
        how = "multiplied as such" if multiplies_float8() else "on a device without such products"
    return f"e4m3 forward, e5m2 for gradients: {' '.join(experiment.fp8)}; {how}"


def _why_frozen(experiment: Experiment) -> str:
    adapter = experiment.adapter
    if adapter is None:
        return " ".join(experiment.freeze)
    stored = "" if adapter.base == "float32" else f", base stored as {adapter.base}"
    return f"{adapter.summary}{stored}"


def _data(experiment: Experiment, data: Prepared) -> str:
    train, held_out = data.train.header, data.validation
    if experiment.rollout is not None:  # most of its ids are records, which the model never reads
        prompts = held_out.header.num_examples if held_out else "none"
        return (
            f"{train.num_examples:,} prompts to answer, {prompts} held out;"
            f" {type(experiment.data.tokenizer).__name__} of {data.tokenizer.vocab_size}"
        )
    return (
        f"{human(train.num_tokens)} tokens to train,"
        f" {human(held_out.header.num_tokens) if held_out else 'none'} held out;"
        f" {type(experiment.data.tokenizer).__name__} of {data.tokenizer.vocab_size},"
        f" {train.num_bytes / max(1, train.num_tokens):.2f} bytes a token"
    )


def _step(experiment: Experiment, built: Program) -> str:
    flops = flops_per_token(experiment.model, experiment.model.context)
    return (
        f"{human(experiment.tokens_per_step)} tokens,"
        f" {human(flops * experiment.tokens_per_step)}FLOP;"
        f" state {placement.total_bytes(built.state) / 2**20:.0f} MiB,"
        f" temporary {built.temporary_bytes / 2**20:.0f} MiB"
    )


def num_parameters(trainable: Params, frozen: Frozen) -> int:
    """Counts the parameters of a model, trained and frozen."""
    return sum(leaf.size for leaf in jax.tree.leaves((trainable, frozen.get("params"))))


def facts(
    experiment: Experiment, path: Path, data: Prepared, clock: Clock, parameters: int, read: Read
) -> dict[str, Any]:
    """Returns what the report says of the whole run, over all its starts.

    Args:
      read: up to the step at which the run stands.
    """
    lines = read_metrics(path)
    evaluated = [line for line in lines if any(map(is_evaluated, line))]
    final = {name: value for name, value in (evaluated or [{}])[-1].items() if is_evaluated(name)}
    clock.write()
    spent = goodput.read_goodput(path)
    seconds = spent.seconds or clock.seconds()  # a full disk holds no record
    bad = data.passed_over
    return {
        "name": path.name,
        "config": config.to_dict(experiment),
        "environment": versions() | backend() | {"processor": processor()},
        "parameters": parameters,
        "tokens": read.tokens,
        "seconds": {"total": sum(seconds.values()), **seconds},
        "goodput": {
            "useful_share": spent.share,
            "starts": spent.starts,
            "lost_steps": spent.lost_steps,
        },
        "final": {"step": read.step, **final, "peak_memory_bytes": memory()},
        "unit": data.task.unit,
        "baselines": data.validation.header.facts if data.validation else {},
        "skipped_steps": sum(bool(line.get("skipped")) for line in lines),
        "warnings": [f"{len(bad)} bad records were left out, the first: {bad[0]}"] if bad else [],
        "passed_over_records": len(bad),
        "cleaning": {one["text"]: one for one in data.cleaned},
        "spikes": sum((line.get("spike") or 0.0) >= experiment.spike_score for line in lines),
        "next": suggestions(experiment, path, data, read.step),
    }


def suggestions(experiment: Experiment, path: Path, data: Prepared, step: int) -> list[str]:
    """Returns commands to type next. A longer run's schedule begins again, see
    `optim.lengthened`."""
    prompt, task = experiment.evaluation.prompt, experiment.data.task
    prompt = prompt if prompt.strip() else task.example_prompt(data.train)
    sample = f" --prompt {shlex.quote(prompt)}" if prompt.strip() else ""
    use = f"gptjax sample {path}{sample}"
    if experiment.model.classes == 1:
        use = f"gptjax score {path} {getattr(experiment.data.source, 'path', 'FILE')}"
    elif task.conversations and data.tokenizer.template is not None:
        use = f"gptjax chat {path}"
    return [
        use,
        f"python train.py {path}/config.json --steps {2 * max(step, experiment.steps)}",
        f"tensorboard --logdir {path}",
    ]


def signs_of(experiment: Experiment) -> dict[str, Sign]:
    """Returns what says in a run with rollouts that nothing is learned."""
    rollout = experiment.rollout
    if rollout is None:
        return {}
    return signs(
        answers=rollout.answers,
        new_tokens=rollout.new_tokens,
        peak=experiment.optim.peak,
        compared=cast(OwnAnswers, experiment.objective).compares,
        most_gap=1e-2 if experiment.model.compute == "float32" else 0.1,
    )


def peak_flops() -> float | None:
    """Returns the FLOP/s of all devices together; `None` if their peak is not known."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v6e": 918e12,
}
"""Dense bfloat16 FLOP/s of one device by its kind, from the makers' data sheets."""


def processor() -> str:
    """The processor's name, as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
