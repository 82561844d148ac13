"""Laws of tasks: what is asked does not depend on what is right, examples are never the item, and
what is counted is what was answered. The model is a script: responses are made up."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json

import numpy as np
import pytest

from gptjax.core.config import ConfigError
from gptjax.data.prompt_library import prompt_messages, prompt_text, read_library
from gptjax.data.tokenizers.chat import named_template
from gptjax.evaluate import identity
from gptjax.evaluate.catalogue import CATALOGUE, located_task
from gptjax.evaluate.compare import compare_reports, compare_values, mcnemar
from gptjax.evaluate.counting import items_of
from gptjax.evaluate.identity import Hashes, identify
from gptjax.evaluate.measures import baselines, measure
from gptjax.evaluate.options import TaskOptions, plan_tasks
from gptjax.evaluate.prompt_form import PromptForm, question_of
from gptjax.evaluate.records import (
    Choices,
    Contexts,
    Continuation,
    Free,
    Pair,
    Question,
    Whole,
    kind_of,
    read_task_records,
)
from gptjax.evaluate.report import Report, TaskReport, read_evaluation, write_evaluation
from gptjax.evaluate.requests import Roll, Rolled, Score, Scored, Write
from gptjax.evaluate.table import report_lines
from gptjax.evaluate.tasks import Chat, TaskConfig, ask, sample_of
from gptjax.generate import Completion

WORDS = ("red", "green", "a blue one", "yellow", "dark violet")


def dice(*parts: object) -> float:
    """A number in [0, 1) that depends on everything given."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def scripted(requests):
    """Responses that depend on the text of a request alone."""
    made = []
    for one in requests:
        if isinstance(one, Roll):
            made.append(Rolled(-0.5 * len(one.text), len(one.text)))
        elif isinstance(one, Write):
            made.append(Completion(str(one.context), f" {WORDS[int(4 * dice(one))]}", [], [], ""))
        else:
            size = 1 + len(one.continuation)
            made.append(Scored(-size * (0.5 + dice(one)), dice(one, "greedy") < 0.5, size))
    return made


def choices(n: int = 30, seed: int = 0, of: int = 4) -> list[Choices]:
    draw = np.random.default_rng(seed)
    return [
        Choices(
            str(number + 1),
            f"Which colour has number {number}?",
            tuple(str(word) for word in draw.permutation(WORDS)[:of]),
            int(draw.integers(of)),
        )
        for number in range(n)
    ]


def figures(task: TaskConfig, records, pool=()):
    asked = ask(task, records, pool)
    items = items_of(task, asked, scripted([r for one in asked for r in one.requests]))
    return items, measure(task, records, items)


def flat(asked) -> list:
    return [request for one in asked for request in one.requests]


# --- records

FILES = {
    "choices.jsonl": '{"query": "q", "choices": ["a", "b"], "gold": 1}\n',
    "published.jsonl": '{"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]},'
    ' "answerKey": "2"}\n',
    "letters.csv": "q,a,b,B\n",
    "named.csv": "question,A,B,answer\nq,a,b,1\n",
    "from_one.csv": "question,A,B,answer\nq,a,b,2\nq,a,b,1\n",
}


