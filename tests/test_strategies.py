"""Laws of the ways of writing: each gives what its definition gives by an uncached reading, token
by token, without cleverness.

Read `judge` (the model as a table of log-probabilities) and `Slow` (every strategy by brute force),
then the laws.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import ROPE

from gptjax import generate, model
from gptjax.core.config import ConfigError
from gptjax.data import Characters
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate import Draft, GenerateConfig
from gptjax.generate.batch import batch_of, room_for
from gptjax.generate.chain import Sampling
from gptjax.generate.ids import tokens_so_far
from gptjax.generate.request import requests
from gptjax.generate.speculative import Guesses, Speculating, accept, look_up
from gptjax.generate.strategies import open_writer

LETTERS = "abcdefghijk"
TOKENIZER = tokenizers.train_tokenizer(Characters(), [LETTERS])
END = TOKENIZER.end_of_document
V = TOKENIZER.vocab_size
CONFIG = dataclasses.replace(ROPE, vocab_size=V, num_kv_heads=2, num_layers=1, context=32)
SMALLER = dataclasses.replace(CONFIG, width=16, num_heads=2, num_kv_heads=1, feed_forward=16)


def weights(config, seed: int):
    tree = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(
            0.25 * draw.standard_normal(leaf.shape)
            + (leaf.shape[-1:] == (config.width,) and leaf.ndim < 3),
            jnp.float32,
        ),
        tree,
    )


PARAMS, SMALL = weights(CONFIG, 0), weights(SMALLER, 1)
PROMPTS = ["ab", "cdefg", "kkkkkkk", "abcabcabcab"]


@jax.jit
def reading(tokens):
    hidden = model.forward(CONFIG, PARAMS, tokens).hidden
    return hidden, jax.nn.log_softmax(model.unembed(CONFIG, PARAMS, hidden), axis=-1)


@functools.cache
def judge(ids: tuple[int, ...]) -> np.ndarray:
    """ln p of every next token after these, by an uncached reading."""
    row = np.zeros((1, CONFIG.context), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(reading(row)[1])[0, len(ids) - 1]


@functools.cache
def states(ids: tuple[int, ...]) -> np.ndarray:
    """The direction of the hidden state of each of these."""
    row = np.zeros((1, CONFIG.context), np.int32)
    row[0, : len(ids)] = ids
    found = np.asarray(reading(row)[0])[0, : len(ids)]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def encoded(prompt: str) -> tuple[int, ...]:
    return (END, *TOKENIZER.encode(prompt).tolist())


def write(prompts, **settings) -> list[generate.Completion]:
    more = {name: settings.pop(name) for name in ("draft", "prefix", "batch") if name in settings}
    return generate.complete(CONFIG, PARAMS, TOKENIZER, prompts, GenerateConfig(**settings), **more)


def greedy(prompt: str, count: int) -> list[int]:
    ids = encoded(prompt)
    while len(ids) < len(encoded(prompt)) + count and (token := int(judge(ids).argmax())) != END:
        ids += (token,)
    return list(ids[len(encoded(prompt)) :])


# --- beams ---


class Beam:
    """One group of beams by brute force: lists, sorting, uncached readings."""

    def __init__(self, prompt: str, size: int, new: int, penalty: float, early: str) -> None:
        self.prompt, self.size, self.new, self.penalty, self.early = (
            encoded(prompt),
            size,
            new,
            penalty,
            early,
        )
        self.running: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        self.done: list[tuple[float, tuple[int, ...]]] = []
        self.open = True

    def step(self, taken: np.ndarray, diversity: float) -> list[int]:
        """Extends every beam by every token, and says which it took; `taken` is how many beams of
        earlier groups took each now."""
        if not self.open:
            return []
        count = len(self.running[0][1]) + 1
        every = [
            (score + logp - diversity * taken[token], score + logp, (*ids, token))
            for score, ids in self.running
            for token, logp in enumerate(judge(self.prompt + ids).tolist())
        ]
        every.sort(key=lambda one: -one[0])

        def ends(ids):
            return ids[-1] == END or count == self.new

        new = [
            (score / count**self.penalty, ids) for _, score, ids in every[: self.size] if ends(ids)
        ]
        if not (self.early == "yes" and len(self.done) == self.size):
            self.done = sorted(self.done + new, key=lambda one: -one[0])[: self.size]
        self.running = [(score, ids) for _, score, ids in every if not ends(ids)][: self.size]
        full = len(self.done) == self.size
        reach = self.new if self.early == "never" and self.penalty > 0 else count
        hope = bool(self.running) and (
            not full or max(self.running)[0] / reach**self.penalty > self.done[-1][0]
        )
        self.open = hope and not (full and self.early == "yes") and count < self.new
        return [ids[-1] for _, _, ids in every[: self.size]]


def slow_beams(
    prompt: str, beams: int, groups: int, new: int, penalty: float, early: str, diversity: float
) -> list[tuple[float, list[int], bool]]:
    parts = [Beam(prompt, beams // groups, new, penalty, early) for _ in range(groups)]
    while any(part.open for part in parts):
        taken = np.zeros(V)
        for part in parts:
            np.add.at(taken, part.step(taken, diversity), 1)
    best = sorted((one for part in parts for one in part.done), key=lambda one: -one[0])
    return [(score, [i for i in ids if i != END], END in ids) for score, ids in best]


@pytest.mark.parametrize(
    ("beams", "penalty", "early"),
    [(4, 1.0, "no"), (4, 0.0, "yes"), (4, 2.0, "never"), (4, -0.5, "no")],
)
def test_beam_search_is_that_of_lists_and_sorting(beams, penalty, early):
    found = iter(
        write(
            PROMPTS,
            new_tokens=8,
            beams=beams,
            num_samples=beams,
            length_penalty=penalty,
            early_stopping=early,
        )
    )
    for prompt in PROMPTS:
        wanted = slow_beams(prompt, beams, 1, 8, penalty, early, 0.0)
        for (score, ids, stopped), one in zip(wanted, itertools.islice(found, beams), strict=True):
            assert one.ids == ids and one.reason == ("stop" if stopped else "length")
            assert one.score == pytest.approx(score, abs=1e-4)
            logps = [judge(encoded(prompt) + tuple(ids[:n]))[token] for n, token in enumerate(ids)]
            np.testing.assert_allclose(one.logprobs, logps, atol=1e-4)


@pytest.mark.slow
def test_groups_of_beams_differ_as_in_lists():
    found = iter(write(PROMPTS, new_tokens=6, beams=4, beam_groups=2, diversity=1.5, num_samples=4))
    for prompt in PROMPTS:
        wanted = slow_beams(prompt, 4, 2, 6, 1.0, "no", 1.5)
        assert [one.ids for one in itertools.islice(found, 4)] == [ids for _, ids, _ in wanted]


@pytest.mark.slow
def test_beams_write_the_same_alone_and_beside_any_neighbours():
    settings = {"new_tokens": 8, "beams": 4, "num_samples": 4}
    together = write(PROMPTS, **settings)
    assert [one.ids for one in write([PROMPTS[1]], **settings)] == [
        one.ids for one in together[4:8]
    ]


@pytest.mark.slow
def test_beams_obey_the_transforms():
    (one,) = write(
        ["kkk"], new_tokens=8, beams=2, no_repeat_ngram=1, min_new_tokens=6, banned=(0, 1)
    )
    assert (
        len(set(one.ids)) == len(one.ids) >= 6
        and not {0, 1} & set(one.ids)
        and TOKENIZER.encode("k")[0] not in one.ids
    )


# --- contrastive search ---


def slow_contrast(prompt: str, alpha: float, candidates: int, new: int) -> list[int]:
    ids = encoded(prompt)
    for _ in range(new):
        logp = judge(ids)
        best = np.argsort(-logp, kind="stable")[:candidates]
        alike = [
            float((states((*ids, int(v)))[:-1] @ states((*ids, int(v)))[-1]).max()) for v in best
        ]
        token = int(best[np.argmax((1 - alpha) * np.exp(logp[best]) - alpha * np.asarray(alike))])
        if token == END:
            break
        ids += (token,)
    return list(ids[len(encoded(prompt)) :])


def test_contrastive_search_is_that_of_uncached_readings():
    settings = [
        GenerateConfig(new_tokens=8, contrastive_alpha=alpha, top_k=k)
        for alpha, k in ((0.6, 4), (0.3, 3), (0.9, 4), (0.6, 2))
    ]
    found = generate.complete(CONFIG, PARAMS, TOKENIZER, PROMPTS, settings)
    assert [one.ids for one in found] == [
        slow_contrast(prompt, s.contrastive_alpha, s.top_k, 8)
        for prompt, s in zip(PROMPTS, settings, strict=True)
    ]
    assert any(one.ids != greedy(prompt, 8) for one, prompt in zip(found, PROMPTS, strict=True))


def test_one_candidate_contrasts_with_nothing():
    assert [one.ids for one in write(PROMPTS, new_tokens=8, contrastive_alpha=0.6, top_k=1)] == [
        greedy(prompt, 8) for prompt in PROMPTS
    ]


# --- speculative decoding ---


@pytest.mark.parametrize(
    "draft",
    [None, Draft(SMALLER, SMALL), pytest.param(Draft(CONFIG, PARAMS), marks=pytest.mark.slow)],
    ids=["look-up", "draft", "itself"],
)
def test_greedy_speculation_is_greedy(draft):
    found = write(
        PROMPTS, new_tokens=14, temperature=0, lookup=draft is None, draft=draft, draft_tokens=3
    )
    assert [one.ids for one in found] == [greedy(prompt, 14) for prompt in PROMPTS]
    for prompt, one in zip(PROMPTS, found, strict=True):
        assert one.reason == ("length" if len(one.ids) == 14 else "stop")
        np.testing.assert_allclose(
            one.logprobs,
            [judge((*encoded(prompt), *one.ids[:n]))[token] for n, token in enumerate(one.ids)],
            atol=1e-4,
        )


@pytest.mark.slow
def test_speculation_writes_the_same_alone_and_beside_any_neighbours():
    settings = {
        "new_tokens": 12,
        "draft": Draft(SMALLER, SMALL),
        "draft_tokens": 3,
        "temperature": 1.0,
    }
    together = write(PROMPTS, **settings)
    assert [write([prompt], **settings)[0].ids for prompt in PROMPTS] == [
        one.ids for one in together
    ]


@pytest.mark.slow
def test_speculation_obeys_penalties_that_look_back_at_guesses():
    settings = {
        "new_tokens": 12,
        "temperature": 0,
        "no_repeat_ngram": 2,
        "repetition_penalty": 1.2,
        "min_new_tokens": 12,
    }
    plain = write(PROMPTS, **settings)
    assert [
        one.ids for one in write(PROMPTS, **settings, draft=Draft(SMALLER, SMALL), draft_tokens=2)
    ] == [one.ids for one in plain]
    assert all(len(one.ids) == 12 for one in plain)


def speculated(prompts: list[str], s: GenerateConfig, draft: Draft | None = None) -> Speculating:
    """The state after all rows have written what they were asked for."""
    asked = requests(CONFIG, TOKENIZER, prompts, s)
    batch = batch_of(CONFIG, TOKENIZER, asked, room_for(CONFIG, TOKENIZER, asked), len(asked))
    return open_writer(CONFIG, PARAMS, batch, None, draft).until(s.new_tokens).state


def law_of_pairs(prompt: str, temperature: float) -> np.ndarray:
    """The exact probability of each pair of first tokens [V V]; after the end comes the end."""

    def softmax(x):
        return np.exp(x / temperature) / np.exp(x / temperature).sum()

    first = softmax(judge(encoded(prompt)).astype(np.float64))
    rest = [
        (
            np.eye(V)[END]
            if token == END
            else softmax(judge((*encoded(prompt), token)).astype(np.float64))
        )
        for token in range(V)
    ]
    return first[:, None] * np.stack(rest)


def chi_square(found: np.ndarray, wanted: np.ndarray) -> float:
    """p of the counts that were found; cells of fewer than five expected draws are joined."""
    expected = found.sum() * wanted
    small = expected < 5
    found, expected = (np.append(table[~small], table[small].sum()) for table in (found, expected))
    found, expected = found[expected > 0], expected[expected > 0]
    return float(
        jax.scipy.special.gammaincc(
            (len(expected) - 1) / 2, float(((found - expected) ** 2 / expected).sum()) / 2
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", ["look-up", "draft"])
def test_the_law_of_speculation_is_that_of_the_model(way, record_property):
    """Chi-square of the first two tokens of 100,000 answers; guesses are kept and refused many
    times."""
    draft, rows = Draft(SMALLER, SMALL) if way == "draft" else None, 25_000
    found = (a + b + a for a, b in itertools.permutations(LETTERS, 2))
    prompt = next(
        p for p in found if 0.2 < law_of_pairs(p, 0.7)[TOKENIZER.encode(p[1])[0]].sum() < 0.8
    )  # what comes before is likely again
    pairs, kept, guessed = np.zeros((V, V), np.int64), 0, 0
    for seed in range(4):
        s = GenerateConfig(
            temperature=0.7,
            top_p=1.0,
            new_tokens=2,
            num_samples=rows,
            draft_tokens=2,
            lookup=draft is None,
            seed=seed,
        )
        state = speculated([prompt], s, draft)
        out = tokens_so_far(state.text, 2)
        real = np.where(np.arange(2)[None] < out.lengths[:, None], out.ids, END)
        np.add.at(pairs, (real[:, 0], real[:, 1]), 1)
        kept, guessed = kept + int(state.kept.sum()), guessed + int(state.guessed.sum())
    p = chi_square(pairs, law_of_pairs(prompt, 0.7))
    record_property(
        "figure",
        f"chi-square p = {p:.3f} over {pairs.sum()} draws, {way}, {kept} of {guessed} guesses kept",
    )
    assert pairs.sum() == 100_000 and p > 0.001 and 0.05 < kept / guessed < 0.95


def test_what_is_kept_and_drawn_has_the_target_s_law_whatever_the_guesses():
    """`accept` alone: a guess from a law that is far off, and none at all."""
    draws, size = 100_000, 5
    target = np.asarray([[0.5, 0.2, 0.15, 0.1, 0.05], [0.1, 0.1, 0.1, 0.1, 0.6]])
    law = np.asarray([0.05, 0.6, 0.3, 0.05, 0.0])
    ids = jax.random.categorical(
        jax.random.key(0), jnp.log(jnp.asarray(law)), shape=(draws, 1)
    ).astype(jnp.int32)
    for guessed in (1, 0):
        guesses = Guesses(
            ids,
            jnp.broadcast_to(jnp.asarray(law, jnp.float32), (draws, 1, size)),
            jnp.full(draws, guessed),
        )
        wide = jnp.broadcast_to(jnp.asarray(target, jnp.float32), (draws, 2, size))
        count, token = jax.jit(accept)(
            guesses, wide, jax.random.split(jax.random.key(guessed), (draws, 2))
        )
        first = jnp.where(count > 0, ids[:, 0], token)
        assert chi_square(np.bincount(first, minlength=size), target[0]) > 0.001
        assert (
            abs(float(count.mean()) - (np.minimum(target[0], law).sum() if guessed else 0)) < 0.01
        )
        if guessed:
            assert chi_square(np.bincount(token[count == 1], minlength=size), target[1]) > 0.001


def test_look_up_guesses_what_came_after_the_longest_match_and_goes_round():
    texts = [[1, 2, 3, 9, 2, 3, 4, 1, 2, 3], [5, 6, 5, 6, 5, 6], [1, 2, 3, 4]]
    ids = np.zeros((3, 12), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    lengths = jnp.asarray(list(map(len, texts)))
    found = look_up(generate.History(jnp.asarray(ids), lengths, lengths), 4, 11)
    assert found.count.tolist() == [4, 4, 0]
    assert found.ids[:2].tolist() == [[9, 2, 3, 4], [5, 6, 5, 6]]


def test_a_repetition_is_written_in_fewer_readings():
    """Greedy text of a small model soon repeats itself; then guesses are kept, and rounds are fewer
    than tokens."""
    s = GenerateConfig(new_tokens=14, temperature=0, lookup=True, draft_tokens=3)
    state = speculated(PROMPTS, s)
    texts = [TOKENIZER.decode(row) for row in tokens_so_far(state.text, 14).ids]
    assert int(state.kept.max()) >= 7, texts
    assert (state.kept <= state.guessed).all()


# --- guidance ---


def slow_guidance(prompt: str, negative: str, scale: float, new: int) -> list[int]:
    ids, other = encoded(prompt), encoded(negative)
    for _ in range(new):
        against = judge(other)
        token = int((against + scale * (judge(ids) - against)).argmax())
        if token == END:
            break
        ids, other = (*ids, token), (*other, token)
    return list(ids[len(encoded(prompt)) :])


def test_guidance_moves_away_from_the_negative_prompt():
    settings = [
        GenerateConfig(new_tokens=8, temperature=0, guidance=g, negative_prompt=n)
        for g, n in ((1.5, ""), (3.0, "kab"), (0.5, "cde"), (-1.0, "abcab"))
    ]
    found = generate.complete(CONFIG, PARAMS, TOKENIZER, PROMPTS, settings)
    wanted = [
        slow_guidance(prompt, s.negative_prompt, s.guidance, 8)
        for prompt, s in zip(PROMPTS, settings, strict=True)
    ]
    assert [one.ids for one in found] == wanted
    assert any(one.ids != greedy(prompt, 8) for one, prompt in zip(found, PROMPTS, strict=True))
    ids = encoded(PROMPTS[0])
    np.testing.assert_allclose(
        found[0].logprobs,
        [judge(ids + tuple(found[0].ids[:n]))[t] for n, t in enumerate(found[0].ids)],
        atol=1e-4,
    )


# --- several answers ---


def test_several_samples_of_a_prompt_are_those_that_each_would_be_alone():
    """They share one reading of the prompt, each with its own key."""
    several = write(PROMPTS[:2], new_tokens=10, num_samples=3, temperature=1.0)
    assert [one.prompt for one in several] == [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3
    assert len({tuple(one.ids) for one in several}) == 6
    assert [one.ids for one in write(PROMPTS[:2], new_tokens=10, temperature=1.0)] == [
        several[0].ids,
        several[3].ids,
    ]


def test_minimum_risk_chooses_what_is_most_like_the_others():
    texts = ["the cat sat on the mat", "zebra", "the cat sat on a mat", "a cat sat on the mat"]
    order = generate.minimum_risk(texts)
    assert order[-1] == 1 and sorted(order) == [0, 1, 2, 3]
    assert generate.minimum_risk(
        ["a", "b", "b"], utility=lambda text, truth: float(text == truth)
    ) == [1, 2, 0]
    assert (
        generate.chrf("abc", "abc") == 1
        and generate.chrf("", "abc") == 0
        and generate.chrf("", "") == 1
    )
    # by hand: of 1-grams 2/3 and 2/4, of 2-grams 1/2 and 1/3
    precision, recall = (2 / 3 + 1 / 2) / 2, (2 / 4 + 1 / 3) / 2
    assert generate.chrf("abx", "abcd", most=2) == pytest.approx(
        5 * precision * recall / (4 * precision + recall)
    )


def test_the_best_of_several_is_one_of_them_and_least_risky():
    several = write(["ab"], new_tokens=10, num_samples=6, temperature=1.0)
    texts = [one.text for one in several]
    best = write(["ab"], new_tokens=10, best_of=6, num_samples=2, temperature=1.0)
    assert [one.text for one in best] == [texts[i] for i in generate.minimum_risk(texts)[:2]]


# --- a shared prefix, further turns ---


def test_a_prefix_read_once_serves_every_prompt():
    prefix = generate.shared_prefix(CONFIG, PARAMS, TOKENIZER, "abcde")
    settings = {"new_tokens": 8, "temperature": 1.0, "top_logprobs": 2}
    ends = ["k", "fgh", "", "aaaa"]
    for _ in range(2):  # it is not used up
        shared = write(ends, prefix=prefix, **settings)
        whole = write(["abcde" + end for end in ends], **settings)
        assert [one.ids for one in shared] == [one.ids for one in whole]
        for one, other in zip(shared, whole, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
            assert [[i for i, _ in place] for place in one.alternatives] == [
                [i for i, _ in place] for place in other.alternatives
            ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        {"lookup": True},
        {"beams": 3},
        {"contrastive_alpha": 0.6, "top_k": 4},
        {"guidance": 2.0, "negative_prompt": "c"},
    ],
    ids=lambda way: next(iter(way)),
)
def test_a_prefix_serves_every_way_of_writing(way):
    prefix, ends = (
        generate.shared_prefix(CONFIG, PARAMS, TOKENIZER, "abcde"),
        ["k", "fgh", "", "aaaa"],
    )
    settings = dict(new_tokens=8, temperature=0.0, **way)
    whole = write(["abcde" + end for end in ends], **settings)
    assert [one.ids for one in write(ends, prefix=prefix, **settings)] == [one.ids for one in whole]


@pytest.mark.slow
def test_a_second_turn_goes_on_where_the_first_ended():
    """`extend` adds tokens to rows that have written: the same as a prompt that holds all of it."""
    prompt, more = encoded("abc"), TOKENIZER.encode("fg").tolist()

    def row(ids):
        return (
            np.asarray([ids], np.int32),
            np.asarray([len(ids)], np.int32),
            np.asarray([5], np.int32),
        )

    sampling = Sampling(np.zeros(1, np.float32), np.full(1, V, np.int32), np.ones(1, np.float32))
    columns = generate.Columns(
        jax.random.split(jax.random.key(0), 1), sampling, np.full((1, 4), -1, np.int32)
    )

    def answered(state: generate.Decoding) -> generate.Decoding:
        slots = generate.fill(state, None, columns)
        # The end is never drawn.
        return generate.advance(CONFIG, PARAMS, slots, 5, END).decoding

    state = answered(generate.prefill(CONFIG, PARAMS, *row(prompt), slots=32))
    said = np.asarray(state.text.history.ids)[0, : int(state.text.history.length[0])].tolist()
    state = answered(generate.extend(CONFIG, PARAMS, state, *row(more)))
    at_once = answered(generate.prefill(CONFIG, PARAMS, *row(said + more), slots=32))
    assert len(said) == len(prompt) + 5
    np.testing.assert_array_equal(state.text.history.ids[0, :17], at_once.text.history.ids[0, :17])


# --- what can't be joined ---

WRONG = {
    "a draft with beams": (
        {"beams": 2, "draft": Draft(SMALLER, SMALL)},
        "a draft model can't be joined with beams",
    ),
    "a draft of another vocabulary": (
        {"draft": Draft(dataclasses.replace(SMALLER, vocab_size=99), SMALL)},
        "vocabulary of 99",
    ),
    "a draft of less context": (
        {"draft": Draft(dataclasses.replace(SMALLER, context=16), SMALL)},
        "context of 16",
    ),
    "a long negative prompt": (
        {"guidance": 2.0, "negative_prompt": "a" * 31},
        "a negative prompt has 32 tokens and the context is 32",
    ),
    "more beams than tokens": ({"beams": 99}, "beams is 99, the vocabulary has 12 tokens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_go_together_is_refused_by_name(name):
    settings, words = WRONG[name]
    with pytest.raises(ConfigError, match=words):
        write(["ab"], new_tokens=4, **settings)


def test_prompts_of_two_strategies_can_not_share_a_batch():
    with pytest.raises(
        ConfigError, match="one prompt asks for the strategy beams, another for none"
    ):
        generate.complete(
            CONFIG, PARAMS, TOKENIZER, ["a", "b"], [GenerateConfig(beams=2), GenerateConfig()]
        )
