"""Every command, Python example and link of the pages works. Commands and examples of README and
CONTRIBUTING run by default, shrunk where they are long; those of docs/ with `-m slow`.

CI runs the two lines that make environments. The first run and the first sample are processes of
their own, as a user starts them. Everything else runs in one process that has imported jax already
(`SHELL`), which saves three seconds per command.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from bilingual import anchor_of

from gptjax.model.inputs.image_files import save_png

ROOT = Path(__file__).parents[1]
CHINESE = sorted([*ROOT.glob("*.zh.md"), *(ROOT / "docs").glob("*.zh.md")])
"""Pages whose code is that of the English ones: `test_chinese` compares it."""
GUIDES = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted({*(ROOT / "docs").glob("*.md")} - {*CHINESE}),
]
"""Pages whose commands and examples run. Reports show what was run once."""
PAGES = [
    *GUIDES,
    *CHINESE,
    *(ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"),
    *sorted((ROOT / "docs/reports").glob("*.md")),
]
TINY = [
    *("--model.width", "32", "--model.num-heads", "4", "--model.num-layers", "1"),
    *("--model.context", "32", "--batch", "2", "--steps", "2", "--evaluation.every", "2"),
    *("--evaluation.rows", "2", "--evaluation.sample.new-tokens", "4"),
    *("--data.source.path", "tiny.txt", "--data.validation", "0.3", "--data.split", "tail"),
]
RECORDS = {"configs/chat_toy.py": "128", "configs/reward_toy.py": "64"}
"""Configs that read records, which examples/toy_sets.py writes, with the context those need."""

PICTURES = [
    *("--data.source.count", "8", "--data.source.held-out-count", "4", "--batch", "4"),
    *("--steps", "2", "--evaluation.every", "2"),
]
"""What shrinks configs of drawn pictures."""

NOT_HERE = ("python3 -m venv", "git ", "pre-commit ", ".ci/run", "ruff ", "pyright", "python -m ")
"""Commands that make environments, or that CI runs."""


def once(examples: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Leaves out what an earlier page has too."""
    first: dict[str, Path] = {}
    for page, text in examples:
        first.setdefault(text, page)
    return [(page, text) for text, page in first.items()]


def blocks(kind: str) -> list[tuple[Path, str]]:
    """Returns each block of code of a kind, with its page."""
    return [
        (page, block)
        for page in GUIDES
        for block in re.findall(
            rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        )
    ]


def commands() -> list[tuple[Path, str]]:
    lines = [
        (page, line)
        for page, block in blocks("bash")
        for line in block.splitlines()
        if line.strip()
    ]
    return [(page, line) for page, line in lines if not line.startswith(NOT_HERE)]


