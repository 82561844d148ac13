"""Algorithms of the literature as settings of `Policy`, and advantages by these settings.

Read `advantages_of` (a number for each answer) and `token_advantages` (for each token, with a value
head), `with_advantages` (of a whole rollout), then the presets. A preset is a start:
`dataclasses.replace` changes what should differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Bool, Float, Numbers
from gptjax.data.layouts import Batch
from gptjax.losses import advantages, surrogates
from gptjax.losses.policy import Policy


class Judged(NamedTuple):
    """What is learned from a group of answers; each is [P G]."""

    advantages: Float[Array, "P G"]
    keep: Bool[Array, "P G"]
    """Whether an answer counts; the others have weight 0."""
    flat: Bool[Array, "P G"]
    """Whether all judged answers of its group have one reward."""


def advantages_of(
    settings: Policy,
    rewards: Float[Numbers, "P G"],
    judged: Bool[Numbers, "P G"],
    finished: Bool[Numbers, "P G"],
    passed: Bool[Numbers, "P G"],
) -> Judged:
    """Compares the rewards of the answers to each prompt.

    With `gae` the numbers are the rewards themselves, for `token_advantages`.

    Args:
      rewards: less `penalty`, if that is part of rewards; any number where not judged.
      judged: has a reward.
      passed: is right.
    """
    rewards, judged = jnp.asarray(rewards, jnp.float32), jnp.asarray(judged, bool)
    level = jnp.broadcast_to(advantages.flat(rewards, judged), judged.shape)
    kind, keep = settings.advantage, judged
    if kind == "group":
        values = advantages.group(rewards, judged, settings.spread)
    elif kind == "centred":
        values = advantages.centred(rewards, judged)
    elif kind == "leave-one-out":
        values = advantages.leave_one_out(rewards, judged)
    elif kind in ("reward", "gae"):
        values = jnp.where(judged, rewards, 0.0)
    else:
        chosen = advantages.best(rewards, judged) if kind == "best" else jnp.asarray(passed, bool)
        keep = judged & chosen
        values = 1.0 * keep
    if settings.unfinished == "leave-out":
        keep = keep & jnp.asarray(finished, bool)
    if settings.flat == "leave-out":
        keep = keep & ~level
    return Judged(values, keep, level)


def penalty(
    settings: Policy,
    old: Float[Numbers, "B T"],
    reference: Float[Numbers, "B T"],
    counted: Float[Numbers, "B T"],
) -> Float[Array, "B T"]:
    """Returns what is subtracted from the reward at each token for its divergence from the
    reference: `kl` times the estimate, 0 where nothing counts."""
    old, reference, counted = (jnp.asarray(x, jnp.float32) for x in (old, reference, counted))
    return settings.kl * jnp.where(
        counted > 0, surrogates.kl(old, reference, settings.kl_kind), 0.0
    )


def token_advantages(
    settings: Policy,
    rewards: Float[Numbers, " B"],
    values: Float[Numbers, "B T"],
    counted: Float[Numbers, "B T"],
    finished: Bool[Numbers, " B"] | Float[Numbers, " B"],
    penalties: Float[Numbers, "B T"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Returns the columns `advantages`, whitened over the whole batch, and `returns` of `gae`.

    The reward lies on the last counted token, whether the answer ended there or was cut short: its
    value on top would be counted twice, and grow without end. With `unfinished` `bootstrap` an
    answer that was cut short has no reward, and what its last token was worth is expected to come.

    Args:
      penalties: of each token, if they are part of rewards.
    """
    values, rewards = jnp.asarray(values, jnp.float32), jnp.asarray(rewards, jnp.float32)
    goes_on = ~jnp.asarray(finished, bool) & (settings.unfinished == "bootstrap")
    each = advantages.at_end(jnp.where(goes_on, 0.0, rewards), counted)
    each = each if penalties is None else each - jnp.asarray(penalties)
    last = jnp.sum(jnp.where(advantages.is_last(counted), values, 0.0), axis=1)
    after = jnp.where(goes_on, last, 0.0)
    found, returns = advantages.gae(each, values, counted, settings.gamma, settings.lam, after)
    return advantages.whiten(found, counted), returns


