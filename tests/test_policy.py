"""Laws of learning from rewards: golden values, advantages of groups, exactness however a batch is
split, and what policy gradients have in common with cross-entropy."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_preferences import assert_any_split_is_one_step
from variants import PLAIN

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.data import Batch
from gptjax.losses import CRITIC, CrossEntropy, Policy, advantages_of, token_advantages
from gptjax.losses import policy_presets as presets
from gptjax.losses.advantages import best, centred, gae, group, leave_one_out, whiten
from gptjax.losses.policy import Read, value_of
from gptjax.losses.surrogates import clipped, kl
from gptjax.train import optim

LOG_PROBS = jnp.array([[-1, -0.5, -2, 0], [-0.2, -1.5, 0, 0]])
OLD = jnp.array([[-1.3, -0.5, -1.6, 0], [-0.2, -1.1, 0, 0]])
REFERENCE = jnp.array([[-1.1, -0.7, -1.9, 0], [-0.3, -1.2, 0, 0]])
COUNTED = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]], jnp.float32)
SIGNS = jnp.array([1.0, -1.0])

CLIP = (0.2, 0.2)
GOLDEN = {
    "grpo": (presets.grpo(kl=0.0), -0.02838667),
    "grpo with kl": (presets.grpo(), -0.02764812),
    "dapo of even bounds": (replace(presets.dapo(), clip=CLIP), -0.21406401),
    "dapo": (presets.dapo(), -0.23006401),
    "dr_grpo": (presets.dr_grpo(4), -0.13379001),
    "cispo": (presets.cispo(), 0.39700377),
    "gspo of wide bounds": (replace(presets.gspo(), clip=CLIP), -0.07424267),
}
"""From the formulas of TRL 1.16.0's source, in float64."""


def facts(rows: int, **known) -> dict:
    """What a batch says of each answer."""
    names = ("reward", "passed", "finished", "judged", "flat")
    return {name: np.ones(rows, np.float32) * known.get(name, name != "flat") for name in names}


def of_log_probs(settings: Policy, log_probs, counted, columns: dict):
    """The loss as a function of log-probabilities that no model gave: (mean, its slope, sums)."""
    loss = replace(settings, reference="other").build(PLAIN)
    zeros = np.zeros(log_probs.shape, np.int32)
    known = facts(len(zeros)) | {"sampled": columns["old"]} | columns
    batch = Batch(zeros, zeros, counted, columns=known)

    def mean(log_probs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(loss), "read", lambda *_: Read(log_probs, None, None))
            total, weight, sums = loss({}, {}, batch, None)
        return total / weight, (sums, loss)

    (value, (sums, loss)), slope = jax.value_and_grad(mean, has_aux=True)(log_probs)
    named = {n: r(sums, 1.0) for n, r in loss.metrics().items() if n != "entropy"}
    return float(value), np.asarray(slope), named


