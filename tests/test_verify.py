"""The proofs pass where nothing is wrong, and each planted defect is named by the right one.

Read `DEFECTS` first: what is planted, and which proofs then fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gptjax.model.attention.layer as attention
import gptjax.model.attention.mask as sights
import gptjax.model.layers as layers
import gptjax.model.positions as positions
import gptjax.model.transformer as transformer
from gptjax import model, verify
from gptjax.cli import main as cli
from gptjax.core import config
from gptjax.data import Batch, batches, prepare
from gptjax.data.tasks import task
from gptjax.data.tokenizers import spelling
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate import decode as decoder
from gptjax.generate import engine
from gptjax.losses import cross_entropy as objectives
from gptjax.runs import Run, payload
from gptjax.sharding.mesh import MeshConfig, place_batch
from gptjax.train import optim, step
from gptjax.train.experiment import Experiment
from gptjax.verify import setting as settings
from gptjax.verify import training
from gptjax.verify.suite import ALIGNMENT, DIFFUSION, REWARDS, SCORES

ROOT = Path(__file__).parents[1]
NAMES = [proof.name for proof in verify.PROOFS]


@pytest.fixture(scope="module")
def experiment(tiny_experiment, text_folder) -> Experiment:
    """Several short texts in a row, dropout, parts: all that a defect could hide in."""
    return dataclasses.replace(
        tiny_experiment,
        model=dataclasses.replace(tiny_experiment.model, residual_dropout=0.1, num_kv_heads=1),
        data=dataclasses.replace(
            tiny_experiment.data,
            source=dataclasses.replace(tiny_experiment.data.source, path=str(text_folder)),
        ),
    )


def computing(experiment: Experiment, compute: str) -> Experiment:
    """The same experiment in this compute type."""
    return dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, compute=compute)
    )


def judged(experiment: Experiment, names: Any) -> dict[str, dict]:
    """What the proofs of these names find, with nothing that was compiled before."""
    with fresh():
        setting = settings.make(experiment, prepare(experiment.data))
        return {proof.name: verify.prove(proof, setting) for proof in verify.choose_proofs(names)}


@contextlib.contextmanager
def fresh():
    """Forgets the only functions that are not compiled anew for each setting, before and after, and
    learns in fewer steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "STEPS", 100)
        for compiled in (decoder.prefill, engine._advance):
            compiled.clear_cache()
        yield
        for compiled in (decoder.prefill, engine._advance):
            compiled.clear_cache()


# --- the defects ---


def off_by_one_mask(patch):
    honest = sights.visible
    patch.setattr(
        sights,
        "visible",
        lambda mask_inputs, *more: honest(
            mask_inputs._replace(queries=mask_inputs.queries + 1), *more
        ),
    )


def segment_leak(patch):
    honest = sights.visible
    patch.setattr(
        sights,
        "visible",
        lambda mask_inputs, *more: honest(
            mask_inputs._replace(query_segments=None, key_segments=None), *more
        ),
    )


def flat_scores(patch):
    honest = attention.reference
    patch.setattr(attention, "reference", lambda q, *rest: honest(q * 0.9, *rest))


def step_left_out_of_the_key(patch):
    honest = step.train_step

    def forgetful(state, *args, **told):
        new, metrics = honest(state._replace(step=jnp.zeros_like(state.step)), *args, **told)
        return new._replace(step=state.step + 1), metrics

    patch.setattr(step, "train_step", forgetful)


def part_left_out_of_the_key(patch):
    honest = step._summed

    def same_key(gradients, objective, trainable, batch, key, parts):
        return honest(gradients, lambda t, b, _: objective(t, b, key), trainable, batch, key, parts)

    patch.setattr(step, "_summed", same_key)


def token_left_out_of_the_key(patch):
    patch.setattr(decoder, "token_keys", lambda keys, number: keys)


def mean_of_means(patch):
    honest = step._summed

    def means(gradients, objective, trainable, batch, key, parts):
        def mean(trainable, part, key):
            total, (weight, more) = objective(trainable, part, key)
            return total / weight, (jnp.ones(()), more)

        return honest(gradients, mean, trainable, batch, key, parts)

    patch.setattr(step, "_summed", means)


def stale_cache_slot(patch):
    honest = transformer.allocate

    def late(cache, positions):
        cache, slots = honest(cache, positions)
        if positions.shape[1] > 1:
            return cache, slots
        return cache, slots._replace(groups=tuple(jnp.maximum(g - 1, 0) for g in slots.groups))

    patch.setattr(transformer, "allocate", late)


