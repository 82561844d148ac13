"""Laws of texts that answer others: records, their rows, prefixes, labels, further tokens and
teachers. Read `ROWS` first: what most laws look at."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import PLAIN, ROPE

from gptjax import api, model
from gptjax.cli import main as cli
from gptjax.core.config import ConfigError, from_dict, to_dict
from gptjax.data import (
    UL2,
    Batch,
    Bytes,
    Characters,
    Chat,
    Classification,
    Conversations,
    DataConfig,
    PrefixLanguageModel,
    Records,
    SequenceToSequence,
    Side,
    SpanCorruption,
    Text,
    batches,
    prepare,
    store,
)
from gptjax.data.documents import sources
from gptjax.data.layouts import Piece, filled
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.losses import CrossEntropy, Distillation
from gptjax.losses import cross_entropy as objectives
from gptjax.model import ModelConfig
from gptjax.train import identity, teacher
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train

TOKENIZER = tokenizers.train_tokenizer(Bytes(), [])
SIZE, END = TOKENIZER.vocab_size, TOKENIZER.end_of_document

# --- records ---

PAIRS = [(f"source {n} " + "s" * (n % 7), f"t{n}" + "t" * (n % 5)) for n in range(60)]


def written(folder, name: str = "pairs.jsonl", pairs=PAIRS):
    """A file of records in the form that its name says."""
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("\n".join(json.dumps({"en": a, "zh": b}) for a, b in pairs))
    elif name.endswith(".csv"):
        path.write_text(
            "id,en,zh\n" + "".join(f'{n},"{a}","{b}"\n' for n, (a, b) in enumerate(pairs))
        )
    else:
        path.write_text("".join(f"{b}\tunused\t{a}\n" for a, b in pairs))
    return str(path)


@pytest.mark.parametrize(
    ("name", "fields"), [("a.jsonl", ("en", "zh")), ("a.csv", ("en", "zh")), ("a.tsv", ("3", "1"))]
)
def test_records_of_every_form_are_the_same_pairs(tmp_path, name, fields):
    odd = [*PAIRS[:5], ("Ünï, two", "“x” 好")]
    found = list(sources.read_documents(Records(written(tmp_path, name, odd), *fields)))
    assert [(d.source, d.text) for d in found] == odd
    held = [
        d.held_out
        for d in sources.read_documents(
            Records(
                written(tmp_path, name, odd),
                *fields,
                held_out=written(tmp_path, "b" + name, odd[:2]),
            )
        )
    ]
    assert held == [False] * 6 + [True] * 2


@pytest.mark.parametrize(
    ("name", "content", "fields", "says"),
    [
        (
            "a.jsonl",
            '{"en": "x", "zh": "y"}\n{"en": "x"}',
            ("en", "zh"),
            r"a.jsonl:2 has no field 'zh'",
        ),
        ("a.jsonl", '{"en": "x", "zh": " "}', ("en", "zh"), r"a.jsonl:1 has nothing in 'zh'"),
        ("a.csv", "en,zh\nx", ("en", "zh"), r"a.csv:2 has 1 columns and column 2 is wanted"),
        ("a.csv", "en,zh\nx,y", ("en", "zhh"), r"no column 'zhh' .*Did you mean 'zh'"),
        ("a.tsv", "x\ty", ("en", "zh"), r"no names of columns.*--data.source.source 1"),
        ("a.tsv", "", ("1", "2"), r"a.tsv has no records"),
    ],
)
def test_a_record_that_can_not_be_read_is_named(tmp_path, name, content, fields, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=says):
        list(sources.read_documents(Records(str(tmp_path / name), *fields)))


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"task": SequenceToSequence()}, "it needs Records"),
        ({"source": Records("x.tsv")}, "it needs Text or Tfds or Mixture"),
        (
            {"source": Records("x.tsv"), "task": Classification(), "split": "tail"},
            "--data.split documents",
        ),
    ],
)
def test_a_task_and_a_source_that_do_not_fit_are_refused(told, says):
    with pytest.raises(ConfigError, match=says):
        DataConfig(**told)


@pytest.mark.parametrize(
    "task",
    [
        SequenceToSequence(),
        SequenceToSequence(0, True),
        Classification(("a", "b")),
        PrefixLanguageModel(0.3),
        UL2(),
        UL2((SpanCorruption(), PrefixLanguageModel()), (1.0, 3.0)),
        Chat("zephyr", loss_on="last"),
    ],
)
def test_a_task_is_a_value_of_json(task):
    source = Records("x.tsv") if task.records else Text()
    source = Conversations("x.jsonl") if task.conversations else source
    config = DataConfig(source=source, task=task)
    assert from_dict(DataConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_all_answers_to_one_text_are_on_one_side(tmp_path):
    pairs = [(f"same {n // 3}", f"answer {n}") for n in range(90)]
    path = written(tmp_path, pairs=pairs)
    found = prepare(
        DataConfig(
            source=Records(path, "en", "zh"),
            tokenizer=Bytes(),
            task=SequenceToSequence(),
            validation=0.3,
            cache=str(tmp_path),
        )
    )
    halves = [
        {bytes(ids[: list(ids).index(SIZE)]) for ids in _examples(half)}
        for half in (found.train, found.validation)
    ]
    assert all(halves) and not halves[0] & halves[1]


def _examples(opened) -> list[np.ndarray]:
    return [
        opened.ids[opened.offsets[i] : opened.offsets[i + 1]].astype(np.int32)
        for i in range(opened.header.num_examples)
    ]


# --- rows ---


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A store of pairs, and the texts' ids."""
    folder, ids = (
        tmp_path_factory.mktemp("records") / "train",
        lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32),
    )
    writer = store.Writer(folder, SIZE + 1)
    for source, target in PAIRS:
        writer.add(SequenceToSequence().pair(ids(source), ids(target), TOKENIZER))
    writer.close(num_bytes=1, fingerprint="", facts={})
    return store.open_store(folder)


