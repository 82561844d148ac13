"""The gradient noise scale: at which batch size a larger one stops helping.

Source: McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv:1812.06162,
section 2.2 and appendix A.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.data.layouts import Batch
from gptjax.lab.examples import Example, per_example, squared_norms
from gptjax.train.step import Objective


class Noise(NamedTuple):
    """Estimates from the gradients of the rows of one batch. They are unbiased; their quotient is
    not, so average `variance` and `signal` over batches before dividing them."""

    variance: Float[Array, "..."]
    """Trace of the covariance of a row's gradient."""
    signal: Float[Array, "..."]
    """Squared norm of the true gradient. It may be negative where the batch is too small to see
    it."""

    @property
    def scale(self) -> Float[Array, "..."]:
        """The simple noise scale, in rows: `variance` / `signal`. A batch far below it learns as
        much per row as one of a single row; one far above wastes rows. Infinite where no signal is
        seen."""
        seen = self.signal > 0
        return jnp.where(seen, self.variance / jnp.where(seen, self.signal, 1.0), jnp.inf)


def gradient_noise(
    objective: Objective, **how: Any
) -> Callable[..., tuple[Noise, dict[str, Noise]]]:
    """Returns (params, batch, key) → the noise of all parameters together, and of each by its path,
    [L] for stacked layers. A batch needs two rows at least.

    A row's gradient is that of its summed loss over the mean weight of the rows, so that the mean
    of the rows' gradients is that of the batch. Two sums are kept: of the gradients, and of their
    squared norms.

    Args:
      how: see `per_example`.
    """

    def sums(example: Example) -> tuple[Params, dict[str, Array], Array]:
        return example.gradient, squared_norms(example.gradient), example.weight

    def noise(
        params: Params, batch: Batch, key: Key | None = None
    ) -> tuple[Noise, dict[str, Noise]]:
        rows = len(batch.tokens)
        if rows < 2:
            raise ValueError(f"a batch of {rows} row has no variance; it needs 2 at least.")
        total, squares, weight = per_example(objective, sums, add=True, **how)(params, batch, key)
        mean_weight = jnp.maximum(weight / rows, 1e-30)
        of_batch = squared_norms(jax.tree.map(lambda g: g / (rows * mean_weight), total))
        of_rows = {name: x / (rows * mean_weight**2) for name, x in squares.items()}
        by_path = {name: estimate(of_rows[name], of_batch[name], rows) for name in of_batch}
        return estimate(_summed(of_rows), _summed(of_batch), rows), by_path

    return noise


def estimate(of_rows: Float[Array, "..."], of_batch: Float[Array, "..."], rows: int) -> Noise:
    """Returns the noise by two squared norms: the mean of those of single rows, and that of their
    mean over `rows` rows."""
    variance = (of_rows - of_batch) / (1 - 1 / rows)
    return Noise(variance, of_batch - variance / rows)


def by_layer(found: Mapping[str, Noise]) -> dict[str, Noise]:
    """Returns the noise of each layer, and of what is in none, from that of each parameter."""
    sums: dict[str, Noise] = {}
    for path, one in found.items():
        first = path.split("/")[0]
        stacked = one.variance.ndim > 0
        for index in range(len(one.variance) if stacked else 1):
            name = f"layer_{index}" if stacked else first
            part = Noise(*(x[index] for x in one)) if stacked else one
            sums[name] = Noise(*map(jnp.add, sums[name], part)) if name in sums else part
    return sums


def _summed(norms: Mapping[str, Array]) -> Array:
    return sum((x.sum() for x in norms.values()), jnp.zeros(()))
