"""GGUF and llama2.c files: what is written is read back, and a damaged or hostile file gives one
clear error."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
import resource
import struct
import time
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("gguf")
import gguf as published_gguf
import published
from gguf import GGMLQuantizationType as Kind

from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Characters, SentencePiece
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.spelling import Special, letters
from gptjax.formats import (
    equivalence,
    gguf,
    gguf_file,
    gguf_keys,
    gguf_models,
    gguf_tensors,
    gguf_tokenizer,
    gguf_writer,
    layout,
    llama2c,
)
from gptjax.formats.opened import About, OpenedModel
from gptjax.model import (
    Experts,
    Layer,
    LinearScaling,
    ModelConfig,
    YarnScaling,
    gemma,
    gpt2,
    llama,
    mistral,
    olmo,
    qwen,
)

SHRUNK = {
    "vocab_size": 61,
    "context": 64,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "feed_forward": 64,
}
HEADS = dict(SHRUNK, head_width=16)
LLAMA = llama(**SHRUNK)
DATA = Path(__file__).parents[2] / "shared/data"


def made(config: ModelConfig, tokenizer=None, **about) -> OpenedModel:
    """A model of random numbers; nothing is compiled."""
    draw, params = np.random.default_rng(0), {}
    for path, leaf in layout.leaf_shapes(config).items():
        *folders, name = path.split("/")
        spot = functools.reduce(lambda at, folder: at.setdefault(folder, {}), folders, params)
        spot[name] = draw.normal(size=leaf.shape).astype(np.float32)
    return OpenedModel(config, params, tokenizer, About(**about))


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


CHOSEN = {"count": 8, "active": 2, "width": 32, "scores": "sigmoid", "bias_step": 1e-3}
ROUTED = {"experts": Experts(**CHOSEN)}
SHARED = {"experts": Experts(**CHOSEN, shared=1, scale=2.5)}
BELOW = {"first": (Layer(dense=True),), "num_layers": 3}
"""A layer without experts before the others."""


def own(arch: str, **changes) -> ModelConfig:
    """A small model of an architecture."""
    return dataclasses.replace(gguf_models.BASES[arch], **{**SHRUNK, **changes})


# --- out and in -----------------------------------------------------------------------------------

MODELS = {
    "llama": LLAMA,
    "llama_biased": llama(**SHRUNK, rope_scaling=YarnScaling(4.0, original=16), rope_share=0.5),
    "llama_with_all_biases": llama(**SHRUNK, bias=True),
    "llama3": llama("3.2-1b", **SHRUNK | {"width": 64}),
    "mixtral": llama(**SHRUNK, experts=Experts(count=4, active=2)),
    "arcee": dataclasses.replace(LLAMA, activation="relu2"),
    "qwen2": qwen("2.5-0.5b", **SHRUNK),
    "qwen3": qwen(**HEADS, rope_scaling=LinearScaling(2.0)),
    "qwen3moe": qwen(**HEADS, experts=Experts(count=4, active=2, width=32)),
    "olmo2": olmo(**SHRUNK),
    "gemma": dataclasses.replace(gguf_models.GEMMA, **HEADS),
    "gemma2": gemma(**HEADS, attention_scale=16**-0.5, pattern=(Layer("window", 8), Layer())),
    "gemma3": gemma(
        "3-4b",
        **HEADS | {"num_layers": 7},
        attention_scale=16**-0.5,
        pattern=(Layer("window", 8, rope_base=1e4, rope_scaled=False),) * 5 + (Layer(),),
    ),
    "gpt2": gpt2(**SHRUNK | {"num_kv_heads": None}),
    "phi3": dataclasses.replace(LLAMA, pattern=(Layer("window", 8),)),
    "smollm3": own("smollm3", num_layers=5),
    "exaone4": own("exaone4"),
    "ernie4_5": own("ernie4_5", head_width=16),
    "glm4": own("glm4", head_width=16, qkv_bias=True, rope_share=0.5),
    "seed_oss": own("seed_oss", head_width=16, qkv_bias=True),
    "nemotron": own("nemotron", rope_share=0.5, tied=False),
    "jais2": own("jais2", qkv_bias=True, out_bias=True, mlp_bias=True),
    "phi2": own("phi2", tied=False, rope_share=0.5, num_kv_heads=None),
    "stablelm": own("stablelm", parallel="shared", rope_share=0.25, qkv_bias=True, tied=False),
    "stablelm_in_turn": own("stablelm", rope_share=0.25, tied=False),
    "starcoder2": own("starcoder2", qkv_bias=True, out_bias=True, mlp_bias=True),
    "olmo": own("olmo", qkv_clip=0.5),
    "olmoe": own("olmoe", experts=Experts(count=4, active=2, normalised=False), num_kv_heads=None),
    "minimax-m2": own("minimax-m2", **ROUTED, tied=False, rope_share=0.5),
    "dots1": own("dots1", **SHARED, **BELOW, num_kv_heads=None, tied=False),
    "glm4moe": own("glm4moe", **SHARED, **BELOW, rope_share=0.5),
    "glm4moe_normalised": own("glm4moe", **SHARED, qk_norm=True, qkv_bias=True),
}


def arch_of(name: str) -> str:
    """The architecture of a model of `MODELS`."""
    same = {"llama3": "llama", "mixtral": "llama"}
    return name if name in gguf_models.BASES else same.get(name, name.split("_")[0])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_back_bit_for_bit(name, tmp_path):
    model = made(MODELS[name], family=arch_of(name), notes={"threshold": "1e-4"})
    gguf.save_gguf(tmp_path / "a.gguf", model)
    back = gguf.load_gguf(tmp_path / "a.gguf")
    assert equivalence.computed(back.config) == equivalence.computed(model.config)
    assert back.about.family == arch_of(name)
    assert back.about.notes == {"threshold": "1e-4"}
    assert same(model.params, back.params)


def test_llamas_heads_are_in_their_order_of_neighbours(tmp_path):
    model = made(LLAMA)
    gguf.save_gguf(tmp_path / "a.gguf", model)
    file = gguf_file.open_file(tmp_path / "a.gguf")
    theirs = gguf_file.numbers(file, file.tensors["blk.1.attn_k.weight"]).reshape(2, 4, 2, 32)
    ours = model.params["layers"]["attention"]["key"]["kernel"][1]  # [D K H]
    for head in range(2):
        assert np.array_equal(theirs[head, :, 0], ours[:, head, :4].T)
        assert np.array_equal(theirs[head, :, 1], ours[:, head, 4:].T)


def test_layers_differ_as_their_architecture_says():
    """SmolLM3's every fourth has no positions; EXAONE 4's without a window, in the model of 64
    layers that has some; GLM-4.5's first have no experts."""
    sparse = described("glm4moe", MODELS["glm4moe"])
    assert [sparse.sparse(layer) for layer in sparse.stack] == [False, True, True]
    plain = [layer.positions for layer in described("smollm3", MODELS["smollm3"]).stack]
    assert plain == [None, None, None, "none", None]
    deep = dataclasses.replace(MODELS["exaone4"], num_layers=64)
    stack = described("exaone4", deep, **{"attention.sliding_window": 8}).stack
    assert [(layer.span, layer.positions) for layer in stack[:4]] == [(8, None)] * 3 + [
        (None, "none")
    ]
    with pytest.raises(ConfigError, match="for 64 layers"):
        described("exaone4", MODELS["exaone4"], **{"attention.sliding_window": 8})


