"""Several runs in one program: each is, bit for bit, what it is alone; all resume."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import fingerprint

import gptjax
from gptjax.cli.sweep import split_values
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, DataConfig, Text, prepare
from gptjax.model import ModelConfig
from gptjax.observe.log import read_metrics
from gptjax.sharding.mesh import make_mesh
from gptjax.train import evaluate, identity, program, sweep_loop
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.many import build_many
from gptjax.train.optim import AdamW, Schedule
from gptjax.train.paired import compare_runs, seeds_needed, student_quantile, student_tail
from gptjax.train.sweep import members_of, train_many
from gptjax.train.traced import static_part

DROPOUT = ("model.embedding_dropout", "model.attention_dropout", "model.residual_dropout")
SETTINGS = (
    {"seed": 0, "optim.peak": 1e-2, "optim.weight_decay": 0.0},
    {"seed": 1, "optim.peak": 3e-3, "optim.beta1": 0.8, "optim.beta2": 0.99},
    {"seed": 1, "optim.peak": 3e-2, "optim.weight_decay": 0.3, **dict.fromkeys(DROPOUT, 0.2)},
)
"""Three runs that differ in everything that a step takes as an argument."""


@pytest.fixture(scope="module")
def base(text_file) -> Experiment:
    return Experiment(
        model=ModelConfig(context=16, width=32, num_layers=1, num_heads=2, bias=False),
        data=DataConfig(source=Text(str(text_file)), tokenizer=Bytes()),
        optim=AdamW(peak=1e-2, beta2=0.95, weight_decay=0.1),
        schedule=Schedule("cosine", warmup=2),
        evaluation=Evaluation(every=3, rows=32),
        steps=6,
        batch=4,
        log_every=1,
    )


@pytest.fixture(scope="module")
def members(base) -> list[Experiment]:
    names = dict.fromkeys(name for one in SETTINGS for name in one)
    found = []
    for settings in SETTINGS:
        over = {name: [settings[name]] for name in names if name in settings}
        found.append(members_of(base, over)[0].experiment)
    return found


@pytest.fixture(scope="module")
def data(base):
    return prepare(base.data)


@pytest.fixture(scope="module")
def alone(members, data):
    """Losses, parameters and held-out figures of each run by itself, on one device."""
    mesh, found = make_mesh(members[0].mesh, jax.devices()[:1]), []
    for member in members:
        experiment = identity.resolve(member, data)
        built = program.build(experiment, data, mesh=mesh)
        state, frozen = built.init(None)
        losses = []
        for done in range(experiment.steps):
            state, metrics = built.step(state, frozen, built.batch(done, state))
            losses.append(float(metrics["loss"]))
        params = jax.device_get(state.trainable)
        held = evaluate.evaluate(
            built.evaluate, mesh, experiment, data.validation, state.trainable, frozen, None
        )
        found.append((losses, params, held))
    return found


@pytest.mark.parametrize("by", ["map", "vmap", "runs"])
def test_each_run_of_a_sweep_is_the_run_alone(by, members, data, alone):
    """Seeds, rates, decay, betas and dropout are arguments of one program, and yet the numbers are
    those of a program that has them as constants; but for rounding with dropout, whose factor XLA
    merges with others if it knows it."""
    experiments = [identity.resolve(one, data) for one in members]
    assert len({static_part(one) for one in experiments}) == 1
    many = build_many(experiments, data, by, jax.devices()[: 2 if by == "runs" else 1])
    state, losses = many.place(many.init()), []
    for done in range(experiments[0].steps):
        state, metrics = many.step(state, many.batch(done))
        losses.append(many.fetch(metrics)["loss"])
    held = sweep_loop.held_out_of_each(many, state, experiments[0], data.validation, None)
    params = many.fetch(state).trainable
    for index, (wanted, wanted_params, wanted_held) in enumerate(alone):
        found = [float(loss[index]) for loss in losses]
        own = sweep_loop.state_of(params, index)
        figures = {f"validation_{name}": value for name, value in wanted_held.items()}
        drops = experiments[index].model.residual_dropout > 0
        exact = by == "map" and not drops
        np.testing.assert_allclose(found, wanted, rtol=2e-7 if exact else 1e-6)
        for name, value in figures.items():
            assert held[index][name] == pytest.approx(value, rel=2e-7 if exact else 1e-6)
        if exact:
            for leaf, other in zip(*map(jax.tree.leaves, (own, wanted_params)), strict=True):
                np.testing.assert_allclose(leaf, other, atol=1e-6)


BITS = """
import sys
from pathlib import Path
from runs import fingerprint
from gptjax.core import config
from gptjax.observe.log import read_metrics
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.train.sweep import train_many
folder = Path(sys.argv[1])
base = config.load_config(Experiment, folder / "base.json")
over = {"seed": [0, 1], "optim.peak": [1e-2, 3e-3], "optim.weight_decay": [0.0, 0.3]}
over |= {"optim.beta2": [0.95, 0.99]}
def of(path):
    lines = [line for line in read_metrics(path) if "gradient_norm" in line]
    keys = ("loss", "gradient_norm", "learning_rate", "validation_loss")
    return [[line.get(k) for k in keys] for line in lines], fingerprint(path, 6)