def with_advantages(
    settings: Policy, batch: Batch, known: Mapping[str, Any], answers: int
) -> Batch:
    """Returns a rollout with the column `advantages`, and weights of 0 where nothing is learned.

    Args:
      known: columns that were read off the model, [B T].
      answers: to each prompt.
    """
    columns = {**(batch.columns or {}), **known}
    counted, shape = batch.weights, (-1, answers)
    rewards, taken = columns["reward"], None
    if settings.kl and settings.kl_in == "reward":
        taken = penalty(settings, columns["old"], columns["reference"], counted)
        if settings.advantage != "gae":
            rewards = rewards - np.asarray(taken).sum(axis=1)
    facts = (columns[name].astype(bool) for name in ("judged", "finished", "passed"))
    found = advantages_of(settings, rewards.reshape(shape), *(x.reshape(shape) for x in facts))
    columns["flat"] = np.asarray(found.flat, np.float32).reshape(-1)
    weights = counted * np.asarray(found.keep, np.float32).reshape(-1, 1)
    if settings.advantage == "gae":
        each, columns["returns"] = token_advantages(
            *(settings, columns["reward"], columns["values"], weights, columns["finished"], taken)
        )
    else:
        each = np.asarray(found.advantages).reshape(-1, 1) * (counted > 0)
    columns["advantages"] = each
    whole = {name: np.asarray(values, np.float32) for name, values in columns.items()}
    return batch._replace(weights=weights, columns=whole)


# --- presets


def grpo(kl: float = 0.04) -> Policy:
    """GRPO: standardised in the group, each answer's mean, KL in the loss. Source: Shao et al.
    2024, arXiv:2402.03300, section 4.1."""
    return Policy("group", normalise="answer", clip=(0.2, 0.2), kl=kl)


def dr_grpo(constant: int) -> Policy:
    """Dr.GRPO: no division by spread or length. Source: Liu et al. 2025, arXiv:2503.20783,
    section 3.2.

    Args:
      constant: the most tokens of an answer.
    """
    return Policy("centred", normalise="constant", constant=constant, clip=(0.2, 0.2))


def dapo() -> Policy:
    """DAPO: a wider upper bound, all tokens alike, without unfinished answers and flat groups.
    Flat groups are left out here, and not sampled anew. Source: Yu et al. 2025, arXiv:2503.14476,
    section 3."""
    return Policy(
        "group", normalise="token", clip=(0.2, 0.28), unfinished="leave-out", flat="leave-out"
    )


def rloo(kl: float = 0.05) -> Policy:
    """RLOO: the mean of the others as baseline, the whole answer as one action, KL in the reward.
    Source: Ahmadian et al. 2024, arXiv:2402.14740; clipped as TRL does, which matters only with
    several updates."""
    return Policy(
        "leave-one-out",
        normalise="answer",
        ratio="joint",
        clip=(0.2, 0.2),
        kl=kl,
        kl_kind="k1",
        kl_in="reward",
    )


def gspo() -> Policy:
    """GSPO: one ratio for each answer, hence tight bounds. Source: Zheng et al. 2025,
    arXiv:2507.18071, sections 4 and 5."""
    return Policy("group", normalise="answer", ratio="sequence", clip=(3e-4, 4e-4))


def cispo(ceiling: float = 5.0) -> Policy:
    """CISPO: bounds the weight of a token, not its slope. Source: MiniMax 2025, arXiv:2506.13585,
    section 3.1; the ceiling of Khatri et al. 2025, arXiv:2510.13786."""
    return Policy("group", normalise="token", surrogate="cispo", ceiling=ceiling)


def reinforce() -> Policy:
    """REINFORCE: reward times ln p of the answer, without a baseline. Source: Williams 1992,
    doi:10.1007/BF00992696."""
    return Policy("reward", normalise="constant", constant=1, surrogate="log")


def nanochat() -> Policy:
    """nanochat's: REINFORCE with the group's mean as baseline, all tokens alike. Source:
    github.com/karpathy/nanochat, scripts/chat_rl.py."""
    return Policy("centred", normalise="token", surrogate="log")


def expert_iteration() -> Policy:
    """Expert iteration: cross-entropy of the right answers. Source: Anthony et al. 2017,
    arXiv:1705.08439; Zelikman et al. 2022, STaR, arXiv:2203.14465."""
    return Policy("right", normalise="token", surrogate="log")


def rejection_sampling() -> Policy:
    """Rejection sampling: cross-entropy of the best answer to each prompt. Source: Dong et al.
    2023, RAFT, arXiv:2304.06767."""
    return Policy("best", normalise="token", surrogate="log")


def ppo(kl: float = 0.05) -> Policy:
    """PPO with a value head and KL in the reward. Source: Schulman et al. 2017, arXiv:1707.06347;
    for language Ziegler et al. 2019, arXiv:1909.08593; numbers as in TRL."""
    return Policy(
        "gae",
        normalise="token",
        clip=(0.2, 0.2),
        kl=kl,
        kl_kind="k1",
        kl_in="reward",
        value=0.1,
        value_clip=0.2,
    )