def test_joined_tensors_begin_with_query_and_gate():
    params = made(MODELS["phi3"]).params
    theirs = dict(layout.tensors(params, gguf_tensors.gguf_places("phi3", MODELS["phi3"])))
    attention, mlp = (params["layers"][name] for name in ("attention", "mlp"))
    first = [mlp[name]["kernel"][0].T for name in ("gate", "up")]
    np.testing.assert_array_equal(theirs["blk.0.ffn_up.weight"], np.concatenate(first))
    three = [attention[name]["kernel"][0].reshape(32, -1).T for name in ("query", "key", "value")]
    np.testing.assert_array_equal(theirs["blk.0.attn_qkv.weight"], np.concatenate(three))


@pytest.mark.parametrize(
    ("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8), ("q8_0", None)]
)
def test_a_smaller_format_rounds_to_its_precision(dtype, error, tmp_path):
    model = made(LLAMA)
    gguf.save_gguf(tmp_path / "a.gguf", model, dtype)
    back = gguf.load_gguf(tmp_path / "a.gguf").params
    assert np.array_equal(
        model.params["layers"]["mlp_norm"]["scale"], back["layers"]["mlp_norm"]["scale"]
    )
    for path in (
        ("embedding", "embedding"),
        ("layers", "mlp", "down", "kernel"),
        ("head", "kernel"),
    ):
        ours, theirs = (
            functools.reduce(dict.__getitem__, path, tree) for tree in (model.params, back)
        )
        bound = np.abs(ours) * error + 1e-7 if error else np.abs(ours).max() / 127
        assert np.all(np.abs(ours - theirs) <= bound), path
    if dtype == "float16":
        assert np.array_equal(
            model.params["head"]["kernel"].astype(np.float16), back["head"]["kernel"]
        )


def test_the_same_window_in_all_layers_shortens_the_context(tmp_path):
    gguf.save_gguf(tmp_path / "a.gguf", made(mistral(**SHRUNK, pattern=(Layer("window", 8),))))
    back = gguf.load_gguf(tmp_path / "a.gguf").config
    assert back.context == 8 and back.stack == (Layer(), Layer())


def test_a_model_without_an_architecture_is_refused_by_what_differs(tmp_path):
    with pytest.raises(ConfigError, match="comes nearest and differs in attention_cap"):
        gguf.save_gguf(tmp_path / "a.gguf", made(llama(**SHRUNK, attention_cap=2.0)))
    with pytest.raises(ConfigError, match="norm_placement"):
        gguf.save_gguf(tmp_path / "a.gguf", made(llama(**SHRUNK, norm_placement="post")))
    with pytest.raises(ConfigError, match="Did you mean 'float16'"):
        gguf.save_gguf(tmp_path / "a.gguf", made(LLAMA), "flaot16")
    assert not list(tmp_path.iterdir())


@pytest.mark.row(54)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 2**32 - 1),
        ("block_count", 0),
        ("feed_forward_length", 2**31),
        ("attention.head_count", 0),
        ("context_length", 2**32 - 1),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(key, value, tmp_path):
    fields = {**gguf_models.metadata("llama", LLAMA), f"llama.{key}": value}
    gguf_writer.write_gguf(
        tmp_path / "a.gguf",
        "llama",
        fields,
        [gguf_writer.Planned("token_embd.weight", (61, 32), Kind.F32)],
        [np.zeros((61, 32))],
    )
    with pytest.raises(ConfigError):
        gguf.load_gguf(tmp_path / "a.gguf")


