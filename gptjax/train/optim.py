"""Optimizers and schedules as frozen values, and `build_optimizer`, which makes one Optax chain of
them.

The chain: remember loss and norm → clip the gradients' norm → the optimizer → decay weights →
learning rate → clip weights → prune → average weights.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from gptjax.core.arrays import Array, Params
from gptjax.core.config import formerly, require
from gptjax.train import spikes, updates
from gptjax.train.sparse import Prune, prune_updates
from gptjax.weights import Role

Roles = Any
"""A tree like the parameters whose leaves are `weights.Role`."""


@formerly(added=("restarts",))
@dataclass(frozen=True)
class Schedule:
    """The learning rate as a share of `peak`, for each step.

    A run that is made longer (`--steps`) than a schedule that decays continues it with one more
    cycle: see `lengthened`.
    """

    kind: Literal["constant", "linear", "cosine", "rsqrt", "wsd"] = "cosine"
    """After warm-up: constant; linear decay; cosine decay; decay with 1/√step; or constant with a
    linear decay at the end."""
    warmup: int = 100
    """Steps of linear warm-up from 0 to the peak."""
    floor: float = 0.1
    """Share of the peak where `linear`, `cosine` and `wsd` end."""
    decay_share: float = 0.2
    """Share of all steps that `wsd` spends decaying."""
    steps: int | None = None
    """Its length; `None` means that of the run."""
    restarts: tuple[int, ...] = ()
    """Steps at which a longer run (--steps) began the schedule again. Training fills this in."""

    @property
    def ends(self) -> bool:
        """Its rate falls to a floor, so that a longer run needs one more cycle."""
        return self.kind in ("linear", "cosine", "wsd")

    def __post_init__(self) -> None:
        require(
            self.steps is None or self.steps >= 1,
            f"schedule.steps is {self.steps}; it needs at least 1, or None for the run's own"
            " length.",
        )
        bounds = [0, *self.restarts] + ([] if self.steps is None else [self.steps])
        require(
            all(a < b for a, b in itertools.pairwise(bounds)),
            f"schedule.restarts is {self.restarts}; it needs rising steps below schedule.steps"
            f" ({self.steps}).",
        )
        require(self.warmup >= 0, f"schedule.warmup is {self.warmup}; it needs 0 or more steps.")
        require(
            0 <= self.floor <= 1, f"schedule.floor is {self.floor}; it needs a share in [0, 1]."
        )
        require(
            0 < self.decay_share <= 1,
            f"schedule.decay_share is {self.decay_share}; it needs a share in (0, 1].",
        )


@dataclass(frozen=True)
class Common:
    """Settings of every optimizer."""

    peak: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices and embeddings (not of norms and biases), times the learning
    rate."""
    clip_norm: float | None = 1.0
    """Maximum global norm of the gradients; larger ones are scaled down."""
    clip_weights: float | None = None
    """After each step every weight is clipped to ± this."""
    ema: float | None = None
    """Decay of a running average of the weights, which evaluation and sampling then use."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Type in which trained matrices and embeddings are kept; in bfloat16 each update is rounded
    stochastically."""

    def __post_init__(self) -> None:
        require(
            self.peak > 0,
            f"optim.peak is {self.peak}; it needs a positive learning rate, for example"
            " --optim.peak 1e-3.",
        )
        require(
            self.weight_decay >= 0,
            f"optim.weight_decay is {self.weight_decay}; it needs 0 or more.",
        )
        for name in ("clip_norm", "clip_weights"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"optim.{name} is {value}; it needs a positive number, or None.",
            )
        require(
            self.ema is None or 0 < self.ema < 1,
            f"optim.ema is {self.ema}; it needs a decay in (0, 1), or None.",
        )


@dataclass(frozen=True)
class AdamW(Common):
    """Loshchilov and Hutter 2019, arXiv:1711.05101. With weight_decay 0 it is Adam (Kingma and Ba
    2015, arXiv:1412.6980)."""

    weight_decay: float = 0.1
    """Decoupled decay of matrices and embeddings (not of norms and biases), times the learning
    rate."""
    beta1: float = 0.9
    """Decay of the gradient's running mean."""
    beta2: float = 0.95
    """Decay of its running square."""
    epsilon: float = 1e-8
    """Added to the root of the running square."""
    moment: Literal["float32", "bfloat16"] = "float32"
    """Type in which the gradient's running mean is kept; bfloat16 saves a quarter of the
    optimizer's and weights' memory."""


@dataclass(frozen=True)
class Adam(AdamW):
    """AdamW without decay. Source: Kingma and Ba 2015, arXiv:1412.6980."""

    weight_decay: float = 0.0
    """Decoupled decay of matrices and embeddings (not of norms and biases), times the learning
    rate."""
    beta2: float = 0.999
    """Decay of its running square."""