for one in train_many(base, over, folder / "sweep", by="map")[::3]:
    made = config.load_config(Experiment, one.path / "config.json")
    train(made, folder / one.name)
    assert of(folder / one.name) == of(one.path), one.name
print("all bits are equal")
"""


@pytest.mark.slow
def test_as_users_compile_it_a_sweep_has_the_bits_of_its_runs(base, tmp_path):
    """Tests compile without most optimisations, which moves a last bit here and there."""
    config.save_config(tmp_path / "base.json", base)
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"
    }
    done = subprocess.run(
        [sys.executable, "-c", BITS, str(tmp_path)],
        cwd=Path(__file__).parent,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("all bits are equal\n")


def lines_of(path: Path) -> list[dict]:
    return [line for line in read_metrics(path) if "gradient_norm" in line]


def test_a_sweep_that_was_killed_ends_in_the_same_bits(base, tmp_path, monkeypatch):
    """All runs resume from one saved state; each line of their logs is there once."""
    over = {"seed": [0, 1], "optim.peak": [1e-3, 1e-2]}
    whole = train_many(base, over, tmp_path / "whole", by="map", say=lambda line: None)
    line = sweep_loop._Loop._line

    def dies(self, done, losses):
        if done == 5:
            raise RuntimeError("killed")
        return line(self, done, losses)

    monkeypatch.setattr(sweep_loop._Loop, "_line", dies)
    with pytest.raises(RuntimeError, match="killed"):
        train_many(base, over, tmp_path / "killed", by="map", say=lambda line: None)
    monkeypatch.undo()
    said: list[str] = []
    again = train_many(base, over, tmp_path / "killed", by="map", say=said.append)
    assert any("resuming at step 3 of 6" in line for line in said)
    for one, other in zip(whole, again, strict=True):
        assert one.figures == other.figures and other.finished
        assert lines_of(one.path) == lines_of(other.path)
        assert fingerprint(one.path, 6) == fingerprint(other.path, 6)
    facts = json.loads((tmp_path / "killed/report.json").read_text("utf-8"))
    best = min(again, key=lambda one: one.figures["validation_loss"])
    assert facts["best"]["settings"] == {"optim.peak": best.settings["optim.peak"]}
    assert facts["best"]["n"] == 2 and facts["finished"]
    # a run of it is a run: other commands open it and continue it
    assert gptjax.load(best.path).config.width == base.model.width
    recorded = json.loads((best.path / "config.json").read_text("utf-8"))
    assert recorded["optim"]["peak"] == best.settings["optim.peak"]
    with pytest.raises(ConfigError, match="holds another sweep"):
        train_many(base, {"seed": [0]}, tmp_path / "killed", say=lambda line: None)


def test_settings_that_shape_the_program_are_compiled_apart_and_draw_a_map(base, tmp_path):
    short = dataclasses.replace(base, steps=2, evaluation=Evaluation(every=2, rows=8))
    over = {"model.num_layers": [1, 2], "optim.peak": [1e-3, 1e-2]}
    said: list[str] = []
    found = train_many(short, over, tmp_path, by="vmap", say=said.append)
    assert "4 runs in 2 programs" in "\n".join(said)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count('class="cell') == 4 and page.count('class="cell best"') == 1
    least = min(one.figures["validation_loss"] for one in found)
    assert f'best" style="--much:75%">{least:.4f}<' in page
    assert len({one.name for one in found}) == 4
    # one of them is trained further by itself: the sweep takes nothing of that back
    log = found[0].path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 5, "loss": 1.0, "validation_loss": 1.0}\n')
    checkpoints = found[0].path / "checkpoints"
    (checkpoints / "2").rename(checkpoints / "5")
    kept = log.read_text()
    assert train_many(short, over, tmp_path, by="vmap", say=said.append) == found
    assert log.read_text() == kept and not (checkpoints / "2").exists()


def test_several_values_of_a_flag_are_swept_and_one_is_set():
    flags = ["--optim.peak", "1e-3", "3e-3", "--steps", "5", "--by=map", "--freeze", "a", "b"]
    rest, over = split_values(flags, Experiment)
    assert over == {"optim.peak": [1e-3, 3e-3]}
    assert rest == ["--steps", "5", "--by=map", "--freeze", "a", "b"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"optim.peek": [1.0]}, "optim.peek is no setting"),
        ({"optim.peak": [-1.0]}, "positive learning rate"),
        ({"seed": [1, 1]}, "seed has 1 twice"),
        ({"freeze": [("embedding",)]}, "train its runs one by one"),
        ({"evaluation.patience": [3]}, "this experiment has evaluation.patience"),
    ],
)
def test_a_sweep_refuses_in_one_line(base, over, message):
    with pytest.raises(ConfigError, match=message):
        members_of(base, over)


# --- comparison


def test_a_comparison_is_students_paired_test():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    rng = np.random.default_rng(0)
    a = dict(enumerate(rng.normal(1.8, 0.02, 8)))
    b = {seed: value + rng.normal(0.01, 0.01) for seed, value in a.items()}
    found = compare_runs(a, b)
    wanted = stats.ttest_rel(list(a.values()), list(b.values()))
    interval = wanted.confidence_interval(0.95)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    for degrees in (1, 2, 7, 30, 400):
        for t in (0.0, 0.3, 2.0, 9.0):
            assert student_tail(t, degrees) == pytest.approx(stats.t.sf(t, degrees), rel=1e-10)
        assert student_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees))


def test_as_many_seeds_as_are_needed_find_the_difference_four_times_in_five():
    difference, sd = 0.01, 0.015
    n = seeds_needed(difference, sd)
    drawn = np.random.default_rng(1).normal(difference, sd, (4000, n))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(n))
    power = (np.abs(t) > student_quantile(0.975, n - 1)).mean()
    assert 0.78 < power < 0.88
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(1.0, 1e-6) == 3
    normal = (1.959964 + 0.841621) ** 2
    assert seeds_needed(1e-9, 1.0) == pytest.approx(normal * 1e18, rel=1e-4)


def test_repeats_of_a_seed_and_two_seeds_are_no_evidence(tmp_path):
    def run(name: str, seed: int, loss: float) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"seed": seed}))
        (path / "metrics.jsonl").write_text(json.dumps({"step": 1, "validation_loss": loss}) + "\n")
        return path

    a = [run(f"a{seed}", seed, 1.0 + seed) for seed in range(3)]
    b = [run(f"b{seed}", seed, 1.1 + seed) for seed in range(3)]
    found = compare_runs(a, b)
    assert found.n == 3 and found.difference == pytest.approx(-0.1)
    with pytest.raises(ConfigError, match="2 seeds are in both"):
        compare_runs(a[:2], b)
    with pytest.raises(ConfigError, match="the seed 2 twice"):
        compare_runs([*a, run("again", 2, 3.0)], b)
    (tmp_path / "a0/config.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no seed"):
        compare_runs(a, b)
