"""Published shapes by name: `gpt2("124m")`, `llama("3-8b", compute="bfloat16")`, or
`preset("llama-3-8b")`.

Each says where its numbers were published. `tests/golden` holds what every one of them amounts to.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from gptjax.core.config import nearest, require
from gptjax.model.config import (
    Experts,
    Latent,
    Layer,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    YarnScaling,
)

DROPOUT = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.1)


def gpt2(size: str = "124m", **changes) -> ModelConfig:
    """GPT-2's published shapes. Source: Radford et al. 2019, Language Models are Unsupervised
    Multitask Learners, table 2."""
    return _config(ModelConfig(), "gpt2", size, changes, vocab_size=50_257, context=1024, **DROPOUT)


def gpt3(size: str = "175b", **changes) -> ModelConfig:
    """GPT-3's published shapes, with dense attention in every layer.

    The paper alternates dense layers with locally banded ones of an unpublished width:
    `pattern=(Layer(), Layer("window", 256))`. Its table gives the 1.3b model 24 heads of 128 in a
    width of 2,048, which would make 1.5 billion parameters; 16 make 1.3.

    Source: Brown et al. 2020, Language Models are Few-Shot Learners, arXiv:2005.14165, table 2.1.
    """
    block = {"vocab_size": 50_257, "context": 2048, "residual_dropout": 0.1}
    return _config(ModelConfig(), "gpt3", size, changes, **block)


LLAMA = ModelConfig(positions="rope", norm="rmsnorm", activation="swiglu", bias=False, tied=False)
"""What most models after Llama have in common."""


def llama(size: str = "7b", **changes) -> ModelConfig:
    """Llama 2's and 3's published shapes; 3.1 and 3.2 have RoPE stretched to 131,072 tokens.

    Sources: Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, The Llama 3 Herd of
    Models, arXiv:2407.21783, table 3; the model cards of Llama 3.2.
    """
    if not size.startswith("3"):
        return _config(LLAMA, "llama", size, changes, vocab_size=32_000, context=4096)
    block = {"vocab_size": 128_256, "context": 8192, "rope_base": 500_000.0}
    if size.startswith(("3.1", "3.2")):
        factor = 32.0 if size.startswith("3.2") else 8.0
        block |= {"context": 131_072, "rope_scaling": Llama3Scaling(factor)}
    return _config(LLAMA, "llama", size, changes, **block, tied=size.startswith("3.2"))


def mistral(size: str = "7b", **changes) -> ModelConfig:
    """Mistral 7B's published shape, with its window. Source: Jiang et al. 2023, Mistral 7B,
    arXiv:2310.06825, table 1."""
    block = {"vocab_size": 32_000, "context": 32_768, "pattern": (Layer("window", 4096),)}
    return _config(LLAMA, "mistral", size, changes, **block)


def mixtral(size: str = "8x7b", **changes) -> ModelConfig:
    """Mixtral's published shapes. Source: Jiang et al. 2024, Mixtral of Experts, arXiv:2401.04088,
    table 1; the 8x22b model's card."""
    experts = Experts(count=8, active=2, balance=0.02)
    block = {"vocab_size": 32_000, "rope_base": 1e6, "experts": experts}
    return _config(LLAMA, "mixtral", size, changes, **block)


def qwen(size: str = "3-0.6b", **changes) -> ModelConfig:
    """Qwen 2.5's and 3's published shapes: 2.5 has biases on query, key and value, 3 has normalised
    heads and mixtures of experts.

    Sources: Qwen Team 2024, Qwen2.5 Technical Report, arXiv:2412.15115, table 1; Qwen Team 2025,
    Qwen3 Technical Report, arXiv:2505.09388, tables 1 and 2; the model cards.
    """
    block = {"rope_base": 1e6, "norm_epsilon": 1e-6}
    if size.startswith("3-"):
        block |= {"context": 40_960, "qk_norm": True, "head_width": 128}
    else:
        large = size in ("2.5-7b", "2.5-14b", "2.5-32b", "2.5-72b")
        block |= {"context": 131_072 if large else 32_768, "qkv_bias": True}
    widths = {"3-30b-a3b": 768, "3-235b-a22b": 1536}
    if size in widths:
        block["experts"] = Experts(count=128, active=8, width=widths[size], balance=0.001)
    return _config(LLAMA, "qwen", size, changes, **block)


