"""Laws of `respond`: what a model says of a request depends on the request alone, however texts are
packed, shared and ordered, and is what generation and `token_logprobs` say.

Models are rows of `variants`; a reference reads one passage at a time, without rows, segments or
shared beginnings.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapted import write_adapted
from test_laws import few, weights
from variants import ROPE, VARIANTS

from gptjax import generate
from gptjax import model as models
from gptjax.api import Model
from gptjax.core.config import ConfigError
from gptjax.data import Side
from gptjax.data.tasks import LanguageModel, SequenceToSequence
from gptjax.data.tokenizers.tokenizer import Bytes, Characters, train_tokenizer
from gptjax.evaluate import layout
from gptjax.evaluate.encoding import Passage, encode_scores, start_of_text
from gptjax.evaluate.requests import Roll, Rolled, Score, Scored, Write
from gptjax.evaluate.respond import respond, respond_and_count
from gptjax.evaluate.rolling import windows
from gptjax.formats import OpenedModel
from gptjax.generate import GenerateConfig, SampleConfig
from gptjax.model import Experts
from gptjax.sharding.mesh import MeshConfig
from gptjax.weights import LoRA

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,"
TOKENIZER = train_tokenizer(Characters(), [LETTERS])
"""56 ids, fewer than the vocabulary of any row of `variants`: the rest has no probability."""

TIGHT = dataclasses.replace(ROPE, experts=Experts(count=4, active=2, capacity=0.5), num_kv_heads=2)
"""Experts with places for a few tokens of a row in training."""
KINDS = {
    name: VARIANTS[name]
    for name in (
        *("gpt2", "gqa", "alibi", "t5", "window", "window_with_sinks", "strided"),
        *("chunks_and_all_without_positions", "local_and_global", "latent", "deepseek"),
        *("attention_sink", "prefix_lm", "beside_an_encoder_t5", "scanned", "ahead"),
    )
} | {"tight_experts": TIGHT}
FEW = ("gpt2", "window", "tight_experts", "prefix_lm", "beside_an_encoder_t5")
WRITERS = ("gpt2", "prefix_lm")
"""Kinds that are tested by default; where they write too, which takes longer, fewer."""


def model_of(config, tokenizer=TOKENIZER) -> Model:
    task = SequenceToSequence(begin=0) if config.encoder_layers else LanguageModel()
    return Model(config, weights(config), tokenizer, task=task)


@pytest.fixture(scope="module", params=few(FEW, KINDS))
def kind(request) -> Model:
    return model_of(KINDS[request.param])


@pytest.fixture(scope="module", params=few(WRITERS, KINDS))
def writer(request) -> Model:
    return model_of(KINDS[request.param])


GPT2 = model_of(VARIANTS["gpt2"])

CHOICES = [
    Score(context, continuation)
    for context in ("The cat sat on", "The cat looked at", "A dog")
    for continuation in (" the mat.", " the moon", " a", " the mat.", " a mat")
]
TEXTS = [Score("Only once, ", "here"), Score("", "Nothing before"), Score("x", "y")]
CONTEXTS = [Score(f"The moon is so {word}", " that") for word in ("old", "new", "bright")]
REQUESTS = CHOICES + TEXTS + CONTEXTS
MANY = [Score("Long beginning", f" {a}{b}{a} {c}") for a in "abcde" for b in "fghij" for c in "xyz"]
"""Choices of one question that fill a row of more than 256 places."""


def alone(model: Model, one: Score) -> tuple[float, bool]:
    """ln p of the continuation and whether it is the likeliest, by a row that holds one passage."""
    (passage,) = encode_scores(model, [one])[0].passages
    logits = _logits(model.config, model.params, passage.read, passage.prefix, passage.side)
    logits = np.asarray(logits, np.float64)[:, : model.tokenizer.vocab_size]
    total, best = 0.0, True
    for place in range(passage.first, len(passage.ids)):
        row, target = logits[place - 1], passage.ids[place]
        total += row[target] - np.log(np.exp(row - row.max()).sum()) - row.max()
        best &= int(row.argmax()) == target
    return total, best


def _logits(config, params, ids, prefix, side):
    """Logits after each id [32 V]; padded, so that a model compiles once."""
    row = np.zeros((1, 32), np.int32)
    row[0, : len(ids)] = ids
    text, shown = np.zeros((1, 32), np.int32), np.full((1, 32), -1, np.int32)
    text[0, : len(side)], shown[0, : len(side)] = side, np.arange(len(side))
    places = np.where(np.arange(32) < len(ids), np.arange(32), -1)[None]
    given = Side(text, shown) if side else None
    return _read(config, params, row, places, np.full((1, 32), prefix), given)


@functools.partial(jax.jit, static_argnums=0)
def _read(config, params, tokens, positions, prefix, side):
    if config.experts:
        config = dataclasses.replace(
            config, experts=dataclasses.replace(config.experts, capacity=None)
        )
    memory = models.encode(config, params, side)
    hidden = models.forward(
        config, params, tokens, positions=positions, prefix=prefix, memory=memory
    ).hidden
    return models.unembed(config, params, hidden)[0]


def scores_of(model: Model, requests, **more) -> np.ndarray:
    return np.asarray([one.logprob for one in respond(model, requests, **more)])


# --- one answer, however it is read -------------------------------------------------------------


def test_packed_and_shared_passages_score_as_each_does_alone(kind):
    wanted = REQUESTS + MANY if not kind.task.answers else CHOICES + TEXTS[:1] + CONTEXTS + MANY
    found = respond(kind, wanted)
    for one, response in zip(wanted, found, strict=True):
        logprob, best = alone(kind, one)
        assert abs(response.logprob - logprob) < 1e-5 * max(1, abs(logprob)), one
        assert response.greedy == best, one


@pytest.mark.parametrize("order", [1, 2])
def test_any_order_of_requests_gives_the_same_bits(order):
    mixed = np.random.default_rng(order).permutation(len(REQUESTS))
    whole = scores_of(GPT2, REQUESTS)
    assert np.array_equal(scores_of(GPT2, [REQUESTS[n] for n in mixed]), whole[mixed])


def test_neither_the_width_of_a_batch_nor_what_else_is_asked_changes_a_score():
    whole = scores_of(GPT2, REQUESTS)
    for rows in (1, 3, 16):
        assert np.abs(scores_of(GPT2, REQUESTS, rows=rows) - whole).max() < 1e-5
    one_by_one = np.concatenate([scores_of(GPT2, [one]) for one in REQUESTS[::3]])
    assert np.abs(one_by_one - whole[::3]).max() < 1e-5


def test_the_scores_are_those_of_token_logprobs():
    context, continuation = "The cat sat on", " the mat"
    ids = TOKENIZER.encode(context + continuation)
    begin = TOKENIZER.begin_of_document
    row = jnp.asarray([[begin, *ids]], jnp.int32)
    known, lengths = jnp.int32(TOKENIZER.vocab_size), jnp.full((1,), row.shape[1], jnp.int32)
    each = generate.token_logprobs(GPT2.config, GPT2.params, row, lengths, vocabulary=known)
    each = np.asarray(each, np.float64)
    (found,) = respond(GPT2, [Score(context, continuation)])
    assert abs(found.logprob - each[0, 1 + len(context) :].sum()) < 1e-5
    assert found.tokens == len(continuation)
    (whole,) = respond(GPT2, [Roll(context + continuation)])
    assert abs(whole.logprob - each.sum()) < 1e-5 and whole.tokens == len(ids)


def test_what_greedy_generation_writes_is_greedy_with_the_same_probability(writer):
    if writer.config.experts and writer.config.experts.capacity:
        pytest.skip("generation reads prompts with a limited capacity, so experts miss tokens")
    prompts = ["The cat", "A dog sat on"]
    greedy = SampleConfig(new_tokens=5, temperature=0)
    written = respond(writer, [Write(one, greedy) for one in prompts])
    asked = [
        Score(tuple(_prompt(writer, p)), tuple(w.ids))
        for p, w in zip(prompts, written, strict=True)
    ]
    for scored, answer in zip(respond(writer, asked), written, strict=True):
        assert scored.greedy and abs(scored.logprob - sum(answer.logprobs)) < 1e-4
    other = [
        Score(one.context, (*one.continuation[:-1], (one.continuation[-1] + 1) % 50))
        for one in asked
    ]
    assert not any(one.greedy for one in respond(writer, other))


def _prompt(model: Model, text: str) -> list[int]:
    ids = model.tokenizer.encode(text).tolist()
    return ids if model.task.answers else model.task.prompt(ids, model.tokenizer, False)[1]


def test_probabilities_are_those_of_the_vocabulary_alone(kind):
    """Ids beyond the tokenizer's have none, so those of all single tokens sum to 1."""
    every = [Score(tuple(_prompt(kind, "The cat")), (n,)) for n in range(TOKENIZER.vocab_size)]
    assert abs(np.exp(scores_of(kind, every)).sum() - 1) < 1e-5


