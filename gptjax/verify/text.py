"""Proofs about text: it survives the tokenizer, and a batch is a function of the step alone.
(Setting) → Figure."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile

import numpy as np

from gptjax.data import GPT2, Bytes, SentencePiece, batches, prepare
from gptjax.data.store import Store
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.verify.setting import Figure, Setting

STRINGS = 2_000


def tokenizer(setting: Setting) -> Figure:
    """Encodes and decodes texts of the store and, if the tokenizer can represent any text, random
    Unicode; saves and loads the tokenizer."""
    spelled, store = setting.data.tokenizer, setting.data.train
    pieces = [store.ids[a : min(b, a + 50_000)] for a, b in itertools.pairwise(store.offsets[:21])]
    # a task may write ids of its own, behind the tokenizer's
    texts = [spelled.decode(ids[np.asarray(ids) < spelled.vocab_size]) for ids in pieces]
    kind = setting.experiment.data.tokenizer
    promised = isinstance(kind, (Bytes, GPT2)) or (
        isinstance(kind, SentencePiece) and kind.path is None
    )  # whatever the tokenizer says of itself
    lossless = promised or tokenizers.lossless(spelled)
    texts += random_texts(STRINGS) if lossless else []
    with tempfile.TemporaryDirectory(prefix="gptjax-verify-") as folder:
        tokenizers.save_tokenizer(folder, spelled)
        loaded = tokenizers.load_tokenizer(folder)
    encoded = loaded.encode_all(texts)
    changed = sum(
        not _survives(spelled, text, ids) for text, ids in zip(texts, encoded, strict=True)
    )
    changed += tokenizers.hash_tokenizer(loaded) != tokenizers.hash_tokenizer(spelled)
    kinds = (
        "" if lossless else "; only texts of the store, since this vocabulary lacks some characters"
    )
    return Figure(changed, 0, f"of {len(texts):,} texts change{kinds}")


def _survives(spelled: Tokenizer, text: str, ids: np.ndarray) -> bool:
    inside = len(ids) == 0 or (ids.min() >= 0 and ids.max() < spelled.vocab_size)
    return bool(inside and spelled.end_of_document not in ids and spelled.decode(ids) == text)


def random_texts(count: int) -> list[str]:
    """Returns strings of up to 80 characters from all of Unicode except surrogates, most of them
    from small ranges that normalisation tends to change."""
    draw = np.random.default_rng(0)
    small = (
        *((0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x2000, 0x206F)),
        *((0xFB00, 0xFB4F), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)),
    )
    ranges = (*small, (0, 0xD7FF), (0xE000, 0x10FFFF))

    def one() -> str:
        low, high = ranges[draw.integers(len(ranges))]
        return "".join(map(chr, draw.integers(low, high + 1, draw.integers(1, 41))))

    return [one() + (one() if draw.random() < 0.5 else "") for _ in range(count)]


# --- batches ---


MOST_IDS = 2_000_000
"""Number of ids of a store that are read as a whole epoch."""


def data(setting: Setting) -> Figure:
    """Reads a whole epoch of ids that are their own places: each pair (id, next id) must come once,
    and real batches must hold the ids of these places."""
    experiment, found = setting.experiment, setting.data
    part, numbered = numbered_store(found.train)
    plan = batches.plan(
        part,
        length=experiment.model.context,
        rows=experiment.batch,
        seed=experiment.seed,
        isolated=experiment.data.isolated,
    )
    wrong = _pairs_not_seen_once(numbered, plan)
    wrong += sum(
        not _same_again(part, numbered, plan, number)
        for number in (0, 1, plan.batches_per_epoch - 1, plan.batches_per_epoch, 123_456)
    )
    wrong += (
        len(
            {
                found.fingerprint,
                found.train.header.fingerprint,
                *([found.validation.header.fingerprint] if found.validation else []),
            }
        )
        - 1
    )
    if found.train.header.num_bytes <= 2**27:
        wrong += prepare(experiment.data, given=found.tokenizer).fingerprint != found.fingerprint
    if setting.run and (setting.run / "identity.json").is_file():
        recorded = json.loads((setting.run / "identity.json").read_text())
        wrong += (recorded["data"], recorded["tokenizer"]) != (
            found.content,
            tokenizers.hash_tokenizer(found.tokenizer),
        )
    return Figure(
        wrong,
        0,
        f"faults in {plan.pairs:,} pairs of ids, each of which comes once per epoch; fingerprint"
        f" {found.fingerprint[:12]}",
    )


def numbered_store(store: Store) -> tuple[Store, Store]:
    """Returns the beginning of a store, and the same with ids that are their own places."""
    ends = store.offsets[: np.searchsorted(store.offsets, MOST_IDS, side="right")]
    ends = ends if len(ends) > 1 else np.asarray([0, MOST_IDS])
    header = dataclasses.replace(store.header, num_tokens=int(ends[-1]), num_examples=len(ends) - 1)
    beginning = Store(header, store.ids[: ends[-1]], ends)
    return beginning, Store(
        dataclasses.replace(header, vocab_size=int(ends[-1])), np.arange(ends[-1]), ends
    )


def _pairs_not_seen_once(numbered: Store, plan: batches.Plan) -> int:
    """Counts pairs of the first epoch that are missing, double or not neighbours, or that see
    across the border of an isolated text."""
    times, crooked = np.zeros(len(numbered.ids), np.int64), 0
    begins = numbered.offsets[:-1]
    for number in range(plan.batches_per_epoch):
        # the last batch ends with rows of the next epoch
        rows = slice(0, plan.rows_per_epoch - number * plan.rows)
        tokens, targets, weights, segments, positions = (
            None if leaf is None else leaf[rows]
            for leaf in batches.batch(numbered, plan, number)[:5]
        )
        real = weights > 0
        times += np.bincount(tokens[real], minlength=len(times))
        crooked += int((targets[real] != tokens[real] + 1).sum())
        if plan.isolated:
            (row, column), mine = (
                np.nonzero(real),
                begins[np.searchsorted(begins, tokens[real], side="right") - 1],
            )
            crooked += int((positions[real] != np.minimum(tokens[real] - mine, column)).sum())
            same_row, same_text, same_segment = (
                np.diff(x) == 0 for x in (row, mine, segments[real])
            )
            crooked += int((same_row & (same_text != same_segment)).sum())
    once = np.ones(len(times), np.int64)
    once[numbered.offsets[1:] - 1] = 0  # the last id of a text has no next
    return int((times != once).sum()) + crooked


def _same_again(part: Store, numbered: Store, plan: batches.Plan, number: int) -> bool:
    """Whether a batch holds the ids at the places that its number gives, whole or in two halves,
    whatever was read before."""
    places, first = batches.batch(numbered, plan, number), batches.batch(part, plan, number)
    batches.batch(part, plan, number + 7)
    again = [
        batches.batch(part, plan, number, rows)
        for rows in np.array_split(np.arange(plan.rows), 2)
        if len(rows)
    ]
    joined = [
        None if leaf[0] is None else np.concatenate(leaf) for leaf in zip(*again, strict=True)
    ]
    same = all(
        (a is None and b is None) or np.array_equal(a, b)
        for a, b in zip(first, joined, strict=True)
    )
    real = places.weights > 0
    there = all(
        np.array_equal(a[real], part.ids[b[real]])
        for a, b in ((first.tokens, places.tokens), (first.targets, places.targets))
    )
    return same and there and np.array_equal(first.weights, places.weights)
