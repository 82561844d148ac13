"""What the examples and benchmarks of applications compute: divided data, corrections, keywords,
alarms."""

from __future__ import annotations

import gzip
import io
import json
import random
import runpy
from collections import Counter
from itertools import islice, permutations
from pathlib import Path

import numpy as np
import pytest

from gptjax.data import Bytes, Classification, DataConfig, Records, prepare
from gptjax.evaluate.requests import Scored
from gptjax.generate import Labelled

ROOT = Path(__file__).parents[1]


def example(name: str) -> dict:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def write_books(file: Path) -> Path:
    """Two books of ten chapters; Anna, whom no one writes small, is in both."""
    chapters = [
        {"work": work, "text": f"{number}\n\n" + f"The {word} that Anna saw was I. " * 9}
        for work, word in (("Seas", "whale"), ("Lands", "horse"))
        for number in range(10)
    ]
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        lines.write("".join(json.dumps(one) + "\n" for one in chapters))
    return file


def test_no_chapter_is_in_both_parts_of_the_topics_and_names_are_struck_out(tmp_path):
    books = example("book_topics")
    chapters = [
        {"work": work, "text": f"one\n\nThe {word} {chapter} of Anna Karenina. " + "x " * 150}
        for work, word in (("Seas", "whale"), ("Lands", "horse"))
        for chapter in range(60)
    ]
    made = list(books["labelled"](chapters))
    where = {
        part: {(work, text.split()[2]) for p, text, work in made if p == part}
        for part in ("train", "test")
    }
    assert where["train"] and where["test"] and not where["train"] & where["test"]
    assert all(text.startswith(("X whale", "X horse", "The")) for _, text, _ in made)
    assert all("of X X." in text and "Anna" not in text for _, text, _ in made)
    books["main"](str(write_books(tmp_path / "books.jsonl.gz")), str(tmp_path))
    lines = (tmp_path / "topics_train.tsv").read_text().splitlines()
    assert lines and all(line.split("\t")[1] in ("Seas", "Lands") for line in lines)


def test_no_right_word_of_the_held_out_misspellings_is_in_the_training_list(tmp_path):
    spelling = example("spelling_pairs")
    words = [f"{a}{b}mple" for a in "abcdefghijklm" for b in "aeiou"]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("".join(f"{word}x->{word}\n" for word in words) + "aache->cache, ache,\n")
    books = write_books(tmp_path / "books.jsonl.gz")
    spelling["main"](str(pairs), str(books), str(tmp_path))
    parts = {
        part: [
            line.split("\t")
            for line in (tmp_path / f"spelling_{part}.tsv").read_text().splitlines()
        ]
        for part in ("train", "test")
    }
    listed = {right.strip() for wrong, right in parts["train"] if wrong.endswith("x")}
    held_out = {right.strip() for _, right in parts["test"]}
    assert listed | held_out == set(words) and not listed & held_out and listed and held_out
    made = {right.strip() for _, right in parts["train"]} - set(words)
    assert made == {"that", "whale", "horse"}


def test_a_made_mistake_is_one_edit_away():
    spelling, correct = example("spelling_pairs"), benchmark("correct")
    draw = random.Random(0)
    for word in ("whale", "horse", "of") * 30:
        wrong = spelling["misspelled"](word, draw)
        assert wrong == word or word in correct["edits"](wrong)


def benchmark(name: str) -> dict:
    return runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))


def test_the_corrector_prefers_the_nearer_then_the_more_frequent_word():
    corrected = benchmark("correct")["corrected"]
    counts = Counter({"whale": 3, "while": 9, "horse": 1, "house": 1})
    assert corrected("whle", counts) == "while"
    assert corrected("hrose", counts) == "horse"
    assert corrected("wahlee", counts) == "whale", "two edits"
    assert corrected("qqqqqq", counts) == "qqqqqq"


