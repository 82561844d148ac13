"""Laws of exchange with `transformers`: what it saved we load, what we saved it loads, and both
compute the same.

Weights are random and made here: nothing is downloaded.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import encoders
import families
import jax
import numpy as np
import pytest
from adapted import write_adapted
from conftest import documents
from peers import torch, transformers

import gptjax
from gptjax import formats, model, weights
from gptjax.cli.convert import ConvertOptions, convert
from gptjax.data import Bytes, SentencePiece, Side
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.formats import OpenedModel
from gptjax.model import ModelConfig


def build_neox(parallel: bool) -> Any:
    shape = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
    }
    rest = {
        "rotary_pct": 0.5,
        "use_parallel_residual": parallel,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": "eager",
    }
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**shape, **rest))


def build_arcee(**more: Any) -> Any:
    return transformers.ArceeForCausalLM(
        transformers.ArceeConfig(**families.common(families.GQA) | more, head_dim=8)
    )


def build_phi3() -> Any:
    shape = families.common(families.GQA)
    shape.pop("attention_bias")
    return transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**shape, hidden_act="silu", sliding_window=8)
    )


def build_qwen3_moe() -> Any:
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "mlp_only_layers": [0],
        "head_dim": 8,
    }
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(**families.common(families.GQA), **experts)
    )


def build_deepseek(third: bool) -> Any:
    """Their DeepSeek-V3, or V2 as V2-Lite is; both turn neighbours of a head together, as
    published."""
    if third:
        theirs = families.build_deepseek(families.DEEPSEEK).config.to_dict() | {
            "rope_interleave": True
        }
        return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**theirs))
    heads = {
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
    }
    experts = {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
    }
    shape = families.common(replace(families.DEEPSEEK, rope_scaling=None))
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    }
    return transformers.DeepseekV2ForCausalLM(
        transformers.DeepseekV2Config(**shape | {"rope_parameters": rope}, **heads, **experts)
    )


def build_bert() -> Any:
    """Their whole BERT, embeddings of sentences included."""
    shape = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
    }
    return transformers.BertForMaskedLM(
        transformers.BertConfig(**shape, attn_implementation="eager")
    )


def build_llama(**more: Any) -> Any:
    """Their Llama with traits that few published models have."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**families.common(families.GQA) | more, head_dim=8)
    )


def rope_of(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0} | more}


MODELS = {
    case.name: functools.partial(case.build, case.config)
    for case in families.CASES
    if case.name != "deepseek_v3"
}
MODELS |= {
    case.name: functools.partial(case.build, case.config)
    for case in encoders.CASES
    if case.name.startswith("t5")
}
MODELS |= {
    "pythia": functools.partial(build_neox, True),
    "neox_in_turn": functools.partial(build_neox, False),
    "arcee": build_arcee,
    "phi3": build_phi3,
    "qwen3_moe": build_qwen3_moe,
    "deepseek_v2": functools.partial(build_deepseek, False),
    "deepseek_v3": functools.partial(build_deepseek, True),
    "bert": build_bert,
    "llama_biases": functools.partial(build_llama, attention_bias=True, mlp_bias=True),
    "llama_mlp_bias": functools.partial(build_llama, mlp_bias=True, hidden_act="gelu"),
    "llama_relu": functools.partial(build_llama, hidden_act="relu"),
    "llama_yarn": functools.partial(
        build_llama, **rope_of("yarn", original_max_position_embeddings=16, truncate=False)
    ),
    "arcee_biases": functools.partial(build_arcee, attention_bias=True, mlp_bias=True),
    "qwen3_biases": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**families.common(families.GQA) | {"attention_bias": True})
    ),
    "gpt2_quick_gelu": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=97,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=80,
            activation_function="quick_gelu",
        )
    ),
}
"""One of each family, some in two forms."""


def test_hidden_states_of_a_bert_without_an_output_agree(tmp_path: Path) -> None:
    theirs = shaken(transformers.BertModel(build_bert().config, add_pooling_layer=False))
    theirs.save_pretrained(tmp_path)
    found, tokens = formats.load_model(tmp_path), some_ids(2, 33)
    config = replace(found.config, attention="reference")
    hidden = model.forward(config, found.params, tokens).hidden
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).last_hidden_state
    np.testing.assert_allclose(hidden, wanted.numpy(), atol=1e-5)


