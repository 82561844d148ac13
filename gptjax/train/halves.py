"""Which weights of an experiment train, and which are frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from gptjax import model, weights
from gptjax.core.arrays import Key, Params
from gptjax.core.config import require
from gptjax.core.trees import partition, trains
from gptjax.data import Batch
from gptjax.losses import Frozen, Loss, Metrics, Reduction
from gptjax.losses.loss import Sum, Weight
from gptjax.model import ModelConfig
from gptjax.train import stochastic
from gptjax.train.experiment import Experiment
from gptjax.weights.float8 import Float8
from gptjax.weights.kernels import kernels_of, replace_weights


def halves(experiment: Experiment, params: Params) -> tuple[Params, Params]:
    """Splits a model's parameters as `core.trees.partition` does: by `freeze`, or into an adapter
    in its initial state and the base that it adapts. The loss's own `heads` train beside them.

    Raises:
      ConfigError: a pattern of the experiment fits no weight.
    """
    trainable, rest = _own_halves(experiment, params)
    if experiment.optim.weights == "bfloat16":
        trainable = stochastic.narrowed(trainable, model.roles(experiment.model))
    heads = experiment.objective.heads(experiment.model)
    return {**trainable, **heads}, {**rest, **jax.tree.map(lambda _: None, dict(heads))}


def _own_halves(experiment: Experiment, params: Params) -> tuple[Params, Params]:
    adapter = experiment.adapter
    if adapter is None:
        return partition(params, trains(params, experiment.freeze))
    key = jax.random.fold_in(jax.random.key(experiment.seed), 1)
    trainable, rest = model.add_adapter(experiment.model, adapter, params, key)
    require_untied(experiment, trainable)
    return trainable, rest


def freezes(experiment: Experiment) -> bool:
    """Whether some of the model's own weights do not train."""
    return bool(experiment.freeze) or experiment.adapter is not None


@dataclass(frozen=True)
class OfChangedParams(Loss):
    """A loss of parameters that are changed in training alone."""

    inner: Loss
    change: Callable[[Params, Key | None], Params]
    """(parameters, the loss's random key) → those that the inner loss reads."""

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """The inner loss, of the changed parameters."""
        return self.inner(self.change(params, key), frozen, batch, key)

    def metrics(self) -> Mapping[str, Reduction]:
        """The inner loss's."""
        return self.inner.metrics()

    def foresee(self, params: Params, frozen: Frozen, batch: Batch) -> Batch:
        """Leaves it to the inner loss."""
        return self.inner.foresee(params, frozen, batch)


def of_float8(inner: Loss, config: ModelConfig, targets: tuple[str, ...]) -> OfChangedParams:
    """Returns a loss of a model some of whose products are of 8-bit floats; see `with_float8`."""
    return OfChangedParams(inner, lambda params, _: with_float8(config, params, targets))


def with_float8(config: ModelConfig, params: Params, targets: tuple[str, ...]) -> Params:
    """Returns parameters whose kernels multiply 8-bit floats where a pattern matches; of adapted
    kernels the base does. What is narrow already stays as it is.

    Raises:
      ConfigError: a pattern matches no such kernel.
    """
    changed = {}
    for target in targets:
        matched = kernels_of(params, model.roles(config), (target,))
        wide = {path: leaf for path, leaf, _ in matched if hasattr(_base(leaf), "astype")}
        require(
            bool(wide),
            f"fp8 names {target!r}, which matches no kernel of the model, or only quantised ones;"
            " use a path such as 'layers' (--fp8 layers).",
        )
        changed |= {path: _float8(leaf) for path, leaf in wide.items()}
    return replace_weights(params, changed)


def _base(leaf: Any) -> Any:
    return leaf.base if isinstance(leaf, weights.Adapted) else leaf


def _float8(leaf: Any) -> Any:
    own = Float8(_base(leaf))
    return dataclasses.replace(leaf, base=own) if isinstance(leaf, weights.Adapted) else own


def training_loss(experiment: Experiment, models: Mapping[str, ModelConfig]) -> Loss:
    """Builds the loss that training minimises.

    Args:
      models: architectures of the further models that it needs.
    """
    loss = experiment.objective.build(experiment.model, **models)
    dropped = experiment.adapter is not None and experiment.adapter.dropout > 0
    if dropped:
        loss = OfChangedParams(loss, weights.with_keys)
    return of_float8(loss, experiment.model, experiment.fp8) if experiment.fp8 else loss


def require_untied(experiment: Experiment, trainable: Params) -> None:
    """Refuses to adapt or train an embedding that is the output too.

    Raises:
      ConfigError: says how to untie them.
    """
    tied = experiment.model.tied and not experiment.model.classes
    touched = bool(jax.tree.leaves(trainable.get("embedding")))
    require(
        not (tied and touched),
        "the adapter names `embedding`, and in this model it is the output too (model.tied), so"
        " both would change; leave it out (--adapter.targets), or add --adapter.untie True.",
    )
