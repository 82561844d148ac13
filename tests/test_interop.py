"""Laws of Hugging Face directories: out and in again is bit-equal, all that a file says is
translated or refused by name, a conversion proves itself."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import flax_shapes
import jax
import numpy as np
import pytest
from conftest import documents
from decoder_families import MODELS as DECODERS
from hearing import WHISPER
from variants import VARIANTS

import gptjax
from gptjax import formats, model
from gptjax.cli import convert
from gptjax.cli import main as cli
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Characters, SentencePiece
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.formats import (
    About,
    OpenedModel,
    configs,
    equivalence,
    huggingface,
    layout,
    safetensors,
)
from gptjax.formats.huggingface_families import FAMILIES
from gptjax.formats.keys import Keys
from gptjax.model import (
    Experts,
    Latent,
    Layer,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    YarnScaling,
    bert,
    gemma,
    gpt2,
    llama,
    olmo,
    t5,
)
from gptjax.runs.open import open_model
from gptjax.sharding.mesh import MeshConfig, make_mesh, param_shardings

SMALL = {
    "vocab_size": 61,
    "context": 32,
    "width": 32,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward": 48,
}
ROPE = llama(**SMALL | {"num_kv_heads": 2})
QUIET = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0}
EXPERTS = Experts(count=4, active=2, width=24, balance=0.0)
LOCAL = Layer("window", 8)
LATENT = Latent(rank=16, query_rank=24, rope_width=8, value_width=12)

MODELS: dict[str, tuple[str, ModelConfig]] = {
    "gpt2": ("gpt2", gpt2(**SMALL)),
    "whisper": ("whisper", WHISPER),
    "gpt2 untied": ("gpt2", gpt2(**SMALL, tied=False, activation="relu")),
    "llama": ("llama", ROPE),
    "llama stretched": (
        "llama",
        dataclasses.replace(ROPE, tied=True, head_width=12, rope_scaling=Llama3Scaling(8.0, 16)),
    ),
    "llada": ("llada", dataclasses.replace(ROPE, causal=False)),
    "arcee": ("arcee", dataclasses.replace(ROPE, activation="relu2", tied=True, num_kv_heads=None)),
    "arcee with biases": (
        "arcee",
        dataclasses.replace(ROPE, activation="relu2", bias=True),
    ),
    "llama with an exact GELU and biases in attention": (
        "llama",
        dataclasses.replace(ROPE, activation="geglu_exact", qkv_bias=True, out_bias=True),
    ),
    "llama with biases in the MLP": (
        "llama",
        dataclasses.replace(
            ROPE,
            mlp_bias=True,
            activation="reglu",
            rope_scaling=YarnScaling(4.0, 16, truncate=False),
        ),
    ),
    "qwen3 with biases": (
        "qwen3",
        dataclasses.replace(ROPE, qk_norm=True, qkv_bias=True, out_bias=True),
    ),
    "mistral": ("mistral", dataclasses.replace(ROPE, pattern=(LOCAL,))),
    "mixtral": ("mixtral", dataclasses.replace(ROPE, experts=EXPERTS)),
    "qwen2": ("qwen2", dataclasses.replace(ROPE, qkv_bias=True, rope_scaling=YarnScaling(4.0, 16))),
    "qwen3 with windows": (
        "qwen3",
        dataclasses.replace(ROPE, qk_norm=True, head_width=12, pattern=(Layer(), LOCAL)),
    ),
    "qwen3 with experts": (
        "qwen3_moe",
        dataclasses.replace(
            ROPE, qk_norm=True, experts=EXPERTS, pattern=(Layer(dense=True), Layer())
        ),
    ),
    "gemma2": (
        "gemma2",
        gemma(
            "2-2b",
            **SMALL,
            num_kv_heads=2,
            head_width=12,
            pattern=(LOCAL, Layer()),
            attention_scale=0.25,
        ),
    ),
    "gemma3": (
        "gemma3_text",
        gemma("3-1b", **SMALL, num_kv_heads=2, head_width=12, rope_scaling=LinearScaling(8.0)),
    ),
    "olmo2": ("olmo2", olmo("2-7b", **SMALL | {"num_kv_heads": 2})),
    "phi3": ("phi3", ROPE),
    "pythia": (
        "gpt_neox",
        ModelConfig(
            **SMALL,
            positions="rope",
            rope_share=0.5,
            parallel="separate",
            tied=False,
            activation="gelu_exact",
        ),
    ),
    "neox in turn": ("gpt_neox", ModelConfig(**SMALL, positions="rope", tied=False)),
    "deepseek v2": (
        "deepseek_v2",
        dataclasses.replace(
            llama(**SMALL, num_kv_heads=None),
            latent=dataclasses.replace(LATENT, query_rank=None, norm_epsilon=1e-6),
            experts=dataclasses.replace(EXPERTS, shared=1, normalised=False),
        ),
    ),
    "deepseek v3": (
        "deepseek_v3",
        dataclasses.replace(
            llama(**SMALL, num_kv_heads=None),
            norm_epsilon=1e-6,
            latent=LATENT,
            first=(Layer(dense=True),),
            experts=Experts(
                count=8,
                active=2,
                width=16,
                shared=1,
                scores="sigmoid",
                scale=2.5,
                groups=4,
                active_groups=2,
                bias_step=1e-3,
            ),
            rope_scaling=YarnScaling(4.0, 16, magnitude=1.0),
            attention_scale=16**-0.5 * 1.3,
        ),
    ),
    "bert": ("bert", bert("base", **SMALL, **QUIET)),
    "bert without an output": (
        "bert",
        dataclasses.replace(bert("base", **SMALL, **QUIET), head_transform=False, logit_bias=False),
    ),
    "t5": (
        "t5",
        dataclasses.replace(
            t5("small", **SMALL, **QUIET, encoder_layers=2, head_width=12), logit_scale=32**-0.5
        ),
    ),
    "t5 1.1": ("t5", t5("1.1-small", **SMALL, encoder_layers=2, head_width=12)),
    **DECODERS,
    **flax_shapes.MODELS,
}
"""Of each family one or two, and which it is."""

OPTIONS = ("gpt_oss", "nanochat", "granite", "ministral3", "apertus", "qwen2_moe", "cohere2")
MODELS |= {name: (name, VARIANTS[name]) for name in OPTIONS}
MODELS["deepseek v3 with further tokens"] = (
    "deepseek_v3",
    dataclasses.replace(MODELS["deepseek v3"][1], ahead=2, ahead_chained=True),
)
MODELS |= {
    "llama4": ("llama4_text", VARIANTS["llama4"]),
    "cohere": ("cohere", dataclasses.replace(VARIANTS["cohere2"], pattern=(Layer(),))),
    "granite with experts": (
        "granitemoe",
        dataclasses.replace(VARIANTS["granite"], experts=Experts(count=4, active=2)),
    ),
    "granite with a shared expert": (
        "granitemoeshared",
        dataclasses.replace(VARIANTS["granite"], experts=Experts(count=4, active=2, shared=1)),
    ),
}
"""Those that differ by one option."""


def randomly(config: ModelConfig, seed: int = 0) -> Any:
    """Parameters, all random. Scales of norms are at least 0.5, where one more or less is exact in
    float32, as Gemma writes them."""
    random, tree = np.random.default_rng(seed), {}
    for path, leaf in layout.leaf_shapes(config).items():
        drawn = random.normal(size=leaf.shape, scale=0.2).astype(np.float32)
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = np.maximum(1 + drawn, 0.5) if name == "scale" else drawn
    return tree


def same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_again_is_bit_equal(name: str, tmp_path: Path) -> None:
    family, config = MODELS[name]
    pad = 1 if "bert" in family and family not in ("bert", "distilbert") else 3  # or refused
    about = About(family=family, pad=pad, generation={"temperature": 0.5}, notes={"made": "here"})
    formats.save_model(tmp_path / "m", OpenedModel(config, randomly(config), None, about))
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == family
    found = formats.load_model(tmp_path / "m")
    assert equivalence.computed(found.config) == equivalence.computed(config)
    same(found.params, randomly(config))
    assert (found.about.family, found.about.pad, found.about.notes) == (
        family,
        pad,
        {"made": "here"},
    )
    assert config.causal is (found.about.generation.get("temperature") == 0.5)


def test_every_variant_has_a_family_that_computes_the_same_or_is_refused_with_the_reason() -> None:
    fits = {}
    for name, config in VARIANTS.items():
        try:
            fits[name] = huggingface.family_of(config)
        except ConfigError as error:
            assert re.search("differs in|no family", str(error)), error
    wanted = {
        "gpt2": "gpt2",
        "llama": "llama",
        "gqa": "llama",
        "qk_norm": "qwen3",
        "rope_yarn": "llama",
        "window": "mistral",
        "rope_ntk": "llama",
        "bfloat16": "llama",
    }
    assert {name: fits.get(name) for name in wanted} == wanted
    assert (
        not {"alibi", "attention_sink", "strided", "no_positions", "rmsnorm_with_bias"}
        & fits.keys()
    )


def test_a_large_model_is_in_several_files_and_the_same(tmp_path: Path) -> None:
    whole = OpenedModel(ROPE, randomly(ROPE), None)
    huggingface.save_huggingface(tmp_path / "m", whole, shard_bytes=30_000)
    files = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    same(formats.load_model(tmp_path / "m").params, whole.params)
    (tmp_path / "m" / files[1]).unlink()
    with pytest.raises(ConfigError, match=f"{files[1]} can't be read"):
        formats.load_model(tmp_path / "m")


def test_weights_are_rounded_once_to_the_type_that_is_asked_for(tmp_path: Path) -> None:
    formats.save_model(tmp_path / "m", OpenedModel(ROPE, randomly(ROPE), None), "bfloat16")
    found = formats.load_model(tmp_path / "m").params
    same(
        found,
        jax.tree.map(
            lambda leaf: leaf.astype(jax.numpy.bfloat16).astype(np.float32), randomly(ROPE)
        ),
    )
    with pytest.raises(ConfigError, match=r"dtype is 'float8'; .* Did you mean"):
        formats.save_model(tmp_path / "n", OpenedModel(ROPE, randomly(ROPE), None), "float8")
    with pytest.raises(ConfigError, match="holds something already"):
        formats.save_model(tmp_path / "m", OpenedModel(ROPE, randomly(ROPE), None))


def test_parameters_are_read_onto_a_mesh(tmp_path: Path) -> None:
    formats.save_model(tmp_path / "m", OpenedModel(ROPE, randomly(ROPE), None))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    found = open_model(tmp_path / "m", mesh=mesh)
    same(found.params, randomly(ROPE))
    wanted = param_shardings(
        mesh, model.axes(ROPE), jax.eval_shape(lambda: model.init(ROPE, jax.random.key(0)))
    )
    placed = jax.tree.map(
        lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted, leaf.ndim), found.params, wanted
    )
    assert all(jax.tree.leaves(placed)), placed


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    path = tmp_path_factory.mktemp("saved") / "m"
    formats.save_model(
        path,
        OpenedModel(
            dataclasses.replace(ROPE, num_layers=1),
            randomly(dataclasses.replace(ROPE, num_layers=1)),
            None,
        ),
    )
    return path


def altered(saved: Path, path: Path, **changes: Any) -> Path:
    """A copy with another config.json; a change to `...` removes a key."""
    shutil.copytree(saved, path)
    data = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(
        json.dumps({key: value for key, value in data.items() if value is not ...})
    )
    return path


def rewritten(path: Path, change: Any) -> None:
    """The file of tensors again, after `change` of a dict of them."""
    file = safetensors.File(path / "model.safetensors")
    values = {name: np.array(file.take(name)) for name in file.tensors}
    change(values)
    safetensors.write_safetensors(
        path / "model.safetensors",
        {name: value.shape for name, value in values.items()},
        values.items(),
        "float32",
        {},
    )


HARMLESS = {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_type": "first_token_transform",
    "unsloth_version": "2025.1",
    "unsloth_fixed": True,
    "max_length": 512,
    "do_sample": True,
    "temperature": 0.6,
    "repetition_penalty": 1.1,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "quantization_config": None,
}
"""Of published configs; none changes what a forward pass computes."""


def test_keys_that_change_no_number_are_passed_over(saved: Path, tmp_path: Path) -> None:
    same(
        formats.load_model(altered(saved, tmp_path / "m", **HARMLESS)).params,
        formats.load_model(saved).params,
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown family": ({"model_type": "lama"}, "Did you mean 'llama'"),
    "pruned heads": ({"pruned_heads": {"0": [1]}}, "'pruned_heads'"),
    "unknown key": ({"head_temperature": 0.7}, "'head_temperature': 0.7"),
    "two unknown keys": ({"b_key": [1], "a_key": True}, "'a_key': True, 'b_key'"),
    "quantised": ({"quantization_config": {"quant_method": "hqq"}}, "the quant_method 'hqq'"),
    "longrope": (
        {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [2]}},
        "'longrope'",
    ),
    "RoPE with an unknown key": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "twist": 3}},
        "'twist': 3",
    ),
    "another activation": ({"hidden_act": "relu6"}, "'hidden_act': 'relu6'"),
    "a size that is a text": ({"hidden_size": "32"}, "'hidden_size': '32'"),
    "a size that is missing": ({"hidden_size": ...}, "lacks 'hidden_size'"),
    "heads that do not divide": (
        {"num_attention_heads": 5, "head_dim": ...},
        "heads do not divide",
    ),
    "a window": ({"sliding_window": 8}, "'sliding_window': 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_change_numbers_is_refused_by_name(
    name: str, saved: Path, tmp_path: Path
) -> None:
    changes, said = REFUSED[name]
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        formats.load_model(altered(saved, tmp_path / "m", **changes))
    assert "\n" not in str(caught.value)


def test_the_unused_bias_in_published_t5_files_is_passed_over(tmp_path: Path) -> None:
    config = MODELS["t5"][1]
    formats.save_model(tmp_path / "m", OpenedModel(config, randomly(config), None))
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    rewritten(tmp_path / "m", lambda values: values.update({name: np.ones((32, 4), np.float32)}))
    same(formats.load_model(tmp_path / "m").params, randomly(config))


def test_all_tensors_that_are_missing_extra_or_of_another_shape_are_named_at_once(
    saved: Path, tmp_path: Path
) -> None:
    path = altered(saved, tmp_path / "m")

    def change(values: dict[str, Any]) -> None:
        del values["model.norm.weight"], values["model.layers.0.mlp.up_proj.weight"]
        values["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
        values["lm_head.weight"] = np.zeros((61, 16), np.float32)

    rewritten(path, change)
    with pytest.raises(ConfigError) as caught:
        formats.load_model(path)
    said = str(caught.value)
    assert "missing: model.layers.0.mlp.up_proj.weight, model.norm.weight" in said
    assert "without a place here: model.layers.0.self_attn.q_proj.bias" in said
    assert "lm_head.weight [61, 16], which should be [61, 32]" in said


def test_a_tied_output_may_be_there_twice_but_not_be_another(saved: Path, tmp_path: Path) -> None:
    path = altered(saved, tmp_path / "m", tie_word_embeddings=True)
    with pytest.raises(
        ConfigError, match=r"lm_head.weight that is not its embedding.*tie_word_embeddings to false"
    ):
        formats.load_model(path)
    rewritten(
        path, lambda values: values.update({"lm_head.weight": values["model.embed_tokens.weight"]})
    )
    assert formats.load_model(path).config.tied


def theirs_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first layer of our parameters of one of `MODELS`, and all tensors of its family."""
    config = MODELS[name][1]
    params = randomly(config)
    tensors = dict(layout.tensors(params, FAMILIES[MODELS[name][0]].places(config)))
    layers = params["layers"].get("sparse", params["layers"])
    return jax.tree.map(lambda leaf: leaf[0], layers), tensors


