"""The interface of a loss: an object `(params, frozen, batch, key) → (sum, weight, metrics)`.

Sums, never means: the sums of micro-batches and of devices with unequal weights then add up to
those of the whole batch. Read `Loss`, then `LossConfig`, which builds one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import Open
from gptjax.data.layouts import Batch
from gptjax.model import ModelConfig

Sum = Float[Array, ""]
"""Nats, summed over everything that counts."""

Weight = Float[Array, ""]
"""The normaliser of the sum: for most losses the number of tokens that count."""

Metrics = dict[str, Array]
"""Further sums; those of parts of a batch are added up."""

Frozen = Mapping[str, Params]
"""Weights that do not train, by name: `params` are those of the model itself (see
`core.trees.combine`); others, such as `teacher`, are models that the loss asks for."""

Reduction = Callable[[Mapping[str, Any], Any], Any]
"""(summed metrics, weight) → one number."""


class Loss:
    """What training minimises, or evaluation measures.

    Subclasses are immutable. Everything that normalises the sum is returned as `weight` or is a
    column of the batch, so that a batch can be split in any way.
    """

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Returns the summed loss, its weight and further sums. The key turns on dropout."""
        raise NotImplementedError

    def metrics(self) -> Mapping[str, Reduction]:
        """Returns the numbers to log besides the loss, as functions of the summed metrics."""
        return {}

    def held_out(self, figures: tuple[str, ...] = ()) -> Loss:
        """Returns the loss to evaluate with; its metrics include those of `figures` it knows."""
        return self

    def foresee(self, params: Params, frozen: Frozen, batch: Batch) -> Batch:
        """Returns the batch with statistics of the whole batch added as columns.

        It is called once, before the batch is split into micro-batches.
        """
        return batch


@dataclass(frozen=True)
class FunctionLoss(Loss):
    """A plain function as a loss."""

    function: Callable[[Params, Frozen, Batch, Key | None], tuple[Sum, Weight, Metrics]]

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Calls the function."""
        return self.function(params, frozen, batch, key)


class LossConfig(Open):
    """Settings of a loss: a frozen dataclass with `build`. Code outside gptjax may define more."""

    batches: ClassVar[str] = "predictions"
    """What the batches hold that it reads; see `Task.batches`."""

    @property
    def models(self) -> Mapping[str, str]:
        """Further models that the loss needs: name → path of a run or of another model.

        `build` takes the configuration of each by its name; their weights are in `frozen`.
        """
        return {}

    @property
    def columns(self) -> Mapping[str, tuple[int, ...]]:
        """What it reads of each example instead of computing it: column of the batch → shape of
        one example's values. `models` of that name are then not in memory."""
        return {}

    @property
    def resident(self) -> Mapping[str, str]:
        """Those of `models` whose weights are in memory during training."""
        return {name: path for name, path in self.models.items() if name not in self.columns}

    def started(self, start: str | None, adapted: bool) -> LossConfig:
        """Returns the settings with what depends on where the run starts.

        Args:
          start: the model that it starts from; `None` is random weights.
          adapted: adapters train, and the base stays as it was.
        """
        return self

    def heads(self, config: ModelConfig) -> Mapping[str, Params]:
        """Returns initial weights that the loss reads beside the model's own, such as a value head:
        subtrees by name. They train, and a checkpoint has them apart from the model."""
        return {}

    def computed(self) -> LossConfig:
        """Returns the settings that compute what `columns` would read."""
        return self

    def build(self, config: ModelConfig, **models: ModelConfig) -> Loss:
        """Returns the loss for a model."""
        raise NotImplementedError


def per_weight(name: str) -> Reduction:
    """Returns the reduction that divides a summed metric by the weight."""

    def reduce(sums: Mapping[str, Any], weight: Any) -> Any:
        return sums[name] / weight

    return reduce


def ratio(numerator: str, denominator: str) -> Reduction:
    """Returns the reduction that divides one summed metric by another."""

    def reduce(sums: Mapping[str, Any], weight: Any) -> Any:
        return sums[numerator] / sums[denominator]

    return reduce
