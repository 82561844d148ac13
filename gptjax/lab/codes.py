"""Fits a codebook of pictures (`model.inputs.codes`): the reconstruction's squared error through a
straight-through estimate, a commitment, the codebook as running means of what its codes stand for,
and a restart of codes that nothing uses.

Read `CodeFit` (the settings), then `fit_codes` and `code_figures`.

Sources: van den Oord et al. 2017, arXiv:1711.00937, equation 3 and appendix A.1 (running means);
Dhariwal et al. 2020, Jukebox, arXiv:2005.00341, appendix B (restarts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Float, Key, Num
from gptjax.core.config import require
from gptjax.model.inputs.codes import Codes, encode_patches, nearest_codes, paint_patches
from gptjax.train.optim import Adam, Schedule, build_optimizer, learning_rate


@dataclass(frozen=True)
class CodeFit:
    """How a codebook is fitted."""

    patch: int = 4
    """Side of a patch, in pixels; even."""
    codes: int = 128
    """Number of codes."""
    vector: int = 8
    """Numbers of a code's vector."""
    width: int = 128
    """Hidden width of encoder and decoder."""
    steps: int = 1500
    """Optimizer steps."""
    batch: int = 64
    """Pictures of a step, drawn with replacement."""
    peak: float = 2e-3
    """Highest learning rate."""
    commitment: float = 0.25
    """Weight of the squared distance of what the encoder says from its code."""
    decay: float = 0.98
    """How much of a code's running mean stays at each step."""
    restart: float = 0.1
    """A code that stands for fewer patches of a step than this, on the running mean, begins anew
    as what the encoder says of a patch of the step; 0 never restarts."""
    seed: int = 0
    """Of initial weights, batches and restarts."""

    def __post_init__(self) -> None:
        require(
            self.patch >= 2 and self.patch % 2 == 0,
            f"patch is {self.patch}; it needs an even number of pixels.",
        )
        require(self.codes >= 2, f"codes is {self.codes}; it needs 2 or more.")
        require(0 < self.decay < 1, f"decay is {self.decay}; it needs a share in (0, 1).")
        require(self.restart >= 0, f"restart is {self.restart}; it needs 0 or more.")


class CodeFigures(NamedTuple):
    """What a codebook keeps of pictures."""

    error: float
    """Mean squared error of a pixel, of grey in [0, 1]."""
    used: float
    """Share of the codes that stand for at least one patch."""
    perplexity: float
    """exp of the entropy of the codes: how many there would be if all were equally frequent."""


class Running(NamedTuple):
    """Running means: how many patches of a step each code stands for, and the sum of what the
    encoder says of them."""

    counts: Float[Array, " K"]
    sums: Float[Array, "K V"]


def fit_codes(pictures: Num[np.ndarray, "n H W"], how: CodeFit) -> tuple[Codes, dict[str, Any]]:
    """Fits a codebook to grey pictures, 8 bits a pixel.

    All steps are one compiled loop; the batch, and which codes restart as what, are functions of
    seed and step.

    Returns:
      The codebook, and by name what each step had: `loss`, `perplexity`, `restarted` [steps].

    Raises:
      ConfigError: the patch does not divide the pictures.
    """
    require(
        pictures.shape[1] % how.patch == 0 == pictures.shape[2] % how.patch,
        f"pictures have {pictures.shape[1]} × {pictures.shape[2]} pixels, which patches of"
        f" {how.patch} do not divide; use another patch.",
    )
    schedule = Schedule("cosine", warmup=20, floor=0.0)
    optimizer = build_optimizer(Adam(peak=how.peak), learning_rate(schedule, how.peak, how.steps))

    def step(carry: Any, number: Array, x: Array) -> tuple[Any, dict[str, Array]]:
        codes, running, state = carry
        key = jax.random.fold_in(jax.random.key(how.seed), number)
        chosen, again = jax.random.split(key)
        some = x[jax.random.randint(chosen, (how.batch,), 0, len(x))].astype(jnp.float32) / 255
        (loss, said), grads = jax.value_and_grad(objective, has_aux=True)(
            codes, some, how.commitment
        )
        updates, state = optimizer.update(grads, state, codes)
        rows = said.reshape(-1, how.vector)
        number_of = jnp.asarray(nearest_codes(codes, said)).ravel()
        running = _moved(running, rows, number_of, how.decay)
        running, dead = restarted(running, rows, again, how.restart)
        book = running.sums / jnp.maximum(running.counts, 1e-6)[:, None]
        codes = jax.tree.map(jnp.add, codes, updates)._replace(book=book)
        share = jnp.bincount(number_of, length=how.codes) / len(rows)
        told = {"loss": loss, "perplexity": _perplexity(share), "restarted": dead.sum()}
        return (codes, running, state), told

    @jax.jit
    def fitted(x: Array) -> tuple[Codes, dict[str, Array]]:
        codes = begin_codes(x, how)
        running = Running(jnp.ones(how.codes), jnp.asarray(codes.book))
        carry = codes, running, optimizer.init(codes)
        carry, told = jax.lax.scan(lambda c, n: step(c, n, x), carry, jnp.arange(how.steps))
        return carry[0], told

    codes, told = fitted(jnp.asarray(pictures))
    return jax.tree.map(np.asarray, codes), jax.tree.map(np.asarray, told)


