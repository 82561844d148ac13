"""What a plan says is what a program holds: FLOPs, bytes on the wire and memory against counts by
hand, on stored programs and on compiled ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from small_plans import CASES, GOLDEN, golden, llama

from gptjax.cli import main as cli
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, DataConfig, Prompts, Puzzles, Text
from gptjax.losses import CrossEntropy, Policy
from gptjax.model import ModelConfig, empty_cache, flops_per_token
from gptjax.model.cost import products_per_key
from gptjax.plan import sampling, scaling, search, serving
from gptjax.plan import target as targets
from gptjax.plan.collectives import members, spanned
from gptjax.plan.compiled import compile_step
from gptjax.plan.hlo import analyse
from gptjax.plan.plan import plan_step, readable
from gptjax.plan.report import format_plan
from gptjax.plan.text import parse, runs
from gptjax.rewards import Solved
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.train.experiment import Experiment
from gptjax.train.rollout import Rollout

HLO = Path(__file__).parent / "fixtures" / "hlo"
LAYERS, WIDTH, ROWS = 6, 1024, 512
"""Of the stored programs: `fixtures/make_hlo.py`."""

STORED = {
    "v5e": ({"slice": 1, "fsdp": 8}, 8),
    "h100": ({"slice": 1, "fsdp": 8}, 8),
    "v5e_slices": ({"slice": 2, "fsdp": 4}, 4),
}


def stored(name: str):
    return analyse((HLO / f"{name}.txt").read_text(encoding="utf-8"), STORED[name][0])


# --- programs that are stored ---


@pytest.mark.parametrize("name", STORED)
def test_loops_count_as_often_as_they_turn(name):
    """Four products a layer: forward, again, and of both gradients."""
    found = stored(name)
    assert found.flops == 4 * LAYERS * 2 * (ROWS / 8) * WIDTH**2 and not found.endless
    assert sum(one.flops for one in found.operations) < found.flops / 3


@pytest.mark.parametrize("name", STORED)
def test_bytes_on_the_wire_are_those_of_the_hand(name):
    """Every device gathers all weights forward and backward and scatters all gradients, once each,
    two bytes a weight."""
    found, ways = stored(name), STORED[name][1]
    whole = LAYERS * WIDTH**2 * 2 * (ways - 1) / ways

    def sent(kind):
        return sum(
            one.times * one.wire
            for one in found.collectives
            if one.kind == kind and one.axes == ("fsdp",)
        )

    assert (sent("all-gather"), sent("reduce-scatter"), sent("all-reduce")) == (2 * whole, whole, 0)


def test_what_goes_between_slices_is_told_apart():
    """The scattered gradients are summed over two slices by each device sending its own part
    once."""
    between = [one for one in stored("v5e_slices").collectives if one.kind == "send"]
    assert sum(one.times * one.wire for one in between) == LAYERS * WIDTH**2 * 2 / 4 and {
        one.axes for one in between
    } == {("slice",)}


def test_what_waits_for_the_backward_pass_is_one_stream_a_layer():
    assert stored("v5e").kept == stored("h100").kept == LAYERS * ROWS / 8 * WIDTH * 2


def test_only_tpu_compilers_estimate_cycles():
    assert stored("v5e").total("cycles") > 0 and stored("h100").total("cycles") == 0


def test_a_counter_is_run_where_nobody_notes_a_loops_length():
    counted = "known_trip_count" not in (HLO / "v5e.txt").read_text()
    times = {run.times for run in runs(parse((HLO / "v5e.txt").read_text()))[0].values()}
    assert counted and times == {1, LAYERS}


def test_a_group_is_read_however_it_is_written():
    class One:
        def __init__(self, groups: str):
            self.attributes = f"channel_id=1, {groups}, use_global_device_ids=true"

    ways = {
        "replica_groups={{0,2,4,6},{1,3,5,7}}": (0, 2, 4, 6),
        "replica_groups=[2,4]<=[4,2]T(1,0)": (0, 2, 4, 6),
        "replica_groups=[2,4]<=[8]": (0, 1, 2, 3),
        "replica_groups=mesh['a'=4,'b'=2] {'a'}": (0, 2, 4, 6),
        "replica_groups=mesh['a'=8] {'a':(1)4}": (0, 2, 4, 6),
        "replica_groups=mesh['a'=8] {'a':(2)4}": (0, 1, 2, 3),
        "source_target_pairs={{0,1},{1,0}}": (0, 1),
        "replica_groups={}": tuple(range(8)),
    }
    assert {groups: members(One(groups), 8) for groups in ways} == ways
    assert spanned((0, 2, 4, 6), {"data": 2, "fsdp": 2, "tensor": 2}) == ("data", "fsdp")


def test_two_calls_of_one_channel_are_two_and_an_asynchronous_one_in_three_pieces_is_one():
    gather = (
        "  %{} = bf16[8,4]{{1,0}} all-gather(%p), channel_id=1, replica_groups={{{{0,1}}}},"
        " dimensions={{0}}"
    )
    inside = (
        "  %p = bf16[4,4]{{1,0}} parameter(0)\n{}\n  ROOT %a = bf16[8,4]{{1,0}} all-gather(%p),"
        " channel_id=2, replica_groups={{{{0,1}}}}"
    )
    piece = "%piece.{} (p: bf16[4,4]) -> bf16[8,4] {{\n" + inside + "\n}}"
    start = '  %s = u32[] custom-call(), custom_call_target="AsyncCollectiveStart"'
    calls = [
        f"  %f{i} = bf16[8,4]{{1,0}} fusion(%p), kind=kLoop, calls=%piece.{i}" for i in range(3)
    ]
    entry = [
        "ENTRY %main (p: bf16[4,4]) -> bf16[8,4] {",
        "  %p = bf16[4,4]{1,0} parameter(0)",
        gather.format("a"),
        gather.format("b"),
        *calls,
        "}",
    ]
    text = "\n".join(
        [
            "HloModule m, num_partitions=2",
            *(piece.format(i, start if i == 0 else "") for i in range(3)),
            *entry,
        ]
    )
    assert len(analyse(text, {"fsdp": 2}).collectives) == 3


def test_operations_are_named_as_a_reader_knows_them():
    assert (
        readable(
            "jit(taught)/transpose(jvp())/while/body/eval_jaxpr/checkpoint/Block/mlp/gate/dot_general"
        )
        == "backward: Block/mlp/gate/dot_general"
    )


# --- programs that are compiled here ---


def experiment(**changed) -> Experiment:
    model = {
        "vocab_size": 512,
        "context": 64,
        "width": 64,
        "num_layers": 2,
        "num_heads": 4,
        "positions": "rope",
        "norm": "rmsnorm",
        "bias": False,
        "tied": False,
    }
    model |= {"layers": "scan", "attention": "reference"}
    mesh = MeshConfig(**changed.pop("mesh", {"fsdp": 8}))
    batch = changed.pop("batch", 8)
    data = DataConfig(source=Text("none.txt"), tokenizer=Bytes(), isolated=False)
    return Experiment(model=ModelConfig(**model | changed), data=data, mesh=mesh, batch=batch)


def analytic(one: Experiment) -> float:
    """FLOPs of a step with attention computed as a whole square, and of the layers once more
    forward where they are computed again, but for the product that ends a block, of which nobody
    asks the result."""
    model, tokens = one.model, one.tokens_per_step
    head = 2 * model.width * model.vocab_size
    products = (
        flops_per_token(dataclasses.replace(model, context=1), 1, training=False)
        - 2 * model.num_layers * products_per_key(model)
        - head
    )
    layers = products + 2 * model.num_layers * products_per_key(model) * model.context
    again = (
        layers - 2 * model.num_layers * model.width * model.mlp_dim if model.remat == "full" else 0
    )
    return tokens * (3 * head + 3 * layers + again)


@pytest.fixture(scope="module")
def small():
    """The plan of one small step on eight CPU devices."""
    one = experiment(remat="full")
    return one, plan_step(one, targets.parse_target("cpu:8"))


def test_flops_are_the_analytic_ones(small):
    one, facts = small
    assert facts["flops"]["hardware"] * 8 == pytest.approx(analytic(one), rel=1e-3)
    assert facts["flops_per_step"] == flops_per_token(one.model, 64) * 8 * 64


def test_memory_is_split_into_all_that_there_is(small):
    one, facts = small
    assert sum(facts["memory"].values()) == pytest.approx(facts["peak_bytes_per_device"], abs=8)
    assert (
        facts["memory"]["parameters"] <= facts["parameters"] * 4 / 8 * 1.02
        and facts["memory"]["optimizer"] >= 2 * facts["memory"]["parameters"]
    )
    assert (
        facts["memory"]["activations"] >= one.model.num_layers * 64 * 64 * 4
    )  # a residual stream a layer


def test_a_plan_is_plain_values_and_reads_well(small):
    facts = small[1]
    assert json.loads(json.dumps(facts)) == facts
    assert {
        "fits",
        "peak_bytes_per_device",
        "flops_per_step",
        "collectives",
        "step_seconds",
        "mfu",
    } <= facts.keys()
    lines = format_plan(facts)
    assert (
        facts["fits"]
        and "fits" in lines
        and "all-gather over fsdp" in lines
        and len(facts["dearest"]) == 10
    )


def test_a_target_is_refused_in_a_line_that_mends_it():
    for wrong, word in (
        ("v5p:4x4", "v5p:4x4x4"),
        ("v9:2", "v4, v5e"),
        ("v5p", "v5p:4x8x8"),
        ("2*h100:1x8", "h100:2x8"),
        ("cpu:99", "device_count=99"),
    ):
        with pytest.raises(ConfigError, match=word.replace("*", r"\*")):
            targets.stand_in_devices(targets.parse_target(wrong))


@pytest.mark.parametrize("target", ["v5e:2x4", "h100:1x8"])
def test_a_missing_compiler_is_named_with_its_extra(target, monkeypatch):
    monkeypatch.setattr(targets, "_installed", lambda package: False)
    with pytest.raises(ConfigError, match=r"gptjax\[plan-(tpu|gpu)\]"):
        targets.stand_in_devices(targets.parse_target(target))


def test_slices_are_rings_where_they_are_whole_cubes():
    rings = {
        text: targets.parse_target(text).wrapped
        for text in ("v5p:4x4x4", "v5p:2x4x4", "v5e:16x16", "v6e:8x16", "h100:2x8")
    }
    assert rings == {
        "v5p:4x4x4": (True,) * 3,
        "v5p:2x4x4": (False,) * 3,
        "v5e:16x16": (True, True),
        "v6e:8x16": (False, True),
        "h100:2x8": (),
    }


def test_changes_are_tried_from_the_cheapest_to_all_together():
    flags = [
        way.flags
        for way in search.changes(
            experiment(mesh={"data": 8}, batch=32), targets.parse_target("cpu:8")
        )
    ]
    assert (
        flags[0] == "--mesh.fsdp 8"
        and flags[-1] == "--mesh.fsdp 8 --micro-batch 8 --loss.vocab-parts 8 --model.remat full"
    )


# --- serving ---


def test_a_server_is_planned_by_the_bytes_that_it_holds(monkeypatch, capsys):
    monkeypatch.setattr(targets, "stand_in_devices", lambda target: [None])
    one, target = experiment().model, targets.parse_target("v5e:1x1")
    facts = serving.plan_serving(one, target, slots=4, context=64, cache_gib=0)
    held = jax.eval_shape(lambda: empty_cache(one, 4, 64)).groups
    assert facts["rows_bytes"] == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held))
    more = serving.plan_serving(one, target, slots=facts["most_slots"] + 1, context=64, cache_gib=0)
    most = serving.plan_serving(one, target, slots=facts["most_slots"], context=64, cache_gib=0)
    assert most["fits"] and not more["fits"]
    args = ["plan", "llama-70b", "--target", "v5e:1x1", "--serve", "--slots", "2"]
    assert cli.main(args) == 3 and "does NOT fit" in capsys.readouterr().out


# --- sampling ---


def test_a_rollout_has_to_fit_beside_the_state(monkeypatch):
    """Cache, logits and time against counts by hand; the same step that fits without it."""
    plain = experiment(mesh={"data": 1}, batch=16)
    data = DataConfig(Puzzles("sums"), Bytes(), task=Prompts())
    rollout = Rollout((Solved(),), answers=8, new_tokens=32, updates=2, rows=8)
    one = dataclasses.replace(plain, data=data, loss=Policy(), rollout=rollout)
    monkeypatch.setattr(targets, "stand_in_devices", lambda target: jax.devices()[:1])
    facts = plan_step(one, targets.parse_target("cpu:1"))
    found = facts["rollout"]
    text = 64 * (2 * 2 * 64 * 4 + 4)  # keys and values of two layers, and positions
    assert found["cache_bytes_per_device"] == (8 + 1) * text and found["seconds"] is None
    held = facts["memory"]["parameters"] + facts["memory"]["optimizer"]
    needs = held + 9 * text + 8 * 512 * 4
    assert found["peak_bytes_per_device"] == pytest.approx(needs, abs=2)
    assert facts["fits"] and "8 at once" in format_plan(facts)

    chip, mesh = targets.CHIPS["v5e"], make_mesh(one.mesh, jax.devices()[:1])
    timed = sampling.plan_rollout(one, targets.parse_target("v5e:1x1"), mesh, held)
    read = facts["parameters"] * 4 + 8 * text / 2
    assert timed["seconds"] == pytest.approx(2 * 32 * read / chip.bandwidth)
    assert timed["seconds_per_step"] == timed["seconds"] / 2

    many = dataclasses.replace(one, batch=1 << 15, rollout=dataclasses.replace(rollout, rows=None))
    more = sampling.plan_rollout(many, targets.parse_target("v5e:1x1"), mesh, held)
    monkeypatch.setattr(targets, "host_bytes", lambda: more["peak_bytes_per_device"] - 1)
    monkeypatch.setattr(sampling, "plan_rollout", lambda *_: dict(more))
    tight = plan_step(one, targets.parse_target("cpu:1"))
    assert not tight["fits"] and "its rollout does not" in format_plan(tight)


def test_the_largest_batch_fills_what_the_weights_leave(monkeypatch):
    monkeypatch.setattr(targets, "stand_in_devices", lambda target: [None] * 4)
    model = dataclasses.replace(experiment().model, compute="bfloat16")
    facts, chip = (
        sampling.plan_sampling(model, targets.parse_target("v5e:2x2")),
        targets.CHIPS["v5e"],
    )
    assert facts["cache_bytes_per_text"] == pytest.approx(
        2 * 2 * 2 * 64 * 64, rel=0.05
    )  # keys and values of two layers, two bytes, and positions
    used = facts["weight_bytes"] + facts["largest_batch"] * facts["cache_bytes_per_text"]
    assert used <= 4 * chip.memory < used + facts["cache_bytes_per_text"]
    one = next(row["tokens_per_second"] for row in facts["speeds"] if row["batch"] == 1)
    assert one == pytest.approx(
        4 * chip.bandwidth / (facts["weight_bytes"] + facts["cache_bytes_per_text"] / 2)
    )


def test_the_exit_status_says_whether_it_fits(monkeypatch, capsys):
    monkeypatch.setattr(targets, "stand_in_devices", lambda target: [None])
    assert cli.main(["plan", "llama-70b", "--target", "v5e:1x1", "--sampling", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["largest_batch"] == 0
    assert (
        cli.main(
            [
                "plan",
                "llama-3.2-1b",
                "--target",
                "v5e:1x1",
                "--sampling",
                "--length",
                "1024",
                "--model.compute",
                "bfloat16",
            ]
        )
        == 0
    )
    assert "texts at once" in capsys.readouterr().out
    assert cli.main(["plan", "llama-70b", "--target", "v5e:1x1x1"]) == 2
    assert "v5e has 2 sides" in capsys.readouterr().err


# --- the law of loss and compute ---


def test_a_law_is_found_again_and_its_interval_holds():
    def law(compute):
        return 1.5 + 2.0 * (compute / 1e12) ** -0.3

    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(40):
        points = [
            scaling.Point(str(c), c, law(c) + draw.normal(0, 0.004))
            for c in (1e11, 2e11, 4e11, 8e11, 1.6e12, 3.2e12)
        ]
        _, low, high = scaling.predict_loss(scaling.fit(points), 3.2e13, len(points))
        inside += low <= law(3.2e13) <= high
    exact = scaling.fit(
        [scaling.Point(str(c), c, law(c)) for c in (1e11, 2e11, 4e11, 8e11, 1.6e12)]
    )[0]
    assert exact(3.2e13) == pytest.approx(
        law(3.2e13), rel=1e-3
    ) and exact.exponent == pytest.approx(0.3, rel=0.02)
    assert inside >= 36, f"{inside} of 40 intervals of 95 % hold the law"


def test_a_run_that_did_not_finish_is_refused(tmp_path):
    config.save_config(tmp_path / "config.json", experiment())
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "validation_loss": 2.0}\n')
    with pytest.raises(ConfigError, match="no held-out loss at its last step 1000"):
        scaling.point(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1000, "validation_loss": 2.0}\n')
    found = scaling.point(tmp_path)
    assert (
        found.loss == 2.0
        and found.compute == flops_per_token(experiment().model, 64) * 1000 * 8 * 64
    )


def test_too_few_runs_or_runs_alike_are_refused():
    with pytest.raises(ConfigError, match="at least 4 runs"):
        scaling.fit([scaling.Point("a", 1.0, 2.0)] * 3)
    with pytest.raises(ConfigError, match="twice as dear"):
        scaling.fit([scaling.Point("a", 1.0, 2.0)] * 5)


# --- programs for machines that are not here ---

TPU = pytest.mark.skipif(not targets._installed("libtpu"), reason="needs the extra plan-tpu")
GPU = pytest.mark.skipif(
    not targets._installed("jax_plugins.xla_cuda13"), reason="needs the extra plan-gpu"
)


def needs(name: str):
    return pytest.param(name, marks=TPU if name.startswith("tpu") else GPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", [needs(name) for name in CASES])
def test_small_plans_are_as_they_were(name):
    kept, found = json.loads(GOLDEN.read_text())[name], golden(CASES[name])
    again = "python tests/small_plans.py writes them anew"
    assert found["hardware"] == pytest.approx(kept["hardware"], rel=1e-6) and found[
        "kernels"
    ] == pytest.approx(kept["kernels"], rel=1e-6), again
    assert found["peak"] == pytest.approx(kept["peak"], rel=0.02), again
    assert found["sent"] == pytest.approx(kept["sent"], rel=1e-3), again


def hand(one: Experiment, ways: int, twice: bool) -> float:
    """Bytes of weights that fully sharded training sends, two for each: layers and output gathered
    forward and backward and their gradients scattered; the embedding gathered once, and its
    gradient scattered, which a TPU's compiler sums everywhere for twice as much.
    """
    model = one.model
    layers = model.num_layers * (4 * model.width**2 + 3 * model.width * model.mlp_dim)
    table = model.width * model.vocab_size
    return 2 * (3 * (layers + table) + (3 if twice else 2) * table) * (ways - 1) / ways


@pytest.mark.slow
@pytest.mark.parametrize("name", [needs(name) for name in ("tpu_fsdp", "gpu_fsdp")])
def test_a_steps_bytes_on_the_wire_are_those_of_the_hand(name):
    case = CASES[name]
    one = llama(case.mesh, **case.changed)
    done = compile_step(one, targets.parse_target(case.target), fast=True)
    sent = sum(c.times * c.wire for c in done.analysis.collectives)
    assert sent == pytest.approx(hand(one, 8, name.startswith("tpu")), rel=0.02)


@pytest.mark.slow
@TPU
def test_a_tpu_step_computes_and_sends_what_it_should():
    one = llama({"fsdp": 8})
    one = dataclasses.replace(one, loss=CrossEntropy())
    facts = plan_step(one, targets.parse_target("v5e:2x4"), fast=True)
    of_keys = one.tokens_per_step * one.model.num_layers * products_per_key(one.model)
    kernels = (
        11 * of_keys * (one.model.context + 1) / 2
    )  # twice forward, again as often, seven times backward, where a query sees a key
    squares = 8 * of_keys * one.model.context
    heads = one.model.num_heads + one.model.kv_heads
    turns = (
        3
        * one.model.num_layers
        * 2
        * one.tokens_per_step
        * heads
        * (one.model.width // one.model.num_heads) ** 2
    )  # halves of a head change places: forward, again, backward
    assert facts["flops"]["kernels"] * 8 == pytest.approx(kernels, rel=1e-3)
    assert (facts["flops"]["hardware"] - facts["flops"]["kernels"]) * 8 == pytest.approx(
        analytic(one) - squares + turns, rel=1e-3
    )


@pytest.mark.slow
@TPU
def test_a_program_too_large_for_a_tpu_is_called_so():
    facts = plan_step(
        llama({"fsdp": 8}, width=4096, num_layers=48, num_heads=32),
        targets.parse_target("v5e:2x4"),
        fast=True,
    )
    assert not facts["fits"] and facts["peak_bytes_per_device"] > facts["memory_bytes_per_device"]


@pytest.mark.slow
@GPU
def test_a_program_too_large_for_a_gpu_is_called_so_though_its_compiler_takes_it():
    facts = plan_step(
        llama({"fsdp": 8}, width=8192, num_layers=80, num_heads=64, attention="reference"),
        targets.parse_target("h100:1x8"),
        fast=True,
    )
    assert not facts["fits"] and facts["flops"] is not None
