"""Compiles the very step that `gptjax train` runs, for a machine that is not here, and reads memory
and costs off the result.

Read `compile_step`; `Refused` is the answer of a compiler that finds the program too large.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from gptjax.core.config import ConfigError
from gptjax.data import Batch, batches
from gptjax.plan import target as targets
from gptjax.plan.hlo import Analysis, analyse
from gptjax.plan.target import Target
from gptjax.sharding.mesh import bytes_per_device, num_row_shards, row_sharding
from gptjax.train import placement, program
from gptjax.train.experiment import Experiment, guessed
from gptjax.train.overview import activation_bytes


class Memory(NamedTuple):
    """Bytes of one device."""

    parameters: float
    optimizer: float
    batch: float
    activations: float
    """What the forward pass keeps for the backward pass."""
    temporaries: float
    """All else that is there when most is: gradients, gathered weights, what products work on."""

    @property
    def peak(self) -> float:
        """All together."""
        return sum(self)


class Compiled(NamedTuple):
    """A step, compiled; or, where it is too large, what the compiler said of it."""

    mesh: Mesh
    memory: Memory
    analysis: Analysis | None
    """None where the compiler refused the program."""
    seconds: float
    """Of all cores together, to trace and compile."""
    counted: float | None
    """FLOPs as XLA counts them, every loop once; none where it does not say."""
    text: str
    """Of the optimised program; empty where there is none."""


def compile_step(experiment: Experiment, target: Target, *, fast: bool = False) -> Compiled:
    """Compiles an experiment's training step for a target. Weights and batches are shapes only;
    nothing is allocated.

    Args:
      fast: compile with less optimisation: two to five times faster, FLOPs and collectives the
        same, memory within a tenth or so, no cycles.

    Raises:
      ConfigError: the target's compiler is not here, or mesh, batch and devices do not fit each
        other.
    """
    experiment, mesh, state, frozen = placement.lay_out(
        guessed(experiment), target.chip and target.chip.memory, targets.devices(target)
    )
    batch = batch_shapes(experiment, mesh)
    own = Memory(
        *map(bytes_per_device, ((state.trainable, frozen), (state.opt_state, state.step), batch)),
        0.0,
        0.0,
    )
    begun = time.process_time()
    try:
        lowered = program.lowered(experiment, mesh, batch)
    except ValueError as error:  # an implementation of attention that is named and can't serve
        raise ConfigError(str(error)) from None
    try:
        with _compiling(target, fast):
            done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return Compiled(mesh, _refused(own, error), None, time.process_time() - begun, None, "")
    seconds, text = time.process_time() - begun, done.as_text()
    analysis = analyse(text, dict(mesh.shape))
    costs = done.cost_analysis() or {}
    return Compiled(
        mesh,
        _memory(own, done.memory_analysis(), analysis, experiment, mesh),
        analysis,
        seconds,
        costs.get("flops"),
        text,
    )


@contextlib.contextmanager
def _compiling(target: Target, fast: bool) -> Iterator[None]:
    """Inside, XLA compiles for a machine that is not here, which can't read a program back from
    jax's cache on disk; and optimises less, if so told."""
    if target.platform == "cpu":
        yield
        return
    names = "jax_optimization_level", "jax_enable_compilation_cache"
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()  # it remembers whether it is in use
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_optimization_level", "O1" if fast else before["jax_optimization_level"])
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def batch_shapes(experiment: Experiment, mesh: Mesh) -> Batch:
    """Returns the shapes of a training batch's arrays, as the task lays them out."""
    row = batches.empty(
        experiment.data.task,
        length=experiment.model.context,
        isolated=experiment.data.isolated,
        with_encoder=experiment.model.encoder_layers > 0,
    )
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (experiment.batch, *leaf.shape[1:]), leaf.dtype, sharding=row_sharding(mesh)
        ),
        row,
    )


# --- memory ---


def _memory(
    own: Memory, told: Any, analysis: Analysis, experiment: Experiment, mesh: Mesh
) -> Memory:
    """Splits what the compiler's peak holds besides state and batch, by the stacks that forward
    loops write; where layers are unrolled, by what JAX asks to be kept of a device's rows."""
    peak = getattr(told, "peak_memory_in_bytes", 0)
    if (
        not peak or next(iter(mesh.devices.flat)).platform == "cpu"
    ):  # whose peak leaves temporaries out
        peak = told.argument_size_in_bytes + told.temp_size_in_bytes
    beside = max(0.0, float(peak) - own.peak)
    kept = analysis.kept
    if not kept:
        rows = max(1, experiment.batch // experiment.micro_batches // num_row_shards(mesh))
        kept = activation_bytes(experiment.model, rows) / (
            mesh.shape["context"] * mesh.shape["tensor"]
        )
    kept = min(kept, beside)
    return own._replace(activations=kept, temporaries=beside - kept)


def _refused(own: Memory, error: Exception) -> Memory:
    """What a TPU's compiler says it would need. Any other error is not about memory, and goes
    on."""
    said = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in said:
        raise error
    sizes = [
        float(n) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit]
        for n, unit in re.findall(r"\(?([0-9.]+)([KMGT])i?B?\)?", said)
    ]
    needed = max(sizes, default=0.0)
    return own._replace(temporaries=max(0.0, needed - own.peak))