def golden_columns() -> dict:
    return {
        "old": OLD,
        "reference": REFERENCE,
        "advantages": jnp.broadcast_to(SIGNS[:, None], OLD.shape),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_an_objective_has_its_golden_value(name):
    settings, wanted = GOLDEN[name]
    value, slope, _ = of_log_probs(settings, LOG_PROBS, COUNTED, golden_columns())
    assert value == pytest.approx(wanted, rel=1e-5)
    if name == "grpo":
        rows = [[0, -0.166667, -0.111720, 0], [0.25, 0, 0, 0]]
        np.testing.assert_allclose(slope, rows, atol=1e-6)


@pytest.mark.parametrize(
    ("sign", "ratio", "value", "slope"),
    [
        *((1, 0.5, -0.5, -0.5), (1, 1, -1, -1), (1, 1.5, -1.2, 0)),
        *((-1, 0.5, 0.8, 0), (-1, 1, 1, 1), (-1, 1.5, 1.5, 1.5)),
    ],
)
def test_a_clip_takes_gain_beyond_its_bounds_and_never_loss(sign, ratio, value, slope):
    found = jax.value_and_grad(lambda x: clipped(x, jnp.float32(sign), *CLIP))(
        jnp.log(jnp.float32(ratio))
    )
    np.testing.assert_allclose(found, (value, slope), rtol=1e-6)


def test_estimates_of_the_divergence_are_golden():
    k1, k2, k3 = (kl(LOG_PROBS, REFERENCE, kind) for kind in ("k1", "k2", "k3"))
    np.testing.assert_allclose(k1, LOG_PROBS - REFERENCE)
    np.testing.assert_allclose(k2, np.square(LOG_PROBS - REFERENCE) / 2, rtol=1e-6)
    wanted = [[0.004837, 0.018731, 0.005171, 0], [0.004837, 0.049859, 0, 0]]
    np.testing.assert_allclose(k3, wanted, atol=1e-6)


# --- what TRL computes

GOLDENS = json.loads((Path(__file__).parent / "golden/policy.json").read_text())
"""Made by benchmarks/trl_policy.py, with the versions."""
DRAWN = {name: np.asarray(x, np.float32) for name, x in GOLDENS["inputs"].items()}

TRL = {
    "grpo": presets.grpo(kl=0.0),
    "grpo with kl": presets.grpo(),
    "bnpo": Policy("group", normalise="token", clip=CLIP),
    "dr_grpo": replace(presets.dr_grpo(12), advantage="group"),
    "dapo": presets.dapo(),
    "dapo with kl": replace(presets.dapo(), kl=0.1),
    "cispo": presets.cispo(),
    "gspo": replace(presets.gspo(), clip=CLIP),
    "gspo with kl": replace(presets.gspo(), clip=CLIP, kl=0.04),
    "grpo corrected": replace(presets.grpo(kl=0.0), correction="truncated"),
    "rloo": presets.rloo(kl=0.0),
}


def told(settings: Policy, rewards=DRAWN["rewards"]):
    judged = ~np.isnan(rewards)
    return advantages_of(settings, rewards, judged, judged, judged)


@pytest.mark.parametrize("name", sorted(GOLDENS["losses"]))
def test_an_objective_its_slope_and_its_advantages_are_trls(name):
    """TRL's mean over answers counts one that has no token; in RLOO its ratio is 1."""
    settings, theirs = TRL[name], GOLDENS["losses"][name]
    kind = settings.advantage
    advantages = np.asarray(told(settings).advantages)
    np.testing.assert_allclose(advantages, GOLDENS["advantages"][kind], rtol=1e-5, atol=1e-6)
    columns = {
        "advantages": np.repeat(advantages.reshape(-1, 1), 12, 1),
        "old": DRAWN["old_joint" if settings.ratio == "joint" else "old"],
        "drawn": DRAWN["sampled"],
        "reference": DRAWN["reference"],
    }
    logp, counted = jnp.asarray(DRAWN["logp"]), DRAWN["counted"]
    value, slope, _ = of_log_probs(settings, logp, counted, columns)
    share = 1.0 if settings.normalise == "token" else (counted.sum(1) > 0).mean()
    empty = advantages[0, 0] / len(counted) if settings.ratio == "joint" else 0.0
    assert value * share - empty == pytest.approx(theirs["loss"], rel=1e-5)
    largest = np.abs(theirs["slope"]).max()
    np.testing.assert_allclose(slope * share, theirs["slope"], rtol=1e-5, atol=1e-6 * largest)


# --- advantages

REWARDS = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], np.float32)
ALL = np.ones_like(REWARDS, bool)


def test_advantages_of_groups_are_golden():
    third, last = [0.4999] * 3, -1.4997
    np.testing.assert_allclose(
        group(REWARDS, ALL),
        [[0.865875, -0.865875, -0.865875, 0.865875], [0] * 4, [*third, last]],
        atol=1e-4,
    )
    np.testing.assert_allclose(centred(REWARDS, ALL)[2], [0.25, 0.25, 0.25, -0.75])
    np.testing.assert_allclose(leave_one_out(REWARDS, ALL)[2], [1 / 3] * 3 + [-1], rtol=1e-6)
    two, both = np.array([[1.0, 0.0]], np.float32), np.ones((1, 2), bool)
    for spread, wanted in (("sample", 0.7070), ("population", 0.9998)):
        np.testing.assert_allclose(group(two, both, spread), [[wanted, -wanted]], atol=1e-4)


KINDS = {
    "sample": group,
    "population": functools.partial(group, spread="population"),
    "centred": centred,
    "leave-one-out": leave_one_out,
}


