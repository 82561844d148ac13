"""Compiles the step that `gptjax train` runs for a machine that is not here, and returns its memory
and costs.

Read `compile_step`; `_refused` handles a compiler that finds the program too large.
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
from gptjax.train import placement, program, rollout_columns
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
    """All else at the peak: gradients, gathered weights, buffers of products."""

    @property
    def peak(self) -> float:
        """Their sum."""
        return sum(self)


class Compiled(NamedTuple):
    """A compiled step, or the memory that the compiler reports for one that is too large."""

    mesh: Mesh
    memory: Memory
    analysis: Analysis | None
    """`None` if the compiler refused the program."""
    seconds: float
    """CPU time of all cores to trace and compile."""
    counted: float | None
    """FLOPs as XLA counts them, every loop once; `None` if it gives no count."""
    text: str
    """HLO of the optimised program; empty if there is none."""


def compile_step(experiment: Experiment, target: Target, *, fast: bool = False) -> Compiled:
    """Compiles an experiment's training step for a target. Weights and batches are shapes only;
    nothing is allocated.

    Args:
      fast: compile with less optimisation: two to five times faster, FLOPs and collectives the
        same, memory within a tenth or so, no cycles.

    Raises:
      ConfigError: the target's compiler is not installed, or mesh, batch and devices contradict
        each other.
    """
    experiment, mesh, state, frozen = placement.lay_out(
        guessed(experiment), target.chip and target.chip.memory, targets.stand_in_devices(target)
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
    except ValueError as error:  # the chosen implementation of attention does not apply
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
    """Within this context XLA compiles for an absent machine, with less optimisation if `fast`.

    JAX's cache on disk is off: programs for absent machines cannot be read back from it.
    """
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
    """Returns the shapes of a training batch's arrays, as the task lays them out, or a rollout."""
    if experiment.rollout is not None:
        return rollout_columns.row_shapes(experiment, mesh)
    row = batches.empty(
        experiment.data.task,
        length=experiment.model.context,
        isolated=experiment.data.isolated,
        with_encoder=experiment.model.encoder_layers > 0,
        columns=experiment.loss.columns,
    )
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (experiment.batch, *leaf.shape[1:]), leaf.dtype, sharding=row_sharding(mesh)
        ),
        row,
    )


# --- memory ---


def _memory(
    own: Memory, reported: Any, analysis: Analysis, experiment: Experiment, mesh: Mesh
) -> Memory:
    """Splits the compiler's peak, beyond state and batch, into activations and temporaries.

    Activations are the stacks that forward loops write; if layers are unrolled, an estimate of what
    JAX keeps of a device's rows.
    """
    peak = getattr(reported, "peak_memory_in_bytes", 0)
    if not peak or next(iter(mesh.devices.flat)).platform == "cpu":  # its peak excludes temporaries
        peak = reported.argument_size_in_bytes + reported.temp_size_in_bytes
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
    """Returns the memory that a TPU's compiler says it would need; raises other errors again."""
    message = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in message:
        raise error
    sizes = [
        float(n) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[unit]
        for n, unit in re.findall(r"\(?([0-9.]+)([KMGT])i?B?\)?", message)
    ]
    needed = max(sizes, default=0.0)
    return own._replace(temporaries=max(0.0, needed - own.peak))
