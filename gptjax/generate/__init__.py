"""A parameter tree becomes text."""

from gptjax.generate.decode import Generated, decode, generate, prefill, stream
from gptjax.generate.text import Completion, SampleConfig, complete, stream_text
from gptjax.generate.transforms import Sampling, choose, temperature, top_k, top_p

__all__ = [
    "Completion",
    "Generated",
    "SampleConfig",
    "Sampling",
    "choose",
    "complete",
    "decode",
    "generate",
    "prefill",
    "stream",
    "stream_text",
    "temperature",
    "top_k",
    "top_p",
]
