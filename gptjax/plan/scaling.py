"""Fits the law by which loss falls with compute to finished runs, and predicts larger ones.

Read `fit` and `predict_loss`; `point` reads a run. Source: OpenAI 2023, GPT-4 Technical Report,
arXiv:2303.08774, section 3.1, whose law L(C) = a + b · C^−c this is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.core import config
from gptjax.core.config import ConfigError, require
from gptjax.model import flops_per_token
from gptjax.observe.log import read_metrics
from gptjax.observe.progress import human
from gptjax.train.experiment import Experiment, guessed


class Point(NamedTuple):
    """A finished run."""

    name: str
    compute: float
    """FLOPs of the model over all its steps."""
    loss: float
    """Held-out loss, nats per token."""


class Law(NamedTuple):
    """L(C) = floor + scale · (C / unit)^−exponent."""

    floor: float
    scale: float
    exponent: float
    unit: float
    error: float
    """Sum of squared residuals."""

    def __call__(self, compute: float) -> float:
        """Returns the loss at an amount of compute."""
        return self.floor + self.scale * (compute / self.unit) ** -self.exponent


def point(run: Path) -> Point:
    """Reads compute and held-out loss of a run's last step.

    Raises:
      ConfigError: it is not a run, or did not finish with an evaluation.
    """
    require((run / "config.json").is_file(), f"{run} holds no config.json, so it is not a run.")
    experiment = guessed(config.load_config(Experiment, run / "config.json"))
    lines = [line for line in read_metrics(run) if "validation_loss" in line]
    finished = bool(lines) and lines[-1]["step"] >= experiment.steps
    require(
        finished,
        f"{run} has no held-out loss at its last step {experiment.steps}; finish it (gptjax train"
        f" {run}/config.json).",
    )
    tokens = experiment.steps * experiment.tokens_per_step
    return Point(
        run.name,
        flops_per_token(experiment.model, experiment.model.context) * tokens,
        lines[-1]["validation_loss"],
    )


EXPONENTS = np.exp(np.linspace(math.log(0.005), math.log(1.5), 600))
"""Exponents to try; for each, the best floor and scale follow by least squares."""


def fit(points: list[Point]) -> list[Law]:
    """Returns the best law of every exponent, best first. Floor and scale are at least 0.

    Raises:
      ConfigError: fewer than four runs, or runs of nearly equal compute.
    """
    require(
        len(points) >= 4,
        f"{len(points)} runs are given, and the law has three unknowns; it needs at least 4 runs of"
        " different compute.",
    )
    compute, loss = np.array([p.compute for p in points]), np.array([p.loss for p in points])
    apart = compute.max() >= 2 * compute.min()
    require(
        apart,
        f"all runs have about {human(compute.min())}FLOP; the dearest needs to be twice as dear as"
        " the cheapest, or more.",
    )
    unit, laws = float(np.exp(np.log(compute).mean())), []
    for exponent in EXPONENTS:
        power = (compute / unit) ** -exponent
        spread = np.square(power - power.mean()).sum()
        scale = max(0.0, float(((power - power.mean()) * (loss - loss.mean())).sum() / spread))
        floor = float(loss.mean() - scale * power.mean())
        if floor < 0:
            floor, scale = 0.0, float((power * loss).sum() / np.square(power).sum())
        laws.append(
            Law(
                floor,
                scale,
                float(exponent),
                unit,
                float(np.square(floor + scale * power - loss).sum()),
            )
        )
    return sorted(laws, key=lambda law: law.error)


def predict_loss(laws: list[Law], compute: float, count: int) -> tuple[float, float, float]:
    """Returns the loss at an amount of compute, and a 95 % interval, given that the law holds and
    residuals are normal.

    The interval covers all laws that the runs do not reject (squared residuals within the F
    distribution's bound of the best law's), widened by one run's own residual.

    Args:
      laws: from `fit`.
      count: number of fitted runs.
    """
    free = count - 3
    noise = laws[0].error / free
    t = STUDENT[min(free, len(STUDENT)) - 1]
    likely = [law(compute) for law in laws if law.error <= laws[0].error + noise * t**2]
    room = t * math.sqrt(noise)
    return laws[0](compute), min(likely) - room, max(likely) + room


STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % points of Student's t for 1, 2, … degrees of freedom; their squares are the 95 % points of
the F distribution with 1 and that many."""


def fit_and_predict(points: list[Point], wanted: list[Point]) -> dict[str, Any]:
    """Fits the law and predicts losses, next to the true ones where they are known.

    Args:
      wanted: the runs to predict; a loss of NaN is unknown.
    """
    laws = fit(points)
    rows = []
    for one in wanted:
        loss, low, high = predict_loss(laws, one.compute, len(points))
        known = not math.isnan(one.loss)
        rows.append(
            {
                "name": one.name,
                "compute": one.compute,
                "times_dearest": one.compute / max(p.compute for p in points),
                "predicted": loss,
                "interval": [low, high],
                "loss": one.loss if known else None,
                "off": (loss - one.loss) / one.loss if known else None,
                "inside": low <= one.loss <= high if known else None,
            }
        )
    best = laws[0]
    law = {"floor": best.floor, "scale": best.scale, "exponent": best.exponent, "unit": best.unit}
    return {
        "law": law,
        "runs": [{**p._asdict(), "fitted": best(p.compute)} for p in points],
        "predictions": rows,
    }


def format_scaling(facts: dict[str, Any]) -> str:
    """Formats a fit for the terminal."""
    law = facts["law"]
    power = f"(FLOP / {law['unit']:.3g})^−{law['exponent']:.4f}"
    lines = [f"law          loss = {law['floor']:.4f} + {law['scale']:.4f} · {power}"]
    lines += [
        f"run          {row['name']:20}  {row['compute']:.3e} FLOP  loss {row['loss']:.4f}  fitted"
        f" {row['fitted']:.4f}"
        for row in facts["runs"]
    ]
    for row in facts["predictions"]:
        reached = (
            ""
            if row["loss"] is None
            else (
                f"; reached {row['loss']:.4f}, off by {row['off']:+.2%},"
                f" {'inside' if row['inside'] else 'OUTSIDE'}"
            )
        )
        interval = "{:.4f} … {:.4f}".format(*row["interval"])
        cost = f"{row['compute']:.3e} FLOP, {row['times_dearest']:.1f} × the dearest"
        lines.append(
            f"prediction   {row['name']:20}  {cost}  loss {row['predicted']:.4f} (95 %:"
            f" {interval}){reached}"
        )
    return "\n".join(lines)


def points_to_predict(names: tuple[str, ...], flops: float | None) -> list[Point]:
    """Returns the points to predict: runs by their directories, and an amount of compute."""
    points = [point(Path(name)) for name in names]
    return points + ([Point("asked", flops, math.nan)] if flops else [])


def load_points(runs: list[str]) -> list[Point]:
    """Reads the runs, cheapest first.

    Raises:
      ConfigError: see `point`.
    """
    try:
        return sorted((point(Path(run)) for run in runs), key=lambda one: one.compute)
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"a run can't be read: {error}.") from None
