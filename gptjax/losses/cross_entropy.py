"""(params, batch, key) → (sum, weight, metrics). Sums, never means: micro-batches and devices with
unequal weights then average rightly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import require
from gptjax.model import ModelConfig
from gptjax.weights.weight import dense

Objective = Callable[
    [Params, Any, Key | None], tuple[Float[Array, ""], Float[Array, ""], dict[str, Array]]
]


@dataclass(frozen=True)
class FGM:
    """Half of the loss is at embedded tokens that are moved a step up its slope.

    Source: Miyato et al. 2017, arXiv:1605.07725, section 3, without its normalised embeddings.
    """

    size: float = 1.0
    """Length of a row's step, over all of its embedded tokens."""

    def __post_init__(self) -> None:
        require(self.size > 0, f"loss.adversarial.size is {self.size}; it needs a positive length.")


@dataclass(frozen=True)
class FreeLB:
    """The loss is the mean over steps up its slope, from a random place near the embedded tokens.
    Source: Zhu et al. 2020, arXiv:1909.11764, algorithm 1."""

    steps: int = 3
    """Places at which the loss is taken."""
    size: float = 0.1
    """Length of a row's step."""
    radius: float = 0.2
    """No place is farther from the embedded tokens of a row; the first is up to so far."""

    def __post_init__(self) -> None:
        for name in ("steps", "size", "radius"):
            require(
                getattr(self, name) > 0,
                f"loss.adversarial.{name} is {getattr(self, name)}; it needs a positive number.",
            )


@dataclass(frozen=True)
class Distillation:
    """A part of the loss is how far the predictions are from those of a trained model with the same
    tokenizer.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2: KL(teacher ‖ student) of softened
    predictions, times the temperature squared.
    """

    run: str
    """The teacher's run directory; its newest checkpoint is read."""
    temperature: float = 2.0
    """Logits of both are divided by it."""
    share: float = 0.5
    """Weight of this part; what is left to 1 is that of the targets."""

    def __post_init__(self) -> None:
        require(
            self.temperature > 0,
            f"loss.distillation.temperature is {self.temperature}; it needs a positive number.",
        )
        require(
            0 < self.share <= 1,
            f"loss.distillation.share is {self.share}; it needs a share in (0, 1].",
        )


class Teacher(NamedTuple):
    """A trained model whose predictions are learned."""

    config: ModelConfig
    params: Params
    told: Distillation


@dataclass(frozen=True)
class Loss:
    """What training makes small besides −ln p(target). Evaluation is without it."""

    label_smoothing: float = 0.0
    """Share of a target that all tokens have in equal parts. Source: Szegedy et al. 2016,
    arXiv:1512.00567, section 7."""
    z: float = 0.0
    """Weight of the squared log-sum-exp of the logits. Source: Chowdhery et al. 2022, PaLM,
    arXiv:2204.02311, section 5."""
    adversarial: FGM | FreeLB | None = None
    """Nudges of the embedded tokens that make the loss larger."""
    ahead: float = 1.0
    """Weight of each further token that a model with `ahead` predicts besides the next one."""
    distillation: Distillation | None = None
    """A trained model to learn from."""
    vocab_parts: int = 1
    """Parts of the vocabulary whose logits are held at once, one after the other; memory falls, the
    loss is the same to rounding."""

    def __post_init__(self) -> None:
        require(
            0 <= self.label_smoothing < 1,
            f"loss.label_smoothing is {self.label_smoothing}; it needs a share in [0, 1).",
        )
        require(self.z >= 0, f"loss.z is {self.z}; it needs 0 or more.")
        require(
            self.vocab_parts >= 1, f"loss.vocab_parts is {self.vocab_parts}; it needs at least 1."
        )
        whole = self.vocab_parts == 1 or self.distillation is None
        require(
            whole,
            f"loss.vocab_parts is {self.vocab_parts}, and loss.distillation needs the logits of all"
            " tokens at once; leave it at 1.",
        )
        require(self.ahead >= 0, f"loss.ahead is {self.ahead}; it needs 0 or more.")


def training(config: ModelConfig, loss: Loss, teacher: Teacher | None = None) -> Objective:
    """What a run with these settings makes small."""
    plain = cross_entropy(config, loss, teacher=teacher)
    match loss.adversarial:
        case FGM(size):
            return adversarial(plain, steps=1, size=size, radius=size, around=True)
        case FreeLB(steps, size, radius):
            return adversarial(plain, steps=steps, size=size, radius=radius)
    return plain


