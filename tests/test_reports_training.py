"""Situations that people reported of training stacks, with the right outcome of each: runs that
are changed, made longer, moved or resumed with other settings.

The table of all reports is docs/reports/reports.md. Read `short` first: the run of two optimizer
steps a second that most tests copy and resume.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import lines_of
from user_walks import Walk

import gptjax
from gptjax.cli import arguments
from gptjax.cli import main as cli
from gptjax.core import backend, user_config, xla_flags
from gptjax.core.config import ConfigError
from gptjax.data import (
    Batch,
    Bytes,
    Characters,
    DataConfig,
    LanguageModel,
    Mixture,
    PrefixLanguageModel,
    Records,
    SentencePiece,
    Text,
    batches,
    prepare,
)
from gptjax.data.documents.sources import read_documents
from gptjax.generate import SampleConfig
from gptjax.losses import CrossEntropy, FunctionLoss
from gptjax.model import ModelConfig
from gptjax.observe.log import read_metrics
from gptjax.runs import Run, manifest
from gptjax.runs.open import read_tokenizer
from gptjax.train import (
    carry,
    evaluator,
    facts,
    identity,
    optim,
    saved,
    sources,
    start,
    step,
    updates,
)
from gptjax.train.experiment import Checkpoints, Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import SGD, Adafactor, Adam, AdamW, Lion, Muon, Schedule

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog")


def prose(lines: int, seed: int = 0) -> str:
    """The text of the reports: lines of nine random words."""
    draw = random.Random(seed)
    return "".join(" ".join(draw.choices(WORDS, k=9)) + "\n" for _ in range(lines))


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Experiment:
    """An experiment of 8 steps."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "a.txt").write_text(prose(120))
    return Experiment(
        data=DataConfig(
            source=Text(str(folder / "a.txt")),
            tokenizer=Bytes(),
            split="tail",
            cache=str(folder / "cache"),
        ),
        model=ModelConfig(context=16, width=16, num_layers=1, num_heads=1, positions="rope"),
        optim=AdamW(peak=1e-2),
        schedule=Schedule("linear", warmup=2, floor=0.0),
        evaluation=Evaluation(every=4, rows=16, sample=SampleConfig(new_tokens=2)),
        checkpoints=Checkpoints(keep_newest=8),
        steps=8,
        batch=8,
    )


@pytest.fixture(scope="module")
def done(short, tmp_path_factory) -> Path:
    """Its finished run."""
    path = tmp_path_factory.mktemp("done") / "run"
    train(short, path)
    return path


@pytest.fixture
def run(done, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(done, tmp_path / "run"))


def changed(experiment: Experiment, **settings) -> Experiment:
    """The experiment with other settings; `optim__ema=0.9` changes a nested one."""
    for name, value in settings.items():
        first, _, rest = name.partition("__")
        inner = getattr(experiment, first)
        value = changed(inner, **{rest: value}) if rest else value  # noqa: PLW2901
        experiment = dataclasses.replace(experiment, **{first: value})
    return experiment


# --- T1: a finished run is made longer ------------------------------------------------------------


def test_the_proposed_longer_run_learns_under_every_schedule():
    """dalle-mini#138, torchtitan#809: `--steps` on a finished run had a rate of -5e-10 or 0."""
    steps = jnp.arange(121)
    for kind in ("constant", "linear", "cosine", "rsqrt", "wsd"):
        for floor in (0.0, 0.1):
            before = Schedule(kind, warmup=5, floor=floor, steps=60)
            longer = optim.lengthened(before, 120, done=60)
            old = optim.learning_rate(before, 1e-2, 60)(steps)[:60]
            new = np.asarray(optim.learning_rate(longer, 1e-2, 120)(steps))
            np.testing.assert_array_equal(new[:60], old, err_msg=f"{kind}: earlier rates stay")
            assert (new >= 0).all(), kind
            assert new[60:115].min() > 1e-5 and new[60:].max() > 2e-3, kind
            if longer.ends:
                assert new[60:].max() == pytest.approx(1e-2)
                assert new[120] == pytest.approx(floor * 1e-2, abs=1e-9)


