"""Laws of losses of preferences: golden values, what they are at the start, exactness however a
batch is split."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import PLAIN

from gptjax import model, weights
from gptjax.core.config import ConfigError
from gptjax.core.trees import combine
from gptjax.data import (
    Batch,
    Bytes,
    Comparisons,
    DataConfig,
    Feedback,
    Preferences,
    batches,
    prepare,
)
from gptjax.data.documents.comparisons import parse_judged
from gptjax.losses import KTO, Preference
from gptjax.losses.answers import answer_sums
from gptjax.losses.pairwise import (
    PAIR_LOSSES,
    Pair,
    PairSettings,
    bradley_terry,
    generalised_jsd,
    kto,
)
from gptjax.train import optim, step
from gptjax.train.experiment import Experiment

POLICY = Pair(jnp.array([-10.5, -20.25]), jnp.array([-12.0, -18.5]))
REFERENCE = Pair(jnp.array([-11.0, -20.0]), jnp.array([-11.5, -19.0]))
LENGTHS = Pair(jnp.array([5.0, 8.0]), jnp.array([6.0, 7.0]))
LN2 = np.float32(math.log(2))

GOLDEN = {
    # name: (settings, loss of each pair, mean where policy and reference agree)
    "sigmoid": ({}, [0.64439666, 0.73135014], LN2),
    "sigmoid smoothed": ({"smoothing": 0.1}, [0.65439666, 0.72385014], LN2),
    "robust": ({"smoothing": 0.1}, [0.63189666, 0.74072514], LN2),
    "hinge": ({}, [0.9, 1.075], 1),
    "ipo": ({}, [23.20027778, 26.0373286], 25),
    "exo": ({"smoothing": 1e-3}, [2.58995403, 2.89137432], 2.76123071),
    "nca": ({}, [1.3619193, 1.40531778], 2 * LN2),
    "bco": ({}, [1.3369193, 1.42418495], 2 * LN2),
    "sppo": ({}, [40.5, 57.8125], 50),
    "apo_zero": ({}, [0.97500521, 1.01874707], 1),
    "apo_down": ({}, [0.98751821, 1.01249154], 1),
    "sigmoid_norm": ({}, [0.68402253, 0.69829429], LN2),
    "discopop": ({}, [0.87379212, 0.79456679], 0.84657359),
}
"""From the formulas of TRL 1.16.0's source, in float64."""


def gain(policy: Pair = POLICY, reference: Pair = REFERENCE) -> Pair:
    return Pair(*(p - r for p, r in zip(policy, reference, strict=True)))


@pytest.mark.parametrize("name", GOLDEN)
def test_a_loss_of_pairs_has_its_golden_value(name):
    settings, each, start = GOLDEN[name]
    function = functools.partial(PAIR_LOSSES[name.split()[0]], settings=PairSettings(**settings))
    np.testing.assert_allclose(function(gain(), LENGTHS), each, rtol=2e-6)
    np.testing.assert_allclose(function(gain(POLICY, POLICY), LENGTHS), start, rtol=1e-6)


def test_the_slopes_of_dpo_and_ipo_are_golden():
    slopes = {
        "sigmoid": ([-0.02375104, -0.02593706], [0.02375104, 0.02593706]),
        "ipo": ([-0.96333333, -0.63783482], [0.80277778, 0.72895408]),
    }
    for name, (chosen, rejected) in slopes.items():

        def mean(policy, function=PAIR_LOSSES[name]):
            return function(gain(policy), LENGTHS, PairSettings()).mean()

        slope = jax.grad(mean)(POLICY)
        np.testing.assert_allclose(slope.chosen, chosen, rtol=1e-5)
        np.testing.assert_allclose(slope.rejected, rejected, rtol=1e-5)


