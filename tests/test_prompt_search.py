"""Laws of the search for a prompt: held-out items have no part in the choice, nothing depends on an
order, equal candidates are chosen by name, and what luck has gained does not survive."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from test_generate import CONFIG, TOKENIZER

from gptjax import model
from gptjax.api import Model
from gptjax.cli.main import main
from gptjax.core.config import ConfigError
from gptjax.data.prompt_library import (
    answer_after,
    library_text,
    parse_library,
    prompt_text,
    read_library,
)
from gptjax.evaluate import search_command
from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.labelled import (
    LabelledItem,
    drawn_items,
    halves_of,
    read_labelled,
    shots_for,
)
from gptjax.evaluate.prompt_search import (
    PromptCandidate,
    PromptSearch,
    candidate_requests,
    grid_of,
    search_prompts,
)
from gptjax.evaluate.requests import Score, Scored
from gptjax.evaluate.search_command import SearchOptions, search_lines
from gptjax.evaluate.tasks import Chat

ROOT = Path(__file__).parents[1]
LIBRARY = parse_library(
    """
[b]
prompt = "{text} It was"
labels = [{ neg = "bad", pos = "good" }, { neg = "terrible", pos = "great" }]
[a]
prompt = "Review: {text}"
labels = { neg = "bad", pos = "good" }
[other]
prompt = "{passages} {question}"
[plain]
prompt = "{text}"
""",
    "f",
)
ITEMS = [LabelledItem({"text": f"item {n}."}, "pos" if n % 3 else "neg") for n in range(60)]
GRID = grid_of(LIBRARY, ITEMS, shots=(0, 2))


def noise(text: str) -> float:
    """A number in [0, 1) that a text always has."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


class Scripted:
    """Answers from a rule: (context, continuation) → ln p. Keeps what it was asked."""

    def __init__(self, rule=lambda context, word: noise(context + word)):
        self.rule, self.asked = rule, []

    def __call__(self, requests):
        assert all(isinstance(one, Score) for one in requests)
        self.asked.append(list(requests))
        return [Scored(self.rule(*one), False, 1) for one in requests]


def texts_of(requests) -> set[str]:
    return set(re.findall(r"item \d+\.", " ".join(one.context for one in requests)))


# --- the choice


def test_the_best_on_the_selection_half_is_chosen_and_figures_are_shares():
    selection, held_out = halves_of(ITEMS, 0)
    golds = {item.values["text"]: item.label for item in ITEMS}

    def rule(context, word):
        """Right with the words great and terrible alone."""
        text = re.findall(r"item \d+\.", context)[-1]
        return {"pos": " great", "neg": " terrible"}[golds[text]] == word

    found = search_prompts(Scripted(rule), GRID, ITEMS)
    assert found.chosen.words == {"neg": "terrible", "pos": "great"}
    assert found.rows[0].selection.value == found.held_out.value == 1.0
    assert (found.rows[0].selection.n, found.held_out.n) == (len(selection), len(held_out))
    assert found.majority == sum(item.label == "pos" for item in held_out) / len(held_out)
    negative = sum(item.label == "neg" for item in selection) / len(selection)
    others = [row.selection.value for row in found.rows[2:]]
    assert others == [pytest.approx(negative)] * 4, "a tie of words is the first label's"
    mean = (2 + 4 * negative) / 6
    assert found.gain.value == pytest.approx(1 - mean) and found.survived == pytest.approx(
        found.held_out_gain.value / found.gain.value
    )


def test_equal_candidates_are_chosen_by_name():
    found = search_prompts(Scripted(lambda *_: 0.0), GRID[::-1], ITEMS)
    names = sorted(one.name for one in GRID)
    assert found.chosen.name == names[0] and [row.name for row in found.rows] == names
    assert found.survived is None and found.gain.value == 0


@pytest.mark.parametrize("seed", range(4))
def test_no_held_out_item_is_asked_before_the_choice_or_shown_as_an_example(seed):
    _, held_out = halves_of(ITEMS, seed)
    hidden = {item.values["text"] for item in held_out}
    ask = Scripted()
    search_prompts(ask, GRID, ITEMS, seed=seed)
    assert len(ask.asked) == 2 * len(GRID)
    assert not hidden & set().union(*map(texts_of, ask.asked[: len(GRID)]))
    last = set()
    for one in itertools.chain(*ask.asked[len(GRID) :]):
        *shown, text = re.findall(r"item \d+\.", one.context)
        assert not hidden & {*shown}
        last.add(text)
    assert last == hidden


def test_a_choice_depends_on_the_selection_half_alone(monkeypatch):
    """With other held-out items, even with all labels turned, the same prompt is chosen."""
    selection, held_out = halves_of(ITEMS, 0)
    turned = [item._replace(label="neg" if item.label == "pos" else "pos") for item in held_out]
    found = search_prompts(Scripted(), GRID, ITEMS)
    monkeypatch.setattr(
        "gptjax.evaluate.prompt_search.halves_of", lambda items, seed: (selection, turned)
    )
    again = search_prompts(Scripted(), GRID, ITEMS)
    assert again.chosen == found.chosen and again.gain == found.gain
    assert [(r.name, r.selection) for r in again.rows] == [
        (r.name, r.selection) for r in found.rows
    ]
    assert again.held_out.value == pytest.approx(1 - found.held_out.value)


