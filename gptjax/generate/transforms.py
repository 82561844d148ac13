"""Transforms of logits, one pure function each. Every setting is an array with one value per row,
so that other settings recompile nothing.

First those that look only at the logits, then those that look back at the row's history, then those
that name ids. With a setting at its neutral value the logits are bit-for-bit unchanged. `chain`
applies them in order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Float, Int
from gptjax.generate.history import History, repeats


def temperature(logits: Float[Array, "B V"], value: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Divides by the temperature; below 1 the likely become likelier. A row at 0 is
    unchanged: `draw` takes its maximum."""
    return logits / jnp.where(value > 0, value, 1.0)[:, None]


def top_k(logits: Float[Array, "B V"], count: Int[Array, " B"]) -> Float[Array, "B V"]:
    """Keeps the `count` largest logits of each row; the rest become -inf. Ties at the border are
    all kept.

    Source: Fan et al. 2018, Hierarchical Neural Story Generation, arXiv:1805.04833, section 5.1.
    """
    wanted = jnp.clip(count, 1, logits.shape[1]).astype(jnp.float32)
    return _keep(logits >= border(logits, jnp.ones_like(logits), wanted), logits)


def top_p(logits: Float[Array, "B V"], mass: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Keeps the most likely tokens until their probability reaches `mass`; the rest become -inf.

    At least one token always remains. Ties at the border are all kept. A mass of 1 changes nothing.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, arXiv:1904.09751,
    section 3.1.
    """
    kept = logits >= border(logits, jax.nn.softmax(logits, axis=-1), mass)
    return _keep(kept | (mass >= 1)[:, None], logits)


def typical_p(logits: Float[Array, "B V"], mass: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Keeps the tokens whose surprise is nearest to the entropy until their probability reaches
    `mass`; the rest become -inf.

    Ties at the border are all kept. A mass of 1 changes nothing.

    Source: Meister et al. 2022, Locally Typical Sampling, arXiv:2202.00666, section 4.
    """
    logp = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(logp)
    entropy = -jnp.sum(jnp.where(p > 0, p * logp, 0.0), axis=-1, keepdims=True)
    nearness = -jnp.abs(-logp - entropy)
    return _keep((nearness >= border(nearness, p, mass)) | (mass >= 1)[:, None], logits)


def min_p(logits: Float[Array, "B V"], share: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Keeps the tokens that have at least this share of the most likely token's probability; 0
    changes nothing.

    Source: Nguyen et al. 2024, Turning Up the Heat: Min-p Sampling, arXiv:2407.01082, section 3.
    """
    p = jax.nn.softmax(logits, axis=-1)
    return _keep(p >= share[:, None] * jnp.max(p, axis=-1, keepdims=True), logits)


def top_n_sigma(logits: Float[Array, "B V"], n: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Keeps the logits within n standard deviations of the largest; the rest become -inf. 0 changes
    nothing.

    Logits of -inf don't count towards the deviation.

    Source: Tang et al. 2024, Top-nσ: Not All Logits Are You Need, arXiv:2411.07641, section 3.
    """
    finite = jnp.isfinite(logits)
    sigma = jnp.std(logits, axis=-1, keepdims=True, where=finite)
    return _keep(
        (logits >= jnp.max(logits, axis=-1, keepdims=True) - n[:, None] * sigma)
        | (n <= 0)[:, None],
        logits,
    )


def xtc(
    logits: Float[Array, "B V"], threshold: Float[Array, " B"], struck: Bool[Array, " B"]
) -> Float[Array, "B V"]:
    """Excludes the top choices: of the tokens at `threshold` or more only the least likely stays.
    Rows not `struck` are unchanged.

    The caller draws which rows are struck. With fewer than two such tokens nothing changes.
    Ties at the least likely all stay.

    Source: P. E. Weidmann 2024, Exclude Top Choices, oobabooga/text-generation-webui pull request
    6335.
    """
    p = jax.nn.softmax(logits, axis=-1)
    top = p >= threshold[:, None]
    least = jnp.min(jnp.where(top, p, jnp.inf), axis=-1, keepdims=True)
    return _keep(~(top & (p > least) & struck[:, None]), logits)


def border(
    values: Float[Array, "B V"], weights: Float[Array, "B V"], amount: Float[Array, " B"]
) -> Float[Array, "B 1"]:
    """The largest value of each row such that all values from it on weigh `amount` together; the
    smallest if they never do.

    One search serves top-k (every weight is 1), top-p (weights are probabilities) and typical-p
    (values are nearness). Halving the 32 bits of a float, whose order as integers is the order of
    the values, finds it exactly, without a sort.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    rank = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        enough = (
            jnp.sum(jnp.where(rank >= middle, weights, 0.0), axis=-1, keepdims=True)
            >= amount[:, None]
        )
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    ends = jnp.min(rank, axis=-1, keepdims=True), jnp.max(rank, axis=-1, keepdims=True)
    low, _ = jax.lax.fori_loop(0, 32, halve, ends)
    return jax.lax.bitcast_convert_type(jnp.where(low < 0, low ^ 0x7FFFFFFF, low), jnp.float32)


def _keep(kept: Bool[Array, "B V"], logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
    return jnp.where(kept, logits, -jnp.inf)


# --- of the history


def repetition_penalty(
    logits: Float[Array, "B V"], seen: Int[Array, "B V"], penalty: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Divides the logits of ids that were seen (a count above 0) by the penalty, or multiplies
    where they are negative; 1 changes nothing.

    Source: Keskar et al. 2019, CTRL, arXiv:1909.05858, section 4.1.
    """
    value = penalty[:, None]
    return jnp.where(seen > 0, jnp.where(logits < 0, logits * value, logits / value), logits)


def presence_penalty(
    logits: Float[Array, "B V"], seen: Int[Array, "B V"], penalty: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Subtracts the penalty from the logit of each id that was seen; 0 changes nothing.

    Source: OpenAI, API reference, `presence_penalty`.
    """
    return jnp.where(seen > 0, logits - penalty[:, None], logits)


def frequency_penalty(
    logits: Float[Array, "B V"], seen: Int[Array, "B V"], penalty: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Subtracts the penalty from the logit of each id as often as it was seen; 0 changes nothing.

    Source: OpenAI, API reference, `frequency_penalty`.
    """
    return jnp.where(seen > 0, logits - seen.astype(jnp.float32) * penalty[:, None], logits)


def dry(
    logits: Float[Array, "B V"],
    history: History,
    multiplier: Float[Array, " B"],
    base: Float[Array, " B"],
    allowed: Int[Array, " B"],
    breakers: Bool[Array, "B V"],
) -> Float[Array, "B V"]:
    """Subtracts multiplier · base^(length − allowed) from the logits of tokens that would prolong a
    repetition.

    The length is that of the longest end of the row that the token followed before; below
    `allowed` nothing changes. A repetition never spans a breaker, and breakers have no penalty. A
    multiplier of 0 changes nothing.

    Source: P. E. Weidmann 2024, DRY, oobabooga/text-generation-webui pull request 5677.
    """
    rows, size = logits.shape
    matched = repeats(history, breakers)
    unseen = jnp.full((rows, size), -1, jnp.int32)
    longest = unseen.at[jnp.arange(rows)[:, None], jnp.where(matched > 0, history.ids, size)].max(
        matched, mode="drop"
    )
    power = jnp.minimum(
        longest - allowed[:, None], 80.0 / jnp.log(jnp.maximum(base, 1.0 + 1e-6))[:, None]
    )  # e^80 is still a float
    penalty = multiplier[:, None] * base[:, None] ** power
    wrong = (longest >= allowed[:, None]) & (longest > 0) & ~breakers & (multiplier > 0)[:, None]
    return jnp.where(wrong, logits - penalty, logits)


def no_repeat_ngram(
    logits: Float[Array, "B V"], history: History, size: Int[Array, " B"]
) -> Float[Array, "B V"]:
    """Forbids tokens that would repeat a sequence of `size` ids of the row; 0 changes nothing.

    Source: Paulus et al. 2017, A Deep Reinforced Model for Abstractive Summarization,
    arXiv:1705.04304, section 2.5.
    """
    rows, vocabulary = logits.shape
    again = (repeats(history) >= size[:, None] - 1) & (size > 0)[:, None]
    again &= jnp.arange(history.ids.shape[1])[None] < history.length[:, None]
    banned = (
        jnp.zeros((rows, vocabulary), bool)
        .at[jnp.arange(rows)[:, None], jnp.where(again, history.ids, vocabulary)]
        .set(True, mode="drop")
    )
    return _keep(~banned, logits)


# --- of named ids


def logit_bias(logits: Float[Array, "B V"], bias: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """Adds the bias; -inf bans an id, and 0 changes nothing."""
    return jnp.where(bias == 0, logits, logits + bias)


def min_new_tokens(
    logits: Float[Array, "B V"],
    written: Int[Array, " B"],
    least: Int[Array, " B"],
    stop: Int[Array, "B stops"],
) -> Float[Array, "B V"]:
    """Forbids the ids that stop a row (−1 matches none) until it has written `least` tokens."""
    rows, size = logits.shape
    early = (written < least)[:, None] & (stop >= 0)
    banned = (
        jnp.zeros((rows, size), bool)
        .at[jnp.arange(rows)[:, None], jnp.where(early, stop, size)]
        .set(True, mode="drop")
    )
    return _keep(~banned, logits)


def forced_tokens(
    logits: Float[Array, "B V"], written: Int[Array, " B"], forced: Int[Array, "B M"]
) -> Float[Array, "B V"]:
    """Keeps only the id that is forced as the next token, with logit 0; −1 forces nothing."""
    most = forced.shape[1]
    wanted = jnp.take_along_axis(forced, jnp.minimum(written, most - 1)[:, None], axis=1)
    wanted = jnp.where(written[:, None] < most, wanted, -1)
    alone = jnp.where(jnp.arange(logits.shape[1])[None] == wanted, 0.0, -jnp.inf)
    return jnp.where(wanted >= 0, alone, logits)


def guidance(
    logits: Float[Array, "B V"], negative: Float[Array, "B V"], scale: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Moves log-probabilities away from those after a negative prompt: negative + scale · (logits −
    negative). 1 changes nothing, and what has no probability keeps none.

    Source: Sanchez et al. 2023, Stay on topic with Classifier-Free Guidance, arXiv:2306.17806,
    equation 7.
    """
    logp, other = jax.nn.log_softmax(logits, axis=-1), jax.nn.log_softmax(negative, axis=-1)
    moved = jnp.where(jnp.isneginf(logp), logp, other + scale[:, None] * (logp - other))
    return jnp.where((scale == 1)[:, None], logits, moved)
