"""The model: configs and six pure functions over them."""

from gptjax.model.attention import gather, rollback
from gptjax.model.config import ModelConfig, flops_per_token, gpt2, llama, small
from gptjax.model.transformer import Cache, Output, axes, empty_cache, encode, forward, init, unembed

__all__ = [
    "Cache",
    "ModelConfig",
    "Output",
    "axes",
    "empty_cache",
    "encode",
    "flops_per_token",
    "forward",
    "gather",
    "gpt2",
    "init",
    "llama",
    "rollback",
    "small",
    "unembed",
]
