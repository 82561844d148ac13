"""A vendor's kernel is tried before it is trusted, and training goes on without one that fails."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from gptjax import data, model
from gptjax.cli import doctor
from gptjax.model.attention import kernels, layer, select, trial
from gptjax.model.config import Layer
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train

TINY = model.ModelConfig(
    num_layers=1, width=32, num_heads=2, context=64, vocab_size=257, compute="bfloat16"
)


def right(q, k, v, mask_inputs, how, sink=None):
    """The call of cuDNN, computed by XLA."""
    return kernels.cudnn(q, k, v, mask_inputs, how, implementation="xla")


def breaks(*_):
    raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED\nsecond line")


def ignores_segments(q, k, v, mask_inputs, how, sink=None):
    return right(q, k, v, mask_inputs._replace(query_segments=None, key_segments=None), how)


@jax.custom_vjp
def _halved(x):
    return x


_halved.defvjp(lambda x: (x, None), lambda _, g: (g / 2,))


def wrong_gradient(q, k, v, mask_inputs, how, sink=None):
    return right(q, _halved(k), v, mask_inputs, how)


def gives_nan(q, *_):
    return jnp.full_like(q, jnp.nan)


FAULTS = {
    right: None,
    breaks: "CUDNN_STATUS_NOT_SUPPORTED",
    ignores_segments: "its output of packed documents is off by",
    wrong_gradient: "its gradient of keys is off by 50 %",
    gives_nan: "its output is off by nan %",
}


@pytest.mark.parametrize("kernel", FAULTS, ids=lambda kernel: kernel.__name__)
def test_a_trial_finds_what_is_wrong_with_a_kernel(kernel):
    for seen in (Layer(), Layer("window", 16)) if kernel is right else (Layer(),):
        found = trial.tried(trial.case_of("cudnn", TINY, 64, seen), kernel)
        assert (found or "") == "" if FAULTS[kernel] is None else FAULTS[kernel] in found


def test_the_trial_of_splash_takes_its_own_call():
    """Step by step on this device, with a cap and learned sinks; the right one is in no doubt."""
    config = model.ModelConfig(num_heads=2, head_width=64, attention_cap=20.0, attention_sink=True)
    case = trial.case_of("splash", config, 128, Layer("window", 100))
    assert trial.tried(case, functools.partial(kernels.splash, interpret=True)) is None
    uncapped = case._replace(cap=None)
    assert "output is off" in trial.tried(
        uncapped,
        lambda *given: kernels.splash(
            *given[:4], dataclasses.replace(given[4], cap=1.0), given[5], interpret=True
        ),
    )


@pytest.mark.parametrize("kernel", [right, breaks, ignores_segments], ids=lambda k: k.__name__)
def test_training_goes_on_without_a_kernel_that_fails(kernel, tmp_path, monkeypatch, capsys):
    """On what this machine takes for a GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(trial.KERNELS, "cudnn", kernel)
    monkeypatch.setattr(layer, "cudnn", kernel)
    trial._verdict.cache_clear()
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 40)
    source = data.DataConfig(source=data.Text(str(tmp_path / "text.txt")), tokenizer=data.Bytes())
    experiment = Experiment(model=TINY, data=source, steps=2, batch=8)
    train(experiment, tmp_path / "run")
    said = [line for line in capsys.readouterr().out.splitlines() if "attention  " in line]
    fault = FAULTS[kernel]
    assert len(said) == 1 and ("cudnn: " in said[0]) == (fault is None), said
    assert fault is None or f"reference: short rows; cudnn failed its trial: {fault}" in said[0]
    kept = json.loads((tmp_path / "cache/gptjax/kernels.json").read_text())
    assert [(one["kernel"], one["fault"] is None) for one in kept.values()] == [
        ("cudnn", fault is None)
    ]
    trial._verdict.cache_clear()
    monkeypatch.setattr(trial, "tried", lambda case: pytest.fail("it is known already"))
    assert (select.select_attention(TINY, 64)[0] == "cudnn") == (fault is None)
    trial._verdict.cache_clear()


def test_a_full_memory_is_no_verdict(tmp_path, monkeypatch):
    """What else is held decides that, so the next time the kernel is tried again."""

    def no_room(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nsecond line")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(trial.KERNELS, "cudnn", no_room)
    trial._verdict.cache_clear()
    name, why = select.select_attention(TINY, 64)
    assert name == "reference" and "no memory is left for it (RESOURCE_EXHAUSTED" in why
    assert "second" not in why and not (tmp_path / "gptjax/kernels.json").exists()
    monkeypatch.setitem(trial.KERNELS, "cudnn", right)
    assert select.select_attention(TINY, 64)[0] == "cudnn"
    trial._verdict.cache_clear()


def test_a_program_for_another_machine_takes_the_kernel_untried(monkeypatch):
    monkeypatch.setattr(trial, "tried", lambda case: pytest.fail("that device is not here"))
    assert select.select_attention(TINY, 64, backend="gpu")[0] == "cudnn"


def test_doctor_shows_what_was_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert any("none of a vendor's to try on cpu" in line for line in doctor.diagnose("")[0])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(trial, "tried", lambda case: None if case.head_dim < 256 else "too wide")
    trial._verdict.cache_clear()
    lines = [line for line in doctor.diagnose("")[0] if line.startswith("kernels")]
    assert len(lines) == 6 and lines[0].endswith("agrees with the reference")
    assert lines[-1].endswith("too wide")
    trial._verdict.cache_clear()