def test_a_run_made_longer_twice_or_before_its_end_has_a_cycle_for_each():
    """Neighbours of T1: extended again, extended while it runs, and asked for twice in a row."""
    first = optim.lengthened(Schedule("cosine", warmup=5, steps=60), 120, done=60)
    assert optim.lengthened(first, 200, done=120).restarts == (60, 120)
    assert optim.lengthened(first, 200, done=90).restarts == (60, 120)
    assert optim.lengthened(first, 200, done=60).restarts == (60,)
    assert optim.lengthened(first, 90, done=60) == first
    late = Schedule("linear", steps=60, floor=0.1)
    assert optim.lengthened(late, 240, done=120).restarts == (120,)


def settled(experiment: Experiment, path: Path, *, allow: bool = False) -> identity.Settled:
    """The experiment as `train` would resume the run with it."""
    done = max(Run(path).steps())
    tokenizer = read_tokenizer(path)
    data = prepare(experiment.data, given=tokenizer)
    experiment = identity.resolve(experiment, data)
    return identity.settle(experiment, path, data, done=done, allow=allow)


def test_a_finished_run_learns_on_by_the_command_that_it_prints(run, short, capsys):
    """T1: banner, "next:" and report propose `--steps 16`, and that is enough."""
    proposed = f"python train.py {run}/config.json --steps 16"
    proposals = facts.suggestions(short, run, prepare(short.data), 8)
    assert proposed.replace(run.name, "run") in proposals
    train(changed(short, steps=16), run)
    said = capsys.readouterr().out
    assert "linear schedule ends at step 8 and begins again" in said
    assert f"python train.py {run}/config.json --steps 32\n" in said
    rates = [line["learning_rate"] for line in lines_of(run)]
    assert len(rates) == 16 and rates[8] == pytest.approx(1e-2) and min(rates) > 0
    again = settled(changed(short, steps=16), run).experiment
    assert again.schedule == settled(changed(short, steps=8), run).experiment.schedule


def test_a_schedule_that_leaves_nothing_to_learn_is_refused(done, short, tmp_path):
    """T1: steps at a rate of 0 are refused, with what mends them."""
    dead = changed(short, steps=16, schedule__steps=8)
    with pytest.raises(ConfigError, match=r"nothing will be learned .*omit --schedule\.steps"):
        train(dead, tmp_path / "new")
    with pytest.raises(ConfigError, match="nothing will be learned"):
        settled(changed(dead, schedule__steps=12), done, allow=True)
    assert settled(changed(dead, schedule__floor=0.1), done, allow=True)


def test_a_warm_up_that_takes_the_whole_run_is_said(short, tmp_path):
    """T22: the rate never reached its peak, silently."""
    slow = changed(short, schedule__warmup=100)
    data = prepare(slow.data)
    note = identity.settle(slow, tmp_path, data, done=None, allow=False).notes[0]
    assert "never reaches its peak (--schedule.warmup" in note
    short_enough = identity.settle(short, tmp_path, data, done=None, allow=False)
    assert not short_enough.notes
    for kind, warmup in (("cosine", 8), ("constant", 9), ("wsd", 100), ("rsqrt", 50)):
        neighbour = changed(short, schedule=Schedule(kind, warmup=warmup))
        notes = identity.settle(neighbour, tmp_path, data, done=None, allow=False).notes
        assert notes and "never reaches its peak" in notes[0], kind


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "x"], "--steps is 'x', not a whole number"),
        (["--batch", "1.5"], "--batch is '1.5', not a whole number"),
        (["--optim.peak", "fast"], "--optim.peak is 'fast', not a number"),
    ],
)
def test_messages_about_flags_use_no_words_of_python(flags, said, capsys):
    """T22: neighbours of "a int": "invalid literal for int() with base 10"."""
    assert cli.main(["train", "configs/quickstart.py", *flags]) == 2
    assert said in capsys.readouterr().err


# --- T4: resume with another optimizer setting ----------------------------------------------------

