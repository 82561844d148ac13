"""A parameter tree becomes text.

`complete` and `stream_text` take and give text; `generate` and `stream` ids. Below them are pure
functions: `prefill`, `step` and `decode` over a `Decoding`, the transforms of logits,
`token_logprobs`.
"""

from gptjax.generate.chain import ORDER, Sampling, Shaping, choose, draw, neutral, shape
from gptjax.generate.decode import (
    Decoding,
    Generated,
    branch,
    decode,
    extend,
    generate,
    prefill,
    step,
    stream,
)
from gptjax.generate.history import History
from gptjax.generate.labels import Labelled, classify
from gptjax.generate.likelihood import token_logprobs
from gptjax.generate.rerank import chrf, minimum_risk
from gptjax.generate.settings import GenerateConfig, SampleConfig
from gptjax.generate.strategies import Draft, Prefix
from gptjax.generate.text import (
    Completion,
    astream_text,
    complete,
    completions,
    shared_prefix,
    stream_text,
)
from gptjax.generate.transforms import (
    dry,
    forced_tokens,
    frequency_penalty,
    guidance,
    logit_bias,
    min_new_tokens,
    min_p,
    no_repeat_ngram,
    presence_penalty,
    repetition_penalty,
    temperature,
    top_k,
    top_n_sigma,
    top_p,
    typical_p,
    xtc,
)

__all__ = [
    "ORDER",
    "Completion",
    "Decoding",
    "Draft",
    "GenerateConfig",
    "Generated",
    "History",
    "Labelled",
    "Prefix",
    "SampleConfig",
    "Sampling",
    "Shaping",
    "astream_text",
    "branch",
    "choose",
    "chrf",
    "classify",
    "complete",
    "completions",
    "decode",
    "draw",
    "dry",
    "extend",
    "forced_tokens",
    "frequency_penalty",
    "generate",
    "guidance",
    "logit_bias",
    "min_new_tokens",
    "min_p",
    "minimum_risk",
    "neutral",
    "no_repeat_ngram",
    "prefill",
    "presence_penalty",
    "repetition_penalty",
    "shape",
    "shared_prefix",
    "step",
    "stream",
    "stream_text",
    "temperature",
    "token_logprobs",
    "top_k",
    "top_n_sigma",
    "top_p",
    "typical_p",
    "xtc",
]
