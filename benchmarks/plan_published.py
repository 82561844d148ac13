"""Holds `gptjax.plan.published` against the steps that it is fitted to, and writes
docs/reports/plan.md.

    python benchmarks/plan_published.py [--write]

Every second row is held out of the fit whose errors are reported for those rows, and then the other
way round; the rates in the package are fitted to all.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from gptjax.plan.published import RATES, STEPS, Rates, Step, seconds_of
from gptjax.plan.target import CHIPS

PAGE = Path(__file__).parents[1] / "docs/reports/plan.md"
GROUPS = (("v4", "v5e"), ("v5p",), ("v6e",), ("tpu7x",), ("h100", "h200"))
"""Chips that share a rate of products: those of one design, and two with one row each."""


def rates_of(point: np.ndarray) -> Rates:
    """The rates of a point of the fit, which is their logarithms."""
    shares = np.exp(point)
    products = {chip: float(shares[i]) for i, group in enumerate(GROUPS) for chip in group}
    return Rates(products, float(shares[-2]), float(shares[-1]))


def fitted(steps: Sequence[Step]) -> Rates:
    """Fits rates to steps: least squares of logarithms of times, in which an outlier counts little,
    with a faint pull of the two rates that not every half determines."""
    start = np.log([0.5] * len(GROUPS) + [0.5, 0.15])

    def misses(point: np.ndarray) -> np.ndarray:
        rates = rates_of(point)
        found = [np.log(error_of(step, rates) + 1) for step in steps]
        return np.array([*found, 0.3 * (point - start)[-2], 0.1 * (point - start)[-1]])

    return rates_of(least_squares(misses, start, loss="soft_l1", f_scale=0.1).x)


def error_of(step: Step, rates: Rates) -> float:
    """Expected over published time, minus 1."""
    return seconds_of(step.model, step.chip, step.tokens, rates) / step.seconds - 1


def held_out(steps: Sequence[Step]) -> list[float]:
    """Each step's error under rates that are fitted to the half that it is not in."""
    halves = [fitted(steps[first::2]) for first in (1, 0)]
    return [error_of(step, halves[i % 2]) for i, step in enumerate(steps)]


def table(steps: Sequence[Step]) -> str:
    """The report."""
    unseen = held_out(steps)
    lines = [
        "| chip | devices | model | T | rows | published s | expected s | error | held out |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for step, error in zip(steps, unseen, strict=True):
        now = seconds_of(step.model, step.chip, step.tokens)
        lines.append(
            f"| {step.chip} | {step.devices:,} | {step.name} | {step.model.context:,} |"
            f" {step.rows:g} | {step.seconds:.2f} | {now:.2f} | {now / step.seconds - 1:+.1%} |"
            f" {error:+.1%} |"
        )
    return "\n".join([*lines, "", *summary(steps, unseen)])


def summary(steps: Sequence[Step], unseen: Sequence[float]) -> list[str]:
    """Median, ninth decile and largest error, of all rows and of each kind."""

    def told(name: str, chosen: Sequence[int]) -> str:
        ours = [abs(error_of(steps[i], RATES)) for i in chosen]
        theirs = [abs(unseen[i]) for i in chosen]
        return f"| {name} | {len(chosen)} | " + " | ".join(
            f"{statistics.median(found):.1%} | {np.quantile(found, 0.9):.1%} | {max(found):.1%}"
            for found in (ours, theirs)
        )

    kinds = {
        "all": range(len(steps)),
        "dense": [i for i, step in enumerate(steps) if not step.model.experts],
        "experts": [i for i, step in enumerate(steps) if step.model.experts],
        "even rows": range(0, len(steps), 2),
        "odd rows": range(1, len(steps), 2),
    }
    return [
        "| rows | number | median | nine tenths | worst | held out: median | nine tenths | worst |",
        "|---|---|---|---|---|---|---|---|",
        *(f"{told(name, list(rows))} |" for name, rows in kinds.items()),
    ]


def main() -> None:
    """Prints the report, and writes it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write the tables to {PAGE.name}")
    options = parser.parse_args()
    found = fitted(STEPS)
    shares = ", ".join(f"{chip} {found.products[chip]:.3f}" for chip in CHIPS if chip in RATES[0])
    print(f"fitted to all: {shares}; attention {found.attention:.3f}; experts {found.experts:.3f}")
    print(table(STEPS))
    if options.write:
        before = PAGE.read_text(encoding="utf-8").split("<!-- tables -->")[0]
        PAGE.write_text(f"{before}<!-- tables -->\n\n{table(STEPS)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
