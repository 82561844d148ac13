"""Laws of learning from rewards in training: the sampler's log-probabilities are the trainer's,
rollouts are functions of (step, state), and nothing is learned where no answer is better."""

from __future__ import annotations

import dataclasses
import functools
import html
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import assert_same_run, lines_of, losses_of
from variants import VARIANTS

from gptjax import api, generate, model
from gptjax.cli import evaluate
from gptjax.cli.arguments import read_experiment
from gptjax.core.config import ConfigError
from gptjax.core.trees import combine
from gptjax.data import Characters, Comparisons, Conversations, DataConfig, Prompts, Puzzles
from gptjax.data.documents.comparisons import load_judged, read_comparisons
from gptjax.data.documents.conversations import load_record, parse_record, read_conversations
from gptjax.data.prepare import prepare
from gptjax.data.tasks.prompts import Problem
from gptjax.losses import Policy
from gptjax.losses.policy_presets import expert_iteration, ppo
from gptjax.observe import learning
from gptjax.rewards import Function, Judgement, Solved
from gptjax.runs import Run, leaves
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.train import identity, program, rollouts
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule
from gptjax.train.rollout import Rollout
from gptjax.train.rollout_columns import row_shapes
from gptjax.train.rollout_figures import log_rollout
from gptjax.weights import LoRA

LETTERS = Puzzles("reversal", count=200, length=3)


def experiment(model_config=None, **changes) -> Experiment:
    """A run that learns to reverse letters, too short to learn anything."""
    shape = dataclasses.replace(
        model_config or VARIANTS["llama"], vocab_size=None, context=16, compute="float32"
    )
    settings = {
        "data": DataConfig(LETTERS, Characters(), task=Prompts(), validation=0.1),
        "model": shape,
        "loss": Policy("centred"),
        "rollout": Rollout((Function(f"{__file__}:vowels"),), answers=4, new_tokens=6),
        "optim": AdamW(peak=1e-2, weight_decay=0.0),
        "schedule": Schedule("constant"),
        "evaluation": Evaluation(every=2, rows=8, prompt="abc<"),
        "mesh": MeshConfig(data=1),
        "batch": 8,
        "steps": 4,
        "log_every": 1,
    }
    return Experiment(**settings | changes)


def vowels(prompt: str, answer: str, record: dict) -> float | None:
    """A reward that random models get too: the share of the first half of the alphabet."""
    return None if answer.startswith("z") else sum(c < "m" for c in answer) / 8


def constant(prompt: str, answer: str, record: dict) -> float:
    """A reward that prefers nothing."""
    return 0.5


@functools.cache
def data():
    return prepare(experiment().data)