@pytest.mark.parametrize("kind", KINDS)
def test_advantages_are_those_of_the_judged_answers_of_the_own_group(kind):
    """They sum to 0, follow a permutation of groups and of answers, and are exactly 0 in a group
    without spread; an answer that was not judged is as if it were not there."""
    draw, function = np.random.default_rng(0), KINDS[kind]
    rewards = draw.standard_normal((6, 5)).astype(np.float32)
    rewards[1], judged = 0.1, draw.random((6, 5)) < 0.7
    judged[0], judged[2], judged[3] = True, [0, 0, 1, 0, 0], False
    found = np.asarray(function(np.where(judged, rewards, np.nan), judged))
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-5)
    assert (found[1:4] == 0).all() and (found[~judged] == 0).all() and np.abs(found[0]).min() > 0
    groups, answers = draw.permutation(6), draw.permutation(5)
    np.testing.assert_array_equal(function(rewards[groups], judged[groups]), found[groups])
    np.testing.assert_allclose(
        function(rewards[:, answers], judged[:, answers]), found[:, answers], atol=1e-6
    )
    for row in np.flatnonzero(judged.sum(1) > 1):
        alone = rewards[row, judged[row]][None]
        np.testing.assert_allclose(
            function(alone, np.ones_like(alone, bool))[0], found[row, judged[row]], atol=1e-5
        )
    number = judged.sum(1, keepdims=True)
    scale = number / np.maximum(number - 1, 1)
    np.testing.assert_allclose(
        leave_one_out(rewards, judged), scale * centred(rewards, judged), atol=1e-6
    )


def test_what_is_kept_of_a_group_is_as_the_settings_say():
    judged, finished, passed = ALL.copy(), ALL.copy(), REWARDS > 0
    judged[0, 0], finished[2, 1] = False, False
    of = functools.partial(
        advantages_of, rewards=REWARDS, judged=judged, finished=finished, passed=passed
    )
    values, keep, flat = of(presets.expert_iteration())
    np.testing.assert_array_equal(keep, judged & passed)
    np.testing.assert_array_equal(values, keep)
    np.testing.assert_array_equal(flat[:, 0], [False, True, False])
    values, keep, _ = of(presets.rejection_sampling())
    np.testing.assert_array_equal(np.argmax(keep, 1), [3, 0, 0])
    np.testing.assert_array_equal(keep.sum(1), 1)
    np.testing.assert_array_equal(keep, best(REWARDS, judged))
    _, keep, _ = of(presets.dapo())
    wanted = judged & finished
    wanted[1] = False
    np.testing.assert_array_equal(keep, wanted)
    values, keep, _ = of(presets.reinforce())
    np.testing.assert_array_equal(keep, judged)
    np.testing.assert_array_equal(values, REWARDS * judged)


def test_generalised_advantages_are_golden_wherever_the_answer_stands():
    rewards, values = np.array([0, 0, 1.0]), np.array([0.2, 0.5, 0.4])
    wanted, returns = [0.7465, 0.47, 0.6], [0.9465, 0.97, 1]
    spread = np.array([0, 1, 0, 1, 1, 0])

    def placed(numbers, rest=7.0):
        row = np.full(6, rest, np.float32)
        row[spread > 0] = numbers
        return row[None]

    found, back = gae(placed(rewards), placed(values), spread[None].astype(np.float32), 1.0, 0.95)
    np.testing.assert_allclose(found, placed(wanted, 0), rtol=1e-5)
    np.testing.assert_allclose(back, placed(returns, 0), rtol=1e-5)


