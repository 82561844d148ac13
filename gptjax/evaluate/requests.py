"""What an evaluation asks of a model, and what the model says: three requests, three responses.

A task is two pure functions: its records become requests, and the responses become figures. Between
them stands `respond`, the only place that runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gptjax.generate import Completion, SampleConfig


class Score(NamedTuple):
    """Asks for the log-probability of a continuation after a context."""

    context: str | Sequence[int]
    """Text, or ids where a chat template has written it. Empty text is one start token."""
    continuation: str | Sequence[int]
    """With the space that separates it from the context, if there is one; or ids."""


class Roll(NamedTuple):
    """Asks for the log-probability of a whole text, each token predicted exactly once."""

    text: str | Sequence[int]


class Write(NamedTuple):
    """Asks for an answer."""

    context: str | Sequence[int]
    settings: SampleConfig


class Scored(NamedTuple):
    """The response to `Score`."""

    logprob: float
    """ln p of the continuation, in nats."""
    greedy: bool
    """Whether each of its tokens is the likeliest one."""
    tokens: int
    """Length of the continuation."""
    truncated: bool = False
    """The beginning of the context did not fit the model."""


class Rolled(NamedTuple):
    """The response to `Roll`."""

    logprob: float
    """ln p of the text, in nats."""
    tokens: int


Request = Score | Roll | Write
Response = Scored | Rolled | Completion
"""`Completion` is the response to `Write`."""