def test_keywords_are_words_of_the_abstract_that_a_summary_uses_and_few_abstracts_have(tmp_path):
    papers = example("paper_summaries")
    texts = [f"We show graph{chr(97 + n)} kernels." for n in range(20)]
    known = [{"source": [text, "It is good."], "target": [text.lower()]} for text in texts]
    made = list(papers["records"](known, "keywords"))
    assert [one["completion"] for one in made] == [f" graph{chr(97 + n)}" for n in range(20)]
    summaries = list(papers["records"](known, "summaries"))
    assert summaries[0] == {
        "prompt": "We show grapha kernels. It is good.\n\nTL;DR:",
        "completion": " we show grapha kernels.",
    }


# --- alarms


def stream(draw: np.random.Generator, *parts: tuple[int, float]) -> list[bool]:
    """Lines that have a label with a probability, part after part."""
    return [bool(one) for count, share in parts for one in draw.random(count) < share]


def test_a_planted_shift_is_noticed_and_a_stream_without_one_is_quiet():
    alarms = example("sentiment_alarm")["alarms"]
    for seed in range(5):
        draw = np.random.default_rng(seed)
        shifted = stream(draw, (1000, 0.3), (300, 0.6))
        first = next(iter(alarms(shifted, learn=400, rate=1e-4)))
        assert first.change == "more" and 1000 < first.line < 1150 and first.share > 0.35
        fewer = stream(draw, (1000, 0.3), (400, 0.1))
        first = next(iter(alarms(fewer, learn=400, rate=1e-4)))
        assert first.change == "less" and 1000 < first.line < 1250 and first.share < 0.25
        assert not list(alarms(stream(draw, (2000, 0.3)), learn=400, rate=1e-5))


def test_false_alarms_are_as_rare_as_the_rate_says():
    """With the usual share known, on 200,000 lines. What passes the bound passes it by a step, so
    that they are rarer: about a twentieth."""
    parts = example("sentiment_alarm")
    draw, rate = np.random.default_rng(1), 1e-3
    for usual in (0.2, 0.5):
        watched, count = parts["watch"](usual, 2.0, rate), 0
        for has_label in stream(draw, (100_000, usual)):
            watched, passed = parts["add"](watched, has_label)
            count += any(passed)
        assert 0.01 * rate < count / 100_000 < 0.15 * rate


