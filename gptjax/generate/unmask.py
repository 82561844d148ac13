"""Writing by filling in masks, with models of masked diffusion.

An answer begins as masks behind its prompt. Step by step all of them are guessed, each from
everything that is visible, and the best guesses stay; the others are masks again. Blocks of an
answer are filled one after the other.

Read `Unmasking` (the settings of rows), then `unmask`, the compiled loop over blocks.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Bool, Float, Int, Keys, Params
from gptjax.core.config import require
from gptjax.generate.chain import ORDER, Sampling, draw, shape, token_keys
from gptjax.generate.decode import Text, within, writing
from gptjax.generate.history import History
from gptjax.generate.settings import GenerateConfig
from gptjax.generate.transforms import guidance
from gptjax.model import ModelConfig


class Unmasking(NamedTuple):
    """How each row fills in its masks."""

    steps: Int[Array, " B"]
    """Forward passes for the whole answer; each block has an equal share, at least one."""
    block: Int[Array, " B"]
    """Tokens of a block."""
    shuffled: Bool[Array, " B"]
    """Which guesses stay is drawn; otherwise the most likely ones do."""
    scale: Float[Array, " B"] | None
    """Guidance away from the answer without a prompt; `None` if no row asks for it."""
    mask: Int[Array, ""]
    """Id of a mask."""


@functools.partial(jax.jit, static_argnames="slots")
def begin_masks(
    prompt: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    limit: Int[Array, " B"],
    mask: Int[Array, ""],
    *,
    slots: int,
) -> Text:
    """Returns rows that hold their prompts, and behind them nothing but masks."""
    rows, width = prompt.shape
    ids = jnp.full((rows, slots), mask, jnp.int32).at[:, :width].set(prompt)
    ids = jnp.where(jnp.arange(slots)[None] < lengths[:, None], ids, mask)
    none = jnp.zeros((rows,), bool)
    return Text(
        history=History(ids, lengths, lengths),
        limit=limit,
        logprobs=jnp.zeros((rows, slots)),
        alternatives=None,
        finished=limit <= 0,
        stopped=none,
    )


@functools.partial(jax.jit, static_argnames=("config", "widest", "order"), donate_argnames="text")
def unmask(
    config: ModelConfig,
    params: Params,
    text: Text,
    keys: Keys,
    sampling: Sampling,
    how: Unmasking,
    stop: Int[Array, "B stops"],
    until: Int[Array, ""],
    vocabulary: Int[Array, ""],
    *,
    widest: int,
    order: tuple[str, ...] = ORDER,
) -> Text:
    """Fills in blocks until each row is finished or has `until` tokens. `text` is used up.

    What a row writes depends on its own prompt, key and settings alone. A block with a stop token
    ends the row; the stop token and what is behind it are no part of the text.

    Args:
      keys: one key per row; the guess for a place is drawn with a key of block, step and place.
      widest: at least the tokens of any block; static.

    Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, section 2.4 and algorithms 4 and 5 (low
    confidence and random remasking, semi-autoregressive blocks).
    """

    def going(text: Text) -> Bool[Array, ""]:
        return jnp.any(writing(text, until))

    def one(text: Text) -> Text:
        active = writing(text, until)
        filled = _filled(
            config, params, text, keys, sampling, how, vocabulary, active, widest, order
        )
        return _ended(filled, how, stop, active)

    return jax.lax.while_loop(going, one, text)


def _filled(config, params, text, keys, sampling, how, vocabulary, active, widest, order) -> Text:
    """The text with the next block of each active row filled in."""
    prompt, start = text.history.prompt, text.history.length
    rows = jnp.arange(len(start))[:, None]
    size = jnp.where(active, _size(text, how), 0)
    blocks = -(-text.limit // how.block)
    steps = jnp.clip(-(-how.steps // jnp.maximum(blocks, 1)), 1, jnp.maximum(size, 1))
    offset = jnp.arange(widest)[None]
    place = jnp.where(offset < size[:, None], start[:, None] + offset, text.logprobs.shape[1])
    keys = token_keys(keys, start - prompt)

    def one(i: Array, state: tuple) -> tuple:
        ids, logprobs, hidden = state
        own, guided = _logits(config, params, ids, text, place, how, vocabulary)
        at = jax.vmap(lambda key: jax.vmap(lambda n: jax.random.fold_in(key, n))(offset[0]))(
            token_keys(keys, jnp.full_like(start, i))
        )
        guess = _guesses(guided, sampling, at, order)

        def of_guess(logp: Array) -> Array:
            return jnp.take_along_axis(logp, guess[..., None], axis=-1)[..., 0]

        drawn = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1))))(at)
        worth = jnp.where(
            how.shuffled[:, None], drawn, of_guess(jax.nn.log_softmax(guided, axis=-1))
        )
        count = jnp.where(i < steps, size // steps + (i < size % steps), 0)
        stay = hidden & (_rank(jnp.where(hidden, worth, -jnp.inf)) < count[:, None])
        where = jnp.where(stay, place, ids.shape[1])
        return (
            ids.at[rows, where].set(guess, mode="drop"),
            logprobs.at[rows, where].set(of_guess(jax.nn.log_softmax(own, -1)), mode="drop"),
            hidden & ~stay,
        )

    begin = text.history.ids, text.logprobs, offset < size[:, None]
    ids, logprobs, _ = jax.lax.fori_loop(0, jnp.max(jnp.where(active, steps, 0)), one, begin)
    return text._replace(history=text.history._replace(ids=ids), logprobs=logprobs)


def _size(text: Text, how: Unmasking) -> Int[Array, " B"]:
    """The tokens of each row's next block; its last one may be shorter."""
    written = text.history.length - text.history.prompt
    return jnp.minimum(how.block, text.limit - written)