def test_losses_without_a_reference_have_their_golden_values():
    simpo = PAIR_LOSSES["sigmoid_norm"](POLICY, LENGTHS, PairSettings(beta=2, gamma=0.5))
    np.testing.assert_allclose(simpo, [1.10318605, 0.84108592], rtol=2e-6)
    orpo = PAIR_LOSSES["orpo"](POLICY, LENGTHS, PairSettings(beta=0.1))
    assert float(orpo.mean()) == pytest.approx(0.06934028, rel=2e-6)


def test_an_answer_without_doubt_has_finite_odds():
    sure = Pair(jnp.array([-1e-30, 0.0]), jnp.array([-40.0, 0.0]))

    def total(pair):
        return PAIR_LOSSES["orpo"](pair, Pair(jnp.ones(2), jnp.ones(2)), PairSettings()).sum()

    value, slope = jax.value_and_grad(total)(sure)
    assert np.isfinite(value) and np.isfinite(jax.tree.leaves(slope)).all()


def test_kto_and_bradley_terry_have_their_golden_values():
    gains = jnp.concatenate(gain())
    good = jnp.array([True, True, False, False])
    np.testing.assert_allclose(
        kto(gains, good, 0.0, 0.1), [0.4875026, 0.50624967, 0.4875026, 0.5124974], rtol=1e-6
    )
    np.testing.assert_allclose(
        kto(gains, good, 0.3, 0.1), [0.49500017, 0.51374653, 0.48001066, 0.50499983], rtol=1e-6
    )
    scores = Pair(jnp.array([1.2, -0.3]), jnp.array([0.7, 0.4]))
    np.testing.assert_allclose(bradley_terry(scores), [0.47407698, 1.10318605], rtol=1e-6)
    assert float(bradley_terry(scores, centre=0.01).mean()) == pytest.approx(0.80673152, rel=1e-6)


def test_the_generalised_divergence_is_golden_from_one_kl_to_the_other():
    student = jax.nn.log_softmax(jnp.array([1.0, 2.0, 0.5]))
    teacher = jax.nn.log_softmax(jnp.array([0.5, 2.5, 0.0]))
    golden = {0.0: 0.08904371, 0.1: 0.00810177, 0.5: 0.02370616, 0.9: 0.00914918, 1.0: 0.10383359}
    for share, value in golden.items():
        assert float(generalised_jsd(student, teacher, share)) == pytest.approx(value, rel=1e-4)
    nothing = jnp.array([0.0, -jnp.inf, -jnp.inf])
    assert float(generalised_jsd(nothing, nothing, 0.5)) == 0


# --- what TRL computes

GOLDENS = json.loads((Path(__file__).parent / "golden/trl.json").read_text())
"""Made by benchmarks/trl_golden.py, with the versions."""
DRAWN = {name: np.asarray(value) for name, value in GOLDENS["inputs"].items()}
SMOOTHING = {"robust": 0.1, "exo": 1e-3}


def drawn(name: str) -> Pair:
    return Pair(*jnp.asarray(DRAWN[name], jnp.float32))


def assert_trl(function, policy: Pair, theirs: dict, skipped: int = 0) -> None:
    """The mean of a function of `policy` and its slope are TRL's, to 1e-5 of the largest slope."""
    value, slope = jax.value_and_grad(lambda pair: function(pair)[skipped:].mean())(policy)
    np.testing.assert_allclose(value, theirs["loss"], rtol=1e-5)
    largest = np.abs(theirs["chosen"] + theirs["rejected"]).max()
    np.testing.assert_allclose(slope.chosen, theirs["chosen"], rtol=1e-5, atol=1e-5 * largest)
    np.testing.assert_allclose(slope.rejected, theirs["rejected"], rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("name", sorted(GOLDENS["pairs"]))
def test_a_loss_of_pairs_and_its_slope_are_trls(name):
    settings = PairSettings(smoothing=SMOOTHING.get(name, 0.0))

    def losses(policy):
        return PAIR_LOSSES[name](gain(policy, drawn("reference")), drawn("lengths"), settings)

    assert_trl(losses, drawn("policy"), GOLDENS["pairs"][name])


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("simpo", "sigmoid_norm", PairSettings(beta=2.0, gamma=0.5)),
        ("cpo", "sigmoid", PairSettings()),
        ("orpo", "orpo", PairSettings()),
    ],
)
def test_a_loss_without_reference_and_its_slope_are_trls(name, kind, settings):
    skipped = 1 if name == "orpo" else 0  # an empty answer has no odds
    assert_trl(
        lambda policy: PAIR_LOSSES[kind](policy, drawn("lengths"), settings),
        drawn("policy"),
        GOLDENS["without_reference"][name],
        skipped,
    )


