"""GGUF files whose metadata changes what a model computes: llama.cpp gives the same
log-probabilities, whether we wrote the file or read it back.

llama.cpp is its own server, from the package `xllamacpp`, on the loopback interface.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapted import write_adapted
from quantised_files import TINY, tiny
from test_gguf import MODELS, arch_of, made

from gptjax import model, weights
from gptjax.cli.convert import ConvertOptions, convert
from gptjax.data import Bytes
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.formats import OpenedModel, gguf
from gptjax.formats.gguf_file import Kind, Texts, numbers, open_file
from gptjax.formats.gguf_writer import Planned, write_gguf
from gptjax.model import ModelConfig

xllamacpp = pytest.importorskip(
    "xllamacpp", reason="parity is measured against llama.cpp: pip install 'gptjax[test-parity]'"
)

TOKENIZER = tok.train_tokenizer(Bytes(), [])
WINDOW = {"attention.sliding_window": 8}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "olmo3": ("olmo2", {"num_layers": 4}, WINDOW | YARN),
    "olmo3 with its pattern": (
        "olmo2",
        {"num_layers": 4},
        WINDOW | {"attention.sliding_window_pattern": [True, True, False, False]},
    ),
    "yarn with a factor of attention": ("llama", {}, YARN | {"rope.scaling.attn_factor": 0.5}),
    "linear by the older key": ("llama", {}, {"rope.scale_linear": 4.0}),
    "linear by the newer key": ("arcee", {}, {"rope.scaling.factor": 2.0}),
    "gemma3 with its windows": ("gemma3", {}, WINDOW | {"rope.freq_base_swa": 500.0}),
    "gemma2 with its windows and caps": ("gemma2", {}, WINDOW | {"attn_logit_softcapping": 5.0}),
    "llama with all biases": ("llama_with_all_biases", {}, {}),
    "llama 3's factors": ("llama3", {}, {}),
    "qwen3": ("qwen3", {}, {}),
    "gemma": ("gemma", {}, {}),
    "mixtral": ("mixtral", {}, {}),
    "phi3 in its window": ("phi3", {}, {}),
    "smollm3": ("smollm3", {}, {}),
    "exaone4": ("exaone4", {}, {}),
    "ernie4_5": ("ernie4_5", {}, {}),
    "glm4": ("glm4", {}, {}),
    "seed_oss": ("seed_oss", {}, {}),
    "nemotron": ("nemotron", {}, {}),
    "jais2": ("jais2", {}, {}),
    "phi2": ("phi2", {}, {}),
    "stablelm side by side": ("stablelm", {}, {}),
    "stablelm in turn": ("stablelm_in_turn", {}, {}),
    "starcoder2": ("starcoder2", {}, {}),
    "olmo": ("olmo", {}, {}),
    "olmoe": ("olmoe", {"tied": False}, {}),
    "minimax-m2": ("minimax-m2", {"num_layers": 3}, {}),
    "dots1": ("dots1", {}, {}),
    "glm4moe": ("glm4moe", {}, {}),
    "glm4moe with normalised heads": ("glm4moe_normalised", {}, {}),
}
"""Model of `test_gguf.MODELS`, changes to its config, and metadata written over its own."""


def with_metadata(path: Path, arch: str, changes: dict[str, Any]) -> None:
    """Writes a file again, with other metadata."""
    file = open_file(path)
    tensors = list(file.tensors.values())
    values = [numbers(file, tensor) for tensor in tensors]
    fields = {
        key: value.decoded() if isinstance(value, Texts) else value
        for key, value in file.fields.items()
        if key not in ("general.architecture", "general.alignment")
    }
    lists = {key: value.tolist() for key, value in fields.items() if isinstance(value, np.ndarray)}
    fields |= lists
    fields |= {f"{arch}.{key}": value for key, value in changes.items()}
    write_gguf(path, arch, fields, [Planned(t.name, t.shape, Kind.F32) for t in tensors], values)


@functools.partial(jax.jit, static_argnums=0)
def ours(config: ModelConfig, params: Any, ids: jax.Array) -> jax.Array:
    """ln p of each next token after the last of `ids` [1 T]."""
    config = dataclasses.replace(config, attention="reference", layers="scan")
    hidden = model.forward(config, params, ids).hidden
    return jax.nn.log_softmax(model.unembed(config, params, hidden)[0, -1])


def theirs(path: Path, ids: list[int], size: int) -> np.ndarray:
    """The same of llama.cpp's server."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_batch, params.n_parallel = 64, 64, 1
    params.cpuparams.n_threads, params.warmup, params.verbosity = 1, False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    ask = {"prompt": ids, "n_predict": 1, "n_probs": size, "temperature": 0.0}
    answer = server.handle_completions(ask | {"cache_prompt": False})
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found = np.full(size, np.nan)
    for one in likely:
        found[one["id"]] = one["logprob"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_gives_the_same_log_probabilities(name, tmp_path, record_property):
    """I1 (vllm#30691, llama.cpp#2268, #2772)."""
    base, changes, fields = CASES[name]
    config = dataclasses.replace(MODELS[base], vocab_size=TOKENIZER.vocab_size, **changes)
    path, arch = tmp_path / "a.gguf", arch_of(base)
    gguf.save_gguf(path, made(config, TOKENIZER, family=arch))
    if fields:
        with_metadata(path, arch, fields)
    read = gguf.load_gguf(path)
    # llama.cpp computes no window for Phi-3, whose converters wrote wrong ones.
    ids = np.random.default_rng(0).integers(1, 256, 7 if arch == "phi3" else 40).tolist()
    difference = apart(path, read, ids)
    record_property("figure", f"{name} {difference:.1e}")
    print(f"{name}: largest difference of a log-probability {difference:.1e}")
    assert difference <= 5e-3


def apart(path: Path, opened: OpenedModel, ids: list[int]) -> float:
    """Largest difference of a likely token's log-probability between llama.cpp and ours."""
    mine = np.asarray(ours(opened.config, opened.params, jnp.asarray([ids])))
    found = theirs(path, ids, opened.config.vocabulary)
    known = np.isfinite(found) & (mine > -30)
    assert known.sum() > 80
    return float(np.abs(mine - found)[known].max())


def test_llama_cpp_reads_a_merged_adapter(tmp_path, record_property):
    config = dataclasses.replace(MODELS["llama"], vocab_size=TOKENIZER.vocab_size)
    base = made(config, TOKENIZER, family="llama")
    whole = write_adapted(tmp_path, base, weights.LoRA(rank=4, alpha=6.0))
    path, said = tmp_path / "merged.gguf", []
    assert convert(tmp_path / "adapter", path, ConvertOptions(merge=True), say=said.append), said
    ids = np.random.default_rng(0).integers(1, 256, 40).tolist()
    gguf.save_gguf(tmp_path / "base.gguf", base)
    assert apart(tmp_path / "base.gguf", whole, ids) > 0.1
    difference = apart(path, whole, ids)
    record_property("figure", f"merged LoRA {difference:.1e}")
    assert difference <= 5e-3


BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


@pytest.mark.parametrize("dtype", BLOCKS)
def test_llama_cpp_reads_a_quantised_file_as_we_do(dtype, tmp_path, record_property):
    """llama.cpp rounds activations to 8 bits before each product with such weights, which ours does
    not; the weights are the same, so that it is nearer to ours on them than on those before."""
    whole = tiny(TINY, TOKENIZER)
    path = tmp_path / "a.gguf"
    gguf.save_gguf(path, whole, dtype)
    read = gguf.load_gguf(path)
    ids = np.random.default_rng(0).integers(1, 256, 40).tolist()
    found = theirs(path, ids, read.config.vocabulary)
    known = np.isfinite(found)
    assert known.sum() >= read.config.vocabulary - 1
    same, before = (
        float((np.exp(found) * (found - mine))[known].sum())
        for mine in (
            np.asarray(ours(m.config, m.params, jnp.asarray([ids]))) for m in (read, whole)
        )
    )
    figure = f"{dtype}: KL {same:.1e} nats, to the model before it was rounded {before:.1e}"
    record_property("figure", figure)
    print(figure)
    assert same <= 0.01 and same < before / 4


@pytest.mark.parametrize("dtype", ["q8_0", "q5_0", "q4_0"])
def test_activations_rounded_as_llama_cpp_rounds_them_give_its_log_probabilities(
    dtype, tmp_path, record_property
):
    path = tmp_path / "a.gguf"
    gguf.save_gguf(path, tiny(TINY, TOKENIZER), dtype)
    ids = np.random.default_rng(0).integers(1, 256, 40).tolist()
    read = gguf.load_gguf(path, packed=True)
    found = theirs(path, ids, read.config.vocabulary)
    far = {}
    for stored in ("float32", "q8_0"):
        config, params = model.prepare_weights(read.config, read.params, stored)
        hidden = model.forward(config, params, jnp.asarray([ids])).hidden
        mine = np.asarray(jax.nn.log_softmax(model.unembed(config, params, hidden)[0, -1]))
        known = np.isfinite(found) & (mine > -30)
        assert known.sum() > 80
        far[stored] = float((np.exp(found) * (found - mine))[known].sum())
    figure = f"{dtype}: KL {far['q8_0']:.1e} nats, without rounding {far['float32']:.1e}"
    record_property("figure", figure)
    print(figure)
    assert abs(far["q8_0"]) < abs(far["float32"]) / 4
