"""The parts of a model's config: how one layer differs from the next, and choices that not every
model makes (stretched RoPE, latent attention, experts, an encoder of frames)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from gptjax.core.config import require

Activation = Literal[
    "gelu",
    "gelu_exact",
    "gelu_quick",
    "relu",
    "relu2",
    "silu",
    "swiglu",
    "geglu",
    "geglu_exact",
    "reglu",
    "swiglu_clamped",
    "xielu",
]
GATES = {
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_exact": "gelu_exact",
    "reglu": "relu",
    "swiglu_clamped": "gelu_quick",
}
"""The gated nonlinearities, and that of their gate."""


@dataclass(frozen=True)
class Layer:
    """How one layer of the pattern differs. By default it attends to all tokens."""

    sees: Literal["all", "window", "chunk", "strided", "fixed"] = "all"
    """Which earlier tokens a token sees: all; the last `span`, itself included; those of its own
    chunk of `span` positions; the last `span` and every `span`-th before them (strided); its own
    chunk and the last `summary` of every chunk before it (fixed)."""
    span: int | None = None
    """Tokens of a window, a chunk or a stride."""
    summary: int = 1
    """Tokens at the end of a chunk that later chunks see, where `sees` is `fixed`."""
    sinks: int = 0
    """Number of initial tokens visible from every position, whatever the window or chunk."""
    positions: Literal["rope", "alibi", "t5", "none"] | None = None
    """Position encoding of this layer's attention; `None` means the model's."""
    rope_base: float | None = None
    """RoPE's base in this layer; `None` means the model's."""
    rope_scaled: bool = True
    """The model's `rope_scaling` holds in this layer."""
    dense: bool = False
    """A plain MLP in a model of experts."""
    recurrent: bool = False
    """The model's `recurrent` mixes its tokens instead of attention."""

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
            not self.recurrent or (self.sees == "all" and self.positions in (None, "none")),
            f"a recurrent layer sees {self.sees!r} and has positions {self.positions!r}; it needs"
            " 'all' and none, since it remembers every token in order.",
        )
        require(
            self.rope_base is None or self.rope_base > 0,
            f"a layer's rope_base is {self.rope_base}; it needs a positive number.",
        )


@dataclass(frozen=True)
class Shortcuts:
    """What every layer reads of the embedded tokens themselves, by factors that it learns.

    Sources: the stream: modded-nanogpt (https://github.com/KellerJordan/modded-nanogpt), of 2024;
    first values: Zhou et al. 2024, Value Residual Learning, arXiv:2410.17897, section 3.3; a table
    of values: modded-nanogpt, where several layers have one each.
    """

    stream: bool = True
    """A layer reads and adds to a · stream + b · embedded tokens; a begins at 1 and b at 0."""
    values: Literal["none", "first", "table"] = "none"
    """Values of attention are a · own + b · shared, which both begin at ½. Shared by all layers are
    what the first makes of the embedded tokens (value residual), or a table by token (value
    embeddings)."""

    def __post_init__(self) -> None:
        require(
            self.stream or self.values != "none",
            "model.shortcuts has neither stream nor values; omit it.",
        )


@dataclass(frozen=True)
class LinearScaling:
    """RoPE at positions divided by `factor`. Source: Chen et al. 2023, Position Interpolation,
    arXiv:2306.15595."""

    factor: float = 1.0
    """Factor by which the context grows."""


@dataclass(frozen=True)
class NTKScaling:
    """RoPE with a larger base: the slowest wave is `factor` times longer, the fastest unchanged.
    Source: bloc97 2023, NTK-aware scaled RoPE."""

    factor: float = 1.0
    """Factor by which the context grows."""


@dataclass(frozen=True)
class YarnScaling:
    """Slow waves as in `LinearScaling`, fast ones unchanged, a ramp between. Source: Peng et al.
    2023, YaRN, arXiv:2309.00071, section 3."""

    factor: float = 1.0
    """Factor by which the context grows."""
    original: int = 4096
    """Context before, in tokens."""
    fast: float = 32.0
    """Waves with more turns than this in the original context are unchanged."""
    slow: float = 1.0
    """Waves with fewer turns than this are stretched by the whole factor."""
    magnitude: float | None = None
    """Factor of rotated queries and keys; `None` means 0.1 · ln(factor) + 1."""
    truncate: bool = True
    """The ramp begins and ends at whole waves."""


@dataclass(frozen=True)
class Llama3Scaling:
    """As YaRN with a ramp over frequency, without the magnitude. Source: Grattafiori et al. 2024,
    arXiv:2407.21783; Llama 3.1's code."""

    factor: float = 8.0
    """Factor by which the context grows."""
    original: int = 8192
    """Context before, in tokens."""
    fast: float = 4.0
    """Waves with more turns than this in the original context are unchanged."""
    slow: float = 1.0
    """Waves with fewer turns than this are stretched by the whole factor."""


RopeScaling = LinearScaling | NTKScaling | YarnScaling | Llama3Scaling


