"""Laws of data: the batch is a pure function of the step, every pair is predicted once an epoch,
and prepared data is whole or absent."""

from __future__ import annotations

import dataclasses
import gzip
import json
import lzma
import os
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gptjax.core.config import ConfigError
from gptjax.data import (
    Batch,
    Bytes,
    Characters,
    DataConfig,
    Published,
    Text,
    batch,
    batches,
    plan,
    prepare,
    store,
)
from gptjax.data.packing import pack
from gptjax.data.permutation import permute
from gptjax.data.rows import RowNumbers
from gptjax.data.store import Store

BUILD = sys.modules["gptjax.data.build"]
"""The module, whose function has the same name."""
SHAKESPEARE = Path(__file__).parents[2] / "shared/data/tinyshakespeare/input.txt"


def numbered(path: Path, lengths: tuple[int, ...]) -> Store:
    """A store whose ids count up from 0, so that an id tells where it stands."""
    ends = np.cumsum(lengths)
    return written(
        path,
        [np.arange(end - n, end) for n, end in zip(lengths, ends, strict=True)],
        vocab_size=max(1, int(ends[-1])),
    )


def written(path: Path, examples: list, vocab_size: int) -> Store:
    writer = store.Writer(path, vocab_size)
    for ids in examples:
        writer.add(np.asarray(ids, np.int32))
    writer.close(num_bytes=0, fingerprint="test", facts={})
    return store.open_store(path)


STORES = {
    "one document": (100,),
    "several": (7, 30, 2, 2, 5, 64, 11),
    "single ids between": (1, 5, 1, 1, 9, 1),
    "pairs only": (2,) * 23,
    "shorter than a row": (3, 2),
    "one pair": (2,),
}
SHAPES = [(1, 1, 0), (4, 3, 1), (8, 2, 2**31 - 1), (64, 2, 7), (16, 4, None), (200, 2, None)]
"""(T, B, seed)"""


@pytest.fixture(params=STORES, ids=lambda name: name.replace(" ", "-"))
def lengths(request) -> tuple[int, ...]:
    return STORES[request.param]


@pytest.fixture
def made(lengths, tmp_path) -> Store:
    return numbered(tmp_path / "store", lengths)


def owners(lengths: tuple[int, ...]) -> np.ndarray:
    """The document of each id."""
    return np.repeat(np.arange(len(lengths)), lengths)


def all_pairs(lengths: tuple[int, ...]) -> list[int]:
    """The ids that have a next one in their document."""
    owner = owners(lengths)
    return np.flatnonzero(owner[:-1] == owner[1:]).tolist()


