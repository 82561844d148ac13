"""`gptjax train --observe noise,curvature`: what single gradients and the Hessian say while a model
trains.

An `Observer` is a hook, and wraps the source of batches: there it sees each state and the batch
that comes next. It changes neither, so the run is bit for bit the same. Its figures are in the
run's observed.jsonl, a line for each observation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from gptjax.core import config
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.lab.curvature import hessian_spectrum, hessian_trace, sharpness
from gptjax.lab.noise import Noise, by_layer, gradient_noise
from gptjax.losses import Diffusion, LossConfig
from gptjax.observe.hook import Hook
from gptjax.sharding.mesh import with_mesh
from gptjax.train.experiment import Experiment
from gptjax.train.halves import freezes, training_loss
from gptjax.train.sources import Source
from gptjax.train.step import Objective, TrainState

FILE = "observed.jsonl"
KINDS = ("noise", "curvature")
AVERAGED = 10
"""Observations over which variance and signal are averaged before their quotient is taken."""
SEED = 7
"""Of the random directions, which are the same at each observation."""


def objective_of(experiment: Experiment) -> Objective:
    """Returns the training loss of a resolved experiment as a function (params, batch, key) →
    sum, (weight, metrics).

    Raises:
      ConfigError: some of its weights are frozen, or its loss reads another model.
    """
    alone = not freezes(experiment) and not experiment.objective.resident
    require(
        alone and experiment.rollout is None,
        "this is for runs that train all weights, with a loss that reads no other model and no"
        " rollouts; leave out --observe.",
    )
    require(
        experiment.objective.batches in (LossConfig.batches, Diffusion.batches),
        f"the loss {type(experiment.loss).__name__} compares the rows of a batch, so none has a"
        " gradient of its own; leave out --observe.",
    )
    loss = training_loss(experiment, {})

    def objective(params: Params, batch: Batch, key: Any) -> Any:
        total, weight, sums = loss(params, {}, batch, key)
        return total, (weight, sums)

    return objective


class Observer(Hook):
    """Measures every so many steps, on the batch that the next step learns from.

    Args:
      kinds: some of `KINDS`.
      every: steps between observations; the first is at step 1.
      experiment: that of the run, as the user gave it.
    """

    name = "observe"

    def __init__(self, kinds: Sequence[str], every: int, experiment: Experiment):
        for kind in kinds:
            close = config.nearest(kind, KINDS)
            require(kind in KINDS, f"--observe {kind}: it can be {', '.join(KINDS)}.{close}")
        require(every >= 1, f"observe_every is {every}; it needs at least 1 step.")
        require(
            "noise" not in kinds or experiment.batch >= 2,
            f"--observe noise compares the rows of a batch, and batch is {experiment.batch}; it"
            " needs at least 2 (--batch 2).",
        )
        objective_of(experiment)
        self._kinds, self._every, self._given = tuple(kinds), every, experiment
        self._file: Path | None = None
        self._measures: dict[str, Callable[..., dict[str, Any]]] = {}
        self._compiled: dict[str, Callable[..., dict[str, Any]]] = {}
        self._seen: dict[int, dict[str, float]] = {}
        self._earlier: list[dict[str, Any]] = []

    def source(self, read: Source) -> Source:
        """Returns the same source, which is watched from the start of the run on."""

        def watched(step: int, state: TrainState) -> Batch:
            batch = read(step, state)
            if self._file is not None and step % self._every == 0:
                # the step before is recorded after this batch is read
                kept = {done: seen for done, seen in self._seen.items() if done >= step}
                self._seen = kept | {step + 1: self._figures(state, batch)}
            return batch

        return watched

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> str | None:
        """Forgets what was observed after the step that is resumed."""
        self._file = path / FILE
        lines = self._file.read_text("utf-8").splitlines() if self._file.is_file() else []
        self._earlier = [one for one in map(json.loads, lines) if one["step"] <= step]
        text = "".join(f"{json.dumps(one)}\n" for one in self._earlier)
        self._file.write_text(text, encoding="utf-8")
        experiment = self._experiment(config)
        self._measures = {kind: measure_of(experiment, (kind,)) for kind in self._kinds}
        self._compiled = {}
        return f"observing {', '.join(self._kinds)} every {self._every} steps: {self._file}"

    def _experiment(self, plain: Mapping[str, Any]) -> Experiment:
        return config.from_dict(Experiment, dict(plain), known=config.classes_in(self._given))

    def _figures(self, state: TrainState, batch: Batch) -> dict[str, float]:
        figures: dict[str, float] = {}
        for kind, measure in self._measures.items():
            given = (state.trainable, batch)
            if kind == "curvature":  # forward mode does not pass the products of a mesh
                given = jax.device_get(given)
            if kind not in self._compiled:  # the mesh is known by the state
                mesh = jax.tree.leaves(state.trainable)[0].sharding.mesh
                whole = measure if kind == "curvature" else with_mesh(mesh, measure)
                self._compiled[kind] = jax.jit(whole)
            found = self._compiled[kind](*given)
            figures |= {name: float(value) for name, value in jax.device_get(found).items()}
        return figures

    def finished(self, step: int, values: Mapping[str, float]) -> str | None:
        """Writes down what was observed at this step."""
        found = self._seen.pop(step, None)
        if found is None or self._file is None:
            return None
        if "hessian_max" in found:
            found["hessian_max_times_rate"] = found["hessian_max"] * values["learning_rate"]
        line = {"step": step, **found}
        self._earlier.append(line)
        line |= averaged_scales(self._earlier[-AVERAGED:])
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
        return f"step {step}: {_said(line)}"


def measure_of(
    experiment: Experiment, kinds: Sequence[str]
) -> Callable[[Params, Batch], dict[str, Any]]:
    """Returns (params, batch) → figures by name."""
    objective = objective_of(experiment)

    def measured(params: Params, batch: Batch) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        if "noise" in kinds:
            together, by_path = gradient_noise(objective)(params, batch)
            figures |= _parts("", together)
            for name, one in by_layer(by_path).items():
                figures |= _parts(f"/{name}", one)
        if "curvature" in kinds:
            key = jax.random.key(SEED)
            found = hessian_spectrum(objective)(params, batch, key)
            trace = hessian_trace(objective)(params, batch, key)
            figures |= {"hessian_max": found.eigenvalues[-1], "hessian_min": found.eigenvalues[0]}
            figures |= {"hessian_trace": trace.mean, "hessian_trace_error": trace.error}
            figures["sharpness"] = sharpness(objective)(params, batch)
        return figures

    return measured


def _parts(name: str, noise: Noise) -> dict[str, Any]:
    return {f"noise_variance{name}": noise.variance, f"noise_signal{name}": noise.signal}


def averaged_scales(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Returns the noise scales of some observations together, as the last of them names them;
    `None` where they see no signal."""
    scales: dict[str, float | None] = {}
    for name in [key for key in lines[-1] if key.startswith("noise_variance")]:
        same = [line for line in lines if name in line]  # others measured something else
        variance = sum(line[name] for line in same)
        signal = sum(line[name.replace("variance", "signal")] for line in same)
        scales[name.replace("variance", "scale")] = variance / signal if signal > 0 else None
    return scales


def _said(line: Mapping[str, Any]) -> str:
    parts = []
    if "noise_variance" in line:
        scale = line["noise_scale"]
        shown = "not seen yet" if scale is None else f"{scale:.1f} rows"
        parts.append(f"gradient noise scale {shown}")
    if "hessian_max" in line:
        parts.append(
            f"largest eigenvalue of the Hessian {line['hessian_max']:.3g}, times the rate"
            f" {line['hessian_max_times_rate']:.3g}; trace {line['hessian_trace']:.3g} ±"
            f" {line['hessian_trace_error']:.2g}"
        )
    return "; ".join(parts)
