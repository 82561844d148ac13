"""Finds the head that copies: trains two layers on repeated tokens, finds the head, takes it out.

    python examples/interpret.py                (half a minute of one core)

A row is a block of random tokens, repeated. Only an earlier copy tells what comes next, and models
learn a circuit for that: a head that looks at the token before, and a later one that looks at what
followed the last copy (an induction head). What to type next:

    gptjax look runs/examples/pretrain --prompt "def add(self"   (a page; after pretrain.py)

Source: Olsson et al. 2022, arXiv:2209.11895.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gptjax import model
from gptjax.data import Batch
from gptjax.lab import look
from gptjax.losses import CrossEntropy, token_losses
from gptjax.train import step

HALF, VOCABULARY, ROWS = 12, 32, 64
CONFIG = model.small("tiny", vocab_size=VOCABULARY, context=2 * HALF, width=64, num_heads=4)


def trained(steps: int) -> dict[str, Any]:
    """The parameters of a model that has learned to repeat."""
    optimizer = optax.adam(3e-3)
    advance = functools.partial(
        step.train_step,
        loss=CrossEntropy().build(CONFIG),
        optimizer=optimizer,
        rate=optax.constant_schedule(3e-3),
        seed=0,
    )
    weights = jnp.ones((ROWS, 2 * HALF - 1)).at[:, : HALF - 1].set(0)  # the repetition alone counts

    def body(state: step.TrainState, number: jax.Array) -> tuple[step.TrainState, jax.Array]:
        key = jax.random.fold_in(jax.random.key(1), number)
        shift = jax.random.randint(key, (), 2, HALF)  # blocks of many lengths, so that no
        ids = look.repeated_tokens(key, ROWS, HALF, VOCABULARY)  # fixed distance will do
        ids = jnp.take(ids, (jnp.arange(2 * HALF) % shift), axis=1)
        counts = weights * (jnp.arange(2 * HALF - 1)[None] >= shift - 1)
        state, metrics = advance(state, {}, Batch(ids[:, :-1], ids[:, 1:], counts))
        return state, metrics["loss"]

    state = step.init(model.init(CONFIG, jax.random.key(0)), optimizer)
    state, losses = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(steps)))(state)
    print(f"loss on repeats: {losses[0]:.2f} nats at first, {losses[-50:].mean():.2f} at the end")
    return state.trainable


def main(steps: int = 1500) -> None:
    """Trains, looks for heads, and removes them one at a time."""
    params = trained(steps)
    tokens = look.repeated_tokens(jax.random.key(7), 32, HALF, VOCABULARY)
    scores = look.head_scores(look.attention_patterns(CONFIG, params, tokens), tokens)
    for kind, grid in scores.items():  # [layers heads]
        print(f"\n{kind}: share of attention, by layer (rows) and head\n{grid.round(2)}")

    def repeat_loss(edit: Any) -> float:
        """Nats a token on the second half of each row, with an edit of the activations."""
        hidden = model.forward(CONFIG, params, tokens, intervene=edit).hidden
        logits = model.unembed(CONFIG, params, hidden)
        return float(token_losses(logits[:, HALF:-1], tokens[:, HALF + 1 :]).mean())

    print(f"\nloss on the second half: {repeat_loss(None):.2f}; without one head:")
    for layer in range(CONFIG.num_layers):
        edits = [look.Site("attention", layer, head=h) for h in range(CONFIG.num_heads)]
        row = " ".join(f"{repeat_loss(look.ablate(CONFIG, site)):5.2f}" for site in edits)
        print(f"  layer {layer}: {row}")
    reading = look.read_lens(CONFIG, params, tokens[:1], top=1)
    print("\nln p of the model's answer at the last place, read at each level (logit lens):")
    print(" ".join(f"{x:.2f}" for x in reading.last[:, 0, -1]))


if __name__ == "__main__":
    main()
