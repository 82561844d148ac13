"""Settings that a compiled step takes as arguments, so that runs which differ in nothing else share
one program.

Read `TRACED`, then `static_part`, `stacked` and `with_values`.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gptjax.core import config
from gptjax.core.arrays import Array
from gptjax.train.experiment import Experiment
from gptjax.train.optim import Adam, AdamW

TRACED = (
    "seed",
    "optim.peak",
    "optim.weight_decay",
    "optim.beta1",
    "optim.beta2",
    "model.embedding_dropout",
    "model.attention_dropout",
    "model.residual_dropout",
)
"""Runs that differ in other settings are compiled apart."""

LONG = 4096
"""From this context on attention works in blocks, whose dropout rate is part of the program."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["value", "rest"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Number:
    """A number between 0 and 1 that is known only when the program runs. It has the arithmetic that
    a step does with one and no other, so that whatever else is tried fails while it is traced."""

    value: Array
    rest: Array
    """1 − value, rounded once. A program that knows the value computes it in double precision; in
    single precision 1 − 0.95 is another number."""

    __array_ufunc__ = None

    def __bool__(self) -> bool:
        """It may differ from 0."""
        return True

    def __gt__(self, other: float) -> bool:
        """It may be above 0."""
        return True

    def __mul__(self, other: Any) -> Array:
        return self.value * other

    __rmul__ = __mul__

    def __rsub__(self, other: float) -> Array:
        if other != 1:
            raise TypeError(f"{other} − a traced setting: only 1 − it is known.")
        return self.rest

    def __pow__(self, other: Any) -> Array:
        return self.value**other


def traceable(experiment: Experiment) -> tuple[str, ...]:
    """Returns the settings of an experiment that its step can take as arguments."""
    left_out = set()
    if type(experiment.optim) not in (AdamW, Adam):
        left_out |= {"optim.beta1", "optim.beta2"}
    if experiment.model.context >= LONG:
        left_out.add("model.attention_dropout")
    return tuple(name for name in TRACED if name not in left_out)


def static_part(experiment: Experiment) -> str:
    """Returns what decides the program of an experiment, as text: all but what is
    traceable."""
    plain = config.to_dict(experiment)
    for name in traceable(experiment):
        *above, last = name.split(".")
        functools.reduce(lambda inner, key: inner[key], above, plain).pop(last, None)
    return json.dumps(plain, sort_keys=True)


def setting_of(experiment: Any, name: str) -> Any:
    """Returns the setting with a dotted name."""
    return functools.reduce(getattr, name.split("."), experiment)


def stacked(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """Returns the traceable settings in which the experiments differ, each with a leading axis of
    runs."""
    made: dict[str, Any] = {}
    for name in traceable(experiments[0]):
        values = [setting_of(one, name) for one in experiments]
        if len(set(values)) == 1:
            continue
        if name == "seed":
            made[name] = np.asarray(values, np.int32)
        elif name == "optim.peak":
            made[name] = np.asarray(values, np.float32)
        else:
            wide = np.asarray(values, np.float64)
            made[name] = Number(wide.astype(np.float32), (1 - wide).astype(np.float32))
    return made


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with traced settings. They are not checked: each run was, when it was
    made."""
    for name, value in values.items():
        experiment = _replaced(experiment, name, value)
    return experiment


def _replaced(owner: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    changed = copy.copy(owner)
    inner = _replaced(getattr(owner, first), rest, value) if rest else value
    object.__setattr__(changed, first, inner)  # the class is frozen, and would check the value
    return changed