def test_weights_prepared_for_writing_score_the_same():
    prepared = GPT2.prepared()
    assert isinstance(prepared.params["layers"], tuple)
    assert np.abs(scores_of(prepared, CHOICES) - scores_of(GPT2, CHOICES)).max() < 1e-5


def test_one_of_several_adapters_scores_as_the_model_that_has_it_alone(tmp_path):
    config = dataclasses.replace(VARIANTS["llama"], vocab_size=257)
    base = model_of(config, train_tokenizer(Bytes(), []))
    alone = write_adapted(tmp_path, OpenedModel(*base[:5]), LoRA(rank=2))
    held = base.with_adapters({"one": tmp_path / "adapter"})
    adapted = scores_of(held.using("one"), CHOICES)
    wanted = scores_of(base._replace(params=alone.params), CHOICES)
    plain = scores_of(base, CHOICES)
    assert np.abs(adapted - wanted).max() < 1e-4 < 0.1 < np.abs(adapted - plain).max()
    assert np.abs(scores_of(held.using("base"), CHOICES) - plain).max() < 1e-5


@pytest.mark.parametrize("mesh", [{"data": 8}, {"tensor": 2, "fsdp": 4}], ids=str)
def test_a_mesh_changes_no_score(mesh):
    from gptjax.api import _devices
    from gptjax.model import axes
    from gptjax.weights import on_mesh

    config = VARIANTS["gqa"]
    devices = _devices(MeshConfig(**mesh))
    single = model_of(config)
    asked = REQUESTS + MANY[:7]
    spread = single._replace(params=on_mesh(devices, single.params, axes(config)), mesh=devices)
    assert np.abs(scores_of(spread, asked) - scores_of(single, asked)).max() < 1e-5