def test_no_order_changes_anything():
    found = search_prompts(Scripted(), GRID, ITEMS, seed=3)
    for seed in range(3):
        items, grid = list(ITEMS), list(GRID)
        random.Random(seed).shuffle(items)
        random.Random(seed + 1).shuffle(grid)
        ask = Scripted()
        assert search_prompts(ask, grid, items, seed=3) == found
        assert drawn_items(items, 20, 1) == drawn_items(ITEMS, 20, 1)


def test_what_luck_has_gained_does_not_survive():
    """Where answers are random, the best of many candidates looks good on the half that chose it,
    and is no better than the mean of the grid on the other."""
    items = [LabelledItem({"text": f"item {n}."}, "pos" if n % 2 else "neg") for n in range(80)]
    grid = [
        PromptCandidate(one.template._replace(name=f"{one.template.name}{n}"), one.words, 0, "text")
        for n in range(8)
        for one in GRID[:4:2]
    ]
    gains, kept = [], []
    for seed in range(30):
        count = iter(range(10**6))
        rule = lambda *_: noise(f"{seed} {next(count)}")  # noqa: B023, E731
        found = search_prompts(Scripted(rule), grid, items, seed=seed)
        gains.append(found.gain.value)
        kept.append(found.held_out_gain.value)
    assert min(gains) > 0.05
    assert abs(mean_of(kept).value) < 3 * mean_of(kept).stderr < 0.06


# --- who sees what


@pytest.mark.parametrize("seed", range(3))
def test_the_halves_share_no_item_and_have_each_label_alike(seed):
    twins = [*ITEMS, *ITEMS[:10], LabelledItem(ITEMS[0].values, "pos")]
    selection, held_out = halves_of(twins, seed)
    assert len(selection) + len(held_out) == len(twins)
    values = [{item.values["text"] for item in half} for half in (selection, held_out)]
    assert not values[0] & values[1]
    for label in ("pos", "neg"):
        counts = [sum(i.label == label for i in half) for half in halves_of(ITEMS, seed)]
        assert abs(counts[0] - counts[1]) <= 1
    assert halves_of(ITEMS, seed) != halves_of(ITEMS, seed + 1)


def test_no_item_is_its_own_example_and_labels_take_turns():
    pool = [*ITEMS[:9], ITEMS[0]]
    shared = shots_for(ITEMS[40], pool, 4, 0)
    assert sorted(item.label for item in shared) == ["neg", "neg", "pos", "pos"]
    for item in pool:
        shown = shots_for(item, pool, 4, 0)
        assert item.values not in [one.values for one in shown] and len(shown) == 4
    with pytest.raises(ConfigError, match=r"there are 8 items to show as examples, and 9"):
        shots_for(ITEMS[1], ITEMS[:9], 9, 0)


def test_a_request_is_the_prompt_with_its_examples_and_a_word():
    one = next(c for c in GRID if c.shots == 2 and "great" in c.words.values())
    shots = [ITEMS[1], ITEMS[0]]
    first, second = candidate_requests(one, ITEMS[5], shots)
    assert (
        first.context
        == second.context
        == ("item 1. It was great\n\nitem 0. It was terrible\n\nitem 5. It was")
    )
    assert (first.continuation, second.continuation) == (" terrible", " great")
    told = []
    chat = Chat(lambda messages: told.append(messages) or (1, 2), str)
    made = candidate_requests(one._replace(form="chat"), ITEMS[5], shots, chat)
    assert [(r.context, r.continuation) for r in made] == [((1, 2), "terrible"), ((1, 2), "great")]
    assert [m.text for m in told[0]][1::2] == ["great", "terrible"]


# --- grids and files


def test_the_grid_has_each_template_that_fits():
    assert len(GRID) == 3 * 2 and {one.template.name for one in GRID} == {"a", "b"}
    named = grid_of(LIBRARY, ITEMS, named=("plain",), shots=(0,))
    assert [one.words for one in named] == [{"neg": "neg", "pos": "pos"}]
    for names, words in (
        (("other",), r"other needs 'passages', and the items have text"),
        (("aa",), r"no prompt 'aa'.*Did you mean 'a'"),
    ):
        with pytest.raises(ConfigError, match=words):
            grid_of(LIBRARY, ITEMS, named=names)
    other = [LabelledItem({"text": "x"}, label) for label in "xy"]
    with pytest.raises(ConfigError, match=r"no prompt .* fits .* has the labels neg, pos"):
        grid_of({"b": LIBRARY["b"]}, other)
    with pytest.raises(ConfigError, match="two candidates are called a"):
        search_prompts(Scripted(), [*GRID, GRID[-1]], ITEMS)


