"""Learning rates and initial weights that carry over to a wider model (maximal update
parametrisation, muP).

Read `at_width`, then `growth_of`, then `initial` and `scaled_updates`, which apply it.

A run with `base_width` trains as if the rates had been chosen at that width: each weight is held
against its shape in the narrow model, and its initial values and its rate shrink with the number of
inputs that it gained. At the base width nothing changes.

Source: Yang et al. 2022, Tensor Programs V: Tuning Large Neural Networks via Zero-Shot
Hyperparameter Transfer, arXiv:2203.03466, table 3 (Adam); for Muon, whose updates have the size of
Adam's, the spectral condition of Yang et al. 2023, arXiv:2310.17813.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import optax

from gptjax import model
from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.model import ModelConfig
from gptjax.train.optim import AdamW, Lion, Muon, OptimConfig
from gptjax.train.updates import orthogonalised

if TYPE_CHECKING:
    from gptjax.train.experiment import Experiment
    from gptjax.weights import Role


def at_width(config: ModelConfig, width: int) -> ModelConfig:
    """Returns a model of another width, which differs in nothing that does not follow from it:
    heads are as wide as before, and their number, and the widths inside MLPs and experts where
    they are set, change in proportion.

    Raises:
      ConfigError: the number of heads, or a width, would not be whole.
    """

    def scaled(name: str, count: int) -> int:
        exact = count * width / config.width
        require(
            exact == int(exact) and exact >= 1,
            f"model.{name} is {count} at width {config.width} and would be {exact:g} at width"
            f" {width}; choose a width at which it is whole.",
        )
        return int(exact)

    changed: dict[str, Any] = {"num_heads": scaled("num_heads", config.num_heads)}
    if config.num_kv_heads not in (None, 1):
        changed["num_kv_heads"] = scaled("num_kv_heads", config.num_kv_heads)
    if config.feed_forward is not None:
        changed["feed_forward"] = scaled("feed_forward", config.feed_forward)
    if config.experts is not None and config.experts.width is not None:
        inside = scaled("experts.width", config.experts.width)
        changed["experts"] = dataclasses.replace(config.experts, width=inside)
    return dataclasses.replace(config, width=width, **changed)


class Growth(NamedTuple):
    """What a parameter's initial values, and its updates, are multiplied by."""

    initial: float
    rate: float


def growth_of(config: ModelConfig, base_width: int, optim: OptimConfig) -> Any:
    """Returns a tree like the parameters whose leaves are `Growth`.

    Of a weight whose inputs are r times those of the narrow model and whose outputs grow too,
    initial values shrink by √r and updates by r; if the outputs do not grow (the output over
    tokens, a router), both shrink by r; vectors, embeddings and what reads inputs of a fixed size
    stay. Updates that Muon makes orthogonal shrink by √r.
    """
    roles, wide = model.roles(config), model.shapes(config)
    narrow = model.shapes(at_width(config, base_width))

    def growth(path: tuple, role: Role, leaf: Any, base: Any) -> Growth:
        if not role.inputs:
            return Growth(1.0, 1.0)
        more = [a / b for a, b in zip(leaf.shape, base.shape, strict=True)][role.stacked :]
        read, made = math.prod(more[: role.inputs]), math.prod(more[role.inputs :])
        spectral = isinstance(optim, Muon) and orthogonalised(role, path)
        initial = read**-0.5 if made > 1 or read <= 1 else 1 / read
        return Growth(initial, read**-0.5 if spectral else 1 / read)

    return jax.tree_util.tree_map_with_path(
        growth, roles, wide, narrow, is_leaf=lambda leaf: hasattr(leaf, "stacked")
    )


def require_transfer(experiment: Experiment) -> None:
    """Refuses a `base_width` that says nothing of the experiment's model or optimizer.

    Raises:
      ConfigError: names what to change.
    """
    config, base = experiment.model, experiment.base_width
    if base is None:
        return
    require(base >= 1, f"base_width is {base}; it needs a width such as 128, or None.")
    require(
        isinstance(experiment.optim, AdamW | Lion),
        f"optim is {type(experiment.optim).__name__}, and base_width transfers the rates of AdamW,"
        " Adam, Lion and Muon; use one of them, or --base-width None.",
    )
    require(
        experiment.adapter is None,
        "base_width and adapter are both set, and an adapter has no narrow model; omit"
        " --base-width.",
    )
    require(
        not config.tied or experiment.data.task.classes is not None,
        "base_width needs an output of its own, whose rate is another than the embedding's; use"
        " --model.tied False, or --base-width None.",
    )
    try:
        at_width(config, base)
    except ConfigError as error:
        raise ConfigError(f"base_width is {base}: {error}") from None


def initial(experiment: Experiment, params: Params) -> Params:
    """Returns the initial parameters of a run, from those that its model config draws."""
    if experiment.base_width is None:
        return params
    growth = growth_of(experiment.model, experiment.base_width, experiment.optim)
    return jax.tree.map(lambda leaf, one: leaf * one.initial, params, growth)


def scaled_updates(experiment: Experiment) -> optax.GradientTransformation | None:
    """Returns the transformation that multiplies updates by what `growth_of` says, or none."""
    if experiment.base_width is None:
        return None
    growth = growth_of(experiment.model, experiment.base_width, experiment.optim)
    found = jax.tree_util.tree_leaves_with_path(growth, is_leaf=lambda x: isinstance(x, Growth))
    rates = {jax.tree_util.keystr(path): one.rate for path, one in found}

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        def scaled(path: tuple, leaf: Any) -> Any:
            return leaf * rates.get(jax.tree_util.keystr(path), 1.0)

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
