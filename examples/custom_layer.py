"""A layer of your own: linear maps that are Kronecker products of small matrices.

    python examples/custom_layer.py             (20 seconds of one core)

A weight is whatever has a `shape` and a rule of `weights.multiply`. `Kronecker` keeps two small
matrices a and b, and computes x (a ⊗ b) without building the product. In place of the kernels of
the MLP it is differentiated and compiled like any array, and nothing in the model knows. What to
type next:

    open gptjax/weights/                        (quantised and low-rank weights, in the same form)

Source: Jagtap et al. 2022, arXiv:2204.12543, for products of this kind; here without a sum.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from gptjax import model, weights
from gptjax.data import Batch
from gptjax.losses import CrossEntropy
from gptjax.train import step

LENGTH, ROWS, VOCABULARY = 24, 32, 16
CONFIG = model.small("tiny", vocab_size=VOCABULARY, context=LENGTH, width=64, num_heads=4)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["a", "b"], meta_fields=[])
@dataclass(frozen=True)
class Kronecker:
    """A kernel [input output] that is a ⊗ b; with layers before it if it is one of a stack."""

    a: jax.Array  # [… p q]
    b: jax.Array  # [… r s]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the product."""
        (p, q), (r, s) = self.a.shape[-2:], self.b.shape[-2:]
        return (*self.a.shape[:-2], p * r, q * s)


@weights.multiply.register
def _(weight: Kronecker, x: jax.Array, *, wide: bool = False) -> jax.Array:
    split = x.reshape(*x.shape[:-1], weight.a.shape[-2], weight.b.shape[-2])
    a, b = (part.astype(x.dtype) for part in (weight.a, weight.b))
    y = jnp.einsum("...pr,pq,rs->...qs", split, a, b).reshape(*x.shape[:-1], -1)
    return y.astype(jnp.float32) if wide else y


def replaced(kernel: jax.Array, key: jax.Array) -> Kronecker:
    """Random factors whose product has the size of the kernel's numbers."""
    *layers, inputs, outputs = kernel.shape
    size, keys = jnp.sqrt(kernel.std()), jax.random.split(key)
    a = size * jax.random.normal(keys[0], (*layers, 8, 8))
    return Kronecker(a, size * jax.random.normal(keys[1], (*layers, inputs // 8, outputs // 8)))


def count(params: object) -> int:
    """Number of numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def batch(number: jax.Array) -> Batch:
    """Rows that repeat a random pattern of six tokens."""
    key = jax.random.fold_in(jax.random.key(1), number)
    pattern = jax.random.randint(key, (ROWS, 6), 0, VOCABULARY)
    ids = jnp.tile(pattern, (1, LENGTH // 6 + 1))[:, : LENGTH + 1]
    return Batch(ids[:, :-1], ids[:, 1:], jnp.ones((ROWS, LENGTH)).at[:, :5].set(0))


def main(steps: int = 300) -> None:
    """Trains the model with dense kernels and with products."""
    rate, optimizer = optax.constant_schedule(3e-3), optax.adam(3e-3)
    loss = CrossEntropy().build(CONFIG)
    given = {"loss": loss, "optimizer": optimizer, "rate": rate, "seed": 0}
    advance = functools.partial(step.train_step, **given)
    for name in ("dense", "Kronecker"):
        params = model.init(CONFIG, jax.random.key(0))
        mlp = params["layers"]["mlp"]
        if name == "Kronecker":
            for number, part in enumerate(mlp.values()):
                part["kernel"] = replaced(part["kernel"], jax.random.key(number))
        begun = step.init(params, optimizer)
        last = jax.jit(
            lambda s: jax.lax.scan(lambda s, n: advance(s, {}, batch(n)), s, jnp.arange(steps))
        )(begun)[1]["loss"][-20:]
        print(f"{name:10} {count(mlp):6,} numbers in the MLPs, loss {last.mean():.3f}")


if __name__ == "__main__":
    main()
