"""Virtual tokens: embeddings, or keys and values, that train before every text while all weights
are frozen. A parameter tree holds them beside its weights, under `VIRTUAL`, and `model.forward`
lets every token attend to them.

Read `Prompt` and `Prefix` (what trains), then `PromptTuning` and `PrefixTuning` (settings).
`model.virtual` gives them their initial values.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax

from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.weights.storage import Stored
from gptjax.weights.weight import Leaf, dense

VIRTUAL = "virtual_tokens"
"""Where a parameter tree has them."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["embeddings"], meta_fields=[])
@dataclass(frozen=True)
class Prompt:
    """Virtual tokens that the model reads as it reads others.

    Source: Lester et al. 2021, arXiv:2104.08691.
    """

    embeddings: Leaf
    """float32 [P D], as `model.embed_tokens` gives them."""

    @property
    def count(self) -> int:
        """Number of virtual tokens."""
        return self.embeddings.shape[0]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=[])
@dataclass(frozen=True)
class Prefix:
    """Virtual tokens of which each layer has keys and values of its own.

    Source: Li and Liang 2021, arXiv:2101.00190, without the MLP that makes them there.
    """

    keys: Leaf
    """float32 [L P K H], as attention reads them: normalised and rotated."""
    values: Leaf
    """float32 [L P K H]"""

    @property
    def count(self) -> int:
        """Number of virtual tokens."""
        return self.keys.shape[1]


Virtual = Prompt | Prefix


@dataclass(frozen=True)
class PromptTuning:
    """Trains embeddings of virtual tokens before every text. Source: Lester et al. 2021,
    arXiv:2104.08691."""

    tokens: int = 20
    """Number of virtual tokens."""
    text: str = ""
    """They begin as the tokens of this text, repeated or cut to their number; without a text, as
    tokens drawn from the vocabulary."""
    base: Stored = "float32"
    """Type in which the kernels of the layers are kept, as of `lora`."""
    ids: tuple[int, ...] = ()
    """The tokens of the text. Training fills this in."""

    def __post_init__(self) -> None:
        require(
            self.tokens >= 1,
            f"adapter.tokens is {self.tokens}; it needs 1 or more (--adapter.tokens).",
        )

    # What low-rank adapters can have besides, and these have not.
    dropout = 0.0
    modules_to_save = ()
    untie = False

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"{type(self).__name__} of {self.tokens} virtual tokens"


@dataclass(frozen=True)
class PrefixTuning(PromptTuning):
    """Trains each layer's keys and values of virtual tokens before every text. Source: Li and
    Liang 2021, arXiv:2101.00190."""


def split_virtual(params: Params) -> tuple[Params, Virtual | None]:
    """A parameter tree without its virtual tokens, and those, if it has any."""
    if not isinstance(params, dict) or VIRTUAL not in params:
        return params, None
    return {name: tree for name, tree in params.items() if name != VIRTUAL}, params[VIRTUAL]


@dense.register(Prompt)
@dense.register(Prefix)
def _(virtual: Any) -> Any:
    raise ConfigError(
        "virtual tokens (prompt and prefix tuning) are no part of a weight, so they can't be merged"
        " or trained further; write them with --to peft, or open the run as it is."
    )