def test_an_answer_that_was_cut_short_has_its_reward_or_what_was_expected():
    settings, counted = replace(presets.ppo(), lam=1.0), np.ones((2, 3), np.float32)
    values = np.tile(np.array([0.2, 0.5, 0.4], np.float32), (2, 1))
    given = np.array([1.0, 1.0], np.float32), values, counted, np.array([True, False])
    whitened, returns = token_advantages(settings, *given)
    np.testing.assert_allclose(returns, np.ones((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(np.mean(whitened), 0, atol=1e-6)
    np.testing.assert_allclose(np.std(whitened, ddof=1), 1, rtol=1e-5)
    _, returns = token_advantages(replace(settings, unfinished="bootstrap"), *given)
    np.testing.assert_allclose(returns, [[1.0] * 3, [0.4] * 3], rtol=1e-6)
    counts = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    np.testing.assert_allclose(whiten(returns, counts)[:, 2], 0)
    penalties = np.full((2, 3), 0.1, np.float32)
    _, less = token_advantages(settings, *given, penalties)
    np.testing.assert_allclose(less[0], [0.7, 0.8, 0.9], rtol=1e-6)


# --- with a model

ROWS, LENGTH = 8, 12


@functools.cache
def params():
    head = {"kernel": jnp.full((PLAIN.width, 1), 0.05), "bias": jnp.zeros(1)}
    return {**model.init(PLAIN, jax.random.key(1)), CRITIC: head}


def rollouts(settings: Policy) -> Batch:
    """Answers of one to eight tokens after prompts of four; the third row is left out."""
    draw = np.random.default_rng(0)
    tokens, targets = draw.integers(0, PLAIN.vocab_size, (2, ROWS, LENGTH)).astype(np.int32)
    lengths = np.array([1, 8, 0, 3, 5, 2, 8, 4])
    place = np.arange(LENGTH)[None]
    counts = ((place >= 3) & (place < 3 + lengths[:, None])).astype(np.float32)
    positions = np.where(place < 4 + lengths[:, None], place, -1).astype(np.int32)
    batch = Batch(tokens, targets, counts, positions=positions)
    near = jax.jit(settings.build(PLAIN, reference=PLAIN).read)(params(), batch)

    def moved(values, by: float):
        return np.asarray(values + by * draw.standard_normal(values.shape), np.float32)

    columns = facts(ROWS, passed=[1, 0, 1, 1, 0, 0, 1, 0], finished=[1, 1, 0, 1, 1, 1, 0, 1])
    columns["advantages"] = np.repeat(moved(np.zeros((ROWS, 1)), 1.0), LENGTH, 1)
    for name in ("sampled", "old", "reference", "drawn"):
        columns[name] = moved(near.log_probs, 0.2)
    if near.values is not None:
        columns |= {name: moved(near.values, 0.5) for name in ("values", "returns")}
    return batch._replace(columns=columns)


@functools.cache
def other():
    return model.init(PLAIN, jax.random.key(2))


@functools.cache
def step_of(settings: Policy):
    """(batch, reference) → mean loss, its gradient and metrics."""
    loss = settings.build(PLAIN, reference=PLAIN)

    def mean(weights, batch, reference):
        total, weight, sums = loss(weights, {"reference": reference}, batch, None)
        return total / weight, {name: r(sums, weight) for name, r in loss.metrics().items()}

    return functools.partial(jax.jit(jax.value_and_grad(mean, has_aux=True)), params())


SPLIT = {
    "all terms": Policy(
        "gae",
        normalise="answer",
        kl=0.1,
        reference="other",
        entropy=0.01,
        correction="truncated",
        value=0.1,
        value_clip=0.2,
    ),
    "token": replace(presets.ppo(), reference="other"),
    "constant, in parts": replace(presets.dr_grpo(8), vocab_parts=3, temperature=0.7),
    "sequence": replace(presets.gspo(), clip=CLIP),
    "joint": replace(presets.rloo(kl=0.0), vocab_parts=2),
    "cispo": presets.cispo(ceiling=1.1),
}


@pytest.mark.parametrize(
    "name", ["all terms", *(pytest.param(n, marks=pytest.mark.slow) for n in list(SPLIT)[1:])]
)
def test_any_split_of_the_batch_gives_the_same_step(name):
    settings = SPLIT[name]
    optimizer = optim.build_optimizer(optim.SGD(), lambda _: 1.0, None)
    loss = settings.build(PLAIN, reference=PLAIN)
    metrics = assert_any_split_is_one_step(
        loss, params(), {"reference": other()}, rollouts(settings), optimizer
    )
    assert metrics["answer_length"] == pytest.approx(31 / 7) and metrics["unfinished"] == 2 / 8
    assert metrics["right_length"] == pytest.approx(12 / 3)


def assert_same_tree(found, wanted) -> None:
    """To 1e-6 of the largest value of any leaf."""
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    assert largest > 1e-4
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6 * largest, rtol=0)


PLAINLY = presets.expert_iteration()
"""−A·ln p, all tokens alike."""


@functools.cache
def on_policy() -> Batch:
    """Answers that the weights of `params` wrote."""
    batch = rollouts(PLAINLY)
    drop = ("old", "reference")
    return batch._replace(columns={n: x for n, x in batch.columns.items() if n not in drop})


def with_advantages(values) -> Batch:
    columns = on_policy().columns
    values = np.broadcast_to(np.asarray(values, np.float32), (ROWS, LENGTH))
    return on_policy()._replace(columns=columns | {"advantages": values})


@pytest.mark.parametrize("kind", ["clip", pytest.param("cispo", marks=pytest.mark.slow)])
def test_on_its_own_answers_a_policy_takes_reinforces_step(kind):
    """The ratio is exactly 1, nothing is clipped, and the divergence from itself is exactly 0. A
    flat group, whose advantages are 0, moves nothing at all."""
    take = step_of(replace(PLAINLY, surrogate=kind, kl=0.1, reference="other"))
    (_, metrics), slope = take(on_policy(), params())
    assert metrics["ratio"] == 1 and metrics["clip_share"] == 0 and metrics["kl"] == 0
    _, wanted = step_of(PLAINLY)(on_policy(), params())
    assert_same_tree(slope, wanted)
    _, slope = take(with_advantages(0.0), params())
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(slope))


def test_learning_the_right_answers_is_cross_entropy_of_them():
    batch = on_policy()
    passed = batch.columns["passed"] * (batch.weights.sum(1) > 0)
    rewards, judged = passed.reshape(2, 4), np.ones((2, 4), bool)
    values, keep, _ = advantages_of(PLAINLY, rewards, judged, judged, rewards > 0)
    weights = batch.weights * np.asarray(keep, np.float32).reshape(-1, 1)
    learned = with_advantages(np.asarray(values).reshape(-1, 1))
    (value, _), slope = step_of(PLAINLY)(learned._replace(weights=weights), params())
    only = batch._replace(weights=batch.weights * passed[:, None], columns=None)

    def mean(weights):
        total, weight, _ = CrossEntropy().build(PLAIN)(weights, {}, only, None)
        return total / weight

    wanted, steepest = jax.jit(jax.value_and_grad(mean))(params())
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)
    assert_same_tree(slope, steepest)