def rollback_that_forgets_nothing(patch):
    patch.setattr(model, "rollback", lambda cache, lengths: cache)


def dropped_optimizer_leaf(patch):
    honest = payload.read_leaves

    def forgetful(*args):
        found = honest(*args)
        name = next(name for name, leaf in found["opt_state"].items() if leaf.ndim)
        found["opt_state"][name] = jnp.zeros_like(found["opt_state"][name])
        return found

    patch.setattr(payload, "read_leaves", forgetful)


def label_shifted_in_the_batch(patch):
    honest = task.cut
    patch.setattr(
        task, "cut", lambda *args: (found := honest(*args))._replace(targets=found.tokens)
    )


def label_shifted_in_the_loss(patch):
    honest = objectives.token_losses
    patch.setattr(
        objectives,
        "token_losses",
        lambda logits, targets, *more: honest(logits, jnp.roll(targets, 1, axis=1), *more),
    )


def other_rope_base_at_decode(patch):
    honest = positions.turns
    patch.setattr(
        positions,
        "turns",
        lambda where, width, base, scaling=None: honest(
            where, width, 2 * base if where.shape[1] == 1 else base, scaling
        ),
    )


def stopped_gradient(patch):
    honest = layers.activate
    patch.setattr(layers, "activate", lambda kind, x: honest(kind, jax.lax.stop_gradient(x)))


