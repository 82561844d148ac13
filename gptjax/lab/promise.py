"""What a private run promises: its settings, its mechanism, and the record of both in the run
directory.

Read `Privacy`, then `Mechanism`, then `write_promise`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gptjax.core import config
from gptjax.core.config import require
from gptjax.lab.accounting import Accountant, epsilon_of
from gptjax.runs import Run
from gptjax.train.identity import PROMISE as FILE


@dataclass(frozen=True)
class Privacy:
    """What a private run promises, and how its gradients are made."""

    epsilon: float = 8.0
    """The promise: how much the weights may tell about one row. Not used if `noise` is set."""
    delta: float = 1e-5
    """Probability with which the promise may fail; well below one over the number of rows."""
    clip: float = 1.0
    """Largest norm of the gradient of a row's summed loss over `model.context`."""
    noise: float | None = None
    """Standard deviation of the noise over `clip`; `None` takes what `epsilon` needs. 0 is no
    privacy, with all else alike."""
    accountant: Accountant = "pld"
    """How epsilon is counted: pld is the tighter."""
    at_once: int = 1
    """Rows that are differentiated together."""

    def __post_init__(self) -> None:
        require(
            0 < self.epsilon < math.inf,
            f"epsilon is {self.epsilon}; it needs a number above 0 (no privacy is --noise 0).",
        )
        require(0 < self.delta < 1, f"delta is {self.delta}; it needs a probability in (0, 1).")
        require(
            0 < self.clip < math.inf,
            f"clip is {self.clip}; it needs a finite norm above 0 (--clip 1).",
        )
        require(self.at_once >= 1, f"at_once is {self.at_once}; it needs at least 1 row.")
        require(
            self.noise is None or self.noise >= 0,
            f"noise is {self.noise}; it needs 0 or more, or None for what epsilon needs.",
        )


class Mechanism(NamedTuple):
    """What is public of the mechanism, worked out for an experiment and its data."""

    noise: float
    clip: float
    rate: float
    """Probability with which a row is in a step."""
    rows: int
    """Rows of the training text."""
    expected: int
    """Rows of a step on average, by which its sum is divided: no property of the draw."""
    length: int
    """Positions of a row, by which its summed loss is divided: no property of the row."""
    capacity: int
    """Rows that a batch has room for."""
    delta: float
    """As promised."""
    delta_of_noise: float
    """What is left of it for the noise."""
    accountant: Accountant

    def epsilon(self, steps: int) -> float:
        """Returns what is spent after a number of steps, for `delta`."""
        return epsilon_of(self.noise, self.rate, steps, self.delta_of_noise, self.accountant)


def promise(mechanism: Mechanism, steps: int) -> str:
    """Says in words what the weights after some steps promise."""
    epsilon = mechanism.epsilon(steps)
    if math.isinf(epsilon):
        return "privacy: none, since the noise is 0"
    return (
        f"privacy: the weights after {steps} steps are ({epsilon:.3f}, {mechanism.delta:.0e})"
        f" differentially private for one row of {mechanism.length} tokens (noise"
        f" {mechanism.noise:.3f}, {mechanism.rate:.2%} of {mechanism.rows:,} rows a step,"
        f" {mechanism.accountant})"
    )


class Known(NamedTuple):
    """What the record of a run says."""

    mechanism: Mechanism
    privacy: Privacy
    secret: str
    """Its fingerprint."""
    salt: str
    """See `secret.salted`."""


def known_promise(path: Path) -> Known | None:
    """Returns the record of the run that a directory holds; `None` if nothing was trained yet.

    Raises:
      ConfigError: the run is not private, or its record is damaged.
    """
    if not Run(path).steps():
        return None
    record = path / FILE
    require(
        record.is_file(),
        f"{path} was begun without privacy, which can't be had later; use another --dir.",
    )
    known = config.load_config(dict, record)
    parts = {"mechanism", "privacy", "secret", "salt"}
    require(
        parts <= known.keys() and known["mechanism"].keys() == set(Mechanism._fields),
        f"{record} is no record of a private run; restore it, or use another --dir.",
    )
    mechanism, privacy = Mechanism(**known["mechanism"]), recorded_privacy(path) or Privacy()
    return Known(mechanism, privacy, known["secret"], known["salt"])


def recorded_privacy(path: Path) -> Privacy | None:
    """Returns the settings that a run's privacy.json has; `None` if there is none.

    Raises:
      ConfigError: the file is damaged.
    """
    if not (path / FILE).is_file():
        return None
    return config.from_dict(Privacy, config.load_config(dict, path / FILE).get("privacy"))


def write_promise(path: Path, steps: int, known: Known) -> None:
    """Writes privacy.json, which is public.

    Args:
      steps: those that the weights will have.
    """
    path.mkdir(parents=True, exist_ok=True)
    mechanism = known.mechanism
    facts = {
        "privacy": dataclasses.asdict(known.privacy),
        "mechanism": mechanism._asdict(),
        "secret": known.secret,
        "salt": known.salt,
        "steps": steps,
        "epsilon": _finite(mechanism.epsilon(steps)),
        "delta": mechanism.delta,
        "unit": f"one row of {mechanism.length} tokens, added or removed",
        "covered": "the weights of each checkpoint",
        "not covered": NOT_COVERED,
    }
    (path / FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


NOT_COVERED = (
    "training losses in metrics.jsonl, log.txt, report and TensorBoard; the optimizer state, which"
    " remembers the last of them; a tokenizer that was learned from the text; the number of rows"
)
"""What a run directory holds besides the weights that the promise does not speak of."""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
