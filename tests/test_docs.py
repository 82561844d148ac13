"""Every command that README and docs show runs, shrunk where it is long: README's by default, those
of docs/ with `-m slow`.

The two lines that make environments are run by CI.

The first run and the first sample are processes of their own, as a user starts them. All else is
given to one process that has imported jax already (`SHELL`), which saves three seconds a command.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = (
    "--model.width 32 --model.num-heads 4 --model.num-layers 1 --model.context 32 --batch 2 --steps"
    " 2 --evaluation.every 2 --evaluation.rows 2 --evaluation.sample.new-tokens 4"
    " --data.source.path tiny.txt --data.validation 0.3 --data.split tail"
).split()


def blocks(kind: str) -> list[tuple[Path, str]]:
    """Each block of code of a kind, and its page."""
    return [
        (page, block)
        for page in PAGES
        for block in re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    ]


def commands() -> list[tuple[Path, str]]:
    lines = [
        (page, line)
        for page, block in blocks("bash")
        for line in block.splitlines()
        if line.strip()
    ]
    return [(page, line) for page, line in lines if not line.startswith("python3 -m venv")]


def cases(found: list[tuple[Path, str]]) -> list:
    return [
        pytest.param(text, marks=() if page.stem == "README" else pytest.mark.slow)
        for page, text in found
    ]


def a_users_environment() -> dict[str, str]:
    """Without the eight devices that tests have."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Runs a command in a process of its own."""
    programs = {"python": [sys.executable], "gptjax": [sys.executable, "-m", "gptjax"]}
    return subprocess.run(
        [*programs[command[0]], *command[1:]],
        cwd=folder,
        env=a_users_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )


SHELL = """
import contextlib, io, json, sys, traceback
from gptjax.cli import main as cli
answers, sys.stdin = sys.stdout, io.StringIO()
lines = iter(sys.__stdin__.readline, "")
for kind, what in map(json.loads, lines):
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(what) if kind == "command" else exec(what, {"__name__": "__main__"}) or 0
        except Exception:
            status = traceback.print_exc() or 1
    print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""
"""Runs what it reads, a command or Python a line, and answers with status, output and errors."""


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def ask(clone: Path) -> Iterator[Callable[[str, list[str] | str], Done]]:
    """Asks a process in the clone to run a command's arguments, or Python."""
    shell = subprocess.Popen(
        [sys.executable, "-c", SHELL],
        cwd=clone,
        env=a_users_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def asked(kind: str, what: list[str] | str) -> Done:
        print(json.dumps([kind, what]), file=shell.stdin, flush=True)
        return Done(*json.loads(shell.stdout.readline()))

    yield asked
    shell.communicate(timeout=60)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it after the first line of the README: the checkout, a tiny trained
    run, some text."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "sample.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    prose = "".join(f"def f{i}(x): return x + {i * i}\n" for i in range(300))
    for name in ("tiny.txt", "mytext.txt", "input.txt"):
        (folder / name).write_text(prose, encoding="utf-8")
    (folder / "prompts.txt").write_text("def \nclass \nx = \n", encoding="utf-8")
    (folder / "mydata.jsonl").write_text(
        "".join(f'{{"text": "document {i} says {i * i}"}}\n' for i in range(200)), encoding="utf-8"
    )
    made = run(
        [
            "python",
            "train.py",
            "configs/quickstart.py",
            *TINY,
            "--data.tokenizer.vocab-size",
            "330",
        ],
        folder,
    )
    assert made.returncode == 0, made.stderr
    told = run(
        ["python", "sample.py", "runs/quickstart", "--prompt", "def ", "--new-tokens", "4"], folder
    )
    assert told.returncode == 0 and told.stdout, told.stderr
    return folder


@pytest.mark.parametrize("command", cases(commands()))
def test_every_command_of_the_pages_runs(command: str, ask: Callable) -> None:
    words = shlex.split(command)
    if words[0] == "tensorboard":
        pytest.skip("it opens a server; test_metrics opens its files")
    if words[0] == "pip" or "configs/smollm2_135m.py" in words:
        pytest.skip("its model comes with a package; test_smollm2 trains it")
    if words[:2] == ["gptjax", "chat"]:
        words[2] = "runs/quickstart"  # with what the first line of the README made
        words += ["--template", "plain"] if "--template" not in words else []
    if words[1] == "sample.py":
        words += ["--new-tokens", "4"]
    elif words[1] == "verify":
        words += [*TINY, "--data.tokenizer.vocab-size", "330"] if words[2].endswith(".py") else []
        words += ["--only", "data", "causal"] if "--only" not in words else []
    elif words[1].endswith("train.py") and words[2].endswith(".json"):
        words[words.index("--steps") + 1] = "4"
    elif words[1].endswith("train.py"):
        own = [flag for flag, value in zip(words, words[1:], strict=False) if flag.startswith("--")]
        pairs = [TINY[i : i + 2] for i in range(0, len(TINY), 2)]
        words += [
            word
            for pair in pairs
            if pair[0] not in own or pair[0].startswith(("--model", "--steps"))
            for word in pair
        ]
        words += ["--data.tokenizer.vocab-size", "330"] if "quickstart" in command else []
        words += ["--dir", f"runs/{abs(hash(command))}"] if "--dir" not in words else []
    done = ask("command", words[1:] if words[0] == "gptjax" else [Path(words[1]).stem, *words[2:]])
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"


@pytest.mark.parametrize("code", cases(blocks("python")))
def test_every_python_example_of_the_pages_runs(code: str, ask: Callable) -> None:
    done = ask("python", code.replace("new_tokens=50", "new_tokens=5"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
