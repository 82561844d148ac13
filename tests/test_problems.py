"""Problems, puzzles with their checker, and the prompts that a store keeps with their records."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from gptjax.core.config import ConfigError, from_dict, to_dict
from gptjax.data import (
    Bytes,
    Characters,
    Chat,
    Comparisons,
    Conversations,
    DataConfig,
    Preferences,
    Problems,
    Prompts,
    Puzzles,
    batches,
    prepare,
)
from gptjax.data.documents.conversations import Record, dump_record, load_record
from gptjax.data.documents.problems import judge_record, parse_problem, read_problems
from gptjax.data.documents.puzzles import KINDS, read_puzzles, solved
from gptjax.data.tasks.chat import Writer, render_record
from gptjax.data.tasks.prompts import Problem, prompt_ids
from gptjax.data.tokenizers import tokenizer as tokenizers

USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def lines(path, *values) -> str:
    texts = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


# --- puzzles


@pytest.mark.parametrize("kind", KINDS)
def test_puzzles_are_different_solved_by_their_answers_and_those_of_the_seed(kind):
    source = Puzzles(kind, count=200, held_out_count=50, digits=1 if kind == "countdown" else 2)
    documents = list(read_puzzles(source))
    records = [judge_record(load_record(d.text)) for d in documents]
    assert len({d.source for d in documents}) == 250 == len(documents)
    assert sum(bool(d.held_out) for d in documents) == 50
    assert all(solved(r, r["answer"]) for r in records)
    assert not any(solved(r, r["answer"] + "1") for r in records)
    assert documents == list(read_puzzles(source))
    assert documents[:150] == list(read_puzzles(dataclasses.replace(source, count=100))), (
        "what is held out does not depend on the count, and fewer are the first of more"
    )
    other = {d.source for d in read_puzzles(dataclasses.replace(source, seed=1))}
    assert len(other & {d.source for d in documents}) < 150


def test_there_are_all_sums_of_two_digits_and_no_more():
    sums = {d.source for d in read_puzzles(Puzzles(count=8100))}
    assert sums == {f"{a}+{b}=" for a in range(10, 100) for b in range(10, 100)}
    with pytest.raises(ConfigError, match=r"8,101 puzzles.*8,100 different.*--data.source.count"):
        list(read_puzzles(Puzzles(count=8101)))
    many = [d.source for d in read_puzzles(Puzzles("reversal", count=50, length=40))]
    assert len(set(many)) == 50 and len({letter for text in many for letter in text}) == 27


def test_a_scratchpad_shows_each_digit_and_what_is_carried():
    records = [load_record(d.text) for d in read_puzzles(Puzzles(count=300, scratchpad=True))]
    given = {r.prompt: r.text for r in records}
    for prompt, answer in given.items():
        a, b = map(int, prompt[:-1].split("+"))
        steps = answer.split(" ")
        assert steps[-1] == str(a + b) and 5 <= len(answer) <= 40
        for step in steps[:-1]:
            summands, total = step.split("=")
            assert sum(map(int, summands.split("+"))) == int(total)


SUM = {"puzzle": "sums", "result": "95"}
COUNTDOWN = {"puzzle": "countdown", "numbers": [3, 5, 5, 12], "target": 51}


@pytest.mark.parametrize(
    ("record", "right", "wrong"),
    [
        (SUM, ["95", " 95 ", "95\n"], ["", "095", "9 5", "95.", "9", "950", "x 95", "=95", "٩٥"]),
        (
            SUM | {"scratchpad": True},
            ["95", "x 95", "7+8=15 9=95 "],
            ["", "95=", "95 9", "=95x"],
        ),
        ({"puzzle": "sorting", "result": "1,2"}, ["1,2"], ["2,1", "1, 2", "1,2,2", "1,02", ","]),
        ({"puzzle": "reversal", "result": "ba"}, ["ba"], ["ab", "b", "b a", "BA", ""]),
        (
            COUNTDOWN,
            ["(12+5)*3", "3*(5+12)", " 3 * (12 + 5)"],
            [
                *("", "51", "12*3+5*3", "12+5*3", "12/0", "3/(5-5)", "(12+5)*3=51", "-3+54"),
                *("(12+5", "3(17)", "(17)(3)", "17*3", "3**5", "51//1", "5_1", "(12+5)*x"),
                *("12*03", "1" * 500, "(" * 90 + "51" + ")" * 90, "().__class__", "(12+5)*\n3"),
            ],
        ),
        (
            {"puzzle": "countdown", "numbers": [2, 4, 9], "target": 18},
            ["9/(2/4)", "9*4/2"],
            ["9*2*1", "9*(4//2)"],
        ),
    ],
)
def test_a_checker_takes_right_answers_and_no_neighbour(record, right, wrong):
    assert [a for a in right if not solved(record, a)] == []
    assert [a for a in wrong if solved(record, a)] == []


@pytest.mark.parametrize("record", [{}, {"puzzle": "chess"}, {"puzzle": None}])
def test_a_record_of_no_puzzle_cannot_be_checked(record):
    with pytest.raises(ConfigError, match=r"there are sums, sorting.*Puzzles"):
        solved(record, "1")


# --- problems


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"question": "a"}, "has 'question', and needs 'prompt'"),
        ({"prompt": " "}, "has nothing in 'prompt'"),
        ({"prompt": 3}, "no text and no messages in 'prompt'"),
        ({"prompt": [USER, BOT]}, "do not end with a question"),
        ({"prompt": []}, "do not end with a question"),
        ({"prompt": [{"role": "bot"}]}, "message 1 that has the role 'bot'"),
        ({"prompt": "a", "x": "\ud800"}, "a lone surrogate"),
        ("{", "is not JSON"),
    ],
)
def test_a_problem_that_asks_nothing_is_refused_by_its_line(value, says, tmp_path):
    text = value if isinstance(value, str) else json.dumps(value)
    path = lines(tmp_path / "a.jsonl", {"prompt": "fine"}, text)
    with pytest.raises(ConfigError, match=f"a.jsonl:2 .*{says}.*--data.source.max-bad-records"):
        list(read_problems(Problems(path)))
    assert len(list(read_problems(Problems(path, max_bad_records=1)))) == 1


@pytest.mark.parametrize(
    ("value", "learned"),
    [
        ({"prompt": "é=", "answer": "ü 🙂", "tests": [1, {"a": None}], "tools": "any"}, "ü 🙂"),
        ({"prompt": "a"}, ""),
        ({"prompt": "a", "answer": 9.5}, "9.5"),
        ({"prompt": "a", "answer": ["x", "y"]}, ""),
        ({"prompt": [USER, BOT, USER], "answer": "c", "tools": [{"name": "f"}], "id": 3}, "c"),
        ({"prompt": [USER]}, ""),
    ],
)
def test_who_judges_reads_the_record_as_it_was(value, learned):
    record, defect = parse_problem(value, Problems("x"))
    again = load_record(dump_record(record))
    assert not defect and again.answer == record.answer == learned
    assert judge_record(again) == value
    renamed = {{"prompt": "question", "answer": "solution"}.get(k, k): v for k, v in value.items()}
    assert parse_problem(renamed, Problems("x", "question", "solution"))[0] == record


def test_records_without_fields_are_the_same_bytes_as_before_there_were_any(tmp_path):
    assert dump_record(Record(prompt="é", text="b")) == (
        '{"messages": [], "given": 0, "tools": [], "prompt": "é", "text": "b"}'
    )
    chats = lines(tmp_path / "c.jsonl", *[{"prompt": f"é{i}", "completion": "b"} for i in range(9)])
    pairs = {"prompt": "a", "chosen": "b", "rejected": "ç", "z": 1}
    judged = lines(tmp_path / "p.jsonl", *[pairs | {"prompt": f"a{i}"} for i in range(9)])
    learned = prepare(DataConfig(Conversations(chats), Bytes(), 0, Chat(), cache=str(tmp_path)))
    pairs = prepare(DataConfig(Comparisons(judged), Bytes(), 0, Preferences(), cache=str(tmp_path)))
    assert (learned.content[:16], pairs.content[:16]) == (
        "7e6e7704cd2c7d38",
        "81c61444bc26a77f",
    ), "runs of 2026-11-28, before records had fields, would not find their data again"


# --- prompts


MESSAGES = [
    {"prompt": [USER], "answer": "b", "id": 1},
    {"prompt": [USER, BOT, {"role": "user", "content": " 1\nc "}], "answer": "\n 7"},
]
TEXTS = [{"prompt": f"{i}é+=", "answer": f" {i}", "say": "«ß🙂»"} for i in range(20)]


def settings(path: str, folder, **changes) -> DataConfig:
    given = {"source": Problems(path), "task": Prompts("zephyr"), "cache": str(folder)}
    return DataConfig(**{"tokenizer": Bytes(), "validation": 0.0, **given, **changes})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")
    said: list[str] = []
    path = lines(folder / "problems.jsonl", *TEXTS, *MESSAGES)
    return prepare(settings(path, folder), said.append), said[-1]


def test_a_store_gives_every_problem_back_with_the_ids_that_chat_trains_on(small):
    data, _ = small
    problems = [data.task.problem(data.train, i) for i in range(22)]
    assert [p.record for p in problems] == [*TEXTS, *MESSAGES]
    assert [p.prompt for p in problems][19:] == ["19é+=", "a", " 1\nc "]
    writer = Writer.of(data.tokenizer)
    for problem in problems:
        record, _ = parse_problem(problem.record, Problems("x"))
        ids, counts = render_record(record, writer, "last")
        assert problem.ids == ids[: int(np.argmax(counts))].tolist() == prompt_ids(record, writer)
    assert data.task.asked("a", data.tokenizer) == problems[20].ids, "a sample asks in this way"
    plain = Prompts().prompt(data.tokenizer.encode("0é+=").tolist(), data.tokenizer, False)
    assert plain == ([], problems[0].ids)


def test_the_ids_of_text_prompts_are_those_of_chat_for_a_tokenizer_that_joins(tmp_path):
    """SentencePiece begins texts with a space and would join the prompt's last piece and the
    answer's first."""
    corpus = [f"{i} + {i} = {2 * i} " for i in range(300)]
    tokenizer = tokenizers.train_tokenizer(tokenizers.SentencePiece(vocab_size=320), corpus)
    writer = Writer.of(tokenizer)
    for prompt, answer in (("12 + 1", "2 ="), ("3 =", " 6"), ("3 = ", "\n6"), (" 3", "00")):
        record = Record(prompt=prompt, text=answer)
        ids, counts = render_record(record, writer)
        assert prompt_ids(record, writer) == ids[: int(np.argmax(counts))].tolist()


