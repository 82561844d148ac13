"""The model: configs and pure functions over them."""

from gptjax.model.cache import AT_ONCE, Cache, Memory, Shelf, empty_cache, gather, rollback
from gptjax.model.config import Experts, Latent, Layer, LinearScaling, Llama3Scaling, ModelConfig, NTKScaling, YarnScaling
from gptjax.model.cost import flops_per_token
from gptjax.model.decoding import Stored, prepared
from gptjax.model.moe import rebalanced
from gptjax.model.presets import bert, deepseek, gemma, gpt2, gpt3, llama, mistral, mixtral, olmo, preset, qwen, small, smollm, t5, vaswani
from gptjax.model.transformer import Output, axes, classify, encode, forward, init, logits_of, look_ahead, shapes, to_output, unembed

__all__ = [
    "AT_ONCE",
    "Cache",
    "Experts",
    "Latent",
    "Layer",
    "LinearScaling",
    "Llama3Scaling",
    "Memory",
    "ModelConfig",
    "NTKScaling",
    "Output",
    "Shelf",
    "Stored",
    "YarnScaling",
    "axes",
    "bert",
    "classify",
    "deepseek",
    "empty_cache",
    "encode",
    "flops_per_token",
    "forward",
    "gather",
    "gemma",
    "gpt2",
    "gpt3",
    "init",
    "llama",
    "logits_of",
    "look_ahead",
    "mistral",
    "mixtral",
    "olmo",
    "prepared",
    "preset",
    "qwen",
    "rebalanced",
    "rollback",
    "shapes",
    "small",
    "smollm",
    "t5",
    "to_output",
    "unembed",
    "vaswani",
]
