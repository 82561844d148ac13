"""Proofs about generation: the cache loses nothing and adds nothing, and a row is generated as if
it were alone. (Setting) → Figure."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.generate import Generated, Sampling, generate
from gptjax.verify.reading import ROUNDING
from gptjax.verify.setting import Figure, Setting, difference, unpacked_places

ROWS = 4


def cache(setting: Setting) -> Figure:
    """Compares a forward pass over ragged rows with a cache, in chunks and token by token, with a
    false start that is rolled back, to one without."""
    tokens, (rows, length) = setting.batch.tokens, setting.batch.tokens.shape
    wanted = np.asarray(
        setting.functions.hidden(setting.params, tokens, *unpacked_places(rows, length))
    )
    width, row = length // 2, np.arange(rows)
    first = np.asarray([width, 3 * width // 8, 1, 5 * width // 8])[row % 4]
    second = np.where(row % 4 == 3, 0, np.minimum(width, length - 4 - first))
    one, none = np.ones(rows, int), np.zeros(rows, int)
    known, remembered, worst = (
        none,
        model.with_undo(model.empty_cache(setting.exact, rows, length, at_once=width), 1),
        0.0,
    )
    for new, columns, false_start in (
        (first, width, False),
        (one, 1, True),
        (second, width, False),
        (one, 1, False),
        (row % 2, 1, False),
        (one, 1, False),
    ):
        place = known[:, None] + np.arange(columns)
        real = np.arange(columns) < new[:, None]
        ids = np.where(real, np.take_along_axis(tokens, np.minimum(place, length - 1), axis=1), 0)
        where = np.where(real, place, -1).astype(np.int32)
        if false_start:
            ids = (ids + 1) % setting.exact.vocabulary
        found, remembered = setting.functions.cached(setting.params, ids, where, remembered)
        if false_start:
            remembered = model.rollback(remembered, jnp.asarray(known, jnp.int32))
            continue
        at = np.nonzero(real)
        worst = max(worst, difference(np.asarray(found)[at], wanted[at[0], where[at]]))
        known = known + new
    return Figure(
        worst, ROUNDING, "relative difference of the hidden states with a cache from those without"
    )


def continue_rows(
    setting: Setting, params: Any, temperature: np.ndarray, seed: int = 0, only: int | None = None
) -> tuple[Generated, np.ndarray, np.ndarray]:
    """Continues ragged prompts from the batch's rows [4]; returns the output, the prompts and their
    lengths. `only` selects one row, alone."""
    length = setting.batch.tokens.shape[1]
    prompt, row = np.resize(setting.batch.tokens, (ROWS, length))[:, : length // 2], np.arange(ROWS)
    # alone, the third row is padded to another width than together
    lengths = np.asarray([length // 2, length // 4 + 1, length // 8, 3 * length // 8])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), row)
    size = setting.data.tokenizer.vocab_size
    rows = slice(None) if only is None else slice(only, only + 1)
    sampling = Sampling(
        temperature[rows], np.full(ROWS, size, np.int32)[rows], np.ones(ROWS, np.float32)[rows]
    )
    with jax.default_matmul_precision("highest"):
        out = generate(
            setting.exact,
            params,
            prompt[rows],
            lengths[rows],
            keys[rows],
            sampling=sampling,
            new_tokens=min(16, length // 4),
            vocabulary=size,
        )
    return out, prompt[rows], lengths[rows]


TEMPERATURES = np.asarray([0, 1, 0, 0.7], np.float32)


def decoding(setting: Setting) -> Figure:
    """Passes generated texts through the model again, without a cache: each token must have the
    same ln p, and a greedy one must be the most likely."""
    out, prompt, lengths = continue_rows(setting, setting.params, TEMPERATURES)
    count, size, (rows, length) = (
        out.ids.shape[1],
        setting.data.tokenizer.vocab_size,
        setting.batch.tokens.shape,
    )
    apart = []
    for row in range(ROWS):
        text = np.concatenate([prompt[row, : lengths[row]], out.ids[row]])
        padded = np.zeros((rows, length), np.int32)
        padded[:, : len(text)] = text
        states = setting.functions.hidden(setting.params, padded, *unpacked_places(rows, length))
        logits = np.asarray(setting.functions.logits(setting.params, states[0]), np.float64)[
            lengths[row] - 1 : len(text) - 1, :size
        ]
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        chosen = logprobs[np.arange(count), out.ids[row]]
        apart += [np.abs(chosen - out.logprobs[row]).max()]
        apart += [(logprobs.max(axis=-1) - chosen).max()] if TEMPERATURES[row] == 0 else []
    return Figure(
        np.max(apart),
        1e-4,
        "nats between ln p of the tokens when generated and in a forward pass without a cache",
    )


def neighbours(setting: Setting) -> Figure:
    """Generates four rows together and each alone: the same tokens, greedy and sampled."""
    together = continue_rows(setting, setting.params, TEMPERATURES)[0]
    alone = [
        continue_rows(setting, setting.params, TEMPERATURES, only=row)[0].ids[0]
        for row in range(ROWS)
    ]
    return Figure(
        int((np.stack(alone) != together.ids).sum()),
        0,
        f"of {together.ids.size} tokens change when a row has neighbours",
    )