def test_labelled_items_are_read_from_records_tables_and_questions(tmp_path):
    records = tmp_path / "r.jsonl"
    records.write_text('{"text": "a", "label": 0, "n": null}\n{"text": "b", "label": true}\n')
    assert read_labelled(records) == [({"text": "a"}, "0"), ({"text": "b"}, "true")]
    (tmp_path / "t.csv").write_text("text,label\na,x\nb,y\n")
    assert read_labelled(tmp_path / "t.csv") == [({"text": "a"}, "x"), ({"text": "b"}, "y")]
    questions = [{"query": q, "choices": ["no", "yes"], "gold": g} for q, g in (("a", 0), ("b", 1))]
    records.write_text("".join(json.dumps(one) + "\n" for one in questions))
    assert read_labelled(records) == [({"question": "a"}, "no"), ({"question": "b"}, "yes")]
    for text, words in (
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', r"r.jsonl:2 has no label"),
        ('{"text": "a", "label": "x"}\n', "1 items with 1 labels"),
        ('{"text": "a"}\n', "no field label, nor questions"),
        ('{"text": "a", "label": "x"}\nnonsense\n', "r.jsonl:2 .*fix or remove it"),
    ):
        records.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_labelled(records)
    with pytest.raises(ConfigError, match="nowhere is not there"):
        read_labelled("nowhere")


def test_a_library_that_is_written_is_read_back():
    nasty = parse_library(LIBRARY_OF_ODD, "f")
    for library in (LIBRARY, nasty, read_library(ROOT / "examples/prompts.toml")):
        assert parse_library(library_text(library.values()), "g") == library


LIBRARY_OF_ODD = (
    '["a.b \\"c\\""]\nprompt = "{x}\\u007f\\\\\\n\\ttab {{}} 中 \\U0001F600"\n'
    'defaults = {x = 3}\nexamples = [{x = ["p", "q"], answer = "1"}]\n'
)


# --- the command


@pytest.fixture
def reviews(tmp_path) -> Path:
    file = tmp_path / "reviews.jsonl"
    lines = [{"text": item.values["text"], "label": item.label} for item in ITEMS[:12]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "p.toml").write_text(library_text([LIBRARY["a"], LIBRARY["b"]]))
    return file


def test_the_command_keeps_the_prompt_that_it_has_measured(reviews, tmp_path, monkeypatch, capsys):
    tiny = Model(CONFIG, model.init(CONFIG, jax.random.key(0)), TOKENIZER)
    asked: list[Score] = []

    def respond(given, requests, *, rows):
        assert given is tiny and rows == 4
        asked.extend(requests)
        return Scripted()(requests)

    monkeypatch.setattr(search_command, "load", lambda *given, **more: tiny)
    monkeypatch.setattr(search_command, "respond", respond)
    out = tmp_path / "out"
    flags = ["--prompts", str(tmp_path / "p.toml"), "--search", "--named", "b", "--shots", "1"]
    assert main(["evaluate", "m", "--tasks", str(reviews), *flags, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    kept = json.loads((out / "search.json").read_text())
    assert kept["chosen"] in printed and f"{kept['held_out']['value']:.3f}" in printed
    assert len(kept["candidates"]) == 2
    chosen = read_library(out / "prompt.toml")["chosen"]
    assert len(chosen.examples) == 1 and len(chosen.labels) == 1
    _, held_out = halves_of(read_labelled(reviews), 0)
    for item in held_out:
        context = prompt_text(chosen, item.values)
        for word in chosen.labels[0].values():
            assert Score(context, answer_after(context, word)) in asked


def test_a_search_that_cant_be_is_refused_before_the_model_is_loaded(reviews, tmp_path, capsys):
    for flags, words in (
        (["--named", "c"], "no prompt 'c'; it has a, b"),
        (["--shots", "-1"], "shots needs numbers of examples"),
        (["--shots", "two"], "two"),
    ):
        given = ["--tasks", str(reviews), "--prompts", str(tmp_path / "p.toml"), "--search"]
        assert main(["evaluate", "no-such-model", *given, *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_a_search_is_told_in_figures():
    found: PromptSearch = search_prompts(Scripted(), GRID, ITEMS)
    lines = search_lines(found)
    assert "← chosen" in lines[1] and found.chosen.name in lines[1]
    assert re.search(r"gain over the mean of the grid: \+0\.\d{3} .* survives", lines[-1])
    one = found.rows[0]
    np.testing.assert_allclose(
        [float(x) for x in re.findall(r"\d\.\d{3}", lines[1])[:2]],
        [one.selection.value, one.held_out.value],
        atol=6e-4,
    )


def test_flags_of_a_search_are_checked():
    for more, words in (
        ({"shots": ()}, "--shots 0 4"),
        ({"shots": (-1,)}, "--shots 0 4"),
        ({"forms": ()}, "--forms text chat"),
        ({"limit": 1}, "at least 2 items"),
    ):
        with pytest.raises(ConfigError, match=words):
            SearchOptions("f", "p", **more)
