"""From the frames of a window to ids, by the engine that writes all text.

Read `hearer` (a model, ready to hear), then `read_windows` (encodes windows and asks what they
are), then `write_windows`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Params
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.chain import Sampling, neutral
from gptjax.generate.constraints import Constraint, compiled, join_automata
from gptjax.generate.decode import empty_rows, extend, padded
from gptjax.generate.engine import Columns, advance, fill
from gptjax.generate.timestamps import Spoken
from gptjax.hear.vocabulary import Marks, find_marks
from gptjax.model import ModelConfig
from gptjax.model.cache import Memory
from gptjax.model.inputs.audio import HOP, log_mel
from gptjax.sharding.constrain import use_mesh

if TYPE_CHECKING:
    from gptjax.api import Model

LATEST = 50
"""Steps of 20 ms until which the first text of a window begins."""


class Hearer(NamedTuple):
    """A model that is ready to hear."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    marks: Marks
    banned: np.ndarray
    """[V] bool: ids that are never written: those with a meaning, and those that its files
    suppress."""
    blank: np.ndarray
    """[V] bool: ids with which no text begins."""
    mesh: Mesh | None = None

    @property
    def size(self) -> int:
        """Samples of a window."""
        return self.config.frames.entering * HOP

    @property
    def most(self) -> int:
        """The most ids of a window, and of the text before it: half the context each, or all of it
        for the window where the model reads no text before."""
        return self.config.context // (1 if self.marks.previous is None else 2)


class Written(NamedTuple):
    """What was written of a window."""

    ids: list[int]
    logprob: float
    """Mean ln p of the ids and of the end, under the model itself."""


class Encoded(NamedTuple):
    """Windows that the encoder has read."""

    memory: Memory
    chances: np.ndarray
    """[B V]: the probabilities of what follows the start."""


def hearer(opened: Model) -> Hearer:
    """Prepares a model.

    Raises:
      ConfigError: it reads no sound.
    """
    generation = opened.about.generation
    marks = find_marks(opened.config, opened.tokenizer, generation, opened.task)
    ready = opened.prepared()
    size = ready.config.vocabulary

    def named(ids: Sequence[Any]) -> np.ndarray:
        known = [i for i in ids if type(i) is int and 0 <= i < size]
        return np.isin(np.arange(size), known)

    banned = named([*marks.controls, *(generation.get("suppress_tokens") or ())])
    banned[opened.tokenizer.vocab_size : marks.first_time] = True  # of no piece
    blank = named([marks.end, *(generation.get("begin_suppress_tokens") or ())])
    return Hearer(ready.config, ready.params, ready.tokenizer, marks, banned, blank, opened.mesh)


