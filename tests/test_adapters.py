"""The laws of adapters: they begin as their base, merge into it, train alone, and are saved
without it."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import ROWS, batch_of, experiment_of

import gptjax
from gptjax import model, weights
from gptjax.cli.convert import ConvertOptions, convert, write_run
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.core.trees import combine, paths, trainable_part
from gptjax.data import Batch, Bytes, prepare
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.formats import OpenedModel
from gptjax.losses import CrossEntropy
from gptjax.runs import Run, leaves
from gptjax.runs.open import open_model
from gptjax.sharding.mesh import MeshConfig, make_mesh, place_batch
from gptjax.train import identity, optim, placement, program, saved, start, step
from gptjax.train.experiment import Experiment
from gptjax.train.halves import halves
from gptjax.train.overview import overview
from gptjax.weights import DoRA, LoRA, PromptTuning
from gptjax.weights.adapters import by_path

SMALL = {"width": 32, "num_heads": 4, "num_kv_heads": 2, "feed_forward": 48, "context": 32}
CONFIG = model.llama("7b", num_layers=2, vocab_size=257, compute="float32", **SMALL)
ROLES = model.roles(CONFIG)
TOKENS = jax.random.randint(jax.random.key(3), (3, 9), 0, 257)


@functools.cache
def base():
    return jax.jit(functools.partial(model.init, CONFIG))(jax.random.key(0))


@jax.jit
def logits(params):
    hidden = model.forward(CONFIG, params, TOKENS).hidden
    return model.unembed(CONFIG, params, hidden)


def random_like(tree, seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 999))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), tree)


def close(found, wanted, within=1e-5):
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=within * max(scale, 1.0))


@pytest.mark.parametrize("kind", [LoRA, pytest.param(DoRA, marks=pytest.mark.slow)])
def test_an_adapter_begins_as_its_base_and_merged_is_unmerged(kind):
    settings = kind(rank=3, alpha=5.0, rs=True, targets=("layers", "head"))
    zero = settings.init(base(), ROLES, jax.random.key(1))
    plain = logits(base())
    np.testing.assert_array_equal(logits(weights.attach(base(), zero)), plain)
    whole = weights.attach(base(), random_like(zero))
    wanted = logits(weights.merge(whole))
    assert float(jnp.abs(wanted - plain).max()) > 0.1
    close(logits(whole), wanted)
    assert all(adapter.scale == 5.0 / 3**0.5 for adapter in by_path(zero).values())


def test_adapters_in_one_batch_are_each_alone_also_of_other_kinds_ranks_and_weights():
    settings = (
        LoRA(rank=2, alpha=3.0, targets=("layers/attention",)),
        DoRA(rank=3, targets=("layers/attention", "layers/mlp/up")),
    )
    each = [
        random_like(one.init(base(), ROLES, jax.random.key(seed)), seed)
        for seed, one in enumerate(settings)
    ]
    rows = jnp.asarray([1, -1, 0])
    found = logits(weights.attach(base(), weights.side_by_side(each, ROLES), rows))
    for row, number in enumerate(rows.tolist()):
        alone = base() if number < 0 else weights.attach(base(), each[number])
        close(found[row], logits(alone)[row])


def test_a_sum_adapters_of_adapters_is_that_of_their_products_and_unmerge_takes_one_out():
    several = [random_like(LoRA(rank=r).init(base(), ROLES, jax.random.key(r)), r) for r in (2, 3)]
    both = weights.sum_adapters(several, (0.25, -2.0), ROLES)
    merged = [weights.merge(weights.attach(base(), one)) for one in (*several, both)]

    def check(plain, first, second, summed):
        close(summed - plain, 0.25 * (first - plain) - 2.0 * (second - plain), 1e-4)

    jax.tree.map(check, base(), *merged)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), weights.unmerge(merged[0], several[0]), base())
    dora = DoRA(rank=2).init(base(), ROLES, jax.random.key(0))
    with pytest.raises(ConfigError, match="no weighted sum"):
        weights.sum_adapters([dora], [1.0], ROLES)


# --- training

RATE = 1e-2


def steps_of(settings: LoRA, count: int, rank: int | None = None):
    """The state after some steps, and what is frozen."""
    experiment = Experiment(model=CONFIG, adapter=settings, start="base")
    trainable, rest = halves(experiment, base())
    if rank:
        _, adapters = weights.detach(combine({"params": rest}, trainable))
        plain, adapters = base(), weights.pad_rank(adapters, rank, ROLES)
        whole = weights.attach(plain, adapters)
        trainable = jax.tree.map(
            lambda w: dataclasses.replace(w, base=None) if is_adapted(w) else None,
            whole,
            is_leaf=is_adapted,
        )
    optimizer = optim.build_optimizer(
        optim.AdamW(peak=RATE, weight_decay=0.1), lambda step: RATE, ROLES
    )
    one = functools.partial(
        step.train_step,
        loss=CrossEntropy().build(CONFIG),
        optimizer=optimizer,
        rate=lambda step: RATE,
        seed=0,
    )
    ids = np.asarray(TOKENS)
    batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((3, 8), np.float32))
    state, losses = step.init(trainable, optimizer), []
    compiled = jax.jit(one)
    for _ in range(count):
        state, metrics = compiled(state, {"params": rest}, batch)
        losses.append(float(metrics["loss"]))
    return state, rest, losses


def is_adapted(leaf) -> bool:
    return isinstance(leaf, weights.Adapted)


def test_after_one_step_every_adapter_has_moved_and_the_base_has_not():
    settings = LoRA(
        rank=2,
        targets=("layers", "embedding"),
        modules_to_save=("norm",),
        dropout=0.2,
        rank_patterns=("layers/mlp=1",),
    )
    state, rest, _ = steps_of(settings, 1)
    plain, adapters = weights.detach(combine({"params": rest}, state.trainable))
    for path, adapter in by_path(adapters).items():
        moved = adapter.a if path.startswith("embedding") else adapter.b
        assert float(jnp.abs(moved).max()) > 0, path
        assert adapter.a.shape[-1] == (1 if "mlp" in path else 2)
    changed = [
        path
        for path, old, new in zip(
            paths(base()), jax.tree.leaves(base()), jax.tree.leaves(plain), strict=True
        )
        if not np.array_equal(old, new)
    ]
    assert changed == ["norm/scale"]
    assert not {path for path in paths(state.trainable) if path.endswith("kernel")}


def test_a_rank_inside_a_larger_one_trains_as_alone():
    alone, _, wanted = steps_of(LoRA(rank=2, alpha=4.0), 3)
    padded, _, found = steps_of(LoRA(rank=2, alpha=4.0), 3, rank=5)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    b = padded.trainable["layers"]["mlp"]["up"]["kernel"].b
    close(b[:, :2], alone.trainable["layers"]["mlp"]["up"]["kernel"].b, 1e-6)
    assert not b[:, 2:].any()


@pytest.mark.parametrize("stored", [pytest.param("nf4", marks=pytest.mark.slow), "int4"])
def test_a_quantised_base_is_merged_as_the_numbers_the_adapter_was_trained_on(stored):
    state, rest, losses = steps_of(LoRA(rank=2, base=stored), 2)
    assert losses[1] < losses[0]
    whole = combine({"params": rest}, state.trainable)
    found, merged = logits(whole), weights.merge(whole)
    close(found, logits(merged))
    _, adapters = weights.detach(whole)
    on_floats = logits(weights.merge(weights.attach(base(), adapters)))
    assert float(jnp.abs(found - on_floats).max()) > 1e-3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (LoRA(targets=("layers/atention",)), "meets no weight.*Did you mean"),
        (LoRA(rank_patterns=("head=2",)), "rank_patterns names 'head'"),
        (LoRA(modules_to_save=("layers/mlp/up",)), "both name layers/mlp/up/kernel"),
    ],
)
def test_a_pattern_that_nothing_meets_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        halves(Experiment(model=CONFIG, adapter=settings, start="base"), base())


def test_an_embedding_that_is_the_output_too_is_refused():
    tied = dataclasses.replace(CONFIG, tied=True)
    settings = LoRA(targets=("layers", "embedding"))
    with pytest.raises(ConfigError, match=r"--adapter\.untie True"):
        halves(
            Experiment(model=tied, adapter=settings, start="base"),
            {name: tree for name, tree in base().items() if name != "head"},
        )


# --- runs


@pytest.fixture(scope="module")
def base_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base"
    tied = dataclasses.replace(CONFIG, tied=True)
    params = {name: tree for name, tree in base().items() if name != "head"}
    write_run(path, OpenedModel(tied, params, tokenizers.train_tokenizer(Bytes(), ())))
    return path


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        (
            DoRA(rank=2, dropout=0.1, base="int8", untie=True, targets=("layers/mlp", "head")),
            ("/a", "/b", "/magnitude"),
        ),
        (PromptTuning(tokens=3, text="The "), ("virtual_tokens/embeddings",)),
    ],
    ids=["dora", "prompt"],
)
def test_a_run_saves_its_adapter_alone_and_resumes_to_the_same_bits(
    settings, own, tiny_experiment, base_run, tmp_path
):
    experiment = dataclasses.replace(tiny_experiment, start=str(base_run), adapter=settings)
    begin = start.of(experiment, tmp_path, resuming=False)
    experiment, _ = start.adopted(experiment, begin)
    data = prepare(experiment.data, [].append, given=begin.tokenizer)
    experiment = identity.resolve(experiment, data)
    one_device = make_mesh(MeshConfig(), jax.devices()[:1])
    built, run = program.build(experiment, data, mesh=one_device), Run(tmp_path / "run")
    open_or_begin = functools.partial(
        saved.restore_or_init, run, built, experiment, None, params=begin.params
    )
    with run.lock():
        state, frozen, *_ = open_or_begin()
        state, _ = built.step(state, frozen, built.batch(0, state))
        run.save(1, saved.trees(state))
        run.wait()
        first = jax.tree.map(np.array, state.trainable)  # the step takes its arrays
        whole, _ = built.step(state, frozen, built.batch(1, state))
        state, frozen, restored, *_ = open_or_begin()
    assert restored == 1
    resumed, _ = built.step(state, frozen, built.batch(1, state))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    kept = [leaf.path for leaf in leaves(run.path)]
    assert kept and all(path.endswith(own) for path in kept), kept
    assert not (run.path / "frozen").exists()
    described(run.path, experiment, begin.fingerprint, begin.tokenizer)
    opened = trainable_part(gptjax.load(run.path).params, first)
    jax.tree.map(np.testing.assert_array_equal, opened, first)


def described(path, experiment, fingerprint, tokenizer):
    """Writes beside checkpoints what says which model they are of."""
    tokenizers.save_tokenizer(path / "tokenizer", tokenizer)
    config.save_config(path / "config.json", experiment)
    hashes = {"start": fingerprint, "tokenizer": tokenizers.hash_tokenizer(tokenizer)}
    (path / "identity.json").write_text(json.dumps(hashes))


@pytest.fixture(scope="module")
def lora_run(tiny_experiment, base_run, tmp_path_factory):
    """A run as `train` leaves it, with an adapter whose products are not zero."""
    path, opened = tmp_path_factory.mktemp("lora") / "lora", open_model(base_run)
    experiment = dataclasses.replace(
        tiny_experiment,
        model=opened.config,
        start=str(base_run),
        adapter=LoRA(rank=2, alpha=5.0, rs=True),
    )
    trainable = random_like(halves(experiment, opened.params)[0])
    described(path, experiment, opened.fingerprint(), opened.tokenizer)
    run = Run(path)
    with run.lock():
        run.save(1, {"params": trainable})
        run.wait()
    return path


def test_adapters_serve_rows_of_one_batch_as_alone(base_run, lora_run, tmp_path):
    assert convert(lora_run, tmp_path / "peft", ConvertOptions(to="peft"), say=[].append)
    model = gptjax.load(base_run).with_adapters({"run": lora_run, "peft": tmp_path / "peft"})
    settings = {"new_tokens": 6, "temperature": 0.0}
    prompts = ["The ", "I ", "A longer one, ", "The "]
    found = model.complete(prompts, adapter=["run", "base", "peft", "base"], batch=2, **settings)
    alone = gptjax.load(lora_run)
    for prompt, one, other in zip(prompts, found, (alone, gptjax.load(base_run)) * 2, strict=True):
        (wanted,) = other.complete([prompt], **settings)
        assert one.ids == wanted.ids
        np.testing.assert_allclose(one.logprobs, wanted.logprobs, atol=1e-5)
    assert found[0].logprobs != found[3].logprobs
    with pytest.raises(ConfigError, match="use is 'other', and the model holds run, peft"):
        model.generate("The ", adapter="other")
    with pytest.raises(ConfigError, match="use different adapters can't be joined with beams"):
        model.complete(prompts[:2], adapter=["run", "base"], beams=2, temperature=0.0)


def test_adapters_lie_on_a_mesh_beside_their_base(base_run, lora_run):
    settings, mesh = {"new_tokens": 6, "temperature": 0.0}, MeshConfig(data=2, fsdp=2, tensor=2)
    opened, wanted = gptjax.load(lora_run, mesh=mesh), gptjax.load(lora_run)
    up = opened.params["layers"]["mlp"]["up"]["kernel"]
    assert up.b.sharding.spec == P(None, None, "tensor")
    assert opened.generate("The ", **settings) == wanted.generate("The ", **settings)
    held = gptjax.load(base_run, mesh=mesh).with_adapters({"run": lora_run})
    found = held.generate("The ", adapter="run", **settings)
    assert found == wanted.generate("The ", **settings)


@pytest.mark.parametrize("stored", [pytest.param("float32", marks=pytest.mark.slow), "int8"])
def test_an_adapter_trains_on_a_mesh_as_on_one_device(stored):
    def losses(devices, **sizes):
        settings = {"adapter": LoRA(rank=2, base=stored), "start": "base"}
        experiment = experiment_of(CONFIG, MeshConfig(**sizes), **settings)
        mesh = make_mesh(experiment.mesh, jax.devices()[:devices])
        batches = [place_batch(batch_of(CONFIG, number), mesh, ROWS) for number in range(3)]
        compiled = program.lowered(experiment, mesh, batches[0]).compile()
        trainable, rest = halves(experiment, base())
        where, frozen = placement.abstract(experiment, mesh)
        begun = step.init(trainable, placement.optimizer(experiment))
        state, rest = jax.tree.map(
            lambda leaf, shape: jax.device_put(leaf, shape.sharding),
            (begun, {"params": rest}),
            (where, frozen),
        )
        told = []
        for batch in batches:
            state, metrics = compiled(state, rest, batch)
            told.append(float(metrics["loss"]))
        return told

    wanted = losses(1)
    assert wanted[0] != wanted[2]
    np.testing.assert_allclose(losses(8, stage=2, fsdp=2, tensor=2), wanted, rtol=1e-5)


def test_a_merged_run_is_the_same_model(base_run, lora_run, tmp_path):
    for name in ("merged", "merged.gguf"):
        assert convert(lora_run, tmp_path / name, ConvertOptions(merge=True), say=[].append)
    with pytest.raises(ConfigError, match="the whole model with --merge, or the adapter"):
        convert(lora_run, tmp_path / "plain", ConvertOptions())
    with pytest.raises(ConfigError, match="has no adapter; omit --merge"):
        convert(base_run, tmp_path / "plain", ConvertOptions(merge=True))
    assert not (tmp_path / "plain").exists()


def test_an_adapter_knows_its_base(lora_run, base_run, tmp_path):
    shutil.copytree(lora_run, tmp_path / "run")
    record = tmp_path / "run" / "identity.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "start": "0" * 64}))
    with pytest.raises(ConfigError, match="holds other weights than the run was trained on"):
        gptjax.load(tmp_path / "run")
    described = tmp_path / "run" / "config.json"
    described.write_text(described.read_text().replace(str(base_run), str(base_run) + "2"))
    with pytest.raises(ConfigError, match=r"which can't be opened.*name its new place as `start`"):
        gptjax.load(tmp_path / "run")


def test_an_adapter_has_little_optimizer_state():
    full = Experiment(model=CONFIG)
    adapted = dataclasses.replace(full, start="base", adapter=LoRA(rank=2))
    sizes, small = (overview(one)["bytes"] for one in (full, adapted))
    assert small["optimizer"] < sizes["optimizer"] / 4
    assert small["parameters"] > sizes["parameters"]


def test_dora_for_each_row_is_refused_where_its_magnitudes_would_be_lost():
    weight = weights.Adapted(
        jnp.ones((4, 2, 3)),
        jnp.ones((2, 4, 1)),
        jnp.ones((2, 1, 2, 3)),
        rows=jnp.array([0, 1]),
        magnitude=jnp.ones((2, 2, 3)),
        squares=jnp.ones((2, 3)),
    )
    with pytest.raises(ConfigError, match="with DoRA, can't have an adapter for each row"):
        weights.contract("bthw,dhw->btd", jnp.ones((2, 5, 2, 3)), weight)