# --- what is read --------------------------------------------------------------------------------


def choices_set(items: int, choices: int) -> list[Score]:
    """Questions whose context is as long as those of ARC beside their choices."""
    draw = np.random.default_rng(0)
    word = lambda size: "".join(draw.choice(list(LETTERS[:26]), size))  # noqa: E731
    return [
        Score(context, f" {word(3)}")
        for context in (word(20) for _ in range(items))
        for _ in range(choices)
    ]


def test_choices_of_a_question_read_their_context_once():
    requests = choices_set(12, 4)
    _, cost = respond_and_count(GPT2, requests)
    assert cost.alone == 48 * (1 + 20 + 3) and cost.distinct == 48, "the last token is not read"
    assert cost.read == 12 * (1 + 20 + 1 + 4 * 2), "choices begin with the same space"
    assert cost.read * 2 <= cost.alone and cost.positions < cost.alone


def test_identical_requests_are_computed_once():
    _, once = respond_and_count(GPT2, CHOICES[:5])
    found, cost = respond_and_count(GPT2, CHOICES[:5] * 7)
    assert (cost.read, cost.positions, cost.distinct) == (once.read, once.positions, 4)
    assert cost.requests == 35 and found[:5] * 7 == found


def test_few_programs_serve_texts_of_every_length():
    draw = np.random.default_rng(1)
    texts = ["".join(draw.choice(list(LETTERS), 2 + n % 29)) for n in range(300)]
    _, cost = respond_and_count(GPT2, [Score(text[:1], text[1:]) for text in texts])
    assert cost.programs <= 2 and cost.positions < 1.3 * cost.read


def test_progress_ends_with_all_requests():
    seen = []
    asked = [*REQUESTS, *choices_set(40, 2), Write("A", SampleConfig(new_tokens=2))]
    respond(GPT2, asked, rows=1, progress=seen.append)
    done = [one.done for one in seen]
    assert done == sorted(done) and done[-1] == len(asked) == seen[-1].total
    assert len(done) > 2 and seen[-1].left == 0


