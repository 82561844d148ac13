"""Runs that trained an adapter: their checkpoints hold the adapter alone, and the base that it
adapts is opened from where it was, and known by its hash."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core import config
from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.core.trees import combine, path_matches, paths
from gptjax.formats import OpenedModel
from gptjax.formats.peft import PeftAdapter, is_peft, read_peft
from gptjax.formats.peft_config import Settings
from gptjax.formats.peft_virtual import is_virtual, read_peft_virtual
from gptjax.model import ModelConfig
from gptjax.runs.checkpoints import Run
from gptjax.weights import (
    VIRTUAL,
    AdapterKind,
    Adapters,
    PromptTuning,
    attach,
    detach,
    merge,
    side_by_side,
)
from gptjax.weights.lora import with_leaves
from gptjax.weights.weight import transposed


def weights_tree(run: Path, step: int | None = None) -> str:
    """Returns the tree of a checkpoint that a run is opened with: `ema`, the averaged weights,
    where it has them, else `params`.

    Args:
      step: `None` means the newest.
    """
    steps = Run(run).steps()
    kept = Run(run).trees(steps[-1] if step is None else step) if steps else ()
    return "ema" if "ema" in kept else "params"


def checked_base(run: Path, opened: OpenedModel, adapter: AdapterKind, path: str) -> OpenedModel:
    """The model that an adapter run stands on, as its adapter needs it.

    Args:
      opened: the model at `path`.

    Raises:
      ConfigError: it is not the model that the run was trained on.
    """
    recorded = config.load_config(dict, run / "identity.json").get("start")
    require(
        recorded == opened.fingerprint(),
        f"{run} is an adapter of {path}, which holds other weights than the run was trained on;"
        f" restore them, or name the right model as `start` in {run / 'config.json'}.",
    )
    return plain_base(opened, adapter)


def plain_base(opened: OpenedModel, adapter: AdapterKind) -> OpenedModel:
    """A model as an adapter finds it: plain weights, the output untied if the adapter asks."""
    c, params = opened.config, merge(opened.params)
    if adapter.untie and c.tied:
        c = dataclasses.replace(c, tied=False)
        params = {**params, "head": {"kernel": transposed(params["embedding"]["embedding"])}}
    return opened._replace(config=c, params=params)


def with_classes_of(own: ModelConfig, base: OpenedModel) -> OpenedModel:
    """The base of an adapter run that classifies: with an output over its classes, of zeros, whose
    values the run has. Any other base is returned as it is."""
    if not own.classes or "classes" in base.params:
        return base
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), model.shapes(own)["classes"])
    return base._replace(config=own, params=model.with_output(base.params, own, zeros))


def missing_base(run: Path, path: str, error: ConfigError) -> ConfigError:
    """What to say where the base of an adapter can't be opened."""
    return ConfigError(
        f"{run} is an adapter of {path}, which can't be opened: {error} If it has moved, name its"
        f" new place as `start` in {run / 'config.json'}."
    )


def beside_base(base: OpenedModel, path: Path) -> OpenedModel:
    """A model with an adapter of PEFT beside its weights."""
    base = base._replace(params=merge(base.params))
    if is_virtual(path):
        virtual = read_peft_virtual(path, base)
        params = {**base.params, VIRTUAL: virtual}
        if base.config.positions == "learned":  # of which the virtual tokens take the first
            context = base.config.context - virtual.count
            base = base._replace(config=dataclasses.replace(base.config, context=context))
    else:
        found = read_peft(path, base)
        params = attach(with_leaves(base.params, found.whole), found.adapters)
    about = dataclasses.replace(base.about, source=f"PEFT adapter {path.name}")
    return base._replace(params=params, about=about)


def adapter_for(base: OpenedModel, path: Path) -> Adapters:
    """The adapter of a run or of PEFT, for an opened base.

    Raises:
      ConfigError: it adapts another model, or changes more of it than adapters side by side can.
    """
    virtual = is_peft(path) and is_virtual(path)
    if virtual:
        adapters, whole = {}, False
    elif is_peft(path):
        found = read_peft(path, base)
        adapters, whole = found.adapters, bool(found.whole)
    else:
        require(
            (path / "config.json").is_file(),
            f"{path} is neither a run nor an adapter of PEFT; give the directory of one.",
        )
        raw = config.load_config(dict, path / "config.json")
        require(raw.get("adapter") is not None, f"{path} is a run without an adapter; open it.")
        settings = config.from_dict(AdapterKind, raw["adapter"], "adapter")
        virtual = isinstance(settings, PromptTuning)
        checked_base(path, base, settings, raw["start"])
        whole = bool(settings.modules_to_save or settings.untie or settings.base != "float32")
        params = restore_adapted(path, base, settings, weights_tree(path), None)
        require(params is not None, f"{path} has no checkpoint yet; train it first.")
        adapters = detach(params)[1]
    require(
        not virtual,
        f"{path} has virtual tokens (prompt or prefix tuning), which all rows see, so it can't"
        " stand beside other adapters; open it alone.",
    )
    require(
        not whole,
        f"{path} changes its base, by weights that trained whole, an untied output or a quantised"
        " base, so it can't stand beside other adapters; open it alone.",
    )
    return adapters


def hold_adapters(base: OpenedModel, named: Mapping[str, Path]) -> OpenedModel:
    """A model that holds several adapters, of which each row uses one; see `weights.serve`."""
    roles = model.roles(base.config)
    each = [adapter_for(base, path) for path in named.values()]
    stacked = side_by_side(each, roles)
    return base._replace(params=attach(base.params, stacked, jnp.full((1,), -1, jnp.int32)))


def peft_of(run: Path, opened: OpenedModel, adapter: AdapterKind, start: str) -> PeftAdapter:
    """The adapter of a run, as PEFT would have it.

    Raises:
      ConfigError: its output is untied, which the base that PEFT opens is not.
    """
    require(
        not adapter.untie,
        f"{run} untied the output of {start}, and PEFT opens that with both tied; merge it"
        " (--merge).",
    )
    plain, adapters = detach(opened.params)
    pairs = zip(paths(plain), jax.tree.leaves(plain), strict=True)
    saved = adapter.modules_to_save
    whole = {path: leaf for path, leaf in pairs if any(path_matches(path, one) for one in saved)}
    settings = Settings(
        rs=adapter.rs,
        dora=adapter.magnitudes,
        dropout=adapter.dropout,
        base=named_base(start),
    )
    return PeftAdapter(adapters, whole, settings)


def named_base(start: str) -> str:
    """What the files of PEFT name as the base of a run that started there."""
    return str(Path(start).resolve()) if Path(start).exists() else start


def restore_adapted(
    run: Path, base: OpenedModel, adapter: AdapterKind, tree: str, step: int | None
) -> Params | None:
    """Reads the parameters of an adapter run beside those of its base; `None` if there is no intact
    checkpoint.

    Args:
      tree: `params`, or `ema` for the averaged weights.
    """
    initial, frozen = model.add_adapter(base.config, adapter, base.params, None)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), initial)
    restored = Run(run).restore({tree: shapes}, step=step)
    return restored and combine({"params": frozen}, restored[1][tree])