def cases(examples: list[tuple[Path, str]]) -> list:
    return [
        pytest.param(text, marks=pytest.mark.slow if page.parent.name == "docs" else ())
        for page, text in examples
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
            status = cli.main(what) if kind == "command" else exec(what, {"__name__": "main"}) or 0
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
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    prose = "".join(f"def f{i}(x): return x + {i * i}\n" for i in range(300))
    for name in ("tiny.txt", "mytext.txt", "input.txt"):
        (folder / name).write_text(prose, encoding="utf-8")
    save_png(folder / "picture.png", np.full((48, 48, 3), 200, np.uint8))
    (folder / "data/digits_images").mkdir(parents=True)
    for name, shape in (("images.idx3.gz", (40, 14, 14)), ("labels.idx1", (40,))):
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        content = np.arange(np.prod(shape), dtype=np.uint8) % 10
        (folder / "data/digits_images" / name).write_bytes(header + content.tobytes())
    (folder / "prompts.txt").write_text("def \nclass \nx = \n", encoding="utf-8")
    (folder / "mydata.jsonl").write_text(
        "".join(f'{{"text": "document {i} says {i * i}"}}\n' for i in range(200)), encoding="utf-8"
    )
    chats = (
        [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{i}!"}]
        for i in range(60)
    )
    (folder / "chats.jsonl").write_text(
        "".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8"
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
    toys = subprocess.run(
        [sys.executable, "examples/toy_sets.py", "data"], cwd=folder, capture_output=True, text=True
    )
    assert toys.returncode == 0, toys.stderr
    pairs = (folder / "data/sorted_pairs.jsonl").read_text(encoding="utf-8").splitlines()[:80]
    (folder / "pairs.jsonl").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    sampled = run(
        ["python", "sample.py", "runs/quickstart", "--prompt", "def ", "--new-tokens", "4"], folder
    )
    assert sampled.returncode == 0 and sampled.stdout, sampled.stderr
    return folder


@pytest.mark.parametrize("command", cases(once(commands())))
def test_every_command_of_the_pages_runs(command: str, ask: Callable) -> None:
    words = shlex.split(command)
    if words[0] == "tensorboard":
        pytest.skip("it opens a server; test_metrics opens its files")
    if words[0] == "pip" or any(re.match("configs/.*smollm2", word) for word in words):
        pytest.skip("its model comes with a package; test_smollm2 trains it")
    if words[:2] == ["python", "examples/feedback_rounds.py"]:
        pytest.skip("a model that has learned nothing gives no good answer to learn from")
    if words[:2] == ["python", "examples/toy_sets.py"]:
        pytest.skip("the clone was made with it")
    if words[:2] == ["gptjax", "chat"]:
        words[2] = "runs/quickstart"  # the run that README's first line made
        words += ["--template", "plain"] if "--template" not in words else []
    if words[1] == "sample.py":
        words += ["--new-tokens", "4"]
    elif words[1] == "verify":
        words += [*TINY, "--data.tokenizer.vocab-size", "330"] if words[2].endswith(".py") else []
        words += ["--only", "data", "causal"] if "--only" not in words else []
    elif words[1] in ("sweep", "private") or "--observe" in words:
        words += TINY
        words += ["--data.tokenizer.vocab-size", "330"] if "quickstart" in command else []
        words += ["--dir", f"runs/{abs(hash(command))}"]
    elif words[1].endswith("train.py") and words[2].endswith(".json"):
        words[words.index("--steps") + 1] = "4"
    elif words[1].endswith("train.py") and "shapes" in words[2]:
        words += PICTURES
    elif words[1].endswith("train.py") and "digits_" in words[2]:
        words += [*PICTURES[2:], "--evaluation.sample.new-tokens", "4"]
    elif words[1].endswith("train.py") and words[2] in RECORDS:
        words += [*TINY[:-6], "--model.context", RECORDS[words[2]]]
    elif words[1].endswith("train.py"):
        own = [word for word in words if word.startswith("--")]
        for flag, value in zip(TINY[::2], TINY[1::2], strict=True):
            if flag not in own or flag.startswith(("--model", "--steps")):
                words += [flag, value]
        pieces = words[2] in ("configs/quickstart.py", "configs/dial.py")
        words += ["--data.tokenizer.vocab-size", "330"] if pieces else []
        words += ["--dir", f"runs/{abs(hash(command))}"] if "--dir" not in words else []
    done = ask("command", words[1:] if words[0] == "gptjax" else [Path(words[1]).stem, *words[2:]])
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"


@pytest.mark.parametrize("code", cases(once(blocks("python"))))
def test_every_python_example_of_the_pages_runs(code: str, ask: Callable) -> None:
    done = ask("python", code.replace("new_tokens=50", "new_tokens=5"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def anchors(page: Path) -> set[str]:
    """Returns the anchors that a forge makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {anchor_of(heading) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_heading(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_config_and_document_that_a_page_names_is_there() -> None:
    missing = [
        f"{page.name}: {name}"
        for page in [*GUIDES, *CHINESE]
        for name in re.findall(
            r"\b(?:configs|docs|benchmarks|tests)/[\w/]+(?:\.zh)?\.\w+",
            page.read_text(encoding="utf-8"),
        )
        if not (ROOT / name).exists()
    ]
    assert not missing


def test_readme_is_short_before_its_tables() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Features")[0]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert len(prose.split()) < 900


def test_readme_names_every_config() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in (ROOT / "configs").glob("*.py") if path.name not in text]
