"""The identity of a run: its resolved experiment, its data, and the software it was made with. A
resume with another one is refused, or the difference is noted.

Read in this order: `resolve`; `settle`, which compares with the run directory; `commit`, which
writes to it; `versions`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

import gptjax
from gptjax.core import config, processes
from gptjax.core.config import require
from gptjax.data.prepare import Prepared
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.runs import frozen
from gptjax.train import optim, teacher
from gptjax.train.experiment import FREE, Experiment, is_place
from gptjax.train.start import Start
from gptjax.weights import AdapterKind, PromptTuning


def resolve(experiment: Experiment, data: Prepared) -> Experiment:
    """Fills in what only the data knows: the vocabulary size, the labels of classes, the tokens of
    the text with which virtual tokens begin, and that an adapter trains the output over classes.

    Raises:
      ConfigError: the model's vocabulary is smaller than the tokenizer's.
    """
    task = data.task
    size = task.vocabulary(data.tokenizer)
    vocab_size = experiment.model.vocab_size or size
    require(
        vocab_size >= size,
        f"model.vocab_size is {vocab_size}, the tokenizer has {size} tokens; use at least {size}"
        f" (--model.vocab-size {size}).",
    )
    return dataclasses.replace(
        experiment,
        adapter=_with_classes(_with_ids(experiment.adapter, data.tokenizer), task.classes),
        model=dataclasses.replace(experiment.model, vocab_size=vocab_size, classes=task.classes),
        data=dataclasses.replace(experiment.data, task=task),
    )


def _with_ids(adapter: AdapterKind | None, tokenizer: Tokenizer) -> AdapterKind | None:
    if not (isinstance(adapter, PromptTuning) and adapter.text):
        return adapter
    ids = tuple(int(one) for one in tokenizer.encode(adapter.text))
    require(
        bool(ids),
        f"adapter.text is {adapter.text!r}, which has no token; use another (--adapter.text).",
    )
    return dataclasses.replace(adapter, ids=ids)


def _with_classes(adapter: AdapterKind | None, classes: int | None) -> AdapterKind | None:
    if not classes or adapter is None or isinstance(adapter, PromptTuning):
        return adapter
    saved = dict.fromkeys((*adapter.modules_to_save, "classes"))
    return dataclasses.replace(adapter, modules_to_save=tuple(saved))


PROMISE = "privacy.json"
"""What says in a run directory that its weights are differentially private."""


def require_unpromised(path: Path) -> None:
    """Refuses to train with plain gradients where a private run was begun.

    Raises:
      ConfigError: names the command for it.
    """
    require(
        not (path / PROMISE).is_file(),
        f"{path} is trained with differential privacy, which this would end; use gptjax private"
        f" {path}/config.json, or another --dir.",
    )


def require_same_run(experiment: Experiment, data: Prepared, start: Start) -> None:
    """Refuses to train if several processes were given different runs.

    Raises:
      ConfigError: names the process and the difference.
    """

    def digest(value):
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]

    settings = {
        name: digest(value) for name, value in config.to_dict(experiment).items() if name != "data"
    }
    processes.require_alike(
        {
            "text (data)": data.content[:12],
            "model to start from (start)": start.fingerprint,
            **settings,
            **versions(),
        }
    )


class Settled(NamedTuple):
    """An experiment that may train in a run directory. Nothing is written yet."""

    experiment: Experiment
    """As it will be in config.json."""
    record: dict[str, Any]
    """As it will be in identity.json."""
    notes: list[str]
    """Lines for the banner: what is different since the last start."""
    old: Experiment | None = None
    """The experiment of the last start; `None` for a new run."""


def settle(
    experiment: Experiment,
    path: Path,
    data: Prepared,
    *,
    done: int | None,
    allow: bool,
    start: Start = Start(),
) -> Settled:
    """Compares an experiment with the run that the directory holds. Nothing is written: `commit`
    does that, once the change is known to work.

    A run that is made longer continues its schedule as `optim.lengthened` says.

    Args:
      done: finished steps of the run that resumes; `None` if there is none.
      allow: accept changes of what decides the run's numbers, other than its tokenizer.

    Raises:
      ConfigError: the directory's run differs in what decides its numbers, and that is not allowed.
    """
    rewards = _rewards(experiment)
    record = _record(experiment, data, start) | rewards
    if done is None:
        experiment = _lasting(experiment)
        _require_learning(experiment)
        return Settled(experiment, record, _slow(experiment))
    known = config.classes_in(experiment)
    old = _lasting(config.load_config(Experiment, path / "config.json", known=known))
    recorded = config.load_config(dict, path / "identity.json")
    record["folder"] = recorded.get("folder", record["folder"])
    experiment = _lasting(experiment, old)
    changed = config.differences(old, experiment)
    others = (*experiment.objective.models, *rewards)
    bound = _bound(changed, recorded, record, others)
    listed = "; ".join(f"{k} was {a!r}, now {b!r}" for k, (a, b) in list(bound.items())[:5])
    require(
        allow or not bound,
        f"{path} holds another run: {listed}. Use another --dir, or --allow-changes to resume with"
        " the new values.",
    )
    _require_tokenizer(path, changed)
    same_length = experiment.schedule.steps == old.schedule.steps
    if experiment.steps > old.steps and same_length:
        longer = optim.lengthened(experiment.schedule, experiment.steps, done)
        experiment = dataclasses.replace(experiment, schedule=longer)
    if experiment.schedule != old.schedule:
        _require_learning(experiment)
    grown = recorded.get("data") != record["data"]
    notes = [*_changes(changed, old, experiment, grown), *_software(recorded, record)]
    return Settled(experiment, record, notes, old)


def _record(experiment: Experiment, data: Prepared, start: Start) -> dict[str, Any]:
    """What identity.json will hold."""
    record: dict[str, Any] = {
        "data": data.content,
        "prepared": data.fingerprint,
        "folder": os.getcwd(),
        "tokenizer": tokenizers.hash_tokenizer(data.tokenizer),
        "versions": versions(),
        "backend": backend(),
    }
    if start.fingerprint:
        record["start"] = start.fingerprint
    return record | teacher.fingerprints(experiment)


def _rewards(experiment: Experiment) -> dict[str, str]:
    """What identifies the files and models that the rewards of a run depend on."""
    known: dict[str, str] = {}
    for number, reward in enumerate(experiment.rollout.rewards if experiment.rollout else (), 1):
        parts = {"": reward.fingerprint()}
        parts |= {f".{name}": teacher.fingerprint_of(path) for name, path in reward.models.items()}
        known |= {f"reward {number}{name}": digest for name, digest in parts.items() if digest}
    return known


def _bound(
    changed: dict[str, tuple[Any, Any]],
    recorded: dict[str, Any],
    record: dict[str, Any],
    models: Iterable[str],
) -> dict[str, tuple[Any, Any]]:
    """Those changes that alter the course of a run. Where a text or a model lies is none, if its
    content is the same.

    Args:
      models: names of the models that the loss needs, and of what rewards depend on.
    """
    bound = {name: values for name, values in changed.items() if not name.startswith(FREE)}
    by_content = ("data", "tokenizer", *models)
    if all(recorded.get(name) == record.get(name) for name in (*by_content, "start")):
        bound = {name: values for name, values in bound.items() if not is_place(name)}
    for name in by_content:
        if recorded.get(name) != record.get(name):
            hashes = recorded.get(name, "")[:12], record.get(name, "")[:12]
            bound[f"{name} (its content)"] = hashes
    return bound


def _require_learning(experiment: Experiment) -> None:
    """Refuses steps whose learning rate is 0.

    Raises:
      ConfigError: the schedule ends before the run, at 0.
    """
    schedule = experiment.schedule
    require(
        not schedule.ends or schedule.floor > 0 or experiment.steps <= (schedule.steps or 0),
        f"schedule.steps is {schedule.steps} of {experiment.steps} steps and schedule.floor 0.0, so"
        " nothing will be learned in the others; omit --schedule.steps, or set a floor"
        " (--schedule.floor 0.1).",
    )


def _slow(experiment: Experiment) -> list[str]:
    """A note on a warm-up that takes all of the run."""
    schedule, steps = experiment.schedule, experiment.steps
    if schedule.warmup < steps:
        return []
    share = (steps / (schedule.warmup + 1)) * experiment.optim.peak
    note = (
        f"schedule.warmup is {schedule.warmup} of {steps} steps: the learning rate rises to"
        f" {share:.1e} and never reaches its peak (--schedule.warmup {steps // 10})"
    )
    return [note]


def _require_tokenizer(path: Path, changed: dict[str, tuple[Any, Any]]) -> None:
    """Refuses to change a run's tokenizer: its embeddings mean nothing under another."""
    for name, (old, new) in changed.items():
        require(
            not name.startswith("data.tokenizer"),
            f"{path} was trained with {name} {old!r}, now it is {new!r}; a run's tokenizer never"
            f" changes: omit --{name.replace('_', '-')}, or use another --dir.",
        )


