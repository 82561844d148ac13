"""Rewards: what each kind says of which answer, that no answer's reward depends on another answer,
and what a program that a model wrote cannot do."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import jax
import jsonschema
import numpy as np
import pytest
from variants import PLAIN

from gptjax import model
from gptjax.api import Model
from gptjax.cli.score import score_file
from gptjax.core import user_config
from gptjax.core.config import ConfigError, from_dict, to_dict
from gptjax.data import Bytes, Comparisons, Preferences
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import with_template
from gptjax.generate import Completion
from gptjax.rewards import (
    Answered,
    Ends,
    Exact,
    Function,
    JsonSchema,
    Judge,
    Length,
    Number,
    Program,
    Regex,
    RewardConfig,
    RewardKind,
    RewardModel,
    Solved,
    expected_best,
    judge,
    merit_of,
    sandbox,
)
from gptjax.rewards.model import score_judge
from gptjax.rewards.numbers import last_number

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 20},
        "b": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        "c": {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "string"}}},
    },
    "required": ["a"],
    "additionalProperties": False,
}


def answered(answer: str, record=None, finished: bool = True, prompt: str = "?") -> Answered:
    return Answered(prompt, answer, {} if record is None else record, finished, len(answer))


# --- settings


@dataclass(frozen=True)
class Vowels(RewardConfig):
    """A kind from outside."""

    most: int = 3

    def build(self) -> Judge:
        return lambda rows: [
            float(min(self.most, sum(map(row.answer.count, "aeiou")))) for row in rows
        ]


@dataclass(frozen=True)
class Holder:
    rewards: tuple[RewardKind, ...] = (Exact(), Number(tolerance=0.5), Regex("a+", weight=0.5))
    other: int = 1


def test_a_tuple_of_rewards_goes_through_strict_json_and_flags():
    every = Holder(
        (
            *(Exact("gold"), Number(), Regex("a"), JsonSchema("{}"), Length(9), Ends(("x", "y"))),
            *(Program("python"), RewardModel("runs/x"), Solved(2.0), Function("a.py:b"), Vowels(2)),
        )
    )
    plain = json.loads(json.dumps(to_dict(every)))
    assert from_dict(Holder, plain, known=(Vowels,)) == every
    assert plain["rewards"][5] == {"kind": "Ends", "texts": ["x", "y"], "weight": 1.0}
    with pytest.raises(ConfigError, match=r"rewards\.10\.kind is 'Vowels'"):
        from_dict(Holder, plain)
    with pytest.raises(ConfigError, match=r"rewards\.0\.feld is not a setting of Exact.*'field'"):
        from_dict(Holder, {"rewards": [{"kind": "Exact", "feld": "x"}]})
    _, changed = user_config.cli(Empty, ["--other", "2"], prog="test", base=Holder())
    assert changed == Holder(other=2)


@dataclass(frozen=True)
class Empty:
    pass


# --- kinds


def solution(text: str) -> dict:
    return {"puzzle": "sums", "result": text, "scratchpad": False}


CASES = [
    (Exact(), {"answer": "5"}, {" 5\n": 1, "5.": 0, "": 0}),
    (Exact("gold"), {"gold": 5}, {"5": 1, "05": 0, "٥": 0}),
    (
        Number(),
        {"answer": "so #### -1,234.50"},
        {"-1234.5": 1, "x = −1,234.5 km": 1, "1234.5": 0, "3-1234.5": 0, "-1234.5 or 2": 0, "": 0},
    ),
    (Number(), {"answer": 0.75}, {"3/4": 1, "= 3 / 4 cups": 1, ".75": 1, "75e-2": 1, "3/0": 0}),
    (Number(), {"answer": 1000}, {"1e3": 1, "$1,000.": 1, "1,0000": 0, "10³": 0, "x1000": 0}),
    (Number(), {"answer": 7}, {"答案是7": 1, "٧": 0, "1" * 5000: 0, "1e999999999": 0, "v1.7": 0}),
    (Number(tolerance=0.1), {"answer": 0.3}, {"0.4": 1, "0.41": 0, "1/5": 1}),
    (Regex("(a+)+b"), {}, {"aab": 1, "a" * 3000: 0, "xaab": 0, "aab\n": 0, "": 0}),
    (Regex(r"\bok\b", anywhere=True), {}, {"it is ok.": 1, "token": 0, "": 0}),
    (
        JsonSchema(json.dumps(SCHEMA)),
        {},
        {'{"a": 1}': 1, '\n{"b":[1e0,-2.5],"a":2.0} ': 1, '{"c": {"a": "\\u00e9"}, "a": 3}': 1}
        | {'{"a": 1, "a": 2}': 0, '{"a": 21}': 0, '{"a": NaN}': 0, '{"a": 1} x': 0, "": 0}
        | {"[" * 9999: 0, '{"a": ' + "1" * 5000 + "}": 0, '{"c": {"a": "\\ud800"}, "a": 3}': 0},
    ),
    (
        JsonSchema('{"enum": [{"z": 1, "y": [true]}, 2]}'),
        {},
        {'{"y": [true], "z": 1}': 1, "2": 1, "2.5": 0},
    ),
    (Length(4, 2, unit="characters"), {}, {"": 0, "a": 0, "ab": 1, "abcd": 1, "abcde": 0}),
    (Length(4, 2, slack=2), {}, {"": 0, "a": 0.5, "abc": 1, "abcde": 0.5, "abcdef": 0}),
    (Ends(), {}, {"": 1, "a": 1}),
    (Ends((".", "!")), {}, {"a.": 1, "a! ": 1, "a": 0, "": 0}),
    (
        Program(),
        {"answer": "24"},
        {"(5+7)*2": 1, " 3 × 8 ": 1, "48/2": 1, "2**3*3": 1, "23.99": 0, "24/0": 0, "4**0.5*12": 0}
        | {"9**9**9": 0, "-" * 90000 + "24": 0, "(" * 900: 0, "٢٤": 0, "24=24": 0, "": 0}
        | {"(lambda: 24)()": 0, "__import__('os').getpid()": 0, "'24'": 0, "True*24": 0},
    ),
    (
        Program("python"),
        {"answer": "12"},
        {"print(3*4)": 1, "so:\n```python\nprint(12.0)\n```": 1, "print(12); 1/0": 0}
        | {"": 0, "\ud800": 0, "print(input())": 0},
    ),
    (Solved(), solution("95"), {"95": 1, " 95": 1, "095": 0, "": 0}),
    (Vowels(), {}, {"": 0, "aa": 2, "aeiou": 3}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case[0]).__name__)
def test_each_kind_gives_what_it_says_and_no_answer_changes_another(case):
    (config, record, answers), one = case, case[0].build()
    rows = [answered(text, record) for text in answers]
    assert dict(zip(answers, one(rows), strict=True)) == answers, config
    require_alone(one, rows)
    assert Ends().build()([answered("a.", finished=False)]) == [0.0], "an answer that was cut"


def require_alone(one: Judge, rows: list[Answered]) -> None:
    """The law L18: the reward of a row depends on that row only."""
    together = one(rows)
    assert one(rows[::-1]) == together[::-1]
    assert [one(rows[i : i + 2])[0] for i in range(0, len(rows), 5)] == together[::5]
    assert one([]) == []


def test_the_law_notices_a_list_that_is_shifted_by_one_or_skips_what_is_empty():
    def shifted(rows):
        values = [None if row.answer == "?" else float(len(row.answer)) for row in rows]
        return values[1:] + values[:1]

    def skipping(rows):
        values = iter([float(len(row.answer)) for row in rows if row.answer])
        return [next(values, None) for _ in rows]

    rows = [answered(text) for text in ("", "a", "?", "abcd", "ab")]
    for wrong in (shifted, skipping):
        with pytest.raises(AssertionError):
            require_alone(wrong, rows)


def test_numbers_are_read_as_they_are_written():
    for text, wanted in {
        "from 3-4": "4",
        "(2)-5": "5",
        "a list: 1,2,3": "3",
        "v2 costs +7%": "7",
        "5kg of H2O": "5",
        "version 1.2.3": "6/5",
        "in 1.5e-2 s": "3/200",
        "-$1,000,000": "-1000000",
        "half is 1/2.": "1/2",
        "3.": "3",
    }.items():
        assert last_number(text) == Fraction(wanted), text
    assert last_number("none, x2 ٣ ²") is None


def test_json_is_judged_as_the_library_of_json_schema_judges_it():
    draws = np.random.default_rng(0)
    values = {
        "a": [0, 3.0, 20, 21, -1, "x"],
        "b": [[], [1, 0.5], [1e-7], [1, 2, 3], ["x"]],
        "c": [{}, {"a": "y"}, {"a": "", "b": None}, {"b": None, "a": ""}, {"b": 1}],
        "d": [0],
    }
    judged, right = JsonSchema(json.dumps(SCHEMA)).build(), jsonschema.Draft202012Validator(SCHEMA)
    rows, valid = [], []
    for _ in range(400):
        names = draws.permutation(list("abcd" if draws.random() < 0.1 else "abc"))
        kept = [str(n) for n in names if n != "b" or draws.random() < 0.5]
        value = {n: values[n][draws.integers(len(values[n]))] for n in kept}
        rows.append(answered(json.dumps(value)))
        valid.append(float(right.is_valid(value)))
    assert judged(rows) == valid and 0.2 < np.mean(valid) < 0.8


# --- several rewards


def test_several_rewards_are_weighed_and_none_leaves_a_row_out(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def grade(prompt, answer, record):\n    return None if answer == '?' else answer == 'a'\n"
    )
    mine = Function(f"{file}:grade", weight=-2.0)
    configs = (Length(1, weight=0.5), mine, Length(2), Vowels())
    found = judge(
        [(config, config.build()) for config in configs],
        [answered(text) for text in ("a", "?", "bbb", "")],
    )
    assert found.parts == {
        "Length": [1, 1, 0, 1],
        "grade": [1, None, 0, 0],
        "Length2": [1, 1, 0, 1],
        "Vowels": [1, 0, 0, 0],
    }
    np.testing.assert_array_equal(found.total, np.float32([0.5, np.nan, 0, 1.5]))
    assert found.total.dtype == np.float32
    assert found.judged.tolist() == [True, False, True, True]
    assert found.passed.tolist() == [True, True, False, True]
    assert mine.fingerprint() == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(judge([(mine, mine.build())], []).total) == 0


def test_an_error_names_the_reward_the_prompt_and_the_answer(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import sys\nresults = {'z': 1 / 2}\n"
        "def fails(prompt, answer, record):\n    return results[answer]\n"
        "def leaves(prompt, answer, record):\n    return sys.exit(0) if answer == 'b' else 1\n"
        "def odd(prompt, answer, record):\n    return 1 if answer == 'a' else record['x']\n"
    )
    rows = [answered("z", {"x": 1}), answered("b" * 500, {"x": 1}, prompt="why?")]
    for name, words in (
        (
            "fails",
            r"reward fails failed for the prompt 'why\?' and the answer 'bbb.* … b+': KeyError",
        ),
        ("absent", "no function 'absent'"),
    ):
        with pytest.raises(ConfigError, match=words):
            config = Function(f"{file}:{name}")
            judge([(config, config.build())], rows)
    rows = [answered("a"), answered("b", {"x": 1})]
    leaves = Function(f"{file}:leaves")
    with pytest.raises(ConfigError, match="the answer 'b': SystemExit"):
        judge([(leaves, leaves.build())], rows)
    odd = Function(f"{file}:odd")
    for value in (float("nan"), float("-inf"), "1", [1], 10**400, 1j):
        with pytest.raises(
            ConfigError, match=r"gave .* and the answer 'b'; it needs a finite number"
        ):
            judge([(odd, odd.build())], [answered(one, {"x": value}) for one in "ab"])
    for value in (True, np.float32(2), np.bool_(False), None):
        judge([(odd, odd.build())], [answered("b", {"x": value})])
    for wrong in (lambda rows: [1.0], lambda rows: None, lambda rows: np.ones(2)):
        with pytest.raises(ConfigError, match="for 2 answers"):
            judge([(Exact(), wrong)], rows)
    with pytest.raises(ConfigError, match="record has no 'answer', but 'x'"):
        judge([(Exact(), Exact().build())], [answered("a", {"x": 1})])
    with pytest.raises(ConfigError, match=r"inf .* smaller weights"):
        judge([(Exact(weight=1e39), lambda rows: [1.0, 0.0])], rows)
    none = judge([], rows)
    assert not none.judged.any() and not none.passed.any() and none.parts == {}


def test_settings_that_cannot_be_met_are_refused_at_the_door(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    for make, words in (
        (lambda: Length(1, 2), "least ≤ most"),
        (lambda: Program(seconds=0), "seconds 0"),
        (lambda: Number(tolerance=-1.0).build(), "tolerance -1.0"),
        (lambda: Ends(("",)).build(), "needs a character"),
        (lambda: Regex("(a").build(), "reward Regex can't be built"),
        (lambda: Regex(r"(a)\1").build(), "refers back"),
        (lambda: JsonSchema('{"not": {}}').build(), "'not'"),
        (lambda: JsonSchema(str(tmp_path / "x.json")).build(), "is not there"),
        (lambda: Function("grade").build(), "does not name a function"),
        (lambda: Function("nowhere.at.all:f").fingerprint(), "is not there"),
        (lambda: Function(f"{broken}:f").build(), r"broken.py fails in line 1 .*ZeroDivisionError"),
        (lambda: RewardModel(str(tmp_path / "x")).build(), "not a directory"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()
    assert Function("json:dumps").build() is not None
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    assert JsonSchema(str(file)).fingerprint() and not JsonSchema("{}").fingerprint()
    assert JsonSchema(str(file)).build()([answered('{"a": 1}')]) == [1.0]


# --- programs


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import os\nwhile True: os.fork()",
        "while True: print('flood' * 1000)",
        "x = bytearray(1 << 30); print('done')",
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "import os; os.kill(-1, 9)",
        "import os; os.unlink(MINE)",
        "open(MINE, 'w')",
        "open(MINE, 'r+').write('x')",
        "import os; os.truncate(MINE, 0)",
        "import os; os.rename(MINE, MINE + 'x')",
        "import socket; socket.socket()",
        "import resource as r; r.setrlimit(r.RLIMIT_CPU, (60, 60))",
    ],
    ids=lambda text: text[-25:],
)
def test_a_program_cannot_go_on_forever_or_change_what_is_outside_of_it(program, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("kept")
    begun = time.monotonic()
    limits = sandbox.Limits(1, wall_seconds=0.5 if "sleep" in program else 20.0, memory=256)
    assert sandbox.run_python(program.replace("MINE", repr(str(mine))), limits) is None
    assert time.monotonic() - begun < 15 and mine.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_program_has_nothing_of_the_user_and_gives_the_same_each_time(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    text = "import os, sys; print('SECRET' in os.environ, list({'a', 'b', 'c'}), 'é', sys.path[:1])"
    first, second = (sandbox.run_python(text, sandbox.Limits()) for _ in range(2))
    assert first == second and first.startswith("False") and "site-packages" not in first


def test_an_expression_that_ends_the_worker_takes_no_other_with_it(monkeypatch, tmp_path):
    wild = tmp_path / "wild.py"
    source = Path(sandbox.arithmetic.__file__).read_text(encoding="utf-8")
    wild.write_text(
        source.replace(
            "    if len(text)", "    if text == 'die':\n        sys.exit(1)\n    if len(text)"
        )
    )
    monkeypatch.setattr(sandbox.arithmetic, "__file__", str(wild))
    assert sandbox.run_arithmetic(["1", "die", "1+1", "die"]) == [1, None, 2, None]


# --- a model that scores


@pytest.fixture(scope="module")
def scorer() -> Model:
    tokenizer = tokenizers.train_tokenizer(Bytes(), [])
    config = model.small("tiny", vocab_size=tokenizer.vocab_size, context=48)
    config = dataclasses.replace(config, classes=1, num_layers=1)
    params = model.init(config, jax.random.key(0))
    return Model(config, params, tokenizer, task=Preferences(score=True))


def test_a_reward_model_scores_as_gptjax_score_does(scorer, tmp_path, monkeypatch):
    texts = ["b", "an answer that needs a wider row", "", "c" * 99, "1"]
    rows = [answered(text, {"answer": "1"}, prompt="a:") for text in texts]
    found = score_judge(scorer, False, 2, "it")(rows)
    file, out = tmp_path / "records.jsonl", io.StringIO()
    records = [{"prompt": "a:", "completion": text} for text in texts if text]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    score_file(scorer, Comparisons(str(file)), 8, out)
    scores = [json.loads(line)["score"] for line in out.getvalue().splitlines()]
    assert found[3] is scores[2] is None and np.isfinite(found[2])
    same = [found[0], found[1], found[4]], [scores[0], scores[1], scores[3]]
    np.testing.assert_allclose(*same, rtol=1e-5, atol=1e-6)
    assert len(set(same[0])) == 3
    (tmp_path / "config.json").write_text('{"data": {"source": {"as_messages": false}}}')
    monkeypatch.setattr("gptjax.runs.open.open_model", lambda path: scorer)
    built = RewardModel(str(tmp_path)).build()
    np.testing.assert_allclose(built(rows[:1]), found[:1], rtol=1e-5)
    with pytest.raises(ConfigError, match="gives no score"):
        wrong = scorer._replace(config=dataclasses.replace(scorer.config, classes=None))
        score_judge(wrong, False, 2, "it")


def test_a_score_is_rounded_alike_beside_a_longer_answer(scorer, monkeypatch):
    def width(config, params, batch):  # on which rounding depends
        return np.full(len(batch.tokens), batch.tokens.shape[1], np.float32)

    monkeypatch.setattr("gptjax.generate.scores._scores", width)
    one = score_judge(scorer, False, 2, "it")
    rows = [answered(text) for text in ("b", "x" * 20, "", "y" * 99, "1", "z" * 16, "2")]
    require_alone(one, rows)
    assert one(rows) == [16, 32, 16, None, 16, 32, 16]


def test_a_reward_model_reads_messages_by_its_template(scorer, tmp_path):
    template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    talking = scorer._replace(tokenizer=with_template(scorer.tokenizer, template))
    asked = [{"role": "user", "content": "hi"}]
    plain = answered("yes", prompt="hi")
    given = answered("yes", {"messages": [*asked, {"role": "assistant", "content": "gold"}]})
    as_messages = score_judge(talking, True, 2, "it")
    one, other = as_messages([plain, given])
    text = score_judge(talking, False, 2, "it")([plain])[0]
    assert one == other != text
    assert score_judge(talking, False, 2, "it")([given]) == [pytest.approx(one, rel=1e-5)]
    assert np.isfinite(as_messages([answered("", prompt="hi")])[0])


def test_the_best_of_n_is_estimated_without_bias_and_is_the_mean_over_all_choices():
    rewards = np.random.default_rng(0).standard_normal((3, 6)).round(1)
    for n in range(1, 7):
        choices = [rewards[:, list(some)].max(axis=1) for some in combinations(range(6), n)]
        assert expected_best(rewards, n) == pytest.approx(np.mean(choices))
    assert expected_best([[0, 1, 0, 0]], 2) == pytest.approx(0.5)  # pass@2 of one in four
    with pytest.raises(ValueError, match="at least 7 answers"):
        expected_best(rewards, 7)


def test_what_the_best_of_n_are_truly_worth_is_that_of_every_choice_and_the_first_of_equals():
    draw = np.random.default_rng(0)
    rewards, worth = draw.integers(0, 4, (3, 6)), draw.standard_normal((3, 6))
    for n in range(1, 7):
        found = []
        for some in map(list, combinations(range(6), n)):
            best = rewards[:, some].argmax(axis=1)  # the first of equals
            found.append(worth[np.arange(3), np.asarray(some)[best]])
        assert expected_best(rewards, n, worth) == pytest.approx(np.mean(found))


def test_the_best_of_several_answers_is_the_one_that_rewards_like_most(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "def count(prompt, answer, record):\n"
        "    return None if 'e' in answer else float(answer.count(record['letter']))\n"
    )
    reward, told = Function(f"{own}:count"), {"letter": "a"}

    merit = merit_of([reward], told)
    texts = [Completion("", text, [1], [-1.0], "stop", end=(0, 0.0)) for text in ("ab", "aba", "e")]
    assert np.array_equal(merit(texts), [1, 2, np.nan], equal_nan=True)
    with pytest.raises(ConfigError, match="needs a reward"):
        merit_of([])
    tokenizer = tokenizers.train_tokenizer(Bytes(), [])
    config = dataclasses.replace(PLAIN, vocab_size=tokenizer.vocab_size)
    opened = Model(config, model.init(config, jax.random.key(0)), tokenizer)
    drawn = opened.complete(["a"], num_samples=6, new_tokens=8, temperature=1.0, top_p=1.0)
    shortest = Function(f"{own}:shortest")
    own.write_text("def shortest(prompt, answer, record):\n    return -float(len(answer))\n")
    best = opened.best_of(6, "a", [shortest], new_tokens=8, temperature=1.0, top_p=1.0)
    assert best.text == min((one.text for one in drawn), key=len)
    assert len({len(one.text) for one in drawn}) > 1 and best.score == -len(best.text)
    own.write_text("def shortest(prompt, answer, record):\n    return None if answer else 0.0\n")
    kept = opened.best_of(6, "a", [shortest], new_tokens=8, temperature=1.0, top_p=1.0)
    assert kept.text == drawn[0].text  # none can be judged
    with pytest.raises(ConfigError, match="nothing to choose from"):
        opened.complete(["a"], merit=merit)