def test_every_prompt_has_a_row_of_an_epoch_in_an_order_of_the_seed(small):
    data, _ = small
    size = data.tokenizer.vocab_size
    assert data.train.header.vocab_size == size + 257
    assert data.task.vocabulary(data.tokenizer) == size, "the model never reads a record"

    def epoch(seed, rows=4, length=128, epochs=1):
        plan = batches.plan(data.train, length=length, rows=rows, seed=seed, task=data.task)
        wanted = range(epochs * plan.rows_per_epoch // rows)
        return plan, [batches.batch(data.train, plan, step) for step in wanted]

    plan, one = epoch(3, rows=2)
    order = np.concatenate([batch.columns["example"] for batch in one])
    assert sorted(order) == list(range(22)) and plan.packing.left_out == 0
    again = batches.batch(data.train, plan, 4, np.asarray([1]))
    assert again.columns["example"] == one[4].columns["example"][1:]
    assert not np.array_equal(order, np.concatenate([b.columns["example"] for b in epoch(4, 2)[1]]))
    for batch in one:
        for row, i in enumerate(batch.columns["example"].tolist()):
            ids = data.task.problem(data.train, i).ids
            assert batch.tokens[row, : len(ids)].tolist() == ids and not batch.weights[row].any()
            assert batch.positions[row].tolist() == [*range(len(ids)), *[-1] * (128 - len(ids))]
    rows = epoch(None, rows=22, epochs=2)[1]
    assert rows[0].columns["example"].tolist() == list(range(22))
    assert (rows[1].columns["example"] == -1).all() and (rows[1].positions == -1).all()


def test_a_prompt_longer_than_a_row_is_left_out_or_refused(small):
    data, _ = small
    plan = batches.plan(data.train, length=8, rows=1, seed=0, task=data.task)
    assert plan.packing.left_out == 2 and plan.rows_per_epoch == 20
    refusing = dataclasses.replace(data.task, too_long="refuse")
    with pytest.raises(ConfigError, match=r"2 of 22 prompts are longer than a row of 8"):
        batches.plan(data.train, length=8, rows=1, seed=0, task=refusing)
    with pytest.raises(ConfigError, match="22 of 22 prompts"):
        batches.plan(data.train, length=2, rows=1, seed=0, task=data.task)


def test_a_batch_of_padding_has_the_fields_of_a_batch(small):
    data, _ = small
    plan = batches.plan(data.train, length=32, rows=1, seed=0, task=data.task)
    real = batches.batch(data.train, plan, 0)
    blank = batches.empty(data.task, length=32, isolated=True, with_encoder=False)
    assert blank.columns["example"].tolist() == [-1] and blank.columns.keys() == real.columns.keys()
    for a, b in zip(blank[:-1], real[:-1], strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.shape, a.dtype) == (b.shape, b.dtype)


def test_what_is_said_of_prompts_counts_no_bytes_of_records(small):
    data, said = small
    sizes = [len(data.task.problem(data.train, i).ids) for i in range(22)]
    assert f"22 documents into {sum(sizes)} training tokens" in said
    assert data.task.describe(data.train) == f"22 prompts of 6 to {max(sizes)} (median 7) tokens"


def test_prompts_of_conversations_are_their_first_questions(tmp_path):
    path = lines(
        tmp_path / "chats.jsonl",
        {"messages": [USER, BOT, USER, BOT]},
        {"prompt": [USER, BOT, {"role": "user", "content": "c"}], "completion": [BOT]},
        {"prompt": "x=", "completion": "y"},
    )
    data = prepare(settings(path, tmp_path, source=Conversations(path)))
    found = [data.task.problem(data.train, i) for i in range(3)]
    assert [len(p.record["prompt"]) for p in found] == [1, 3, 2]
    assert [p.record["answer"] for p in found] == ["b", "b", "y"] and found[1].prompt == "c"
    for bad in ({"text": "x"}, {"messages": [BOT]}):
        worse = lines(tmp_path / "bad.jsonl", bad)
        with pytest.raises(ConfigError, match=r"bad.jsonl:1 asks nothing"):
            prepare(settings(path, tmp_path, source=Conversations(worse)))


def test_sft_learns_the_answers_of_the_same_problems_with_the_same_split(tmp_path):
    source = Puzzles(count=60, held_out_count=20)
    both = [
        prepare(DataConfig(source, Characters(), 0.0, task, cache=str(tmp_path)))
        for task in (Chat(), Prompts())
    ]
    chat, prompts = both
    asked = [
        {tuple(prompts.task.problem(half, i).ids) for i in range(half.header.num_examples)}
        for half in (prompts.train, prompts.validation)
    ]
    size = chat.tokenizer.vocab_size
    for half, wanted in zip((chat.train, chat.validation), asked, strict=True):
        ids = [half.ids[a:b].tolist() for a, b in itertools.pairwise(half.offsets)]
        assert {tuple(one[: one.index(size)]) for one in ids} == wanted
    assert not asked[0] & asked[1] and list(map(len, asked)) == [60, 20]
    assert isinstance(prompts.task.problem(prompts.train, 0), Problem)


def test_sft_refuses_a_problem_without_an_answer(tmp_path):
    for prompt in ("a", [USER]):
        path = lines(tmp_path / "a.jsonl", {"prompt": prompt})
        with pytest.raises(ConfigError, match=r"a.jsonl:1 has no .*give it"):
            prepare(settings(path, tmp_path, task=Chat("zephyr")))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 0}, "--data.source.count"),
        ({"held_out_count": 0}, "--data.source.held-out-count"),
        ({"puzzle": "sorting", "scratchpad": True}, "only sums"),
    ],
)
def test_settings_that_make_no_puzzle_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        Puzzles(**change)


def test_sources_and_task_are_values_of_json():
    for source in (Puzzles("letters", digits=3), Problems("x.jsonl", "question")):
        config = DataConfig(source, task=Prompts("zephyr", too_long="refuse"))
        assert from_dict(DataConfig, json.loads(json.dumps(to_dict(config)))) == config