def commit(path: Path, settled: Settled, tokenizer: Tokenizer, *, resuming: bool) -> None:
    """Writes what the run is: `tokenizer/`, `identity.json` and `config.json`, each under its name
    only once it is complete. A run's tokenizer is written once."""
    if not resuming:
        staged = path / ".tokenizer.new"
        shutil.rmtree(staged, ignore_errors=True)
        tokenizers.save_tokenizer(staged, tokenizer)
        shutil.rmtree(path / "tokenizer", ignore_errors=True)  # of a start that saved no step
        staged.rename(path / "tokenizer")
    staged = path / ".identity.json.new"
    staged.write_text(json.dumps(settled.record, indent=2) + "\n")
    staged.replace(path / "identity.json")
    staged = path / ".config.json.new"
    config.save_config(staged, settled.experiment)
    staged.replace(path / "config.json")


def require_frozen(path: Path) -> None:
    """Refuses to resume with other frozen weights than the run's own.

    Raises:
      ConfigError: `RUN/frozen` is absent or was replaced.
    """
    recorded = config.load_config(dict, path / "identity.json").get("frozen", "")
    require(
        recorded == frozen.hash_frozen(path),
        f"{path}/frozen holds other weights than this run was trained with; restore it from a copy,"
        " or start a new run (--dir).",
    )


