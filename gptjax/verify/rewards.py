"""Proofs about learning from rewards: the sampler is the trainer, a rollout is a function of (step,
state), and nothing is learned where no answer is better. (Setting) → Figure or Skipped.

Read `first_answers`, then `sampler`, `on_policy`, `rollout` and `groups`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Params
from gptjax.core.trees import paths
from gptjax.data import Batch
from gptjax.data.rows import Plan
from gptjax.losses import Policy
from gptjax.losses.answers import REFERENCE
from gptjax.rewards import Judgement
from gptjax.runs.open import open_model
from gptjax.sharding.mesh import make_mesh, replicated
from gptjax.train import optim, rollouts, step
from gptjax.train.experiment import Experiment
from gptjax.train.optim import Schedule
from gptjax.train.rollout_columns import rollout_of
from gptjax.train.rollouts import Written
from gptjax.train.sources import row_plan
from gptjax.verify.reading import ROUNDING
from gptjax.verify.setting import Figure, Setting, Skipped, apart, precise, without_dropout
from gptjax.verify.training import descent

SAME = 1e-6
"""Allowed difference of what is the same but for the order of a few operations."""


def policy_of(experiment: Experiment, **changes: Any) -> Policy:
    """Returns the loss with another model as its reference, where it has one."""
    policy = cast(Policy, experiment.loss)
    changes = {"reference": "other"} | changes if policy.kl else changes
    return dataclasses.replace(policy, **changes)


def surrogate_of(experiment: Experiment) -> Policy:
    """Returns the loss with no term but the surrogate."""
    plain = {"kl": 0.0, "entropy": 0.0, "value": 0.0, "correction": "none", "unfinished": "count"}
    known = cast(Policy, experiment.loss).advantage
    return policy_of(experiment, advantage="reward" if known == "gae" else known, **plain)


def subject(setting: Setting) -> tuple[Experiment, Params]:
    """Returns the small experiment in float32 with weights as at the start of a run, and the value
    head of the loss, if any."""
    parts = {"model": setting.exact, "start": None, "adapter": None, "freeze": ()}
    own = dataclasses.replace(setting.small, **parts, loss=policy_of(setting.small))
    params = setting.functions.init(jax.random.key(own.seed))
    return own, {**params, **own.loss.heads(setting.exact)}


def trained(setting: Setting) -> tuple[Experiment, Params] | None:
    """Returns the run's own model in float32 with the weights that it has saved last; `None` if
    there are none."""
    if setting.run is None or not (setting.run / "checkpoints").is_dir():
        return None
    shape = without_dropout(dataclasses.replace(setting.experiment.model, compute="float32"))
    sizes = {"batch": setting.small.batch, "micro_batch": setting.small.micro_batch}
    own = dataclasses.replace(
        *(setting.small,), model=shape, rollout=setting.small.rollout, start=None, **sizes
    )
    opened = open_model(setting.run)
    return own, {**opened.params, **policy_of(own).heads(shape)}


def first_answers(experiment: Experiment, setting: Setting, params: Params) -> list[Written]:
    """Returns the answers of the first rollout."""
    rollout, store = rollout_of(experiment), setting.data.train
    prompts = experiment.batch // rollout.answers
    plan: Plan = row_plan(experiment, store, seed=experiment.seed, rows=prompts)
    problems, mesh = rollouts.problems_of(store, plan, 0), make_mesh(experiment.mesh)
    params = jax.device_put(params, replicated(mesh))
    with jax.default_matmul_precision("highest"):
        return rollouts.write(
            *(experiment, params, setting.data.tokenizer, problems),
            seeds=rollouts.seeds_of(experiment.seed, 0, len(problems)),
            mesh=mesh,
        )


def rated(rewards: np.ndarray) -> Judgement:
    """Returns the verdict that these are the rewards."""
    yes = np.ones(len(rewards), bool)
    return Judgement(rewards.astype(np.float32), yes, yes, {})


def sampler(setting: Setting) -> Figure:
    """Reads the answers of a rollout as training does, each in a row and two in a row: each token
    must have the ln p that was recorded when it was drawn. The weights are those of the run, or
    initial ones."""
    experiment, params = trained(setting) or subject(setting)
    written = first_answers(experiment, setting, params)
    batch = rollouts.rows_of(experiment, written, rated(np.zeros(len(written))))
    loss = policy_of(experiment, temperature=1.0, kl=0.0)
    read = jax.jit(precise(loss.build(experiment.model).read))
    gaps = []
    for one in (batch, two_in_a_row(batch)):
        gap = np.asarray(read(params, one).log_probs) - (one.columns or {})["sampled"]
        gaps.append(np.abs(gap[one.weights > 0]))
    far = np.concatenate(gaps)
    return Figure(
        float(far.max(initial=0)) if np.isfinite(far).all() else math.inf,
        ROUNDING,
        f"nats between ln p of the sampler and of the trainer, {len(gaps[0]):,} tokens",
    )


def two_in_a_row(batch: Batch) -> Batch:
    """Returns the rows of a batch in pairs, the second one behind the padding of the first."""
    even = len(batch.tokens) // 2 * 2

    def joined(x: Any) -> np.ndarray:
        return np.concatenate([x[:even:2], x[1:even:2]], axis=1)

    known = ("tokens", "targets", "weights", "positions")
    segments = joined(np.asarray(batch.segments))
    segments[:, segments.shape[1] // 2 :] *= 2
    return batch._replace(
        **{name: joined(getattr(batch, name)) for name in known},
        segments=segments,
        columns={"sampled": joined((batch.columns or {})["sampled"])},
    )


def on_policy(setting: Setting) -> Figure:
    """Takes the loss of a rollout under the weights that wrote it, with drawn advantages: ratios
    must be 1 and the divergence from itself 0, both exactly, and the gradient that of −A·ln p,
    which is computed from the logits."""
    experiment, params = subject(setting)
    written = first_answers(experiment, setting, params)
    batch = rollouts.rows_of(experiment, written, rated(np.zeros(len(written))))
    counted = (batch.weights > 0).astype(np.float32)
    drawn = np.random.default_rng(0).standard_normal((len(written), 1)).astype(np.float32)
    batch = batch._replace(columns={**(batch.columns or {}), "advantages": drawn * counted})
    settings = dataclasses.replace(
        surrogate_of(experiment), kl=1.0, kl_in="reward", reference="itself"
    )
    loss = settings.build(setting.exact, **{REFERENCE: setting.exact})
    by_hand = _per_token(settings, counted) * drawn

    @jax.jit
    @precise
    def taken(params: Params) -> Any:
        def total(own: Params) -> Any:
            whole, weight, facts = loss(own, {REFERENCE: params}, batch, None)
            return whole / weight, facts

        return jax.grad(total, has_aux=True)(params)

    @jax.jit
    @precise
    def wanted(params: Params) -> Any:
        def total(own: Params) -> Any:
            hidden = model.forward(
                *(setting.exact, own, batch.tokens),
                positions=batch.positions,
                segments=batch.segments,
            ).hidden
            logits = model.unembed(setting.exact, own, hidden) / settings.temperature
            logp = jax.nn.log_softmax(logits.astype(jnp.float32))
            each = jnp.take_along_axis(logp, jnp.asarray(batch.targets)[..., None], -1)[..., 0]
            return -jnp.sum(by_hand * each)

        return jax.grad(total)(params)

    found, facts = taken(params)
    away = abs(float(facts["ratio"]) - counted.sum()) + abs(float(facts["kl"]))
    slope = wanted(params)
    return Figure(
        math.inf if away else apart(found, slope),
        SAME,
        f"ratios or divergence are off by {away:.3g}"
        if away
        else "relative difference of the gradient from that of −A·ln p; ratios are 1",
    )


def _per_token(policy: Policy, counted: np.ndarray) -> np.ndarray:
    """What the gradient of ln p of each token is multiplied by, besides its advantage [B T]."""
    lengths = counted.sum(axis=1, keepdims=True)
    shares = {
        "token": counted / counted.sum(),
        "answer": counted / np.maximum(lengths, 1) / (lengths > 0).sum(),
        "constant": counted / (policy.constant or 1) / (lengths > 0).sum(),
    }
    whole = policy.ratio == "joint" and policy.surrogate != "log"
    return shares[policy.normalise] * (lengths if whole else 1)


def rollout(setting: Setting) -> Figure:
    """Takes the first batch twice from the same (step, state): every bit must be the same. Fewer
    rows at once must write the same ids, with the same ln p to rounding."""
    experiment, params = subject(setting)
    mesh, policy = make_mesh(experiment.mesh), policy_of(experiment)
    models = dict.fromkeys(policy.models, setting.exact)
    params = jax.device_put(params, replicated(mesh))
    frozen = dict.fromkeys(policy.models, params)
    rate = optim.learning_rate(Schedule("constant", warmup=0), 1.0, 10)
    state = step.init(params, optim.build_optimizer(descent(), rate))

    def first(rows: int | None) -> Batch:
        changed = dataclasses.replace(rollout_of(experiment), rows=rows)
        one = dataclasses.replace(experiment, rollout=changed)
        with jax.default_matmul_precision("highest"):
            read = rollouts.rollouts(one, setting.data, mesh, models, frozen)
            return jax.tree.map(np.asarray, read(0, state))

    rows = rollout_of(experiment).rows
    once, again = first(rows), first(rows)
    leaves = zip(paths(once), jax.tree.leaves(once), jax.tree.leaves(again), strict=True)
    differs = [name for name, a, b in leaves if not np.array_equal(a, b)]
    if differs:
        return Figure(math.inf, ROUNDING, f"the same rollout again differs in {', '.join(differs)}")
    fewer = first(max(1, experiment.batch // 4))
    if not np.array_equal(once.tokens, fewer.tokens):
        return Figure(math.inf, ROUNDING, "fewer rows at once write other ids")
    gap = np.abs((once.columns or {})["sampled"] - (fewer.columns or {})["sampled"])
    words = f"nats between ln p of answers written {experiment.batch} and fewer at once"
    return Figure(float(gap.max(initial=0)), ROUNDING, words)


def groups(setting: Setting) -> Figure | Skipped:
    """Gives all answers to a prompt one reward, another for each prompt: the gradient must be
    exactly 0. Of drawn rewards the advantages of each group must sum to 0."""
    experiment, params = subject(setting)
    settings = surrogate_of(experiment)
    if settings.advantage not in ("group", "centred", "leave-one-out"):
        return Skipped(f"advantage {settings.advantage} compares with no group")
    written, own = first_answers(experiment, setting, params), rollout_of(experiment)
    asked = [tuple(one.problem.ids) for one in written]
    level = np.asarray([hash(ids) % 97 for ids in asked], np.float64) / 7
    drawn = np.random.default_rng(0).standard_normal(len(written))

    def learned(rewards: np.ndarray) -> Batch:
        batch = rollouts.rows_of(experiment, written, rated(rewards))
        return settings.learned(batch, {}, own.answers)

    loss = settings.build(setting.exact)
    slope = jax.jit(precise(jax.grad(lambda p, batch: loss(p, {}, batch, None)[0])))
    moved = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(slope(params, learned(level)))]
    if max(moved) != 0:
        words = "the largest gradient where all answers to a prompt have one reward"
        return Figure(max(moved), 0, words)
    each = (learned(drawn).columns or {})["advantages"]
    ends = each[np.arange(len(each)), (each != 0).argmax(axis=1)]
    sums = np.abs(ends.reshape(-1, own.answers).sum(axis=1))
    lonely = own.answers > 1 and not np.abs(ends).max() > 0
    return Figure(
        math.inf if lonely else float(sums.max()),
        SAME * max(1, own.answers),
        f"the largest sum of a group's advantages; {len(sums)} groups of {own.answers} with one"
        " reward have no gradient",
    )