def cross_entropy(
    config: ModelConfig,
    loss: Loss = Loss(),
    *,
    auxiliary: bool = True,
    accuracy: bool = False,
    teacher: Teacher | None = None,  # noqa: B008 it is frozen
) -> Objective:
    """The weighted sum of −ln p(target), in nats, over all positions of a batch; the key turns
    dropout on.

    A weight of 0 is how a position is left out, whatever its target is. An unknown target that
    counts makes the sum NaN.

    Args:
      loss: smoothing, z and further tokens are of this function, adversarial training is
        `adversarial`'s.
      auxiliary: add the losses with which layers of experts keep themselves balanced, and those of
        further tokens.
      accuracy: tell how much weight the likeliest tokens have that are the targets (`correct`), and
        how many pieces are all correct (`exact`, of `pieces`).
      teacher: a model to learn from too.
    """

    in_parts = loss.vocab_parts > 1 and not accuracy and not config.classes

    def objective(
        params: Params, batch: Any, key: Key | None
    ) -> tuple[Array, Array, dict[str, Array]]:
        if batch.targets.shape != batch.tokens.shape or batch.weights.shape != batch.tokens.shape:
            shapes = (
                f"tokens {batch.tokens.shape}, targets {batch.targets.shape}, weights"
                f" {batch.weights.shape}"
            )
            raise ValueError(f"a batch needs one shape [B T] for all: {shapes}.")
        out = read(config, params, batch, key)
        logits = None if in_parts else predictions(config, params, batch, out)

        def counted(losses, weights=batch.weights):
            return jnp.sum(jnp.where(weights == 0, 0.0, losses * weights))

        lost = functools.partial(losses_in_parts, config, params, loss.vocab_parts)
        told = batch.targets, loss.label_smoothing, loss.z
        total, weight, sums = (
            counted(lost(out.hidden, *told) if in_parts else token_losses(logits, *told)),
            jnp.sum(batch.weights),
            {},
        )
        if teacher is not None:
            sums["teacher"] = counted(_from_teacher(teacher, batch, logits))
            total = (1 - teacher.told.share) * total + teacher.told.share * sums["teacher"]
        if accuracy:
            sums |= _correct(logits, batch)
        if auxiliary and config.ahead:
            further = zip(
                _further(batch, config.ahead),
                _look_ahead(config, params, batch, out.hidden, key),
                strict=True,
            )
            sums["ahead"] = sum(
                counted(lost(hidden, targets), weights) for (targets, weights), hidden in further
            )
            total = total + loss.ahead * sums["ahead"]
        if auxiliary and out.aux:
            sums |= {
                name: jnp.sum(out.aux[name] * batch.weights[None])
                for name in ("balance", "router_z")
            }
            total = (
                total
                + config.experts.balance * sums["balance"]
                + config.experts.router_z * sums["router_z"]
            )
            sums |= {name: out.aux[name] for name in ("load", "dropped")}
        return total, weight, sums

    return objective


def predict(
    config: ModelConfig, params: Params, batch: Any, key: Key | None
) -> tuple[Float[Array, "B T V"], model.Output]:
    """Logits of every position of a batch, and what `forward` gives."""
    out = read(config, params, batch, key)
    return predictions(config, params, batch, out), out


def read(config: ModelConfig, params: Params, batch: Any, key: Key | None) -> model.Output:
    """Reads a batch."""
    memory = model.encode(
        config,
        params,
        batch.side,
        key=None if key is None else jax.random.fold_in(key, config.num_layers + 1),
    )
    told = {
        "positions": batch.positions,
        "segments": batch.segments,
        "memory": memory,
        "perturbation": batch.perturbation,
        "prefix": batch.prefix,
    }
    return model.forward(config, params, batch.tokens, **told, key=key)


def predictions(
    config: ModelConfig, params: Params, batch: Any, out: model.Output
) -> Float[Array, "B T V"]:
    """Logits of every position of a batch that was read."""
    if config.classes:
        return model.classify(config, params, out.hidden, batch.positions, batch.segments)
    return model.unembed(config, params, out.hidden)


