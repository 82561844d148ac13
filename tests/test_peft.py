"""PEFT's adapters, read and written. What PEFT itself computed with them lies in tests/golden/peft
(see make_peft.py there), so that nothing here needs it."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import model, weights
from gptjax.core.config import ConfigError
from gptjax.formats import load_model, peft, peft_virtual, safetensors
from gptjax.runs.open import open_model

GOLDEN = Path(__file__).parent / "golden" / "peft"
BASES = {"lora": "llama", "rslora": "llama", "dora": "llama", "fused": "gpt2"}
IDS = (np.arange(21).reshape(3, 7) * 5 % 40).astype(np.int32)


@functools.cache
def expected():
    return safetensors.File(GOLDEN / "expected.safetensors")


@functools.cache
def base(kind):
    opened = load_model(GOLDEN / kind)
    return opened._replace(config=dataclasses.replace(opened.config, compute="float32"))


@functools.cache
def adapter(name):
    return peft.read_peft(GOLDEN / name, base(BASES[name]))


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params):
    return model.unembed(config, params, model.forward(config, params, IDS).hidden)


def of(name, params):
    return logits(base(BASES[name]).config, params)


def close(found, wanted, within=1e-5):
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=within * scale)


@pytest.mark.parametrize("name", BASES)
def test_an_adapter_of_peft_computes_what_peft_computes_and_is_written_back_byte_for_byte(
    name, tmp_path
):
    opened = open_model(GOLDEN / name)
    close(of(name, opened.params), expected().take(f"{name}/logits"))
    merged = weights.merge(opened.params)
    close(of(name, merged), expected().take(f"{name}/logits"))
    peft.write_peft(tmp_path / "back", base(BASES[name]), adapter(name))
    one, other = (
        safetensors.File(path / "adapter_model.safetensors")
        for path in (GOLDEN / name, tmp_path / "back")
    )
    assert one.tensors == other.tensors
    for tensor in one.tensors:
        np.testing.assert_array_equal(one.take(tensor), other.take(tensor))
    again = peft.read_peft(tmp_path / "back", base(BASES[name]))
    assert jax.tree.structure(again.adapters) == jax.tree.structure(adapter(name).adapters)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_virtual_tokens_of_peft_compute_what_peft_computes_and_are_written_back(name, tmp_path):
    opened = open_model(GOLDEN / name)
    opened = opened._replace(config=dataclasses.replace(opened.config, compute="float32"))
    close(logits(opened.config, opened.params), expected().take(f"{name}/logits"))

    def loss(virtual):
        params = opened.params | {weights.VIRTUAL: virtual}
        return jnp.square(logits(opened.config, params)).mean()

    gradient = jax.jit(jax.grad(loss))(opened.params[weights.VIRTUAL])
    for values, wanted in (
        (gradient, expected().take(f"{name}/gradient")),
        (
            opened.params[weights.VIRTUAL],
            safetensors.File(GOLDEN / name / peft_virtual.TENSORS).take(peft_virtual.TENSOR),
        ),
    ):
        peft_virtual.write_peft_virtual(tmp_path / "back", opened, values, "base")
        found = safetensors.File(tmp_path / "back" / peft_virtual.TENSORS).take(peft_virtual.TENSOR)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_array_equal(found, wanted)  # the file's own values, to the last bit


def changed_copy(name: str, changed: dict, folder: Path) -> Path:
    """A golden adapter whose adapter_config.json says something else."""
    copy = Path(shutil.copytree(GOLDEN / name, folder / name))
    file = copy / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    return copy


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"token_dim": 24}, "token_dim 24.*need 8"),
        ({"use_quantum": True}, "the key 'use_quantum'"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules 2"),
        ({"peft_type": "PROMPT_TUNING", "token_dim": None, "num_attention_heads": None}, "shape"),
    ],
)
def test_virtual_tokens_of_another_model_are_refused_by_name(changed, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        peft_virtual.read_peft_virtual(changed_copy("prefix", changed, tmp_path), base("llama"))


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_gradients_are_those_of_peft(name, tmp_path):
    opened, own = base(BASES[name]), adapter(name)
    whole = weights.with_leaves(opened.params, own.whole)

    def loss(adapters):
        return jnp.square(of(name, weights.attach(whole, adapters))).mean()

    gradients = jax.jit(jax.grad(loss))(own.adapters)
    peft.write_peft(tmp_path / "gradients", opened, own._replace(adapters=gradients, whole={}))
    file = safetensors.File(tmp_path / "gradients" / "adapter_model.safetensors")
    wanted = [n for n in expected().tensors if n.startswith(f"{name}/gradient/")]
    assert len(wanted) == len(file.tensors)
    for where in wanted:
        tensor = where.removeprefix(f"{name}/gradient/").replace("vector.weight", "vector")
        close(file.take(tensor), expected().take(where))


def test_a_mixed_batch_and_a_sum_adapters_are_those_of_peft():
    opened, roles = base("llama"), model.roles(base("llama").config)
    both = [adapter("rslora").adapters, adapter("lora").adapters]
    stacked = weights.side_by_side(both, roles)
    mixed = weights.attach(opened.params, stacked, jnp.asarray([0, -1, 1]))
    close(of("lora", mixed), expected().take("mixed/logits"))
    summed = weights.sum_adapters(both[::-1], (0.5, -2.0), roles)
    close(of("lora", weights.attach(opened.params, summed)), expected().take("sum/logits"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"use_quantum": True}, "the key 'use_quantum'"),
        ({"bias": "all"}, "bias 'all', which is not computed here"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"target_modules": ["q_proj", "attn"]}, "targets 'attn', of which"),
        ({"r": 8}, r"rank 8 of model\.layers"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"use_dora": True}, "needs A, B, magnitude"),
    ],
)
def test_what_a_file_says_and_is_not_known_is_refused_by_name(changed, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        peft.read_peft(changed_copy("lora", changed, tmp_path), base("llama"))


def test_a_tensor_that_no_weight_takes_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"adapts transformer\.h\.0.*no weight of this model"):
        peft.read_peft(GOLDEN / "fused", base("llama"))


def test_three_products_that_peft_keeps_as_one_are_written_side_by_side(tmp_path):
    opened = base("gpt2")
    made = weights.LoRA(rank=2, alpha=3.0).init(
        opened.params, model.roles(opened.config), jax.random.key(0)
    )
    own = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), made)
    peft.write_peft(tmp_path / "out", opened, adapter("fused")._replace(adapters=own))
    described = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert described["rank_pattern"] or described["r"] == 6
    again = peft.read_peft(tmp_path / "out", opened).adapters
    params = opened.params
    close(of("fused", weights.attach(params, again)), of("fused", weights.attach(params, own)))