@dataclass(frozen=True)
class QueryGrowth:
    """Queries are multiplied by 1 + strength · ln(1 + ⌊(position + first) / span⌋), so that
    attention stays sharp among many keys.

    Sources: Nakanishi 2025, Scalable-Softmax, arXiv:2501.19399; this form: Llama 4's and
    Ministral 3's code.
    """

    span: int = 8192
    """Positions of one step of the growth."""
    strength: float = 0.1
    """Factor of the logarithm."""
    first: int = 0
    """The number of the first position."""
    unrotated_only: bool = False
    """Only in layers without RoPE (Llama 4)."""

    def __post_init__(self) -> None:
        require(
            self.span >= 1 and self.first >= 0,
            f"model.query_growth has span {self.span} and first {self.first}; they need at least 1"
            " and 0.",
        )


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
    """Width of the queries' latent; `None` projects queries from the residual stream."""
    rope_width: int = 64
    """Rotated part of a head's query; the rotated part of the key is shared by all heads."""
    value_width: int | None = None
    """Width of a head's value; `None` means the head's width."""
    norm_epsilon: float | None = None
    """Added to the variance of latents; `None` means the model's."""

    def __post_init__(self) -> None:
        for name in ("rank", "query_rank", "rope_width", "value_width"):
            value = getattr(self, name)
            require(
                value is None or value > 0, f"model.latent.{name} is {value}; it needs at least 1."
            )
        require(
            self.norm_epsilon is None or self.norm_epsilon > 0,
            f"model.latent.norm_epsilon is {self.norm_epsilon}; it needs a positive number, or"
            " null.",
        )
        require(
            self.rope_width % 2 == 0,
            f"model.latent.rope_width is {self.rope_width} and RoPE turns pairs; it needs an even"
            " width.",
        )


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP: a router sends each token to `active` of `count`
    MLPs.

    Sources: Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2022, Switch Transformers,
    arXiv:2101.03961; sigmoid scores, shared experts, groups and balancing without a loss:
    DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 2.1.2.
    """

    count: int = 8
    """Number of experts to choose from."""
    active: int = 2
    """Number of experts per token (top-k)."""
    width: int | None = None
    """Width inside one expert; `None` means the MLP's."""
    shared: int = 0
    """Number of shared experts that read every token; together they are one MLP, as wide as all
    of them."""
    shared_gate: bool = False
    """The shared experts' output is multiplied by a sigmoid of the token, a weight of its own (Qwen
    2)."""
    biases: bool = False
    """Experts and router have biases (gpt-oss)."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """How the router's logits become scores."""
    normalised: bool = True
    """The weights of the chosen experts are divided by their sum."""
    scale: float = 1.0
    """The weights are multiplied by it."""
    weighs: Literal["output", "input"] = "output"
    """What of an expert its weight multiplies; the input in Llama 4."""
    groups: int = 1
    """Number of groups of equal size that experts are split into."""
    active_groups: int = 1
    """Number of groups that a token's experts come from: those with the best two experts."""
    capacity: float | None = None
    """Maximum load of an expert per row, as a multiple of its fair share; later tokens are dropped.
    `None` drops no token."""
    exchange: Literal["gather", "ragged"] = "gather"
    """Without a capacity, how tokens reach experts on other devices (`mesh.expert`): all go to all,
    or each to the devices of its own experts (ragged all-to-all)."""
    products: Literal["auto", "grouped", "ragged"] = "auto"
    """How experts that drop no token multiply: groups of tokens, each with a copy of its expert's
    kernel, or a ragged product. `auto`: grouped on a CPU, and on a GPU while the copies are few."""
    balance: float = 0.01
    """Weight of the load-balancing loss, which is 1 at equal load."""
    router_z: float = 0.0
    """Weight of the squared log-sum-exp of the router's logits (z-loss)."""
    bias_step: float = 0.0
    """Step size by which a bias of each expert's score moves towards equal load; it affects the
    choice of experts, not their weights."""

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
        require(
            not self.shared_gate or self.shared > 0,
            "model.experts.shared_gate is a gate of shared experts; it needs"
            " --model.experts.shared.",
        )
        require(
            not (self.biases and self.bias_step),
            "model.experts.biases gives the router a bias of its logits, and bias_step one of the"
            " choice; use one (--model.experts.bias-step 0).",
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

    Source: Radford et al. 2022, Whisper, arXiv:2212.04356, section 2.2, whose frames enter by
    convolutions and whose states are not projected.
    """

    channels: int = 80
    """Numbers in one frame."""
    stem: Literal["linear", "convolutions"] = "linear"
    """How frames enter: by a linear layer, or by two convolutions over three frames each, of which
    the second halves their number."""
    context: int = 1500
    """Maximum number of frames, as the stem leaves them."""
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
    activation: Activation = "gelu"
    """The MLP's nonlinearity."""
    bias: bool = True
    """Biases in linear layers and in LayerNorm."""
    key_bias: bool = True
    """Keys have a bias too, where queries and values have one."""
    causal: bool = False
    """Frames see earlier frames only."""
    projected: bool = True
    """A linear layer projects the states to the decoder's width; without it the two are equal."""

    @property
    def entering(self) -> int:
        """Maximum number of frames that enter the stem."""
        return self.context * (2 if self.stem == "convolutions" else 1)

    @property
    def shape(self) -> dict[str, object]:
        """What a model config calls the same."""
        own = ("channels", "stem", "projected")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}

    def __post_init__(self) -> None:
        require(
            self.channels > 0,
            f"model.frames.channels is {self.channels}; it needs at least 1.",
        )