def told(batch: Batch) -> list[tuple[bytes, bytes]]:
    """What each piece of a batch reads and answers, by what the model is given: segments, weights
    and positions."""
    found = []
    for row in range(len(batch.tokens)):
        for piece in sorted(set(batch.segments[row][batch.positions[row] >= 0])):
            here = batch.segments[row] == piece
            counts = here & (batch.weights[row] > 0)
            target, begins = batch.targets[row][counts], batch.tokens[row][here]
            assert target[-1] == END and (batch.positions[row][here] == np.arange(here.sum())).all()
            if batch.side is not None:
                beside = batch.side.segments[row] == piece
                read = batch.side.tokens[row][beside]
                assert (
                    begins[0] == SIZE
                    and (begins[1:] == target[:-1]).all()
                    and (batch.side.positions[row][beside] == np.arange(beside.sum())).all()
                )
            else:
                border = list(begins).index(SIZE)
                read = begins[:border]
                assert (
                    batch.prefix[row][here] == border
                ).all() and counts.sum() == here.sum() - border
            found.append((bytes(read.tolist()), bytes(target[:-1].tolist())))
    return found


@pytest.mark.parametrize("beside", [True, False])
def test_an_epoch_holds_every_pair_once_with_its_own_source_and_loss_on_its_answer_alone(
    records, beside
):
    wanted = sorted((a.encode(), b.encode()) for a, b in PAIRS)
    for seed in (3, None):
        plan = batches.plan(
            records, length=64, rows=4, seed=seed, task=SequenceToSequence(), with_encoder=beside
        )
        every = [
            row
            for number in range(plan.batches_per_epoch)
            for row in zip(*_rows(batches.batch(records, plan, number)), strict=True)
        ]
        epoch = [pair for row in every[: plan.rows_per_epoch] for pair in told(_batch([row]))]
        assert sorted(epoch) == wanted and plan.packing.cut == 0
        assert plan.rows_per_epoch < 0.75 * len(PAIRS), "rows hold several"


def _rows(batch: Batch) -> list[list]:
    """The leaves of a batch, row by row; what is none stays none."""
    return [
        [None] * len(batch.tokens) if leaf is None else list(leaf)
        for leaf in (*batch[:5], batch.prefix, *(batch.side or (None,) * 3))
    ]


def _batch(rows) -> Batch:
    leaves = [None if column[0] is None else np.stack(column) for column in zip(*rows, strict=True)]
    return Batch(*leaves[:5], Side(*leaves[6:]) if leaves[6] is not None else None, None, leaves[5])


