"""Laws of the transforms of logits: each is what its paper says, a neutral setting changes no bit,
and rows do not touch each other."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import generate
from gptjax.generate import ORDER, History, Sampling, chain, neutral
from gptjax.generate.history import counts, repeats
from gptjax.generate.transforms import border

B, V, S = 50, 40, 24
DRAW = np.random.default_rng(0)
LOGITS = jnp.asarray(3 * DRAW.standard_normal((B, V)), jnp.float32)
CHANCE = np.asarray(jax.nn.softmax(LOGITS, axis=-1), np.float64)
HISTORY = History(
    jnp.asarray(
        DRAW.integers(0, 4, (B, S)), jnp.int32
    ),  # four ids only, so that much repeats itself
    jnp.asarray(DRAW.integers(1, 8, B), jnp.int32),
    jnp.asarray([*DRAW.integers(8, S, B - 1), S], jnp.int32),
)
KEYS = jax.random.split(jax.random.key(1), B)
STOP = jnp.full((B, 4), -1, jnp.int32)


def column(value, dtype=np.float32):
    return jnp.full(B, value, dtype)


def said(row: int) -> list[int]:
    """What the row says."""
    return np.asarray(HISTORY.ids)[row, : int(HISTORY.length[row])].tolist()


def plain(temperature=1.0, top_k=V, top_p=1.0, rows=B) -> Sampling:
    return Sampling(
        jnp.full(rows, temperature, jnp.float32),
        jnp.full(rows, top_k, jnp.int32),
        jnp.full(rows, top_p, jnp.float32),
    )


QUIET = neutral(B, V, 9)


# --- candidates ---


@pytest.mark.parametrize("count", [1, 2, 7, 39])
def test_top_k_keeps_the_largest_as_they_are(count):
    kept = np.asarray(generate.top_k(LOGITS, column(count, np.int32)))
    assert (np.isfinite(kept).sum(axis=1) == count).all()
    np.testing.assert_array_equal(
        np.sort(kept, axis=1)[:, -count:], np.sort(LOGITS, axis=1)[:, -count:]
    )


@pytest.mark.parametrize("mass", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass(mass):
    kept = np.isfinite(np.asarray(generate.top_p(LOGITS, column(mass))))
    assert kept.any(axis=1).all()
    for row, share in zip(kept, CHANCE, strict=True):
        assert share[row].sum() >= mass - 1e-5
        assert share[row].sum() - share[row].min() < mass + 1e-5, "one token fewer would have done"
        assert share[row].min() >= share[~row].max(initial=0)


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9])
def test_typical_p_keeps_the_fewest_tokens_nearest_to_the_entropy(mass):
    kept = np.isfinite(np.asarray(generate.typical_p(LOGITS, column(mass))))
    for row, share in zip(kept, CHANCE, strict=True):
        distance = np.abs(-np.log(share) + (share * np.log(share)).sum())
        assert distance[row].max() <= distance[~row].min(initial=np.inf)
        farthest = share[row][distance[row].argmax()]
        assert share[row].sum() >= mass - 1e-5 and share[row].sum() - farthest < mass + 1e-5


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_min_p_keeps_what_has_its_share_of_the_best(share):
    kept = np.isfinite(np.asarray(generate.min_p(LOGITS, column(share))))
    np.testing.assert_array_equal(kept, share * CHANCE.max(axis=1, keepdims=True) <= CHANCE)


@pytest.mark.parametrize("n", [0.5, 1.0, 2.0])
def test_top_n_sigma_keeps_what_is_within_n_deviations_of_the_best(n):
    masked = LOGITS.at[:, 5:9].set(-jnp.inf)
    rest = np.delete(np.asarray(LOGITS, np.float64), np.s_[5:9], axis=1)
    wanted = np.asarray(masked, np.float64) >= rest.max(axis=1, keepdims=True) - n * rest.std(
        axis=1, keepdims=True
    )
    np.testing.assert_array_equal(np.isfinite(generate.top_n_sigma(masked, column(n))), wanted)


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.4])
def test_xtc_leaves_the_least_likely_of_the_top_choices(threshold):
    struck = np.arange(B) % 2 == 0
    kept = np.isfinite(np.asarray(generate.xtc(LOGITS, column(threshold), jnp.asarray(struck))))
    for row, share, hit in zip(kept, CHANCE, struck, strict=True):
        top = share >= threshold
        gone = top & (share > share[top].min(initial=1)) if hit else np.zeros(V, bool)
        np.testing.assert_array_equal(row, ~gone)


def test_ties_at_the_border_are_all_kept():
    logits = jnp.asarray([[2.0, 1.0, 1.0, 0.0]])

    def one(value):
        return jnp.asarray([value])

    assert np.isfinite(generate.top_k(logits, one(2))).tolist() == [[True, True, True, False]]
    assert np.isfinite(generate.top_p(logits, one(0.7))).tolist() == [[True, True, True, False]]
    assert np.isfinite(
        generate.xtc(jnp.log(jnp.asarray([[0.5, 0.25, 0.25]])), one(0.2), one(True))
    ).tolist() == [[False, True, True]]


def test_the_border_is_exact_for_any_floats():
    """Signs, zeros, infinities and the smallest of floats: the k-th largest is found among all of
    them."""
    odd = np.asarray(
        [0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, 3.4e38, -3.4e38, 1.0, -1.0], np.float32
    )
    values = np.stack([DRAW.permutation(odd) for _ in range(20)])
    for k in range(1, 11):
        found = border(jnp.asarray(values), jnp.ones_like(values), jnp.full(20, k, jnp.float32))[
            :, 0
        ]
        np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, -k])


# --- with a look back ---


def test_counts_are_those_of_what_stands_from_a_place_on():
    found = np.asarray(counts(HISTORY, V, HISTORY.prompt))
    for row in range(B):
        np.testing.assert_array_equal(
            found[row], np.bincount(said(row)[int(HISTORY.prompt[row]) :], minlength=V)
        )


def matches(text: list[int], barrier: frozenset[int] = frozenset()) -> list[int]:
    """`repeats` by trying every length."""

    def longest(j: int) -> int:
        size = 0
        while (
            size < j
            and text[j - size - 1] == text[len(text) - size - 1]
            and text[j - size - 1] not in barrier
        ):
            size += 1
        return size

    return [longest(j) for j in range(len(text))]


def test_repeats_are_the_longest_ends_that_stood_before():
    barred = np.zeros((B, V), bool)
    barred[:, 3] = True
    free, stopped, short = (
        repeats(HISTORY),
        repeats(HISTORY, jnp.asarray(barred)),
        repeats(HISTORY, most=2),
    )
    for row in range(B):
        text, gone = said(row), [-1] * (S - len(said(row)))
        assert free[row].tolist() == matches(text) + gone
        assert stopped[row].tolist() == matches(text, frozenset({3})) + gone
        assert short[row].tolist() == [min(m, 2) for m in matches(text)] + gone


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_sequence_is_written_twice(size):
    banned = ~np.isfinite(
        np.asarray(generate.no_repeat_ngram(LOGITS, HISTORY, column(size, np.int32)))
    )
    for row in range(B):
        text = said(row)
        before = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        assert set(np.flatnonzero(banned[row])) == {
            token for token in range(V) if (*text[len(text) - size + 1 :], token)[-size:] in before
        }


def test_dry_is_multiplier_times_base_to_the_length_beyond_the_allowed():
    barred = np.zeros((B, V), bool)
    barred[:, 3] = True
    allowed, base, multiplier = 1, 1.75, 0.8
    found = np.asarray(
        generate.dry(
            LOGITS,
            HISTORY,
            column(multiplier),
            column(base),
            column(allowed, np.int32),
            jnp.asarray(barred),
        )
    )
    penalised = 0
    for row in range(B):
        wanted, text = np.asarray(LOGITS[row]).copy(), said(row)
        longest: dict[int, int] = {}
        for j, size in enumerate(matches(text, frozenset({3}))):
            longest[text[j]] = max(longest.get(text[j], 0), size)
        for token, size in longest.items():
            if size >= allowed and token != 3:
                wanted[token] -= multiplier * base ** (size - allowed)
                penalised += 1
        np.testing.assert_allclose(found[row], wanted, rtol=1e-5)
    assert penalised > B


def test_dry_of_an_endless_repetition_is_a_number():
    history = History(jnp.zeros((1, 600), jnp.int32), jnp.asarray([1]), jnp.asarray([600]))

    def one(value, dtype=jnp.float32):
        return jnp.asarray([value], dtype)

    found = generate.dry(
        jnp.zeros((1, 3)), history, one(1.0), one(1.75), one(2, jnp.int32), jnp.zeros((1, 3), bool)
    )
    assert found[0, 0] < -1e30 and found[0, 1:].tolist() == [0, 0] and not np.isnan(found).any()


def test_penalties_are_taken_from_what_was_seen():
    seen = counts(HISTORY, V, jnp.zeros(B, jnp.int32))
    count, logits = np.asarray(seen), np.asarray(LOGITS)
    there = count > 0
    repetition = np.where(there, np.where(logits < 0, logits * 1.3, logits / 1.3), logits)
    np.testing.assert_allclose(
        generate.repetition_penalty(LOGITS, seen, column(1.3)), repetition, rtol=1e-6
    )
    np.testing.assert_allclose(
        generate.presence_penalty(LOGITS, seen, column(0.7)),
        logits - 0.7 * there,
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        generate.frequency_penalty(LOGITS, seen, column(0.7)),
        logits - 0.7 * count,
        rtol=1e-5,
        atol=1e-6,
    )


# --- the chain ---

ACTIVE = {
    "min_p": 0.1,
    "typical_p": 0.5,
    "top_n_sigma": 1.0,
    "xtc_probability": 1.0,
    "xtc_threshold": 0.05,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "dry_multiplier": 0.8,
    "dry_base": 1.75,
    "dry_allowed_length": 1,
    "no_repeat_ngram": 2,
    "min_new_tokens": 99,
}  # fmt: skip
"""Every setting of a row that asks for everything."""

shape, choose = jax.jit(chain.shape, static_argnames="order"), jax.jit(chain.choose)


def half_active() -> Sampling:
    """Rows with an even number ask for everything, the others for nothing."""
    odd = np.arange(B) % 2 == 1
    changed = {
        name: jnp.where(odd, getattr(QUIET, name), jnp.asarray(value, getattr(QUIET, name).dtype))
        for name, value in ACTIVE.items()
    }
    bias = QUIET.logit_bias.at[::2, 7].set(2.0).at[::2, 8].set(-jnp.inf)
    sampling = plain()
    k, p, temperature = (
        jnp.where(odd, a, b).astype(a.dtype)
        for a, b in zip(
            (sampling.top_k, sampling.top_p, sampling.temperature), (5, 0.6, 0.5), strict=True
        )
    )
    return Sampling(temperature, k, p, QUIET._replace(**changed, logit_bias=bias))


@pytest.mark.row(19)
def test_a_neutral_setting_changes_no_bit(record_property):
    quiet = plain()._replace(shaping=QUIET)
    np.testing.assert_array_equal(shape(LOGITS, quiet, HISTORY, KEYS, STOP), LOGITS)
    busy = np.asarray(shape(LOGITS, half_active(), HISTORY, KEYS, STOP))
    np.testing.assert_array_equal(
        busy[1::2], LOGITS[1::2], "a row that asks for nothing, beside rows that ask for everything"
    )
    assert (busy[::2] != np.asarray(LOGITS)[::2]).any(axis=1).all()
    record_property("figure", f"{2 * B} rows of neutral settings: all bits the same")


@pytest.mark.parametrize(
    ("transform", "values"),
    {
        "top_k": (V, 10**9),
        "top_p": (1.0,),
        "typical_p": (1.0,),
        "min_p": (0.0,),
        "top_n_sigma": (0.0,),
        "temperature": (1.0, 0.0),
    }.items(),
)
def test_all_candidates_change_nothing(transform, values):
    masked = LOGITS.at[:, 3].set(-jnp.inf)
    for value in values:
        np.testing.assert_array_equal(
            getattr(generate, transform)(
                masked, column(value, np.int32 if transform == "top_k" else np.float32)
            ),
            masked,
        )


def test_what_a_row_gets_does_not_depend_on_its_neighbours():
    sampling, whole = half_active(), shape(LOGITS, half_active(), HISTORY, KEYS, STOP)
    for row in (0, 1, 48):

        def take(leaf, row=row):
            return leaf[row : row + 1]

        alone = shape(*jax.tree.map(take, (LOGITS, sampling, HISTORY, KEYS, STOP)))
        np.testing.assert_array_equal(alone[0], whole[row])


def test_the_chain_is_its_transforms_in_order():
    """Penalties, DRY, top-nσ, top-k, typical-p, top-p, min-p, XTC, temperature, by hand."""
    s = half_active()
    t = s.shaping
    x = generate.logit_bias(LOGITS, t.logit_bias)
    seen, written = counts(HISTORY, V, jnp.zeros(B, jnp.int32)), counts(HISTORY, V, HISTORY.prompt)
    x = generate.repetition_penalty(x, seen, t.repetition_penalty)
    x = generate.frequency_penalty(
        generate.presence_penalty(x, written, t.presence_penalty), written, t.frequency_penalty
    )
    x = generate.no_repeat_ngram(x, HISTORY, t.no_repeat_ngram)
    x = generate.dry(x, HISTORY, t.dry_multiplier, t.dry_base, t.dry_allowed_length, t.dry_breakers)
    x = generate.top_k(generate.top_n_sigma(x, t.top_n_sigma), s.top_k)
    x = generate.min_p(generate.top_p(generate.typical_p(x, t.typical_p), s.top_p), t.min_p)
    x = generate.temperature(generate.xtc(x, t.xtc_threshold, t.xtc_probability > 0), s.temperature)
    found = np.asarray(shape(LOGITS, s, HISTORY, KEYS, STOP))
    assert np.isfinite(found).any(axis=1).all()
    np.testing.assert_allclose(found, x, rtol=1e-6)


def test_the_order_can_be_changed():
    swapped = tuple(name for name in ORDER if name != "temperature")
    flat = plain(temperature=10.0, top_p=0.5)
    late, early = (
        np.isfinite(shape(LOGITS, flat, HISTORY, KEYS, STOP, order)).sum()
        for order in (ORDER, ("temperature", *swapped))
    )
    assert early > late, "a flat distribution needs more tokens for the same mass"


def test_penalties_can_look_at_the_last_tokens_only():
    s = QUIET._replace(repetition_penalty=column(2.0), penalty_window=column(3, np.int32))
    found = np.asarray(shape(LOGITS, plain()._replace(shaping=s), HISTORY, KEYS, STOP))
    for row in range(B):
        assert set(np.flatnonzero(found[row] != np.asarray(LOGITS)[row])) == set(said(row)[-3:])


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_presence_and_frequency_are_those_of_the_answer_alone(name):
    s = QUIET._replace(**{name: column(1.5)})
    found = np.asarray(shape(LOGITS, plain()._replace(shaping=s), HISTORY, KEYS, STOP))
    prompts = np.asarray(HISTORY.prompt)
    for row in range(B):
        changed = np.flatnonzero(found[row] != np.asarray(LOGITS)[row])
        assert set(changed) == set(said(row)[prompts[row] :])
    assert any(set(said(row)[: prompts[row]]) - set(said(row)[prompts[row] :]) for row in range(B))


def test_stop_tokens_wait_for_the_minimum_and_forced_tokens_come():
    written = np.asarray(HISTORY.length - HISTORY.prompt)
    s = QUIET._replace(min_new_tokens=jnp.asarray(written + (np.arange(B) % 2), jnp.int32))
    s = s._replace(forced=s.forced.at[:, 5].set(11))
    found = np.asarray(
        shape(LOGITS, plain()._replace(shaping=s), HISTORY, KEYS, STOP.at[:, 1].set(6))
    )
    forced = written == 5
    assert (
        forced.any()
        and (np.isfinite(found[forced]).sum(axis=1) == 1).all()
        and (found[forced, 11] == 0).all()
    )
    np.testing.assert_array_equal(np.isfinite(found[~forced, 6]), (np.arange(B) % 2 == 0)[~forced])


def test_where_nothing_would_be_left_the_row_keeps_what_it_had():
    s = QUIET._replace(
        no_repeat_ngram=column(1, np.int32),
        logit_bias=jnp.full((B, V), -jnp.inf).at[:, :4].set(0.0),
    )
    found = np.isfinite(np.asarray(shape(LOGITS, plain()._replace(shaping=s), HISTORY, KEYS, STOP)))
    assert found.any(axis=1).all() and not found[:, 4:].any()


# --- draws ---

DRAWS = 100_000


def chi_square(found: np.ndarray, wanted: np.ndarray) -> float:
    """The probability of counts at least as far from the wanted shares as those that were found; 0
    if an impossible one was."""
    if found[wanted == 0].sum():
        return 0.0
    expected = found.sum() * wanted[wanted > 0]
    statistic = float(((found[wanted > 0] - expected) ** 2 / expected).sum())
    return (
        float(jax.scipy.special.gammaincc((len(expected) - 1) / 2, statistic / 2))
        if len(expected) > 1
        else 1.0
    )


FEW = np.random.default_rng(5).standard_normal(16) * 1.5


@functools.partial(jax.jit, static_argnames="full")
def many(logits, sampling: Sampling, seed, full: bool = False):
    rows = jnp.broadcast_to(logits.astype(jnp.float32), (DRAWS, 16))
    none = jnp.zeros(DRAWS, jnp.int32)
    history = History(none[:, None], none, none)
    sampling = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (DRAWS, *leaf.shape[1:])), sampling)
    found = generate.choose(
        rows,
        sampling,
        history,
        jax.random.split(jax.random.key(seed), DRAWS),
        jnp.full((DRAWS, 1), -1),
    )
    return jnp.bincount(found, length=16)


@pytest.mark.row(19)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 16, 1.0),
        (0.5, 16, 1.0),
        (2.0, 16, 1.0),
        (1.0, 5, 1.0),
        (1.0, 16, 0.8),
        (0.7, 9, 0.9),
        (1.5, 16, 0.3),
    ],
)
def test_draws_follow_the_distribution(temperature, top_k, top_p, record_property):
    """Chi-square of 100,000 draws against the distribution computed by hand: top-k, then top-p,
    then temperature."""
    order = np.argsort(-FEW)[:top_k]
    chance = np.exp(FEW[order]) / np.exp(FEW[order]).sum()
    order = order[: 1 + int((np.cumsum(chance) < top_p).sum())] if top_p < 1 else order
    wanted = np.zeros(16)
    wanted[order] = np.exp(FEW[order] / temperature) / np.exp(FEW[order] / temperature).sum()
    p = chi_square(np.asarray(many(FEW, plain(temperature, top_k, top_p, rows=1), 11)), wanted)
    record_property("figure", f"chi-square p = {p:.3f} over {DRAWS} draws")
    assert p > 0.001


def test_xtc_strikes_as_often_as_it_should():
    s = plain(rows=1, top_k=16)._replace(
        shaping=neutral(1, 16)._replace(
            xtc_probability=jnp.asarray([0.3]), xtc_threshold=jnp.asarray([0.1])
        )
    )
    chance = np.exp(FEW) / np.exp(FEW).sum()
    top = chance >= 0.1
    assert top.sum() > 1
    struck = np.where(top & (chance > chance[top].min()), 0, chance)
    assert (
        chi_square(np.asarray(many(FEW, s, 3)), 0.7 * chance + 0.3 * struck / struck.sum()) > 0.001
    )


@pytest.mark.row(19)
def test_greedy_takes_the_largest(record_property):
    history = History(jnp.zeros((B, 1), jnp.int32), *(jnp.zeros(B, jnp.int32),) * 2)
    for other in (plain(0.0), plain(0.0, 5, 0.3), plain(1.0, 1), plain(1.0, V, 1e-9), plain(1e-6)):
        np.testing.assert_array_equal(
            choose(LOGITS, other, history, KEYS, STOP), LOGITS.argmax(axis=1)
        )
    record_property("figure", f"greedy = argmax in {5 * B} of {5 * B} rows")


def test_keys_may_be_mapped_over():
    """What the documentation shows: one row of logits, many keys."""
    history = History(jnp.zeros((1, 1), jnp.int32), *(jnp.zeros(1, jnp.int32),) * 2)

    def one(key):
        return choose(LOGITS[:1], plain(rows=1), history, key[None], STOP[:1])[0]

    keys = jax.random.split(jax.random.key(0), 20)
    assert jax.vmap(one)(keys).tolist() == [int(one(key)) for key in keys]


def test_gradients_pass_the_chain():
    """d ln p(token) / d logits through temperature and top-p is that of the softmax over what is
    kept."""
    logits = LOGITS[:1]
    history = History(jnp.zeros((1, 1), jnp.int32), *(jnp.zeros(1, jnp.int32),) * 2)
    sampling, best = plain(0.5, rows=1, top_p=0.9), int(logits[0].argmax())

    def loss(x):
        return jax.nn.log_softmax(shape(x, sampling, history, KEYS[:1], STOP[:1]))[0, best]

    found = np.asarray(jax.grad(loss)(logits))[0]
    kept = np.isfinite(np.asarray(generate.top_p(logits, jnp.asarray([0.9]))))[0]
    p = np.where(kept, np.exp(np.asarray(logits, np.float64)[0] / 0.5), 0)
    np.testing.assert_allclose(found, ((np.arange(V) == best) - p / p.sum()) / 0.5, atol=1e-5)
    assert math.isfinite(found.sum())
