"""Losses of preferences, as functions of log-probabilities: arrays in, arrays out, no mean, no
model.

Every loss of pairs takes the gains of both answers, the log-probability under the policy minus that
under the reference, summed over the tokens of the answer. Without a reference, the gain is the
log-probability itself. Read `Pair`, `sigmoid` (DPO), then the others; `PAIR_LOSSES` names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from gptjax.core.arrays import Array, Bool, Float

Pairs = Float[Array, "..."]
"""One number for each pair."""


class Pair(NamedTuple):
    """The same quantity of two answers to one prompt."""

    chosen: Pairs
    rejected: Pairs

    @property
    def difference(self) -> Pairs:
        """Chosen minus rejected."""
        return self.chosen - self.rejected


class PairSettings(NamedTuple):
    """What the losses of pairs depend on; each uses some of it."""

    beta: float = 0.1
    """How strongly the policy is held to the reference; the reward is β times the gain."""
    smoothing: float = 0.0
    """Probability that a label is wrong, in [0, 0.5)."""
    gamma: float = 0.0
    """Reward by which the chosen answer should lead (SimPO)."""
    tau: float = 0.05
    """Temperature of the blend of DiscoPOP."""


def sigmoid(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """DPO: −ln σ of the lead in reward; with smoothing the conservative form (cDPO).

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7.
    """
    lead, smoothing = settings.beta * gain.difference, settings.smoothing
    return -(1 - smoothing) * log_sigmoid(lead) - smoothing * log_sigmoid(-lead)


def robust(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """DPO without bias where labels are wrong with probability `smoothing`.

    Source: Chowdhury et al. 2024, arXiv:2403.00409, equation 9.
    """
    lead, wrong = settings.beta * gain.difference, settings.smoothing
    return (-(1 - wrong) * log_sigmoid(lead) + wrong * log_sigmoid(-lead)) / (1 - 2 * wrong)


def hinge(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """SLiC: how much the lead in reward falls short of 1. Source: Zhao et al. 2023,
    arXiv:2305.10425, section 2."""
    return jax.nn.relu(1 - settings.beta * gain.difference)


def ipo(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """IPO: the squared distance of the lead from 1/(2β), with gains per token.

    Source: Azar et al. 2023, arXiv:2310.12036, equation 17; the mean over tokens as in TRL.
    """
    return jnp.square(per_token(gain, lengths).difference - 1 / (2 * settings.beta))


def exo(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """EXO for pairs: the reverse KL from the policy's preference to a label smoothed by
    `smoothing`, which has to be positive.

    Source: Ji et al. 2024, arXiv:2402.00856, equation 16.
    """
    lead, wrong = settings.beta * gain.difference, settings.smoothing
    right = jax.nn.sigmoid(lead) * (log_sigmoid(lead) - math.log1p(-wrong))
    return right + jax.nn.sigmoid(-lead) * (log_sigmoid(-lead) - math.log(wrong))


def nca(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """NCA for pairs: each reward is judged alone. Source: Chen et al. 2024, arXiv:2402.05369,
    equation 11."""
    chosen, rejected = settings.beta * gain.chosen, settings.beta * gain.rejected
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def bco(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """BCO for pairs, without a running baseline: the chosen is classified as good, the rejected as
    bad. Source: Jung et al. 2024, arXiv:2404.04656, equation 8."""
    return -log_sigmoid(settings.beta * gain.chosen) - log_sigmoid(-settings.beta * gain.rejected)


def sppo(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """SPPO with hard labels: gains are pulled to ±1/(2β). Source: Wu et al. 2024, arXiv:2405.00675,
    equation 4.7."""
    goal = 0.5 / settings.beta
    return jnp.square(gain.chosen - goal) + jnp.square(gain.rejected + goal)


def apo_zero(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """APO-zero: raises the chosen and lowers the rejected. Source: D'Oosterlinck et al. 2024,
    arXiv:2408.06266, equation 3."""
    chosen, rejected = settings.beta * gain.chosen, settings.beta * gain.rejected
    return 1 - jax.nn.sigmoid(chosen) + jax.nn.sigmoid(rejected)


def apo_down(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """APO-down: lowers both, the rejected more. Source: as `apo_zero`, equation 4."""
    lead = settings.beta * gain.difference
    return jax.nn.sigmoid(settings.beta * gain.chosen) + 1 - jax.nn.sigmoid(lead)


def sigmoid_norm(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """DPO with gains per token; without a reference and with `gamma` it is SimPO.

    Source: Meng et al. 2024, SimPO, arXiv:2405.14734, equation 6; Lambert et al. 2024, Tülu 3,
    arXiv:2411.15124, section 5.1.2.
    """
    lead = settings.beta * per_token(gain, lengths).difference - settings.gamma
    smoothing = settings.smoothing
    return -(1 - smoothing) * log_sigmoid(lead) - smoothing * log_sigmoid(-lead)


def discopop(gain: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """DiscoPOP: a blend of the logistic and the exponential loss. Source: Lu et al. 2024,
    arXiv:2406.08414, equation 5."""
    lead = settings.beta * gain.difference
    share = jax.nn.sigmoid(lead / settings.tau)
    return -log_sigmoid(lead) * (1 - share) + jnp.exp(-lead) * share


def orpo(log_probs: Pair, lengths: Pair, settings: PairSettings) -> Pairs:
    """ORPO's term of odds, −β ln σ of the log odds ratio of the mean token. It has no reference;
    `log_probs` are those of the policy.

    Source: Hong et al. 2024, arXiv:2403.07691, equation 7.
    """
    mean = per_token(log_probs, lengths)
    odds = mean.difference - (_log1mexp(mean.chosen) - _log1mexp(mean.rejected))
    return -settings.beta * log_sigmoid(odds)


def per_token(pair: Pair, lengths: Pair) -> Pair:
    """Divides sums by the number of tokens; an empty answer has the mean 0."""
    return Pair(*(x / jnp.maximum(n, 1) for x, n in zip(pair, lengths, strict=True)))


def _log1mexp(x: Array) -> Array:
    """ln(1 − eˣ) for x < 0, exact near 0 and for large −x; 0 is moved by one rounding."""
    x = jnp.minimum(x, -jnp.finfo(x.dtype).tiny)
    near = x > -math.log(2)
    by_expm1 = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    return jnp.where(near, by_expm1, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


PairLoss = Callable[[Pair, Pair, PairSettings], Pairs]
"""(gains, lengths, settings) → loss of each pair."""

PAIR_LOSSES: Mapping[str, PairLoss] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "exo": exo,
    "nca": nca,
    "bco": bco,
    "sppo": sppo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "sigmoid_norm": sigmoid_norm,
    "discopop": discopop,
    "orpo": orpo,
}


def kto(
    gain: Pairs,
    desirable: Bool[Array, "..."],
    baseline: Pairs | float,
    beta: float,
) -> Pairs:
    """KTO: 1 − σ of how far the reward of a good answer exceeds the baseline, or that of a bad one
    stays below it. The baseline, the policy's KL from the reference, has no gradient.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, equation 8.
    """
    lead = beta * (gain - jax.lax.stop_gradient(jnp.asarray(baseline)))
    return 1 - jax.nn.sigmoid(jnp.where(desirable, lead, -lead))


def bradley_terry(score: Pair, margin: Pairs | float = 0.0, centre: float = 0.0) -> Pairs:
    """−ln σ of the lead in score over a margin, plus `centre` times the squared sum of both scores,
    which keeps them around 0.

    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1; margin: Touvron et al. 2023,
    arXiv:2307.09288, equation 2; centring: Eisenstein et al. 2023, arXiv:2312.09244, section 2.
    """
    losses = -log_sigmoid(score.difference - margin)
    return losses + centre * jnp.square(score.chosen + score.rejected) if centre else losses


def generalised_jsd(
    student: Float[Array, "... V"], teacher: Float[Array, "... V"], share: float
) -> Float[Array, "..."]:
    """The generalised Jensen–Shannon divergence of distributions given by log-probabilities.

    Args:
      share: weight of the teacher in the mixture; 0 is KL(teacher ‖ student), 1 KL(student ‖
        teacher).

    Source: Agarwal et al. 2023, GKD, arXiv:2306.13649, equation 1.
    """
    if share == 0:
        return _kl(teacher, student)
    if share == 1:
        return _kl(student, teacher)
    mixture = jnp.logaddexp(student + math.log1p(-share), teacher + math.log(share))
    return share * _kl(teacher, mixture) + (1 - share) * _kl(student, mixture)


def _kl(p: Float[Array, "... V"], q: Float[Array, "... V"]) -> Float[Array, "..."]:
    return jnp.sum(jnp.where(p == -jnp.inf, 0.0, jnp.exp(p) * (p - q)), axis=-1)