def rows_of(kernel: Any) -> Any:
    """A kernel [D N H] as a matrix [N·H D] of `torch.nn.Linear`."""
    return kernel.reshape(len(kernel), -1).T


def test_tensors_mean_what_their_family_says() -> None:
    """A table that is wrong in both directions gives every model back, and is still wrong: so here
    each tensor that is not one of ours as it stands is written out."""
    ours, theirs = theirs_of("gemma2")
    layer, gemma_scale = "model.layers.0", ours["attention_norm"]["scale"]
    same(theirs[f"{layer}.input_layernorm.weight"], gemma_scale - 1)
    ours, theirs = theirs_of("mixtral")
    expert = f"{layer}.block_sparse_moe.experts.2"
    for name, kernel in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
        same(theirs[f"{expert}.{name}.weight"], ours["moe"]["experts"][kernel]["kernel"][2].T)
    ours, theirs = theirs_of("phi3")
    both = [ours["mlp"][name]["kernel"].T for name in ("gate", "up")]
    same(theirs[f"{layer}.mlp.gate_up_proj.weight"], np.concatenate(both))
    three = [ours["attention"][name]["kernel"] for name in ("query", "key", "value")]
    same(theirs[f"{layer}.self_attn.qkv_proj.weight"], np.concatenate([rows_of(k) for k in three]))
    ours, theirs = theirs_of("gpt2")  # Conv1D: inputs first
    three = [ours["attention"][name]["kernel"] for name in ("query", "key", "value")]
    same(
        theirs["transformer.h.0.attn.c_attn.weight"],
        np.concatenate([rows_of(k).T for k in three], axis=1),
    )
    same(theirs["transformer.h.0.mlp.c_fc.weight"], ours["mlp"]["up"]["kernel"])
    ours, theirs = theirs_of("pythia")  # head by head its query, its key, its value
    three = [ours["attention"][name]["kernel"] for name in ("query", "key", "value")]
    by_head = [rows_of(kernel[:, n : n + 1]) for n in range(4) for kernel in three]
    same(theirs["gpt_neox.layers.0.attention.query_key_value.weight"], np.concatenate(by_head))
    ours, theirs = theirs_of("deepseek v2")  # RoPE turns neighbours
    query, plain = ours["attention"]["query"]["kernel"], MODELS["deepseek v2"][1].head_dim
    for head, rows in enumerate(np.split(theirs[f"{layer}.self_attn.q_proj.weight"], 4)):
        same(rows[:plain], query[:, head, :plain].T)
        same(rows[plain::2], query[:, head, plain : plain + 4].T)
        same(rows[plain + 1 :: 2], query[:, head, plain + 4 :].T)