def test_kto_reward_and_divergence_and_their_slopes_are_trls():
    policy, reference = DRAWN["policy"].reshape(-1), DRAWN["reference"].reshape(-1)
    mismatched = max(float((policy + 3 - reference).mean()), 0.0)
    good = np.arange(len(policy)) < len(policy) // 2
    share = np.where(good, 1.0, 1.5).astype(np.float32)

    def judged(gains):
        return (share * kto(gains, jnp.asarray(good), mismatched, 0.1)).mean()

    value, slope = jax.value_and_grad(judged)(jnp.asarray(policy - reference, jnp.float32))
    np.testing.assert_allclose(value, GOLDENS["kto"]["loss"], rtol=1e-5)
    np.testing.assert_allclose(slope, GOLDENS["kto"]["slope"], rtol=1e-4, atol=1e-9)

    margin = jnp.asarray(np.abs(DRAWN["reference"][0]) / 10, jnp.float32)
    scores = Pair(*jnp.asarray(DRAWN["policy"] / 4, jnp.float32))
    assert_trl(lambda pair: bradley_terry(pair, margin, 0.01), scores, GOLDENS["reward"])

    draw = np.random.default_rng(1)
    student, teacher = (jnp.asarray(3 * draw.standard_normal((50, 7)), jnp.float32) for _ in "ab")
    for share, theirs in GOLDENS["divergence"].items():

        def divergence(logits, share=float(share)):
            ours = jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher)
            return generalised_jsd(*ours, share).mean()

        value, slope = jax.value_and_grad(divergence)(student)
        np.testing.assert_allclose(value, theirs["loss"], rtol=1e-5)
        np.testing.assert_allclose(slope.reshape(-1), theirs["slope"], atol=1e-6)


# --- with a model

PAIR_ROWS, LENGTH = 4, 16


def batch_of_pairs() -> Batch:
    """Four rows of two pairs, of which the last row has one; answers are one to three tokens."""
    draw = np.random.default_rng(0)
    shape = (PAIR_ROWS, LENGTH)
    tokens, targets = draw.integers(0, PLAIN.vocab_size, (2, *shape)).astype(np.int32)
    segments = np.repeat([[1, 2, 3, 4]], 4, axis=1).repeat(PAIR_ROWS, axis=0)
    positions = np.tile(np.arange(4), (PAIR_ROWS, 4))
    answers = draw.integers(1, 4, (PAIR_ROWS, 4)).repeat(4, axis=1)
    counts = (positions >= 4 - answers).astype(np.float32)
    pairs = np.ones((PAIR_ROWS, 2), np.float32)
    segments[-1, 8:], positions[-1, 8:], counts[-1, 8:], pairs[-1, 1] = 0, -1, 0, 0
    return Batch(
        tokens,
        targets,
        counts,
        segments=segments.astype(np.int32),
        positions=positions.astype(np.int32),
        columns={"pairs": pairs},
    )


@jax.jit
def sums_of(params, batch: Batch):
    return answer_sums(PLAIN, params, batch)


@functools.cache
def two_models():
    return tuple(model.init(PLAIN, jax.random.key(n)) for n in (1, 2))