def gemma(size: str = "2-2b", **changes) -> ModelConfig:
    """Gemma 2's and 3's published shapes, of the text model: sandwich norms, windows between layers
    that see everything.

    A published norm scale w is 1 + w here.

    Sources: Gemma Team 2024, Gemma 2, arXiv:2408.00118, tables 1 and 2; Gemma Team 2025, Gemma 3,
    arXiv:2503.19786, table 1; the model cards.
    """
    block = {
        "norm_placement": "sandwich",
        "norm_epsilon": 1e-6,
        "activation": "geglu",
        "scaled_embedding": True,
        "tied": True,
    }
    if size.startswith("2-"):
        block |= {"vocab_size": 256_000, "context": 8192, "attention_cap": 50.0, "logit_cap": 30.0}
        block["pattern"] = (Layer("window", 4096), Layer())
        return _config(LLAMA, "gemma", size, changes, **block)
    block |= {"qk_norm": True, "rope_base": 1e6}
    small = size in ("3-270m", "3-1b")
    if small:
        block |= {"vocab_size": 262_144, "context": 32_768}
    else:
        block |= {"vocab_size": 262_208, "context": 131_072, "rope_scaling": LinearScaling(8.0)}
    local = Layer("window", 512 if small else 1024, rope_base=10_000.0, rope_scaled=False)
    return _config(LLAMA, "gemma", size, changes, **block, pattern=(local,) * 5 + (Layer(),))


def olmo(size: str = "2-7b", **changes) -> ModelConfig:
    """OLMo 2's published shapes: norms on what attention and MLP add, and on all query heads and
    all key heads as one vector.

    Source: OLMo Team 2024, 2 OLMo 2 Furious, arXiv:2501.00656, table 3; the model cards.
    """
    block = {
        "vocab_size": 100_352,
        "context": 4096,
        "norm_placement": "reordered",
        "norm_epsilon": 1e-6,
        "qk_norm": True,
        "qk_norm_joint": True,
        "rope_base": 500_000.0,
    }
    return _config(LLAMA, "olmo", size, changes, **block)


def smollm(size: str = "2-135m", **changes) -> ModelConfig:
    """SmolLM2's published shapes. Source: Ben Allal et al. 2025, SmolLM2, arXiv:2502.02737; the
    model cards."""
    return _config(LLAMA, "smollm", size, changes, vocab_size=49_152, context=8192, tied=True)


def deepseek(size: str = "v3", **changes) -> ModelConfig:
    """DeepSeek-V2-Lite's and V3's published shapes, without V3's extra layer that predicts a second
    token.

    Sources: DeepSeek-AI 2024, DeepSeek-V2, arXiv:2405.04434, appendix B; DeepSeek-AI 2024,
    DeepSeek-V3, arXiv:2412.19437, section 4.2; the model cards.
    """
    third = size == "v3"
    if third:
        experts = Experts(
            count=256,
            active=8,
            width=2048,
            shared=1,
            scores="sigmoid",
            scale=2.5,
            groups=8,
            active_groups=4,
            balance=1e-4,
            bias_step=1e-3,
        )
    else:
        experts = Experts(count=64, active=6, width=1408, shared=2, normalised=False, balance=1e-3)
    query_rank = 1536 if third else None
    louder = 0.1 * (1.0 if third else 0.707) * math.log(40.0) + 1  # YaRN's magnitude
    block = {
        "context": 163_840,
        "head_width": 128,
        "latent": Latent(rank=512, query_rank=query_rank, rope_width=64, value_width=128),
        "experts": experts,
        "norm_epsilon": 1e-6,
        "rope_scaling": YarnScaling(40.0, original=4096, magnitude=1.0),
        "attention_scale": 192**-0.5 * louder**2,
    }
    return _config(LLAMA, "deepseek", size, changes, **block)


def vaswani(size: str = "base", **changes) -> ModelConfig:
    """The original Transformer's published shapes: an encoder and a decoder, norms after the sums,
    sinusoidal positions.

    Sentences have no greatest length in the paper; here they have 512 tokens.

    Source: Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762, table 3, with section
    5.4's dropout.
    """
    dropout = 0.3 if size == "big" else 0.1
    block = {
        "vocab_size": 37_000,
        "context": 512,
        "norm_placement": "post",
        "positions": "sinusoidal",
        "scaled_embedding": True,
        "activation": "relu",
        "qkv_bias": False,
        "embedding_dropout": dropout,
        "residual_dropout": dropout,
    }
    return _config(ModelConfig(), "vaswani", size, changes, **block)


def bert(size: str = "base", **changes) -> ModelConfig:
    """BERT's published shapes, with the head that fills in masked words; it reads one text, so that
    there are no embeddings of sentence A and B.

    Source: Devlin et al. 2019, BERT, arXiv:1810.04805, section 3; the published models' settings.
    """
    block = {
        "vocab_size": 30_522,
        "context": 512,
        "causal": False,
        "norm_placement": "post",
        "norm_epsilon": 1e-12,
        "activation": "gelu_exact",
        "embedding_norm": True,
        "head_transform": True,
        "logit_bias": True,
    }
    return _config(ModelConfig(), "bert", size, changes, **block, **DROPOUT)