@pytest.mark.parametrize("name", FILES)
def test_choices_are_read_alike_however_they_are_published(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    first = read_task_records(tmp_path / name)[0]
    assert isinstance(first, Choices)
    assert first._replace(id="") == Choices("", "q", ("a", "b"), 1)


KINDS = (
    ('{"context": "c", "continuation": " d"}', Continuation("1", "c", " d")),
    (
        '{"context_options": ["c", "d"], "continuation": "e", "gold": 1}',
        Contexts("1", ("c", "d"), "e", 1),
    ),
    ('{"sentence_good": "g", "sentence_bad": "b", "field": "f"}', Pair("1", "g", "b", group="f")),
    ('{"sent_more": "m", "sent_less": "l"}', Pair("1", "m", "l", bias=True)),
    ('{"context": "c", "answer": "a", "aliases": ["a", "b"]}', Question("1", "c", "a", ("b",))),
    ('{"question": "c", "answer": "1 #### 2"}', Question("1", "c", "1 #### 2")),
    ('{"source": ["s.", "t."], "target": ["u", "v"]}', Free("1", "s. t.", ("u", "v"))),
    ('{"text": "t"}', Whole("1", "t")),
)


@pytest.mark.parametrize(("line", "record"), KINDS)
def test_a_record_is_recognised_by_its_fields(tmp_path, line, record):
    with gzip.open(tmp_path / "records.jsonl.gz", "wt") as file:
        file.write(line + "\n")
    assert read_task_records(tmp_path / "records.jsonl.gz") == [record]
    (tmp_path / "utf16.jsonl").write_text(line + "\n", encoding="utf-16-le")
    assert read_task_records(tmp_path / "utf16.jsonl", "utf-16-le") == [record]


REFUSED = {
    '{"colour": "red"}': r":1 has the fields colour; a record needs query, choices, gold; or",
    '{"query": "q", "choices": ["a"], "gold": 0}': r":1 has 1 in choices; it needs at least 2",
    '{"query": "q", "choices": ["a", "b"], "gold": 2}': r":1 has 2 in gold.*from 0 to 1",
    '{"query": "q", "choices": ["a", "b"], "gold": "C"}': r":1 has 'C' in gold.*letter from A to B",
    '{"query": "q", "choices": ["a", 5], "gold": 0}': r":1 has a list in choices.*list of texts",
    '{"text": "t"}\n{"good": "g", "bad": "b"}': r":2 is of the kind pair.*before it.*whole",
    '{"text": "t"}\n{"text": ': r":2 is not JSON",
    '{"text": " "}': r":1 has an empty text",
    "": r"has no records",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_record_is_refused_in_one_line_with_its_place(tmp_path, text):
    (tmp_path / "records.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=REFUSED[text]) as refused:
        read_task_records(tmp_path / "records.jsonl")
    assert "\n" not in str(refused.value) and "data.source" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q,a,b,0\nr,a,b,2\n", "answers 0 and 2 of 2 choices"),
        ("q,a,b,A\nr,a,b,1\n", "letters and others that are numbers"),
        ("q,a,b,A\nr,a,b\n", ":2 has 3 columns, and the table has 4"),
    ],
)
def test_a_table_whose_answers_are_unclear_is_refused(tmp_path, text, message):
    (tmp_path / "records.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_task_records(tmp_path / "records.csv")


# --- requests


def test_permuting_choices_permutes_nothing_else():
    records = choices()
    task = TaskConfig("colours", metric="acc_norm")
    moved = []
    for number, record in enumerate(records):
        order = np.random.default_rng(number).permutation(4)
        moved.append(
            record._replace(
                choices=tuple(record.choices[at] for at in order),
                gold=int(np.flatnonzero(order == record.gold)[0]),
            )
        )
    items, made = figures(task, records)
    items_moved, made_moved = figures(task, moved)
    assert {*flat(ask(task, records))} == {*flat(ask(task, moved))}
    assert [item.values for item in items] == [item.values for item in items_moved]
    assert [one.figure for one in made.measures] == [one.figure for one in made_moved.measures]
    brier, brier_moved = (one.calibration[0].measures[2].figure.value for one in (made, made_moved))
    assert brier == pytest.approx(brier_moved, abs=1e-12)


RECORDS = {
    "choices": choices(12),
    "contexts": [
        Contexts(str(n), (f"{n} ran, since {n}", f"{n} ran, since he"), f"was {n}", n % 2)
        for n in range(12)
    ],
    "question": [
        Question(str(n), f"What is {n} + 1?", f"it is {n}", (f"{n}!",)) for n in range(12)
    ],
    "free": [Free(str(n), f"Say {n}.", (f"the {n}",)) for n in range(12)],
}


def other_answer(record):
    if isinstance(record, Choices | Contexts):
        return record._replace(gold=1 - min(record.gold, 1))
    if isinstance(record, Question):
        return record._replace(answer="secret", aliases=("secret too",))
    return record._replace(references=("secret",))


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("shots", [0, 3])
def test_the_right_answer_never_reaches_a_request(kind, shots):
    records = RECORDS[kind]
    task = TaskConfig("task", form="both", shots=shots)
    for at, record in enumerate(records):
        changed = [*records[:at], other_answer(record), *records[at + 1 :]]
        before, after = ask(task, records, records), ask(task, changed, changed)
        for old, new in zip(before, after, strict=True):
            if old.record.id == record.id:
                assert old.requests == new.requests


@pytest.mark.parametrize("kind", RECORDS)
def test_examples_are_as_many_as_wanted_and_never_the_item_nor_its_copy(kind):
    records = RECORDS[kind]
    copies = [*records, *(record._replace(id=f"copy of {record.id}") for record in records)]
    task = TaskConfig("task", shots=3, prompt=PromptForm(question="<{question}>"))
    plain = TaskConfig("task", prompt=PromptForm(question="<{question}>"))
    alone = {one.record.id: one.requests[0].context for one in ask(plain, copies)}
    for one in ask(task, copies, copies):
        context = one.requests[0].context
        before = context.removesuffix(alone[one.record.id])
        assert before != context and context.count("<") == 4
        assert not any(f"<{text}" in before for text in question_of(one.record))


def test_examples_depend_on_the_seed_and_on_no_limit():
    records = choices(40)
    contexts = {
        seed: [
            one.requests[0].context
            for one in ask(TaskConfig("t", shots=2, seed=seed), records, records)
        ]
        for seed in (0, 1)
    }
    assert contexts[0] != contexts[1]
    few, _ = sample_of(records, 7, seed=0)
    again = ask(TaskConfig("t", shots=2, limit=7), few, records)
    assert {one.requests[0].context for one in again} <= {*contexts[0]}
    with pytest.raises(ConfigError, match="and 40 are wanted; use fewer"):
        ask(TaskConfig("t", shots=40), records, records)


def test_a_sample_is_drawn_by_its_seed_in_the_order_of_the_file_and_says_so():
    records = choices(50)
    drawn, said = sample_of(records, 10, seed=3)
    assert said == "10 of 50 records, drawn with seed 3"
    assert sample_of(records, 10, seed=3)[0] == drawn != sample_of(records, 10, seed=4)[0]
    assert drawn == [record for record in records if record in drawn] != records[:10]
    assert sample_of(records, 10, 0, first=True) == (records[:10], "the first 10 of 50 records")
    assert sample_of(records, 60, 0) == (records, "all 50 records")


def test_what_separates_a_context_from_an_option_is_one_space_or_none():
    def pairs(record, **more):
        return [one[:2] for one in flat(ask(TaskConfig("t", **more), [record]))]

    assert pairs(Continuation("1", "2 + 2 =", " 4")) == [("2 + 2 =", " 4")]
    assert pairs(Continuation("1", "I am", "here")) == [("I am", " here")]
    assert pairs(Continuation("1", "Answer: ", "A")) == [("Answer: ", "A")]
    assert pairs(Pair("1", "good", "bad")) == [("", " good"), ("", " bad")]
    assert pairs(Pair("1", "more", "less", bias=True)) == [("", "more"), ("", "less")]
    form = PromptForm(cue="\nAnswer:")
    assert pairs(Choices("1", "q", ("a", "b"), 0), prompt=form, form="letters") == [
        ("q\nA. a\nB. b\nAnswer:", " A"),
        ("q\nA. a\nB. b\nAnswer:", " B"),
        ("", "A"),
        ("", "B"),
    ]


def test_braces_of_a_record_stay_as_they_are():
    record = Choices("1", "{question} {group} {letter}", ("{choice}", "{0}"), 0)
    (asked,) = ask(TaskConfig("t", form="letters"), [record])
    assert asked.prompt == "{question} {group} {letter}\nA. {choice}\nB. {0}\nAnswer:"


def test_a_prompt_of_a_library_is_asked_as_it_is_served(tmp_path):
    library = tmp_path / "prompts.toml"
    library.write_text(
        '[mood]\nsystem = "You judge {what}."\nprompt = "Review: {text}\\nMood:"\n'
        'defaults = { what = "films" }\nexamples = [{ text = "Dull.", answer = "bad" }]\n'
        '[two]\nprompt = "{a} {b}"\n'
    )
    (tmp_path / "moods.jsonl").write_text(
        '{"query": "A {text} delight", "choices": ["bad", "good"], "gold": 1}\n'
    )
    options = TaskOptions(str(tmp_path / "moods.jsonl"), prompts=str(library), named="mood")
    (plan,) = plan_tasks(options)
    template = read_library(library)["mood"]
    (asked,) = ask(plan.task, plan.items)
    assert asked.requests[0].context == prompt_text(template, {"text": "A {text} delight"})
    seen = []
    chat = Chat(lambda messages: seen.append(list(messages)) or [1], str)
    ask(plan.task, plan.items, (), chat)
    assert seen == [prompt_messages(template, {"text": "A {text} delight"})]
    with pytest.raises(ConfigError, match="two has 2 variables without a default"):
        plan_tasks(dataclasses.replace(options, named="two"))


def test_a_conversation_has_examples_as_turns_and_no_space_before_the_answer():
    seen = []

    def write(messages):
        seen.append([tuple(message[:2]) for message in messages])
        return [len(seen)]

    chat = Chat(write, lambda ids: f"ids {list(ids)}", stop=("<end>",), stop_ids=(7,))
    record = Choices("9", "Which?", ("a", "b"), 1)
    pool = [Choices("1", "Who?", ("c", "d"), 1)]
    task = TaskConfig("t", shots=1, prompt=PromptForm(description="Be brief."))
    (asked,) = ask(task, [record], pool, chat)
    turns = [("user", "Who?"), ("assistant", "d"), ("user", "Which?")]
    assert seen == [[("system", "Be brief."), *turns]]
    assert [one[:2] for one in asked.requests[:2]] == [((1,), "a"), ((1,), "b")]
    (asked,) = ask(TaskConfig("t"), [Question("1", "q", "a")], (), chat)
    assert asked.requests[0].settings.stop == ("\n", "<end>")
    assert asked.requests[0].settings.stop_ids == (7,)
    with pytest.raises(ConfigError, match="are no conversation"):
        ask(TaskConfig("t"), [Whole("1", "text")], (), chat)


# --- what is counted


def test_each_rule_takes_the_option_that_it_says():
    record = Choices("1", "q", ("a", "bb bb bb", "ééé", "dd"), 0)
    (asked,) = ask(TaskConfig("t"), [record])
    with_context = [Scored(-3.0, False, 1), Scored(-5.0, False, 4)]
    with_context += [Scored(-4.0, False, 1), Scored(-4.5, False, 3)]
    without = [Scored(x, False, 1) for x in (-1.0, -6.0, -4.0, -9.0)]
    for gold, rule in (
        (0, "acc"),
        (1, "acc_norm"),
        (1, "acc_bytes"),
        (1, "acc_token"),
        (3, "acc_pmi"),
    ):
        asked_gold = asked._replace(record=record._replace(gold=gold))
        (item,) = items_of(TaskConfig("t", metric=rule), [asked_gold], [*with_context, *without])
        assert (item.chosen, item.values[rule]) == (gold, 1.0), rule
    assert item.logprobs == (-3.0, -5.0, -4.0, -4.5)
    # per character and per byte differ where characters have several bytes
    scores = [Scored(-4.0, False, 2), Scored(-2.0, False, 1)] * 2
    (asked,) = ask(TaskConfig("t"), [Choices("1", "q", ("ééé", "xx"), 0)])
    (item,) = items_of(TaskConfig("t"), [asked], scores)
    assert (item.values["acc_norm"], item.values["acc_bytes"]) == (0.0, 1.0)


def test_figures_of_continuations_and_texts_are_those_of_their_formulas():
    records = [Continuation("1", "a", "bc"), Continuation("2", "d", "é")]
    asked = ask(TaskConfig("t"), records)
    items = items_of(TaskConfig("t"), asked, [Scored(-1.0, True, 1), Scored(-3.0, False, 1)])
    values = {m.name: m.figure.value for m in measure(TaskConfig("t"), records, items).measures}
    assert values["acc"] == 0.5
    assert values["perplexity"] == pytest.approx(np.exp(2.0))
    assert values["bits_per_byte"] == pytest.approx(4 / np.log(2) / 4)
    texts = [Whole("1", "one two"), Whole("2", "drei é")]
    items = items_of(
        TaskConfig("t"), ask(TaskConfig("t"), texts), [Rolled(-7.0, 3), Rolled(-7.0, 4)]
    )
    values = {m.name: m.figure.value for m in measure(TaskConfig("t"), texts, items).measures}
    assert values["bits_per_byte"] == pytest.approx(14 / np.log(2) / 14)
    assert values["byte_perplexity"] == pytest.approx(np.exp(1))
    assert values["word_perplexity"] == pytest.approx(np.exp(14 / 4))
    assert values["token_perplexity"] == pytest.approx(np.exp(14 / 7))


@pytest.mark.parametrize(
    ("right", "written", "strict", "flexible"),
    [
        ("72", "72", 1, 1),
        ("72", " 72.\n", 1, 1),
        ("72", "It is 70 + 2 = 72 cups", 0, 1),
        ("1072", "$1,072", 1, 1),
        ("2 and 3 #### 5", "so\n#### 5", 1, 1),
        ("2 and 3 #### 5", "the answer is 5", 0, 1),
        ("2 and 3 #### 5", "#### 4, not 5", 0, 1),
        ("5", "none", 0, 0),
    ],
)
def test_numbers_are_extracted_strictly_and_flexibly(right, written, strict, flexible):
    record = Question("1", "q", right)
    asked = ask(TaskConfig("t"), [record])
    (item,) = items_of(TaskConfig("t"), asked, [Completion("", written, [], [], "stop")])
    assert item.values["number_strict"] == strict
    assert item.values["number_flexible"] == flexible


def test_answers_that_are_empty_are_counted():
    records = RECORDS["question"]
    asked = ask(TaskConfig("t"), records)
    made = [Completion("", " " if at < 5 else "it", [], [], "stop") for at in range(len(records))]
    items = items_of(TaskConfig("t"), asked, made)
    assert any(
        n.startswith("5 of 12 answers") for n in measure(TaskConfig("t"), records, items).notes
    )
    assert not any("empty" in note for note in figures(TaskConfig("t"), records)[1].notes)


def test_no_constant_answer_beats_the_majority_and_random_ones_reach_chance():
    records = choices(400, of=3)
    beside = baselines(records, "acc")
    gold = np.array([record.gold for record in records])
    assert beside.majority == max((gold == at).mean() for at in range(3))
    assert beside.chance == pytest.approx(1 / 3)
    shared = [record._replace(choices=("yes", "no", "maybe")) for record in records]
    assert baselines(shared, "acc") == beside
    draws = np.random.default_rng(0).integers(3, size=(50, len(gold)))
    assert (draws == gold).mean() == pytest.approx(beside.chance, abs=0.02)
    questions = [Question("1", "a", "Paris"), Question("2", "b", "Rome", ("the Paris",))]
    assert baselines(questions, "exact_match").majority == 1.0


def test_of_two_forms_the_better_one_is_the_headline():
    records = choices(60)
    task = TaskConfig("colours", metric="acc_norm", form="both")
    asked = ask(task, records)
    for better in ("cloze", "letters"):
        made = []
        for one in asked:
            for at in range(len(one.requests)):
                right = at % 4 == one.record.gold
                made.append(Scored(-1.0 if right and one.form == better else -2.0 - at, False, 1))
        headline = measure(task, records, items_of(task, asked, made)).headline
        assert headline == ("acc_norm" if better == "cloze" else "letters/acc")


def test_each_group_of_records_has_a_figure_of_its_own():
    records = [one._replace(group="ab"[at % 2]) for at, one in enumerate(choices(40))]
    items, made = figures(TaskConfig("colours", metric="acc"), records)
    groups = {one.name: one.figure for one in made.measures if "(" in one.name}
    assert {*groups} == {"acc (a)", "acc (b)"}
    for at, group in enumerate("ab"):
        values = [item.values["acc"] for item in items[at::2]]
        assert (groups[f"acc ({group})"].value, groups[f"acc ({group})"].n) == (np.mean(values), 20)


def test_examples_may_come_from_a_file_of_their_own(tmp_path):
    (tmp_path / "items.jsonl").write_text(FILES["choices.jsonl"])
    (tmp_path / "shown.jsonl").write_text(FILES["choices.jsonl"].replace('"q"', '"shown"'))
    (tmp_path / "pairs.jsonl").write_text('{"good": "g", "bad": "b"}\n')
    options = TaskOptions(str(tmp_path / "items.jsonl"), shots=1)
    own = dataclasses.replace(options, shots_file=str(tmp_path / "shown.jsonl"))
    (plan,) = plan_tasks(own)
    assert ask(plan.task, plan.items, plan.pool)[0].prompt == "shown b\n\nq"
    for more in (None, str(tmp_path / "items.jsonl"), str(tmp_path / "pairs.jsonl")):
        with pytest.raises(ConfigError, match=r"\(--shots|--shots-file\)"):
            plan_tasks(dataclasses.replace(options, shots_file=more))


def test_an_unknown_metric_is_refused_before_anything_is_asked(tmp_path):
    (tmp_path / "colours.jsonl").write_text(FILES["choices.jsonl"] * 3)
    with pytest.raises(ConfigError, match=r"colours counts by 'f1'.*acc_norm.*\(--metric\)"):
        plan_tasks(TaskOptions(str(tmp_path / "colours.jsonl"), metric="f1"))


def test_a_file_is_asked_as_the_catalogue_says_wherever_it_lies(tmp_path):
    (tmp_path / "deep").mkdir()
    lines = (FILES["choices.jsonl"].replace('"q"', f'"q{at}"') for at in range(3))
    (tmp_path / "deep/arc_easy.jsonl").write_text("".join(lines))
    (by_name,) = plan_tasks(TaskOptions("arc_easy", tasks_dir=str(tmp_path)))
    (by_path,) = plan_tasks(TaskOptions(str(tmp_path / "deep/arc_easy.jsonl")))
    assert by_name == by_path
    assert by_name.task.prompt == CATALOGUE["arc_easy"].prompt
    (changed,) = plan_tasks(TaskOptions("arc_easy", str(tmp_path), shots=1, cue=" ->"))
    assert (changed.task.shots, changed.task.prompt.cue) == (1, " ->")
    with pytest.raises(ConfigError, match="Did you mean 'arc_easy'"):
        located_task("arc_eesy")
    with pytest.raises(ConfigError, match=r"boolq needs the file boolq\.jsonl.*--tasks-dir"):
        located_task("boolq", tmp_path)


# --- identity

HASHES = Hashes("tokenizer", "weights", "code")


def test_an_identity_changes_with_each_of_its_parts():
    records = choices(20)
    task = TaskConfig("t", metric="acc", shots=2)
    template = named_template("chatml")
    changed = {
        "nothing": identify(task, records, records, HASHES),
        "item": identify(task, records[1:], records, HASHES),
        "gold": identify(task, [other_answer(records[0]), *records[1:]], records, HASHES),
        "order": identify(task, records[::-1], records, HASHES),
        "pool": identify(task, records, records[1:], HASHES),
        "shots": identify(dataclasses.replace(task, shots=3), records, records, HASHES),
        "seed": identify(dataclasses.replace(task, seed=1), records, records, HASHES),
        "metric": identify(dataclasses.replace(task, metric="acc_norm"), records, records, HASHES),
        "form": identify(dataclasses.replace(task, form="both"), records, records, HASHES),
        "cue": identify(
            dataclasses.replace(task, prompt=PromptForm(cue=":")), records, records, HASHES
        ),
        "template": identify(task, records, records, HASHES, template),
        **{
            name: identify(task, records, records, HASHES._replace(**{name: "other"}))
            for name in HASHES._fields
        },
    }
    hashes = {name: made.sha256 for name, made in changed.items()}
    assert len({*hashes.values()}) == len(hashes), hashes
    assert changed["nothing"] == identify(task, list(records), list(records), HASHES)


def test_an_identity_changes_with_nothing_that_decides_nothing():
    records = choices(20)
    task = TaskConfig("t", metric="acc")
    first = identify(task, records, [], HASHES)
    for more in ({"name": "u"}, {"seed": 5}, {"limit": 20}, {"first": True}, {"new_tokens": 3}):
        assert identify(dataclasses.replace(task, **more), records, [], HASHES) == first
    questions = RECORDS["question"]
    assert identify(task, questions, [], HASHES) == identify(
        dataclasses.replace(task, form="both"), questions, [], HASHES
    )
    assert identify(task, questions, [], HASHES) != identify(
        dataclasses.replace(task, new_tokens=3), questions, [], HASHES
    )


def test_a_template_that_writes_the_date_is_said_not_to_be_reproducible():
    dated = named_template("{{ strftime_now('%Y') }}")
    assert identify(TaskConfig("t"), choices(3), [], HASHES, dated).not_reproducible
    assert not identify(TaskConfig("t"), choices(3), [], HASHES).not_reproducible


def test_the_hash_of_the_code_is_that_of_the_sources_which_decide(tmp_path, monkeypatch):
    home = tmp_path / "gptjax"
    for name in ("evaluate/tasks.py", "evaluate/page.py", "model/stack.py", "serve/http.py"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("pass\n")
    monkeypatch.setattr(identity.gptjax, "__file__", str(home / "__init__.py"))
    first, changed = identity.code_hash(), {}
    for name in ("evaluate/tasks.py", "evaluate/page.py", "model/stack.py", "serve/http.py"):
        (home / name).write_text("pass  # changed\n")
        changed[name] = identity.code_hash() != first
        (home / name).write_text("pass\n")
    assert changed == {
        "evaluate/tasks.py": True,
        "evaluate/page.py": False,
        "model/stack.py": True,
        "serve/http.py": False,
    }


# --- comparison


def report(records, seed: int, name: str = "colours", **more) -> Report:
    """A report whose model differs by a seed."""
    task = TaskConfig(name, metric="acc")
    asked = ask(task, records)
    made = [
        Scored(-dice(seed, one) * 9, False, 1 + len(one.continuation))
        for one in flat(asked)
        if isinstance(one, Score)
    ]
    items = items_of(task, asked, made)
    found = measure(task, records, items)
    told = TaskReport(
        name=name,
        file="colours.jsonl",
        shape=kind_of(records[0]),
        headline=found.headline,
        measures=found.measures,
        n=len(records),
        of=len(records),
        sample="all",
        settings={"shots": 0} | more,
        identity=identify(task, records, [], HASHES),
        items=tuple(items),
        calibration=found.calibration,
        confusion=found.confusion,
        content="content",
    )
    return Report(f"model {seed}", 1, (told,))


def test_a_comparison_is_antisymmetric_and_of_equals_is_nothing():
    one, other = report(choices(200), 1), report(choices(200), 2)
    (there,), (back,) = compare_reports(one, other), compare_reports(other, one)
    assert there.figure.value == -back.figure.value != 0
    assert there.figure.low == pytest.approx(-back.figure.high, abs=1e-12)
    assert there.figure.stderr == pytest.approx(back.figure.stderr, abs=1e-12)
    assert (there.gained, there.lost, there.p) == (back.lost, back.gained, back.p)
    assert {flip.id for flip in there.flips} == {flip.id for flip in back.flips}
    assert len(there.flips) == there.gained + there.lost
    accuracy = [made.tasks[0].measure("acc").figure.value for made in (one, other)]
    assert there.figure.value == pytest.approx(accuracy[0] - accuracy[1])
    (same,) = compare_reports(one, one)
    assert (same.figure.value, same.p, same.flips) == (0.0, 1.0, ())


def test_items_are_compared_by_their_ids_and_other_records_are_refused():
    one, other = report(choices(50), 1), report(choices(50)[20:], 1, shots=3)
    (made,) = compare_reports(one, other)
    assert (made.figure.n, made.figure.value, made.gained) == (30, 0.0, 0)
    assert made.notes == ("shots is 0 here and 3 there", "only 30 items are in both")
    (task,) = other.tasks
    with pytest.raises(ConfigError, match="was measured on other records"):
        compare_reports(
            one, dataclasses.replace(other, tasks=(dataclasses.replace(task, content="x"),))
        )
    with pytest.raises(ConfigError, match=r"the other evaluation has the tasks fruits"):
        compare_reports(one, report(choices(5), 1, name="fruits"))


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (1, 9, 22 / 1024), (7, 7, 1.0)]
)
def test_mcnemar_is_the_exact_test_of_fair_coins(gained, lost, p):
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == pytest.approx(p)


def test_the_interval_of_a_difference_covers_it_at_its_rate():
    rounds, inside, rejected = 300, 0, 0
    for seed in range(rounds):
        draw = np.random.default_rng(seed)
        skill = draw.random(150)  # of an item, which both models share
        now, before = draw.random((2, 150)) < np.stack([skill, skill])
        made = compare_values(
            {str(n): (float(a), float(b)) for n, (a, b) in enumerate(zip(now, before, strict=True))}
        )
        inside += made.figure.low <= 0 <= made.figure.high
        rejected += made.p < 0.05
    assert 0.91 <= inside / rounds <= 0.985
    assert rejected / rounds <= 0.075  # an exact test rejects too seldom rather than too often


# --- the report


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    made = report(choices(30), 3)
    write_evaluation(made, tmp_path / "eval.json")
    assert repr(read_evaluation(tmp_path)) == repr(made)
    json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
    (tmp_path / "eval.json").write_text('{"format": 1}')
    with pytest.raises(ConfigError, match="can't be read") as refused:
        read_evaluation(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_table_names_chance_and_says_where_it_is_not_left():
    lines = list(report_lines(report(choices(40), 1)))
    assert lines[0].split()[:4] == ["task", "items", "measure", "value"]
    headline = report(choices(40), 1).tasks[0].measures[0].figure
    assert f"{headline.value:.4f}" in lines[1] and "0.2500" in lines[1]
    assert any("not above chance" in line for line in lines)