def test_a_value_head_may_train_alone():
    head, hidden = params()[CRITIC], jnp.ones((1, 2, PLAIN.width))
    for through in (True, False):
        slope = jax.grad(lambda h, t=through: value_of(head, h, t).sum())(hidden)
        assert (np.abs(slope).max() > 0) == through
    settings = replace(presets.ppo(kl=0.0), value_through=False)
    still = rollouts(settings)
    columns = still.columns | {"advantages": np.zeros((ROWS, LENGTH), np.float32)}
    (_, metrics), slope = step_of(settings)(still._replace(columns=columns), params())
    assert float(metrics["value_loss"]) > 0 and np.abs(slope[CRITIC]["kernel"]).max() > 0
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(slope["layers"]))


@pytest.mark.parametrize(
    "settings",
    [
        {"kl": 0.1, "reference": "none"},
        {"normalise": "constant"},
        {"constant": 8},
        {"advantage": "gae"},
        {"value": 0.1},
        {"entropy": 0.1, "vocab_parts": 2},
        {"clip": (1.5, 0.2)},
        {"temperature": 0.0},
        {"gamma": 1.5},
        {"unfinished": "bootstrap"},
        {"kl": -1.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match=r"^loss"):
        Policy(**settings)


def test_a_reference_is_named_and_in_memory_only_where_it_is_needed():
    plain, held = Policy(), Policy(kl=0.1)
    assert plain.started("runs/a", False) == plain and not plain.models
    assert held.started("runs/a", False).models == {"reference": "runs/a"}
    assert held.started("runs/a", True).reference == "base"
    with pytest.raises(ConfigError, match="--start"):
        held.build(PLAIN)
    assert [Policy().needs_old(n) for n in (1, 2)] == [False, True]
    assert presets.rloo().needs_old(1) and replace(plain, correction="truncated").needs_old(1)
