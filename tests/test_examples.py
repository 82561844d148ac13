"""The programs in examples/ run, and compute what they say."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax.data import Comparisons, Conversations
from gptjax.data.documents.comparisons import load_judged, read_comparisons
from gptjax.data.documents.conversations import load_record, read_conversations
from gptjax.evaluate.records import Choices, Pair, read_task_records

FOLDER = Path(__file__).parents[1] / "examples"
SMALL = {
    "pretrain": {"steps": 2},
    "finetune_chats": {"base_steps": 2, "steps": 2},
    "lora": {"steps": 2},
    "dpo": {"steps": 2, "pairs": 40},
    "learn_from_rewards": {"base_steps": 2, "steps": 2},
    "classify": {"steps": 2},
    "translate": {"steps": 2},
    "image_question": {"steps": 2, "count": 40},
    "vmapped_seeds": {"steps": 20},
    "interpret": {"steps": 60},
    "custom_loss": {"steps": 2},
    "custom_task": {"steps": 2},
    "custom_layer": {"steps": 30},
    "jax_loop": {"rounds": 1},
}
"""What shrinks each lesson."""
LESSONS = [*SMALL, "serve_model"]


def test_a_step_mapped_by_pmap_and_by_shard_map_is_the_step_of_one_device():
    example = runpy.run_path(str(FOLDER / "pmap.py"))
    example["with_pmap"].__globals__["STEPS"] = 3
    pmap, shard_map = example["with_pmap"](), example["with_shard_map"]()
    state, one = example["setup"]()
    one.keywords["axis"] = None
    alone, step = [], jax.jit(one)
    for number in range(3):
        state, metrics = step(state, {}, example["batch"](number))
        alone.append(float(metrics["loss"]))
    assert jax.device_count() == 8 and alone[-1] < alone[0]
    np.testing.assert_allclose(pmap, alone, rtol=1e-5)
    np.testing.assert_allclose(shard_map, alone, rtol=1e-5)


def test_answers_of_a_run_become_right_ones_and_pairs(tmp_path):
    example, rollouts = runpy.run_path(str(FOLDER / "rollouts.py")), tmp_path / "rollouts.jsonl"
    talk = [{"role": "user", "content": "hi"}]

    def line(prompt, completion, reward, finished=True):
        label = None if reward is None else reward >= 1
        told = {"prompt": prompt, "completion": completion, "label": label, "reward": reward}
        return json.dumps(told | {"finished": finished}) + "\n"

    answered = [{"role": "assistant", "content": "hello"}]
    rollouts.write_text(
        line("1+1=", "2", 1.0)
        + line("1+1=", "2", 1.0)  # said twice
        + line("1+1=", "2", 1.0, finished=False)
        + line("1+1=", "3", 0.5)
        + line("1+1=", "5", 0.0)
        + line("1+1=", "?", None)
        + line("2+2=", "", 0.0)
        + line("2+2=", "4", 1.0)
        + line(talk, answered, 1.0)
    )
    example["main"]("right", str(rollouts), str(tmp_path / "right.jsonl"))
    example["main"]("pairs", str(rollouts), str(tmp_path / "pairs.jsonl"))
    found = list(read_conversations(Conversations(str(tmp_path / "right.jsonl"))))
    records = [load_record(document.text) for document in found]
    assert [(one.prompt, one.text) for one in records[:2]] == [("1+1=", "2"), ("2+2=", "4")]
    assert [m["content"] for m in records[2].messages] == ["hi", "hello"] and len(records) == 3
    judged = list(read_comparisons(Comparisons(str(tmp_path / "pairs.jsonl"))))
    assert [[a.text for a in load_judged(one.text).answers] for one in judged] == [["2", "5"]]


def test_tasks_are_made_of_the_end_of_a_text(tmp_path):
    lines = [f"Line number {n} of a play goes on to {n}" for n in range(400)]
    (tmp_path / "play.txt").write_text("\n".join(lines))
    example = runpy.run_path(str(FOLDER / "text_tasks.py"))
    example["main"](str(tmp_path / "play.txt"), str(tmp_path), "0.25")
    last = set(lines[299:])
    found = {
        n: read_task_records(tmp_path / f"{n}.jsonl")
        for n in ("line_end", "word_order", "spelling")
    }
    assert {type(records[0]) for records in found.values()} == {Choices, Pair}
    for one in found["line_end"]:
        assert f"{one.query} {one.choices[one.gold]}" in last
        assert len({*one.choices}) == 4 == len([c for c in one.choices if abs(len(c) - 20) < 5])
    for one in found["word_order"] + found["spelling"]:
        assert one.good in last and one.bad not in last and sorted(one.good) == sorted(one.bad)
    assert all(sorted(o.good.split()) == sorted(o.bad.split()) for o in found["word_order"])
    assert not any(sorted(o.good.split()) == sorted(o.bad.split()) for o in found["spelling"])


def test_questions_come_from_the_installed_package_not_from_the_script_of_its_name(tmp_path):
    """Started by its path, the script's folder is the first in which Python looks for easy_vqa."""
    site = tmp_path / "site"
    for part in ("train", "test"):
        (site / "easy_vqa/data" / part).mkdir(parents=True)
        asked = json.dumps([["what shape?", "circle", 3], ["is it red?", "no", 3]])
        (site / "easy_vqa/data" / part / "questions.json").write_text(asked)
    described = site / "easy_vqa-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: easy-vqa\nVersion: 1.0\n")
    command = [sys.executable, str(FOLDER / "easy_vqa.py"), str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out/test.jsonl").read_text().splitlines()
    first = {"prompt": "what shape?", "answer": "circle"}
    picture = str(site / "easy_vqa/data/test/images/3.png")
    assert json.loads(lines[0]) == {"image": picture, **first} and len(lines) == 2
    assert "the most frequent answer: 50.0%" in done.stdout


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_is_short_public_and_says_what_comes_next(name):
    file = FOLDER / f"{name}.py"
    text = file.read_text("utf-8")
    tree = ast.parse(text)
    said = ast.get_docstring(tree) or ""
    assert len(text.splitlines()) <= 100
    assert f"python examples/{name}.py" in said and "to type next:" in " ".join(said.split())
    assert re.search(r"\(.*(?:minute|second).*\)", said), "how long it takes"
    imported = [
        *(node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)),
        *(
            one.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for one in node.names
        ),
    ]
    private = [part for module in imported for part in module.split(".") if part.startswith("_")]
    assert not set(private) - {"__future__"}
    names = [one.attr for one in ast.walk(tree) if isinstance(one, ast.Attribute)]
    assert not [one for one in names if re.match("_[a-z]", one) and one != "_replace"]
    assert f"]({name}.py)" in (FOLDER / "README.md").read_text("utf-8")


def test_every_program_is_in_the_table():
    listed = set(re.findall(r"\]\((\w+\.py)\)", (FOLDER / "README.md").read_text("utf-8")))
    assert listed == {file.name for file in FOLDER.glob("*.py")}


@pytest.mark.parametrize("name", SMALL)
def test_a_lesson_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(FOLDER / f"{name}.py"))["main"]
    folder = [tmp_path / "runs"] if "folder" in inspect.signature(main).parameters else []
    main(*folder, **SMALL[name])
    assert "nan" not in capsys.readouterr().out.lower().split()