def _lasting(experiment: Experiment, old: Experiment | None = None) -> Experiment:
    """The experiment with an explicit length of its schedule: its own, else that of the run as it
    was, else that of the run."""
    schedule = experiment.schedule
    if schedule.steps is not None:
        return experiment
    steps, restarts = experiment.steps, schedule.restarts
    if old is not None and old.schedule.steps is not None:
        steps, restarts = old.schedule.steps, old.schedule.restarts
    schedule = dataclasses.replace(schedule, steps=steps, restarts=restarts)
    return dataclasses.replace(experiment, schedule=schedule)


def _changes(
    changed: dict[str, tuple[Any, Any]], old: Experiment, new: Experiment, grown: bool
) -> list[str]:
    """Lines about what changed since the last start.

    Args:
      grown: the text is another one.
    """
    notes = [f"changed since the last start: {k} {a!r} → {b!r}" for k, (a, b) in changed.items()]
    notes += _schedule_changes(old, new)
    anew = [name for name in ("seed", "model.context", "data.isolated") if name in changed]
    if grown or anew:
        what = "the text" if grown else anew[0]
        notes.append(
            f"{what} is another: rows are cut and ordered anew from here, so some text of the"
            " epoch that has begun is read again and some waits for the next"
        )
    elif "batch" in changed:
        notes.append(
            f"batches of {new.batch} rows begin where those of {old.batch} ended: no row is left"
            " out or read twice"
        )
    return notes


def _schedule_changes(old: Experiment, new: Experiment) -> list[str]:
    schedule, before = new.schedule, old.schedule
    if not schedule.ends or schedule.steps is None or schedule == before:
        return []
    if schedule.restarts != before.restarts and schedule.restarts:
        cycle = schedule.steps - schedule.restarts[-1]
        warmup = min(schedule.warmup, int(optim.REWARM * cycle))
        note = (
            f"the {schedule.kind} schedule ends at step {schedule.restarts[-1]} and begins again"
            f" there: from its floor to its peak in {warmup} steps, and down to step"
            f" {schedule.steps}"
        )
    else:
        note = (
            f"the {schedule.kind} schedule now stretches over {schedule.steps} steps: learning"
            " rates from here on are those of the new length"
        )
    return [] if schedule.steps == before.steps else [note]


def _software(recorded: dict[str, Any], record: dict[str, Any]) -> list[str]:
    """A note on software and devices that may change the last bits of the same run."""
    old = {**recorded.get("versions", {}), **recorded.get("backend", {})}
    new = {**record["versions"], **record["backend"]}
    changed = [
        f"{name} {old.get(name)} → {new.get(name)}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if not changed:
        return []
    return [f"not bitwise from here, since the run was made with others: {', '.join(changed)}"]


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide numbers."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    packages = {name: metadata.version(name) for name in names}
    return {"gptjax": gptjax.__version__, "python": platform.python_version(), **packages}


def backend() -> dict[str, str]:
    """Returns devices and compiler flags, which decide numbers too."""
    devices, num_processes = jax.devices(), jax.process_count()
    among = f" in {num_processes} processes" if num_processes > 1 else ""
    return {
        "devices": f"{len(devices)} × {devices[0].device_kind}{among}",
        "flags": " ".join(filter(None, map(os.environ.get, ("XLA_FLAGS", "LIBTPU_INIT_ARGS")))),
    }
