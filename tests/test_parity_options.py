"""Laws of exchange with `transformers` for families that differ from Llama by one option: both
compute the same numbers and gradients, and write the same text.

Weights are random and made here: nothing is downloaded. Read `MODELS` first.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from peers import torch, transformers
from test_parity import Pair, greedy, ragged, some_batch, their_greedy, their_loss
from test_parity_interop import build_deepseek, difference, randomly, shaken
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from gptjax import formats, model
from gptjax.formats import OpenedModel
from gptjax.losses import CrossEntropy

SHAPE = {
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "eager",
    "tie_word_embeddings": False,
}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 3.0,
    "rope_parameters": PLAIN,
}
LLAMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size_mlp": 40,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 2,
    "attention_chunk_size": 8,
    "floor_scale": 8,
    "attn_scale": 0.4,
    "rope_parameters": PLAIN,
}


def build(name: str, **more: Any) -> Any:
    """One of their models, small."""
    config = getattr(transformers, f"{name}Config")(**SHAPE | more)
    kind = f"{name.removesuffix('Text')}ForCausalLM"
    return getattr(transformers, kind)._from_config(config, attn_implementation="eager")


ALIKE = ("granitemoe", "granitemoeshared", "llama4_without_norms", "cohere")
"""Models without an option that no other has, whose gradients and texts are not compared."""

MODELS: dict[str, Callable[[], Any]] = {
    "gpt_oss": functools.partial(
        build,
        "GptOss",
        head_dim=8,
        sliding_window=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters=YARN | {"truncate": False},
    ),
    "nanochat": functools.partial(
        build, "NanoChat", hidden_act="relu2", final_logit_softcapping=15.0, rope_parameters=PLAIN
    ),
    "granite": functools.partial(build, "Granite", **GRANITE),
    "granitemoe": functools.partial(
        build, "GraniteMoe", **GRANITE, num_local_experts=4, num_experts_per_tok=2
    ),
    "granitemoeshared": functools.partial(
        build,
        "GraniteMoeShared",
        **GRANITE,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=96,
    ),
    "ministral3": functools.partial(
        build,
        "Ministral3",
        head_dim=8,
        sliding_window=None,
        rope_parameters=YARN | {"llama_4_scaling_beta": 0.4, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "apertus": functools.partial(
        build,
        "Apertus",
        dtype=torch.float32,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    "qwen2_moe": functools.partial(
        build,
        "Qwen2Moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=48,
        mlp_only_layers=[0],
        rope_parameters=PLAIN,
    ),
    "llama4": functools.partial(build, "Llama4Text", **LLAMA4),
    "llama4_without_norms": functools.partial(
        build, "Llama4Text", **LLAMA4 | {"use_qk_norm": False, "attn_temperature_tuning": False}
    ),
    "cohere": functools.partial(
        build, "Cohere", tie_word_embeddings=True, logit_scale=0.25, rope_parameters=PLAIN
    ),
    "cohere2": functools.partial(
        build,
        "Cohere2",
        tie_word_embeddings=True,
        sliding_window=8,
        logit_scale=0.25,
        rope_parameters=PLAIN,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
"""One of each family, some in two forms."""


KINDS = sorted(MODELS.keys() - {*ALIKE})
Opened = tuple[str, Any, OpenedModel]


@pytest.fixture(scope="module", params=sorted(MODELS))
def opened(request: Any, tmp_path_factory: Any) -> Opened:
    """A model of theirs, and what we read of its files."""
    theirs, path = shaken(MODELS[request.param]()), tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(path)
    return request.param, theirs, formats.load_model(path)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Nearly all the time here is compilation, and unoptimised code computes the same sums."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_both_ways_compute_the_same(opened: Opened, tmp_path: Path, record_property: Any) -> None:
    name, theirs, found = opened
    first = difference(theirs, found)
    with torch.no_grad():
        spread = float(theirs(torch.tensor(some_batch(33).tokens)).logits.std())
    assert spread > 0.3 * found.config.logit_scale, "flat logits prove nothing"
    ours = found._replace(params=randomly(found.params, seed=2))
    formats.save_model(tmp_path / "ours", ours)
    loaded, told = type(theirs).from_pretrained(
        tmp_path / "ours",
        output_loading_info=True,
        attn_implementation="eager",
        dtype=torch.float32,
    )
    lost = [*told["missing_keys"], *told["unexpected_keys"]]
    assert not [key for key in lost if "lm_head" not in key], told
    second = difference(loaded.eval(), ours)
    print(f"{name}: logits {first:.1e} theirs → ours, {second:.1e} ours → theirs")
    record_property("figure", f"{name} {max(first, second):.1e}")
    assert first <= 1e-4 and second <= 1e-4
    again = formats.load_model(tmp_path / "ours")
    assert again.config == found.config
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)


@pytest.mark.parametrize("opened", KINDS, indirect=True)
def test_gradients_of_every_parameter_are_those_of_torch(
    opened: Opened, tmp_path: Path, record_property: Any
) -> None:
    name, theirs, found = opened
    batch, config = some_batch(33), replace(found.config, attention="reference", layers="scan")
    if config.experts is not None:
        config = replace(config, experts=replace(config.experts, balance=0.0))
    theirs.zero_grad()
    their_loss(theirs, batch).backward()
    moved = copy.deepcopy(theirs)  # their gradients by the names of their files, as if weights
    with torch.no_grad():
        for weight, own in zip(moved.parameters(), theirs.parameters(), strict=True):
            weight.copy_(own.grad)
    moved.save_pretrained(tmp_path)
    wanted = formats.load_model(tmp_path).params

    def mean(params: Any) -> jax.Array:
        total, weight, _ = CrossEntropy().build(config)(params, {}, batch, None)
        return total / weight

    relative = {}
    for (path, mine), (_, other) in zip(
        *map(jax.tree_util.tree_leaves_with_path, (jax.jit(jax.grad(mean))(found.params), wanted)),
        strict=True,
    ):
        named, size = jax.tree_util.keystr(path), np.linalg.norm(other)
        relative[named] = np.linalg.norm(mine - np.asarray(other)) / size
    worst = max(relative, key=relative.get)
    record_property("figure", f"{name} {relative[worst]:.1e}")
    print(f"{name}: largest relative difference of a gradient {relative[worst]:.1e} at {worst}")
    assert all(value <= 1e-4 for value in relative.values()), relative  # a NaN is not less


@pytest.mark.parametrize("opened", KINDS, indirect=True)
def test_greedy_generation_writes_the_ids_of_transformers(opened: Opened) -> None:
    _, theirs, found = opened
    ours = greedy(Pair(None, found.config, found.params, theirs))
    assert ours == [their_greedy(theirs, prompt) for prompt in ragged()]
    assert all(len(ids) >= 20 for ids in ours)


def test_chained_blocks_of_further_tokens_compute_what_their_mtp_layers_do(
    tmp_path: Path, record_property: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSeek-V3: `transformers` opens the blocks that we wrote as its layers of multi-token
    prediction, one after the other over a whole text."""
    theirs = shaken(build_deepseek(third=True))
    theirs.save_pretrained(tmp_path / "theirs")
    found = formats.load_model(tmp_path / "theirs")
    assert found.config.ahead == 0, "their files have none, though their config says one"
    config = replace(found.config, ahead=2, ahead_chained=True)
    ours = found._replace(config=config, params=randomly(model.shapes(config), seed=3))
    formats.save_model(tmp_path / "ours", ours)
    again = formats.load_model(tmp_path / "ours")
    assert (again.config.ahead, again.config.ahead_chained) == (2, True)
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)
    whole = (
        type(theirs)
        .from_pretrained(tmp_path / "ours", attn_implementation="eager", dtype=torch.float32)
        .eval()
    )
    # They know the number of the published model's layer only.
    numbers = [rf"model\.layers\.{config.num_layers + n}.*" for n in range(2)]
    monkeypatch.setattr(whole, "_keys_to_ignore_on_load_unexpected", numbers)
    layers = MtpModel.from_pretrained(whole).eval()
    text = torch.tensor(some_batch(20).tokens[:1].astype(np.int64))
    begin, following, count = text[:, :-2], text[:, 1:-1], text.shape[1] - 2
    cache = MtpCache(config=whole.config.get_mtp_config())

    @functools.partial(jax.jit, static_argnums=0)
    def ahead(config: Any, params: Any, tokens: Any, following: Any) -> list[Any]:
        hidden = model.forward(config, params, tokens).hidden
        states = model.look_ahead(
            config, params, hidden, None, None, None, None, following=following
        )
        return [model.unembed(config, params, state) for state in states]

    plain = replace(config, attention="reference", layers="scan")
    mine = ahead(plain, ours.params, begin.numpy().astype(np.int32), following.numpy())
    largest, places = 0.0, torch.arange(1, count + 1)[None]
    with torch.no_grad():
        hidden = whole.model(begin).last_hidden_state
        for number, logits in enumerate(mine):
            read = text[:, 1 + number : 1 + number + count]
            hidden = layers.forward_layer(number, hidden, places + number, cache, input_ids=read)
            wanted = layers._project_to_logits(hidden).numpy()
            known = count - number  # beyond, the token that is read is not part of the text
            assert wanted.std() > 0.3, "flat logits prove nothing"
            largest = max(largest, np.abs(np.asarray(logits) - wanted)[:, :known].max())
    print(f"further tokens: largest difference of a logit {largest:.1e}")
    record_property("figure", f"further tokens {largest:.1e}")
    assert largest <= 1e-4