@pytest.mark.parametrize("beside", [True, False])
def test_a_batch_of_pairs_is_a_function_of_the_step_however_it_is_shared(records, beside):
    plan = batches.plan(
        records, length=64, rows=4, seed=3, task=SequenceToSequence(), with_encoder=beside
    )
    whole, later = (
        batches.batch(records, plan, 5),
        batches.batch(records, plan, 5 + plan.rows_per_epoch),
    )
    for i in range(2):
        part = batches.batch(records, plan, 5, np.arange(2) + 2 * i)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_array_equal(a, b[2 * i : 2 * i + 2]), part, whole
        )
    assert not np.array_equal(whole.tokens, later.tokens), "another epoch has another order"


@pytest.mark.parametrize("beside", [True, False])
def test_a_pair_that_is_longer_than_a_row_loses_its_sources_end_first(records, beside):
    plan = batches.plan(
        records, length=14, rows=2, seed=None, task=SequenceToSequence(), with_encoder=beside
    )
    pairs = [
        pair
        for number in range(plan.batches_per_epoch)
        for pair in told(batches.batch(records, plan, number))
    ]
    assert plan.packing.cut > 0 and len(pairs) == len(PAIRS)
    for (read, answer), (source, target) in zip(pairs, PAIRS, strict=True):
        room = 14 if beside else 14 - len(target) - 1
        assert (read.decode(), answer.decode()) == (source[:room], target)


@pytest.mark.parametrize("beside", [True, False])
def test_an_answer_may_begin_with_a_token_of_the_tokenizer_and_its_text_have_an_end(
    beside, tmp_path
):
    """As T5's do; then a model needs no token besides the tokenizer's."""
    task, ids = (
        SequenceToSequence(begin=3, closed=True),
        lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32),
    )
    writer = store.Writer(tmp_path / "train", SIZE + 1)
    writer.add(task.pair(ids("one"), ids("eins"), TOKENIZER))
    writer.close(num_bytes=1, fingerprint="", facts={})
    opened = store.open_store(tmp_path / "train")
    found = batches.batch(
        opened,
        batches.plan(opened, length=14, rows=1, seed=None, task=task, with_encoder=beside),
        0,
    )
    read, begin = task.prompt(ids("one").tolist(), TOKENIZER, beside)
    assert (read, begin) == (([*b"one", END], [3]) if beside else ([], [*b"one", END, 3]))
    assert found.tokens[0, : len(begin) + 4].tolist() == [*begin, *b"eins"] and found.targets[0][
        found.weights[0] > 0
    ].tolist() == [*b"eins", END]
    assert not beside or found.side.tokens[0, :4].tolist() == read
    assert task.vocabulary(TOKENIZER) == SIZE


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    "task",
    [PrefixLanguageModel(0.3), UL2(), SpanCorruption()],
    ids=lambda task: type(task).__name__,
)
def test_a_row_can_be_put_together_from_its_halves_and_fits(task, beside):
    begin, modes = SIZE + task.extra_ids - 1, set()
    length = task.pairs_per_row(40, beside)
    assert length >= 30 or type(task) is UL2
    shares = []
    for n in range(60):
        ids = np.random.default_rng(n).integers(0, 256, length).astype(np.int32)
        read, write = task.split(ids, SIZE, np.random.default_rng(n))
        assert (
            max(len(read), len(write)) if beside else len(read) + len(write)
        ) <= 40 and begin not in (*read, *write)
        if type(task) is UL2:
            modes.add(int(read[0]) - SIZE - 99)
            read = read[1:]
        spans = np.split(write, np.flatnonzero(write >= SIZE))
        rest = [] if len(spans[0]) == 0 else spans[0]
        whole = np.concatenate(
            [spans[token - SIZE + 1][1:] if token >= SIZE else [token] for token in read] + [rest]
        )
        assert (whole == ids).all()
        shares.append(np.mean(write < SIZE))
    assert modes in (set(), {0, 1, 2})


def test_denoisers_are_drawn_as_often_as_they_weigh_and_have_their_papers_modes():
    names = [part.mode for part in UL2().parts]
    assert names == [0, 0, 1, 2, 2, 2, 2]
    task, ids = (
        UL2((SpanCorruption(), PrefixLanguageModel()), (1.0, 3.0)),
        np.arange(20, dtype=np.int32),
    )
    drawn = [
        int(task.split(ids, SIZE, np.random.default_rng(n))[0][0]) - SIZE - 99 for n in range(400)
    ]
    assert abs(np.mean(drawn) - 0.75) < 0.07
    with pytest.raises(ConfigError, match=r"data.task.weights"):
        UL2(weights=(1.0,))


