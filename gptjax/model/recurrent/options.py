"""The options of recurrent mixers, one class for each; `ModelConfig.recurrent` holds one.

Each says what a layer remembers of a text (`record`) and what a token costs (`products`), so that
cache, planner and counts ask no mixer by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from gptjax.core.config import require


class Record(NamedTuple):
    """The shapes of what one layer remembers of one row."""

    inputs: tuple[tuple[int, ...], ...]
    """What a convolution reads of one token, one shape for each of its parts."""
    gates: tuple[tuple[int, ...], ...]
    """What one token writes with: its decay, and its rate if it has one."""
    state: tuple[int, ...] | None
    """The state that all tokens before have made; `None` where the convolution is all."""


@dataclass(frozen=True)
class DeltaNet:
    """Gated DeltaNet: each value head has a matrix that decays, and of which each token overwrites
    what its key reads there.

    Sources: Yang et al. 2024, Gated Delta Networks, arXiv:2412.06464; as in Qwen3-Next: several
    value heads share a query and key head, and the output is normalised head by head and then
    gated.
    """

    kind: ClassVar[str] = "delta"
    key_heads: int = 4
    """Number of query and key heads."""
    value_heads: int | None = None
    """Number of value heads, a multiple of the key heads; `None` means as many."""
    key_width: int = 64
    """Width of a query or key."""
    value_width: int | None = None
    """Width of a value; `None` means that of a key."""
    taps: int = 4
    """Kernel size of the convolution before queries, keys and values."""
    chunk: int = 64
    """Tokens that are computed together by matrix products; the state goes from chunk to chunk."""

    def __post_init__(self) -> None:
        _positive(self, "key_heads", "value_heads", "key_width", "value_width", "taps", "chunk")
        require(
            self.group * self.key_heads == (self.value_heads or self.key_heads),
            f"model.recurrent.value_heads is {self.value_heads}; it needs a multiple of the"
            f" {self.key_heads} key heads.",
        )

    @property
    def group(self) -> int:
        """Number of value heads that share a key head."""
        return (self.value_heads or self.key_heads) // self.key_heads

    @property
    def value_dim(self) -> int:
        """Width of one value."""
        return self.value_width or self.key_width

    def record(self, width: int) -> Record:
        """What a layer remembers in a model of this width."""
        key, heads = (self.key_heads, self.key_width), (self.key_heads, self.group)
        value = (self.key_heads, self.group * self.value_dim)
        return Record((key, key, value), (heads, heads), (*heads, self.key_width, self.value_dim))

    def products(self, width: int) -> tuple[int, int]:
        """Multiplications of one token with weights, and with the state: what its key reads there,
        what it writes, what its query reads."""
        record = self.record(width)
        (heads, group), (_, values) = record.gates[0], record.inputs[2]
        own = width * heads * (2 * self.key_width + 3 * values + 2 * group)
        return own + self.taps * _sum(record.inputs), 3 * math.prod(record.state or ())


@dataclass(frozen=True)
class Mamba2:
    """Mamba 2: each head has a matrix that decays by a step that the token chooses, and to which
    the token adds its value at its key; heads of a group share keys and queries.

    Sources: Dao and Gu 2024, Transformers are SSMs, arXiv:2405.21060, section 7; keys and queries
    are called B and C there, values x. Normalised after the gate and group by group, as in Bamba.
    """

    kind: ClassVar[str] = "mamba"
    heads: int = 8
    """Number of heads, a multiple of the groups."""
    head_width: int = 64
    """Width of a head's value."""
    groups: int = 1
    """Number of groups; a group has one key and one query."""
    state_width: int = 128
    """Width of a key or query."""
    taps: int = 4
    """Kernel size of the convolution before queries, keys and values."""
    convolution_bias: bool = True
    """Biases of the convolution."""
    bias: bool = False
    """Biases of the projections into and out of the layer."""
    shortest_step: float = 0.0
    """Steps are at least this."""
    longest_step: float | None = None
    """Steps are at most this; `None` is no bound."""
    chunk: int = 64
    """Tokens that are computed together by matrix products; the state goes from chunk to chunk."""

    def __post_init__(self) -> None:
        _positive(self, "heads", "head_width", "groups", "state_width", "taps", "chunk")
        require(
            self.heads % self.groups == 0,
            f"model.recurrent.heads is {self.heads}, which {self.groups} groups do not divide; use"
            " a multiple.",
        )
        require(
            0 <= self.shortest_step < (self.longest_step or math.inf),
            f"model.recurrent.shortest_step is {self.shortest_step} and longest_step"
            f" {self.longest_step}; they need to be 0 or more, and in order.",
        )

    @property
    def group(self) -> int:
        """Number of heads of a group."""
        return self.heads // self.groups

    def record(self, width: int) -> Record:
        """What a layer remembers in a model of this width."""
        value, key = (self.groups, self.group * self.head_width), (self.groups, self.state_width)
        heads = (self.groups, self.group)
        return Record(
            (value, key, key), (heads, heads), (*heads, self.state_width, self.head_width)
        )

    def products(self, width: int) -> tuple[int, int]:
        """Multiplications of one token with weights, and with the state: what it writes and what
        its query reads."""
        record = self.record(width)
        values, keys = self.heads * self.head_width, self.groups * self.state_width
        own = width * (3 * values + 2 * keys + self.heads)
        return own + self.taps * _sum(record.inputs), 2 * math.prod(record.state or ())


@dataclass(frozen=True)
class ShortConvolution:
    """A gated convolution over the last few tokens, which are all that it remembers.

    Source: Liquid AI 2025, LFM2, arXiv:2511.23404, section 2.
    """

    kind: ClassVar[str] = "convolution"
    taps: int = 3
    """Kernel size: the tokens that it reads, the token included."""
    bias: bool = False
    """Biases of the convolution and of the projections."""

    def __post_init__(self) -> None:
        _positive(self, "taps")

    def record(self, width: int) -> Record:
        """What a layer remembers in a model of this width."""
        return Record(((width,),), (), None)

    def products(self, width: int) -> tuple[int, int]:
        """Multiplications of one token with weights; there is no state."""
        return 4 * width * width + self.taps * width, 0


Recurrent = DeltaNet | Mamba2 | ShortConvolution


def _sum(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(map(math.prod, shapes))


def _positive(options: Recurrent, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        require(
            value is None or value > 0, f"model.recurrent.{name} is {value}; it needs at least 1."
        )
