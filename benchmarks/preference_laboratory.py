"""Five preference losses with four strengths each, trained in one compiled program beside one
reference: what each makes of the same pairs.

The toy: a prompt of four digits; a right answer has them in rising order, a wrong one in falling
order. The reference writes either, half the time each. Pairs prefer the right one. `vmap` runs the
training step over 20 policies; then each answers held-out prompts at temperature 1.

    python benchmarks/preference_laboratory.py --out laboratory.json

Read `LOSSES`, then `Laboratory`, then `main`.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Key, Params
from gptjax.data import Batch
from gptjax.losses import CrossEntropy
from gptjax.losses.answers import answer_sums
from gptjax.losses.loss import Frozen, Loss, Metrics, Reduction, Sum, Weight, per_weight
from gptjax.losses.pairwise import PAIR_LOSSES, Pair, PairSettings, kto
from gptjax.train import optim, step

DIGITS, EQUALS, END, LENGTH = 4, 10, 11, 10
"""Digits of a prompt, the ids after it and after an answer, tokens of a text."""
CONFIG = model.llama(
    "7b",
    num_layers=2,
    vocab_size=12,
    compute="float32",
    width=32,
    num_heads=4,
    num_kv_heads=4,
    feed_forward=96,
    context=2 * LENGTH,
    attention="reference",
)
RATE = 3e-4
"""Learning rate of every policy, without warm-up or decay."""
LOSSES: Mapping[str, tuple[float, ...]] = {
    "DPO": (0.03, 0.1, 0.3, 1.0),
    "IPO": (0.03, 0.1, 0.3, 1.0),
    "KTO": (0.03, 0.1, 0.3, 1.0),
    "ORPO": (0.1, 0.3, 1.0, 3.0),
    "SimPO": (0.5, 1.0, 2.0, 4.0),
}
"""Strengths β of each loss. KTO judges both answers of a pair alone; ORPO adds the negative
log-likelihood of the chosen answer per token; SimPO has γ = β / 4."""


@dataclass(frozen=True)
class Laboratory(Loss):
    """The loss of one policy, whose kind and strength are arrays."""

    kind: Array
    beta: Array

    def metrics(self) -> Mapping[str, Reduction]:
        """The share of pairs whose chosen answer gained more."""
        return {"accuracy": per_weight("accuracy")}

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Sums over pairs; all kinds are computed, from the same log-probabilities."""
        sums, lengths, _ = answer_sums(CONFIG, params, batch)
        known = answer_sums(CONFIG, frozen["reference"], batch).log_probs
        gain = Pair(*(x - r for x, r in zip(sums, known, strict=True)))
        plain = PairSettings(beta=self.beta)
        ahead = plain._replace(gamma=self.beta / 4)
        kinds = {
            "DPO": PAIR_LOSSES["sigmoid"](gain, lengths, plain),
            "IPO": PAIR_LOSSES["ipo"](gain, lengths, plain),
            "KTO": self.judged(params, frozen, batch, gain),
            "ORPO": PAIR_LOSSES["orpo"](sums, lengths, plain) - sums.chosen / lengths.chosen,
            "SimPO": PAIR_LOSSES["sigmoid_norm"](sums, lengths, ahead),
        }
        total = jnp.stack([kinds[name].sum() for name in LOSSES])[self.kind]
        return total, jnp.float32(gain.chosen.size), {"accuracy": (gain.difference > 0).sum()}

    def judged(self, params: Params, frozen: Frozen, batch: Batch, gain: Pair) -> Array:
        """KTO of both answers; the baseline is the mean gain of answers to the prompt before."""
        rows = np.arange(LENGTH * 2) % LENGTH <= DIGITS
        tokens, targets = (
            jnp.where(keep, x, jnp.roll(x, 1, axis=0))
            for keep, x in ((rows, batch.tokens), (np.roll(rows, -1), batch.targets))
        )
        other = batch._replace(tokens=tokens, targets=targets)
        sums = [
            answer_sums(CONFIG, jax.lax.stop_gradient(p), other).log_probs
            for p in (params, frozen["reference"])
        ]
        moved = (sums[0].chosen - sums[1].chosen + sums[0].rejected - sums[1].rejected).mean() / 2
        baseline = jnp.maximum(moved, 0.0)
        good = kto(gain.chosen, jnp.asarray(True), baseline, self.beta)
        return (good + kto(gain.rejected, jnp.asarray(False), baseline, self.beta)) / 2