def loss_of(batch: Batch, params, other, **settings):
    settings = {"reference": "other"} | settings
    loss = Preference(**settings).build(PLAIN, reference=PLAIN)
    frozen = {"reference": other}

    def total(params):
        ready = loss.foresee(params, frozen, batch)
        return loss(params, frozen, ready, None)

    return jax.jit(jax.value_and_grad(lambda p: (lambda t: (t[0], t[1:]))(total(p)), has_aux=True))(
        params
    )


def test_dpo_begins_at_ln_2_to_the_last_bit_and_its_slope_is_that_of_log_probabilities():
    params, _ = two_models()
    batch = batch_of_pairs()
    (total, (weight, _)), slope = loss_of(batch, params, params)
    assert np.float32(total / weight) == LN2 and float(weight) == 7

    def lead(params):
        return answer_sums(PLAIN, params, batch).log_probs.difference.sum()

    wanted = jax.tree.map(lambda g: -0.05 * g, jax.jit(jax.grad(lead))(params))
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted))
    assert largest > 1e-4
    for got, want in zip(jax.tree.leaves(slope), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * largest)


@pytest.mark.parametrize(
    "name", ["orpo", pytest.param("ipo", marks=pytest.mark.slow)]
)  # the others differ in a function of one pair
def test_any_split_of_the_batch_gives_the_same_step(name):
    params, other = two_models()
    batch, optimizer = batch_of_pairs(), optim.build_optimizer(optim.SGD(), lambda _: 1.0, None)
    loss = Preference(
        loss=name,
        smoothing=0.1,
        nll=0.5,
        reference="none" if name == "orpo" else "other",
    ).build(PLAIN, reference=PLAIN)
    frozen = {} if name == "orpo" else {"reference": other}
    assert_any_split_is_one_step(loss, params, frozen, batch, optimizer)


def assert_any_split_is_one_step(loss, params, frozen, batch, optimizer) -> dict:
    """Takes a step with one micro-batch and with four, and returns the metrics of the former."""

    def take(parts: int):
        one = functools.partial(
            step.train_step,
            loss=loss,
            optimizer=optimizer,
            rate=lambda _: 1.0,
            seed=0,
            micro_batches=parts,
        )
        return jax.jit(one)(step.init(params, optimizer), frozen, batch)

    (one, metrics), (four, others) = take(1), take(4)
    for name in ("loss", *loss.metrics()):
        np.testing.assert_allclose(metrics[name], others[name], rtol=1e-5, atol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (one.trainable, four.trainable)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    return metrics


def test_a_reference_computed_before_is_the_reference_computed_now():
    params, other = two_models()
    batch = batch_of_pairs()
    known = jnp.stack(sums_of(other, batch).log_probs, axis=-1)
    cached = batch._replace(columns={**batch.columns, "reference": known})
    now, before = loss_of(batch, params, other), loss_of(cached, params, params)
    np.testing.assert_allclose(now[0][0], before[0][0], rtol=1e-6)


def test_the_base_of_an_adapter_is_a_reference_without_memory_of_its_own():
    params, _ = two_models()
    batch = batch_of_pairs()
    trainable, rest = weights.adapt(
        weights.LoRA(rank=2), params, model.roles(PLAIN), jax.random.key(3)
    )
    moved = jax.tree.map(lambda x: x + 0.1, trainable)
    adapted = [combine({"params": rest}, half) for half in (trainable, moved)]
    loss = Preference(reference="base").build(PLAIN)
    apply = jax.jit(lambda params: loss(params, {}, batch, None)[0])
    start, later = (float(apply(p)) / 7 for p in adapted)
    assert start == pytest.approx(float(LN2), abs=1e-6) and abs(later - start) > 1e-3
    plain = Preference(reference="other").build(PLAIN, reference=PLAIN)
    total = jax.jit(lambda p, other: plain(p, {"reference": other}, batch, None)[0])
    assert float(total(adapted[1], params)) / 7 == pytest.approx(later, rel=1e-5)


def test_an_answer_of_another_pair_does_not_move_a_pair():
    """Pairs that share a row are as if alone."""
    params, _ = two_models()
    batch = batch_of_pairs()
    alone = replace_row(batch, 0, 8)
    both = sums_of(params, batch).log_probs
    one = sums_of(params, alone).log_probs
    np.testing.assert_allclose(one.chosen[0, 0], both.chosen[0, 0], rtol=1e-5)
    np.testing.assert_allclose(one.rejected[0, 0], both.rejected[0, 0], rtol=1e-5)


def replace_row(batch: Batch, row: int, end: int) -> Batch:
    """Other tokens behind a place of a row."""
    tokens = np.array(batch.tokens)
    tokens[row, end:] = (tokens[row, end:] + 1) % PLAIN.vocab_size
    return batch._replace(tokens=tokens)


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.0},
        {"smoothing": 0.5},
        {"loss": "exo"},
        {"loss": "sigmoid", "gamma": 0.5},
        {"loss": "orpo"},
        {"nll": -1.0},
        {"nll_prompts": True},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match="loss"):
        Preference(**settings)