def rows_read_twice(patch):
    honest = batches.permute
    patch.setattr(batches, "permute", lambda *args: honest(*args) // 2 * 2)


def batch_by_the_count_of_calls(patch):
    honest, calls = batches.batch, iter(range(10**9))
    patch.setattr(
        batches,
        "batch",
        lambda store, plan, step, *part: honest(store, plan, step + next(calls), *part),
    )


def tokenizer_that_normalises(patch):
    honest = spelling.Tokenizer.encode_all
    patch.setattr(
        spelling.Tokenizer,
        "encode_all",
        lambda self, texts: honest(self, [unicodedata.normalize("NFC", text) for text in texts]),
    )


def rounded_logits(patch):
    honest = model.unembed
    patch.setattr(
        model, "unembed", lambda c, params, hidden: honest(c, params, hidden).astype(c.compute)
    )


def rounded_gradients(patch):
    honest = transformer.forward

    def rounded(c, params, *args, **more):
        if c.compute == "bfloat16":
            params = jax.tree.map(lambda leaf: jax.lax.reduce_precision(leaf, 8, 3), params)
        return honest(c, params, *args, **more)

    patch.setattr(model, "forward", rounded)


def wide_initial_weights(patch):
    honest = model.init
    patch.setattr(
        model, "init", lambda c, key: jax.tree.map(lambda leaf: 50 * leaf, honest(c, key))
    )


def optimizer_that_does_not_move(patch):
    honest = optim._direction
    patch.setattr(
        optim,
        "_direction",
        lambda c, *rest: optax.set_to_zero() if isinstance(c, optim.AdamW) else honest(c, *rest),
    )


def settings_of_the_first_row(patch):
    honest = decoder.choose
    patch.setattr(
        decoder,
        "choose",
        lambda logits, sampling, *rest: honest(
            logits, jax.tree.map(lambda x: jnp.full_like(x, x[0]), sampling), *rest
        ),
    )


def rows_lost_on_the_way(patch):
    honest = place_batch

    def lossy(batch, mesh, rows):
        weights = batch.weights.copy()
        weights[0] = 0
        return honest(batch._replace(weights=weights), mesh, rows)

    patch.setattr("gptjax.train.sources.place_batch", lossy)


class Defect(NamedTuple):
    """What is planted, the proofs that must fail, and others that are run with them and must
    pass."""

    plant: Callable[[pytest.MonkeyPatch], None]
    fails: tuple[str, ...]
    beside: tuple[str, ...]
    compute: str = "float32"


DEFECTS = (
    Defect(
        off_by_one_mask,
        ("causal", "attention", "cache", "decoding", "labels"),
        ("packed", "data"),
    ),
    Defect(segment_leak, ("packed", "attention"), ("causal",)),
    Defect(flat_scores, ("attention",), ("causal", "packed")),
    Defect(step_left_out_of_the_key, ("randomness", "overfit"), ("data",)),
    Defect(part_left_out_of_the_key, ("randomness",), ("tokenizer",)),
    Defect(token_left_out_of_the_key, ("randomness",), ("attention",)),
    Defect(mean_of_means, ("micro-batches",), ("labels",)),
    Defect(stale_cache_slot, ("cache", "decoding"), ("causal",)),
    Defect(rollback_that_forgets_nothing, ("cache",), ("packed",)),
    Defect(dropped_optimizer_leaf, ("resume",), ("data",)),
    Defect(label_shifted_in_the_batch, ("data", "labels", "initial-loss"), ("causal",)),
    Defect(label_shifted_in_the_loss, ("labels", "initial-loss"), ("data", "attention")),
    Defect(other_rope_base_at_decode, ("cache", "decoding"), ("causal", "packed")),
    Defect(stopped_gradient, ("gradients",), ("labels",)),
    Defect(rows_read_twice, ("data",), ("tokenizer",)),
    Defect(batch_by_the_count_of_calls, ("data", "resume", "labels", "devices"), ("attention",)),
    Defect(tokenizer_that_normalises, ("tokenizer",), ("data",)),
    Defect(rounded_logits, ("bfloat16",), ("attention",), "bfloat16"),
    Defect(rounded_gradients, ("bfloat16",), ("attention",), "bfloat16"),
    Defect(wide_initial_weights, ("initial-loss", "overfit"), ("labels",)),
    Defect(optimizer_that_does_not_move, ("overfit",), ("micro-batches",)),
    Defect(settings_of_the_first_row, ("neighbours",), ("attention",)),
    Defect(rows_lost_on_the_way, ("devices",), ("micro-batches",)),
)


# --- where nothing is wrong ---


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the run below says."""
    return []


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory) -> Path:
    """What `gptjax train` leaves, as far as the proofs read it."""
    path, data = tmp_path_factory.mktemp("runs") / "run", prepare(experiment.data)
    saved = Run(path)
    with saved.lock():
        saved.save(3, {"params": {"kernel": jnp.ones((300, 200))}})
    config.save_config(path / "config.json", experiment)
    tokenizers.save_tokenizer(path / "tokenizer", data.tokenizer)
    (path / "identity.json").write_text(
        json.dumps({"data": data.content, "tokenizer": tokenizers.hash_tokenizer(data.tokenizer)})
    )
    return path


@pytest.fixture(scope="module")
def report(experiment, run, said) -> dict:
    """Of all proofs, on eight devices, in bfloat16 where a config may choose."""
    with fresh():
        return verify.run_proofs(computing(experiment, "bfloat16"), run=run, say=said.append)


@pytest.mark.slow
def test_all_proofs_pass_where_nothing_is_wrong_and_are_told(report, said, tmp_path):
    """One test, since the run is long and workers would each make their own."""
    assert [(proof["name"], proof["status"]) for proof in report["proofs"]] == [
        (name, "pass") for name in NAMES
    ], report["proofs"]
    assert report["passed"]
    for proof in report["proofs"]:
        assert (
            -1e-3 <= proof["value"] <= proof["limit"]
            and proof["words"]
            and proof["claim"]
            and proof["seconds"] >= 0
        )
    # a line is said for each proof, and one for what is smaller
    lines = [line.split()[:3] for line in said if "/" in line.split()[0]]
    assert lines == [
        [f"{number}/{len(NAMES)}", "pass", name] for number, name in enumerate(NAMES, start=1)
    ]
    (smaller,) = (line for line in said if line.startswith("smaller"))
    assert (
        "steps 30 → 100" in smaller
        and smaller.split(maxsplit=1)[1].split(", ") == report["smaller"]
    )
    # the report says it again, for programs and people
    verify.write_report(tmp_path / "new" / "verify.json", report)
    assert json.loads((tmp_path / "new" / "verify.json").read_text()) == report
    text = (tmp_path / "new" / "verify.txt").read_text()
    assert all(f"pass     {name} " in text for name in NAMES) and text.splitlines()[-1].startswith(
        f"all {len(NAMES)} proofs pass, in "
    )


# --- where something is ---


SLOW = (
    part_left_out_of_the_key,
    token_left_out_of_the_key,
    stopped_gradient,
    rounded_logits,
    rounded_gradients,
    optimizer_that_does_not_move,
    settings_of_the_first_row,
    dropped_optimizer_leaf,
    rows_lost_on_the_way,
)
"""What costs most to find; in a default run the others are planted."""


@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(d, marks=pytest.mark.slow if d.plant in SLOW else (), id=d.plant.__name__)
        for d in DEFECTS
    ],
)
def test_a_planted_defect_is_named(defect, experiment, monkeypatch):
    """The first of the proofs that must fail does, and proofs that have nothing to do with it
    pass."""
    defect.plant(monkeypatch)
    found = judged(computing(experiment, defect.compute), [defect.fails[0], *defect.beside])
    assert {name: result["status"] for name, result in found.items()} == {
        defect.fails[0]: "fail"
    } | dict.fromkeys(defect.beside, "pass"), found
    assert not found[defect.fails[0]]["words"].startswith("raised")


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.plant.__name__)
def test_of_all_proofs_a_planted_defect_fails_just_those_that_it_concerns(
    defect, experiment, monkeypatch
):
    defect.plant(monkeypatch)
    found = judged(computing(experiment, "bfloat16"), ())
    assert not found[defect.fails[0]]["words"].startswith("raised"), found
    assert {name for name, result in found.items() if result["status"] == "fail"} == set(
        defect.fails
    ), found


def test_every_proof_has_a_defect_that_it_names():
    assert {name for defect in DEFECTS for name in defect.fails} == set(NAMES) - {"checkpoints"}, (
        "a flipped bit is further down"
    )


# --- the small twin ---


def shrunk(model_config, **more) -> tuple[Experiment, tuple[str, ...]]:
    return settings.shrink(Experiment(model=model_config, **more))


def test_a_large_model_becomes_small_by_the_rule_and_says_how():
    small, changes = shrunk(model.gpt2("124m"), batch=480, micro_batch=96)
    c = small.model
    assert (c.num_layers, c.context, c.width, c.num_heads, c.head_dim, c.mlp_dim, c.vocab_size) == (
        4,
        128,
        256,
        12,
        20,
        1024,
        50_257,
    )
    assert c.attention == "causal_blocks", "what serves 1,024 positions on a CPU serves 128"
    assert small.micro_batches == 2 and small.batch == 16, "eight devices, two parts"
    assert {
        "model.num_layers 12 → 4",
        "model.width 768 → 256",
        "model.context 1024 → 128",
        "batch 480 → 16",
    } <= set(changes)


@pytest.mark.parametrize("size", ["7b", "70b", "3-405b"])
def test_any_preset_becomes_small_and_keeps_its_kinds(size):
    big = model.llama(size)
    small = shrunk(big)[0].model
    assert (
        small.width <= 256
        and small.head_dim % 2 == 0
        and (small.num_heads, small.kv_heads) == (big.num_heads, big.kv_heads)
    )
    kinds = (
        "positions",
        "rope_base",
        "norm",
        "activation",
        "bias",
        "tied",
        "vocab_size",
        "qk_norm",
        "compute",
    )
    assert [getattr(small, kind) for kind in kinds] == [getattr(big, kind) for kind in kinds]


def test_a_small_config_stays_as_it_is():
    told = {
        "optim": optim.AdamW(peak=1e-2),
        "schedule": optim.Schedule(warmup=5),
        "batch": 8,
        "steps": settings.STEPS,
    }
    assert shrunk(model.small("tiny"), **told) == (
        Experiment(model=model.small("tiny"), **told),
        (),
    )


def test_a_mesh_of_another_machine_gives_way():
    small, changes = shrunk(model.small("tiny"), mesh=MeshConfig(fsdp=64))
    assert small.mesh == MeshConfig() and "mesh.fsdp 64 → 1" in changes


def test_what_no_reader_can_know_is_the_entropy_of_what_follows_equal_beginnings():
    tokens = np.asarray([[5, 1, 2, 5], [5, 1, 3, 5]], np.int32)
    targets = np.asarray([[1, 2, 5, 7], [1, 3, 5, 8]], np.int32)
    positions = np.asarray(
        [[0, 1, 2, 0], [0, 1, 2, 0]], np.int32
    )  # a new text begins at the last place
    batch = Batch(tokens, targets, np.ones((2, 4), np.float32), positions * 0, positions)
    after_five, after_five_one = (
        -(2 * math.log(1 / 2) + 2 * math.log(1 / 4)),
        2 * math.log(2),
    )  # 1, 1, 7, 8 and 2, 3
    assert training.unavoidable(batch) == pytest.approx((after_five + after_five_one) / 8)


# --- the command ---


@pytest.fixture
def command(experiment, tmp_path, monkeypatch, capsys):
    """Runs `gptjax verify` on the tiny config in an empty folder; gives status, output and
    errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    config.save_config(tmp_path / "tiny.json", experiment)

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(["verify", *args])
        return status, *capsys.readouterr()

    return run


def test_the_command_says_pass_and_leaves_a_report(command, tmp_path):
    status, out, _ = command("tiny.json", "--only", "data", "tokenizer", "--seed", "7")
    assert (
        status == 0
        and " 1/2  pass     tokenizer" in out
        and out.splitlines()[-1].startswith("all 2 proofs pass")
    )
    report = json.loads((tmp_path / "verify.json").read_text())
    assert (
        report["passed"] and report["config"]["seed"] == 7 and (tmp_path / "verify.txt").is_file()
    )


def test_the_command_fails_with_status_1_and_says_what_to_do(command, monkeypatch):
    tokenizer_that_normalises(monkeypatch)
    status, out, _ = command(
        "tiny.json", "--only", "tokenizer", "data", "--report", "deep/other.json"
    )
    last = out.splitlines()[-1]
    assert status == 1 and " 1/2  FAIL     tokenizer" in out and " 2/2  pass     data" in out
    assert (
        last.startswith("FAILED: tokenizer. ")
        and "gptjax doctor" in last
        and "deep/other.json" in last
    )


def test_json_is_all_there_is_on_standard_output(command):
    status, out, err = command("tiny.json", "--only", "tokenizer", "--json")
    assert (
        status == 0 and json.loads(out)["proofs"][0]["name"] == "tokenizer" and "1/1  pass" in err
    )


def test_a_proof_that_raises_has_failed_and_the_others_go_on(command, monkeypatch):
    monkeypatch.setattr(tokenizers, "hash_tokenizer", lambda tokenizer: 1 / 0)
    status, out, _ = command("tiny.json", "--only", "tokenizer", "attention")
    assert (
        status == 1
        and "FAIL     tokenizer      inf > 0  raised ZeroDivisionError: division by zero" in out
        and "pass     attention" in out
    )


def test_bfloat16_is_skipped_with_the_reason_where_it_is_not_used(command):
    status, out, _ = command("tiny.json", "--only", "bfloat16")
    assert (
        status == 0
        and "skipped  bfloat16       the config computes in float32" in out
        and "all 0 proofs pass, 1 skipped" in out
    )


def test_a_run_is_held_to_the_data_that_it_recorded(command, run, tmp_path):
    """The report lies in the run directory."""
    shutil.copytree(run, tmp_path / "run")
    assert (
        command("run", "--only", "data")[0] == 0
        and json.loads((tmp_path / "run/verify.json").read_text())["passed"]
    )
    recorded = json.loads((run / "identity.json").read_text())
    (tmp_path / "run/identity.json").write_text(json.dumps(recorded | {"data": "another"}))
    assert command("run/config.json", "--only", "data")[0] == 1


def test_a_flipped_bit_in_a_checkpoint_is_found(command, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    largest = max(
        (tmp_path / "run/checkpoints/3/params").rglob("*"),
        key=lambda file: file.stat().st_size if file.is_file() else -1,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    status, out, _ = command("run", "--only", "checkpoints", "tokenizer")
    assert (
        status == 1
        and "FAIL     checkpoints    1 > 0  of 1 saved steps are damaged: 3 (params/" in out
    )
    assert out.splitlines()[-1].startswith("FAILED: checkpoints. ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["tiny.json", "--only", "casual"], ["'casual' is not a proof", "Did you mean 'causal'"]),
        (["nothere.py"], ["nothere.py is not there"]),
        (["hf"], ["hf/config.json: architectures is not a setting of Experiment"]),
        (["empty"], ["holds no config.json"]),
        (["tiny.json", "--model.context", "8"], ["model.context is 8", "--model.context 16"]),
        (["tiny.json", "--data.source.path", "nothere.txt"], ["nothere.txt is not there"]),
    ],
)
def test_what_is_not_a_config_or_a_run_is_refused_in_one_line(args, words, command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(
        '{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}'
    )
    status, _, err = command(*args)
    assert status == 2 and err.count("\n") == 1 and all(word in err for word in words), err


def test_help_names_every_proof_and_what_runs_without_a_config(command):
    status, out, _ = command("--help")
    assert (
        status == 0
        and all(name in out for name in NAMES)
        and "Without CONFIG" in " ".join(out.split())
    )


def test_the_page_has_a_row_for_every_proof_in_order():
    rows = [
        line.split("|")[1].strip(" `")
        for line in (ROOT / "docs/verify.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    kinds = (verify.PROOFS, ALIGNMENT, SCORES, REWARDS, DIFFUSION)
    assert rows == list(dict.fromkeys(proof.name for kind in kinds for proof in kind))
