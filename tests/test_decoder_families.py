"""Laws of the decoders of `decoder_families` that need no torch: what would change their numbers is
refused, their rules of layers and orders mean what their classes do, and one costs few lines."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from decoder_families import CHANGED, CONFIGS, MODELS, read
from test_interop import randomly

from gptjax.core.config import ConfigError
from gptjax.formats import (
    dense_decoders,
    equivalence,
    layernorm_decoders,
    layout,
    sparse_decoders,
)
from gptjax.formats.huggingface import config_of_keys
from gptjax.formats.huggingface_families import FAMILIES
from gptjax.formats.keys import Keys
from gptjax.model import forward

FILES = (dense_decoders, layernorm_decoders, sparse_decoders)
LINES = 30


@pytest.mark.parametrize("name", CONFIGS)
def test_a_key_that_changes_the_computation_is_refused_in_one_line(name: str) -> None:
    (key,) = CHANGED[name]
    with pytest.raises(ConfigError, match=key.removesuffix("_parameters")) as caught:
        read(name, **CHANGED[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_that_is_read_is_written(name: str) -> None:
    _, config = MODELS[name]
    data = json.loads(json.dumps(FAMILIES[name].write(config)))
    keys = Keys({"model_type": name, **data}, "config.json")
    again = FAMILIES[name].read(keys)
    keys.finish()
    assert equivalence.computed(again) == equivalence.computed(config)


DAMAGED = (0, -1, 0.5, True, None, "x", "", [], [0], ["x"], {}, {"x": 1}, 10**400)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_value_is_refused_in_one_line(name: str) -> None:
    """Whatever stands for a value, it is a model or an error that names the file."""
    refused = 0
    for key, value in itertools.product(CONFIGS[name], DAMAGED):
        keys = Keys({"model_type": name, **CONFIGS[name], key: value}, "config.json")
        try:
            assert config_of_keys(FAMILIES[name], keys).num_layers
        except ConfigError as error:
            refused += 1
            assert "config.json" in str(error) and "\n" not in str(error)
    assert refused > len(CONFIGS[name])


def test_rules_of_layers_mean_what_their_family_says() -> None:
    """No layer is named: which have windows, positions or experts is each family's default."""

    def seen(name: str, **changes) -> str:
        config = read(name, **{"num_hidden_layers": 5} | changes)
        signs = {"rope": "r", "none": "-"}
        return " ".join(
            signs[config.positions_in(layer)] + str(layer.span or "") for layer in config.stack
        )

    assert seen("olmo3") == "r8 r8 r8 r r8"
    assert seen("cwm") == "r r8 r8 r8 r"
    assert seen("exaone4") == "r8 r8 r8 - r8"
    assert seen("exaone4", sliding_window=None) == "r r r r r"
    assert seen("smollm3") == "r r r - r"
    assert seen("smollm3", use_sliding_window=True, sliding_window=8) == "r r r -8 r"
    assert seen("ministral", layer_types=None) == "r8 r8 r8 r8 r8"
    assert seen("dots1") == "r r r8 r8 r8"

    def sparse(name: str, **changes) -> str:
        config = read(name, **{"num_hidden_layers": 5} | changes)
        return "".join("e" if config.sparse(layer) else "d" for layer in config.stack)

    assert sparse("glm4_moe") == sparse("hy_v3") == sparse("glm4_moe_lite") == "deeee"
    assert sparse("glm4_moe", first_k_dense_replace=2) == "ddeee"
    assert sparse("solar_open") == sparse("minimax_m2") == "eeeee"
    assert sparse("ernie4_5_moe") == "deeee"
    assert sparse("ernie4_5_moe", moe_layer_interval=2, moe_layer_end_index=2) == "deddd"
    assert sparse("hy_v3", mlp_layer_types=["sparse", "dense"] * 2 + ["sparse"]) == "edede"


