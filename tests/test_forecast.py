"""What can't be is told with its numbers before anything is read or allocated, and memory that runs
out with the flag that mends it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import pytest
from runs import in_time

from gptjax.cli import main as cli
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import Characters, prepare
from gptjax.model import llama
from gptjax.sharding.mesh import MeshConfig, bytes_per_device
from gptjax.train import forecast, program
from gptjax.train.optim import SGD

ROOT = Path(__file__).parents[1]

IMPOSSIBLE = {
    "heads that do not divide the width": (
        "--model.num-heads 3",
        "model.width is 32",
        "3 heads",
        "--model.width",
    ),
    "key/value heads that do not divide": (
        "--model.num-heads 4 --model.num-kv-heads 3",
        "4",
        "3 key/value heads",
        "--model.num-kv-heads",
    ),
    "RoPE over an odd head": ("--model.head-width 15", "15 wide", "even", "--model.head-width 16"),
    "micro-batches that do not divide": (
        "--micro-batch 3",
        "micro_batch is 3",
        "batch of 8",
        "--micro-batch 8",
    ),
    "rows that the devices do not divide": ("--batch 12", "12 rows", "8 devices", "--batch 16"),
    "a mesh larger than the machine": ("--mesh.tensor 1000", "1000", "8 devices", "--mesh.tensor"),
    "a model larger than the memory": (
        "--model.width 65536 --model.num-layers 64 --mesh.data 8",
        "needs at least",
        "GB of weights",
        "--model.width",
        "--mesh.fsdp 8",
    ),
    "a vocabulary larger than the memory": (
        "--model.vocab-size 2000000000",
        "needs at least",
        "--model.vocab-size",
    ),
    "a vocabulary beyond all counting": (
        "--model.vocab-size 10000000000",
        "2,147,483,647",
        "--model.vocab-size",
    ),
    "a batch larger than the memory": (
        "--batch 134217728",
        "needs at least",
        "GB for a step",
        "--micro-batch 67108864",
    ),
    "rows longer than the memory": (
        "--model.context 1000000000",
        "needs at least",
        "GB for a step",
        "--model.remat full",
        "--model.context 500000000",
    ),
}


@pytest.mark.row(51)
def test_the_impossible_is_refused_with_its_numbers_before_data_are_read(
    tiny_experiment, tmp_path, capsys, monkeypatch, record_property
):
    monkeypatch.setattr(
        "gptjax.train.loop.prepare", lambda *_, **__: pytest.fail("the data were read")
    )
    config.save_config(tmp_path / "tiny.json", tiny_experiment)
    slowest = 0.0
    for flags, *words in IMPOSSIBLE.values():
        begun = time.process_time()
        assert (
            cli.main(
                [
                    "train",
                    str(tmp_path / "tiny.json"),
                    "--dir",
                    str(tmp_path / "run"),
                    *flags.split(),
                ]
            )
            == 2
        )
        slowest = max(slowest, time.process_time() - begun)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and all(word in said for word in words), said
    record_property(
        "figure",
        f"{len(IMPOSSIBLE)} of {len(IMPOSSIBLE)} refused with numbers and flags in at most"
        f" {slowest:.2f} s of computing",
    )
    in_time(slowest, 1)


@pytest.mark.row(51)
def test_what_fits_is_not_refused_and_what_almost_fits_is(tiny_experiment, monkeypatch):
    """The least that is forecast is no more than the compiled step needs; one byte less than that
    is refused after compiling."""
    forecast.require_possible(tiny_experiment)
    forecast.require_possible(
        dataclasses.replace(
            tiny_experiment, data=dataclasses.replace(tiny_experiment.data, tokenizer=Characters())
        )
    )
    resolved = dataclasses.replace(
        tiny_experiment, model=dataclasses.replace(tiny_experiment.model, vocab_size=257)
    )
    built = program.build(resolved, prepare(tiny_experiment.data))
    need = bytes_per_device(built.state) + built.temporary_bytes
    monkeypatch.setattr(forecast, "free_bytes", lambda: need)
    forecast.require_possible(resolved)
    forecast.require_fits(resolved, built)
    monkeypatch.setattr(forecast, "free_bytes", lambda: need - 1)
    with pytest.raises(
        ConfigError, match=r"^a device needs .* GB .*--model\.remat full.*--model\.context 16"
    ):
        forecast.require_fits(resolved, built)
    monkeypatch.setattr(forecast, "free_bytes", lambda: None)
    forecast.require_fits(resolved, built)


def test_a_published_giant_is_refused_and_its_share_said(tiny_experiment, monkeypatch):
    giant = dataclasses.replace(
        tiny_experiment, model=llama("3-405b"), optim=SGD(momentum=0.0), mesh=MeshConfig(data=8)
    )
    monkeypatch.setattr(forecast, "free_bytes", lambda: 80 * 10**9)
    with pytest.raises(
        ConfigError,
        match=r"needs at least 32\d\d\.\d\d GB \(16\d\d\.\d\d GB of weights and optimizer state",
    ):
        forecast.require_possible(giant)


def test_the_free_memory_is_that_of_the_host_shared_by_its_devices():
    free = forecast.free_bytes()
    assert (
        free is not None
        and 0
        < free * len(jax.local_devices())
        <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 2
    )


OUT_OF_MEMORY = """
import resource, sys
import jax
from gptjax.cli import main as cli
from gptjax.train import loop

finish = loop.program.build

def build(*args, **more):
    built = finish(*args, **more)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    # from here on the kernel gives 100 MB, whatever was free before
    resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,) * 2)
    return built

loop.program.build = build
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.row(51)
def test_memory_that_runs_out_on_the_way_names_the_flag(tiny_experiment, tmp_path, record_property):
    """The kernel refuses memory to a real process in the middle of its first steps."""
    config.save_config(tmp_path / "tiny.json", tiny_experiment)
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(OUT_OF_MEMORY),
        str(tmp_path / "tiny.json"),
        "--dir",
        str(tmp_path / "run"),
        "--batch",
        "16384",
    ]
    quick = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    }
    done = subprocess.run(command, cwd=ROOT, env=quick, capture_output=True, text=True, timeout=200)
    last = done.stderr.splitlines()[-1]
    assert (
        done.returncode == 2
        and last.startswith("error: the memory was full")
        and "--micro-batch 8192" in last
    ), done.stderr[-2000:]
    record_property(
        "figure", f"memory refused by the kernel in a step: {last.removeprefix('error: ')}"
    )


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123000000 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_is_one_line_and_other_errors_stay(error, tiny_experiment):
    for experiment, flag in (
        (dataclasses.replace(tiny_experiment, batch=32), "--micro-batch 16"),
        (tiny_experiment, "--model.remat full"),
        (None, "--num-samples"),
    ):
        with (
            pytest.raises(ConfigError, match=rf"^the memory was full.*{flag}"),
            forecast.explained(experiment),
        ):
            raise error
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), forecast.explained():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
