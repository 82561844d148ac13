"""Which of their tensors is which of our leaves, in both directions by one description.

Read `Entry`, then `places` (the entries of a model, one for each tensor), then `here` and `there`.

A layout is written as in Einstein sums: ours `"d n h"`, theirs `"(n h) d"`: the same letters in another order, and in
parentheses those that lie in one dimension. Both directions are made of it: taken apart, turned, put together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.arrays import Params
from gptjax.config import ConfigError
from gptjax.model import ModelConfig


class Entry(NamedTuple):
    """A tensor of theirs, or one for each layer (`{i}` in its name) and expert (`{e}`), and what it is made of."""

    theirs: str
    """Their name, `model.layers.{i}.self_attn.q_proj.weight`."""
    ours: tuple[str, ...]
    """Paths of our leaves, `layers/attention/query/kernel`; several lie side by side in one tensor."""
    their_axes: str = "..."
    """`(n h) d`; three dots leave all as it is."""
    our_axes: str = "..."
    """`d n h`, without layers and experts."""
    joined: str = ""
    """The letter along which several of ours lie side by side."""
    order: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Letters whose numbers they order otherwise: number k of theirs is number order[k] of ours."""
    plus: float = 0.0
    """Ours is theirs plus this."""
