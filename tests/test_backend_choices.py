"""What is chosen for each backend: XLA flags, loops over layers, products of experts, weights for
decoding. The backends need not be here."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from variants import ROPE

from gptjax import model
from gptjax.cli import doctor
from gptjax.core import backend, xla_flags
from gptjax.core.xla_flags import FLAGS, Verdict, set_flags
from gptjax.model import Experts, decoding
from gptjax.model.moe import dispatch
from gptjax.model.stack import scanned
from gptjax.weights import Quantized

GPU = [flag.name for flag in FLAGS if flag.backend == "gpu"]


def library(folder, name, known):
    """A file with these names among its bytes."""
    path = folder / name
    path.write_bytes(b"\x7fELF" + b"\0".join(one.encode() for one in ("", *known, "")))
    return path


def test_flags_are_set_where_every_library_knows_them_and_the_user_left_them(tmp_path, monkeypatch):
    given = f"--{GPU[1]}=false --xla_dump_to=/tmp/x"
    monkeypatch.setenv("XLA_FLAGS", given)
    everything = library(tmp_path, "jaxlib.so", GPU)
    plugin = library(tmp_path, "plugin.so", [*GPU[:2], f"{GPU[2]}_longer", GPU[3]])
    verdicts = set_flags("gpu", (everything, plugin))
    assert [one.told for one in verdicts] == ["set", "yours", "unknown", "set"]
    assert os.environ["XLA_FLAGS"] == f"{given} --{GPU[0]}=true --{GPU[3]}=true"
    again = set_flags("gpu", (everything, plugin))
    assert [one.told for one in again] == ["yours", "yours", "unknown", "yours"], (
        "a child process inherits them"
    )


def test_without_a_library_nothing_is_set_and_a_tpu_has_a_variable_of_its_own(
    tmp_path, monkeypatch
):
    for name in xla_flags.READ_FROM.values():
        monkeypatch.setenv(name, "")
    assert {one.told for one in set_flags("gpu", ())} == {"unknown"} and not os.environ["XLA_FLAGS"]
    tpu = [flag.name for flag in FLAGS if flag.backend == "tpu"]
    set_flags("tpu", (library(tmp_path, "libtpu.so", tpu),))
    assert os.environ["LIBTPU_INIT_ARGS"].count("=true") == len(tpu)
    assert not os.environ["XLA_FLAGS"]


@pytest.mark.parametrize(
    ("devices", "platforms", "found"),
    [
        (("nvidia0", "nvidiactl"), "", "gpu"),
        (("nvidia0",), "cpu", None),
        (("nvidiactl",), "", None),
        (("accel0",), "", "tpu"),
        (("accel0",), "tpu,cpu", "tpu"),
        ((), "", None),
    ],
)
def test_an_accelerator_is_known_by_its_device_and_package(
    devices, platforms, found, tmp_path, monkeypatch
):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(xla_flags.util, "find_spec", lambda name: name)
    for name in devices:
        (tmp_path / name).touch()
    assert xla_flags.accelerator(tmp_path) == found
    monkeypatch.setattr(xla_flags.util, "find_spec", lambda name: None)
    assert xla_flags.accelerator(tmp_path) is None


def test_the_installed_compiler_starts_with_the_flags_it_is_said_to_know():
    """And an unknown one would abort: that is why they are looked for."""
    jaxlib = tuple(xla_flags._files("jaxlib", "libjax_common.so"))
    known = xla_flags._known(jaxlib, [*GPU, "xla_gpu_no_such_flag"])
    assert known == set(GPU), "the table names flags that this jaxlib lacks"

    def start(*names):
        env = os.environ | {"XLA_FLAGS": " ".join(f"--{name}=true" for name in names)}
        program = [sys.executable, "-c", "import jax; print(jax.device_count())"]
        return subprocess.run(program, env=env, capture_output=True, text=True, timeout=120)

    assert start(*sorted(known)).stdout.strip() == "1"
    assert start("xla_gpu_no_such_flag").returncode != 0


def test_doctor_says_of_each_flag_what_became_of_it(monkeypatch):
    monkeypatch.setattr(doctor, "_kernels", list)
    told = dict(zip(GPU, ("set", "yours", "unknown"), strict=False))
    verdicts = tuple(Verdict(flag, told[flag.name]) for flag in FLAGS if flag.name in told)
    lines, _ = doctor.diagnose("GPU", verdicts)
    said = [line for line in lines if line.startswith("flag ")]
    assert [line.split(": ", 1)[1] for line in said] == [
        "set: collectives run beside products",
        "left as it is in XLA_FLAGS",
        "not set, since this version of the compiler has no such flag",
    ]
    monkeypatch.setattr(xla_flags, "accelerator", lambda: "gpu")
    monkeypatch.setattr(xla_flags, "libraries_of", lambda device: ())
    monkeypatch.delitem(sys.modules, "jax")
    chosen = backend._choose_flags()
    assert chosen.flags == () and len(chosen.verdicts) == len(GPU)


@pytest.mark.parametrize(
    ("layers", "platform", "loop"),
    [(200, "cpu", False), (24, "gpu", False), (25, "gpu", True), (2, "tpu", True)],
)
def test_layers_are_a_loop_where_unrolling_costs_more(layers, platform, loop):
    config = dataclasses.replace(ROPE, num_layers=layers)
    assert scanned(config, platform) == loop
    for asked in ("scan", "unroll"):
        fixed = dataclasses.replace(config, layers=asked)
        assert scanned(fixed, platform) == (asked == "scan")


@pytest.mark.parametrize(
    ("platform", "products", "pairs", "grouped"),
    [
        ("cpu", "auto", 10**9, True),
        ("tpu", "auto", 64, False),
        ("gpu", "auto", 2**15, True),
        ("gpu", "auto", 2**19, False),
        ("gpu", "grouped", 2**19, True),
        ("cpu", "ragged", 64, False),
    ],
)
def test_experts_multiply_groups_where_a_ragged_product_is_dense(
    platform, products, pairs, grouped, monkeypatch
):
    """The GPU cases have kernels of 2,048 · 1,536 for 64 experts: 320 and 2,112 groups of them."""
    monkeypatch.setattr(dispatch, "platform", lambda: platform)
    experts = Experts(count=64, active=8, width=1536, products=products)
    config = dataclasses.replace(ROPE, width=2048, num_heads=16, experts=experts)
    assert dispatch.groups_tokens(config, 64, pairs, 2) == grouped


def test_experts_asked_for_ragged_products_compute_what_groups_do():
    experts = Experts(count=4, active=2, width=16)
    one, other = (
        dataclasses.replace(ROPE, experts=dataclasses.replace(experts, products=products))
        for products in ("grouped", "ragged")
    )
    params, tokens = model.init(one, jax.random.key(0)), jnp.arange(24).reshape(2, 12)
    a, b = (model.forward(config, params, tokens).hidden for config in (one, other))
    assert float(jnp.abs(a - b).max()) < 1e-5


def test_an_accelerator_decodes_from_weights_in_the_compute_type(monkeypatch):
    monkeypatch.setattr(decoding.jax, "default_backend", lambda: "gpu")
    config = dataclasses.replace(ROPE, compute="bfloat16")
    params = model.init(config, jax.random.key(0))
    ready, stored = model.prepare_weights(config, params)
    kernel = stored["layers"][0]["mlp"]["up"]["kernel"]
    assert isinstance(kernel, Quantized) and kernel.values.dtype == jnp.bfloat16
    assert kernel.scales is None and ready.compute == "bfloat16"
    wide = dataclasses.replace(config, compute="float32")
    assert model.prepare_weights(wide, params) == (wide, params)