def some_ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 97, shape).astype(np.int32)


def difference(theirs: Any, imported: OpenedModel) -> float:
    """The largest of a logit, over two rows of 33 tokens."""
    c, tokens, side = imported.config, some_ids(2, 33), some_ids(2, 21, seed=1)
    with torch.no_grad():
        if c.encoder_layers:
            wanted = theirs(torch.tensor(side), decoder_input_ids=torch.tensor(tokens)).logits
        else:
            wanted = theirs(torch.tensor(tokens)).logits
    return float(
        np.abs(
            logits(c, imported.params, tokens, Side(side) if c.encoder_layers else None)
            - wanted.numpy()
        ).max()
    )


@functools.partial(jax.jit, static_argnums=0)
def logits(c: ModelConfig, params: Any, tokens: Any, side: Any) -> Any:
    c = replace(c, attention="reference", layers="scan")
    return model.unembed(
        c, params, model.forward(c, params, tokens, memory=model.encode(c, params, side)).hidden
    )


def shaken(theirs: Any) -> Any:
    """Their model with random weights, biases and norms too."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (
            *theirs.parameters(),
            *(b for n, b in theirs.named_buffers() if n.endswith("e_score_correction_bias")),
        ):
            weight.copy_(
                weight * (weight.ndim == 1) + 0.2 * torch.randn(weight.shape, generator=random)
            )
    return theirs.eval()


def randomly(params: Any, seed: int) -> Any:
    """Weights of ours, all random; scales of norms are at least 0.5, where one more or less is
    exact in float32 (Gemma)."""
    random = np.random.default_rng(seed)

    def one(path: tuple, leaf: Any) -> np.ndarray:
        drawn = random.normal(size=leaf.shape, scale=0.2).astype(np.float32)
        return np.maximum(1 + drawn, 0.5) if path[-1].key == "scale" else drawn

    return jax.tree_util.tree_map_with_path(one, params)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_both_ways_compute_the_same(name: str, tmp_path: Path, record_property: Any) -> None:
    theirs = shaken(MODELS[name]())
    theirs.save_pretrained(tmp_path / "theirs")
    found = formats.load_model(tmp_path / "theirs")
    first = difference(theirs, found)

    ours = found._replace(params=randomly(found.params, seed=2))
    formats.save_model(tmp_path / "ours", ours)
    loaded, told = type(theirs).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    unused = (
        "pooler",
        "seq_relationship",
        "embed_tokens",
        "lm_head",
        "decoder.weight",
        "decoder.bias",
        "embed_out",
    )
    assert not [
        key
        for key in (*told["missing_keys"], *told["unexpected_keys"])
        if not any(part in key for part in unused)
    ], told
    assert (
        type(loaded).__name__
        == json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"][0]
    )
    second = difference(loaded.eval(), ours)
    print(
        f"{name}: largest difference of a logit {first:.1e} theirs → ours, {second:.1e} ours →"
        " theirs"
    )
    record_property("figure", f"{name} {max(first, second):.1e}")
    assert first <= 1e-4 and second <= 1e-4

    again = formats.load_model(tmp_path / "ours")
    assert again.config == found.config
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)


def test_dynamic_rope_is_plain_rope_as_far_as_the_model_was_trained(tmp_path: Path) -> None:
    """I13: `rope_type: dynamic`, which stretches only what max_position_embeddings exceeds."""
    theirs = shaken(build_llama(**rope_of("dynamic")))
    theirs.save_pretrained(tmp_path / "theirs")
    found = formats.load_model(tmp_path / "theirs")
    assert found.config.context == 64
    assert difference(theirs, found) <= 1e-4


def test_the_text_model_of_gemma_3_is_read_without_its_images(tmp_path: Path) -> None:
    """I13: `gemma3`, from 4B on, has its text model inside."""
    shape = families.common(families.GQA) | {"tie_word_embeddings": True, "head_dim": 16}
    shape |= {"sliding_window": 8, "num_hidden_layers": 6}
    local = {"rope_type": "default", "rope_theta": 1e3}
    whole = {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0}
    shape["rope_parameters"] = {"full_attention": whole, "sliding_attention": local}
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    eyes |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=shape, vision_config=eyes, mm_tokens_per_image=1, image_token_index=96
    )
    theirs = shaken(transformers.Gemma3ForConditionalGeneration(config))
    theirs.save_pretrained(tmp_path / "theirs")
    found = formats.load_model(tmp_path / "theirs")
    assert difference(theirs, found) <= 1e-4
    formats.save_model(tmp_path / "ours", found)
    data = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert data["model_type"] == "gemma3_text"
    assert formats.load_model(tmp_path / "ours").config == found.config


@pytest.mark.parametrize("settings", [weights.LoRA(rank=4, alpha=6.0), weights.DoRA(rank=2)])
def test_a_merged_adapter_computes_in_transformers_what_it_did_beside_its_base(
    settings: weights.LoRA, tmp_path: Path, record_property: Any
) -> None:
    theirs = shaken(build_llama())
    theirs.save_pretrained(tmp_path / "theirs")
    whole = write_adapted(tmp_path, formats.load_model(tmp_path / "theirs"), settings)
    assert difference(theirs, whole) > 0.1, "an adapter that changes nothing shows nothing"
    said: list[str] = []
    merged = ConvertOptions(merge=True)
    assert convert(tmp_path / "adapter", tmp_path / "merged", merged, say=said.append), said
    found = type(theirs).from_pretrained(tmp_path / "merged", attn_implementation="eager")
    largest = difference(found.eval(), whole)
    record_property("figure", f"merged {type(settings).__name__} {largest:.1e}")
    assert largest <= 1e-4


# --- text -----------------------------------------------------------------------------------------

TOKENIZERS = {
    "bytes": Bytes(),
    "sentencepiece": SentencePiece(vocab_size=330),
    "unigram": SentencePiece(vocab_size=330, algorithm="unigram"),
}
PROMPTS = ("The cat sat", "def add(a, b):\n    return", "  Größe 東京", "1. Rain fell")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_exported_directory_writes_the_same_text_in_transformers(
    kind: str, tmp_path: Path
) -> None:
    tokenizer = tokenizers.train_tokenizer(TOKENIZERS[kind], documents(60))
    config = replace(
        families.GQA if kind != "bytes" else families.SMALL, vocab_size=tokenizer.vocab_size
    )
    params = randomly(jax.eval_shape(lambda: model.init(config, jax.random.key(0))), seed=3)
    formats.save_model(tmp_path / "m", OpenedModel(config, params, tokenizer))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    spelling = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    ours = gptjax.load(tmp_path / "m")
    written = ours.complete(PROMPTS, new_tokens=20, temperature=0.0)
    for prompt, done in zip(PROMPTS, written, strict=True):
        read = spelling(prompt, return_tensors="pt")
        assert read["input_ids"][0].tolist() == [
            tokenizer.end_of_document,
            *tokenizer.encode(prompt).tolist(),
        ]
        out = theirs.generate(**read, do_sample=False, max_new_tokens=20)[
            0, read["input_ids"].shape[1] :
        ].tolist()
        assert [i for i in out if i != tokenizer.end_of_document] == done.ids
        if (
            "\ufffd" not in done.text
        ):  # they replace each byte that is no UTF-8, we each run of them
            assert spelling.decode(out, skip_special_tokens=True) == done.text
    for text in documents(20):
        ids = tokenizer.encode(text).tolist()
        assert (
            spelling(text, add_special_tokens=False)["input_ids"] == ids
            and spelling.decode(ids) == text
        )


def test_an_exported_encoder_and_decoder_answers_as_in_transformers(tmp_path: Path) -> None:
    tokenizer = tokenizers.train_tokenizer(TOKENIZERS["unigram"], documents(60))
    config = replace(encoders.T5, vocab_size=tokenizer.vocab_size)
    params = randomly(jax.eval_shape(lambda: model.init(config, jax.random.key(0))), seed=3)
    formats.save_model(tmp_path / "m", OpenedModel(config, params, tokenizer))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m")
    written = gptjax.load(tmp_path / "m").complete(PROMPTS, new_tokens=20, temperature=0.0)
    for prompt, done in zip(PROMPTS, written, strict=True):
        ids = [*tokenizer.encode(prompt).tolist(), tokenizer.end_of_document]
        out = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20)[
            0, 1:
        ].tolist()
        assert [i for i in out if i != tokenizer.end_of_document] == done.ids and len(done.ids) > 2