def test_a_beginning_of_all_requests_is_read_once_a_row_and_rows_stay_short():
    """Examples that stand before every question are shared although the questions differ."""
    shown = "".join(np.random.default_rng(2).choice(list(LETTERS), 300))
    questions = choices_set(60, 2)
    passages = [
        Passage((*TOKENIZER.encode(shown).tolist(), *p.ids), 300 + p.first)
        for one in encode_scores(GPT2, questions)
        for p in one.passages
    ]
    rows = layout.fill_rows(passages)
    read = sum(
        row.shared + sum(len(passages[n].read) - row.shared for n in row.passages) for row in rows
    )
    assert read * 6 < sum(len(one.read) for one in passages)
    assert max(layout.row_length(row.used) for row in rows) <= 2048
    short = layout.fill_rows(passages, longest=512)
    assert max(row.used for row in short if row.shared) <= 512


def test_rows_hold_every_passage_once_and_no_more_than_fits():
    requests = choices_set(9, 3) + REQUESTS + MANY
    passages = list({p: None for one in encode_scores(GPT2, requests) for p in one.passages})
    rows = layout.fill_rows(passages)
    assert sorted(n for row in rows for n in row.passages) == list(range(len(passages)))
    batches = list(layout.batched(passages, rows, 256))
    assert sum(len(part) for _, _, part in batches) == len(rows)
    for length, size, part in batches:
        made = layout.batch_arrays(passages, part, length, size)
        assert len(part) <= size and (made.positions >= 0).sum() == sum(
            row.shared + sum(len(passages[n].read) - row.shared for n in row.passages)
            for row in part
        )


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 100])
def test_windows_predict_each_token_once_with_as_much_context_as_fits(length):
    ids = list(range(100, 100 + length))
    made = list(windows(ids, 7, 32))
    assert [i for one in made for i in one.ids[one.first :]] == ids
    for number, one in enumerate(made):
        assert 1 <= one.first <= len(one.read) <= 32
        end = one.ids[-1] - 100 + 1
        assert [7, *ids][end + 1 - len(one.ids) : end + 1] == list(one.ids)
        assert len(one.read) == 32 or number == 0, "a window after the first is full"


def test_a_text_that_fits_is_read_in_one_pass_and_a_long_one_in_windows():
    text = "The cat sat on the mat. The moon looked back. A dog. " * 3
    (found,) = respond(GPT2, [Roll(text)])
    assert found.tokens == len(text)
    begin, total, most = TOKENIZER.begin_of_document, 0.0, GPT2.config.context
    for one in windows(TOKENIZER.encode(text).tolist(), begin, most):
        total += alone(GPT2, Score(one.ids[: one.first], one.ids[one.first :]))[0]
    assert abs(found.logprob - total) < 1e-5 * abs(total)
    both = respond(GPT2, [Roll(text), Roll("Short."), Roll("")])
    assert both[2] == Rolled(0.0, 0), "an empty text has no token"
    assert abs(both[0].logprob - total) < 1e-5 * abs(total), "texts are windows of their own"


def test_windows_that_are_equal_count_as_often_as_the_text_has_them():
    """Of one letter over and over, all windows but the first and the last are one passage."""
    long, longer = respond(GPT2, [Roll("a" * 32 * 4), Roll("a" * 32 * 6)])
    each = alone(GPT2, Score(TOKENIZER.encode("a").tolist(), TOKENIZER.encode("a" * 32).tolist()))
    assert abs(longer.logprob - long.logprob - 2 * each[0]) < 1e-4 and longer.tokens == 32 * 6


# --- spelling ------------------------------------------------------------------------------------


def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation():
    moved, plain = respond(GPT2, [Score("The cat ", "sat"), Score("The cat", " sat")])
    assert moved == plain and plain.tokens == 4


def test_an_empty_context_is_the_token_that_begins_texts():
    start = start_of_text(TOKENIZER)
    empty, named = respond(GPT2, [Score("", "sat"), Score((start,), TOKENIZER.encode("sat"))])
    assert empty == named
    bare = train_tokenizer(Characters(end_of_document=False), [LETTERS])
    with pytest.raises(ConfigError, match="no token that begins or ends"):
        respond(model_of(VARIANTS["gpt2"], bare), [Score("", "sat")])


