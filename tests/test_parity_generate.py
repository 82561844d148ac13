"""Laws of parity: same logits in, same logits out as the processors of `transformers`; same ids as
its beam search.

What `transformers` has no processor for (DRY, XTC, top-nσ, presence, frequency) is proved in
`test_transforms.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import CASES as FAMILIES
from families import SMALL
from peers import torch, transformers
from test_parity import in_our_shapes

from gptjax import generate
from gptjax.data import Side
from gptjax.generate import History, Sampling, neutral
from gptjax.generate.beams import EARLY, Comparison, answers, start_beams
from gptjax.generate.history import counts
from gptjax.generate.search import search
from gptjax.model import ModelConfig

processors = transformers.generation.logits_process

B, V, T = 30, 97, 20
DRAW = np.random.default_rng(0)
LOGITS = (3 * DRAW.standard_normal((B, V))).astype(np.float32)
IDS = np.where(
    DRAW.random((B, T)) < 0.5, DRAW.integers(0, 5, (B, T)), DRAW.integers(0, V, (B, T))
).astype(np.int32)
HISTORY = History(jnp.asarray(IDS), jnp.full(B, 8), jnp.full(B, T))
SEEN = counts(HISTORY, V, jnp.zeros(B, jnp.int32))
STOP = jnp.asarray(np.broadcast_to([3, 50, -1, -1], (B, 4)), jnp.int32)
WRITTEN = T - 8


def column(value, dtype=np.float32):
    return jnp.full(B, value, dtype)


def bias(pairs: dict[int, float]) -> jax.Array:
    wide = np.zeros((B, V), np.float32)
    wide[:, list(pairs)] = list(pairs.values())
    return jnp.asarray(wide)


def pair(ours: Callable, theirs: Callable) -> tuple[Callable, Callable]:
    return ours, theirs


CASES = {
    **{
        f"temperature {t}": pair(
            lambda x, t=t: generate.temperature(x, column(t)),
            lambda t=t: processors.TemperatureLogitsWarper(t),
        )
        for t in (0.3, 1.7)
    },
    **{
        f"top-k {k}": pair(
            lambda x, k=k: generate.top_k(x, column(k, np.int32)),
            lambda k=k: processors.TopKLogitsWarper(k),
        )
        for k in (1, 5, 97)
    },
    **{
        f"top-p {p}": pair(
            lambda x, p=p: generate.top_p(x, column(p)), lambda p=p: processors.TopPLogitsWarper(p)
        )
        for p in (0.1, 0.5, 0.95, 1.0)
    },
    **{
        f"min-p {p}": pair(
            lambda x, p=p: generate.min_p(x, column(p)), lambda p=p: processors.MinPLogitsWarper(p)
        )
        for p in (0.0, 0.05, 0.5, 1.0)
    },
    **{
        f"typical-p {p}": pair(
            lambda x, p=p: generate.typical_p(x, column(p)),
            lambda p=p: processors.TypicalLogitsWarper(p),
        )
        for p in (0.1, 0.5, 0.95)
    },
    **{
        f"repetition penalty {p}": pair(
            lambda x, p=p: generate.repetition_penalty(x, SEEN, column(p)),
            lambda p=p: processors.RepetitionPenaltyLogitsProcessor(p),
        )
        for p in (1.0, 1.3, 0.8)
    },
    "repetition penalty of the answer alone": pair(
        lambda x: generate.repetition_penalty(x, counts(HISTORY, V, HISTORY.prompt), column(1.5)),
        lambda: processors.RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=8),
    ),
    **{
        f"no repeated {n}-gram": pair(
            lambda x, n=n: generate.no_repeat_ngram(x, HISTORY, column(n, np.int32)),
            lambda n=n: processors.NoRepeatNGramLogitsProcessor(n),
        )
        for n in (1, 2, 3)
    },
    "logit bias": pair(
        lambda x: generate.logit_bias(x, bias({4: 2.5, 90: -3.0})),
        lambda: processors.SequenceBiasLogitsProcessor({(4,): 2.5, (90,): -3.0}),
    ),
    "banned": pair(
        lambda x: generate.logit_bias(x, bias({4: -np.inf, 7: -np.inf})),
        lambda: processors.NoBadWordsLogitsProcessor([[4], [7]]),
    ),
    "suppressed": pair(
        lambda x: generate.logit_bias(x, bias({4: -np.inf, 7: -np.inf})),
        lambda: processors.SuppressTokensLogitsProcessor([4, 7]),
    ),
    "allowed": pair(
        lambda x: generate.logit_bias(x, bias({i: -np.inf for i in range(V) if i not in (2, 9)})),
        lambda: processors.PrefixConstrainedLogitsProcessor(lambda *_: [2, 9], 1),
    ),
    **{
        f"at least {n} new tokens": pair(
            lambda x, n=n: generate.min_new_tokens(
                x, column(WRITTEN, np.int32), column(n, np.int32), STOP
            ),
            lambda n=n: processors.MinNewTokensLengthLogitsProcessor(8, n, [3, 50]),
        )
        for n in (WRITTEN, WRITTEN + 1)
    },
    **{
        f"the last of {n} tokens forced": pair(
            lambda x, n=n: generate.forced_tokens(
                x, column(T, np.int32), jnp.full((B, 40), -1).at[:, n - 1].set(11)
            ),
            lambda n=n: processors.ForcedEOSTokenLogitsProcessor(n, 11),
        )
        for n in (T, T + 1, T + 2)
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_transform_gives_the_logits_of_transformers(name: str) -> None:
    ours, theirs = CASES[name]
    found = np.asarray(jax.jit(ours)(jnp.asarray(LOGITS)))
    wanted = theirs()(torch.tensor(IDS.astype(np.int64)), torch.tensor(LOGITS)).numpy()
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_forced_first_token_is_that_of_transformers() -> None:
    found = generate.forced_tokens(
        jnp.asarray(LOGITS), column(0, np.int32), jnp.full((B, 4), -1).at[:, 0].set(5)
    )
    wanted = processors.ForcedBOSTokenLogitsProcessor(5)(
        torch.zeros((B, 1), dtype=torch.long), torch.tensor(LOGITS)
    ).numpy()
    np.testing.assert_array_equal(found, wanted)


# --- beams ---


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Nearly all the time here is compilation, and unoptimised code computes the same sums."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def models(request: pytest.FixtureRequest) -> tuple:
    """Theirs, our config, our weights: random ones that give clear opinions."""
    from encoders import CASES as ENCODERS

    case = {"gpt2": FAMILIES[0], "t5": next(one for one in ENCODERS if one.name == "t5")}[
        request.param
    ]
    torch.manual_seed(0)
    theirs = case.build(case.config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(0.3 * torch.randn_like(weight) + (weight.ndim == 1) * 0.5)
    return theirs, case.config, in_our_shapes(case, dict(theirs.named_parameters()))


PROMPTS = [DRAW.integers(1, V, n).astype(np.int32) for n in (1, 6, 11)]
NEW = 14


def asked(config: ModelConfig) -> tuple[np.ndarray, np.ndarray, Side | None]:
    """What our decoder begins with, its lengths, and what our encoder reads: prompts of several
    lengths, side by side."""
    tokens, lengths = np.zeros((3, 16), np.int32), np.asarray(list(map(len, PROMPTS)), np.int32)
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    if not config.encoder_layers:
        return tokens, lengths, None
    place = np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape)
    side = Side(jnp.asarray(tokens), jnp.asarray(np.where(place < lengths[:, None], place, -1)))
    return np.zeros((3, 16), np.int32), np.ones(3, np.int32), side


def their_answers(
    theirs: Any, config: ModelConfig, stop: int, **how: Any
) -> list[tuple[list[int], float]]:
    """Their answers to every prompt, without the stop token, and their scores."""
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor(prompt[None].astype(np.int64))
        whole = {
            "max_new_tokens": NEW,
            "do_sample": False,
            "eos_token_id": stop,
            "pad_token_id": V - 1,
            "return_dict_in_generate": True,
            "output_scores": True,
        }
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), **whole, **how)
        begin = 1 if config.encoder_layers else len(prompt)
        scores = out.sequences_scores.tolist() if "num_beams" in how else [0.0] * len(out.sequences)
        for sequence, score in zip(out.sequences[:, begin:].tolist(), scores, strict=True):
            found.append(
                (sequence[: sequence.index(stop)] if stop in sequence else sequence, score)
            )
    return found


def their_second_choice(theirs: Any, config: ModelConfig) -> int:
    """A token that beams soon write: a stop token that stops some of them."""
    ids = torch.tensor(PROMPTS[1][None].astype(np.int64))
    given = (
        {"decoder_input_ids": torch.zeros((1, 1), dtype=torch.long)}
        if config.encoder_layers
        else {}
    )
    return int(theirs(ids, **given).logits[0, -1].argsort(descending=True)[1])


def test_greedy_writes_the_ids_of_transformers(models: tuple) -> None:
    theirs, config, params = models
    tokens, lengths, side = asked(config)
    keys, found = jax.random.split(jax.random.key(0), 3), []
    for sampling, extra in settings(3, temperature=0.0):
        out = generate.generate(
            config,
            params,
            tokens,
            lengths,
            keys,
            sampling=sampling,
            new_tokens=NEW,
            stop=(V - 1,),
            side=side,
        )
        found += [ids[:length].tolist() for ids, length in zip(out.ids, out.lengths, strict=True)]
        assert found[-3:] == [ids for ids, _ in their_answers(theirs, config, V - 1, **extra)]
    assert len({token for ids in found for token in ids}) > 5, (
        "the model repeats itself, which proves little"
    )


def settings(
    rows: int, temperature: float = 1.0
) -> tuple[tuple[Sampling, dict], tuple[Sampling, dict]]:
    """Our sampling and their arguments: nothing else, and with a look back."""
    plain = Sampling(
        np.full(rows, temperature, np.float32),
        np.full(rows, V, np.int32),
        np.ones(rows, np.float32),
    )
    shaped = plain._replace(
        shaping=neutral(rows, V)._replace(
            no_repeat_ngram=jnp.full(rows, 2), repetition_penalty=jnp.full(rows, 1.2)
        )
    )
    return (plain, {}), (shaped, {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2})


def our_beams(
    config: ModelConfig,
    params: Any,
    beams: int,
    best: int,
    stop: int,
    penalty: float,
    early: str,
    sampling: Sampling,
) -> list[tuple[list[int], float]]:
    tokens, lengths, side = asked(config)
    state = generate.prefill(
        config, params, tokens, lengths, np.full(3, NEW, np.int32), slots=32, side=side
    )
    how = Comparison(
        np.full(3, penalty, np.float32),
        np.full(3, EARLY.index(early), np.int32),
        np.zeros(3, np.float32),
    )
    found = answers(
        search(
            config,
            params,
            start_beams(state, np.zeros(3, np.int32), beams),
            sampling,
            how,
            np.full((3, 1), stop, np.int32),
            np.int32(V),
        ),
        best,
    )
    return [
        (found.ids[p, n, : found.lengths[p, n]].tolist(), float(found.scores[p, n]))
        for p, n in itertools.product(range(3), range(best))
    ]


@pytest.mark.parametrize(
    ("penalty", "early"), [(1.0, "no"), (0.0, "yes"), (2.0, "never"), (-0.5, "no")]
)
def test_beam_search_writes_the_ids_of_transformers(
    models: tuple, penalty: float, early: str
) -> None:
    theirs, config, params = models
    beams, best = 4, 3
    stop, ended = their_second_choice(theirs, config), False
    for sampling, extra in settings(3 * beams):
        ours = our_beams(config, params, beams, best, stop, penalty, early, sampling)
        how = {
            "num_beams": beams,
            "num_return_sequences": best,
            "length_penalty": penalty,
            "early_stopping": {"no": False, "yes": True, "never": "never"}[early],
        }
        wanted = their_answers(theirs, config, stop, **how, **extra)
        assert [ids for ids, _ in ours] == [ids for ids, _ in wanted]
        np.testing.assert_allclose(
            [score for _, score in ours], [score for _, score in wanted], atol=1e-4
        )
        ended = ended or any(len(ids) < NEW for ids, _ in wanted)
    assert ended or penalty > 1, (
        "no answer ended at the stop token, which proves less; a penalty above 1 likes long answers"
    )


@pytest.mark.parametrize("models", ["gpt2"], indirect=True)
def test_guidance_writes_the_ids_of_transformers(models: tuple) -> None:
    theirs, _, params = models
    prompt, negative = PROMPTS[2], PROMPTS[1]
    ids, other = (torch.tensor(p[None].astype(np.int64)) for p in (prompt, negative))
    out = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        pad_token_id=V - 1,
        guidance_scale=1.8,
        negative_prompt_ids=other, negative_prompt_attention_mask=torch.ones_like(other),
    )  # fmt: skip
    from gptjax.generate.decode import guided, padded

    def row(p):
        return (
            padded([p], SMALL.context),
            np.asarray([len(p)], np.int32),
            np.asarray([NEW], np.int32),
        )

    first, second = (generate.prefill(SMALL, params, *row(p), slots=32) for p in (prompt, negative))
    state = guided(first, second, np.asarray([1.8], np.float32))
    sampling = Sampling(np.zeros(1, np.float32), np.full(1, V, np.int32), np.ones(1, np.float32))
    columns = generate.Columns(
        jax.random.split(jax.random.key(0), 1), sampling, np.full((1, 1), -1, np.int32)
    )
    state = generate.advance(SMALL, params, generate.fill(state, None, columns), NEW, V)
    assert (
        state.text.history.ids[0, len(prompt) : len(prompt) + NEW].tolist()
        == out[0, len(prompt) :].tolist()
    )