def t5(size: str = "small", **changes) -> ModelConfig:
    """T5's published shapes, and T5 1.1's, which have gated MLPs and an output of their own.

    Sources: Raffel et al. 2020, T5, arXiv:1910.10683, section 3.7; Shazeer 2020, arXiv:2002.05202,
    and T5 1.1's model cards.
    """
    block = {
        "vocab_size": 32_128,
        "context": 512,
        "positions": "t5",
        "norm": "rmsnorm",
        "norm_epsilon": 1e-6,
        "bias": False,
        "attention_scale": 1.0,
    }
    if size.startswith("1.1-"):
        block |= {"activation": "geglu", "tied": False}
    else:
        block |= {"activation": "relu", **DROPOUT}
    return _config(ModelConfig(), "t5", size, changes, **block)


def small(size: str = "1m", **changes) -> ModelConfig:
    """Llama-like shapes that train on two CPU cores in seconds, minutes or hours; vocabulary from
    the tokenizer."""
    return _config(LLAMA, "small", size, changes, tied=True)


FAMILIES: dict[str, tuple[Callable[..., ModelConfig], str]] = {
    "gpt2": (gpt2, "num_layers num_heads width"),
    "gpt3": (gpt3, "num_layers width num_heads head_width"),
    "llama": (llama, "num_layers num_heads num_kv_heads width feed_forward"),
    "mistral": (mistral, "num_layers width num_heads num_kv_heads feed_forward"),
    "mixtral": (mixtral, "num_layers width num_heads num_kv_heads feed_forward context"),
    "qwen": (qwen, "num_layers width num_heads num_kv_heads feed_forward vocab_size tied"),
    "gemma": (
        gemma,
        "num_layers width num_heads num_kv_heads head_width feed_forward attention_scale",
    ),
    "olmo": (olmo, "num_layers width num_heads num_kv_heads feed_forward"),
    "smollm": (smollm, "num_layers width num_heads num_kv_heads feed_forward rope_base"),
    "deepseek": (deepseek, "num_layers width num_heads feed_forward vocab_size first"),
    "vaswani": (vaswani, "num_layers encoder_layers width num_heads feed_forward"),
    "bert": (bert, "num_layers width num_heads"),
    "t5": (t5, "num_layers encoder_layers width num_heads head_width feed_forward logit_scale"),
    "small": (small, "num_layers num_heads width context"),
}
"""By name: the function, and the fields of `ModelConfig` that differ between the sizes."""

