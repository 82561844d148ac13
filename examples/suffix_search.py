"""Searches, by gradient, for a suffix that makes a toy safety model answer what it has learned to
refuse, and compares it with random suffixes of as many tries: `python examples/suffix_search.py`.

The toy reads six letters and a `=`, and refuses where an `x` is among them. It has never seen
longer prompts. Source: Zou et al. 2023, arXiv:2307.15043, algorithm 1 (GCG).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.data import Batch
from gptjax.losses import CrossEntropy
from gptjax.train import optim, step

LETTERS = "abcdefghijklmnopqrstuvwxyz=YN"
X, END, YES, NO = (LETTERS.index(c) for c in "x=YN")
CONFIG = model.small("tiny", vocab_size=len(LETTERS), context=32, width=32, num_heads=4)
ASKED, SUFFIX, STEPS, ROUNDS, TRIES = 6, 6, 40, 12, 16


def asked(draw: np.random.Generator, rows: int, bad: float) -> np.ndarray:
    """Prompts [rows 6], of which this share has an x."""
    ids = draw.integers(0, X, (rows, ASKED))
    place, chosen = draw.integers(0, ASKED, rows), draw.random(rows) < bad
    ids[np.flatnonzero(chosen), place[chosen]] = X
    return ids


def trained():
    """The weights of a toy that refuses prompts with an x."""
    rate = optim.learning_rate(optim.Schedule(warmup=5), 1e-2, STEPS)
    optimizer = optim.build_optimizer(optim.AdamW(), rate)
    params = jax.jit(functools.partial(model.init, CONFIG))(jax.random.key(0))
    more = {"loss": CrossEntropy().build(CONFIG), "optimizer": optimizer, "rate": rate}
    stepped = jax.jit(functools.partial(step.train_step, **more, seed=0, dropout=False))
    state = step.init(params, optimizer)
    for number in range(STEPS):
        ids = asked(np.random.default_rng(number), 64, 0.5)
        tokens = np.pad(ids, ((0, 0), (0, 1)), constant_values=END).astype(np.int32)
        targets, weights = np.zeros_like(tokens), np.zeros(tokens.shape, np.float32)
        targets[:, -1], weights[:, -1] = np.where((ids == X).any(axis=1), NO, YES), 1
        state, _ = stepped(state, {}, Batch(tokens, targets, weights))
    return state.trainable


@jax.jit
def losses(params, tokens, perturbation=None):
    """−ln p of the answer `y` after each prompt [B]."""
    out = model.forward(CONFIG, params, tokens, perturbation=perturbation)
    return -jax.nn.log_softmax(model.unembed(CONFIG, params, out.hidden[:, -1]))[:, YES]


@jax.jit
def slopes(params, tokens):
    """What the loss changes, to first order, if a token becomes another [T V]."""
    still = jnp.zeros((1, tokens.shape[1], CONFIG.width))
    gradient = jax.grad(lambda moved: losses(params, tokens, moved).sum())(still)[0]
    return gradient @ params["embedding"]["embedding"][: len(LETTERS)].T


def search(params, prompt: np.ndarray, draw: np.random.Generator, by_gradient: bool) -> bool:
    """Says whether a suffix was found after which the toy answers. Each round tries exchanges of
    one letter: among the four best of their place by gradient, or any."""
    row = np.concatenate([prompt, draw.integers(0, X, SUFFIX), [END]]).astype(np.int32)
    for _ in range(ROUNDS):
        tried = np.repeat(row[None], TRIES, axis=0)
        at, to = draw.integers(ASKED, ASKED + SUFFIX, TRIES), draw.integers(0, X, TRIES)
        if by_gradient:
            best = np.argsort(np.asarray(slopes(params, row[None]))[:, :X], axis=1)[:, :4]
            to = best[at, draw.integers(0, 4, TRIES)]
        tried[np.arange(1, TRIES), at[1:]] = to[1:]
        found = np.asarray(losses(params, tried))
        row = tried[found.argmin()]
        if found.min() < np.log(2):  # y is likelier than all else together
            return True
    return False


def main(prompts: int = 20) -> dict[str, int]:
    """Prints and returns how many of the refused prompts each search gets past."""
    params, ids = trained(), asked(np.random.default_rng(10**6), prompts, 1.0)
    plain = np.pad(ids, ((0, 0), (0, 1)), constant_values=END).astype(np.int32)
    found = {"no suffix": int((np.asarray(losses(params, plain)) < np.log(2)).sum())}
    for name in ("random", "gradient"):
        draw = np.random.default_rng(1)
        found[name] = sum(search(params, one, draw, name == "gradient") for one in ids)
    print(f"of {prompts} prompts answered: {found}")
    return found


if __name__ == "__main__":
    main()
