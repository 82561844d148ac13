"""Text in, text out: prompts become ids, generated ids become text, whole or as a stream of valid UTF-8 pieces."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from gptjax.arrays import Params
from gptjax.config import ConfigError, require
from gptjax.data.tokenizer import Tokenizer
from gptjax.generate.decode import Generated, generate, stream
from gptjax.generate.transforms import Sampling
from gptjax.model import ModelConfig


@dataclass(frozen=True)
class SampleConfig:
    """How text is generated."""

    new_tokens: int = 128
    """Most tokens to write; a full context ends the text earlier."""
    temperature: float = 0.8
    """0 always takes the most likely token; 1 is the model's own distribution."""
    top_k: int = 0
    """Only this many most likely tokens; 0 is all of them."""
    top_p: float = 0.95
    """Only the most likely tokens up to this much probability; 1 is all of them."""
    seed: int = 0
    """The same seed, prompt and settings give the same text."""

    def __post_init__(self) -> None:
        checks = (
            ("new_tokens", self.new_tokens >= 1, "at least 1"),
            ("temperature", math.isfinite(self.temperature) and self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "a probability in (0, 1]"),
            ("seed", 0 <= self.seed < 2**32, "a number in [0, 2^32)"),
        )
        for name, holds, need in checks:
            require(holds, f"{name} is {getattr(self, name)}; it needs {need} (--{name.replace('_', '-')}).")


class Completion(NamedTuple):
    """One generated text."""

    prompt: str
    text: str
    ids: list[int]
    logprobs: list[float]
    """ln p of each token under the model itself."""
    reason: str
    """`stop`: the model ended the document; `length`: the wanted length or the context was reached."""


class Request(NamedTuple):
    """Prompts as the compiled functions want them."""

    prompt: np.ndarray
    lengths: np.ndarray
    keys: jax.Array
    sampling: Sampling
    new_tokens: int


def request(config: ModelConfig, tokenizer: Tokenizer, prompts: Sequence[str], sample: SampleConfig) -> Request:
    """Encodes prompts; each begins with the end-of-document id, as documents do in training.

    Raises:
      ConfigError: a prompt is empty and the tokenizer knows no document border, a prompt fills the whole context, or
        `top_k` is beyond the vocabulary.
    """
    begin = [] if tokenizer.end_of_document is None else [tokenizer.end_of_document]
    ids = [np.asarray([*begin, *tokenizer.encode(p)], np.int32) for p in prompts]
    require(all(len(i) for i in ids), "the prompt is empty and this tokenizer has no end-of-document id; give some text (--prompt TEXT).")
    longest = max(map(len, ids))
    require(longest < config.context, f"a prompt has {longest} tokens and the context is {config.context}; shorten it to leave room for an answer.")
    require(sample.top_k <= tokenizer.vocab_size, f"top_k is {sample.top_k}, the vocabulary has {tokenizer.vocab_size} tokens; use --top-k 0 for all.")
    padded = np.zeros((len(ids), longest), np.int32)
    for row, known in zip(padded, ids, strict=True):
        row[: len(known)] = known
    rows = len(ids)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(sample.seed), np.arange(rows))
    sampling = Sampling(
        np.full(rows, sample.temperature, np.float32),
        np.full(rows, sample.top_k or config.vocabulary, np.int32),
        np.full(rows, sample.top_p, np.float32),
    )
    return Request(padded, np.asarray([len(i) for i in ids]), keys, sampling, min(sample.new_tokens, config.context - longest))


def complete(config: ModelConfig, params: Params, tokenizer: Tokenizer, prompts: Sequence[str], sample: SampleConfig) -> list[Completion]:
    """Continues every prompt; the result is in the order of the prompts."""
    asked = request(config, tokenizer, prompts, sample)
    out = generate(config, params, *asked[:3], **_settings(asked, tokenizer))
    return [_completion(out, row, prompt, tokenizer) for row, prompt in enumerate(prompts)]


def stream_text(config: ModelConfig, params: Params, tokenizer: Tokenizer, prompt: str, sample: SampleConfig) -> Iterator[str | Completion]:
    """Gives pieces of the text as they are written, each valid UTF-8, and at the end the whole `Completion`."""
    asked = request(config, tokenizer, [prompt], sample)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    shown = 0
    for out in stream(config, params, *asked[:3], **_settings(asked, tokenizer)):
        length = int(out.lengths[0])
        if piece := decoder.decode(tokenizer.token_bytes(out.ids[0, shown:length])):
            yield piece
        shown = length
    if piece := decoder.decode(b"", final=True):
        yield piece
    yield _completion(out, 0, prompt, tokenizer)


def _settings(asked: Request, tokenizer: Tokenizer) -> dict:
    stop = () if tokenizer.end_of_document is None else (tokenizer.end_of_document,)
    return dict(sampling=asked.sampling, new_tokens=asked.new_tokens, stop=stop, vocabulary=tokenizer.vocab_size)


def _completion(out: Generated, row: int, prompt: str, tokenizer: Tokenizer) -> Completion:
    length = int(out.lengths[row])
    ids, logprobs = out.ids[row, :length].tolist(), out.logprobs[row, :length].tolist()
    if any(math.isnan(p) for p in logprobs):
        raise ConfigError("the model gives NaN: its weights are damaged or its training diverged; sample an earlier checkpoint (--step N).")
    return Completion(prompt, tokenizer.decode(ids), ids, logprobs, "stop" if out.finished[row] else "length")
