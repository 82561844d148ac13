"""Text generation.

`complete` and `stream_text` take and give text; `generate` and `stream` ids. Below them are pure
functions: `admit`, `advance` and `evict` over `Slots`, `prefill` and `step` over a `Decoding`, the
transforms of logits, `token_logprobs`.
"""

from gptjax.generate.batch import Prefix
from gptjax.generate.chain import ORDER, Sampling, Shaping, choose, draw, neutral, shape
from gptjax.generate.decode import (
    Decoding,
    branch,
    extend,
    prefill,
    step,
)
from gptjax.generate.drawing import drawing_settings, drawing_task, picture_grid
from gptjax.generate.embeddings import embed_texts
from gptjax.generate.engine import Columns, Slots, admit, advance, evict, fill, programs
from gptjax.generate.history import History
from gptjax.generate.ids import Generated, generate, stream
from gptjax.generate.labels import Labelled, classify
from gptjax.generate.likelihood import token_logprobs
from gptjax.generate.masked import Filled, fill_masks
from gptjax.generate.pictures import (
    Picture,
    label_pictures,
    pixels_for,
    read_pictured_prompt,
    seeing_task,
)
from gptjax.generate.rerank import chrf, minimum_risk
from gptjax.generate.settings import GenerateConfig, SampleConfig
from gptjax.generate.strategies import Draft
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
    "Columns",
    "Completion",
    "Decoding",
    "Draft",
    "Filled",
    "GenerateConfig",
    "Generated",
    "History",
    "Labelled",
    "Picture",
    "Prefix",
    "SampleConfig",
    "Sampling",
    "Shaping",
    "Slots",
    "admit",
    "advance",
    "astream_text",
    "branch",
    "choose",
    "chrf",
    "classify",
    "complete",
    "completions",
    "draw",
    "drawing_settings",
    "drawing_task",
    "dry",
    "embed_texts",
    "evict",
    "extend",
    "fill",
    "fill_masks",
    "forced_tokens",
    "frequency_penalty",
    "generate",
    "guidance",
    "label_pictures",
    "logit_bias",
    "min_new_tokens",
    "min_p",
    "minimum_risk",
    "neutral",
    "no_repeat_ngram",
    "picture_grid",
    "pixels_for",
    "prefill",
    "presence_penalty",
    "programs",
    "read_pictured_prompt",
    "repetition_penalty",
    "seeing_task",
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
