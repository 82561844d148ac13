"""Laws of a reference that is computed once: it is the reference that is computed in each step, and
it is read again only for what it was computed from."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import assert_same_run, losses_of
from variants import PLAIN

from gptjax import model, weights
from gptjax.cli.arguments import read_experiment
from gptjax.cli.evaluate import EvaluateOptions, measured
from gptjax.core.config import ConfigError
from gptjax.data import (
    Bytes,
    Comparisons,
    DataConfig,
    Feedback,
    Given,
    Preferences,
    Text,
    batches,
    prepare,
)
from gptjax.data.store import Header, Store
from gptjax.losses import KTO, BradleyTerry, Preference
from gptjax.observe.log import validation_losses
from gptjax.sharding.mesh import make_mesh
from gptjax.train import identity, optim, references
from gptjax.train.experiment import Checkpoints, Evaluation, Experiment
from gptjax.train.loop import train

SMALL = replace(PLAIN, vocab_size=None, context=40, num_layers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pairs and judged answers."""
    folder = tmp_path_factory.mktemp("references")
    numbers = range(40)
    pairs = [{"prompt": f"{n}+1=", "chosen": f"{n + 1}", "rejected": f"{n}"} for n in numbers]
    judged = [{"prompt": f"{n}", "completion": "ab"[n % 2] * 3, "label": n % 2} for n in numbers]
    for name, records in (("pairs", pairs), ("judged", judged)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def aligned(folder: Path, **changes) -> Experiment:
    kto = isinstance(changes.get("loss"), KTO)
    data = DataConfig(
        Comparisons(str(folder / ("judged.jsonl" if kto else "pairs.jsonl"))),
        Bytes(),
        validation=0.2,
        task=Feedback() if kto else Preferences(),
        cache=str(folder / "cache"),
    )
    settings = {
        "loss": Preference(),
        "optim": optim.AdamW(peak=1e-2),
        "schedule": optim.Schedule(warmup=0),
        "steps": 3,
        "batch": 16,
        "evaluation": Evaluation(every=3),
    }
    return Experiment(model=SMALL, data=data, **(settings | changes))


@pytest.mark.parametrize("kind", [Preference, pytest.param(KTO, marks=pytest.mark.slow)])
def test_a_cached_reference_gives_the_loss_of_a_computed_one_in_any_split(kind, folder):
    data = prepare(aligned(folder, loss=kind()).data)
    experiment = identity.resolve(aligned(folder, loss=kind(reference="other")), data)
    config = experiment.model
    params, other = (model.init(config, jax.random.key(n)) for n in (1, 2))
    loss, frozen = experiment.loss.build(config, reference=config), {"reference": other}

    @jax.jit
    def measure(batch):
        return jnp.stack(loss.reference.sums({}, frozen, batch), axis=-1)

    mesh = make_mesh(experiment.mesh)
    known = references.compute(experiment, data.train, mesh, measure, lambda line: None)
    assert np.isfinite(known).all() and len(known) == data.train.header.num_examples
    store = data.train._replace(columns={"reference": known})
    plan = batches.plan(store, length=40, rows=4, seed=0, task=data.task)
    batch, plain = (batches.batch(one, plan, 1) for one in (store, data.train))
    cached = replace(experiment.loss, cached=True)
    assert cached.models and not cached.resident
    loss, cached = (one.build(config, reference=config) for one in (experiment.loss, cached))
    total = jax.jit(lambda loss, frozen, batch: loss(params, frozen, batch, None), static_argnums=0)
    ready = cached.foresee(params, {}, batch)
    halves = [jax.tree.map(lambda x, k=k: x[2 * k : 2 * k + 2], ready) for k in (0, 1)]
    computed = total(loss, frozen, loss.foresee(params, frozen, plain))
    for one, two, whole in zip(
        *map(jax.tree.leaves, (*(total(cached, {}, h) for h in halves), computed)), strict=True
    ):
        assert float(one + two) == pytest.approx(float(whole), rel=1e-6, abs=1e-6)
    with pytest.raises(ConfigError, match="no log-probabilities of the reference"):
        cached(params, {}, plain, None)


def started(folder: Path, **changes) -> Experiment:
    """An experiment that starts from a run, which is trained once."""
    start = folder / "start"
    if not start.exists():
        (folder / "text.txt").write_text(" ".join(f"{n}+1={n + 1}" for n in range(300)))
        data = DataConfig(Text(str(folder / "text.txt")), Bytes(), cache=str(folder / "cache"))
        train(Experiment(model=SMALL, data=data, steps=3, batch=8), start)
    made = aligned(folder, **changes)
    return replace(made, start=str(start), data=replace(made.data, tokenizer=Given()))


@pytest.mark.parametrize("kind", [pytest.param("pairs", marks=pytest.mark.slow), "score"])
def test_evaluate_measures_the_own_loss_of_a_run(kind, folder):
    if kind == "pairs":
        run = started(folder, loss=Preference(beta=1.0, cached=True))
    else:
        run = aligned(folder, loss=BradleyTerry())
        run = replace(run, data=replace(run.data, task=Preferences(score=True)))
    train(run, folder / f"measured-{kind}")
    own, _ = read_experiment(folder / f"measured-{kind}")
    found = measured(folder / f"measured-{kind}", EvaluateOptions(), own, whole=False)
    wanted = validation_losses(folder / f"measured-{kind}", 3)
    assert [found["loss"]] == pytest.approx(wanted, abs=2e-6)
    assert 0 <= found["preference_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["start", "base"])
def test_a_run_with_a_cached_reference_has_the_losses_of_one_without(kind, folder, capsys):
    loss = Preference(beta=1.0)
    adapter = weights.LoRA(rank=2, base="int8") if kind == "base" else None
    computed = started(folder, loss=loss, adapter=adapter)
    train(computed, folder / f"{kind}-computed")
    cached = replace(computed, loss=replace(loss, cached=True), micro_batch=8)
    train(cached, folder / f"{kind}-cached")
    assert "examples of train data measured" in capsys.readouterr().out
    known = losses_of(folder / f"{kind}-computed")
    assert len(set(known.values())) == 3
    for step, value in losses_of(folder / f"{kind}-cached").items():
        assert value == pytest.approx(known[step], abs=2e-6)
    ends = [validation_losses(folder / f"{kind}-{how}", 3) for how in ("computed", "cached")]
    assert ends[1] == pytest.approx(ends[0], abs=2e-6) and len(ends[0]) == 1


@pytest.mark.slow
def test_a_reference_is_read_again_and_a_resumed_run_is_the_same(folder, monkeypatch):
    loss = Preference(beta=1.0, cached=True)
    whole = started(folder, loss=loss, steps=4, checkpoints=Checkpoints(every=2))
    train(whole, folder / "whole")
    monkeypatch.setattr(references, "measuring", None)  # nothing is computed any more
    shutil.copytree(folder / "whole", folder / "again")
    train(whole, folder / "again", rollback_to=2)
    assert_same_run(folder / "again", folder / "whole", 4)


def test_another_model_type_template_or_text_is_another_reference(folder):
    plain = aligned(folder, loss=Preference(cached=True))

    def key(experiment=plain, **record):
        data = prepare(experiment.data)
        return references.key(experiment, data, {"reference": "a", "start": "a"} | record)

    task = replace(plain.data, task=Preferences(template="zephyr"))
    text = replace(plain.data, validation=0.1)
    adapter = weights.LoRA(rank=2)
    keys = [
        key(),
        key(reference="b"),
        key(replace(plain, model=replace(SMALL, compute="bfloat16"))),
        key(replace(plain, model=replace(SMALL, context=32))),
        key(replace(plain, data=task)),
        key(replace(plain, data=text)),
        key(replace(plain, adapter=replace(adapter, base="int8"))),
    ]
    assert len({json.dumps(one) for one in keys}) == len(keys) and key() == keys[0]


def test_a_damaged_file_is_computed_again(tmp_path):
    store = Store(Header("uint16", 9, 8, 2, 0, "", {}), np.zeros(8), np.asarray([0, 4, 8]))
    file, stores = tmp_path / "reference.npz", {"train": store}
    values = np.arange(4, dtype=np.float32).reshape(2, 2)
    np.savez(file, key=json.dumps({"a": 1}), train=values)
    np.testing.assert_array_equal(references.read(file, {"a": 1}, stores)["train"], values)
    assert references.read(file, {"a": 2}, stores) is None
    whole = bytearray(file.read_bytes())
    place = whole.index(values.tobytes())
    whole[place] ^= 1
    file.write_bytes(whole)
    assert references.read(file, {"a": 1}, stores) is None
    file.write_bytes(whole[:100])
    assert references.read(file, {"a": 1}, stores) is None


def test_a_reference_that_cannot_be_read_is_refused():
    with pytest.raises(ConfigError, match="nothing to keep"):
        Preference(reference="none", cached=True)


def test_a_reference_is_computed_in_the_type_of_the_policy():
    """Otherwise equal weights would not have equal log-probabilities."""
    policy = replace(SMALL, compute="bfloat16", layers="scan")
    for loss in (Preference(reference="runs/a"), KTO(reference="runs/a")):
        reference = loss.build(policy, reference=SMALL).reference
        assert reference.other == policy
