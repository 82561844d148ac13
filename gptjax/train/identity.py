"""What a run is: its resolved experiment, its data, and the software it was made with. A resume
that differs is refused or noted.

Read in this order: `resolve`; `settle`, which compares with what the run directory says and then
writes it; `versions`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import gptjax
from gptjax.core import config, processes
from gptjax.core.config import require
from gptjax.data.prepare import Prepared
from gptjax.data.tasks import tasks
from gptjax.data.tasks.tasks import Classification
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.train import optim, teacher
from gptjax.train.experiment import FREE, Experiment
from gptjax.train.start import Start


def resolve(experiment: Experiment, data: Prepared) -> Experiment:
    """Fills in what only the data knows: the size of the vocabulary, and the labels of classes.

    Raises:
      ConfigError: the model's vocabulary is smaller than the tokenizer's.
    """
    task = data.task if isinstance(experiment.data.task, Classification) else experiment.data.task
    size = tasks.vocabulary(task, data.tokenizer)
    wanted = experiment.model.vocab_size or size
    require(
        wanted >= size,
        f"model.vocab_size is {wanted}, the tokenizer has {size} tokens; use at least {size}"
        f" (--model.vocab-size {size}).",
    )
    classes = len(task.labels) if isinstance(task, Classification) else None
    named = dataclasses.replace(experiment.data, task=task)
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, vocab_size=wanted, classes=classes),
        data=named,
    )


def require_alike(experiment: Experiment, data: Prepared, start: Start | None = None) -> None:
    """Refuses to go on where several processes were given different runs.

    Raises:
      ConfigError: names the process, and what differs.
    """

    def digest(value):
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]

    settings = {
        name: digest(value) for name, value in config.to_dict(experiment).items() if name != "data"
    }
    processes.require_alike(
        {
            "text (data)": data.content[:12],
            "model to start from (start)": start and start.fingerprint,
            **settings,
            **versions(),
        }
    )


def settle(
    experiment: Experiment,
    path: Path,
    data: Prepared,
    *,
    resuming: bool,
    allow: bool,
    start: Start | None = None,
) -> list[str]:
    """Makes sure that the directory holds this very run, writes down what it is, and gives notes
    about harmless changes.

    A run that goes on keeps the length of its schedule, so `--steps` alone changes no learning
    rate.

    Raises:
      ConfigError: the directory's run differs in what decides its numbers, and that is not allowed.
    """
    found: dict[str, Any] = {
        "data": data.content,
        "tokenizer": tokenizers.fingerprint(data.tokenizer),
        "versions": versions(),
        "backend": backend(),
    }
    found |= {"start": start.fingerprint} if start else {}
    found |= (
        {"teacher": teacher_model} if (teacher_model := teacher.fingerprint(experiment)) else {}
    )
    notes: list[str] = []
    if resuming:
        old, recorded = (
            _lasting(config.load(Experiment, path / "config.json")),
            json.loads((path / "identity.json").read_text()),
        )
        found |= {"start": recorded["start"]} if "start" in recorded else {}
        experiment = _lasting(experiment, old.schedule.steps)
        changed = config.differences(old, experiment)
        bound = {k: v for k, v in changed.items() if not k.startswith(FREE)}
        bound |= {
            f"{k} (its content)": (recorded.get(k, "")[:12], found.get(k, "")[:12])
            for k in ("data", "tokenizer", "teacher")
            if recorded.get(k) != found.get(k)
        }
        said = "; ".join(f"{k} was {a!r}, now {b!r}" for k, (a, b) in list(bound.items())[:5])
        require(
            allow or not bound,
            f"{path} holds another run: {said}. Use another --dir, or --allow-changes to go on with"
            " the new values.",
        )
        notes = [*_changes(changed, old, experiment), *_software(recorded, found)]
    experiment = _lasting(experiment)
    config.save(path / "config.json", experiment)
    tokenizers.save(path / "tokenizer", data.tokenizer)
    (path / "identity.json").write_text(json.dumps(found, indent=2) + "\n")
    return notes


def _lasting(experiment: Experiment, steps: int | None = None) -> Experiment:
    """The experiment with its schedule's length written out: its own, or `steps`, or that of the
    run."""
    steps = experiment.schedule.steps or steps or experiment.steps
    return dataclasses.replace(
        experiment, schedule=dataclasses.replace(experiment.schedule, steps=steps)
    )


def _changes(changed: dict[str, tuple[Any, Any]], old: Experiment, new: Experiment) -> list[str]:
    notes = [f"changed since the last start: {k} {a!r} → {b!r}" for k, (a, b) in changed.items()]
    schedule = new.schedule
    if schedule.kind in ("constant", "rsqrt"):
        return notes
    if schedule.steps != old.schedule.steps:
        notes.append(
            f"the {schedule.kind} schedule now stretches over {schedule.steps} steps: learning"
            " rates from here on are those of the new length"
        )
    elif new.steps > schedule.steps:
        last = float(
            optim.learning_rate(schedule, new.optim.peak, new.steps)(jnp.asarray(schedule.steps))
        )
        stretch = f"--schedule.steps {new.steps} --allow-changes stretches it"
        notes.append(
            f"the {schedule.kind} schedule keeps its {schedule.steps} steps and stays at {last:.1e}"
            f" from there; {stretch}"
        )
    return notes


def _software(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What may change the last bits though the run is the same."""
    old, new = (
        {**side.get("versions", {}), **side.get("backend", {})} for side in (recorded, found)
    )
    other = [
        f"{k} {old.get(k)} → {new.get(k)}"
        for k in [*old, *(k for k in new if k not in old)]
        if old.get(k) != new.get(k)
    ]
    return (
        [f"not bitwise from here, since the run was made with others: {', '.join(other)}"]
        if other
        else []
    )


def versions() -> dict[str, str]:
    """Of Python and the packages that decide numbers."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"gptjax": gptjax.__version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in names
    }


def backend() -> dict[str, str]:
    """Devices and compiler flags, which decide numbers too."""
    devices, processes = jax.devices(), jax.process_count()
    among = f" in {processes} processes" if processes > 1 else ""
    return {
        "devices": f"{len(devices)} × {devices[0].device_kind}{among}",
        "flags": os.environ.get("XLA_FLAGS", ""),
    }