CHANGES = {
    "no decay": (AdamW(weight_decay=0.0), {"mu", "nu", "count", "values"}, ""),
    "no clipping": (AdamW(clip_norm=None), {"mu", "nu", "count", "values"}, ""),
    "clipped weights": (AdamW(clip_weights=1.0), {"mu", "nu", "count", "values"}, ""),
    "an average": (AdamW(ema=0.9), {"mu", "nu", "count", "values"}, "averaged weights"),
    "Adam": (Adam(), {"mu", "nu", "count", "values"}, ""),
    "a narrow moment": (AdamW(moment="bfloat16"), {"mu", "nu", "count", "values"}, ""),
    "SGD": (SGD(), {"count", "values"}, "momentum"),
    "Lion": (Lion(), {"count", "values"}, "momentum"),
    "Muon": (Muon(), {"count", "values"}, "count and mu and ns_coeffs"),
    "Adafactor": (Adafactor(), {"count", "values"}, "count and v and v_col and v_row"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_state_of_a_changed_optimizer_is_kept_by_name(name):
    """ipex-llm#1460, optax#1036: "3/count is not in the checkpoint"."""
    new, wanted, anew = CHANGES[name]
    trainable = {"layers": {"mlp": {"kernel": jnp.ones((1, 4, 4))}}, "norm": {"scale": jnp.ones(4)}}
    rate = optim.learning_rate(Schedule("constant"), 1e-3, 10)
    old = jax.tree.map(lambda x: x + 7, optim.build_optimizer(AdamW(), rate).init(trainable))
    fresh = optim.build_optimizer(new, rate).init(trainable)
    leaves = manifest.named(old)[0]
    saved = manifest.summarize(leaves)
    read = carry.as_saved(saved, trainable, None)
    assert manifest.named(read)[0].keys() == leaves.keys()
    state, note = carry.carried(manifest.nested(leaves), fresh, trainable)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    kept = set()
    for where, leaf in manifest.named(state)[0].items():
        initial = manifest.named(fresh)[0][where]
        assert leaf.shape == initial.shape and leaf.dtype == initial.dtype
        if not np.array_equal(leaf, initial):
            np.testing.assert_array_equal(leaf, jnp.full_like(leaf, 7))
            kept |= {part for part in where.split("/") if part in ("mu", "nu", "count", "values")}
    assert wanted <= kept and (not anew or f"begun anew: {anew}" in note), (kept, note)


def test_a_run_resumes_with_another_optimizer_and_lists_what_is_kept(run, short, capsys):
    """T4: only impossible changes are refused, and the run resumes once more after it."""
    new = changed(short, steps=10, optim=AdamW(peak=1e-2, ema=0.9, clip_norm=None), batch=16)
    with pytest.raises(ConfigError, match="--allow-changes"):
        settled(new, run)
    train(new, run, allow_changes=True)
    said = capsys.readouterr().out
    assert "kept: Adam's moments, count of steps, recent losses" in said
    assert "begun anew: averaged weights" in said and "batches of 16 rows begin where" in said
    tokens = [line["tokens"] for line in lines_of(run)]
    assert tokens[7:] == [8 * 8 * 16, 8 * 8 * 16 + 256, 8 * 8 * 16 + 512]
    figures = Run(run).metrics(10)
    assert (figures["rows"], figures["tokens"]) == (8 * 8 + 2 * 16, tokens[-1])


# --- T17: the batch changes in size ---------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(4, 8), (8, 4), (3, 5), (8, 1)])
def test_batches_of_another_size_leave_out_no_row_and_repeat_none(before, after, short):
    """OLMo#182: rows 80 to 159 were passed over in silence, tokens counted by the step."""
    data = prepare(short.data)
    small, large = (changed(short, batch=size) for size in (before, after))
    read = sources.Read(0, 0, 0).until(6, small)
    plan = sources.row_plan(large, data.train, seed=0)
    shifted = plan._replace(shift=read.rows - 6 * after)
    one = sources.row_plan(small, data.train, seed=0)
    rows = [batches.batch(data.train, one, step).tokens for step in range(6)]
    rows += [batches.batch(data.train, shifted, step).tokens for step in range(6, 9)]
    alone = sources.row_plan(changed(short, batch=1), data.train, seed=0)
    count = 6 * before + 3 * after
    wanted = [batches.batch(data.train, alone, step).tokens for step in range(count)]
    np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(wanted))
    assert read.until(9, large).tokens == count * short.model.context


def test_checkpoints_of_earlier_versions_say_what_was_read_by_their_step(run, short):
    """T17: their batches never changed in size; another context counts rows by tokens."""
    old = settled(short, run).old
    assert saved.read_until(Run(run), 8, short, old) == (8, 64, 1024)
    manifest_file = run / "checkpoints/8/manifest.json"
    content = json.loads(manifest_file.read_text())
    for name in ("rows", "tokens", "context"):
        del content["metrics"][name]
    manifest_file.write_text(json.dumps(content) + "\n")
    seal = hashlib.sha256(manifest_file.read_bytes()).hexdigest()
    manifest_file.with_name("manifest.sha256").write_text(f"{seal}  manifest.json\n")
    assert saved.read_until(Run(run), 8, changed(short, batch=16), old) == (8, 64, 1024)
    longer = changed(short, model__context=32)
    assert saved.read_until(Run(run), 8, longer, old) == (8, 32, 1024)
    assert any("ordered anew" in note for note in settled(longer, run, allow=True).notes)


# --- T2: own text of any size ---------------------------------------------------------------------


@pytest.mark.parametrize("lines", [12, 60, 600])
@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_readmes_own_text_command_takes_a_small_file(lines, algorithm, tmp_path):
    """litgpt#1450, #1698: one file of 29 kB was refused, and so was the advice."""
    quickstart = user_config.load_python(Experiment, "configs/quickstart.py")
    (tmp_path / "a.txt").write_text(prose(lines))
    data = changed(
        quickstart.data,
        source=Text(str(tmp_path / "a.txt")),
        tokenizer__algorithm=algorithm,
        cache=str(tmp_path / "cache"),
    )
    said: list[str] = []
    made = prepare(data, said.append)
    assert made.train.header.num_tokens > made.tokenizer.vocab_size / 4
    assert made.validation is not None and made.validation.header.num_tokens > 2
    assert "the tail of each document is held out" in said[0]
    assert ("too small for 2,048" in said[0]) == (made.tokenizer.vocab_size < 2048)
    if lines > 12:
        sources.row_plan(quickstart, made.train, seed=0)


def test_a_few_files_that_leave_no_whole_document_are_divided(tmp_path):
    """Neighbours of T2: three files, one line of JSON, and a share that fits."""
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(prose(30, seed=i))
    base = DataConfig(
        source=Text(str(tmp_path), pattern="*.txt"),
        tokenizer=Bytes(),
        validation=0.01,
        split="documents",
        cache=str(tmp_path / "cache"),
    )
    made = prepare(base)
    assert made.validation.header.num_tokens > 2 < made.train.header.num_tokens
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": prose(30)}) + "\n")
    one = prepare(changed(base, source=Text(str(tmp_path / "one.jsonl"))))
    assert one.validation.header.num_tokens > 2


# --- T7: the rate that is logged is the one that is applied ---------------------------------------


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "rsqrt"])
def test_the_rate_that_is_logged_is_applied_also_after_skipped_steps_and_in_a_second_cycle(kind):
    """lightning#18828, torchtitan#4598: 0.00109 was logged and 0.03455 applied."""
    schedule = Schedule(kind, warmup=2, floor=0.1, steps=10, restarts=(6,))
    rate = optim.learning_rate(schedule, 0.1, 10)
    plain = SGD(momentum=0.0, clip_norm=None)
    optimizer = optim.build_optimizer(plain, rate)

    def loss(params, frozen, batch, key):
        return params["w"] @ batch.weights[0] * batch.weights.sum(), batch.weights.sum(), {}

    take = jax.jit(
        functools.partial(
            step.train_step,
            loss=FunctionLoss(loss),
            optimizer=optimizer,
            rate=rate,
            seed=0,
            skip_norm=10.0,
        )
    )
    state = step.init({"w": jnp.zeros(2)}, optimizer)
    zeros = np.zeros((1, 2), np.int32)
    for number in range(10):
        large = 100.0 if number in (1, 2, 7) else 1.0
        before = state.trainable["w"]
        state, metrics = take(state, {}, Batch(zeros, zeros, np.full((1, 2), large, np.float32)))
        moved = float(jnp.linalg.norm(state.trainable["w"] - before))
        assert bool(metrics["skipped"]) == (large > 1) == (moved == 0)
        assert float(metrics["learning_rate"]) == pytest.approx(float(rate(jnp.asarray(number))))
        if large == 1:
            applied = moved / float(metrics["gradient_norm"])
            assert applied == pytest.approx(float(metrics["learning_rate"]), rel=1e-5)


