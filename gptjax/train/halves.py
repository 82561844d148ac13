"""Which weights of an experiment train, and which are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from gptjax import model, weights
from gptjax.core.arrays import Key, Params
from gptjax.core.config import require
from gptjax.core.trees import partition, trains
from gptjax.data import Batch
from gptjax.losses import Frozen, Loss, Metrics, Reduction
from gptjax.losses.loss import Sum, Weight
from gptjax.model import ModelConfig
from gptjax.train.experiment import Experiment


def halves(experiment: Experiment, params: Params) -> tuple[Params, Params]:
    """Splits a model's parameters as `core.trees.partition` does: by `freeze`, or into an adapter
    in its initial state and the base that it adapts. The loss's own `heads` train beside them.

    Raises:
      ConfigError: a pattern of the experiment fits no weight.
    """
    trainable, rest = _own_halves(experiment, params)
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
class AdapterDropout(Loss):
    """A loss of a model whose adapters drop a share of what they read in training."""

    inner: Loss

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """The inner loss; each adapted weight has a random key, if there is one."""
        return self.inner(weights.with_keys(params, key), frozen, batch, key)

    def metrics(self) -> Mapping[str, Reduction]:
        """The inner loss's."""
        return self.inner.metrics()

    def foresee(self, params: Params, frozen: Frozen, batch: Batch) -> Batch:
        """Leaves it to the inner loss."""
        return self.inner.foresee(params, frozen, batch)


def training_loss(experiment: Experiment, models: Mapping[str, ModelConfig]) -> Loss:
    """Builds the loss that training minimises.

    Args:
      models: architectures of the further models that it needs.
    """
    loss = experiment.objective.build(experiment.model, **models)
    dropped = experiment.adapter is not None and experiment.adapter.dropout > 0
    return AdapterDropout(loss) if dropped else loss


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