def test_missing_and_wrong_and_unknown_tensors_are_named(tmp_path):
    file = written(tmp_path)
    fields = {**gguf_models.metadata("llama", LLAMA), "llama.feed_forward_length": 96}
    planned = [
        gguf_writer.Planned(t.name.replace("blk.1.attn_q.", "blk.1.attn_x."), t.shape, t.kind)
        for t in file.tensors.values()
    ]
    gguf_writer.write_gguf(
        tmp_path / "b.gguf",
        "llama",
        fields,
        planned,
        [gguf_file.numbers(file, t) for t in file.tensors.values()],
    )
    with pytest.raises(ConfigError) as said:
        gguf.load_gguf(tmp_path / "b.gguf")
    for part in (
        "missing: blk.1.attn_q.weight",
        "blk.1.attn_x.weight",
        "blk.0.ffn_up.weight [64, 32], which should be [96, 32]",
    ):
        assert part in str(said.value)


# --- metadata -------------------------------------------------------------------------------------


def described(arch: str, config: ModelConfig, **changes) -> ModelConfig:
    """The config that metadata describe, after changes; `None` leaves a key out."""
    fields = gguf_models.metadata(arch, config)
    fields |= {f"{arch}.{key}": value for key, value in changes.items()}
    fields = {key: value for key, value in fields.items() if value is not None}
    file = gguf_file.File(Path("m.gguf"), {"general.architecture": arch, **fields}, {})
    return gguf_models.config_from_metadata(file, config.vocabulary)


def all_keys() -> list[str]:
    """Every key that the `gguf` package knows below an architecture's name."""
    groups = [c for c in vars(published_gguf.Keys).values() if isinstance(c, type)]
    groups += [c for group in groups for c in vars(group).values() if isinstance(c, type)]
    names = {v for group in groups for v in vars(group).values() if isinstance(v, str)}
    return sorted(n.removeprefix("{arch}.") for n in names if n.startswith("{arch}."))


@pytest.mark.parametrize("arch", ["llama", "qwen3", "olmo2", "gemma2", "gemma3", "gpt2"])
def test_every_key_of_an_architecture_is_computed_harmless_or_refused_by_name(arch):
    config, num_refused = dataclasses.replace(MODELS[arch], rope_scaling=None), 0
    plain = equivalence.computed(described(arch, config))
    of_experts = {"expert_used_count", "expert_feed_forward_length"}  # without expert_count
    for key in [*all_keys(), "rope.scale_linear", "no.such.key"]:
        for value in (3, 0.37):
            try:
                again = equivalence.computed(described(arch, config, **{key: value}))
            except ConfigError as error:
                num_refused += key in str(error)
            else:
                ignored = again == plain and key not in {"block_count", *of_experts}
                assert not ignored or key in gguf_keys.HARMLESS, (key, value)
    assert num_refused > 150


@pytest.mark.parametrize("key", gguf_keys.NEUTRAL)
def test_a_key_at_its_neutral_value_changes_nothing(key):
    plain = described("llama", LLAMA)
    for value in gguf_keys.NEUTRAL[key]:
        assert described("llama", LLAMA, **{key: value}) == plain


def test_windows_are_read_as_their_architecture_places_them():
    span = {"attention.sliding_window": 8}
    olmo3 = dataclasses.replace(MODELS["olmo2"], num_layers=8, rope_scaling=YarnScaling(4.0, 16))
    local = Layer("window", 8, rope_scaled=False)
    assert described("olmo2", olmo3, **span).pattern == (local, local, local, Layer())
    listed = {"attention.sliding_window_pattern": np.array([True, False] * 4)}
    assert described("olmo2", olmo3, **span, **listed).pattern == (local, Layer())
    near = Layer("window", 8, rope_base=1e4, rope_scaled=False)
    gemma3 = dataclasses.replace(MODELS["gemma3"], num_layers=8)
    every = {"attention.sliding_window_pattern": 2}
    assert described("gemma3", gemma3, **span, **every).pattern == (near, Layer())
    with pytest.raises(ConfigError, match=r"llama.attention.sliding_window = 8"):
        described("llama", LLAMA, **span)


