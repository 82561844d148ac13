"""Training on a grid of few bits (QAT): another loss, of the model whose kernels are rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gptjax.core.arrays import Key, Params
from gptjax.data.layouts import Batch
from gptjax.losses.cross_entropy import CrossEntropy
from gptjax.losses.distillation import Distillation
from gptjax.losses.loss import Frozen, Loss, LossConfig, Metrics, Reduction, Sum, Weight
from gptjax.losses.preference import Preference
from gptjax.model import ModelConfig, roles
from gptjax.weights import Adapted
from gptjax.weights.float8 import Float8
from gptjax.weights.kernels import TABLE, kernels_of, replace_weights
from gptjax.weights.rounding import Rounding, eight_bits, straight_through


@dataclass(frozen=True)
class QuantisationAware(LossConfig):
    """A loss of the model as it will be after rounding; gradients pass by the rounding as if it
    were not there. The run keeps the weights themselves, and `gptjax convert --quantise` rounds
    them to what was trained.

    Source: Jacob et al. 2017, arXiv:1712.05877, section 3.
    """

    grid: Rounding = field(default_factory=Rounding)
    """On which kernels are rounded."""
    targets: tuple[str, ...] = ("*layers",)
    """Patterns of these kernels; never routers. Under an adapter the base is rounded."""
    outer: Literal["int8", "same", "float"] = "float"
    """Embedding and head: in 8 bits and the same groups, on the grid, or as they are."""
    inner: CrossEntropy | Distillation | Preference | LossConfig = field(
        default_factory=CrossEntropy
    )
    """The loss that is taken."""

    @property
    def batches(self) -> str:  # type: ignore[override]
        """Those of the inner loss."""
        return self.inner.batches

    @property
    def models(self) -> Mapping[str, str]:
        """Those of the inner loss, which stay as they are."""
        return self.inner.models

    @property
    def columns(self) -> Mapping[str, tuple[int, ...]]:
        """Those of the inner loss."""
        return self.inner.columns

    def started(self, start: str | None, adapted: bool) -> LossConfig:
        """Leaves it to the inner loss."""
        return dataclasses.replace(self, inner=self.inner.started(start, adapted))

    def heads(self, config: ModelConfig) -> Mapping[str, Params]:
        """Those of the inner loss."""
        return self.inner.heads(config)

    def computed(self) -> LossConfig:
        """Leaves it to the inner loss."""
        return dataclasses.replace(self, inner=self.inner.computed())

    def build(self, config: ModelConfig, **models: ModelConfig) -> Loss:
        """Returns the loss for a model."""
        return RoundedLoss(self.inner.build(config, **models), config, self)


@dataclass(frozen=True)
class RoundedLoss(Loss):
    """A loss of rounded weights, in training and in evaluation."""

    inner: Loss
    config: ModelConfig
    settings: QuantisationAware

    def rounded(self, params: Params) -> Params:
        """The parameters with the numbers of the grid."""
        told, changed = self.settings, {}
        for path, leaf, role in kernels_of(params, roles(self.config), told.targets):
            changed[path] = _on_grid(told.grid, leaf, role)
        if told.outer != "float":
            grid = told.grid if told.outer == "same" else eight_bits(told.grid)
            table = params["embedding"]["embedding"]
            changed["embedding/embedding"] = _on_grid(grid, table, TABLE)
            for path, leaf, role in kernels_of(params, roles(self.config), ("head",)):
                changed[path] = _on_grid(grid, leaf, role)
        return replace_weights(params, changed)

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """The inner loss of rounded weights."""
        return self.inner(self.rounded(params), frozen, batch, key)

    def metrics(self) -> Mapping[str, Reduction]:
        """The inner loss's."""
        return self.inner.metrics()

    def held_out(self, figures: tuple[str, ...] = ()) -> Loss:
        """The inner loss's, of rounded weights too."""
        return dataclasses.replace(self, inner=self.inner.held_out(figures))

    def foresee(self, params: Params, frozen: Frozen, batch: Batch) -> Batch:
        """Leaves it to the inner loss."""
        return self.inner.foresee(self.rounded(params), frozen, batch)


def _on_grid(grid: Rounding, leaf: Any, role: Any) -> Any:
    """A kernel with the numbers of a grid; of an adapted one the base. What is narrow stays."""
    if isinstance(leaf, Adapted | Float8):
        return dataclasses.replace(leaf, base=_on_grid(grid, leaf.base, role))
    return straight_through(grid, leaf, role) if hasattr(leaf, "astype") else leaf