def summary(sums: dict[str, Array], weight: Float[Array, ""]) -> dict[str, Array]:
    """What an objective's metrics, summed over all parts of a batch, mean: one number each, over
    all layers of experts.

    Returns:
      `teacher_loss` and `ahead_loss` (of all further tokens) a token; `balance_loss` (1 is perfect)
      and `router_z_loss` of the mean layer; `expert_load_max` and `_min`, the load of the busiest
      and the idlest expert of any layer relative to a fair share; `dropped_share` of all choices.
      Nothing without these.
    """
    means = {
        f"{name}_loss": sums[name] / jnp.maximum(weight, 1e-6)
        for name in ("teacher", "ahead")
        if name in sums
    }
    if "load" not in sums:
        return means
    load, layers = sums["load"], sums["load"].shape[0]
    fair = load / jnp.maximum(load.mean(-1, keepdims=True), 1e-6)
    means |= {
        f"{name}_loss": sums[name] / jnp.maximum(weight * layers, 1e-6)
        for name in ("balance", "router_z")
    }
    dropped = sums["dropped"].sum() / jnp.maximum(load.sum(), 1e-6)
    return means | {
        "expert_load_max": fair.max(),
        "expert_load_min": fair.min(),
        "dropped_share": dropped,
    }


def token_losses(
    logits: Float[Array, "B T V"], targets: Array, smoothing: float = 0.0, z: float = 0.0
) -> Float[Array, "B T"]:
    """−ln softmax(logits)[target] of each position, in float32; NaN where the target is no class,
    which indexing would clamp or wrap.

    Args:
      smoothing: share of the target that all tokens have in equal parts.
      z: weight of the squared log-sum-exp.
    """
    known, total = (targets >= 0) & (targets < logits.shape[-1]), jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, jnp.where(known, targets, 0)[:, :, None], axis=-1)[:, :, 0]
    return _lost(known, total, chosen, logits.mean(-1), smoothing, z)


def _lost(
    known: Array, total: Array, chosen: Array, mean: Array, smoothing: float, z: float
) -> Float[Array, "B T"]:
    """The loss of a position by its log-sum-exp, its target's logit and the mean of all; NaN where
    the target is not known."""
    chosen = (1 - smoothing) * chosen + smoothing * mean if smoothing else chosen
    losses = jnp.where(known, total - chosen, jnp.nan)
    return losses + z * jnp.square(total) if z else losses


def losses_in_parts(
    config: ModelConfig,
    params: Params,
    parts: int,
    hidden: Float[Array, "B T D"],
    targets: Array,
    smoothing: float = 0.0,
    z: float = 0.0,
) -> Float[Array, "B T"]:
    """What `token_losses` gives of the hidden states' logits, of which only those of one part of
    the vocabulary are held at a time.

    A running log-sum-exp goes over the parts, and the backward pass makes each part's logits once
    more. Parts of the vocabulary, not of the positions, so that the gradient of the output's kernel
    is summed over the devices once and not once a part.
    """
    if parts == 1:
        return token_losses(model.unembed(config, params, hidden), targets, smoothing, z)
    hidden, kernel, bias = model.to_output(config, params, hidden)
    size, tokens = -(-kernel.shape[1] // parts), kernel.shape[1]

    def filled(x):
        return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, parts * size - tokens))).reshape(
            *x.shape[:-1], parts, size
        )

    kernels, biases = (
        jnp.moveaxis(filled(dense(kernel).astype(hidden.dtype)), 1, 0),
        None if bias is None else filled(bias),
    )
    wide = hidden.astype(
        jnp.float32
    )  # its gradient is a sum over parts, and is added up in this type

    @jax.checkpoint
    def add(running: tuple[Array, ...], part: tuple[Any, ...]) -> tuple[tuple[Array, ...], None]:
        (most, total, chosen, summed), (kernel, bias, begin) = running, part
        logits = model.logits_of(config, wide.astype(hidden.dtype), kernel, bias)
        number = (begin + jnp.arange(size))[None, None]
        seen = jnp.where(number < tokens, logits, -jnp.inf)
        higher = jnp.maximum(most, jax.lax.stop_gradient(seen.max(-1)))
        total = total * jnp.exp(most - higher) + jnp.exp(seen - higher[..., None]).sum(-1)
        chosen = chosen + jnp.where(number == targets[..., None], logits, 0.0).sum(-1)
        return (
            higher,
            total,
            chosen,
            summed + jnp.where(number < tokens, logits, 0.0).sum(-1),
        ), None

    zeros = jnp.zeros(targets.shape)
    found = jax.lax.scan(
        add,
        (jnp.full(targets.shape, -jnp.inf), zeros, zeros, zeros),
        (kernels, biases, size * jnp.arange(parts)),
    )[0]
    most, total, chosen, summed = found
    return _lost(
        (targets >= 0) & (targets < tokens),
        most + jnp.log(total),
        chosen,
        summed / tokens,
        smoothing,
        z,
    )


# --- what else is told, or made small
# ----------------------------------------------------------------------------


