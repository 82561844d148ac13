"""Generated visits follow their law, and the example of retrieval finds a paragraph."""

from __future__ import annotations

import random
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def test_items_are_drawn_as_the_law_says():
    """Of many users' next items, the law gives as many to its likeliest tenth as it promises."""
    example, draw = runpy.run_path(str(FOLDER / "visits.py")), random.Random(1)
    promised, kept, surprise, told = 0.0, 0, 0.0, 0.0
    for _ in range(300):
        *before, last = example["visits"](draw)
        chances = example["likely"](before)
        assert abs(chances.sum() - 1) < 1e-9 and chances.min() > 0
        best = np.argsort(-chances)[:10]
        promised += chances[best].sum()
        kept += last in best
        surprise -= np.log(chances[last])
        told -= (chances * np.log(chances)).sum()
    assert abs(promised - kept) < 3 * np.sqrt(300) / 2
    assert abs(surprise - told) < 0.15 * told


def test_what_follows_depends_on_the_last_item_of_each_genre():
    example, size = runpy.run_path(str(FOLDER / "visits.py")), 25
    chances = example["likely"]([2 * size + 3, 7 * size + 5, 7 * size + 6, 2 * size + 4, 7 * size])
    first, second = np.argsort(-chances)[:2]
    assert {first, second} == {2 * size + 5, 7 * size + 1}


def test_the_example_of_retrieval_finds_a_paragraph(tmp_path, monkeypatch, capsys):
    pytest.importorskip("bm25s", reason="needs the extra retrieval: pip install bm25s")
    example = runpy.run_path(str(FOLDER / "retrieval.py"))
    file = tmp_path / "house.txt"
    file.write_text(
        "Rooms\n\nThe kitchen is on the ground floor, beside the stairs, and has two doors and a"
        " window.\n\nTo heat the house, turn the wheel of the boiler in the cellar to the left"
        " until it clicks twice.\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(sys, "argv", ["retrieval.py", "How do I heat it?", str(file)])
    example["main"]()
    assert capsys.readouterr().out.startswith("[1] house.txt, BM25 ")
    texts, places = example["paragraphs"]([file])
    assert texts[0].startswith("Rooms The kitchen") and len(texts) == 2
    assert Counter(places) == {"house.txt": 2}