def texts(draw: np.random.Generator, rising: np.ndarray) -> np.ndarray:
    """Prompts with answers in rising or falling order [n LENGTH + 1]: the ids, then 0."""
    asked = draw.permuted(np.tile(np.arange(10), (len(rising), 1)), axis=1)[:, :DIGITS]
    answer = np.sort(asked, axis=1)
    answer = np.where(rising[:, None], answer, answer[:, ::-1])
    edges = np.broadcast_to([[EQUALS, END, 0]], (len(rising), 3))
    return np.concatenate([asked, edges[:, :1], answer, edges[:, 1:]], axis=1).astype(np.int32)


def pairs(draw: np.random.Generator, count: int) -> Batch:
    """A batch of a pair in each row."""
    seed = draw.integers(2**31)
    both = [texts(np.random.default_rng(seed), np.full(count, r)) for r in (True, False)]
    tokens = np.concatenate([x[:, :LENGTH] for x in both], axis=1)
    targets = np.concatenate([x[:, 1 : LENGTH + 1] for x in both], axis=1)
    place = np.broadcast_to(np.arange(2 * LENGTH) % LENGTH, tokens.shape)
    counts = (place >= DIGITS) & (place < LENGTH - 1)
    segments = np.broadcast_to(1 + np.arange(2 * LENGTH) // LENGTH, tokens.shape)
    return Batch(
        tokens,
        targets,
        counts.astype(np.float32),
        segments=segments.astype(np.int32),
        positions=place.astype(np.int32),
        columns={"pairs": np.ones((count, 1), np.float32)},
    )


def reference(steps: int) -> Params:
    """Trains a model that writes either order."""
    params = jax.jit(functools.partial(model.init, CONFIG))(jax.random.key(0))
    optimizer = optim.build_optimizer(optim.Adam(), lambda n: 3e-3 * (1 - n / steps), None)
    one = jax.jit(
        functools.partial(
            step.train_step,
            loss=CrossEntropy().build(CONFIG),
            optimizer=optimizer,
            rate=lambda n: 3e-3,
            seed=0,
        )
    )
    state, draw = step.init(params, optimizer), np.random.default_rng(0)
    for _ in range(steps):
        ids = texts(draw, draw.random(128) < 0.5)
        weights = np.arange(LENGTH)[None] >= np.full((128, 1), DIGITS)
        weights = (weights & (np.arange(LENGTH) < LENGTH - 1)).astype(np.float32)
        state, metrics = one(state, {}, Batch(ids[:, :LENGTH], ids[:, 1:], weights))
    print(f"reference: {float(metrics['loss']):.3f} nats a token; {np.log(2) / 5:.3f} is best")
    return state.trainable


def answers(params: Params, prompts: Array, key: Key) -> Array:
    """Samples an answer to each prompt at temperature 1 [n LENGTH]."""
    ids = jnp.pad(prompts, ((0, 0), (0, LENGTH - DIGITS - 1)))
    for place in range(DIGITS, LENGTH - 1):
        hidden = model.forward(CONFIG, params, ids).hidden[:, place]
        drawn = jax.random.categorical(
            jax.random.fold_in(key, place), model.unembed(CONFIG, params, hidden)
        )
        ids = ids.at[:, place + 1].set(drawn)
    return ids


def measure(params: Params, base: Params, batch: Batch) -> dict[str, Array]:
    """Answers held-out prompts once.

    Returns:
      `right` and `wrong`, the shares of answers in rising and in falling order; `kl`, nats from the
      reference per answer; `chosen` and `rejected`, ln p per token of given answers.
    """
    written = answers(params, batch.tokens[:, : DIGITS + 1], jax.random.key(1))
    targets = jnp.pad(written[:, 1:], ((0, 0), (0, 1)))
    twice = batch._replace(tokens=jnp.tile(written, (1, 2)), targets=jnp.tile(targets, (1, 2)))
    own, other = (answer_sums(CONFIG, p, twice).log_probs.chosen for p in (params, base))
    given = answer_sums(CONFIG, params, batch)
    said = written[:, DIGITS + 1 :]
    right, wrong = (
        jnp.all(said == batch.tokens[:, first : first + DIGITS + 1], axis=1).mean()
        for first in (DIGITS + 1, LENGTH + DIGITS + 1)
    )
    means = [x.sum() / n.sum() for x, n in zip(given.log_probs, given.lengths, strict=True)]
    kl = (own - other).mean()
    return {"right": right, "wrong": wrong, "kl": kl, "chosen": means[0], "rejected": means[1]}


def policy_step(
    kind: Array, beta: Array, state: step.TrainState, frozen: Frozen, batch: Batch
) -> tuple[step.TrainState, dict[str, Array]]:
    """Takes one step of one policy."""
    optimizer = optim.build_optimizer(optim.Adam(), lambda n: RATE, None)
    loss = Laboratory(kind, beta)
    return step.train_step(
        state, frozen, batch, loss=loss, optimizer=optimizer, rate=lambda n: RATE, seed=0
    )


def table(found: list[dict[str, Any]]) -> str:
    """Returns the figures as a table of Markdown."""
    lines = ["| loss | β | right | wrong | KL | ln p chosen | ln p rejected |", "|---" * 7 + "|"]
    for one in found:
        shares = f"{one['right']:.1%} | {one['wrong']:.1%} | {one['kl']:.2f}"
        means = f"{one['chosen']:.3f} | {one['rejected']:.2f}"
        lines.append(f"| {one['loss']} | {one['beta']} | {shares} | {means} |")
    return "\n".join(lines)


def main() -> None:
    """Trains the policies, measures them, and prints a table."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--steps", type=int, default=120)
    flags.add_argument("--rows", type=int, default=32, help="pairs in each step")
    flags.add_argument("--reference-steps", type=int, default=1000)
    flags.add_argument("--out", type=Path, help="write the figures here, as JSON")
    given = flags.parse_args()
    base = reference(given.reference_steps)
    names = [(name, beta) for name, betas in LOSSES.items() for beta in betas]
    kinds = jnp.asarray([list(LOSSES).index(name) for name, _ in names])
    betas = jnp.asarray([beta for _, beta in names], jnp.float32)
    state = step.init(base, optim.build_optimizer(optim.Adam(), lambda n: RATE, None))
    states = jax.tree.map(lambda x: jnp.repeat(x[None], len(names), axis=0), state)
    begun = time.process_time()
    every = jax.jit(jax.vmap(policy_step, in_axes=(0, 0, 0, None, None)))
    draw = np.random.default_rng(1)
    for _ in range(given.steps):
        states, metrics = every(kinds, betas, states, {"reference": base}, pairs(draw, given.rows))
    jax.block_until_ready(metrics)
    seconds = time.process_time() - begun
    held_out = pairs(np.random.default_rng(2), 512)
    judge = jax.jit(jax.vmap(measure, in_axes=(0, None, None)))
    figures = jax.device_get(judge(states.trainable, base, held_out))
    first = jax.device_get(jax.jit(measure)(base, base, held_out))
    found = [{"loss": "reference", "beta": "", **{k: float(v) for k, v in first.items()}}]
    for number, (name, beta) in enumerate(names):
        one = {key: float(values[number]) for key, values in figures.items()}
        found.append({"loss": name, "beta": beta, **one})
    print(f"{len(names)} policies, {given.steps} steps: {seconds:.0f} s of processor time")
    print(table(found))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
