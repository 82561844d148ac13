"""Every architectural choice of a model as one frozen value, and the named presets.

Read `ModelConfig` first, then `flops_per_token`, then the presets.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from gptjax.config import require


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer. Frozen and hashable: it is a static argument of every compiled function."""

    vocab_size: int | None = None
    """Number of tokens; none takes the tokenizer's. It may be larger (padded), never smaller."""
    context: int = 256
    """Most positions that the model can see at once, in tokens."""
    width: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Number of query heads."""
    num_kv_heads: int | None = None
    """Number of key/value heads: none is one for each query head (MHA), 1 is MQA, between is GQA."""
    head_width: int | None = None
    """Width of one head; none is width / num_heads."""
    feed_forward: int | None = None
    """Width inside the MLP; none is 4 × width, or 8/3 × width rounded up to a multiple of 32 when gated."""
    positions: Literal["learned", "sinusoidal", "rope", "none"] = "learned"
    """How the model knows where a token stands."""
    rope_base: float = 10_000.0
    """RoPE's longest wavelength is 2π times this, in tokens."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, before the MLP and before the output."""
    norm_epsilon: float = 1e-5
    """Added to the variance."""
    qk_norm: bool = False
    """Normalise each query and key head (RMSNorm with a learned scale) before the product."""
    activation: Literal["gelu", "gelu_exact", "relu", "relu2", "silu", "swiglu", "geglu"] = "gelu"
    """The MLP's nonlinearity; `gelu` is the tanh form of GPT-2, `swiglu` and `geglu` are gated."""
    bias: bool = True
    """Biases in linear layers and in LayerNorm."""
    tied: bool = True
    """The output uses the token embedding."""
    embedding_dropout: float = 0.0
    """Share of embedding values dropped in training."""
    attention_dropout: float = 0.0
    """Share of attention weights dropped in training."""
    residual_dropout: float = 0.0
    """Share of what attention and MLP add to the residual stream dropped in training."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""
    residual_init: Literal["scaled", "zero"] = "scaled"
    """Output projections of attention and MLP start at init_std / √(2 · num_layers), or at zero."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and products; parameters, softmax, norms and the loss stay in float32."""
    attention: Literal["auto", "reference", "causal_blocks"] = "auto"
    """Attention implementation; `auto` says in the start banner which it takes and why."""
    layers: Literal["auto", "scan", "unroll"] = "auto"
    """Run the stack as a compiled loop or unrolled; `auto` unrolls on CPU. Parameters are the same."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again: nothing, all but matrix products, or each block whole."""

    def __post_init__(self) -> None:
        for name in ("context", "width", "num_layers", "num_heads"):
            require(getattr(self, name) > 0, f"model.{name} is {getattr(self, name)}; it needs at least 1.")
        for name in ("vocab_size", "num_kv_heads", "head_width", "feed_forward"):
            value = getattr(self, name)
            require(value is None or value > 0, f"model.{name} is {value}; it needs at least 1, or null.")
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            require(0 <= getattr(self, name) < 1, f"model.{name} is {getattr(self, name)}; it needs a share in [0, 1).")
        for name in ("rope_base", "norm_epsilon", "init_std"):
            require(getattr(self, name) > 0, f"model.{name} is {getattr(self, name)}; it needs a positive number.")
        if self.head_width is None:
            near = self.num_heads * max(1, round(self.width / self.num_heads))
            require(
                self.width % self.num_heads == 0,
                f"model.width is {self.width}, which {self.num_heads} heads do not divide; use a multiple (--model.width {near}), "
                "or set --model.head-width.",
            )
        require(
            self.num_heads % self.kv_heads == 0,
            f"model.num_heads is {self.num_heads}, which {self.kv_heads} key/value heads do not divide; use a divisor (--model.num-kv-heads 1).",
        )
        require(
            self.positions != "rope" or self.heads % 2 == 0,
            f"a head is {self.heads} wide and RoPE turns pairs; it needs an even width (--model.head-width {self.heads + 1}).",
        )
        require(
            self.positions != "sinusoidal" or self.width % 2 == 0,
            f"model.width is {self.width} and sinusoidal positions come in pairs; it needs an even width (--model.width {self.width + 1}).",
        )

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def heads(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads if self.head_width is None else self.head_width

    @property
    def gated(self) -> bool:
        """The MLP multiplies its nonlinearity by a second projection."""
        return self.activation in ("swiglu", "geglu")

    @property
    def hidden(self) -> int:
        """Width inside the MLP."""
        if self.feed_forward is not None:
            return self.feed_forward
        return -(-8 * self.width // 3 // 32) * 32 if self.gated else 4 * self.width

    @property
    def vocabulary(self) -> int:
        """Number of tokens, once it is known."""
        if self.vocab_size is None:
            raise ValueError("vocab_size is not resolved yet: use dataclasses.replace(config, vocab_size=tokenizer.vocab_size).")
        return self.vocab_size


def flops_per_token(config: ModelConfig, length: int, *, training: bool = True) -> float:
    """Gives the floating-point operations of one token in a row of `length` tokens.

    Counts matrix products only, attention at its causal half, and the backward pass as twice the forward pass.
    Embedding look-ups, norms, softmax and recomputation (remat) are not counted.

    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B, with causal attention at half.
    """
    heads = config.heads * (2 * config.num_heads + 2 * config.kv_heads)
    mlp = (3 if config.gated else 2) * config.hidden
    products = config.num_layers * config.width * (heads + mlp) + config.width * config.vocabulary
    attention = config.num_layers * config.num_heads * config.heads * (length + 1)
    return (3 if training else 1) * 2.0 * (products + attention)


# --- presets -----------------------------------------------------------------------------------------------------


def gpt2(size: Literal["124m", "355m", "774m", "1.5b"] = "124m", **changes) -> ModelConfig:
    """GPT-2's published shapes. Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 2."""
    shapes = {"124m": (12, 12, 768), "355m": (24, 16, 1024), "774m": (36, 20, 1280), "1.5b": (48, 25, 1600)}
    num_layers, num_heads, width = shapes[size]
    dropout = dict(embedding_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1)
    base = ModelConfig(vocab_size=50_257, context=1024, width=width, num_layers=num_layers, num_heads=num_heads, **dropout)
    return dataclasses.replace(base, **changes)


def llama(size: Literal["7b", "13b", "70b", "3-8b", "3-70b", "3-405b"] = "7b", **changes) -> ModelConfig:
    """Llama 2's and 3's published shapes.

    Llama 3.1's longer context needs RoPE scaling, which these presets leave out: they are the 8,192-token shapes.

    Sources: Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, The Llama 3 Herd of Models, arXiv:2407.21783, table 3.
    """
    shapes = {  # layers, heads, key/value heads, width, feed-forward
        "7b": (32, 32, 32, 4096, 11_008),
        "13b": (40, 40, 40, 5120, 13_824),
        "70b": (80, 64, 8, 8192, 28_672),
        "3-8b": (32, 32, 8, 4096, 14_336),
        "3-70b": (80, 64, 8, 8192, 28_672),
        "3-405b": (126, 128, 8, 16_384, 53_248),
    }
    num_layers, num_heads, num_kv_heads, width, feed_forward = shapes[size]
    third = size.startswith("3-")
    base = ModelConfig(
        vocab_size=128_256 if third else 32_000,
        context=8192 if third else 4096,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        feed_forward=feed_forward,
        positions="rope",
        rope_base=500_000.0 if third else 10_000.0,
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        tied=False,
    )
    return dataclasses.replace(base, **changes)


def small(size: Literal["tiny", "1m", "10m"] = "1m", **changes) -> ModelConfig:
    """Llama-like shapes that train on two CPU cores in seconds, minutes or hours; vocabulary from the tokenizer."""
    shapes = {"tiny": (2, 2, 32, 64), "1m": (4, 4, 128, 256), "10m": (6, 6, 384, 256)}
    num_layers, num_heads, width, context = shapes[size]
    base = ModelConfig(
        context=context,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
    )
    return dataclasses.replace(base, **changes)