def resolved(**changes) -> Experiment:
    return identity.resolve(experiment(**changes), data())


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Rollouts of these tests are too small for eight devices."""
    monkeypatch.setattr(
        jax, "devices", functools.partial(lambda devices, *_: devices[:1], jax.devices())
    )


# --- the sampler is the trainer


KINDS = ("gpt2", "gqa", "alibi", "adapted")


@pytest.mark.parametrize("name", KINDS)
def test_the_sampler_recorded_what_the_trainer_computes(name):
    """Law L10: ragged prompts, ended and cut answers, alone and packed in other places; with an
    adapter too."""
    settings = resolved(model_config=VARIANTS.get(name))
    weights = model.init(settings.model, jax.random.key(1))
    if name == "adapted":
        weights = adapted(settings.model, weights)
    written = some(settings, weights)
    assert {one.finished for one in written} == {True, False}  # both kinds are looked at
    batch = rollouts.rows_of(settings, written, judgement(len(written)))
    loss = settings.objective.build(settings.model)
    read = np.asarray(jax.jit(loss.read)(weights, batch).log_probs)
    counted = batch.weights > 0
    assert counted.sum() == sum(len(one.ids) for one in written)
    assert np.abs(read - batch.columns["sampled"])[counted].max() <= 1e-5
    packed = two_in_a_row(batch)
    again = np.asarray(jax.jit(loss.read)(weights, packed).log_probs)
    gap = np.abs(again - packed.columns["sampled"])[packed.weights > 0]
    assert len(gap) == counted.sum() and gap.max() <= 1e-5


def adapted(config, params):
    """The weights with a LoRA that is not zero any more."""
    adapter, base = model.add_adapter(config, LoRA(rank=2), params, jax.random.key(2))
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.ones_like(x), adapter)
    return combine({"params": base}, moved)


@pytest.mark.slow
def test_after_a_shared_prefix_the_sampler_is_the_trainer_too():
    settings, letters = resolved(), data().tokenizer
    config, weights = settings.model, model.init(settings.model, jax.random.key(1))
    before = letters.encode("abcd").tolist()
    prefix = generate.shared_prefix(config, weights, letters, before)
    asked, how = letters.encode("ef<").tolist(), generate.GenerateConfig(4, 1.0, top_p=1.0)
    done = generate.complete(config, weights, letters, [asked], [how], prefix=prefix)[0]
    ends = [] if done.end is None else [done.end]
    ids = np.asarray([[*before, *asked, *done.ids, *(i for i, _ in ends)]], np.int32)
    lengths = jnp.asarray([ids.size])
    read = generate.token_logprobs(config, weights, jnp.asarray(ids), lengths)
    recorded = [*done.logprobs, *(p for _, p in ends)]
    np.testing.assert_allclose(read[0, -len(recorded) :], recorded, atol=1e-5)


def test_experts_that_a_bias_balances_are_left_as_they_are():
    """No loss of rollouts says how much each expert had to do."""
    own = resolved(model_config=VARIANTS["deepseek"])
    mesh = make_mesh(own.mesh, jax.devices())
    assert program.lowered(own, mesh, row_shapes(own, mesh))


def some(settings: Experiment, weights, **how) -> list[rollouts.Written]:
    """Answers to prompts of several lengths."""
    letters = data().tokenizer
    prompts = ["a", "bcd", "efghij<"]
    problems = [Problem(letters.encode(one).tolist(), one, {"prompt": one}) for one in prompts]
    return rollouts.write(
        *(settings, weights, letters, problems),
        seeds=[1, 2, 3],
        mesh=make_mesh(MeshConfig(), jax.devices()),
        **how,
    )


def judgement(count: int) -> Judgement:
    return Judgement(
        np.arange(count, dtype=np.float32), np.ones(count, bool), np.ones(count, bool), {}
    )


def two_in_a_row(batch):
    """The rows of a batch in pairs, the second one behind padding in the middle of the row."""

    def joined(x):
        return np.concatenate([x[::2], x[1::2]], axis=1)

    segments = joined(np.where(batch.positions >= 0, 1, 0))
    half = segments.shape[1] // 2
    segments[:, half:] *= 2
    return batch._replace(
        **{n: joined(getattr(batch, n)) for n in ("tokens", "targets", "weights", "positions")},
        segments=segments,
        columns={"sampled": joined(batch.columns["sampled"])},
    )


def test_the_law_sees_positions_that_are_off_by_one():
    settings = resolved()
    weights = model.init(settings.model, jax.random.key(1))
    batch = rollouts.rows_of(settings, some(settings, weights), judgement(12))
    late = batch._replace(positions=np.where(batch.tokens > 0, batch.positions + 1, -1))
    read = settings.objective.build(settings.model).read
    far = [
        np.abs(np.asarray(read(weights, one).log_probs) - one.columns["sampled"])[batch.weights > 0]
        for one in (late, batch._replace(tokens=np.roll(batch.tokens, 1, axis=1)))
    ]
    assert far[1].max() > 1e-2


def test_keys_belong_to_the_prompt_and_the_answer():
    """The same answers, however many rows write at once: only rounding differs."""
    settings = resolved()
    weights = model.init(settings.model, jax.random.key(1))
    whole = some(settings, weights)
    fewer = dataclasses.replace(settings, rollout=dataclasses.replace(settings.rollout, rows=2))
    parts = some(fewer, weights)
    assert [one.ids for one in whole] == [one.ids for one in parts]
    gap = [np.subtract(a.log_probs, b.log_probs) for a, b in zip(whole, parts, strict=True)]
    assert np.abs(np.concatenate(gap)).max() <= 1e-5
    assert len({tuple(one.ids) for one in whole[:4]}) > 1  # answers to one prompt differ
    assert rollouts.seeds_of(0, 1, 3) != rollouts.seeds_of(0, 2, 3)


# --- rollouts are functions of (step, state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        train(experiment(), path)
    return path


def test_a_run_resumed_ends_in_the_same_bits(whole, tmp_path):
    """Law L23, with evaluations, samples and rollouts.jsonl."""
    half = tmp_path / "half"
    train(experiment(steps=2, schedule=Schedule("constant", steps=4)), half)
    train(experiment(schedule=Schedule("constant", steps=4)), half)
    assert_same_run(half, whole, 4)
    assert (half / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()


def test_another_batch_of_generation_changes_only_rounding(whole, tmp_path):
    rows = dataclasses.replace(experiment().rollout, rows=4)
    train(experiment(rollout=rows), tmp_path / "rows")
    found, wanted = losses_of(tmp_path / "rows"), losses_of(whole)
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), atol=1e-5)


def test_what_a_run_says_of_its_answers(whole):
    steps = lines_of(whole)
    lines = [json.loads(line) for line in (whole / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 8
    for step in steps:
        own = [line for line in lines if line["step"] == step["step"]]
        known = [line["reward"] for line in own if line["reward"] is not None]
        assert step["reward"] == pytest.approx(np.mean(known), abs=1e-6)
        assert step["unfinished"] == pytest.approx(np.mean([not one["finished"] for one in own]))
        assert step["sampler_gap"] <= 1e-5 and step["ratio"] == 1 and step["clip_share"] == 0
    assert "validation_pass_rate" in steps[-1]
    log = (whole / "log.txt").read_text()
    assert " right " in log and "validation reward " in log and "validation loss" not in log
    facts = json.loads((whole / "report.json").read_text(encoding="utf-8"))
    assert facts["next"][0] == f"gptjax sample {whole} --prompt 'abc<'"
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "Answers that it learned from" in page and html.escape(lines[-1]["prompt"]) in page


def test_answers_of_a_run_are_data_as_they_are(whole):
    """To learn (`Conversations`), and judged (`Comparisons`); empty answers and those without a
    reward are the bad records."""
    path = str(whole / "rollouts.jsonl")
    lines = [json.loads(line) for line in (whole / "rollouts.jsonl").read_text().splitlines()]
    told = [one for one in lines if one["completion"].strip()]
    found = list(read_conversations(Conversations(path, max_bad_records=len(lines))))
    records = [load_record(document.text) for document in found]
    said = [(one["prompt"], one["completion"]) for one in told]
    assert [(one.prompt, one.text) for one in records] == said
    known = [one for one in told if one["label"] is not None]
    found = read_comparisons(Comparisons(path, max_bad_records=len(lines)))
    judged = [load_judged(document.text) for document in found]
    wanted = [(one["completion"], one["label"]) for one in known]
    assert [(one.answers[0].text, one.good) for one in judged] == wanted
    assert all((one["label"] is None) == (one["reward"] is None) for one in lines)


def test_messages_stay_messages_in_what_is_kept():
    asked = [{"role": "user", "content": "hi"}]
    problem = Problem([1], "hi", {"prompt": asked, "tools": [{"name": "f"}]})
    kept = []
    log = SimpleNamespace(rollout=lambda step, lines: kept.extend(lines))
    one = rollouts.Written(problem, "hello", [2], [-1.0], True)
    verdict = judgement(1)._replace(judged=np.zeros(1, bool))
    log_rollout(experiment().rollout, log, 0, [one], verdict)
    record, wrong = parse_record(kept[0])
    assert not wrong and [m["content"] for m in record.messages] == ["hi", "hello"]
    assert record.given == 1 and record.tools == ({"name": "f"},) and kept[0]["label"] is None


def test_evaluate_answers_the_held_out_prompts_again(whole):
    wanted = {
        name.removeprefix("validation_"): value
        for name, value in lines_of(whole)[-1].items()
        if name.startswith("validation_")
    }
    own, _ = read_experiment(whole)
    found = evaluate.measured(whole, evaluate.EvaluateOptions(), own, whole=False)
    assert found.pop("prompts") == 20 and found == pytest.approx(wanted, abs=1e-5)
    fewer = evaluate.measured(whole, evaluate.EvaluateOptions(rows=3), own, whole=False)
    assert fewer["prompts"] == 3 and fewer != found


def test_several_updates_learn_from_one_rollout(tmp_path):
    twice = dataclasses.replace(experiment().rollout, updates=2)
    loss = Policy("group", correction="truncated")
    train(experiment(rollout=twice, loss=loss), tmp_path / "run")
    steps = lines_of(tmp_path / "run")
    assert steps[0]["reward"] == steps[1]["reward"] and steps[1]["reward"] != steps[2]["reward"]
    assert steps[0]["ratio"] == pytest.approx(1, abs=1e-6) and abs(steps[1]["ratio"] - 1) > 1e-4
    built = program.build(resolved(rollout=twice), data())
    state, frozen = built.init(None)
    with pytest.raises(ValueError, match="inside a rollout"):
        built.batches(0, frozen)(1, state)


# --- nothing is learned where no answer is better


@pytest.mark.parametrize("settings", [Policy("group"), expert_iteration()])
def test_a_constant_reward_changes_nothing_at_all(settings, tmp_path, monkeypatch):
    """Law L24; of expert iteration with no right answer too. A run that compares says so."""
    monkeypatch.setattr(learning, "PATIENCE", 1)
    reward = Function(f"{__file__}:constant")
    own = dataclasses.replace(experiment().rollout, rewards=(reward,))
    run = experiment(rollout=own, loss=settings, steps=2)
    train(run, tmp_path / "run")
    built = program.build(identity.resolve(run, data()), data())
    begun = built.init(None)[0].trainable
    train(dataclasses.replace(run, steps=2), tmp_path / "run")
    from gptjax.runs.open import open_model

    ended = open_model(tmp_path / "run").params
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), begun, ended)
    assert all(jax.tree.leaves(same))
    warned = "--rollout.answers 16" in (tmp_path / "run/log.txt").read_text()
    assert warned == settings.compares


def test_answers_that_cannot_be_judged_are_in_no_sum():
    settings = resolved()
    weights = model.init(settings.model, jax.random.key(1))
    written = some(settings, weights)
    verdict = judgement(12)._replace(judged=np.arange(12) % 4 != 1)
    batch = settings.objective.learned(rollouts.rows_of(settings, written, verdict), {}, 4)
    left_out = ~verdict.judged
    assert not batch.weights[left_out].any() and (batch.weights[~left_out] > 0).any(axis=1).all()
    sums = batch.columns["advantages"].max(axis=1) + batch.columns["advantages"].min(axis=1)
    assert np.abs(sums.reshape(3, 4).sum(axis=1)).max() < 1e-6


@pytest.mark.slow
def test_a_value_head_learns_what_rewards_come_and_a_run_with_it_resumes(tmp_path):
    """Random models get a reward of 0.36; nearly all answers are cut short."""
    own = dataclasses.replace(experiment().rollout, answers=8, updates=2)
    run = experiment(
        rollout=own,
        loss=ppo(kl=0.0),
        batch=64,
        optim=AdamW(peak=3e-3, weight_decay=0.0),
        schedule=Schedule("constant", warmup=0),
        evaluation=Evaluation(every=20, rows=8, prompt="abc<"),
    )
    for steps in (20, 60):
        train(dataclasses.replace(run, steps=steps), tmp_path / "run")
    train(dataclasses.replace(run, steps=60), tmp_path / "alone")
    found = {tree: leaves(tmp_path / "run", tree=tree) for tree in Run(tmp_path / "run").trees(60)}
    assert "heads" in found
    for tree, values in found.items():
        assert values == leaves(tmp_path / "alone", tree=tree)
    lines = lines_of(tmp_path / "run")
    assert lines[0]["reward"] < 0.5 < 0.7 < lines[-1]["reward"]
    assert lines[-1]["value_loss"] < 0.2 * lines[0]["value_loss"]
    assert isinstance(api.load(tmp_path / "run").generate("abc<", new_tokens=2), str)


# --- refusals


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"batch": 10}, "batch is 10, which 4 answers"),
        ({"rollout": None}, "rollout is not set"),
        ({"rollout": Rollout(answers=4, new_tokens=6)}, "rollout.rewards is empty"),
        ({"steps": 5, "rollout": Rollout((Solved(),), answers=4, updates=2)}, "steps is 5"),
        ({"rollout": Rollout((Solved(),), answers=4, new_tokens=16)}, "leaves no room"),
        ({"rollout": Rollout((Solved(),), answers=4, top_k=5, new_tokens=4)}, "loss.correction"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, says):
    with pytest.raises(ConfigError, match=says):
        experiment(**changes)


def test_prompts_that_leave_no_room_are_refused():
    tight = dataclasses.replace(experiment().rollout, new_tokens=14)
    with pytest.raises(ConfigError, match="the longest prompt has 5 tokens"):
        rollouts.require_room(resolved(rollout=tight), data().train)
