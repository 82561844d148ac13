"""Laws of filling in the middle."""

from __future__ import annotations

import numpy as np
import pytest

from gptjax import data
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Characters, DataConfig, FillInMiddle, LanguageModel, Text
from gptjax.data.rows import RowNumbers
from gptjax.data.tasks.middle import CURSOR
from gptjax.data.tokenizers.tokenizer import train_tokenizer

TEXTS = [f"def f{i}(x):\n    return x + {i * i}\n" for i in range(60)]
WIDTH, MARK, END = 32, 257, 256


@pytest.fixture
def prepared(tmp_path):
    file = tmp_path / "code.txt"
    file.write_text("\0".join(TEXTS), encoding="utf-8")

    def make(task):
        source = Text(str(file), separator="\0")
        told = DataConfig(source, Bytes(), 0.2, task, "documents", cache=str(tmp_path / "cache"))
        return data.prepare(told)

    return make


def rows_of(made, task, steps=range(6)):
    """The ids of each row, and which of them are predicted."""
    plan = data.plan(made.train, task=task, length=WIDTH, rows=8, seed=0)
    for step in steps:
        batch = data.batch(made.train, plan, step)
        assert batch.tokens.shape == (8, WIDTH) and batch.segments is None
        for tokens, targets, weights in zip(
            batch.tokens, batch.targets, batch.weights, strict=True
        ):
            real = weights > 0
            np.testing.assert_array_equal(tokens[real][1:], targets[real][:-1])
            yield [*tokens[real].tolist(), *targets[real][-1:].tolist()]


def whole(ids):
    """The text of a row put together again, and how it was cut."""
    if MARK not in ids:
        return ids, "plain"
    after, middle = ids.index(MARK + 1), ids.index(MARK + 2)
    assert ids[0] == MARK and ids[-1] == END and after < middle
    if after == 1:
        return [*ids[middle + 1 : -1], *ids[2:middle]], "suffix first"
    return [*ids[1:after], *ids[middle + 1 : -1], *ids[after + 1 : middle]], "prefix first"


def test_cut_rows_hold_the_text_of_the_plain_rows_and_all_of_it_is_predicted(prepared):
    task = FillInMiddle()
    made = prepared(task)
    plan = data.plan(made.train, task=LanguageModel(), length=WIDTH - 4, rows=8, seed=0)
    plain = []
    for step in range(6):
        batch = data.batch(made.train, plan, step)
        for tokens, targets, weights in zip(
            batch.tokens, batch.targets, batch.weights, strict=True
        ):
            real = weights > 0
            plain.append([*tokens[real].tolist(), *targets[real][-1:].tolist()])
    found = [whole(row) for row in rows_of(made, task)]
    kinds = [kind for _, kind in found]
    for (ids, kind), wanted in zip(found, plain, strict=True):
        assert ids == wanted, kind
    assert {"plain", "suffix first", "prefix first"} == set(kinds)
    assert 0.3 < kinds.count("plain") / len(kinds) < 0.7


def test_the_same_row_is_cut_elsewhere_in_another_epoch(prepared):
    task = FillInMiddle(share=1.0)
    made = prepared(task)
    plan = data.plan(made.train, task=task, length=WIDTH, rows=8, seed=0)
    row = np.arange(1, 9)
    first, second = (
        made.task.batch(made.train, plan, RowNumbers(row + later, np.zeros(8, np.int64), row))
        for later in (0, plan.rows_per_epoch)
    )
    rows = [
        [[*t[w > 0].tolist(), int(y[w > 0][-1])] for t, y, w in zip(*one[:3], strict=True)]
        for one in (first, second)
    ]
    assert [whole(ids)[0] for ids in rows[0]] == [whole(ids)[0] for ids in rows[1]]
    assert sum(a != b for a, b in zip(*rows, strict=True)) > 5


def test_the_shares_say_how_rows_are_cut(prepared):
    kinds = {}
    for suffix_first in (0.0, 1.0):
        task = FillInMiddle(share=1.0, suffix_first=suffix_first)
        rows = rows_of(prepared(task), task)
        kinds[suffix_first] = [whole(row)[1] for row in rows if len(row) > 2]
    assert set(kinds[1.0]) == {"suffix first"}
    # without a prefix both orders are one
    assert kinds[0.0].count("prefix first") > 0.8 * len(kinds[0.0]) and "plain" not in kinds[0.0]


def test_a_prompt_with_a_cursor_reads_like_a_row_up_to_its_middle():
    tokenizer, task = train_tokenizer(Bytes(), []), FillInMiddle(share=1.0, suffix_first=1.0)
    text = f"def f(x):\n    {CURSOR}\n"
    side, read = task.prompt(tokenizer.encode(text).tolist(), tokenizer, with_encoder=False)
    before, after = text.split(CURSOR)
    assert side == [] and read == [
        *(MARK, MARK + 1, *after.encode(), MARK + 2, *before.encode()),
    ]
    ids = np.frombuffer(f"{before}pass{after}".encode(), np.uint8).astype(np.int32)

    class Cut:
        """Draws the cut of the prompt."""

        def random(self):
            return 0.0

        def integers(self, *args):
            return np.array([len(before), len(before) + 4])

    row = task.arranged(ids, MARK, END, Cut()).tolist()
    assert row == [*read, *b"pass", END]
    plain = tokenizer.encode("x = ").tolist()
    assert task.prompt(plain, tokenizer, False) == LanguageModel().prompt(plain, tokenizer, False)


def test_a_tokenizer_without_an_end_is_refused(prepared):
    with pytest.raises(ConfigError, match="cannot end an answer"):
        FillInMiddle().equip(train_tokenizer(Characters(end_of_document=False), ["abc"]))
    with pytest.raises(ConfigError, match=r"data\.task\.share is 2"):
        FillInMiddle(share=2)