def test_a_context_that_does_not_fit_loses_its_beginning():
    long = "abcdefghij" * 6
    cut, fits = respond(GPT2, [Score(long, "xyz"), Score("abc", "xyz")])
    assert cut.truncated and not fits.truncated and cut.tokens == 3
    ids = TOKENIZER.encode(long).tolist()[3 - 33 :]
    assert respond(GPT2, [Score(ids, TOKENIZER.encode("xyz").tolist())])[0].logprob == cut.logprob
    assert respond_and_count(GPT2, [Score(long, "xyz")])[1].truncated == 1


# --- answers -------------------------------------------------------------------------------------


def test_answers_are_those_of_complete_in_the_order_of_the_requests():
    settings = [SampleConfig(new_tokens=n, temperature=1.0, seed=n) for n in (3, 9, 20)]
    asked = [Write("The cat", s) for s in settings] + [Write("A", settings[0])]
    mixed = [asked[2], REQUESTS[0], asked[0], asked[3], asked[1], asked[0]]
    found = respond(GPT2, mixed, rows=2)
    assert isinstance(found[1], Scored) and found[2] == found[5]
    for one, answer in zip(mixed, found, strict=True):
        if isinstance(one, Write):
            (own,) = GPT2.complete([one.context], one.settings)
            assert (answer.text, answer.reason, answer.prompt) == (own.text, own.reason, own.prompt)


def test_an_answer_ends_before_its_stop_text_and_leaves_room_for_itself():
    (whole,) = respond(GPT2, [Write("The cat", SampleConfig(new_tokens=20, temperature=0))])
    stop = whole.text[4:6]
    ending = GenerateConfig(new_tokens=20, temperature=0, stop=(stop,))
    (short,) = respond(GPT2, [Write("The cat", ending)])
    assert short.text == whole.text[: whole.text.index(stop)] and short.reason == "stop_string"
    (fitted,) = respond(GPT2, [Write("abcdefghij" * 6, SampleConfig(new_tokens=20))])
    assert len(fitted.ids) == 20 or fitted.reason == "stop"


# --- refusals ------------------------------------------------------------------------------------


REFUSED = {
    "does not predict the next token": (VARIANTS["encoder"], {}, CHOICES[0]),
    "holds the adapters a, b; choose one": (VARIANTS["gpt2"], {"adapters": ("a", "b")}, CHOICES[0]),
    "reads texts from their end": (
        VARIANTS["gpt2"],
        {"task": LanguageModel(backward=True)},
        CHOICES[0],
    ),
    "has no tokens of its own": (VARIANTS["gpt2"], {}, Score("a", "")),
    "has 40 tokens and the context": (VARIANTS["gpt2"], {}, Score("a", "b" * 40)),
    "leaves no room": (VARIANTS["gpt2"], {}, Write("a", SampleConfig(new_tokens=32))),
    "has one answer": (VARIANTS["gpt2"], {}, Write("a", GenerateConfig(num_samples=2))),
    "gives no probability to a text by itself": (
        VARIANTS["beside_an_encoder_t5"],
        {"task": SequenceToSequence(begin=0)},
        Roll("a"),
    ),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_can_not_be_answered_is_refused_in_one_line(says):
    config, changes, request = REFUSED[says]
    model = Model(config, {}, TOKENIZER)._replace(**changes)
    with pytest.raises(ConfigError, match=says) as raised:
        respond(model, [request])
    assert "\n" not in str(raised.value)


def test_a_model_that_gives_nan_is_refused():
    broken = GPT2._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, GPT2.params))
    with pytest.raises(ConfigError, match="NaN"):
        respond(broken, CHOICES[:1])


def test_bytes_of_any_text_are_scored():
    config = dataclasses.replace(VARIANTS["gpt2"], vocab_size=257)
    model = model_of(config, train_tokenizer(Bytes(), []))
    pairs = [(" ", "é"), ("日本", "語"), ("", "\n"), ("a\n", "b")]
    for (context, continuation), one in zip(
        pairs, respond(model, list(itertools.starmap(Score, pairs))), strict=True
    ):
        spaces = len(context) - len(context.rstrip())
        assert one.tokens == len(continuation.encode()) + spaces