def test_prefixes_have_their_share_on_average():
    for share in (0.25, 0.5, 0.8):
        ids, task = np.arange(100, dtype=np.int32), PrefixLanguageModel(share)
        lengths = [len(task.split(ids, SIZE, np.random.default_rng(n))[1]) for n in range(400)]
        assert (
            abs(np.mean(lengths) / 100 - share) < 0.04 and min(lengths) >= 1 and max(lengths) <= 99
        )


# --- prefixes ---


def weights_of(config: ModelConfig, spread: float = 0.2):
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(spread * draw.standard_normal(leaf.shape), jnp.float32), shapes
    )


PREFIX = dataclasses.replace(ROPE, prefix_lm=True)
IDS = np.random.default_rng(5).integers(0, PLAIN.vocabulary, (2, 12)).astype(np.int32)
WHERE = np.concatenate([np.arange(7), np.arange(5)]).astype(np.int32)[None].repeat(2, 0)
PIECE = np.repeat([1, 2], [7, 5]).astype(np.int32)[None].repeat(2, 0)
LENGTHS = np.repeat([4, 2], [7, 5]).astype(np.int32)[None].repeat(2, 0)
LAID = jax.tree.map(jnp.asarray, {"positions": WHERE, "segments": PIECE, "prefix": LENGTHS})
"""Rows of two pieces, of 7 and 5 tokens, whose prefixes have 4 and 2."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": "blockwise"},
        {"positions": "alibi"},
        {"positions": "t5", "t5_buckets": 8, "t5_distance": 12},
    ],
    ids=str,
)
def test_a_prefix_sees_itself_both_ways_and_the_rest_what_is_before_it(changes):
    config = dataclasses.replace(PREFIX, **changes)
    params = weights_of(config)
    read = jax.jit(lambda tokens: model.forward(config, params, tokens, **LAID).hidden)
    before = np.asarray(read(IDS))
    for t in range(12):
        changed = IDS.copy()
        changed[:, t] = (changed[:, t] + 1) % config.vocabulary
        after = (np.asarray(read(changed)) != before).any(-1)
        piece, place = PIECE[0], WHERE[0]
        seen = (piece == piece[t]) & (
            (place >= place[t]) | ((place < LENGTHS[0]) & (place[t] < LENGTHS[0][t]))
        )
        np.testing.assert_array_equal(after, seen[None].repeat(2, 0), f"token {t}")


def test_a_prefix_is_read_by_blocks_as_it_is_whole():
    params = weights_of(PREFIX)

    def total(params, attention):
        config = dataclasses.replace(PREFIX, attention=attention)
        hidden = model.forward(config, params, jnp.asarray(IDS), **LAID).hidden
        return jnp.sum(
            hidden * jnp.cos(jnp.arange(hidden.size, dtype=jnp.float32)).reshape(hidden.shape)
        )

    found, wanted = (
        jax.jit(jax.grad(total), static_argnums=1)(params, name)
        for name in ("blockwise", "reference")
    )
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    assert (
        max(
            float(jnp.abs(x - y).max())
            for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        )
        <= 1e-5 * largest
    )


def test_an_answer_is_written_as_its_prefix_lm_would_predict_it():
    """Prefill and decoding with a cache give the logits that a whole reading gives."""
    params, tokenizer = weights_of(dataclasses.replace(PREFIX, vocab_size=SIZE + 1)), TOKENIZER
    config = dataclasses.replace(PREFIX, vocab_size=SIZE + 1)
    writer = api.Model(config, params, tokenizer, task=SequenceToSequence())
    done = writer.complete(["abc", "longer one"], new_tokens=6, temperature=0.0)
    for one in done:
        source = [*tokenizer.encode(one.prompt).tolist(), SIZE]
        row = jnp.asarray([[*source, *one.ids]], jnp.int32)
        hidden = model.forward(
            config, params, row, prefix=jnp.full_like(row, len(source) - 1)
        ).hidden
        logp = jax.nn.log_softmax(
            model.unembed(config, params, hidden)[0, len(source) - 1 : -1, :SIZE]
        )
        np.testing.assert_allclose(one.logprobs, logp[np.arange(len(one.ids)), one.ids], atol=2e-5)


def test_a_prefix_lm_needs_a_task_with_prefixes():
    with pytest.raises(ConfigError, match=r"model.prefix_lm is true"):
        Experiment(model=PREFIX)
    with pytest.raises(ConfigError, match="decoder alone"):
        dataclasses.replace(PREFIX, encoder_layers=1)


# --- labels ---

LABELS = dataclasses.replace(PLAIN, classes=3, positions="sinusoidal")


@pytest.mark.parametrize(
    "changes",
    [{"pool": "mean", "causal": False}, {"pool": "first", "causal": False}, {"pool": "last"}],
    ids=str,
)
def test_a_label_depends_on_its_own_text_alone_wherever_that_stands(changes):
    config = dataclasses.replace(LABELS, **changes)
    params, text = weights_of(config), np.asarray([5, 9, 2, 40], np.int32)

    def logits(pieces, width):
        batch = jax.tree.map(
            jnp.asarray, filled([[Piece(p, p, np.ones(len(p))) for p in pieces]], width)
        )
        hidden = model.forward(
            config, params, batch.tokens, positions=batch.positions, segments=batch.segments
        ).hidden
        found = np.asarray(
            model.class_logits(config, params, hidden, batch.positions, batch.segments)
        )[0]
        return found[
            sum(map(len, pieces[: [p is text for p in pieces].index(True)])) + len(text) - 1
        ]

    alone = logits([text], 4)
    for pieces, width in (([text], 9), ([text[:2], text], 9), ([text, text[::-1]], 12)):
        np.testing.assert_allclose(logits(pieces, width), alone, atol=2e-5)
    other = np.asarray([6, 9, 2, 40], np.int32)
    text = other
    assert np.abs(logits([text], 4) - alone).max() > 1e-3
    assert "head" not in params and params["classes"]["kernel"].shape == (32, 3)


def test_labels_of_the_data_become_classes_and_weigh_once_each(tmp_path):
    path = written(
        tmp_path, pairs=[(f"text number {n}", "few" if n % 3 else "many") for n in range(60)]
    )
    config = DataConfig(
        source=Records(path, "en", "zh"),
        tokenizer=Bytes(),
        task=Classification(),
        validation=0.2,
        cache=str(tmp_path),
    )
    data = prepare(config)
    experiment = identity.resolve(
        Experiment(model=dataclasses.replace(PLAIN, vocab_size=None, causal=False), data=config),
        data,
    )
    assert (
        experiment.data.task.labels == ("few", "many")
        and experiment.model.classes == 2
        and experiment.model.vocab_size == SIZE
    )
    assert prepare(experiment.data).fingerprint == data.fingerprint, (
        "a run that goes on finds its own data"
    )
    plan = batches.plan(data.train, length=64, rows=4, seed=0, task=data.task)
    rows = [batches.batch(data.train, plan, number) for number in range(plan.batches_per_epoch)]
    assert (
        sum(batch.weights.sum() for batch in rows) >= data.train.header.num_examples
        and max(batch.tokens.max() for batch in rows) < SIZE
    )
    text, label = (
        bytes(rows[0].tokens[0][1 : list(rows[0].tokens[0]).index(END, 1)].tolist()).decode(),
        rows[0].targets[0][rows[0].weights[0] > 0][0],
    )
    assert label == int(int(text.split()[-1]) % 3 == 0)
    with pytest.raises(ConfigError, match=r"has the label 'few', which is not in data.task.labels"):
        prepare(dataclasses.replace(config, task=Classification(("many", "none"))))


def test_accuracy_counts_the_likeliest_and_pieces_that_are_all_likeliest():
    logits = jnp.asarray(np.eye(5)[[[1, 2, 3, 4, 0, 2]]], jnp.float32)
    targets, segments = jnp.asarray([[1, 2, 0, 4, 0, 0]]), jnp.asarray([[1, 1, 2, 2, 3, 3]])
    found = objectives._correct(
        logits, Batch(targets, targets, jnp.asarray([[1.0, 1, 1, 1, 1, 0]]), segments)
    )
    assert {k: float(v) for k, v in found.items()} == {"correct": 4, "exact": 2, "pieces": 3}


# --- further tokens ---


def packed_batch() -> Batch:
    weights = np.where(np.arange(12) == 3, 0.0, 1.0)[None].repeat(2, 0).astype(np.float32)
    return jax.tree.map(jnp.asarray, Batch(IDS, (IDS + 1) % 61, weights, PIECE, WHERE))


def test_further_targets_are_those_of_the_same_piece_that_count():
    batch = packed_batch()
    for by, (targets, weights) in enumerate(objectives.further_targets(batch, 8), 1):
        for t in range(12):
            inside = t + by < 12 and PIECE[0][t] == PIECE[0][t + by]
            assert (
                np.asarray(weights[:, t]) == (np.asarray(batch.weights)[:, t + by] if inside else 0)
            ).all()
            assert (
                not inside
                or (np.asarray(targets[:, t]) == np.asarray(batch.targets)[:, t + by]).all()
            )


def test_further_tokens_add_their_losses_and_decoding_does_without():
    config, batch = dataclasses.replace(PLAIN, ahead=2), packed_batch()
    params = weights_of(config)
    bare = {name: leaf for name, leaf in params.items() if name != "ahead"}
    plain, weight, _ = CrossEntropy().build(PLAIN)(bare, {}, batch, None)
    total, same, sums = CrossEntropy(ahead=0.5).build(config)(params, {}, batch, None)
    assert float(total) == pytest.approx(float(plain + 0.5 * sums["ahead"]), rel=1e-6) and float(
        weight
    ) == float(same)
    half = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch) for i in (0, 1)]
    assert float(sums["ahead"]) == pytest.approx(
        sum(
            float(CrossEntropy().build(config)(params, {}, part, None)[2]["ahead"]) for part in half
        ),
        rel=1e-5,
    )
    second = params | {"ahead": jax.tree.map(lambda leaf: leaf.at[1].set(0.0), params["ahead"])}
    without = CrossEntropy().build(config)(second, {}, batch, None)[2]["ahead"]
    assert abs(float(without) / float(sums["ahead"]) - 1) > 1e-3, (
        "each block predicts its own token"
    )
    held_out = CrossEntropy().build(config).held_out()
    told, _, _ = held_out(params, {}, batch, None)
    assert float(told) == pytest.approx(float(plain), rel=1e-6)
    changed = jax.tree.map(lambda leaf: leaf, params) | {
        "ahead": jax.tree.map(jnp.zeros_like, params["ahead"])
    }
    np.testing.assert_array_equal(
        *(model.forward(config, p, jnp.asarray(IDS)).hidden for p in (params, changed))
    )


# --- a teacher ---


def test_a_student_that_predicts_as_its_teacher_has_nothing_to_learn():
    params, batch, told = (
        weights_of(PLAIN),
        packed_batch(),
        Distillation("somewhere", temperature=2.0, share=1.0),
    )

    def objective(p):
        return told.build(PLAIN, teacher=PLAIN)(p, {"teacher": params}, batch, None)[0]

    total, slope = jax.jit(jax.value_and_grad(objective))(params)
    assert (
        abs(float(total)) < 1e-3
        and max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) < 1e-3
    )
    other = jax.tree.map(lambda leaf: 0.5 * leaf, params)
    logits = [
        np.asarray(objectives.predict(PLAIN, p, batch, None)[0], np.float64) / 2
        for p in (params, other)
    ]
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits)
    wanted = 4 * ((p * np.log(p / q)).sum(-1) * np.asarray(batch.weights)).sum()
    assert float(objective(other)) == pytest.approx(wanted, rel=1e-4)
    quarter = dataclasses.replace(told, share=0.25).build(PLAIN, teacher=PLAIN)
    half = quarter(other, {"teacher": params}, batch, None)[0]
    assert float(half) == pytest.approx(
        0.25 * wanted + 0.75 * float(CrossEntropy().build(PLAIN)(other, {}, batch, None)[0]),
        rel=1e-4,
    )


def test_a_teacher_that_can_not_teach_is_refused(tmp_path):
    told = dataclasses.replace(Experiment(), loss=Distillation(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"has no config.json, so it is not a run"):
        teacher.load_teachers(told, TOKENIZER)
    for wrong in ({"temperature": 0.0}, {"share": 0.0}):
        with pytest.raises(ConfigError, match="it needs"):
            Distillation("run", **wrong)


# --- whole runs ---

SHAPE = {"context": 48, "width": 32, "num_layers": 1, "num_heads": 2, "feed_forward": 64}
RUNS = {
    "beside": (SequenceToSequence(), ModelConfig(**SHAPE, encoder_layers=1), "zh"),
    "in one row": (SequenceToSequence(), ModelConfig(**SHAPE, prefix_lm=True, ahead=1), "zh"),
    "labels": (Classification(), ModelConfig(**SHAPE, causal=False), "label"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_over_records_trains_goes_on_and_answers(name, tiny_experiment, tmp_path, capsys):
    (task, shape, field), path = RUNS[name], tmp_path / "records.jsonl"
    lines = [
        {"en": f"{n} {'abc'[n % 3] * 4}", "zh": "abc"[n % 3] * 3, "label": "abc"[n % 3]}
        for n in range(200)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    data = DataConfig(
        source=Records(str(path), "en", field), tokenizer=Bytes(), task=task, validation=0.2
    )
    evaluation = dataclasses.replace(tiny_experiment.evaluation, prompt="7 bbbb")
    experiment = dataclasses.replace(
        tiny_experiment, model=shape, data=data, steps=60, evaluation=evaluation
    )
    train(dataclasses.replace(experiment, steps=30), tmp_path / "run")
    train(experiment, tmp_path / "run")
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    accuracies = [line["validation_accuracy"] for line in lines if "validation_accuracy" in line]
    assert len(accuracies) == 6 and accuracies[-1] > 0.9
    assert all(
        ("validation_exact_match" in line) == (name != "labels")
        for line in lines
        if "validation_loss" in line
    )
    capsys.readouterr()
    assert (
        cli.main(["sample", str(tmp_path / "run"), "--prompt", "300 cccc", "--temperature", "0"])
        == 0
    )
    assert capsys.readouterr().out == ("c\t300 cccc\n" if name == "labels" else "ccc\n")
    if name == "labels":
        (found,) = api.load(tmp_path / "run").classify(["300 cccc"])
        assert sum(np.exp(list(found.logprobs.values()))) == pytest.approx(1, abs=1e-5)
        with pytest.raises(ConfigError, match="classifies texts"):
            api.load(tmp_path / "run").generate("300 cccc")
        return
    loaded = api.load(tmp_path / "run")
    alone = loaded.complete(["300 cccc", "5 aaaa"], new_tokens=8, temperature=0.0)
    assert [one.text for one in alone] == ["ccc", "aaa"] and all(
        one.reason == "stop" for one in alone
    )
    beams = loaded.complete(["300 cccc", "5 aaaa"], new_tokens=8, beams=3)
    assert [one.text for one in beams] == ["ccc", "aaa"]
    with pytest.raises(ConfigError, match="the prompt is empty"):
        loaded.generate()
    with pytest.raises(ConfigError, match="can't share a prefix"):
        loaded.prefix("300")


@pytest.mark.slow
def test_a_student_learns_from_a_run_which_is_part_of_what_it_is(tiny_experiment, tmp_path, capsys):
    master, student = tmp_path / "master", tmp_path / "student"
    train(dataclasses.replace(tiny_experiment, steps=10), master)
    told = dataclasses.replace(
        tiny_experiment,
        loss=Distillation(str(master), share=0.7),
        model=dataclasses.replace(tiny_experiment.model, num_layers=1),
    )
    train(dataclasses.replace(told, steps=10), student)
    assert json.loads((student / "identity.json").read_text())["teacher"]
    losses = [
        json.loads(line).get("teacher_loss")
        for line in (student / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [one for one in losses if one is not None]
    assert len(losses) == 10 and losses[-1] < losses[0]
    train(dataclasses.replace(tiny_experiment, steps=20), master)
    with pytest.raises(ConfigError, match=r"teacher .its content. was"):
        train(dataclasses.replace(told, steps=20), student)
    with pytest.raises(ConfigError, match="another tokenizer"):
        other = dataclasses.replace(told.data, tokenizer=Characters())
        train(dataclasses.replace(told, data=other), tmp_path / "other")