def test_a_reference_that_is_the_start_needs_one():
    with pytest.raises(ConfigError, match="--start"):
        Preference().build(PLAIN)
    assert replace(Preference(), reference="runs/a").models == {"reference": "runs/a"}


# --- the tasks


def prepared(folder: Path, records: list[dict], task, **source):
    """Prepares judged records with a tokenizer of bytes."""
    file = folder / "judged.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return prepare(
        DataConfig(
            source=Comparisons(str(file), **source),
            tokenizer=Bytes(),
            task=task,
            validation=0,
            cache=str(folder),
        ),
        say=lambda line: None,
    )


def written(batch: Batch, row: int, segment: int) -> tuple[str, str]:
    """What a segment of a row says, and what of it counts."""
    where = np.asarray(batch.segments)[row] == segment
    targets, counts = (np.asarray(x)[row][where] for x in (batch.targets, batch.weights))
    tokens = np.asarray(batch.tokens)[row][where]
    text = bytes(int(i) for i in [*tokens, targets[-1]] if i < 256).decode()
    return text, bytes(int(i) for i in targets[counts > 0] if i < 256).decode()


PAIR_RECORDS = [
    {"prompt": f"{n}+1=", "chosen": f"{n + 1}", "rejected": f"{n + 2}!"} for n in range(9)
]


def test_a_pair_lies_in_one_row_with_its_answers_counted(tmp_path):
    data = prepared(tmp_path, PAIR_RECORDS, Preferences())
    plan = batches.plan(data.train, length=32, rows=2, seed=None, task=data.task)
    seen = []
    for number in range(plan.batches_per_epoch):
        batch = batches.batch(data.train, plan, number)
        pairs = batch.columns["pairs"]
        for row, n in np.argwhere(pairs > 0):
            chosen, rejected = (written(batch, row, 2 * n + k) for k in (1, 2))
            asked = chosen[0].split("=")[0]
            assert rejected[0].startswith(f"{asked}=") and chosen[1] == str(int(asked[:-2]) + 1)
            assert rejected[1] == f"{int(asked[:-2]) + 2}!"
            seen.append(asked)
        assert np.asarray(batch.segments).max() == 2 * pairs.sum(1).max()
    assert sorted(seen) == sorted(r["prompt"][:-1] for r in PAIR_RECORDS) and len(seen) == 9