# --- T9: both figures of averaged weights ---------------------------------------------------------


def test_averaged_and_latest_weights_are_both_measured_and_both_write(run, short):
    """pytorch-image-models#1182: early averages were worse by far, and only they were seen."""
    new = changed(short, steps=10, optim=AdamW(peak=1e-2, ema=0.99))
    train(new, run, allow_changes=True)
    line = lines_of(run)[-1]
    averaged, live = gptjax.load(run), gptjax.load(run, live=True)
    for model, logged in ((averaged, "validation_loss"), (live, "validation_live_loss")):
        assert line[logged] == pytest.approx(loss_of(model, new), rel=1e-5)
    assert line["validation_loss"] != line["validation_live_loss"]
    older = gptjax.load(run, step=8)  # from before there was an average
    assert loss_of(older, new) == pytest.approx(lines_of(run)[7]["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.99999])
@pytest.mark.parametrize("first", [0, 1000])
def test_an_average_of_a_short_run_holds_little_of_its_first_weights(decay, first):
    """T9 (pytorch-image-models#1182): neighbours: slower decays, and an average that a run takes up
    late. Weights that move by 1 a step are averaged no further back than the decay reaches."""
    average = updates.average(decay)
    weights = {"w": jnp.asarray(float(first))}
    state = average.init(weights)
    for step_number in range(first, first + 100):
        _, state = average.update(
            {"w": jnp.ones(())}, state, weights, step=jnp.asarray(step_number)
        )
        weights = {"w": weights["w"] + 1}
    behind = float(weights["w"] - state.ema["w"])
    reach = 1 / (1 - min(decay, (1 + first) / (10 + first)))
    assert 0 < behind < min(100, max(20, reach)), "behind the latest, within its reach"


# --- T8: rows of which nothing counts -------------------------------------------------------------


@pytest.mark.parametrize(("config", "parts"), [(SGD(), 1), (Lion(), 2), (AdamW(ema=0.9), 2)])
def test_a_step_of_which_nothing_counts_moves_no_optimizer(config, parts):
    """T8 (trl#6668, transformers#16711): neighbours: other optimizers, micro-batches, and a half
    that is empty, which is no skipped step."""

    def loss(params, frozen, batch, key):
        nats = (params["w"] @ batch.weights.T**2).sum()
        return nats, batch.weights.sum(), {}

    rate = optim.learning_rate(Schedule("constant", warmup=1), 0.1, 9)
    optimizer = optim.build_optimizer(config, rate)
    take = jax.jit(
        functools.partial(
            step.train_step,
            loss=FunctionLoss(loss),
            optimizer=optimizer,
            rate=rate,
            seed=0,
            micro_batches=parts,
        )
    )
    state = step.init({"w": jnp.ones(2)}, optimizer)
    zeros, ones = np.zeros((2, 2), np.int32), np.ones((2, 2), np.float32)
    half = ones * [[1.0], [0.0]]
    for weights in (ones, 0 * ones, half.astype(np.float32)):
        before = state
        state, metrics = take(state, {}, Batch(zeros, zeros, weights))
        empty = not weights.any()
        assert int(metrics["skipped"]) == empty and int(state.step) == int(before.step) + 1
        assert np.isnan(metrics["loss"]) == empty
        same = jax.tree.map(
            np.array_equal, (before.trainable, before.opt_state), (state.trainable, state.opt_state)
        )
        assert all(jax.tree.leaves(same)) == empty


# --- T10: prompts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "task", "wanted"),
    [
        (Characters(), "", LanguageModel(), ""),
        (Characters(end_of_document=False), "", LanguageModel(), "\n"),
        (Characters(), "the ?", LanguageModel(), None),
        (Characters(), "深", PrefixLanguageModel(), None),
        (Bytes(), "深 \0 é", LanguageModel(), "深 \0 é"),
        (SentencePiece(320), "深 \0 é", LanguageModel(), "深 \0 é"),
    ],
)
def test_a_prompt_is_taken_or_refused_before_training(tokenizer, prompt, task, wanted, short):
    """T10 (transformers#29665): neighbours: other tokenizers and tasks."""
    data = prepare(changed(short.data, tokenizer=tokenizer))
    experiment = changed(short, evaluation__prompt=prompt, data__task=task)
    if wanted is None:
        with pytest.raises(ConfigError, match=r"characters that are not in .*--evaluation\.prompt"):
            evaluator.prompt_of(experiment, data)
    else:
        assert evaluator.prompt_of(experiment, data) == wanted


def loss_of(model: gptjax.api.Model, experiment: Experiment) -> float:
    """The loss of the text that the experiment holds out, computed here."""
    data = prepare(experiment.data)
    plan = sources.row_plan(experiment, data.validation, seed=None)
    total = count = 0.0
    one = jax.jit(lambda batch: CrossEntropy().build(model.config)(model.params, {}, batch, None))
    for number in range(plan.batches_per_epoch):
        nats, weight, _ = one(batches.batch(data.validation, plan, number))
        total, count = total + float(nats), count + float(weight)
    return total / count


# --- T19: relative paths --------------------------------------------------------------------------


def test_a_run_resumes_from_elsewhere_and_without_its_text(short, tmp_path, monkeypatch):
    """flambe#15: "a.txt is not there", though its tokens were prepared."""
    home = tmp_path / "home"
    (home / "texts").mkdir(parents=True)
    (home / "texts/a.txt").write_text(prose(100))
    monkeypatch.chdir(home)
    relative = changed(short, data__source=Text("texts/a.txt"), steps=2, evaluation__every=2)
    train(relative, Path("run"))
    monkeypatch.chdir(tmp_path)
    experiment, path = arguments.read_experiment(Path("home/run"))
    train(changed(experiment, steps=3), path)
    assert len(lines_of(path)) == 3
    experiment, path = arguments.read_experiment(path)
    shutil.move("home/texts/a.txt", "home/b.txt")
    assert not settled_data(experiment, path).passed_over
    other = changed(experiment, data__validation=0.2)
    with pytest.raises(ConfigError, match=r"a\.txt is not there"):
        settled_data(other, path)
    moved = changed(experiment, data__source=Text("home/b.txt"), steps=4)
    with pytest.raises(ConfigError, match="its content"):  # documents have the names of files
        settled(moved, path)
    (tmp_path / "home/texts/b").mkdir()
    shutil.copy("home/b.txt", "home/texts/b/a.txt")
    assert settled(changed(moved, data__source=Text("home/texts/b/a.txt")), path).experiment


def settled_data(experiment: Experiment, path: Path):
    """The data that a resume would train on."""
    begun = start.of(start.from_elsewhere(experiment, path), path, resuming=True)
    return prepare(experiment.data, given=begun.tokenizer, kept=begun.kept)


def test_paths_of_a_config_file_are_taken_against_it_where_they_lead_nowhere(tmp_path, monkeypatch):
    """Neighbours of T19: a Python config, records with a held-out file, a model to start from."""
    (tmp_path / "there").mkdir()
    for name in ("a.tsv", "b.tsv", "model"):
        (tmp_path / "there" / name).write_text("x\ty\n")
    monkeypatch.chdir(tmp_path)
    value = Experiment(
        start="model", data=DataConfig(source=Mixture((Text("a.tsv"), Text("here.txt")), (1, 1)))
    )
    (tmp_path / "here.txt").write_text("here")
    found = user_config.relocated(value, [Path("there")])
    assert found.start == "there/model"
    assert [one.path for one in found.data.source.sources] == ["there/a.tsv", "here.txt"]
    records = user_config.relocated(Records("a.tsv", held_out="b.tsv"), [Path("there")])
    assert (records.path, records.held_out) == ("there/a.tsv", "there/b.tsv")
    assert user_config.relocated(value, []) == value


# --- T21 and T22: wants and frictions -------------------------------------------------------------


def test_a_run_stops_early_and_evaluates_before_its_first_step(short, tmp_path, capsys):
    """T21: early stopping on validation, a figure before the first step."""
    eager = changed(
        short,
        steps=8,
        schedule=Schedule("constant", warmup=0),
        optim=SGD(peak=1e-12),
        evaluation=Evaluation(every=1, first=True, patience=2, sample=SampleConfig(new_tokens=1)),
    )
    train(eager, tmp_path / "run")
    said = capsys.readouterr().out
    assert "stopped early at step" in said and "--evaluation.patience 4" in said
    first = [line for line in read_metrics(tmp_path / "run") if line["step"] == 0]
    assert any(line.get("validation_loss", 0) > 0 for line in first)
    reached = len(lines_of(tmp_path / "run"))
    assert 2 <= reached < 8
    train(eager, tmp_path / "run")
    assert "stopped early" in capsys.readouterr().out
    assert len(lines_of(tmp_path / "run")) == reached


def test_a_finished_run_is_measured_on_its_own_and_on_another_text(done, tmp_path, capsys):
    """T21: there was no command for it."""
    assert cli.main(["evaluate", str(done), "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own["loss"] == pytest.approx(lines_of(done)[-1]["validation_loss"], rel=1e-5)
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": prose(20, seed=5)}) + "\n")
    other = ["--data.source.path", str(tmp_path / "other.jsonl")]
    assert cli.main(["evaluate", str(done), *other]) == 0
    assert "bits per byte" in capsys.readouterr().out


def test_a_separator_is_read_as_a_shell_hands_it_over(tmp_path):
    """T21: `--data.source.separator '\\n'` is a line a document, `'\\n\\n'` blank lines."""
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree<|endoftext|>four\tfive")
    for separator, count in (
        ("\\n", 3),
        ("\\n\\n", 2),
        ("<|endoftext|>", 2),
        ("\\t", 2),
        ("\n", 3),
    ):
        source = Text(str(tmp_path / "a.txt"), separator=separator)
        assert len(list(read_documents(source))) == count, separator


def test_messages_about_values_use_the_words_of_json(tmp_path):
    """T22: "a int"."""
    for value, words in ((7, "a number"), ([], "a list"), (None, "null"), (True, "true or false")):
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": value}) + "\n")
        with pytest.raises(ConfigError, match=f"no text in 'text' but {words}"):
            list(read_documents(Text(str(tmp_path / "a.jsonl"))))
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(ConfigError, match="not a JSON object but a list"):
        list(read_documents(Text(str(tmp_path / "a.jsonl"))))


def test_an_absent_tpu_is_not_looked_for(tmp_path, monkeypatch):
    """T22: libtpu's error trace at every start where the extra is installed."""
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.delitem(sys.modules, "jax")
    installed = {"libtpu"}
    monkeypatch.setattr(backend.util, "find_spec", lambda name: name in installed or None)
    monkeypatch.setattr(xla_flags, "has_tpu", lambda devices: True)
    backend._leave_out_absent_tpu()
    assert "JAX_PLATFORMS" not in os.environ
    monkeypatch.setattr(xla_flags, "has_tpu", lambda devices: False)
    installed.add("jax_cuda12_plugin")
    backend._leave_out_absent_tpu()
    assert "JAX_PLATFORMS" not in os.environ
    installed.discard("jax_cuda12_plugin")
    backend._leave_out_absent_tpu()
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    monkeypatch.undo()
    assert not xla_flags.has_tpu(tmp_path)
    (tmp_path / "accel0").touch()
    assert xla_flags.has_tpu(tmp_path)


# --- random walks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=() if n == 1 else pytest.mark.slow) for n in range(20)]
)
def test_no_walk_of_a_user_leaves_a_run_unusable(seed, short, done, tmp_path):
    """Issue 31: after any sequence of commands, interruptions and changes the run trains on, and
    what is logged is what is applied."""
    path = Path(shutil.copytree(done, tmp_path / "run"))
    walk = Walk(short, path, np.random.default_rng(seed), shots=seed >= 2)
    for _ in range(3 if seed < 2 else 7):
        walk.go()
    walk.said.append("at the end")
    walk.longer()
    walk.sampled()
    print(seed, "; ".join(walk.said))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_process_that_is_killed_at_any_moment_leaves_a_run_that_its_command_resumes(
    seed, short, done, tmp_path
):
    """Issue 31: `kill -9` of train, of a change of settings, of convert and evaluate."""
    path = Path(shutil.copytree(done, tmp_path / "run"))
    walk = Walk(short, path, np.random.default_rng(100 + seed), shots=True)
    for _ in range(4):
        walk.shot()
    print(seed, "; ".join(walk.said))
