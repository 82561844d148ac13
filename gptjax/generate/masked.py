"""Masked tokens of texts, filled in by an encoder (BERT)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.data.layouts import Piece, filled
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats.opened import MASKS
from gptjax.generate.decode import padded_size
from gptjax.model import ModelConfig

MASK = "[MASK]"
"""How a text names a hidden token, whatever the tokenizer calls it."""


class Filled(NamedTuple):
    """A text whose masks are filled in."""

    prompt: str
    text: str
    """The prompt with the likeliest piece in place of each mask."""
    candidates: list[list[tuple[str, float]]]
    """Of each mask, the likeliest pieces with their ln p, the likeliest first."""


def fill_masks(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    top: int = 5,
    batch: int = 8,
    mask: int | None = None,
) -> Iterator[Filled]:
    """Yields each text with its masks filled in, each as if the others stayed hidden.

    Args:
      texts: with `[MASK]` where a token is hidden.
      top: number of candidates of each mask.
      mask: the id of a hidden token, as the model's task has it; see `mask_id`.

    Raises:
      ConfigError: the model hides no tokens, or a text has no mask or does not fit the context.
    """
    require(
        not (config.causal or config.classes),
        "this model does not fill in masked tokens: it is no encoder over tokens (BERT).",
    )
    top, mask = min(top, tokenizer.vocab_size), mask_id(config, tokenizer, mask)
    for i in range(0, len(texts), batch):
        these = list(texts[i : i + batch])
        rows = [hidden_ids(config, tokenizer, text, mask) for text in these]
        pieces = [
            [Piece(ids, ids, np.zeros(len(ids)))] for ids in rows + rows[:1] * (batch - len(rows))
        ]
        longest = max(len(row[0].tokens) for row in pieces)
        logprobs = _logprobs(
            config,
            params,
            filled(pieces, padded_size(longest, config.context)),
            tokenizer.vocab_size,
        )
        for n, (text, ids) in enumerate(zip(these, rows, strict=True)):
            places = np.flatnonzero(ids == mask)
            likely = np.asarray(logprobs[n])[places]
            best = np.argsort(-likely, axis=-1, kind="stable")[:, :top]
            found = [
                [(tokenizer.decode(np.array([i])), float(p[i])) for i in ids]
                for p, ids in zip(likely, best, strict=True)
            ]
            yield Filled(text, _written(text, [each[0][0] for each in found]), found)


def hidden_ids(config: ModelConfig, tokenizer: Tokenizer, text: str, mask: int) -> np.ndarray:
    """Returns the ids of a text with masks, between those that begin and end texts in training.

    Args:
      mask: the id of a hidden token.

    Raises:
      ConfigError: it has no mask, or is longer than the context.
    """
    parts = text.split(MASK)
    require(
        len(parts) > 1,
        f"this model fills in masked tokens, and the prompt {text[:60]!r} has none; write {MASK}"
        ' for each: --prompt "The cat [MASK] on the mat."',
    )
    swallows = any(c.lstrip for c in tokenizer.controls.values() if c.id == mask)
    inner = []
    for n, part in enumerate(parts):
        shown = part.rstrip() if swallows and n < len(parts) - 1 else part
        inner += [*([mask] if n else []), *tokenizer.encode(shown).tolist()]
    ids = between_marks(tokenizer, inner)
    require(
        len(ids) <= config.context,
        f"a prompt has {len(ids)} tokens and the context is {config.context}; shorten it.",
    )
    return np.asarray(ids, np.int32)


def between_marks(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Returns ids between those that begin and end a text of an encoder, as far as the tokenizer
    has them."""
    before, after = tokenizer.around
    if after:
        return [*before, *ids, *after]
    named = {name: control.id for name, control in tokenizer.controls.items()}
    begin, end = named.get("[CLS]", tokenizer.end_of_document), named.get("[SEP]")
    return [*([] if begin is None else [begin]), *ids, *([] if end is None else [end])]


def mask_id(config: ModelConfig, tokenizer: Tokenizer, mask: int | None) -> int:
    """Returns the id of a hidden token: the task's; or the one after the tokenizer's last, if the
    model has it; or the tokenizer's own.

    Raises:
      ConfigError: there is none of these.
    """
    size = tokenizer.vocab_size
    own = [tokenizer.controls[name].id for name in MASKS if name in tokenizer.controls]
    ids = [mask] if mask is not None else [size] if config.vocabulary > size else own
    require(
        bool(ids),
        f"the tokenizer has no {MASK}, and the model no id beside the tokenizer's; it has not been"
        " trained to fill in masked tokens.",
    )
    return ids[0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logprobs(config: ModelConfig, params: Params, batch: Any, vocab_size: int) -> Any:
    """ln p [B T V] of the tokenizer's ids at each position."""
    hidden = model.forward(
        config, params, batch.tokens, positions=batch.positions, segments=batch.segments
    ).hidden
    logits = model.unembed(config, params, hidden)[..., :vocab_size]
    return jax.nn.log_softmax(logits.astype(jnp.float32))


def _written(text: str, pieces: list[str]) -> str:
    """The text with a piece in place of each mask; a piece's own space is dropped after another."""
    first, *rest = text.split(MASK)
    for piece, part in zip(pieces, rest, strict=True):
        first += (piece.lstrip() if not first or first[-1].isspace() else piece) + part
    return first