def _rank(worth: Float[Array, "B W"]) -> Int[Array, "B W"]:
    """The number of places of a row that are worth more; of equals, the first is."""
    best = jnp.argsort(-worth, axis=1, stable=True)
    return jnp.argsort(best, axis=1, stable=True)


def _logits(
    config: ModelConfig,
    params: Params,
    ids: Int[Array, "B S"],
    text: Text,
    place: Int[Array, "B W"],
    how: Unmasking,
    vocabulary: Int[Array, ""],
) -> tuple[Float[Array, "B W V"], Float[Array, "B W V"]]:
    """The logits at some places of each row, under the model itself and with guidance. A mask is
    never a guess."""
    slots = jnp.arange(ids.shape[1])[None]
    end = text.history.prompt + text.limit
    positions = jnp.where(slots < end[:, None], slots, -1)

    def read(ids: Array) -> Array:
        hidden = model.forward(config, params, ids, positions=positions).hidden
        index = jnp.minimum(place, ids.shape[1] - 1)[..., None]
        logits = model.unembed(config, params, jnp.take_along_axis(hidden, index, axis=1))
        known = within(logits.astype(jnp.float32), vocabulary)
        return jnp.where(jnp.arange(known.shape[-1]) == how.mask, -jnp.inf, known)

    own = read(ids)
    if how.scale is None:
        return own, own
    without = read(jnp.where(slots < text.history.prompt[:, None], how.mask, ids))
    scale = jnp.repeat(how.scale, place.shape[1])
    moved = guidance(_flat(own), _flat(without), scale)
    return own, moved.reshape(own.shape)


def _flat(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _guesses(
    logits: Float[Array, "B W V"], sampling: Sampling, keys: Array, order: tuple[str, ...]
) -> Int[Array, "B W"]:
    """A token for each place, drawn by itself."""
    rows, width, _ = logits.shape
    each = jax.tree.map(lambda leaf: jnp.repeat(leaf, width, axis=0), sampling)
    none = jnp.zeros((rows * width,), jnp.int32)
    history = History(none[:, None], none, none)  # no transform in use looks back
    shaped = shape(_flat(logits), each, history, _flat(keys), none[:, None] - 1, order)
    return draw(shaped, each.temperature, _flat(keys)).reshape(rows, width)


def _ended(
    text: Text, how: Unmasking, stop: Int[Array, "B stops"], active: Bool[Array, " B"]
) -> Text:
    """The text whose active rows have one more block, up to their first stop token."""
    ids, prompt, length, known = text.history
    size = jnp.where(active, _size(text, how), 0)
    place = jnp.arange(ids.shape[1])[None]
    inside = (place >= length[:, None]) & (place < (length + size)[:, None])
    hit = inside & jnp.any(ids[:, :, None] == stop[:, None, :], axis=-1)
    stopped = jnp.any(hit, axis=1)
    length = jnp.where(stopped, jnp.argmax(hit, axis=1), length + size)
    finished = text.finished | stopped | (active & (length - prompt >= text.limit))
    return text._replace(
        history=History(ids, prompt, length, known),
        finished=finished,
        stopped=text.stopped | stopped,
    )


# --- what can be asked for

_PER_TOKEN = (
    *("shaped", "beams", "contrastive_alpha", "lookup", "kv_cache"),
    *("top_logprobs", "prompt_logprobs", "negative_prompt"),
)
"""Settings that need one token after another."""


def check_unmasking(settings: GenerateConfig, fills_in: bool) -> None:
    """Refuses settings of the other way of writing.

    Args:
      fills_in: the model writes by filling in masks.

    Raises:
      ConfigError: names the setting.
    """
    plain = GenerateConfig()
    if not fills_in:
        for name in ("block_length", "denoising_steps", "remasking"):
            require(
                getattr(settings, name) == getattr(plain, name),
                f"{name} is {getattr(settings, name)}, and this model writes one token after"
                f" another; omit it (--{name.replace('_', '-')}).",
            )
        return
    for name in _PER_TOKEN:
        default = getattr(plain, name)
        what = "a setting that shapes single tokens" if name == "shaped" else name
        require(
            getattr(settings, name) == default,
            f"{what} is set, and this model fills in masks, all at once; omit it (temperature,"
            " top_k, top_p, guidance, stop, num_samples and best_of work).",
        )
