"""Laws of augmented training text: what is swapped is swapped consistently and back again, slips of
the keyboard are functions of seed and row, and neither touches held-out text."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from gptjax.core.config import ConfigError, from_dict, stable_dict, to_dict
from gptjax.data import (
    Bytes,
    CharacterNoise,
    Classification,
    Conversations,
    DataConfig,
    Document,
    Records,
    SentencePiece,
    Swap,
    Text,
    batch,
    plan,
    prepare,
)
from gptjax.data.noise import Noisy, respelled, with_slips
from gptjax.data.swap import NAMES, swap_words, swapped_documents

PRONOUNS = """
He took his hat. | She took her hat.
The hat is his. | The hat is hers.
She took her hat and left. | He took his hat and left.
I saw her yesterday. | I saw him yesterday.
I gave her the book. | I gave him the book.
They met her in the garden. | They met him in the garden.
Her eyes were closed. | His eyes were closed.
It was her own fault. | It was his own fault.
We followed her. | We followed him.
The blame was hers, not mine. | The blame was his, not mine.
Tell her that I came. | Tell him that I came.
I told him so. | I told her so.
He hurt himself. | She hurt herself.
His was the larger house. | Hers was the larger house.
Is this book his? | Is this book hers?
His father knew her mother. | Her mother knew his father.
She loved him for his courage. | He loved her for her courage.
Ask her whether she is coming. | Ask him whether he is coming.
They made her chairwoman of it. | They made him chairman of it.
We saw her standing there. | We saw him standing there.
He is a friend of his. | She is a friend of hers.
The queen smiled at her husband. | The king smiled at his wife.
She let her go. | He let him go.
Everyone liked her very much. | Everyone liked him very much.
Nobody asked her why. | Nobody asked him why.
Her old coat kept her warm. | His old coat kept him warm.
"""
"""Sentences and what they become, each decided by hand."""


def test_pronouns_are_exchanged_by_their_place(record_property):
    pairs = [line.split(" | ") for line in PRONOUNS.strip().splitlines()]
    right = [swap_words(before, Swap()) == after for before, after in pairs]
    record_property("figure", f"{sum(right)} of {len(right)} sentences become what a person wrote")
    wrong = [pair for pair, ok in zip(pairs, right, strict=True) if not ok]
    assert len(wrong) <= 0.16 * len(pairs), wrong
    easy = [*range(9), 12, 21]
    assert all(right[i] for i in easy)


def test_words_and_names_keep_their_case_and_are_exchanged_back():
    swap = Swap(words=(("bachelor", "spinster"),))
    text = "MARY, a Queen and WIDOW, met the bachelor James; the Landlady and Mr Smith were men."
    for shift in (0, 3, 41):
        there = swap_words(text, swap, shift)
        assert swap_words(there, swap, shift) == text
        assert "King and WIDOWER, met the spinster" in there and "Landlord and Mrs Smith" in there
        assert not {"MARY", "James"} & set(re.findall(r"\w+", there)) or shift == 0
        assert swap_words("aman Heman there hers2", swap, shift) == "aman Heman there his2"
    assert swap_words("James met Mary", Swap(names=False)) == "James met Mary"


def test_a_name_is_the_same_one_throughout_a_document_and_another_elsewhere():
    swap, women = Swap(share=1.0), {woman for _, woman in NAMES}
    taken = set()
    for number in range(20):
        document = Document(f"James spoke. {number}. Then James, and James again.", "file")
        (other,) = swapped_documents(swap, document)
        names = re.findall("|".join(women), other.text)
        assert len(names) == 3 and len(set(names)) == 1
        taken.add(names[0])
        assert [other] == list(swapped_documents(swap, document))
    assert len(taken) > 5


def test_the_share_of_documents_is_swapped_and_the_same_ones_whatever_else_there_is():
    documents = [Document(f"He is number {i}.", f"f@{i}") for i in range(800)]
    swap = Swap(share=0.3, seed=2)
    kept = [next(swapped_documents(swap, one)) for one in documents]
    chosen = [a != b for a, b in zip(documents, kept, strict=True)]
    assert 0.24 < np.mean(chosen) < 0.36
    again = [
        next(swapped_documents(swap, one._replace(name="elsewhere"))).text for one in documents
    ]
    assert again == [one.text for one in kept]
    both = [list(swapped_documents(dataclasses.replace(swap, keep="both"), d)) for d in documents]
    assert [len(each) == 2 for each in both] == chosen
    assert all(each[0] == d for each, d in zip(both, documents, strict=True))
    other = [next(swapped_documents(dataclasses.replace(swap, seed=3), one)) for one in documents]
    assert other != kept


@pytest.fixture
def folder(tmp_path):
    """Two hundred small documents."""
    for i in range(200):
        (tmp_path / f"{i:03}.txt").write_text(f"He said that {i} kings were walking with his son. ")
    return tmp_path


def settings(folder, **more) -> DataConfig:
    source = Text(str(folder))
    more = {"tokenizer": Bytes(), "cache": str(folder.parent / "cache"), **more}
    return DataConfig(source=source, validation=0.2, **more)


def text_of(prepared, store) -> str:
    ids = store.ids[:]
    return prepared.tokenizer.token_bytes(ids[ids < 256].tolist()).decode()


def test_training_text_is_swapped_and_held_out_text_is_not(folder):
    plain, changed = prepare(settings(folder)), prepare(settings(folder, swap=Swap(share=1.0)))
    assert "queens were walking with her daughter" in text_of(changed, changed.train)
    assert "kings" not in text_of(changed, changed.train)
    assert text_of(changed, changed.validation) == text_of(plain, plain.validation)
    assert plain.content != changed.content


def test_settings_that_change_nothing_are_no_part_of_what_a_run_is(folder):
    plain = settings(folder)
    assert {"swap", "noise"}.isdisjoint(stable_dict(plain))
    changed = settings(folder, swap=Swap(0.5, words=(("rich", "poor"),)), noise=CharacterNoise(0.1))
    assert from_dict(DataConfig, to_dict(changed)) == changed
    assert prepare(dataclasses.replace(changed, swap=Swap())).content == prepare(plain).content
    wrong = (
        (lambda: Swap(share=-0.1), "data.swap.share"),
        (lambda: Swap(words=(("his", "their"),)), "'his' twice"),
        (lambda: Swap(words=(("a b", "c"),)), "one word"),
        (lambda: CharacterNoise(rows=1.5), "data.noise.rows"),
        (
            lambda: DataConfig(source=Conversations("c.jsonl"), swap=Swap(1.0)),
            "data.swap|data.task",
        ),
        (lambda: DataConfig(isolated=False, noise=CharacterNoise(0.1)), "data.isolated"),
    )
    for make, says in wrong:
        with pytest.raises(ConfigError, match=says):
            make()


# --- slips


def test_a_slip_changes_one_letter_of_a_longer_word_and_never_its_first():
    text = " ".join(["walking", "through", "that", "the", "Gärten", "x1"] * 50)
    found = with_slips(text, 1.0, np.random.default_rng(0)).split()
    for before, after in zip(text.split(), found, strict=True):
        assert after[0] == before[0] and abs(len(after) - len(before)) <= 1
        assert after == before or len(before) > 3
    changed = np.mean([a != b for a, b in zip(text.split(), found, strict=True)])
    assert 0.4 < changed <= 4 / 6
    few = with_slips(text, 0.2, np.random.default_rng(0)).split()
    assert 0.04 < np.mean([a != b for a, b in zip(text.split(), few, strict=True)]) < 0.2


@pytest.mark.parametrize("tokenizer", [Bytes(), SentencePiece(vocab_size=330)])
def test_noisy_rows_depend_on_seed_and_row_alone_and_predict_their_own_text(folder, tokenizer):
    data = prepare(settings(folder, tokenizer=tokenizer))
    clean = plan(data.train, length=48, rows=6, seed=3)
    noisy = clean._replace(task=Noisy(clean.task, CharacterNoise(0.5, 0.7), data.tokenizer))
    epoch = clean.batches_per_epoch
    before, after = batch(data.train, clean, 2), batch(data.train, noisy, 2)
    changed = (before.tokens != after.tokens).any(axis=1)
    assert changed.any() and not changed.all()
    for alone in range(6):
        row = batch(data.train, noisy, 2, np.asarray([alone]))
        np.testing.assert_array_equal(row.tokens[0], after.tokens[alone])
    for name in ("tokens", "targets", "weights"):
        np.testing.assert_array_equal(
            getattr(batch(data.train, noisy, 2), name), getattr(after, name)
        )
    other = noisy._replace(seed=4), batch(data.train, noisy, 2 + epoch)
    assert (batch(data.train, other[0], 2).tokens != after.tokens).any()
    for row in range(6):
        same = (after.segments[row, 1:] == after.segments[row, :-1]) & (after.weights[row, :-1] > 0)
        assert (after.targets[row, :-1] == after.tokens[row, 1:])[same].all()
    assert after.weights.sum() <= before.weights.sum() and after.tokens.shape == before.tokens.shape
    np.testing.assert_array_equal(after.segments, before.segments)


def test_a_noisy_text_keeps_its_label_and_its_place(tmp_path):
    lines = [f"this sentence number {i} is wonderful\t{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "r.tsv").write_text("\n".join(lines))
    made = DataConfig(
        source=Records(str(tmp_path / "r.tsv")),
        tokenizer=Bytes(),
        task=Classification(),
        validation=0.2,
        cache=str(tmp_path / "cache"),
    )
    data = prepare(made)
    clean = plan(data.train, length=96, rows=8, seed=1, task=data.task)
    noisy = clean._replace(task=Noisy(clean.task, CharacterNoise(0.9, 1.0), data.tokenizer))
    before, after = batch(data.train, clean, 0), batch(data.train, noisy, 0)
    assert (before.tokens != after.tokens).any()
    np.testing.assert_array_equal(before.targets, after.targets)
    np.testing.assert_array_equal(before.weights, after.weights)
    at = before.weights > 0
    np.testing.assert_array_equal(before.tokens[at], after.tokens[at])
    for row, column in np.argwhere(at):
        segment = after.segments[row] == after.segments[row, column]
        places = after.positions[row][segment]
        np.testing.assert_array_equal(places, np.arange(len(places)))


def test_what_cannot_be_spelled_again_stays_as_it_is(folder):
    tokenizer = prepare(settings(folder)).tokenizer
    wrong = np.asarray([0xC3, 65, 66, 67], np.int32)
    assert respelled(wrong, tokenizer, str.upper) is None
    middle = np.asarray([97, tokenizer.end_of_document, 98], np.int32)
    assert respelled(middle, tokenizer, str.upper) is None
    whole = np.asarray([97, 98, tokenizer.end_of_document], np.int32)
    assert respelled(whole, tokenizer, str.upper).tolist() == [65, 66, 256]