def rows_of(made: Store, layout: batches.Plan, epochs: int) -> list[Batch]:
    """The batches that hold the rows of the first epochs."""
    return [
        batch(made, layout, step)
        for step in range(-(-epochs * layout.rows_per_epoch // layout.rows))
    ]


def join(parts: list[Batch]) -> Batch:
    return Batch(
        *(None if field[0] is None else np.concatenate(field) for field in zip(*parts, strict=True))
    )


def equal(a: Batch, b: Batch) -> bool:
    return all(
        x is y or (x.dtype == y.dtype and np.array_equal(x, y)) for x, y in zip(a, b, strict=True)
    )


# --- the batch of a step


def test_a_batch_depends_on_the_step_alone(tmp_path):
    made = numbered(tmp_path / "store", STORES["several"])
    layout = plan(made, length=8, rows=4, seed=3)
    forward = [batch(made, layout, step) for step in range(20)]
    backward = [batch(made, layout, step) for step in reversed(range(20))][::-1]
    again = store.open_store(tmp_path / "store")
    fresh = [batch(again, plan(again, length=8, rows=4, seed=3), step) for step in (13, 0, 19)]
    assert all(equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert all(equal(forward[step], b) for step, b in zip((13, 0, 19), fresh, strict=True))
    assert not equal(forward[0], forward[1])


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(("length", "rows", "seed"), SHAPES)
def test_every_pair_is_predicted_exactly_once_in_every_epoch(
    made, lengths, length, rows, seed, isolated
):
    layout = plan(made, length=length, rows=rows, seed=seed, isolated=isolated)
    epochs = 1 if seed is None else 3
    whole = join(rows_of(made, layout, epochs))
    for epoch in range(epochs):
        of_epoch = slice(epoch * layout.rows_per_epoch, (epoch + 1) * layout.rows_per_epoch)
        counted = whole.weights[of_epoch] > 0
        tokens, targets = whole.tokens[of_epoch][counted], whole.targets[of_epoch][counted]
        assert sorted(tokens.tolist()) == all_pairs(lengths)
        assert np.array_equal(targets, tokens + 1)
    assert set(np.unique(whole.weights).tolist()) <= {0.0, 1.0}


def test_without_a_seed_rows_stand_in_order_and_nothing_follows_the_epoch(made, lengths):
    layout = plan(made, length=4, rows=3, seed=None)
    whole = join(rows_of(made, layout, 1))
    assert whole.tokens[whole.weights > 0].tolist() == all_pairs(lengths)
    after = batch(made, layout, layout.batches_per_epoch)
    assert not after.weights.any() and not after.tokens.any()


def test_epochs_differ_in_order_and_in_where_rows_begin(tmp_path):
    made = numbered(tmp_path / "store", (1001,))
    layout = plan(made, length=10, rows=layout_rows(1000, 10), seed=0)
    whole = [batch(made, layout, epoch) for epoch in range(8)]
    orders, shifts = set(), set()
    for each in whole:
        full = each.tokens[each.weights.all(axis=1)]
        orders.add(tuple(full[:, 0].tolist()))
        assert len({first % 10 for first in full[:, 0].tolist()}) == 1, "one shift an epoch"
        shifts.add(int(full[0, 0] % 10))
        assert full[:, 0].tolist() != sorted(full[:, 0].tolist())
    assert len(orders) == 8 and len(shifts) >= 3


def layout_rows(pairs: int, length: int) -> int:
    """Rows of one epoch, so that a batch is an epoch."""
    return -(-pairs // length) + 1


def test_another_seed_is_another_order(tmp_path):
    made = numbered(tmp_path / "store", (1001,))
    first = [batch(made, plan(made, length=10, rows=8, seed=seed), 0) for seed in range(20)]
    assert len({each.tokens.tobytes() for each in first}) == 20


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_parts_of_a_batch_are_the_batch(made, count):
    for seed in (None, 5):
        layout = plan(made, length=7, rows=6, seed=seed)
        for step in range(5):
            parts = np.split(np.arange(6), count)
            assert equal(
                join([batch(made, layout, step, rows) for rows in parts]), batch(made, layout, step)
            )


def test_the_stream_of_rows_does_not_depend_on_the_batch_size(made):
    streams = [
        join(
            [
                batch(made, plan(made, length=5, rows=rows, seed=4), step)
                for step in range(24 // rows)
            ]
        )
        for rows in (1, 2, 8, 24)
    ]
    assert all(equal(streams[0], other) for other in streams)


# --- pieces of documents in a row


@pytest.mark.parametrize(("length", "rows", "seed"), SHAPES)
def test_segments_and_positions_tell_pieces_of_documents_apart(made, lengths, length, rows, seed):
    layout = plan(made, length=length, rows=rows, seed=seed)
    owner = owners(lengths)
    for each in rows_of(made, layout, 1 if seed is None else 2):
        if len(lengths) == 1:
            assert each.segments is None and each.positions is None
            continue
        padding = each.weights == 0
        assert np.array_equal(each.positions == -1, padding) and np.array_equal(
            each.segments == 0, padding
        )
        for tokens, targets, weights, segments, positions in zip(*each[:5], strict=True):
            real = np.flatnonzero(weights)
            if not len(real):
                continue
            assert np.array_equal(real, np.arange(real[0], real[-1] + 1)), (
                "padding is at the ends of a row"
            )
            assert np.array_equal(owner[targets[real]], owner[tokens[real]]), (
                "a prediction stays in its document"
            )
            assert positions[real[0]] == 0
            for a, b in pairwise(real):
                same = owner[tokens[a]] == owner[tokens[b]]
                assert same == (segments[a] == segments[b])
                assert segments[b] >= segments[a]
                assert positions[b] == (positions[a] + 1 if same else 0)
                assert not same or tokens[b] == tokens[a] + 1


def test_without_isolation_the_same_rows_are_plain(made):
    apart, together = (
        plan(made, length=9, rows=2, seed=1, isolated=isolated) for isolated in (True, False)
    )
    for step in range(6):
        a, b = batch(made, apart, step), batch(made, together, step)
        assert b.segments is None and b.positions is None
        assert equal(a._replace(segments=None, positions=None), b)


def test_arrays_have_the_types_that_the_model_takes(made):
    each = batch(made, plan(made, length=6, rows=2, seed=0), 0)
    kinds = [None if field is None else (field.dtype.name, field.shape) for field in each]
    rest = [None, None] if made.header.num_examples == 1 else [("int32", (2, 6))] * 2
    assert kinds == [
        ("int32", (2, 6)),
        ("int32", (2, 6)),
        ("float32", (2, 6)),
        *rest,
        *[None] * 4,
    ]  # no side text, perturbation, prefix or columns


# --- the permutation


def test_every_row_has_random_numbers_of_its_own():
    """Functions of its number and the seed; without a seed they are others than with 0."""
    number = np.arange(6)

    def drawn(numbers, seed) -> list[float]:
        return [draw.random() for draw in RowNumbers(numbers, numbers, numbers).draws(seed)]

    seeds = (0, 1, None)
    assert len({value for seed in seeds for value in drawn(number, seed)}) == 18
    assert drawn(number[::-1], 1) == drawn(number, 1)[::-1]


def test_rows_are_packed_as_full_as_their_order_allows():
    """The first example of a row would not have fitted into the row before."""
    draw, room = np.random.default_rng(0), 8
    sizes = draw.integers(1, 10, (200, 2))
    order = draw.permutation(200)
    packing = pack(sizes, order, room)
    assert packing.cut == (sizes > room).any(1).sum() and sorted(packing.order) == [*range(200)]
    fits = np.minimum(sizes, room)[packing.order]
    rows = [fits[a:b] for a, b in pairwise(packing.firsts)]
    assert sum(map(len, rows)) == 200 and all(row.sum(0).max() <= room for row in rows)
    assert all((a.sum(0) + b[0]).max() > room for a, b in pairwise(rows))
    assert any(row.sum(0).max() == room and len(row) > 1 for row in rows)


@pytest.mark.parametrize("key", [(0, 0), (2**31 - 1, 12345)])
def test_permute_is_a_permutation(key):
    for count in [*range(1, 201), 1024, 4096, 4097]:
        assert sorted(permute(np.arange(count), count, key).tolist()) == list(range(count))


def test_permute_is_one_to_one_where_it_is_too_long_to_list():
    count = 1_000_003
    index = np.random.default_rng(0).choice(count, 20_000, replace=False)
    image = permute(index, count, (3, 4))
    assert image.min() >= 0 and image.max() < count and len(np.unique(image)) == len(index)
    assert abs(image.mean() / count - 0.5) < 0.01, "images spread over the whole range"


def test_permute_differs_by_seed_and_by_epoch():
    images = {
        permute(np.arange(100), 100, (seed, epoch)).tobytes()
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(images) == 100


def test_permute_of_a_part_is_the_part_of_permute():
    whole = permute(np.arange(777), 777, (1, 2))
    assert np.array_equal(permute(np.arange(700, 710), 777, (1, 2)), whole[700:710])


# --- from a text to stores


def letters(count: int, seed: int = 0) -> str:
    return bytes(
        np.random.default_rng(seed).choice(list(b"abcdefgh   \n"), count).astype(np.uint8)
    ).decode()


def configured(tmp_path: Path, text: str | list[str], **changes) -> DataConfig:
    """Data over a text file, or over JSONL with a document each."""
    path = tmp_path / ("text.txt" if isinstance(text, str) else "text.jsonl")
    path.write_text(
        text if isinstance(text, str) else "".join(json.dumps({"text": t}) + "\n" for t in text),
        encoding="utf-8",
        newline="",
    )
    return DataConfig(
        **{
            "source": Text(str(path)),
            "tokenizer": Bytes(),
            "cache": str(tmp_path / "cache"),
            **changes,
        }
    )


def texts(prepared, held: Store) -> list[str]:
    return [prepared.tokenizer.decode(held.ids[a:b]) for a, b in pairwise(held.offsets.tolist())]


DOCUMENTS = [f"{i}: {letters(5 + i % 37, i)}é" for i in range(200)]


def test_held_out_documents_are_never_trained_on_and_none_is_lost(tmp_path):
    result = prepare(configured(tmp_path, DOCUMENTS, validation=0.2))
    train, held_out = texts(result, result.train), texts(result, result.validation)
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(DOCUMENTS)
    assert train == [d for d in DOCUMENTS if d in set(train)], "in their order"
    assert 20 <= len(held_out) <= 60


def test_a_document_is_held_out_for_its_text_alone(tmp_path):
    """Neither its place nor its neighbours matter, and a larger share holds out more of the
    same."""
    result = {}
    for name, documents, share in (
        ("all", DOCUMENTS, 0.2),
        ("turned", DOCUMENTS[::-1], 0.2),
        ("half", DOCUMENTS[:100], 0.2),
        ("more", DOCUMENTS, 0.4),
    ):
        (tmp_path / name).mkdir()
        prepared = prepare(configured(tmp_path / name, documents, validation=share))
        result[name] = set(texts(prepared, prepared.validation))
    assert (
        result["all"] == result["turned"]
        and result["half"] == result["all"] & set(DOCUMENTS[:100])
        and result["all"] < result["more"]
    )


def test_equal_documents_are_held_out_together(tmp_path):
    result = prepare(configured(tmp_path, [*DOCUMENTS[:60], *DOCUMENTS[:60]], validation=0.3))
    assert not set(texts(result, result.train)) & set(texts(result, result.validation))


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_the_share_held_out_is_one_of_bytes_where_documents_differ_much(tmp_path, share, seed):
    sizes = [40_000, 9000, *[20 + 3 * n for n in range(100)]]
    documents = [letters(size, seed * 1000 + n) for n, size in enumerate(sizes)]
    messages = []
    result = prepare(configured(tmp_path, documents, validation=share), messages.append)
    held_out = result.validation.header.num_bytes
    total = held_out + result.train.header.num_bytes
    most = max(len(text.encode()) for text in texts(result, result.validation))
    assert share / 2 * total <= held_out <= max(2 * share * total, share * total + most)
    assert "of the bytes are held out" not in messages[-1] or share == 0.3
    again = prepare(configured(tmp_path, documents[::-1], validation=share))
    assert set(texts(again, again.validation)) == set(texts(result, result.validation))


def test_a_share_that_no_document_fits_is_reported(tmp_path):
    documents, messages = [letters(1000, n) for n in range(3)], []
    for share in np.linspace(0.02, 0.9, 12):
        config = configured(tmp_path, documents, validation=float(share), split="documents")
        try:
            result = prepare(config, messages.append)
        except ConfigError:
            continue
        held_out = result.validation.header.num_bytes / 3000
        assert ("of the bytes are held out" in messages[-1]) == (held_out > 2 * share)


@pytest.mark.parametrize("documents", [[letters(1000)], DOCUMENTS[:49]])
def test_of_few_documents_the_tail_of_each_is_held_out(tmp_path, documents):
    result = prepare(configured(tmp_path, documents, validation=0.1))
    assert texts(result, result.train) == [d[: int(len(d) * 0.9)] for d in documents]
    assert texts(result, result.validation) == [d[int(len(d) * 0.9) :] for d in documents]


@pytest.mark.skipif(
    not SHAKESPEARE.is_file(), reason="tiny Shakespeare is not at ../shared/data/tinyshakespeare"
)
def test_tiny_shakespeare_is_split_as_everywhere(tmp_path):
    config = DataConfig(
        source=Text(str(SHAKESPEARE)),
        tokenizer=Characters(end_of_document=False),
        validation=0.1,
        cache=str(tmp_path),
    )
    result = prepare(config)
    assert (result.train.header.num_tokens, result.validation.header.num_tokens) == (
        1_003_854,
        111_540,
    )
    assert result.tokenizer.vocab_size == 65
    text = SHAKESPEARE.read_text(encoding="utf-8")
    assert (
        result.tokenizer.decode(result.train.ids[-100:])
        + result.tokenizer.decode(result.validation.ids[:100])
        == text[1_003_754:1_003_954]
    )


def test_a_share_of_nothing_holds_out_nothing(tmp_path):
    result = prepare(configured(tmp_path, DOCUMENTS, validation=0.0))
    assert result.validation is None and texts(result, result.train) == DOCUMENTS


def test_a_share_that_leaves_nothing_is_refused_and_nothing_is_kept(tmp_path):
    for text, changes, half in (
        ("a", {"split": "documents", "validation": 1e-9}, "train"),
        ("a", {"validation": 0.5}, "train"),
    ):
        with pytest.raises(ConfigError) as caught:
            prepare(configured(tmp_path, text, **changes))
        message = str(caught.value)
        assert (
            f"leaves nothing for {half}" in message
            and "--data.validation" in message
            and "\n" not in message
        )
        assert not list(tmp_path.glob("cache/*"))


def test_the_header_counts_what_the_store_holds(tmp_path):
    result = prepare(configured(tmp_path, DOCUMENTS, validation=0.2))
    for held in (result.train, result.validation):
        documents = texts(result, held)
        encoded = [d.encode() for d in documents]
        assert held.header.num_examples == len(documents) == len(held.offsets) - 1
        assert held.header.num_bytes == sum(map(len, encoded))
        assert (
            held.header.num_tokens == len(held.ids) == held.header.num_bytes + 2 * len(documents)
        ), "a document stands between two marks"
        assert (held.header.vocab_size, held.header.dtype, held.header.fingerprint) == (
            257,
            "uint16",
            result.fingerprint,
        )


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path):
    result = written(tmp_path / "s", [[0, 99_999]], vocab_size=100_000)
    assert result.header.dtype == "int32" and result.ids[:].tolist() == [0, 99_999]


def test_an_id_outside_the_vocabulary_is_not_stored(tmp_path):
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=f"id {wrong}, outside"):
            written(tmp_path / str(wrong), [[1, wrong]], vocab_size=5)


def test_the_packers_measure_the_held_out_text(tmp_path):
    text = letters(60_000)
    result = prepare(configured(tmp_path, text))
    tail = text[int(len(text) * 0.9) :].encode()
    wanted = {"gzip -9": len(gzip.compress(tail, 9)), "xz -9": len(lzma.compress(tail, preset=9))}
    assert result.validation.header.facts.keys() == wanted.keys()
    for name, size in wanted.items():
        assert result.validation.header.facts[name] == pytest.approx(
            8 * size / len(tail), rel=0.01
        ), name
    assert result.train.header.facts == {}


# --- prepared once


def test_a_second_call_opens_what_the_first_one_made(tmp_path):
    config, messages = configured(tmp_path, DOCUMENTS, validation=0.2), []
    first = prepare(config, messages.append)
    assert (
        len(messages) == 1
        and "200 documents" in messages[0]
        and str(tmp_path / "cache") in messages[0]
        and "\n" not in messages[0]
    )
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    second = prepare(config, messages.append)
    assert (
        len(messages) == 1
        and {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")} == times
    )
    assert second.fingerprint == first.fingerprint and second.train.header == first.train.header
    assert (
        np.array_equal(second.train.ids[:], first.train.ids[:])
        and second.tokenizer.files() == first.tokenizer.files()
    )


def test_another_text_tokenizer_or_split_is_other_data(tmp_path):
    config = configured(tmp_path, DOCUMENTS)
    prints = [prepare(config).fingerprint]
    prints += [
        prepare(dataclasses.replace(config, **c)).fingerprint
        for c in ({"tokenizer": Characters()}, {"validation": 0.3}, {"split": "tail"})
    ]
    prints.append(prepare(configured(tmp_path, [*DOCUMENTS[:-1], DOCUMENTS[-1] + "!"])).fingerprint)
    assert len(set(prints)) == len(prints)
    assert len(list((tmp_path / "cache").iterdir())) == len(prints)


def test_where_it_is_kept_and_how_it_is_laid_out_do_not_make_it_other_data(tmp_path):
    config = configured(tmp_path, DOCUMENTS)
    same = dataclasses.replace(config, isolated=False, cache=str(tmp_path / "elsewhere"))
    assert prepare(config).fingerprint == prepare(same).fingerprint


def test_without_a_folder_data_is_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    prepare(configured(tmp_path, letters(500), cache=None))
    assert len(list((tmp_path / "home/gptjax/data").iterdir())) == 1


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("after", [0, 1])
def test_a_preparation_that_is_stopped_leaves_nothing_behind(tmp_path, monkeypatch, failure, after):
    config, calls = configured(tmp_path, DOCUMENTS), []
    tokenise = BUILD.StoreBuilder.tokenise

    def stopped(half):
        calls.append(half)
        if len(calls) > after:
            raise failure("stopped")
        tokenise(half)

    with monkeypatch.context() as patched:
        patched.setattr(BUILD.StoreBuilder, "tokenise", stopped)
        with pytest.raises(failure):
            prepare(config)
    assert not list(tmp_path.glob("cache/*")) and not list(tmp_path.glob("cache/.*"))
    messages = []
    prepare(config, messages.append)
    assert len(messages) == 1


def test_the_remains_of_a_killed_preparation_do_not_stop_the_next(tmp_path):
    config = configured(tmp_path, DOCUMENTS)
    made = next((tmp_path / "cache").glob(f"{prepare(config).fingerprint[:32]}"))
    shutil.copytree(made, made.with_name(f".making-{made.name}-{os.getpid()}"))
    shutil.rmtree(made)
    assert texts(prepare(config), prepare(config).train)


# --- text that a tokenizer cannot write


def published_for(folder: Path, text: str) -> Published:
    """A published tokenizer that knows the characters of a text, and drops all others."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.train_from_iterator([text] * 50, trainers.BpeTrainer(vocab_size=100))
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return Published(str(folder))


def test_text_that_a_tokenizer_loses_is_measured_refused_and_left_out_of_bits_per_byte(tmp_path):
    tokenizer = published_for(tmp_path / "tokenizer", "the quick brown fox jumps")
    text = "深度学习 the fox 数据 " * 500
    config = configured(tmp_path, text, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"cannot write \d+\.\d\d% of the text \(深 度") as caught:
        prepare(config)
    allowed = float(re.search(r"--data\.max-lost (\S+?)\.?$", str(caught.value))[1])
    messages = []
    result = prepare(dataclasses.replace(config, max_lost=allowed), messages.append)
    lost = len("深度学习数据".encode()) / len("深度学习thefox数据".encode())
    assert result.train.header.facts["lost"] == pytest.approx(lost, abs=0.01)
    whole = len(text[: int(0.9 * len(text))].encode())
    assert result.train.header.num_bytes == pytest.approx((1 - lost) * whole, rel=0.01)
    assert sum("cannot write" in line for line in messages) == 1
    covered = configured(tmp_path, "the brown fox jumps " * 500, tokenizer=tokenizer)
    assert "lost" not in prepare(covered).train.header.facts


# --- damaged or changed


def test_prepared_data_that_was_damaged_later_is_refused(tmp_path):
    config = configured(tmp_path, DOCUMENTS)
    folder = tmp_path / "cache" / prepare(config).fingerprint[:32]
    ids = (folder / "validation/ids.bin").read_bytes()
    (folder / "validation/ids.bin").write_bytes(ids[:-2])
    with pytest.raises(ConfigError, match=r"ids\.bin has .* delete the folder"):
        prepare(config)
    shutil.rmtree(folder)
    assert prepare(config).validation.ids[:].tobytes() == ids, "made again, the same"


@pytest.mark.parametrize("half", ["train", "validation"])
def test_data_without_a_seal_is_made_again(tmp_path, half):
    """It is from before there were seals, or someone deleted a part."""
    config, messages = configured(tmp_path, DOCUMENTS), []
    folder = tmp_path / "cache" / prepare(config).fingerprint[:32]
    (folder / half / store.SEAL).unlink()
    result = prepare(config, messages.append)
    assert texts(result, result.train) and len(messages) == 1 and store.is_sealed(folder / half)
    shutil.rmtree(folder / half)
    assert prepare(config).validation is not None and store.is_sealed(folder / half)


def test_records_that_were_passed_over_are_counted_and_the_first_is_named(tmp_path):
    config, messages = (
        configured(
            tmp_path, DOCUMENTS, source=Text(str(tmp_path / "text.jsonl"), max_bad_records=5)
        ),
        [],
    )
    with Path(config.source.path).open("a") as file:
        file.write('{"text": \n{"txt": 1}\n')
    for _ in range(2):
        prepare(config, messages.append)
        assert (
            messages[0].startswith("passed over 2 bad records")
            and f"the first: {config.source.path}:201 is not JSON" in messages[0]
        )
        messages.clear()


def test_stores_of_another_text_or_tokenizer_are_refused(tmp_path):
    configs = [
        configured(tmp_path, DOCUMENTS),
        configured(tmp_path, DOCUMENTS, tokenizer=Characters()),
        configured(tmp_path, DOCUMENTS, validation=0.2),
    ]
    folders = [tmp_path / "cache" / prepare(config).fingerprint[:32] for config in configs]
    for other in (1, 2):
        for half in ("train", "validation"):
            shutil.rmtree(folders[0] / half)
            shutil.copytree(folders[other] / half, folders[0] / half)
            with pytest.raises(ConfigError, match=r"another text or tokenizer; delete the folder"):
                prepare(configs[0])
            shutil.rmtree(folders[0])
            prepare(configs[0])


def test_a_text_that_changes_while_it_is_read_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    config = configured(tmp_path, DOCUMENTS)
    learn = BUILD.tokenizers.train_tokenizer

    def meanwhile(*args):
        Path(config.source.path).write_text(
            Path(config.source.path).read_text().replace("7: ", "8: ")
        )
        return learn(*args)

    monkeypatch.setattr(BUILD.tokenizers, "train_tokenizer", meanwhile)
    with pytest.raises(ConfigError, match=r"changed while it was read; start again"):
        prepare(config)
    assert not list(tmp_path.glob("cache/*")) and not list(tmp_path.glob("cache/.*"))


@pytest.mark.parametrize(("tokenizer", "most"), [(Bytes(), 2), (Characters(), 4)])
def test_a_source_is_read_twice_and_more_for_a_tokenizer_that_learns(
    tmp_path, monkeypatch, tokenizer, most
):
    begun, read = [], BUILD.sources.read_text_files
    monkeypatch.setattr(
        BUILD.sources,
        "read_text_files",
        lambda source, *more: (begun.append(source), read(source, *more))[1],
    )
    config = configured(tmp_path, DOCUMENTS, tokenizer=tokenizer)
    prepare(config)
    assert len(begun) == most
    prepare(config)
    assert len(begun) == most + 1, "the second time only to see that the text is the same"


def test_held_out_characters_that_training_lacks_are_counted(tmp_path):
    (tmp_path / "text.txt").write_text("ab" * 1000 + "ab" * 996 + "中a文中" * 2)
    lines: list[str] = []
    prepared = prepare(
        DataConfig(
            source=Text(str(tmp_path / "text.txt")),
            tokenizer=Characters(),
            split="tail",
            validation=0.5,
            cache=str(tmp_path / "cache"),
        ),
        lines.append,
    )
    assert any("6 held-out characters unknown to the tokenizer" in line for line in lines)
    unknown = prepared.tokenizer.unknown
    assert (prepared.validation.ids[:] == unknown).sum() == 6
    assert unknown not in prepared.train.ids[:]