@dataclass(frozen=True)
class SGD(Common):
    """Stochastic gradient descent with momentum. Source: Sutskever et al. 2013, ICML."""

    peak: float = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """Decay of the running sum of gradients; 0 is plain SGD."""
    nesterov: bool = False
    """Nesterov momentum."""


@dataclass(frozen=True)
class Lion(Common):
    """Sign of an interpolated momentum. Source: Chen et al. 2023, arXiv:2302.06675."""

    peak: float = 1e-4
    """Highest learning rate; about a tenth of AdamW's."""
    weight_decay: float = 1.0
    """Decoupled decay of matrices and embeddings (not of norms and biases), times the learning
    rate."""
    beta1: float = 0.9
    """Interpolation for the update."""
    beta2: float = 0.99
    """Decay of the momentum."""
    moment: Literal["float32", "bfloat16"] = "float32"
    """Type in which the momentum is kept."""


@dataclass(frozen=True)
class Adafactor(Common):
    """Second moments as an outer product of row and column means. Source: Shazeer and Stern 2018,
    arXiv:1804.04235."""

    peak: float = 1e-2
    """Highest learning rate."""
    decay_rate: float = 0.8
    """Exponent of the second moment's growing memory."""


@dataclass(frozen=True)
class Muon(AdamW):
    """Orthogonalised momentum for the matrices of the layers, AdamW for all else. Source: Jordan et
    al. 2024, kellerjordan.github.io/posts/muon.

    Updates are scaled to AdamW's size (Liu et al. 2025, arXiv:2502.16982), so `peak` means the same
    for both.
    """

    momentum: float = 0.95
    """Decay of the momentum that is orthogonalised."""


OptimConfig = AdamW | Adam | SGD | Lion | Adafactor | Muon


REWARM = 0.1
"""Largest share of a later cycle that its warm-up takes."""


def lengthened(schedule: Schedule, steps: int, done: int) -> Schedule:
    """Returns the schedule of a run that is made longer: the one rule for all kinds.

    `constant` and `rsqrt` go on as they are. `linear`, `cosine` and `wsd` have reached their floor,
    where a model learns little or nothing; they begin again where they ended: the rate rises from
    the floor to the peak, in as many steps as at the start but at most a tenth of the new ones,
    and decays to the new end in the same way. Earlier steps keep their rates.

    Source: Ibrahim et al. 2024, Simple and Scalable Strategies to Continually Pre-train Large
    Language Models, arXiv:2403.08763 (re-warming and re-decaying).

    Args:
      schedule: with its length.
      steps: of the longer run.
      done: steps that the run has finished.
    """
    if schedule.steps is None or steps <= schedule.steps:
        return schedule
    if not schedule.ends:
        return dataclasses.replace(schedule, steps=steps)
    if schedule.restarts and done <= schedule.restarts[-1]:  # that cycle has not begun
        return dataclasses.replace(schedule, steps=steps)
    restart = max(schedule.steps, min(done, steps - 1))
    return dataclasses.replace(schedule, steps=steps, restarts=(*schedule.restarts, restart))


def learning_rate(schedule: Schedule, peak: float, steps: int) -> optax.Schedule:
    """Returns step → learning rate. Step s of the warm-up has (s + 1) / (warmup + 1) of the peak,
    so no step is lost at 0.

    Args:
      steps: the schedule's length, where it has none of its own.
    """
    bounds = [0, *schedule.restarts, schedule.steps or steps]
    first, *later = (
        _cycle(schedule, end - begin, again=begin > 0) for begin, end in itertools.pairwise(bounds)
    )

    def rate(step: Array) -> Array:
        share = first(step)
        for begin, cycle in zip(schedule.restarts, later, strict=True):
            share = jnp.where(step < begin, share, cycle(step - begin))
        return peak * share

    return rate


def _cycle(schedule: Schedule, steps: int, again: bool) -> optax.Schedule:
    """Returns step of a cycle → share of the peak.

    Args:
      again: it is not the first: its warm-up is shorter, and rises from the floor.
    """
    warmup = min(schedule.warmup, int(REWARM * steps)) if again else schedule.warmup
    lowest = schedule.floor if again else 0.0
    after = max(1, steps - warmup)
    match schedule.kind:
        case "constant":
            then = optax.constant_schedule(1.0)
        case "linear":
            then = optax.linear_schedule(1.0, schedule.floor, after)
        case "cosine":
            then = optax.cosine_decay_schedule(1.0, after, schedule.floor)
        case "rsqrt":

            def then(step):
                return jnp.sqrt(max(1, warmup) / (step + max(1.0, warmup)))

        case "wsd":
            fall = max(1, round(steps * schedule.decay_share))
            then = optax.linear_schedule(
                1.0, schedule.floor, fall, transition_begin=max(0, after - fall)
            )

    def share(step: Array) -> Array:
        rising = lowest + (1 - lowest) * (step + 1) / (warmup + 1)
        fallen = jnp.maximum(then(jnp.maximum(step - warmup, 0)), schedule.floor * schedule.ends)
        return jnp.where(step < warmup, rising, fallen)

    return share


