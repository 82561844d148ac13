"""`open_model`: the one way to open a trained model, whatever format it is stored in.

Training, generation, conversion and the Python API all use it. It reads only the parts of a run's
`config.json` that say what the model is, so it needs nothing of the trainer.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from gptjax import formats, model
from gptjax.core import config
from gptjax.core.config import ConfigError, require
from gptjax.data.tasks import LanguageModel, Task, TaskConfig
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import About, OpenedModel
from gptjax.formats.peft import base_named_by, is_peft
from gptjax.model import ModelConfig
from gptjax.runs import adapted, frozen
from gptjax.runs.checkpoints import Run
from gptjax.sharding.mesh import param_shardings
from gptjax.weights import AdapterKind, on_mesh


def open_model(
    path: Path | str,
    step: int | None = None,
    mesh: Mesh | None = None,
    ignored: Collection[str] = (),
    *,
    live: bool = False,
    known: config.Classes = (),
    packed: bool = False,
) -> OpenedModel:
    """Opens a run directory, a Hugging Face directory, an adapter of PEFT beside its base, a GGUF
    file, a llama2.c file, or a model that a Python package ships.

    The optimizer state of a run is not read. If the run kept averaged weights, they are returned
    instead of the latest ones.

    Args:
      path: where the model is, or the name of a packaged model: smollm2, minilm.
      step: checkpoint of a run; `None` means the newest intact one.
      mesh: devices that share the parameters, by the rules of their logical axes; `None` means all
        parameters on the default device.
      ignored: keys of a published model that are passed over; see `formats.load_model`.
      live: the latest weights of a run, also where it kept averaged ones.
      known: task classes defined outside gptjax that a run's config may name.
      packed: keep quantised weights of a published model as they are stored; only for generation.

    Raises:
      ConfigError: there is no model at `path`, it is damaged, or it has no such checkpoint.
    """
    path = formats.located(path, step)
    shardings = None if mesh is None else functools.partial(_shardings, mesh)
    if is_peft(path):
        require(step is None, f"{path} is not a run, so it has no step {step}; omit --step.")
        base = open_model(base_named_by(path), mesh=mesh, packed=packed)
        return _onto(mesh, adapted.beside_base(base, path))
    if formats.kind(path) is None:
        require(
            not formats.holds_tokenizer(path) or (path / "config.json").exists(),
            f"{path} has a tokenizer and no model; put config.json and *.safetensors beside it, or"
            " give another directory.",
        )
        require(not packed, formats.nothing_packed(path))
        return _onto(mesh, _open_run(path, step, shardings, live, known))
    require(step is None, f"{path} is not a run, so it has no step {step}; omit --step.")
    if packed:
        return _onto(mesh, formats.load_model(path, None, ignored, packed=True))
    return formats.load_model(path, shardings, ignored)


def _shardings(mesh: Mesh, c: ModelConfig) -> Any:
    """A sharding for each parameter."""
    return param_shardings(mesh, model.axes(c), model.shapes(c))


def _onto(mesh: Mesh | None, opened: OpenedModel) -> OpenedModel:
    """The model with all its parameters on the mesh, adapters too."""
    if mesh is None:
        return opened
    return opened._replace(params=on_mesh(mesh, opened.params, model.axes(opened.config)))


# --- runs -----------------------------------------------------------------------------------------


class RunConfig(NamedTuple):
    """The parts of a run's config.json that say what its model is."""

    model: ModelConfig
    task: Task
    start: str | None = None
    """The model that it started from."""
    adapter: AdapterKind | None = None
    """The run trains an adapter of `start`."""


def read_config(run: Path, known: config.Classes = ()) -> RunConfig:
    """Reads what a run's config.json says about its model. Nothing else in it is checked.

    Args:
      known: task classes defined outside gptjax that the file may name.

    Raises:
      ConfigError: there is no config.json, or it does not describe a model.
    """
    needed = (
        "give a run directory, for example runs/quickstart (python train.py makes one), a Hugging"
        " Face directory or a .gguf file"
    )
    file = run / "config.json"
    require(run.is_dir(), f"{run} is not a directory; {needed}.")
    require(file.is_file(), f"{run} has no config.json, so it is not a run; {needed}.")
    raw = config.load_config(dict, file)
    require("model" in raw, f"{file} does not describe a model; {needed}.")
    task = _at(raw, "data", "task")
    adapter = raw.get("adapter")
    return RunConfig(
        config.from_dict(ModelConfig, raw["model"], "model"),
        LanguageModel()
        if task is None
        else config.from_dict(TaskConfig, task, "data.task", known=known),
        start=raw.get("start"),
        adapter=adapter and config.from_dict(AdapterKind, adapter, "adapter"),
    )