def test_configs_mean_what_their_family_says() -> None:
    """Of keys whose meaning is a rule, not a number."""
    described = configs.llama_json(ROPE) | {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 144,
    }
    gemma = configs.gemma2_config(Keys(described, "config.json"))
    assert gemma.scale == pytest.approx(1 / 12)
    assert [layer.sees for layer in gemma.stack] == ["window", "all", "window"]
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    qwen = configs.qwen2_config(Keys(configs.llama_json(ROPE) | windows, "config.json"))
    assert [layer.sees for layer in qwen.stack] == ["all", "all", "window"]


def test_older_files_are_read_too(tmp_path: Path) -> None:
    """GPT-2's own has no prefix and holds masks; BERT's has gamma and beta, a pooler and a table of
    sentences, whose first row we add to the positions."""
    for family in ("gpt2", "bert"):
        config = MODELS[family][1]
        formats.save_model(
            tmp_path / family, OpenedModel(config, randomly(config), None, About(family))
        )

    def as_gpt2(values: dict[str, Any]) -> None:
        for name in list(values):
            values[name.removeprefix("transformer.")] = values.pop(name)
        values["h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)

    def as_bert(values: dict[str, Any]) -> None:
        for name in list(values):
            values[
                re.sub(
                    r"LayerNorm\.(weight|bias)",
                    lambda m: "LayerNorm." + {"weight": "gamma", "bias": "beta"}[m[1]],
                    name,
                )
            ] = values.pop(name)
        values["bert.embeddings.token_type_embeddings.weight"] = np.arange(
            64, dtype=np.float32
        ).reshape(2, 32)
        values["bert.pooler.dense.weight"] = np.ones((32, 32), np.float32)
        values["cls.seq_relationship.bias"] = np.ones(2, np.float32)

    for family, change in (("gpt2", as_gpt2), ("bert", as_bert)):
        rewritten(tmp_path / family, change)
        found, wanted = formats.load_model(tmp_path / family).params, randomly(MODELS[family][1])
        if family == "bert":
            wanted["positions"]["embedding"] = wanted["positions"]["embedding"] + np.arange(
                32, dtype=np.float32
            )
        same(found, wanted)


def test_links_of_the_hub_cache_are_followed(saved: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(saved.iterdir())):
        shutil.copy(file, blobs / f"{i:040x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{i:040x}")
    same(formats.load_model(snapshot).params, formats.load_model(saved).params)


# --- tokenizers -----------------------------------------------------------------------------------

ODD = [
    "",
    " ",
    "a  b",
    "\n\n x\n",
    "<|endoftext|></s><s>",
    "né Größe 東京 🙂",
    "\ttab",
    "0123 456",
    *documents(8),
]


@pytest.mark.parametrize(
    "kind",
    [
        Bytes(),
        Characters(),
        SentencePiece(vocab_size=330),
        SentencePiece(vocab_size=330, algorithm="unigram"),
    ],
    ids=str,
)
def test_every_kind_of_tokenizer_spells_as_before(kind: Any, tmp_path: Path) -> None:
    before = tokenizers.train_tokenizer(kind, documents(60))
    config = dataclasses.replace(ROPE, vocab_size=before.vocab_size)
    formats.save_model(tmp_path / "m", OpenedModel(config, randomly(config), before))
    after = formats.load_model(tmp_path / "m").tokenizer
    assert (after.vocab_size, after.end_of_document, after.begin_of_document) == (
        before.vocab_size,
        before.end_of_document,
        before.begin_of_document,
    )
    for text in ODD:
        known = (
            text
            if not isinstance(kind, Characters)
            else "".join(c for c in text if c in "".join(documents(60)))
        )
        ids = before.encode(known)
        assert after.encode(known).tolist() == ids.tolist(), known
        assert after.decode(ids) == known and after.token_bytes(ids) == before.token_bytes(ids)


def test_padding_of_the_vocabulary_is_taken_off_and_remembered(tmp_path: Path) -> None:
    config = dataclasses.replace(ROPE, vocab_size=257)
    params = randomly(config)
    formats.save_model(
        tmp_path / "m", OpenedModel(config, params, tokenizers.train_tokenizer(Bytes(), ()))
    )

    def pad(values: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            values[name] = np.concatenate([values[name], np.full((7, 32), 9, np.float32)])

    rewritten(tmp_path / "m", pad)
    data = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(data | {"vocab_size": 264}))
    found = formats.load_model(tmp_path / "m")
    assert (found.about.padding, found.config.vocabulary) == (7, 257)
    same(found.params, params)
    (tmp_path / "m" / "config.json").write_text(json.dumps(data | {"vocab_size": 200}))
    with pytest.raises(ConfigError, match="a tokenizer of 257 tokens and a model of 200"):
        formats.load_model(tmp_path / "m")


# --- convert --------------------------------------------------------------------------------------


def test_a_conversion_proves_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(ROPE, vocab_size=257, num_layers=2)
    convert.write_run(
        Path("run"), OpenedModel(config, randomly(config), tokenizers.train_tokenizer(Bytes(), ()))
    )
    assert cli.main(["convert", "run", "out"]) == 0
    said = capsys.readouterr().out
    assert (
        "mean KL divergence: 0.00e+00 nats" in said
        and "same most likely next token: 100.0%" in said
        and "out: the same model" in said
    )
    noted = json.loads(Path("out/config.json").read_text())["gptjax"]
    assert noted["mean KL divergence"] == "0.00e+00 nats" and noted["converted from"] == "run run"
    assert cli.main(["convert", "out", "again", "--to", "run"]) == 0
    same(gptjax.load("again").params, gptjax.load("run").params)
    assert (
        cli.main(["convert", "again", "rounded", "--dtype", "bfloat16", "--threshold", "1e-12"])
        == 1
    )
    assert "NOT the same model" in capsys.readouterr().out
    for words, said in (
        (["out", "out"], "exists already"),
        (["nothere", "x"], "give a run directory"),
        (["out"], "it needs what to read and what to write"),
        (["out", "x.gguf", "--to", "run"], "names that end with .gguf"),
        (["out", "x", "--to", "run", "--dtype", "float16"], "a run keeps float32"),
    ):
        assert cli.main(["convert", *words]) == 2
        assert said in capsys.readouterr().err
    exported = gptjax.load("out")
    assert exported.about.notes["weights"] == "float32" and exported.tokenizer.vocab_size == 257