SHAPES: dict[str, dict[str, tuple]] = {
    "gpt2": {
        "124m": (12, 12, 768),
        "355m": (24, 16, 1024),
        "774m": (36, 20, 1280),
        "1.5b": (48, 25, 1600),
    },
    "gpt3": {
        "125m": (12, 768, 12, 64),
        "350m": (24, 1024, 16, 64),
        "760m": (24, 1536, 16, 96),
        "1.3b": (24, 2048, 16, 128),
        "2.7b": (32, 2560, 32, 80),
        "6.7b": (32, 4096, 32, 128),
        "13b": (40, 5140, 40, 128),
        "175b": (96, 12_288, 96, 128),
    },
    "llama": {
        "7b": (32, 32, 32, 4096, 11_008),
        "13b": (40, 40, 40, 5120, 13_824),
        "70b": (80, 64, 8, 8192, 28_672),
        "3-8b": (32, 32, 8, 4096, 14_336),
        "3-70b": (80, 64, 8, 8192, 28_672),
        "3-405b": (126, 128, 8, 16_384, 53_248),
        "3.1-8b": (32, 32, 8, 4096, 14_336),
        "3.2-1b": (16, 32, 8, 2048, 8192),
        "3.2-3b": (28, 24, 8, 3072, 8192),
    },
    "mistral": {"7b": (32, 4096, 32, 8, 14_336)},
    "mixtral": {
        "8x7b": (32, 4096, 32, 8, 14_336, 32_768),
        "8x22b": (56, 6144, 48, 8, 16_384, 65_536),
    },
    "qwen": {
        "2.5-0.5b": (24, 896, 14, 2, 4864, 151_936, True),
        "2.5-1.5b": (28, 1536, 12, 2, 8960, 151_936, True),
        "2.5-3b": (36, 2048, 16, 2, 11_008, 151_936, True),
        "2.5-7b": (28, 3584, 28, 4, 18_944, 152_064, False),
        "2.5-14b": (48, 5120, 40, 8, 13_824, 152_064, False),
        "2.5-32b": (64, 5120, 40, 8, 27_648, 152_064, False),
        "2.5-72b": (80, 8192, 64, 8, 29_568, 152_064, False),
        "3-0.6b": (28, 1024, 16, 8, 3072, 151_936, True),
        "3-1.7b": (28, 2048, 16, 8, 6144, 151_936, True),
        "3-4b": (36, 2560, 32, 8, 9728, 151_936, True),
        "3-8b": (36, 4096, 32, 8, 12_288, 151_936, False),
        "3-14b": (40, 5120, 40, 8, 17_408, 151_936, False),
        "3-32b": (64, 5120, 64, 8, 25_600, 151_936, False),
        "3-30b-a3b": (48, 2048, 32, 4, 6144, 151_936, False),
        "3-235b-a22b": (94, 4096, 64, 4, 12_288, 151_936, False),
    },
    "gemma": {
        "2-2b": (26, 2304, 8, 4, 256, 9216, 256**-0.5),
        "2-9b": (42, 3584, 16, 8, 256, 14_336, 256**-0.5),
        "2-27b": (46, 4608, 32, 16, 128, 36_864, 144**-0.5),
        "3-270m": (18, 640, 4, 1, 256, 2048, 256**-0.5),
        "3-1b": (26, 1152, 4, 1, 256, 6912, 256**-0.5),
        "3-4b": (34, 2560, 8, 4, 256, 10_240, 256**-0.5),
        "3-12b": (48, 3840, 16, 8, 256, 15_360, 256**-0.5),
        "3-27b": (62, 5376, 32, 16, 128, 21_504, 168**-0.5),
    },
    "olmo": {
        "2-1b": (16, 2048, 16, 16, 8192),
        "2-7b": (32, 4096, 32, 32, 11_008),
        "2-13b": (40, 5120, 40, 40, 13_824),
        "2-32b": (64, 5120, 40, 8, 27_648),
    },
    "smollm": {
        "2-135m": (30, 576, 9, 3, 1536, 100_000.0),
        "2-360m": (32, 960, 15, 5, 2560, 100_000.0),
        "2-1.7b": (24, 2048, 32, 32, 8192, 130_000.0),
    },
    "deepseek": {
        "v2-lite": (27, 2048, 16, 10_944, 102_400, (Layer(dense=True),)),
        "v3": (61, 7168, 128, 18_432, 129_280, (Layer(dense=True),) * 3),
    },
    "vaswani": {"base": (6, 6, 512, 8, 2048), "big": (6, 6, 1024, 16, 4096)},
    "bert": {"base": (12, 768, 12), "large": (24, 1024, 16)},
    "t5": {
        "small": (6, 6, 512, 8, 64, 2048, 512**-0.5),
        "base": (12, 12, 768, 12, 64, 3072, 768**-0.5),
        "large": (24, 24, 1024, 16, 64, 4096, 1024**-0.5),
        "3b": (24, 24, 1024, 32, 128, 16_384, 1024**-0.5),
        "11b": (24, 24, 1024, 128, 128, 65_536, 1024**-0.5),
        "1.1-small": (8, 8, 512, 6, 64, 1024, 1.0),
        "1.1-base": (12, 12, 768, 12, 64, 2048, 1.0),
        "1.1-large": (24, 24, 1024, 16, 64, 2816, 1.0),
        "1.1-xl": (24, 24, 2048, 32, 64, 5120, 1.0),
        "1.1-xxl": (24, 24, 4096, 64, 64, 10_240, 1.0),
    },
    "small": {"tiny": (2, 2, 32, 64), "1m": (4, 4, 128, 256), "10m": (6, 6, 384, 256)},
}
"""Where the sizes of a family differ, in the order of the fields in `FAMILIES`."""


def preset(name: str, **changes) -> ModelConfig:
    """Returns the preset of a name such as `llama-3-8b`: the family, a hyphen, the size.

    Raises:
      ConfigError: there is none of this name.
    """
    known = [f"{family}-{size}" for family, sizes in SHAPES.items() for size in sizes]
    require(name in known, f"{name!r} is not a preset.{nearest(name, known)}")
    family, size = name.split("-", 1)
    return FAMILIES[family][0](size, **changes)


def _config(
    base: ModelConfig, family: str, size: str, changes: dict[str, Any], **block: Any
) -> ModelConfig:
    """Returns `base` with what a family's sizes share, the row of this size, and `changes`."""
    sizes, fields = SHAPES[family], FAMILIES[family][1].split()
    require(size in sizes, f"{size!r} is not a size of {family}; it can be {', '.join(sizes)}.")
    row = dict(zip(fields, sizes[size], strict=True))
    return dataclasses.replace(base, **block | row | changes)
