"""Every architectural choice of a model as one frozen value.

Read `Layer` (how one layer may differ from the next), then `ModelConfig`; the small classes between
them are choices that not every model makes. Published shapes are in `presets`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from gptjax.core.config import require


@dataclass(frozen=True)
class Layer:
    """What sets one layer of the pattern apart. The default sees everything and is as the model
    says."""

    sees: Literal["all", "window", "chunk", "strided", "fixed"] = "all"
    """Which earlier tokens a token sees: all; the last `span`, itself included; those of its own
    chunk of `span` positions; the last `span` and every `span`-th before them (strided); its own
    chunk and the last `summary` of every chunk before it (fixed)."""
    span: int | None = None
    """Tokens of a window, a chunk or a stride."""
    summary: int = 1
    """Tokens at the end of a chunk that later chunks see, where `sees` is `fixed`."""
    sinks: int = 0
    """The first so many tokens of a text stay visible, whatever the window or chunk."""
    positions: Literal["rope", "alibi", "t5", "none"] | None = None
    """How this layer's attention knows where tokens stand; none is as the model."""
    rope_base: float | None = None
    """RoPE's base in this layer; none is the model's."""
    rope_scaled: bool = True
    """The model's `rope_scaling` holds in this layer."""
    dense: bool = False
    """A plain MLP in a model of experts."""

    def __post_init__(self) -> None:
        require(
            (self.sees == "all") == (self.span is None),
            f"a layer that sees {self.sees!r} has span {self.span}; `all` has none, the others need"
            " one.",
        )
        require(
            self.span is None or self.span >= 1,
            f"a layer's span is {self.span}; it needs at least 1 token.",
        )
        require(
            self.sees != "fixed" or 1 <= self.summary <= self.span,
            f"a layer's summary is {self.summary}; it needs 1 to its span of {self.span}.",
        )
        require(self.sinks >= 0, f"a layer's sinks are {self.sinks}; it needs 0 or more tokens.")
        require(
            not self.sinks or self.sees in ("window", "chunk"),
            f"a layer that sees {self.sees!r} has sinks; only a window or a chunk has use for"
            " them.",
        )
        require(
            self.rope_base is None or self.rope_base > 0,
            f"a layer's rope_base is {self.rope_base}; it needs a positive number.",
        )


@dataclass(frozen=True)
class LinearScaling:
    """RoPE at positions divided by `factor`. Source: Chen et al. 2023, Position Interpolation,
    arXiv:2306.15595."""

    factor: float = 1.0
    """How many times longer the context becomes."""


@dataclass(frozen=True)
class NTKScaling:
    """RoPE with a larger base: the slowest wave is `factor` times longer, the fastest unchanged.
    Source: bloc97 2023, NTK-aware scaled RoPE."""

    factor: float = 1.0
    """How many times longer the context becomes."""


@dataclass(frozen=True)
class YarnScaling:
    """Slow waves as in `LinearScaling`, fast ones unchanged, a ramp between. Source: Peng et al.
    2023, YaRN, arXiv:2309.00071, section 3."""

    factor: float = 1.0
    """How many times longer the context becomes."""
    original: int = 4096
    """Context before, in tokens."""
    fast: float = 32.0
    """Waves with more turns than this in the original context are unchanged."""
    slow: float = 1.0
    """Waves with fewer turns than this are stretched by the whole factor."""
    magnitude: float | None = None
    """Rotated queries and keys are multiplied by it; none is 0.1 · ln(factor) + 1."""


@dataclass(frozen=True)
class Llama3Scaling:
    """As YaRN with a ramp over frequency, without the magnitude. Source: Grattafiori et al. 2024,
    arXiv:2407.21783; Llama 3.1's code."""

    factor: float = 8.0
    """How many times longer the context becomes."""
    original: int = 8192
    """Context before, in tokens."""
    fast: float = 4.0
    """Waves with more turns than this in the original context are unchanged."""
    slow: float = 1.0
    """Waves with fewer turns than this are stretched by the whole factor."""


