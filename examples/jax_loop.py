"""Trains a GPT with a loop that you wrote: the model from gptjax, everything else plain JAX.

    python examples/jax_loop.py                 (15 seconds of one core)

`model.init` returns a tree of arrays and `model.forward` is a pure function of it, so loss,
gradient, update and sampling are a few lines each, and yours to change. What to type next:

    open gptjax/train/step.py                   (the step of the package)
    python examples/pmap.py                     (the same over several devices)
"""

from __future__ import annotations

import this  # a text that each Python has; importing it also prints it
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gptjax import model

TEXT = "".join(this.d.get(letter, letter) for letter in this.s)  # the text is stored as ROT13
LETTERS = sorted(set(TEXT))
IDS = jnp.asarray([LETTERS.index(letter) for letter in TEXT])
LENGTH, ROWS, EACH = 32, 16, 50
CONFIG = model.small("tiny", vocab_size=len(LETTERS), context=2 * LENGTH, width=64, num_heads=4)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))

Params = dict[str, Any]
State = tuple[Params, optax.OptState]


def batch(key: jax.Array) -> jax.Array:
    """Pieces of the text [rows length+1] that begin anywhere."""
    begins = jax.random.randint(key, (ROWS, 1), 0, len(IDS) - LENGTH)
    return IDS[begins + jnp.arange(LENGTH + 1)[None]]


def loss(params: Params, ids: jax.Array) -> jax.Array:
    """Mean −ln p of each next letter, in nats."""
    hidden = model.forward(CONFIG, params, ids[:, :-1]).hidden  # [B T D]
    logits = model.unembed(CONFIG, params, hidden)  # [B T V]
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


def update(state: State, key: jax.Array) -> tuple[State, jax.Array]:
    """One step; returns the loss before it."""
    params, moments = state
    value, gradients = jax.value_and_grad(loss)(params, batch(key))
    changes, moments = OPTIMIZER.update(gradients, moments, params)
    return (optax.apply_updates(params, changes), moments), value


@jax.jit
def advance(state: State, number: jax.Array) -> tuple[State, jax.Array]:
    """`EACH` steps in one compiled loop: the device never waits for Python."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), number), EACH)
    return jax.lax.scan(update, state, keys)


@jax.jit
def write(params: Params, key: jax.Array) -> jax.Array:
    """Ids of a text that the model draws; the whole row is read again for each letter."""

    def letter(at: int, row: jax.Array) -> jax.Array:
        hidden = model.forward(CONFIG, params, row[None]).hidden[0, at]
        drawn = jax.random.categorical(
            jax.random.fold_in(key, at), model.unembed(CONFIG, params, hidden)
        )
        return row.at[at + 1].set(drawn)

    row = jnp.zeros(2 * LENGTH, IDS.dtype).at[0].set(LETTERS.index("B"))
    return jax.lax.fori_loop(0, 2 * LENGTH - 1, letter, row)


def main(rounds: int = 10) -> None:
    """Trains and writes."""
    params = model.init(CONFIG, jax.random.key(0))
    state, began = (params, OPTIMIZER.init(params)), time.monotonic()
    print(f"\n{sum(x.size for x in jax.tree.leaves(params)):,} parameters, {len(LETTERS)} letters")
    for number in range(rounds):
        state, losses = advance(state, jnp.int32(number))
        said = "".join(LETTERS[i] for i in np.asarray(write(state[0], jax.random.key(number))))
        print(f"step {EACH * (number + 1):4}  loss {losses.mean():.3f}  {said!r}")
    print(f"{time.monotonic() - began:.0f} seconds; a guess costs {np.log(len(LETTERS)):.3f} nats")


if __name__ == "__main__":
    main()