def decayed(params: Params, roles: Roles | None = None) -> Any:
    """Whether weight decay shrinks each parameter, as its role says; not DoRA's magnitudes."""

    def one(path: tuple, leaf: Any) -> bool:
        magnitude = getattr(path[-1], "name", "") == "magnitude" if path else False
        return role_of(roles, path, leaf)[0].decays and not magnitude

    return jax.tree_util.tree_map_with_path(one, params)


def role_of(roles: Roles | None, path: tuple, leaf: Any) -> tuple[Role, bool]:
    """The role of a parameter, and whether it is a whole weight, not a leaf of an adapter or of
    another kind of weight. What has no role is judged by its name."""
    node, names = roles, [key.key for key in path if hasattr(key, "key")]
    for name in names:
        if isinstance(node, Role) or node is None:
            break
        node = node.get(name)
    if node is None:
        kernel = names[-1:] == ["kernel"]
        inputs = 2 if names[-2:-1] == ["out"] else 1
        stacked = ("layers" in names) + ("experts" in names)
        node = Role(stacked, kernel * inputs, decays=kernel or names[-1:] == ["embedding"])
    return node, len(names) == len(path)


def build_optimizer(
    config: OptimConfig,
    rate: optax.Schedule,
    roles: Roles | None = None,
    prune: Prune | None = None,
    transfer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Chains the transformations that the config asks for.

    Args:
      roles: `model.roles` of the trained model. `None` judges parameters by their names.
      prune: which weights become zero, and stay so.
      transfer: of updates before weights decay; see `transfer.scaled_updates`.
    """
    decays = functools.partial(decayed, roles=roles)
    chain: list[Any] = [spikes.watch()]
    chain += [updates.clip_norm(config.clip_norm)] if config.clip_norm else []
    chain += [_direction(config, roles)] + ([transfer] if transfer else [])
    chain += (
        [optax.add_decayed_weights(config.weight_decay, mask=decays)] if config.weight_decay else []
    )
    chain += [updates.scale_by_rate(rate)]
    chain += [updates.clip_weights(config.clip_weights)] if config.clip_weights else []
    if prune is not None and prune.used:
        chain += [prune_updates(prune, functools.partial(role_of, roles))]
    chain += [updates.average(config.ema)] if config.ema else []
    return optax.chain(*chain)


def _direction(config: OptimConfig, roles: Roles | None) -> optax.GradientTransformation:
    match config:
        case Muon():
            return _muon(config, roles)
        case AdamW():
            adam = optax.scale_by_adam(
                config.beta1, config.beta2, config.epsilon, mu_dtype=config.moment
            )
            return updates.in_place(adam, config) if config.moment == "float32" else adam
        case Lion():
            return optax.scale_by_lion(config.beta1, config.beta2, mu_dtype=config.moment)
        case Adafactor():
            return optax.chain(
                optax.scale_by_factored_rms(
                    decay_rate=config.decay_rate, min_dim_size_to_factor=32
                ),
                optax.clip_by_block_rms(1.0),
            )
        case SGD():
            return (
                optax.trace(config.momentum, config.nesterov)
                if config.momentum
                else optax.identity()
            )
    raise TypeError(f"{config!r} is not an optimizer.")


def _muon(config: Muon, roles: Roles | None) -> optax.GradientTransformation:
    """Matrices of the layers, each layer's and each expert's for itself; the blocks that predict
    further tokens, and adapters, stay with AdamW."""
    from optax.contrib import MuonDimensionNumbers, muon

    def shape(path: tuple, leaf: Any) -> Any:
        role, whole = role_of(roles, path, leaf)
        if not (whole and updates.orthogonalised(role, path)):
            return None
        dims = tuple(range(role.stacked, leaf.ndim))
        return MuonDimensionNumbers(dims[: role.inputs], dims[role.inputs :])

    def dimensions(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(shape, tree)

    return muon(
        # the chain decays and scales afterwards; muon's own scaling by the rate would turn the sign
        -1.0,
        beta=config.momentum,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        mu_dtype=config.moment,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )
