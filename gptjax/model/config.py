"""Every architectural choice of a model as one frozen value.

Read `ModelConfig`; the small classes that its fields hold are in `config_parts`, what it refuses in
`config_checks`, and published shapes in `presets`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from gptjax.model.config_checks import DROPOUTS, check_model
from gptjax.model.config_parts import (
    GATES,
    Activation,
    Experts,
    FrameEncoder,
    Latent,
    Layer,
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    QueryGrowth,
    RopeScaling,
    Shortcuts,
    YarnScaling,
)
from gptjax.model.inputs.options import Vision
from gptjax.model.recurrent.options import DeltaNet, Mamba2, Recurrent, ShortConvolution

__all__ = [
    "DROPOUTS",
    "DeltaNet",
    "Experts",
    "FrameEncoder",
    "Latent",
    "Layer",
    "LinearScaling",
    "Llama3Scaling",
    "Mamba2",
    "ModelConfig",
    "NTKScaling",
    "QueryGrowth",
    "Recurrent",
    "RopeScaling",
    "ShortConvolution",
    "Shortcuts",
    "Vision",
    "YarnScaling",
]


@dataclass(frozen=True)
class ModelConfig:
    """A Transformer: a decoder, an encoder, or both. Frozen and hashable: it is a static argument
    of every compiled function."""

    vocab_size: int | None = None
    """Vocabulary size; `None` takes the tokenizer's. It may be larger (padded), never smaller."""
    context: int = 256
    """Maximum sequence length, in tokens."""
    width: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of blocks."""
    encoder_layers: int = 0
    """Blocks of an encoder that reads a side text, to which each of the `num_layers` blocks
    attends; 0 is none."""
    frames: FrameEncoder | None = None
    """An encoder of continuous inputs, to which each of the `num_layers` blocks attends."""
    vision: Vision | None = None
    """How pictures beside a text are read; `None` reads none."""
    causal: bool = True
    """Tokens see those before them; false is an encoder (BERT), which sees all and writes none."""
    prefix_lm: bool = False
    """The tokens of a decoder's prefix see all of it, as in an encoder; what follows sees what is
    before it (prefix LM)."""
    num_heads: int = 4
    """Number of query heads."""
    num_kv_heads: int | None = None
    """Number of key/value heads: `None` is one per query head (MHA), 1 is MQA, else GQA."""
    head_width: int | None = None
    """Width of one head; `None` means width / num_heads."""
    feed_forward: int | None = None
    """Width inside the MLP; `None` means 4 × width, or 8/3 × width rounded up to a multiple of 32
    when gated."""
    pattern: tuple[Layer, ...] = (Layer(),)
    """How layers differ; repeated over the depth."""
    first: tuple[Layer, ...] = ()
    """Layers before the pattern begins."""
    positions: Literal["learned", "sinusoidal", "rope", "alibi", "t5", "none"] = "learned"
    """How the model knows where a token stands: added to its embedding, by turning queries and
    keys, or by a bias of the scores."""
    rope_base: float = 10_000.0
    """RoPE's longest wavelength is 2π times this, in tokens."""
    rope_share: float = 1.0
    """Share of a head that RoPE turns, from its beginning."""
    rope_scaling: RopeScaling | None = None
    """How RoPE is stretched to a longer context."""
    t5_buckets: int = 32
    """Buckets of T5's bias by distance; half of them are single distances, the rest grow."""
    t5_distance: int = 128
    """Distance from which all are one bucket of T5's bias."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation of the residual stream and before the output."""
    norm_placement: Literal["pre", "post", "sandwich", "reordered"] = "pre"
    """Norms stand before attention and MLP; after their sum with the stream (original Transformer);
    on both sides of them; or on what they add (OLMo 2)."""
    norm_epsilon: float = 1e-5
    """Added to the variance."""
    norm_scale: bool = True
    """Norms have a learned scale (`qk_norm` has its own switch); nanochat's have none."""
    parallel: Literal["none", "shared", "separate"] = "none"
    """Attention and MLP read the same stream, by one norm (GPT-J, PaLM) or two (GPT-NeoX)."""
    qk_norm: bool = False
    """Normalise each query and key head by RMSNorm before the product (Qwen 3)."""
    qk_norm_joint: bool = False
    """`qk_norm` takes all heads as one vector (OLMo 2)."""
    qk_norm_scale: bool = True
    """`qk_norm` has a learned scale."""
    qk_norm_after_rope: bool = False
    """`qk_norm` follows RoPE, and layers without RoPE have none (Llama 4, nanochat)."""
    query_growth: QueryGrowth | None = None
    """How queries grow with their position; `None` leaves them."""
    qkv_clip: float | None = None
    """Queries, keys and values are clipped to ± it, after `qk_norm` (OLMo); `None` does not."""
    attention_scale: float | None = None
    """Factor of the queries; `None` means 1/√(width of a query head)."""
    attention_cap: float | None = None
    """Scores s become cap · tanh(s / cap)."""
    attention_sink: bool = False
    """Learned attention-sink logit per head (gpt-oss)."""
    attention_gate: bool = False
    """What attention gives is multiplied by σ of a projection of its input (Qwen3-Next)."""
    logit_cap: float | None = None
    """Logits l become cap · tanh(l / cap)."""
    latent: Latent | None = None
    """Multi-head latent attention (MLA); `None` means plain heads."""
    recurrent: Recurrent | None = None
    """What mixes tokens in the layers that are `recurrent`; `None`: there are none."""
    experts: Experts | None = None
    """A mixture of experts in every layer that is not `dense`; `None` means MLPs everywhere."""
    activation: Activation = "gelu"
    """The MLP's nonlinearity; `gelu` is the tanh form of GPT-2, `gelu_quick` is x · σ(1.702 x).
    `swiglu`, `geglu`, `geglu_exact` and `reglu` are gated by silu, gelu, gelu_exact and relu;
    `swiglu_clamped` (gpt-oss) by gelu_quick; `xielu` (Apertus) has two learned numbers."""
    bias: bool = True
    """Biases in linear layers and in LayerNorm."""
    qkv_bias: bool | None = None
    """Biases of query, key and value; `None` means as `bias`."""
    key_bias: bool = True
    """Keys have one too, where queries and values do (Whisper's have none)."""
    out_bias: bool | None = None
    """Bias of attention's output; `None` means as `bias`."""
    mlp_bias: bool | None = None
    """Biases of the MLP; `None` means as `bias`."""
    tied: bool = True
    """The output uses the token embedding."""
    scaled_embedding: bool = False
    """Token embeddings are multiplied by √width where they enter (original Transformer, Gemma)."""
    embedding_scale: float = 1.0
    """Token embeddings are multiplied by it too where they enter (Granite)."""
    residual_scale: float = 1.0
    """What attention and MLP add to the residual stream is multiplied by it (Granite)."""
    shortcuts: Shortcuts | None = None
    """What layers read of the embedded tokens besides the stream; `None` is nothing."""
    embedding_norm: bool = False
    """Embeddings are normalised before the first block (BERT)."""
    embedding_width: int | None = None
    """Width of token embeddings, which a linear layer projects to `width`; `None` means `width`."""
    embedding_projection: Literal["tokens", "stream"] = "tokens"
    """What is projected to `width`: each token's embedding, before positions are added (OPT-350m),
    or their sum, after `embedding_norm` (ELECTRA)."""
    head_transform: bool = False
    """A linear layer, the MLP's nonlinearity and a norm come before the output (BERT)."""
    logit_bias: bool = False
    """Each token's logit has a learned bias (BERT)."""
    classes: int | None = None
    """Number of classes of a linear head in place of the output over tokens; `None` predicts
    tokens. The task sets it."""
    pool: Literal["mean", "first", "last"] = "mean"
    """A text is classified by its tokens' mean state, its first's (BERT) or its last's (GPT)."""
    ahead: int = 0
    """Number of tokens after the next one that training predicts too (multi-token prediction), each
    by a block of its own on the final hidden states; decoding omits them."""
    ahead_chained: bool = False
    """Each of these blocks reads the one before it and the token after (DeepSeek-V3)."""
    logit_scale: float = 1.0
    """Hidden states are multiplied by it before the output; T5 has 1/√width."""
    embedding_dropout: float = 0.0
    """Share of embedding values dropped in training."""
    attention_dropout: float = 0.0
    """Share of attention weights dropped in training."""
    residual_dropout: float = 0.0
    """Share of what attention and MLP add to the residual stream dropped in training."""
    stochastic_depth: float = 0.0
    """Share of rows for which the last layer's attention, and its MLP, is skipped in training;
    earlier layers skip proportionally fewer."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""
    residual_init: Literal["scaled", "zero"] = "scaled"
    """Output projections of attention and MLP start at init_std / √(2 · num_layers), or at zero."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and products; parameters, softmax, norms and the loss stay in float32."""
    attention: Literal["auto", "reference", "causal_blocks", "blockwise", "splash", "cudnn"] = (
        "auto"
    )
    """Attention implementation; `auto` says in the start banner which it takes and why. `splash` is
    for TPU, `cudnn` for GPU."""
    context_order: Literal["auto", "contiguous", "zigzag"] = "auto"
    """How `mesh.context` divides positions; `zigzag` gives all devices as much causal attention."""
    layers: Literal["auto", "scan", "unroll"] = "auto"
    """Run the stack as a compiled loop or unrolled, with the same parameters; `auto` unrolls it on
    a CPU, and on a GPU up to 24 layers."""
    remat: Literal["none", "dots", "names", "offload", "full"] = "none"
    """What the backward pass computes again: nothing, all but matrix products, all but
    `remat_names`, the same with these on the host, or all."""
    remat_names: tuple[
        Literal["stream", "query", "key", "value", "attention", "recurrent", "mlp"], ...
    ] = ("attention",)
    """What `names` keeps, and `offload` on the host: a block's input, queries, keys, values, what
    attention gives, what is inside the MLP."""
    stage_parts: int | None = None
    """Micro-batches in which the rows of a device go through the pipeline stages; `None` means the
    largest divisor of the rows, up to four per stage."""

    def __post_init__(self) -> None:
        check_model(self)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.width // self.num_heads if self.head_width is None else self.head_width

    @property
    def stack(self) -> tuple[Layer, ...]:
        """The layers in order of depth."""
        repeats = -(-self.num_layers // len(self.pattern))
        return (*self.first, *self.pattern * repeats)[: self.num_layers]

    @property
    def further(self) -> ModelConfig:
        """The blocks of `ahead` as a stack: like the last layer, without experts if not chained."""
        layer = dataclasses.replace(self.stack[-1], dense=not self.ahead_chained)
        stack = {"num_layers": self.ahead, "pattern": (layer,), "first": (), "ahead": 0}
        experts = self.experts if self.ahead_chained else None
        recurrent = self.recurrent if layer.recurrent else None
        return dataclasses.replace(self, **stack, experts=experts, recurrent=recurrent)

    @property
    def continues(self) -> bool:
        """It is a decoder alone, which continues a text."""
        return self.causal and not self.has_encoder

    @property
    def has_encoder(self) -> bool:
        """An encoder of a side text, or of frames, stands beside the decoder."""
        return self.encoder_layers > 0 or self.frames is not None

    @property
    def frame_encoder(self) -> ModelConfig:
        """The encoder of `frames` as a model config; it has no use for a vocabulary."""
        shared = (*DROPOUTS, "init_std", "residual_init", "compute", "attention", "layers")
        shared += ("remat", "remat_names", "norm_epsilon")
        kept = {name: getattr(self, name) for name in shared}
        return ModelConfig(vocab_size=1, **self.frames.shape, **kept)

    @property
    def encoder(self) -> ModelConfig:
        """The encoder beside a decoder: the same choices, but layers see the whole side text."""
        return dataclasses.replace(
            self,
            num_layers=self.encoder_layers,
            encoder_layers=0,
            causal=False,
            pattern=(Layer(),),
            first=(),
        )

    def sparse(self, layer: Layer) -> bool:
        """The layer has experts."""
        return self.experts is not None and not layer.dense

    def mixer(self, layer: Layer) -> str:
        """What mixes the tokens of a layer, a key of `mixers.MIXERS`."""
        if layer.recurrent and self.recurrent is not None:
            return self.recurrent.kind
        return "attention" if self.latent is None else "latent"

    def stack_of(self, layer: Layer) -> str:
        """The stack of parameters that a layer belongs to, where there are several."""
        kind = "sparse" if self.sparse(layer) else "dense"
        return kind if not layer.recurrent else f"recurrent_{kind}"

    @property
    def mixed(self) -> bool:
        """Some layers have parameters that others have not, so they are stacked apart."""
        return len({self.stack_of(layer) for layer in self.stack}) > 1

    @property
    def expert_width(self) -> int:
        """Width inside one expert."""
        own = None if self.experts is None else self.experts.width
        return self.mlp_dim if own is None else own

    def positions_in(self, layer: Layer) -> Literal["rope", "alibi", "t5", "none"]:
        """Position encoding of a layer's attention."""
        if layer.recurrent:
            return "none"
        return layer.positions or (
            self.positions if self.positions in ("rope", "alibi", "t5") else "none"
        )

    def scaling_in(self, layer: Layer) -> RopeScaling | None:
        """How RoPE is stretched in a layer."""
        return self.rope_scaling if layer.rope_scaled else None

    @property
    def qkv_bias_enabled(self) -> bool:
        """Query, key and value have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def out_bias_enabled(self) -> bool:
        """Attention's output has a bias."""
        return self.bias if self.out_bias is None else self.out_bias

    @property
    def mlp_bias_enabled(self) -> bool:
        """The MLP has biases."""
        return self.bias if self.mlp_bias is None else self.mlp_bias

    @property
    def rotary_dim(self) -> int:
        """Number of a head's dimensions that RoPE rotates."""
        return (
            round(self.head_dim * self.rope_share)
            if self.latent is None
            else self.latent.rope_width
        )

    @property
    def scale(self) -> float:
        """Factor of the queries."""
        return self.query_width**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def query_width(self) -> int:
        """Width of a head's query and key, their rotated part included."""
        return self.head_dim if self.latent is None else self.head_dim + self.latent.rope_width

    @property
    def value_width(self) -> int:
        """Width of a head's value."""
        own = None if self.latent is None else self.latent.value_width
        return self.head_dim if own is None else own

    @property
    def uses_dropout(self) -> bool:
        """Training draws random numbers for dropout."""
        return any(getattr(self, name) > 0 for name in DROPOUTS)

    @property
    def gated(self) -> bool:
        """The MLP multiplies its nonlinearity by a second projection."""
        return self.activation in GATES

    @property
    def embedding_dim(self) -> int:
        """Width of the token embeddings, and of what the output reads."""
        return self.width if self.embedding_width is None else self.embedding_width

    @property
    def entrance_dim(self) -> int:
        """Width of embedded tokens where positions are added to them."""
        return self.embedding_dim if self.embedding_projection == "stream" else self.width

    @property
    def mlp_dim(self) -> int:
        """Width inside the MLP."""
        if self.feed_forward is not None:
            return self.feed_forward
        return -(-8 * self.width // 3 // 32) * 32 if self.gated else 4 * self.width

    @property
    def vocabulary(self) -> int:
        """Number of tokens, once it is known."""
        if self.vocab_size is None:
            raise ValueError(
                "vocab_size is not resolved yet: use dataclasses.replace(config,"
                " vocab_size=tokenizer.vocab_size)."
            )
        return self.vocab_size