def test_an_answer_judged_alone_lies_beside_its_prompt_with_anothers_answer(tmp_path):
    records = [
        {"prompt": f"{n}?", "completion": "abcdefg"[n] * 3, "label": n % 2 == 0} for n in range(7)
    ]
    data = prepared(tmp_path, records, Feedback())
    plan = batches.plan(data.train, length=24, rows=7, seed=None, task=data.task)
    batch = batches.batch(data.train, plan, 0)
    borrowed = []
    for row, n in np.argwhere(batch.columns["pairs"] > 0):
        (own, learned), (text, other) = (written(batch, row, 2 * n + k) for k in (1, 2))
        number = int(own[0])
        assert learned == "abcdefg"[number] * 3 and batch.columns["good"][row, n] == (
            number % 2 == 0
        )
        assert text == f"{number}?{other}" and other != learned
        borrowed.append(other)
    assert len(set(borrowed)) == len(borrowed) == 7


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"prompt": "a", "chosen": "b"}, "needs 'chosen' and 'rejected', or"),
        ({"chosen": "b", "rejected": "c"}, "has no prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "nothing in the answer"),
        ({"prompt": "a", "completion": "b", "label": "yes"}, "can be true or false"),
        ({"prompt": "a", "completion": "b", "label": True}, "use data.task Feedback"),
    ],
)
def test_a_record_that_is_no_pair_is_refused_by_its_line(record, says, tmp_path):
    with pytest.raises(ConfigError, match=says) as caught:
        prepared(tmp_path, [PAIR_RECORDS[0], record], Preferences())
    assert "judged.jsonl:2" in str(caught.value) and "\n" not in str(caught.value)


def test_conversations_without_a_prompt_are_compared_from_where_they_differ():
    def said(*texts):
        roles = ("user", "assistant") * 3
        return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]

    value = {"chosen": said("a", "b", "c", "d"), "rejected": said("a", "b", "c", "e")}
    record, defect = parse_judged(value, Comparisons("x.jsonl"))
    assert not defect and [r.given for r in record.answers] == [3, 3]
    value = {"instruction": "Do.", "input": "", "chosen": "x", "rejected": "y"}
    source = Comparisons("x.jsonl", prompt=("instruction", "input"), as_messages=True)
    record, defect = parse_judged(value, source)
    assert not defect and record.answers[0].messages[0] == {"role": "user", "content": "Do."}


def test_a_task_and_a_loss_that_read_different_batches_are_refused(tmp_path):
    source = DataConfig(source=Comparisons("x.jsonl"), tokenizer=Bytes(), task=Preferences())
    with pytest.raises(ConfigError, match="hold pairs, and loss CrossEntropy reads predictions"):
        Experiment(data=source)


def test_the_baseline_of_kto_is_that_of_the_whole_batch(tmp_path):
    """Micro-batches see the statistics of all rows."""
    records = [
        {"prompt": f"{n}", "completion": "ab"[n % 2] * (1 + n % 3), "label": n % 2 == 0}
        for n in range(16)
    ]
    data = prepared(tmp_path, records, Feedback())
    config = replace(PLAIN, vocab_size=257)
    params, other = (model.init(config, jax.random.key(n)) for n in (1, 2))
    loss = KTO(reference="other", bad=1.5).build(config, reference=config)
    plan = batches.plan(data.train, length=16, rows=8, seed=0, task=data.task)
    batch, optimizer = (
        batches.batch(data.train, plan, 0),
        optim.build_optimizer(optim.SGD(), lambda _: 1.0, None),
    )
    metrics = assert_any_split_is_one_step(loss, params, {"reference": other}, batch, optimizer)
    assert float(metrics["kl"]) > 0


def test_a_judged_answer_that_does_not_fit_takes_no_room_from_others(tmp_path):
    """Every example keeps its partner, whether that one is left out or not."""
    lengths = [2, 20, 3, 1, 2, 1]
    records = [{"prompt": "?", "completion": "a" * n, "label": 1} for n in lengths]
    data = prepared(tmp_path, records, Feedback())
    plan = batches.plan(data.train, length=14, rows=6, seed=None, task=data.task)
    batch = batches.batch(data.train, plan, 0)
    fit = [n + lengths[(i + 3) % 6] + 4 <= 14 for i, n in enumerate(lengths)]
    assert batch.columns["pairs"].sum() == sum(fit) == 4 == 6 - plan.packing.left_out