def _at(value: Any, *keys: str) -> Any:
    """The value below nested keys; `None` if one of them is absent."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _open_run(
    run: Path, step: int | None, shardings: Any, live: bool, known: config.Classes
) -> OpenedModel:
    found, steps = read_config(run, known), Run(run).steps()
    c, task = found[:2]
    tree = "params" if live else adapted.weights_tree(run, step)
    if found.adapter is not None:
        return _open_adapted(run, found, step, shardings, tree)
    shapes = model.shapes(c)
    if shardings is not None:
        shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings(c),
        )
    params = frozen.restore_params(run, shapes, tree=tree, step=step) if steps else None
    _require_trained(run, params)
    return OpenedModel(c, params, read_tokenizer(run), read_about(run), task)


def _require_trained(run: Path, params: Any) -> None:
    require(
        params is not None,
        f"{run} has no checkpoint yet; train it first: python train.py {run}/config.json",
    )


def _open_adapted(
    run: Path, found: RunConfig, step: int | None, shardings: Any, tree: str
) -> OpenedModel:
    """An adapter run: its base, with the adapter beside the weights."""
    base = adapted.with_classes_of(found.model, open_base(run, found))
    if shardings is not None:
        base = base._replace(params=jax.device_put(base.params, shardings(base.config)))
    params = (
        adapted.restore_adapted(run, base, found.adapter, tree, step) if Run(run).steps() else None
    )
    _require_trained(run, params)
    about = dataclasses.replace(base.about, source=f"run {run.name}")
    return OpenedModel(found.model, params, read_tokenizer(run), about, found.task)


def open_base(run: Path, found: RunConfig) -> OpenedModel:
    """Opens the model that an adapter run adapts, and checks that it is the one.

    Raises:
      ConfigError: it is absent, or another one than the run was trained on.
    """
    try:
        opened = open_model(found.start)
    except ConfigError as error:
        raise adapted.missing_base(run, found.start, error) from None
    return adapted.checked_base(run, opened, found.adapter, found.start)


def read_tokenizer(run: Path) -> Tokenizer:
    """Loads a run's tokenizer.

    Raises:
      ConfigError: it is absent, damaged, or not the one the run was trained with.
    """
    tokenizer, recorded = tokenizers.load_tokenizer(run / "tokenizer"), run / "identity.json"
    require(
        not recorded.is_file()
        or config.load_config(dict, recorded).get("tokenizer")
        == tokenizers.hash_tokenizer(tokenizer),
        f"{run / 'tokenizer'} is not the tokenizer that this run was trained with ({recorded} has"
        " its hash); restore it from a copy.",
    )
    return tokenizer


def open_tokenizer(path: Path | str) -> Tokenizer:
    """Loads the tokenizer of a model, whatever format it is stored in, without its weights.

    Raises:
      ConfigError: there is no model at `path`, or it has no tokenizer.
    """
    path = formats.located(path)
    if formats.kind(path) is not None or formats.holds_tokenizer(path):
        return formats.read_model_tokenizer(path)
    require(
        path.is_dir(),
        f"{path} is not a model; give a run directory, a Hugging Face directory or a .gguf file.",
    )
    return read_tokenizer(path)


NOTES = "about.json"
"""File in a run that was converted from another format: the rest of what that format said."""


def read_about(run: Path) -> About:
    """Returns where a run's model came from."""
    notes = run / NOTES
    kept = config.load_config(dict, notes) if notes.is_file() else {}
    unknown = kept.keys() - {field.name for field in dataclasses.fields(About)}
    require(not unknown, f"{notes} has unknown keys: {', '.join(sorted(unknown))}; remove them.")
    return About(**{"source": f"run {run.name}", **kept})


def write_about(run: Path, about: About) -> None:
    """Writes what `read_about` reads."""
    kept = {
        "family": about.family,
        "pad": about.pad,
        "mask": about.mask,
        "generation": dict(about.generation),
        "padding": about.padding,
        "notes": dict(about.notes),
    }
    (run / NOTES).write_text(json.dumps(kept, indent=2) + "\n")