def test_rope_is_stretched_as_the_metadata_say():
    older = described("llama", LLAMA, **{"rope.scale_linear": 4.0})
    assert older.rope_scaling == LinearScaling(4.0)
    assert described("llama", LLAMA, **{"rope.scaling.factor": 4.0}) == older
    yarn = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
        "rope.scaling.attn_factor": 0.5,
        "rope.scaling.yarn_beta_fast": 16.0,
    }
    magnitude = 0.5 * (0.1 * math.log(4.0) + 1)
    wanted = YarnScaling(4.0, 16, fast=16.0, magnitude=magnitude)
    assert described("llama", LLAMA, **yarn).rope_scaling == wanted
    with pytest.raises(ConfigError, match=r"llama.rope.scaling.attn_factor = 0.5"):
        described("llama", LLAMA, **{"rope.scaling.attn_factor": 0.5})


def split(whole: Path, count: int) -> list[Path]:
    """A file cut into parts as llama-gguf-split cuts one: metadata in the first part only."""
    file = gguf_file.open_file(whole)
    names = np.array_split(np.array(list(file.tensors), object), count)
    paths = [whole.with_name(f"m-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    for n, (path, some) in enumerate(zip(paths, names, strict=True)):
        fields = {"split.no": n, "split.count": count, "split.tensors.count": len(file.tensors)}
        own = gguf_models.metadata("llama", LLAMA) if n == 0 else {}
        tensors = [file.tensors[name] for name in some]
        planned = [gguf_writer.Planned(t.name, t.shape, Kind.F32) for t in tensors]
        values = [gguf_file.numbers(file, t) for t in tensors]
        gguf_writer.write_gguf(path, "llama", own | fields, planned, values)
    return paths


def test_a_split_model_is_read_from_any_of_its_parts(tmp_path):
    """I13: split GGUF (shards)."""
    model = made(LLAMA)
    gguf.save_gguf(tmp_path / "whole.gguf", model)
    parts = split(tmp_path / "whole.gguf", 3)
    for part in (parts[0], parts[2]):
        assert same(gguf.load_gguf(part).params, model.params)
    swapped = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(ConfigError, match=r"m-00002-of-00003.gguf is not beside it"):
        gguf.load_gguf(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ConfigError, match=r"says that it is part 3 of 3; it should be part 2"):
        gguf.load_gguf(parts[0])
    parts[1].write_bytes(swapped)
    with pytest.raises(ConfigError, match=r"part 1 of 3 .* found by their names"):
        gguf.load_gguf(parts[0].rename(tmp_path / "a.gguf"))


# --- block formats --------------------------------------------------------------------------------


def read_block(kind: str, raw: bytes) -> list[float]:
    """One block, number by number, as ggml's description of the format says."""

    def half(at):
        return float(np.frombuffer(raw, "<f2", 1, at)[0])

    def nibbles(at):
        return [raw[at + i] & 15 for i in range(16)] + [raw[at + i] >> 4 for i in range(16)]

    if kind in ("Q4_0", "Q4_1"):
        low = -8 * half(0) if kind == "Q4_0" else half(2)
        return [half(0) * n + low for n in nibbles(2 if kind == "Q4_0" else 4)]
    if kind in ("Q5_0", "Q5_1"):
        at = 2 if kind == "Q5_0" else 4
        (high,) = struct.unpack_from("<I", raw, at)
        low = -16 * half(0) if kind == "Q5_0" else half(2)
        return [half(0) * (n + 16 * (high >> i & 1)) + low for i, n in enumerate(nibbles(at + 4))]
    if kind == "Q8_0":
        return [half(0) * n for n in struct.unpack_from("32b", raw, 2)]
    if kind == "Q6_K":
        found = [0.0] * 256
        for i in range(256):
            part, rest = divmod(i, 128)
            row, column = divmod(rest, 32)
            low = raw[part * 64 + column + 32 * (row % 2)] >> (4 * (row // 2)) & 15
            high = raw[128 + part * 32 + column] >> (2 * row) & 3
            (scale,) = struct.unpack_from("b", raw, 192 + i // 16)
            found[i] = half(208) * scale * (low + 16 * high - 32)
        return found
    scales = raw[4:16]  # Q4_K: eight scales and eight minima of six bits
    found = []
    for j in range(8):
        if j < 4:
            scale, low = scales[j] & 63, scales[j + 4] & 63
        else:
            scale, low = (
                scales[j + 4] & 15 | scales[j - 4] >> 6 << 4,
                scales[j + 4] >> 4 | scales[j] >> 6 << 4,
            )
        for i in range(32):
            n = raw[16 + 32 * (j // 2) + i] >> 4 * (j % 2) & 15
            found.append(half(0) * scale * n - half(2) * low)
    return found


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K"])
def test_blocks_are_read_as_their_format_is_described(kind, tmp_path):
    block, size = published_gguf.GGML_QUANT_SIZES[Kind[kind]]
    draw, count = np.random.default_rng(1), 3 * gguf_file.SLAB // 2 // block  # a slab and a half
    raw = draw.integers(0, 256, (count, size), dtype=np.uint8)
    scales = {
        "Q8_0": [0],
        "Q4_0": [0],
        "Q4_1": [0, 2],
        "Q5_0": [0],
        "Q5_1": [0, 2],
        "Q4_K": [0, 2],
        "Q6_K": [208],
    }[kind]
    for at in scales:
        raw[:, at : at + 2] = draw.normal(size=(count, 1)).astype("<f2").view(np.uint8)
    (tmp_path / "a").write_bytes(b"12345" + raw.tobytes())
    tensor = gguf_file.Tensor("a", (count // 2, 2 * block), Kind[kind], 5)
    found = gguf_file.numbers(gguf_file.File(tmp_path / "a", {}, {}), tensor).reshape(count, block)
    for n in (0, 1, count // 2, count - 1):
        np.testing.assert_allclose(
            found[n], read_block(kind, raw[n].tobytes()), rtol=1e-6, atol=1e-6
        )
    assert np.array_equal(found, published_gguf.dequantize(raw, Kind[kind]))


# --- tokenizers -----------------------------------------------------------------------------------

TEXTS = (
    "It isn't 12345 years, I'LL say.  He\n\n jumps   over",
    "a½²3 ①x\t\r\n été 中文 <|im_end|> 🙂\u0301",
    "",
    " ",
    "x\n",
)


def through(tokenizer, tmp_path, vocab_size=None):
    """The tokenizer of a file into which this one was written."""
    fields = gguf_tokenizer.metadata_of(tokenizer, vocab_size or tokenizer.vocab_size)
    gguf_writer.write_gguf(
        tmp_path / "t.gguf",
        "llama",
        fields,
        [gguf_writer.Planned("x", (1,), Kind.F32)],
        [np.zeros(1)],
    )
    return gguf_tokenizer.tokenizer_of(gguf_file.open_file(tmp_path / "t.gguf"))


@pytest.mark.parametrize("split", [False, True])
def test_a_byte_level_tokenizer_comes_back(split, tmp_path):
    described = json.loads(published.byte_level(("<|im_start|>", "<|im_end|>"), split=split))
    described["model"]["ignore_merges"] = split
    ids = [t["id"] for t in described["added_tokens"]]
    template = "{{ message['role'] }}"
    known = tokenizers.published(
        "tokenizer.json", json.dumps(described).encode(), Special(*ids, False, (), None, template)
    )
    back = through(known, tmp_path, 410)
    assert [back.encode(t).tolist() for t in TEXTS] == [known.encode(t).tolist() for t in TEXTS]
    assert (
        back.pieces == known.pieces
        and back.controls == known.controls
        and dataclasses.replace(back.special, template=template) == known.special
    )


@pytest.mark.parametrize("prepend", [False, True])
def test_a_tokenizer_of_marked_pieces_comes_back(prepend, tmp_path):
    known = tokenizers.published(
        "tokenizer.json", published.fallback(("<end>",), prepend=prepend), Special(1, 2, True)
    )
    back = through(known, tmp_path)
    assert [back.encode(t).tolist() for t in TEXTS] == [known.encode(t).tolist() for t in TEXTS]
    assert back.pieces == known.pieces and back.leading_space == known.leading_space == prepend


@pytest.mark.parametrize("name", ["GemmaTokenizer", "LlamaTokenizer"])
def test_marked_pieces_as_transformers_5_saves_them_come_back(name, tmp_path):
    """Spaces are written by a Metaspace (Llama), or replaced and split at (Gemma)."""
    gemma = name == "GemmaTokenizer"
    described = json.loads(published.fallback(("<end>",), prepend=not gemma, first=not gemma))
    if gemma:
        described["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        described["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        }
    content = json.dumps(described).encode()
    known = tokenizers.published("tokenizer.json", content, Special(1, 2, True))
    back = through(known, tmp_path)
    for text in TEXTS:
        if not (name == "LlamaTokenizer" and text.startswith((" ", "▁"))):
            assert back.encode(text).tolist() == known.encode(text).tolist(), text
    assert back.pieces == known.pieces and back.leading_space == (not gemma)
    described["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "split": True}
    apart = tokenizers.published("tokenizer.json", json.dumps(described).encode(), Special(1, 2))
    with pytest.raises(ConfigError, match="neither of bytes"):
        gguf_tokenizer.metadata_of(apart, 500)


def test_tokenizers_of_our_own_come_back(tmp_path):
    for kind in (Bytes(), SentencePiece(vocab_size=400)):
        known = tokenizers.train_tokenizer(kind, published.TEXTS)
        back = through(known, tmp_path)
        for text in TEXTS:
            assert back.decode(back.encode(text)) == text
        assert [back.encode(t).tolist() for t in TEXTS] == [known.encode(t).tolist() for t in TEXTS]
        assert back.end_of_document == known.end_of_document
    with pytest.raises(ConfigError, match="neither of bytes"):
        gguf_tokenizer.metadata_of(tokenizers.train_tokenizer(Characters(), published.TEXTS), 100)


def ending(template: str | None = None):
    """A small tokenizer with a control token that ends a text."""
    content = published.byte_level(("<|im_end|>",))
    (end,) = (t["id"] for t in json.loads(content)["added_tokens"])
    return tokenizers.published("tokenizer.json", content, Special(None, end, template=template))


def byte_file(tmp_path, **fields) -> gguf_file.File:
    """A file with the 256 bytes, and `12` and `1 2` as pieces."""
    in_order = sorted(letters(), key=letters().get)
    own = {
        "model": "gpt2",
        "tokens": [*in_order, "12", "Ġ1", "ab", "<|endoftext|>"],
        "merges": ["1 2", "Ġ 1", "a b"],
        "token_type": [1] * 259 + [3],
    } | fields
    own = {f"tokenizer.ggml.{key}": value for key, value in own.items() if value is not None}
    gguf_writer.write_gguf(
        tmp_path / "b.gguf", "llama", own, [gguf_writer.Planned("x", (1,), Kind.F32)], [np.zeros(1)]
    )
    return gguf_file.open_file(tmp_path / "b.gguf")


@pytest.mark.parametrize(
    ("cut", "spelled"),
    [
        ("gpt-2", ["12", " 1"]),
        ("smollm", ["1", "2", " ", "1"]),
        ("llama-bpe", ["12", " ", "1"]),
        ("qwen2", ["1", "2", " ", "1"]),
        ("default", ["12", " ", "1"]),
    ],
)
def test_digits_are_cut_as_the_name_says(cut, spelled, tmp_path):
    tokenizer = gguf_tokenizer.tokenizer_of(byte_file(tmp_path, pre=cut, bos_token_id=259))
    assert [tokenizer.pieces[i].decode() for i in tokenizer.encode("12 1")] == spelled
    assert (tokenizer.begin_of_document is None) == (cut != "llama-bpe")
    assert tokenizer.ends == (259,) and "<|endoftext|>" in tokenizer.controls


def test_a_file_says_for_itself_whether_a_text_begins_with_an_id(tmp_path):
    assert (
        gguf_tokenizer.tokenizer_of(
            byte_file(tmp_path, pre="llama-bpe", bos_token_id=259, add_bos_token=False)
        ).begin_of_document
        is None
    )
    assert (
        gguf_tokenizer.tokenizer_of(
            byte_file(tmp_path, pre="gpt-2", bos_token_id=259, add_bos_token=True)
        ).begin_of_document
        == 259
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pre": "falcon-9"}, "cuts text as 'falcon-9'"),
        ({"model": "bert"}, "kind 'bert'"),
        ({"tokens": ["a", "a"], "token_type": None}, "duplicate pieces"),
        ({"token_type": [1, 1]}, "has 2 numbers for 260 pieces"),
        ({"merges": ["q zz"]}, "a merge of pieces"),
        ({"eos_token_id": 260}, "eos_token_id is 260"),
        ({"tokens": None}, "lacks 'tokenizer.ggml.tokens'"),
    ],
)
def test_lists_that_do_not_fit_together_are_refused(fields, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        gguf_tokenizer.tokenizer_of(byte_file(tmp_path, **{"pre": "gpt-2"} | fields))


def test_a_padded_vocabulary_is_recorded_and_taken_off(tmp_path):
    tokenizer = tokenizers.train_tokenizer(Bytes(), ())
    model = made(dataclasses.replace(LLAMA, vocab_size=272), tokenizer)
    gguf.save_gguf(tmp_path / "a.gguf", model)
    back = gguf.load_gguf(tmp_path / "a.gguf")
    assert (back.config.vocab_size, back.about.padding, back.tokenizer.vocab_size) == (257, 15, 257)
    assert np.array_equal(
        back.params["embedding"]["embedding"], model.params["embedding"]["embedding"][:257]
    )
    assert np.array_equal(back.params["head"]["kernel"], model.params["head"]["kernel"][:, :257])


# --- damaged and hostile files --------------------------------------------------------------------


@pytest.fixture
def figure(record_property):
    """Records what a test measured."""
    return functools.partial(record_property, "figure")


def written(tmp_path, name="a.gguf") -> gguf_file.File:
    gguf.save_gguf(tmp_path / name, made(LLAMA))
    return gguf_file.open_file(tmp_path / name)


def text(value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def head(tensors: int = 0, fields: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields)


def tensor(name="x", shape=(32,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def padded(data: bytes, body: int) -> bytes:
    return data + bytes(-len(data) % 32 + body)


LIST, UINT8, UINT64, STRING, BOOL = 9, 0, 10, 8, 7
HOSTILE = {
    "empty": (b"", "does not begin with 'GGUF'"),
    "another format": (b"PK\3\4" + bytes(100), "does not begin with 'GGUF'"),
    "cut in the header": (head()[:12], "reaches past the end"),
    "version 1": (head(version=1), "version 1"),
    "big-endian": (head(version=3 << 24), "big-endian"),
    "2^63 tensors": (head(tensors=2**63), f"counts {2**63} tensors"),
    "2^63 keys": (head(fields=2**63), f"counts {2**63} keys"),
    "a key of 2^63 bytes": (head(fields=1) + struct.pack("<Q", 2**63), "a key has"),
    "a text of 2^63 bytes": (
        head(fields=1) + text("a") + struct.pack("<IQ", STRING, 2**63),
        "'a' has",
    ),
    "a list of 2^63 texts": (
        head(fields=1) + text("a") + struct.pack("<IIQ", LIST, STRING, 2**63),
        "all lists together",
    ),
    "a list of 2^61 numbers": (
        head(fields=1) + text("a") + struct.pack("<IIQ", LIST, UINT64, 2**61),
        "reaches past the end",
    ),
    "a list that overflows 64 bits": (
        head(fields=1) + text("a") + struct.pack("<IIQ", LIST, UINT64, 2**64 - 1),
        "reaches past the end",
    ),
    "lists in lists": (
        head(fields=1) + text("a") + struct.pack("<IIQ", LIST, LIST, 1) * 1000,
        "a list of the type 9",
    ),
    "texts past the end": (
        head(fields=1) + text("a") + struct.pack("<IIQ", LIST, STRING, 1 << 19) + bytes(8 << 18),
        "reaches past the end",
    ),
    "an unknown type": (head(fields=1) + text("a") + struct.pack("<I", 99), "unknown type 99"),
    "a key that is not UTF-8": (
        head(fields=1) + text(b"\xff\xfe") + struct.pack("<IB", UINT8, 1),
        "not UTF-8",
    ),
    "a key twice": (
        head(fields=2) + (text("a") + struct.pack("<IB", UINT8, 1)) * 2,
        "duplicate key 'a'",
    ),
    "an alignment of 0": (
        head(fields=1) + text("general.alignment") + struct.pack("<II", 4, 0),
        "general.alignment is 0",
    ),
    "an alignment of 3": (
        head(fields=1) + text("general.alignment") + struct.pack("<II", 4, 3),
        "general.alignment is 3",
    ),
    "a name of 2^40 bytes": (head(tensors=1) + struct.pack("<Q", 2**40), "a tensor's name has"),
    "2^31 dimensions": (head(tensors=1) + text("x") + struct.pack("<I", 2**31), "dimensions"),
    "a product that overflows": (
        padded(head(tensors=1) + tensor(shape=(2**32, 2**32, 2**32)), 64),
        "ends at byte",
    ),
    "a dimension of 0": (padded(head(tensors=1) + tensor(shape=(0, 4)), 64), "shape"),
    "half a block": (padded(head(tensors=1) + tensor(shape=(33,), kind=8), 64), "Q8_0"),
    "an unknown block format": (
        padded(head(tensors=1) + tensor(kind=999), 128),
        "unknown type 999",
    ),
    "a tensor twice": (
        padded(head(tensors=2) + tensor() + tensor(offset=128), 256),
        "duplicate tensor 'x'",
    ),
    "tensors on each other": (
        padded(head(tensors=2) + tensor() + tensor("y"), 256),
        "begins at 0, where 128",
    ),
    "a hole": (
        padded(head(tensors=2) + tensor() + tensor("y", offset=256), 512),
        "begins at 256, where 128",
    ),
    "an offset of 2^64 - 1": (padded(head(tensors=1) + tensor(offset=2**64 - 1), 128), "begins at"),
    "cut in the numbers": (padded(head(tensors=1) + tensor(), 100), "ends at byte"),
    "bytes behind the end": (padded(head(tensors=1) + tensor(), 192), "64 bytes follow"),
}


@pytest.mark.row(54)
def test_hostile_headers_are_refused_at_once_in_little_memory(tmp_path, figure):
    before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    for name, (content, said) in HOSTILE.items():
        (tmp_path / "a.gguf").write_bytes(content)
        begun = time.monotonic()
        with pytest.raises(ConfigError) as error:
            gguf_file.open_file(tmp_path / "a.gguf")
        slowest = max(slowest, time.monotonic() - begun)
        assert said in str(error.value) and "\n" not in str(error.value), (name, str(error.value))
        assert str(tmp_path / "a.gguf") in str(error.value), name
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert slowest <= 1 and grown <= 50
    figure(
        f"GGUF: {len(HOSTILE)} of {len(HOSTILE)} hostile headers refused in one line, at most"
        f" {1000 * slowest:.0f} ms and {grown:.0f} MB each"
    )


@pytest.mark.row(54)
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_any_damage_gives_a_model_or_one_clear_error(tmp_path, figure, count):
    """Flips, cuts and swaps of numbers in header and metadata of a small model."""
    tokenizer = ending()
    gguf.save_gguf(
        tmp_path / "a.gguf",
        made(dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size, num_layers=1), tokenizer),
    )
    whole = (tmp_path / "a.gguf").read_bytes()
    size = min(t.offset for t in gguf_file.open_file(tmp_path / "a.gguf").tensors.values())
    draw, refused, slowest, before = (
        random.Random(0),
        0,
        0.0,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    for n in range(count):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8))):
            at = draw.randrange(size)
            match draw.randrange(4):
                case 0:
                    data[at] ^= 1 << draw.randrange(8)
                case 1:
                    data[at : at + 8] = draw.choice(
                        (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
                    ).to_bytes(8, "little")
                case 2:
                    del data[at : at + draw.randrange(1, 9)]
                case 3:
                    data[at : at + 4] = draw.randbytes(4)
        if n % 5 == 0:
            del data[draw.randrange(len(data)) :]
        (tmp_path / "b.gguf").write_bytes(data)
        begun = time.monotonic()
        try:
            file = gguf_file.open_file(tmp_path / "b.gguf")
            gguf_models.config_from_metadata(file, tokenizer.vocab_size)
            if n % 20 == 0:
                gguf_tokenizer.tokenizer_of(file)
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
        slowest = max(slowest, time.monotonic() - begun if n % 100 else 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert slowest <= 1 and grown <= 50
    figure(
        f"GGUF: {count:,} damaged headers, {refused:,} refused by ConfigError, none otherwise; at"
        f" most {1000 * slowest:.0f} ms and {grown:.0f} MB"
    )


@pytest.mark.row(54)
def test_numbers_that_are_not_finite_or_gone_are_refused(tmp_path):
    file = written(tmp_path)
    data, at = bytearray(file.path.read_bytes()), file.tensors["blk.1.ffn_down.weight"].offset
    data[at + 8 : at + 12] = struct.pack("<f", math.inf)
    (tmp_path / "b.gguf").write_bytes(data)
    with pytest.raises(
        ConfigError, match=r"blk\.1\.ffn_down\.weight' has numbers that are not finite"
    ):
        gguf.load_gguf(tmp_path / "b.gguf")
    file.path.write_bytes(file.path.read_bytes()[: at + 4])  # after its header was read
    with pytest.raises(ConfigError, match="has become shorter"):
        gguf_file.numbers(file, file.tensors["blk.1.ffn_down.weight"])


@pytest.mark.row(53)
@pytest.mark.row(55)
def test_nothing_in_a_file_is_run_and_no_name_leads_elsewhere(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    canary = tmp_path / "canary"
    template = (
        "{% for m in messages %}{{ ''.__class__.__mro__[1].__subclasses__() }}{{"
        " cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}{% endfor %}"
    )
    tokenizer = ending(template)
    gguf.save_gguf(
        inside / "a.gguf",
        made(dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size), tokenizer),
    )
    assert gguf.load_gguf(inside / "a.gguf").tokenizer.special.template == template
    for name in ("../canary", str(canary), "~/canary", "a\0b"):
        gguf_writer.write_gguf(
            inside / "b.gguf",
            "llama",
            {"general.name": name, **gguf_models.metadata("llama", LLAMA)},
            [gguf_writer.Planned(name, (1,), Kind.F32)],
            [np.zeros(1)],
        )
        with pytest.raises(ConfigError):
            gguf.load_gguf(inside / "b.gguf")
    assert {p.name for p in tmp_path.rglob("*")} == {"inside", "a.gguf", "b.gguf"}


# --- llama2.c -------------------------------------------------------------------------------------


def llama2c_file(model: OpenedModel) -> bytes:
    """The format's first version, written from its description."""
    c, p = model.config, model.params
    layers, numbers = (
        p["layers"],
        [
            *struct.pack(
                "<7i",
                c.width,
                c.mlp_dim,
                c.num_layers,
                c.num_heads,
                c.kv_heads,
                (1 if c.tied else -1) * c.vocabulary,
                c.context,
            )
        ],
    )

    def turned(k):
        return (
            k.reshape(*k.shape[:3], 2, -1).swapaxes(-1, -2).reshape(k.shape)
        )  # halves become neighbours

    def rows(k):
        return np.moveaxis(k, 1, -1).reshape(c.num_layers, -1, c.width)

    attention, mlp = layers["attention"], layers["mlp"]
    order = [
        p["embedding"]["embedding"],
        layers["attention_norm"]["scale"],
        *(
            rows(f(attention[n]["kernel"]))
            for n, f in (("query", turned), ("key", turned), ("value", lambda k: k))
        ),
        attention["out"]["kernel"].reshape(c.num_layers, -1, c.width).swapaxes(1, 2),
        layers["mlp_norm"]["scale"],
        *(mlp[n]["kernel"].swapaxes(1, 2) for n in ("gate", "down", "up")),
        p["norm"]["scale"],
        np.zeros(c.context * c.head_dim, np.float32),
        *(() if c.tied else (p["head"]["kernel"].T,)),
    ]
    return bytes(numbers) + b"".join(np.ascontiguousarray(a, np.float32).tobytes() for a in order)


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama2c_file_is_read(tied, tmp_path):
    model = made(llama(**SHRUNK, tied=tied))
    (tmp_path / "a.bin").write_bytes(llama2c_file(model))
    back = llama2c.load_llama2c(tmp_path / "a.bin")
    assert equivalence.computed(back.config) == equivalence.computed(model.config)
    assert same(back.params, model.params) and back.tokenizer is None


@pytest.mark.row(54)
def test_a_damaged_llama2c_file_is_refused(tmp_path):
    whole = llama2c_file(made(LLAMA))
    later = struct.pack("<I", llama2c.LATER) + whole[4:]
    huge = struct.pack("<7i", 1 << 24, 1 << 24, 1024, 1, 1, 1 << 24, 1 << 24)
    for content, said in (
        (b"", "too few"),
        (whole[:-4], "needs"),
        (whole + b"abcd", "needs"),
        (later, "later version"),
        (bytes(28), "no model has"),
        (huge, "needs"),
    ):
        (tmp_path / "a.bin").write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            llama2c.load_llama2c(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(whole)
    for content in (b"", bytes(100), struct.pack("<ifi", 4, 1.0, -1)):
        (tmp_path / "tok61.bin").write_bytes(content)
        with pytest.raises(ConfigError, match="no tokenizer of 61 pieces"):
            llama2c.load_llama2c(tmp_path / "a.bin")