def begin_codes(x: Array, how: CodeFit) -> Codes:
    """Returns initial parameters; the vectors are what the encoder says of some patches."""
    size, v, f = how.patch**2, how.vector, how.width
    keys = jax.random.split(jax.random.fold_in(jax.random.key(how.seed), how.steps), 6)  # no step's

    def drawn(key: Key, *shape: int) -> Array:
        return jax.random.normal(key, shape) * (2 / shape[0]) ** 0.5

    codes = Codes(
        enter=drawn(keys[0], 4 * size, f),
        enter_bias=jnp.zeros(f),
        narrow=drawn(keys[1], f, v) / 2**0.5,
        book=jnp.zeros((how.codes, v)),
        widen=drawn(keys[2], 9 * v, f),
        widen_bias=jnp.zeros(f),
        leave=drawn(keys[3], f, size) / 2**0.5,
        leave_bias=jnp.zeros(size),
    )
    some = x[jax.random.randint(keys[4], (how.batch,), 0, len(x))].astype(jnp.float32) / 255
    rows = encode_patches(codes, some, jnp).reshape(-1, v)
    return codes._replace(book=rows[jax.random.randint(keys[5], (how.codes,), 0, len(rows))])


def objective(codes: Codes, x: Array, commitment: float) -> tuple[Array, Array]:
    """Returns the squared error a pixel with the commitment, and what the encoder says.

    Gradients pass the choice of a code as if it were none (straight through); the vectors have
    none: they are running means.
    """
    said = jnp.asarray(encode_patches(codes, x, jnp))
    vectors = jax.lax.stop_gradient(codes.book[nearest_codes(codes, said)])
    passed = said + jax.lax.stop_gradient(vectors - said)
    error = jnp.square(paint_patches(codes, passed, jnp) - x).mean()
    return error + commitment * jnp.square(said - vectors).mean(), said


def _moved(running: Running, rows: Array, number_of: Array, decay: float) -> Running:
    """The running means after one more step."""
    size = len(running.counts)
    counts = jnp.bincount(number_of, length=size).astype(jnp.float32)
    sums = jax.ops.segment_sum(rows, number_of, size)
    return Running(
        decay * running.counts + (1 - decay) * counts, decay * running.sums + (1 - decay) * sums
    )


def restarted(
    running: Running, rows: Float[Array, "n V"], key: Key, least: float
) -> tuple[Running, Array]:
    """Returns the running means with codes below `least` patches begun anew, as one patch each of
    those of the step, and which ones these are [K]."""
    dead = running.counts < least
    new = rows[jax.random.randint(key, running.counts.shape, 0, len(rows))]
    counts = jnp.where(dead, 1.0, running.counts)
    return Running(counts, jnp.where(dead[:, None], new, running.sums)), dead


def _perplexity(share: Any) -> Any:
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12))))


def code_figures(codes: Codes, pictures: Num[np.ndarray, "n H W"]) -> CodeFigures:
    """Returns what the codes keep of grey pictures, 8 bits a pixel, that they need not be fitted
    to."""
    x = pictures.astype(np.float32) / 255
    chosen = nearest_codes(codes, encode_patches(codes, x))
    error = np.square(np.clip(paint_patches(codes, codes.book[chosen]), 0, 1) - x).mean()
    share = np.bincount(chosen.ravel(), minlength=len(codes.book)) / chosen.size
    return CodeFigures(float(error), float((share > 0).mean()), float(_perplexity(share)))