RopeScaling = LinearScaling | NTKScaling | YarnScaling | Llama3Scaling


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: the cache holds one narrow latent and one rotated key a token,
    for all heads.

    A head's query and key are `head_width` unrotated and `rope_width` rotated numbers side by side.

    Source: DeepSeek-AI 2024, DeepSeek-V2, arXiv:2405.04434, section 2.1.
    """

    rank: int = 512
    """Width of the latent from which keys and values are made."""
    query_rank: int | None = None
    """Width of the latent from which queries are made; none makes them of the residual stream."""
    rope_width: int = 64
    """Rotated part of a head's query; the rotated part of the key is shared by all heads."""
    value_width: int | None = None
    """Width of a head's value; none is the head's width."""

    def __post_init__(self) -> None:
        for name in ("rank", "query_rank", "rope_width", "value_width"):
            value = getattr(self, name)
            require(
                value is None or value > 0, f"model.latent.{name} is {value}; it needs at least 1."
            )
        require(
            self.rope_width % 2 == 0,
            f"model.latent.rope_width is {self.rope_width} and RoPE turns pairs; it needs an even"
            " width.",
        )


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP: each token is read by `active` of `count` MLPs,
    which a router chooses.

    Sources: Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2022, Switch Transformers,
    arXiv:2101.03961; sigmoid scores, shared experts, groups and balancing without a loss:
    DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 2.1.2.
    """

    count: int = 8
    """Experts to choose from."""
    active: int = 2
    """Experts that read a token."""
    width: int | None = None
    """Width inside one expert; none is the MLP's."""
    shared: int = 0
    """Experts that read every token besides; together they are one MLP of so many times the
    width."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """How the router's numbers become weights: shares of one, or each for itself."""
    normalised: bool = True
    """The weights of the chosen experts are divided by their sum."""
    scale: float = 1.0
    """The weights are multiplied by it."""
    groups: int = 1
    """Experts stand in so many groups of equal size."""
    active_groups: int = 1
    """A token's experts come from so many groups, those with the best two experts."""
    capacity: float | None = None
    """An expert reads at most this many times its fair share of a row's tokens and later ones are
    dropped; none drops nobody."""
    balance: float = 0.01
    """Weight of the loss that is 1 when all experts are read equally."""
    router_z: float = 0.0
    """Weight of the squared log-sum-exp of the router's numbers."""
    bias_step: float = 0.0
    """Each step moves a bias of each expert's score by so much towards equal load; it chooses but
    does not weigh."""

    def __post_init__(self) -> None:
        for name in ("count", "active", "groups", "active_groups", "scale"):
            require(
                getattr(self, name) > 0,
                f"model.experts.{name} is {getattr(self, name)}; it needs a positive number.",
            )
        for name in ("shared", "balance", "router_z", "bias_step"):
            require(
                getattr(self, name) >= 0,
                f"model.experts.{name} is {getattr(self, name)}; it needs 0 or more.",
            )
        for name in ("width", "capacity"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"model.experts.{name} is {value}; it needs a positive number, or null.",
            )
        require(
            self.count % self.groups == 0,
            f"model.experts.count is {self.count}, which {self.groups} groups do not divide; use a"
            " multiple.",
        )
        require(
            self.active_groups <= self.groups,
            f"model.experts.active_groups is {self.active_groups}; there are {self.groups} groups.",
        )
        choice = self.count // self.groups * self.active_groups
        require(
            self.active <= choice,
            f"model.experts.active is {self.active}; a token can choose among {choice}.",
        )


@dataclass(frozen=True)
class FrameEncoder:
    """An encoder of continuous inputs, such as log-mel frames or image patches, with a shape of its
    own. Its states are projected to the decoder's width, and each block of the decoder attends to
    them. Initialisation, dropout, compute type and ways to run are the decoder's.

    Source: Radford et al. 2022, Whisper, arXiv:2212.04356, section 2.2, without its convolutions.
    """

    channels: int = 80
    """Numbers in one frame."""
    context: int = 1500
    """Maximum number of frames."""
    width: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Number of attention heads."""
    feed_forward: int | None = None
    """Width inside the MLP; `None` means the default for this width."""
    positions: Literal["learned", "sinusoidal", "rope", "alibi", "t5", "none"] = "sinusoidal"
    """How the encoder knows where a frame stands."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation of the residual stream and of the output."""
    norm_placement: Literal["pre", "post", "sandwich", "reordered"] = "pre"
    """Where norms are placed, as in the decoder."""
    activation: Literal["gelu", "gelu_exact", "relu", "relu2", "silu", "swiglu", "geglu"] = "gelu"
    """The MLP's nonlinearity."""
    bias: bool = True
    """Biases in linear layers and in LayerNorm."""
    causal: bool = False
    """Frames see earlier frames only."""

    def __post_init__(self) -> None:
        require(
            self.channels > 0,
            f"model.frames.channels is {self.channels}; it needs at least 1.",
        )


DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout", "stochastic_depth")
"""Settings that are shares of something to leave out in training."""


@dataclass(frozen=True)
class ModelConfig:
    """A Transformer: a decoder, an encoder, or both. Frozen and hashable: it is a static argument
    of every compiled function."""

    vocab_size: int | None = None
    """Number of tokens; none takes the tokenizer's. It may be larger (padded), never smaller."""
    context: int = 256
    """Most positions that the model can see at once, in tokens."""
    width: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of blocks."""
    encoder_layers: int = 0
    """Blocks of an encoder that reads a side text, to which each of the `num_layers` blocks
    attends; 0 is none."""
    frames: FrameEncoder | None = None
    """An encoder of continuous inputs, to which each of the `num_layers` blocks attends; `None` has
    none."""
    causal: bool = True
    """Tokens see those before them; false is an encoder (BERT), whose tokens see all of their text
    and which does not write."""
    prefix_lm: bool = False
    """The tokens of a decoder's prefix see all of it, as in an encoder; what follows sees what is
    before it (prefix LM)."""
    num_heads: int = 4
    """Number of query heads."""
    num_kv_heads: int | None = None
    """Number of key/value heads: none is one for each query head (MHA), 1 is MQA, between is
    GQA."""
    head_width: int | None = None
    """Width of one head; none is width / num_heads."""
    feed_forward: int | None = None
    """Width inside the MLP; none is 4 × width, or 8/3 × width rounded up to a multiple of 32 when
    gated."""
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
    """Distances that T5's bias tells apart; half of them are single tokens, the rest grow."""
    t5_distance: int = 128
    """From here on all distances are one to T5's bias."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation of the residual stream and before the output."""
    norm_placement: Literal["pre", "post", "sandwich", "reordered"] = "pre"
    """Norms stand before attention and MLP; after their sum with the stream (original Transformer);
    on both sides of them; or on what they add (OLMo 2)."""
    norm_epsilon: float = 1e-5
    """Added to the variance."""
    parallel: Literal["none", "shared", "separate"] = "none"
    """Attention and MLP read the same stream and are added together, through one norm (GPT-J, PaLM)
    or a norm each (GPT-NeoX)."""
    qk_norm: bool = False
    """Normalise each query and key head (RMSNorm with a learned scale) before the product (Qwen
    3)."""
    qk_norm_joint: bool = False
    """`qk_norm` takes all heads as one vector (OLMo 2)."""
    attention_scale: float | None = None
    """Queries are multiplied by it; none is 1/√(width of a query head)."""
    attention_cap: float | None = None
    """Scores s become cap · tanh(s / cap)."""
    attention_sink: bool = False
    """Each head learns a score for looking at nobody."""
    logit_cap: float | None = None
    """Logits l become cap · tanh(l / cap)."""
    latent: Latent | None = None
    """Multi-head latent attention; none has a key and a value for each key/value head."""
    experts: Experts | None = None
    """A mixture of experts in every layer that is not `dense`; none has an MLP in all of them."""
    activation: Literal["gelu", "gelu_exact", "relu", "relu2", "silu", "swiglu", "geglu"] = "gelu"
    """The MLP's nonlinearity; `gelu` is the tanh form of GPT-2, `swiglu` and `geglu` are gated."""
    bias: bool = True
    """Biases in linear layers and in LayerNorm."""
    qkv_bias: bool | None = None
    """Biases of query, key and value; none is as `bias`."""
    tied: bool = True
    """The output uses the token embedding."""
    scaled_embedding: bool = False
    """Token embeddings are multiplied by √width where they enter (original Transformer, Gemma)."""
    embedding_norm: bool = False
    """Embeddings are normalised before the first block (BERT)."""
    head_transform: bool = False
    """Hidden states pass a linear layer, the MLP's nonlinearity and a norm before the output
    (BERT)."""
    logit_bias: bool = False
    """Each token's logit has a learned bias (BERT)."""
    classes: int | None = None
    """Number of classes that a linear head tells apart, in the place of an output over tokens; none
    predicts tokens. The task sets it."""
    pool: Literal["mean", "first", "last"] = "mean"
    """Which hidden state of a text the classes are told from: the mean of all, that of its first
    token (BERT) or of its last (GPT)."""
    ahead: int = 0
    """Further tokens that are predicted besides the next one in training, each by a block of its
    own on the final hidden states; decoding does without."""
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
    layers: Literal["auto", "scan", "unroll"] = "auto"
    """Run the stack as a compiled loop or unrolled; `auto` unrolls on CPU. Parameters are the
    same."""
    remat: Literal["none", "dots", "names", "offload", "full"] = "none"
    """What the backward pass computes again: nothing, all but matrix products, all but
    `remat_names`, the same with these on the host, or all."""
    remat_names: tuple[Literal["stream", "query", "key", "value", "attention", "mlp"], ...] = (
        "attention",
    )
    """What `names` keeps, and `offload` on the host: a block's input, queries, keys, values, what
    attention gives, what is inside the MLP."""
    stage_parts: int | None = None
    """Parts in which the rows of a device go through the stages of a mesh; none is as many as
    divide them, up to four a stage."""

    def __post_init__(self) -> None:
        for name in ("context", "width", "num_layers", "num_heads"):
            require(
                getattr(self, name) > 0,
                f"model.{name} is {getattr(self, name)}; it needs at least 1.",
            )
        for name in ("vocab_size", "num_kv_heads", "head_width", "feed_forward", "stage_parts"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"model.{name} is {value}; it needs at least 1, or null.",
            )
        for name in DROPOUTS:
            require(
                0 <= getattr(self, name) < 1,
                f"model.{name} is {getattr(self, name)}; it needs a share in [0, 1).",
            )
        for name in ("rope_base", "norm_epsilon", "init_std", "logit_scale"):
            require(
                getattr(self, name) > 0,
                f"model.{name} is {getattr(self, name)}; it needs a positive number.",
            )
        for name in ("attention_scale", "attention_cap", "logit_cap"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"model.{name} is {value}; it needs a positive number, or null.",
            )
        require(
            len(self.pattern) > 0,
            "model.pattern is empty; it needs at least one layer, which is then repeated.",
        )
        if self.head_width is None:
            near = self.num_heads * max(1, round(self.width / self.num_heads))
            require(
                self.width % self.num_heads == 0,
                f"model.width is {self.width}, which {self.num_heads} heads do not divide; use a"
                f" multiple (--model.width {near}), or set --model.head-width.",
            )
        require(
            self.num_heads % self.kv_heads == 0,
            f"model.num_heads is {self.num_heads}, which {self.kv_heads} key/value heads do not"
            " divide; use a divisor (--model.num-kv-heads 1).",
        )
        require(
            self.positions != "rope" or self.latent is not None or self.head_dim % 2 == 0,
            f"a head is {self.head_dim} wide and RoPE turns pairs; it needs an even width"
            f" (--model.head-width {self.head_dim + 1}).",
        )
        require(
            self.rotary_dim % 2 == 0 and 0 < self.rope_share <= 1,
            f"model.rope_share {self.rope_share} of a head of {self.head_dim} is {self.rotary_dim}"
            " and RoPE turns pairs; it needs an even part (--model.rope-share 1).",
        )
        require(
            self.t5_buckets >= 4
            and self.t5_buckets % 2 == 0
            and self.t5_distance > self.t5_buckets,
            f"model.t5_buckets is {self.t5_buckets} up to a distance of {self.t5_distance}; it"
            " needs an even number of at least 4, and a greater distance.",
        )
        require(
            self.qk_norm or not self.qk_norm_joint,
            "model.qk_norm_joint says how heads are normalised; it needs --model.qk-norm.",
        )
        require(
            self.latent is None
            or (self.num_kv_heads is None and not self.qk_norm and not self.attention_sink),
            "model.latent makes keys of one latent for all heads: it goes without num_kv_heads,"
            " qk_norm and attention_sink.",
        )
        require(
            self.encoder_layers >= 0,
            f"model.encoder_layers is {self.encoder_layers}; it needs 0 or more.",
        )
        require(
            not (self.encoder_layers and self.frames),
            "model.frames and model.encoder_layers are both an encoder beside the decoder; use one"
            " (--model.encoder-layers 0).",
        )
        if self.frames is not None:
            _ = self.frame_encoder  # refuses what its config refuses
        require(
            not self.has_encoder
            or (
                self.causal
                and self.experts is None
                and self.latent is None
                and self.parallel == "none"
            ),
            "model.encoder_layers or model.frames makes an encoder beside a decoder: no experts,"
            " latent or parallel, and causal.",
        )
        require(
            (self.causal and not self.prefix_lm)
            or all(layer.sees in ("all", "window", "chunk") for layer in self.stack),
            "a strided or fixed layer looks back only; with --model.causal False or prefix_lm a"
            " layer sees all, a window or a chunk.",
        )
        require(
            not self.prefix_lm or self.continues,
            "model.prefix_lm is for a decoder alone: it goes without encoder_layers, and with"
            " causal.",
        )
        require(self.ahead >= 0, f"model.ahead is {self.ahead}; it needs 0 or more tokens.")
        require(
            not self.ahead or self.continues,
            "model.ahead is for a decoder alone: it goes without encoder_layers, and with causal.",
        )
        require(
            self.classes is None or self.classes >= 2,
            f"model.classes is {self.classes}; it needs at least 2, or null.",
        )
        require(
            not self.classes or not (self.has_encoder or self.ahead),
            "model.classes is for a decoder or an encoder alone, which predicts nothing else.",
        )
        require(
            not self.head_transform or not self.gated,
            f"model.head_transform is one linear layer and {self.activation!r} is gated; use an"
            " activation such as gelu_exact.",
        )
        require(
            self.parallel == "none" or self.norm_placement == "pre",
            f"model.parallel is {self.parallel!r} with norms placed {self.norm_placement!r}; it"
            " needs --model.norm-placement pre.",
        )
        require(
            self.positions != "sinusoidal" or self.width % 2 == 0,
            f"model.width is {self.width} and sinusoidal positions come in pairs; it needs an even"
            f" width (--model.width {self.width + 1}).",
        )

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
        """The layers in order."""
        repeats = -(-self.num_layers // len(self.pattern))
        return (*self.first, *self.pattern * repeats)[: self.num_layers]

    @property
    def ahead_layer(self) -> Layer:
        """What the blocks of `ahead` are like: the last layer, without experts."""
        return dataclasses.replace(self.stack[-1], dense=True)

    @property
    def continues(self) -> bool:
        """It is a decoder alone, which goes on with a text."""
        return self.causal and not self.has_encoder

    @property
    def has_encoder(self) -> bool:
        """An encoder of a side text, or of frames, stands beside the decoder."""
        return self.encoder_layers > 0 or self.frames is not None

    @property
    def frame_encoder(self) -> ModelConfig:
        """The encoder of `frames` as a model config; it has no use for a vocabulary."""
        shape = {
            one.name: getattr(self.frames, one.name)
            for one in dataclasses.fields(self.frames)
            if one.name != "channels"
        }
        shared = (*DROPOUTS, "init_std", "residual_init", "compute", "attention", "layers")
        shared += ("remat", "remat_names", "norm_epsilon")
        return ModelConfig(vocab_size=1, **shape, **{name: getattr(self, name) for name in shared})

    @property
    def encoder(self) -> ModelConfig:
        """The encoder beside a decoder: the same choices, but every layer sees the whole side
        text."""
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

    @property
    def mixed(self) -> bool:
        """Some layers have experts and some have not, so they are stacked apart."""
        return len({self.sparse(layer) for layer in self.stack}) == 2

    @property
    def expert_width(self) -> int:
        """Width inside one expert."""
        return (
            self.mlp_dim
            if self.experts is None or self.experts.width is None
            else self.experts.width
        )

    def positions_in(self, layer: Layer) -> Literal["rope", "alibi", "t5", "none"]:
        """How the attention of a layer knows where tokens stand."""
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
    def rotary_dim(self) -> int:
        """Numbers of a head that RoPE turns."""
        return (
            round(self.head_dim * self.rope_share)
            if self.latent is None
            else self.latent.rope_width
        )

    @property
    def scale(self) -> float:
        """What queries are multiplied by."""
        return self.query_width**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def query_width(self) -> int:
        """Width of a head's query and key, their rotated part included."""
        return self.head_dim if self.latent is None else self.head_dim + self.latent.rope_width

    @property
    def value_width(self) -> int:
        """Width of a head's value."""
        return (
            self.head_dim
            if self.latent is None or self.latent.value_width is None
            else self.latent.value_width
        )

    @property
    def uses_dropout(self) -> bool:
        """Training draws random numbers."""
        return any(getattr(self, name) > 0 for name in DROPOUTS)

    @property
    def gated(self) -> bool:
        """The MLP multiplies its nonlinearity by a second projection."""
        return self.activation in ("swiglu", "geglu")

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