class Scripted:
    """Finds what is bad, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def classify(self, texts: list[str], batch: int) -> list[Labelled]:
        self.asked.extend(texts)
        return [Labelled(text, "negative" if "bad" in text else "positive", {}) for text in texts]


def test_a_stream_is_classified_as_it_comes_and_empty_lines_are_left_out():
    model, lines = Scripted(), iter(["bad\n", "\n", "good\n", "bad\n"])
    labels = example("sentiment_alarm")["labels_of"](lines, model)
    assert list(islice(labels, 2)) == ["negative", "positive"] and model.asked == ["bad", "good"]
    assert next(lines) == "bad\n"


@pytest.mark.parametrize("piped", [False, True])
def test_the_command_of_alarms_reads_a_file_or_a_pipe(piped, tmp_path, capsys, monkeypatch):
    news = tmp_path / "news.txt"
    news.write_text("good\nbad\ngood\n" * 40 + "bad\n" * 30)
    monkeypatch.setattr("gptjax.load", lambda run: Scripted())
    words = ["alarm", "runs/polarity", "--label", "negative", "--learn", "120"]
    monkeypatch.setattr("sys.argv", words if piped else [*words, str(news)])
    monkeypatch.setattr("sys.stdin", io.StringIO(news.read_text() if piped else ""))
    example("sentiment_alarm")["main"]()
    (line,) = capsys.readouterr().out.splitlines()[:1]
    assert line.startswith("line 13") and line.endswith("more negative, 100% of late")


# --- figures


def test_a_label_is_chosen_by_each_score_as_it_says():
    pytest.importorskip("sklearn")
    pytest.importorskip("gptjax.evaluate.respond")
    chosen = benchmark("label_words")["chosen"]
    logprobs, without, lengths = np.array([[-4.0, -6.0]]), np.array([-1.0, -4.0]), np.array([4, 12])
    found = {name: int(best[0]) for name, best in chosen(logprobs, without, lengths).items()}
    assert found == {"ln p": 0, "ln p by character": 1, "ln p less that without the text": 1}


def test_average_precision_is_its_expectation_over_all_orders():
    pytest.importorskip("gptjax.evaluate.respond")
    keywords = benchmark("keywords")
    words, right = list("abcde"), {"a", "b"}
    values = [keywords["average_precision"](one, right) for one in permutations(words)]
    assert np.mean(values) == pytest.approx(keywords["expected_at_random"](5, 2))
    assert max(values) == keywords["average_precision"](words, right) == 1.0
    assert min(values) == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_tf_idf_ranks_a_word_that_is_often_here_and_rare_elsewhere_first():
    pytest.importorskip("gptjax.evaluate.respond")
    keywords = benchmark("keywords")
    papers = [{"source": [text], "target": ["graph"]} for text in ("the kernel", "the tree") * 4]
    asked = keywords["Asked"](
        "the graph of the graph kernel", ["the", "kernel", "graph"], {"graph"}
    )
    assert keywords["tf_idf"](papers, [asked]) == [["graph", "kernel", "the"]]


def test_words_of_an_abstract_are_ranked_by_what_the_model_says_of_them(monkeypatch):
    pytest.importorskip("gptjax.evaluate.respond")
    keywords = benchmark("keywords")
    scores = {"tree": (-1.0, -1.0), "graph": (-2.0, -9.0), "of": (-3.0, -4.0)}

    def respond(model, requests):
        return [
            Scored(scores[one.continuation.strip()][one.context == "TL;DR:"], True, 1)
            for one in requests
        ]

    rank = keywords["by_likelihood"]
    monkeypatch.setitem(rank.__globals__, "respond", respond)
    found = rank(None, [keywords["Asked"]("a b", ["of", "graph", "tree"], {"graph"})], "\n\nTL;DR:")
    assert list(found.values()) == [[["tree", "graph", "of"]], [["graph", "of", "tree"]]]


def test_fused_rankings_prefer_what_both_rank_high():
    fused = benchmark("keywords")["fused"]
    assert fused(list("abcd"), list("abcd")) == list("abcd")
    assert fused(list("abcd"), list("bdca")) == list("badc")


def test_the_best_sentence_is_at_least_as_good_as_any(capsys):
    pytest.importorskip("rouge_score")
    summarise = benchmark("summarise")
    paper = {
        "source": ["We like trees.", "Graph kernels are fast."],
        "target": ["fast graph kernels"],
    }
    assert summarise["best_sentence"](paper) == paper["source"][1]
    assert summarise["first_line"]("\n\n Graphs are fast. \nTrees") == "Graphs are fast."
    summarise["said"]("copy", ["fast graph kernels", "fast graph kernels"], [paper, paper])
    assert "ROUGE-1 100.0 (100.0 to 100.0)" in capsys.readouterr().out


def test_the_texts_of_a_baseline_are_divided_as_the_run_divides_them(tmp_path):
    pytest.importorskip("sklearn")
    file = tmp_path / "words.tsv"
    file.write_text("".join(f"text {n} of many\t{'ab'[n % 2]}\n" for n in range(200)))
    settings = DataConfig(
        Records(str(file)), Bytes(), 0.2, Classification(), cache=str(tmp_path / "cache")
    )
    stores = prepare(settings)
    for part, store in zip(
        benchmark("classify")["divided"](settings), (stores.train, stores.validation), strict=True
    ):
        held = [store.ids[a:b] for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
        texts = {stores.tokenizer.decode(one[:-1]) for one in held}
        assert len(part.texts) == len(part.labels) == len(held) and set(part.texts) == texts