PUBLISHED = {
    "dots1": {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    "ernie4_5_moe": {"moe_capacity": [64, 64, 64], "moe_use_aux_free": True, "moe_gate_act": None},
    "exaone4": {"sliding_window_pattern": "LLLG", "layer_types": ["full_attention"] * 4},
    "hunyuan_v1_dense": {
        "use_qk_norm": True,
        "use_rotary_pos_emb": True,
        "attention_head_dim": 16,
        "rope_scaling": {"type": "dynamic", "alpha": 50.0, "beta_fast": 32, "mscale": 1.0},
    },
    "minimax_m2": {"use_mtp": True, "qk_norm_type": "per_layer", "attn_type_list": [1, 1]},
    "starcoder2": {"norm_type": "layer_norm", "mlp_type": "default", "layer_norm_epsilon": 1e-5},
}
"""Further keys of published files, which `transformers` does not write."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_of_published_files_are_known(name: str) -> None:
    found = equivalence.computed(read(name, **PUBLISHED[name]))
    if name != "exaone4":
        assert found == equivalence.computed(read(name))


def test_heads_and_experts_are_in_their_order() -> None:
    """Where RoPE turns neighbours, in half of a head and in all of it; ERNIE's bias has a row."""

    def tensors(name: str) -> tuple[dict, dict]:
        _, config = MODELS[name]
        params = randomly(config)
        return dict(layout.tensors(params, FAMILIES[name].places(config))), params

    for name, turned in (("glm4", 8), ("helium", 8), ("ernie4_5", 16)):
        theirs, ours = tensors(name)
        key = ours["layers"]["attention"]["key"]["kernel"][0]
        head = key.shape[-1]
        rows = theirs["model.layers.0.self_attn.k_proj.weight"].reshape(-1, head, 32)
        half = turned // 2
        np.testing.assert_array_equal(rows[:, 0:turned:2], key[..., :half].transpose(1, 2, 0))
        np.testing.assert_array_equal(rows[:, 1:turned:2], key[..., half:turned].transpose(1, 2, 0))
        np.testing.assert_array_equal(rows[:, turned:], key[..., turned:].transpose(1, 2, 0))
    theirs, ours = tensors("ernie4_5_moe")
    bias = theirs["model.layers.2.mlp.moe_statics.e_score_correction_bias"]
    np.testing.assert_array_equal(bias[0], ours["layers"]["sparse"]["moe"]["router"]["bias"][1])
    theirs, ours = tensors("nemotron")
    np.testing.assert_array_equal(theirs["model.norm.weight"] + 1, ours["norm"]["scale"])
    np.testing.assert_array_equal(theirs["model.norm.bias"], ours["norm"]["bias"])


def test_parts_of_recurrent_layers_are_in_their_order() -> None:
    """Bamba's: gate, x, B, C, dt; LFM2's: B, C, x; Qwen3.5 has query and gate head by head."""

    def tensors(name: str, kind: str) -> tuple[dict, dict]:
        _, config = MODELS[name]
        params = randomly(config)
        theirs = dict(layout.tensors(params, FAMILIES[name].places(config)))
        return theirs, params["layers"][kind]

    def rows(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([part.reshape(32, -1) for part in parts], axis=1).T

    theirs, ours = tensors("bamba", "recurrent_dense")
    w = {name: leaf["kernel"][0] for name, leaf in ours["mamba"].items() if "kernel" in leaf}
    wanted = rows(*(w[name] for name in ("gate", "value", "key", "query", "step")))
    np.testing.assert_array_equal(theirs["model.layers.0.mamba.in_proj.weight"], wanted)
    taps = [ours["mamba"][f"{name}_convolution"]["taps"][0] for name in ("value", "key", "query")]
    wanted = np.concatenate([part.reshape(-1, 1, 4) for part in taps])
    np.testing.assert_array_equal(theirs["model.layers.0.mamba.conv1d.weight"], wanted)
    theirs, ours = tensors("lfm2", "recurrent_dense")
    wanted = rows(*(ours["convolution"][n]["kernel"][0] for n in ("before", "after", "value")))
    np.testing.assert_array_equal(theirs["model.layers.0.conv.in_proj.weight"], wanted)
    theirs, ours = tensors("qwen3_5_text", "dense")
    both = [ours["attention"][name]["kernel"][0] for name in ("query", "gate")]
    wanted = np.concatenate(both, axis=-1).reshape(32, -1).T
    np.testing.assert_array_equal(theirs["model.layers.1.self_attn.q_proj.weight"], wanted)


def test_latents_have_an_epsilon_of_their_own() -> None:
    """DeepSeek's is 1e-6 whatever that of the other norms is, in `transformers` too."""
    config = read("youtu", num_hidden_layers=1, rms_norm_eps=1e-2)
    assert (config.norm_epsilon, config.latent.norm_epsilon) == (1e-2, 1e-6)
    assert read("youtu", rms_norm_eps=1e-6).latent.norm_epsilon is None

    def hidden(epsilon: float | None) -> np.ndarray:
        latent = dataclasses.replace(config.latent, norm_epsilon=epsilon)
        own = dataclasses.replace(config, latent=latent)
        params = jax.tree.map(jax.numpy.asarray, randomly(config))
        return np.asarray(forward(own, params, jax.numpy.arange(8)[None]).hidden)

    np.testing.assert_array_equal(hidden(None), hidden(1e-2))
    assert np.abs(hidden(1e-6) - hidden(1e-2)).max() > 1e-3


def test_clipped_values_leave_no_more_than_the_clip() -> None:
    """Attention gives means of values, so a clip that is nearly 0 leaves what an output of zeros
    does; one that is never reached changes no bit."""
    config = read("olmoe", num_hidden_layers=1)
    params = jax.tree.map(jax.numpy.asarray, randomly(config))

    def hidden(clip: float | None, params: Any = params) -> np.ndarray:
        own = dataclasses.replace(config, qkv_clip=clip)
        return np.asarray(forward(own, params, jax.numpy.arange(8)[None]).hidden)

    np.testing.assert_array_equal(hidden(1e9), hidden(None))
    out = params["layers"]["attention"]["out"]
    attention = params["layers"]["attention"] | {"out": jax.tree.map(jax.numpy.zeros_like, out)}
    silent = params | {"layers": params["layers"] | {"attention": attention}}
    np.testing.assert_allclose(hidden(1e-9), hidden(None, silent), atol=1e-5)
    assert np.abs(hidden(0.5) - hidden(None)).max() > 1e-3


def costs() -> Iterator[tuple[str, int]]:
    """Each family, and the lines that are its own: its functions, its table, its row."""
    for module in FILES:
        tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
        named = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                named[node.targets[0].id] = node
        table = next(node.value for node in named.values() if _is_table(node))
        uses = [{n.id for n in ast.walk(row) if isinstance(n, ast.Name)} for row in table.values]
        for i, (key, row) in enumerate(zip(table.keys, table.values, strict=True)):
            shared = set().union(*uses[:i], *uses[i + 1 :])
            own = [named[name] for name in (uses[i] & named.keys()) - shared]
            yield key.value, sum(node.end_lineno - node.lineno + 1 for node in (*own, row))


def _is_table(node: ast.AST) -> bool:
    """It is a dict of families."""
    value = getattr(node, "value", None)
    return isinstance(value, ast.Dict) and isinstance(value.values[0], ast.Call)


def test_a_family_costs_few_lines_in_one_file() -> None:
    for name, lines in costs():
        print(f"{name}: {lines} lines")
    assert {name: lines for name, lines in costs() if lines > LINES} == {}