def _correct(logits: Float[Array, "B T V"], batch: Any) -> dict[str, Array]:
    """Weight of the positions whose likeliest token is the target; pieces all of whose tokens are,
    which greedy decoding would write; all pieces."""
    right, counts = jnp.argmax(logits, axis=-1) == batch.targets, batch.weights > 0
    piece = jnp.zeros_like(batch.targets) if batch.segments is None else batch.segments
    by_piece = jax.vmap(
        lambda what, piece: jax.ops.segment_max(
            what.astype(jnp.int32), piece, batch.targets.shape[1] + 1
        )
    )
    there, wrong = by_piece(counts, piece) > 0, by_piece(counts & ~right, piece) > 0
    return {
        "correct": jnp.sum(batch.weights * right),
        "exact": jnp.sum(there & ~wrong),
        "pieces": jnp.sum(there),
    }


def _further(batch: Any, ahead: int) -> list[tuple[Array, Array]]:
    """Targets and weights of the token after the target, the one after that, and so on; beyond a
    piece's end nothing counts."""

    def shifted(x, by):
        return jnp.pad(x[:, by:], ((0, 0), (0, min(by, x.shape[1]))))

    found = []
    for by in range(1, ahead + 1):
        weights = shifted(batch.weights, by)
        if batch.segments is not None:
            weights = weights * (shifted(batch.segments, by) == batch.segments)
        if batch.positions is not None:
            weights = (
                weights
                * (shifted(batch.positions, by) == batch.positions + by)
                * (batch.positions >= 0)
            )
        found.append((shifted(batch.targets, by), weights))
    return found


def _look_ahead(
    config: ModelConfig, params: Params, batch: Any, hidden: Float[Array, "B T D"], key: Key | None
) -> list[Float[Array, "B T D"]]:
    own = None if key is None else jax.random.fold_in(key, config.num_layers + 2)
    return model.look_ahead(
        config, params, hidden, batch.positions, batch.segments, batch.prefix, own
    )


def _from_teacher(
    teacher: Teacher, batch: Any, logits: Float[Array, "B T V"]
) -> Float[Array, "B T"]:
    """KL(teacher ‖ student) at the temperature, times its square; the teacher reads the tokens as
    they are."""
    heat = teacher.told.temperature
    theirs = predict(
        teacher.config,
        jax.lax.stop_gradient(teacher.params),
        batch._replace(perturbation=None),
        None,
    )[0]
    wanted, found = jax.nn.log_softmax(theirs / heat), jax.nn.log_softmax(logits / heat)
    return heat**2 * (jnp.exp(wanted) * (wanted - found)).sum(-1)


# --- adversarial training
# ----------------------------------------------------------------------------------------


def adversarial(
    objective: Objective, *, steps: int, size: float, radius: float, around: bool = False
) -> Objective:
    """The objective's mean over `steps` perturbations of each row's embedded tokens, each a step of length
    `size` up the slope from the last.

    A row is nudged by its own slope, so that a batch can be read in any parts. Each perturbation costs a
    gradient more.

    Args:
      radius: no perturbation of a row is longer.
      around: the first perturbation is from nowhere and where it began counts too (FGM); otherwise from a
        random place (FreeLB), with a key.
    """

    def nudged(
        params: Params, batch: Any, key: Key | None
    ) -> tuple[Array, Array, dict[str, Array]]:
        shape, fixed = (
            (*batch.tokens.shape, params["embedding"]["embedding"].shape[1]),
            jax.lax.stop_gradient(params),
        )
        slope = jax.grad(
            lambda perturbation: objective(fixed, batch._replace(perturbation=perturbation), key)[0]
        )
        perturbation, found = jnp.zeros(shape), []
        if around:
            found.append(objective(params, batch, key))
        elif key is not None:
            draw = jax.random.uniform(jax.random.fold_in(key, _NUDGES), shape, minval=-1.0)
            perturbation = radius * draw / math.sqrt(math.prod(shape[1:]))
        for i in range(steps):
            if around or i:
                perturbation = _within(perturbation + size * _unit(slope(perturbation)), radius)
            found.append(
                objective(
                    params, batch._replace(perturbation=jax.lax.stop_gradient(perturbation)), key
                )
            )
        return jax.tree.map(lambda *parts: sum(parts) / len(parts), *found)

    return nudged


_NUDGES = 2**20
"""Sets the randomness of perturbations apart from that of layers."""


def _unit(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Each row divided by its length."""
    return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True)), 1e-12)


def _within(x: Float[Array, "B T D"], radius: float) -> Float[Array, "B T D"]:
    """Each row shortened to at most `radius`."""
    length = jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True))
    return x * jnp.minimum(1.0, radius / jnp.maximum(length, 1e-12))