def frames_of(hearer: Hearer, windows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the frames [B F mels] of windows, silence behind the shorter ones."""
    mels = hearer.config.frames.channels
    return np.stack([log_mel(np.pad(x, (0, hearer.size - len(x))), mels) for x in windows])


def read_windows(hearer: Hearer, frames: np.ndarray) -> Encoded:
    """Encodes windows, and asks what follows the start: a language, or no speech."""
    starts = np.full((len(frames), 1), hearer.marks.start, np.int32)
    with use_mesh(hearer.mesh):
        memory, chances = _read(hearer.config, hearer.params, frames, starts)
    return Encoded(memory, np.asarray(chances))


@functools.partial(jax.jit, static_argnames="config")
def _read(
    config: ModelConfig, params: Params, values: Float[Array, "B F C"], starts: Int[Array, "B 1"]
) -> tuple[Memory, Float[Array, "B V"]]:
    memory = model.encode(config, params, frames=model.Frames(values))
    hidden = model.forward(config, params, starts, memory=memory).hidden[:, 0]
    return memory, jax.nn.softmax(model.unembed(config, params, hidden))


def write_windows(
    hearer: Hearer,
    heard: Encoded,
    prompts: Sequence[Sequence[int]],
    *,
    timed: bool,
    temperature: float = 0.0,
    choices: tuple[str, ...] = (),
    seeds: Sequence[tuple[int, int]] = (),
) -> list[Written]:
    """Writes what each window says.

    Args:
      prompts: the ids before the transcript; a row without ids writes nothing.
      timed: with times, by the rules of `timestamps`.
      choices: the only texts that can be written; empty is any text.
      seeds: two numbers for each row, of which its randomness is made, where the temperature is
        above 0.
    """
    config, rows = hearer.config, len(prompts)
    lengths = np.asarray([max(1, len(ids)) for ids in prompts], np.int32)
    limits = np.minimum(hearer.most, config.context - lengths)
    limits = np.where([bool(ids) for ids in prompts], limits, 0).astype(np.int32)
    columns = _columns(hearer, rows, timed, temperature, seeds)
    constraint = constraint_of(hearer, choices, limits) if choices else None
    with use_mesh(hearer.mesh):
        state = empty_rows(config, rows, config.context)
        memory = jax.tree.map(jnp.copy, heard.memory)  # `extend` uses it up
        state = state._replace(cache=state.cache._replace(memory=memory))
        tokens = padded([list(ids) or [hearer.marks.start] for ids in prompts], config.context)
        state = extend(config, hearer.params, state, tokens, lengths, limits)
        slots = fill(state, None, columns, constraint)
        steps = int(limits.max(initial=0))
        slots = advance(config, hearer.params, slots, steps, config.vocabulary)
    ids, ends, logprobs, stopped = jax.device_get(
        (slots.text.history.ids, slots.text.history.length, slots.text.logprobs, slots.text.stopped)
    )
    written = []
    for row, begin in enumerate(lengths):
        own = ids[row, begin : ends[row]].tolist()
        total = logprobs[row, begin : ends[row] + int(stopped[row])].sum()
        written.append(Written(own, float(total) / (len(own) + 1)))
    return written


def constraint_of(hearer: Hearer, choices: tuple[str, ...], limits: np.ndarray) -> Constraint:
    """Returns the tables by which each row writes one of these texts, after a space or at once.

    Raises:
      ConfigError: none of them can be written in the room that there is.
    """
    texts = tuple(text for choice in choices for text in (f" {choice}", choice))
    never = frozenset(np.flatnonzero(hearer.banned[: hearer.tokenizer.vocab_size]).tolist())
    automaton = compiled("choices", texts, hearer.tokenizer, never)
    return jax.device_put(
        join_automata([automaton] * len(limits), hearer.tokenizer, limits.tolist())
    )


def _columns(
    hearer: Hearer, rows: int, timed: bool, temperature: float, seeds: Sequence[tuple[int, int]]
) -> Columns:
    """What each row asks of the engine."""
    size, marks = hearer.config.vocabulary, hearer.marks
    last = marks.first_time if timed else size
    bias = np.where(hearer.banned, -np.inf, 0.0).astype(np.float32)
    if not timed:
        bias[marks.first_time :] = -np.inf

    def every(value: Any, dtype: Any) -> np.ndarray:
        return np.full(rows, value, dtype)

    spoken = Spoken(
        first=every(last, np.int32),
        end=every(marks.end, np.int32),
        latest=every(LATEST, np.int32),
        blank=np.broadcast_to(hearer.blank, (rows, size)),
    )
    shaping = neutral(rows, size)._replace(
        logit_bias=np.broadcast_to(bias, (rows, size)), spoken=spoken
    )
    sampling = Sampling(
        temperature=every(temperature, np.float32),
        top_k=every(size, np.int32),
        top_p=every(1.0, np.float32),
        shaping=shaping,
    )
    pairs = np.asarray([*seeds, *[(0, 0)] * (rows - len(seeds))], np.uint32)
    return Columns(_keys(pairs), sampling, stop=np.full((rows, 1), marks.end, np.int32))


@jax.jit
def _keys(pairs: Int[Array, "B 2"]) -> Array:
    """A key of each row's two numbers."""
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.key(pair[0]), pair[1]))(pairs)
