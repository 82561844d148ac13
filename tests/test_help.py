"""What `gptjax --help` and the help of each subcommand say: one list of commands, an example in
each that it understands, plain text where no colours are wanted, and completion in a shell."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax  # noqa: F401 before gptjax.cli, which would otherwise choose CPU flags for this process
import pytest

from gptjax import __version__
from gptjax.cli import main as cli
from gptjax.cli.help import EXAMPLES, SCRIPT, USAGE

ROOT = Path(__file__).parents[1]
LISTED = set(re.findall(r"^  ([a-z][a-z-]*) ?", USAGE, re.MULTILINE))
HELD = {"lm-eval": "an extra has its flags", "completion": "it has no flags"}
"""Commands whose flags are not looked up."""


def commands() -> set[str]:
    """The keys of the table in `main`."""
    tree = ast.parse(Path(cli.__file__).read_text("utf-8"))
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.Dict) and len(node.keys) > 9]
    return {ast.literal_eval(key) for key in tables[0].keys if key is not None}


def test_every_command_is_listed_and_has_an_example():
    assert commands() == LISTED == set(EXAMPLES)
    for name, lines in EXAMPLES.items():
        assert all(f"gptjax {name}" in line for line in lines), name


def test_what_an_example_reads_of_the_repository_is_there():
    words = [word for lines in EXAMPLES.values() for line in lines for word in line.split()]
    assert [word for word in words if word.startswith("configs/")]
    assert not [w for w in words if w.startswith("configs/") and not (ROOT / w).is_file()]


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - set(HELD)))
def test_flags_of_an_example_are_in_the_help_and_the_help_ends_with_it(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for line in EXAMPLES[name]:
        words = shlex.split(line)[2:]
        flags = {word for word in words if word.startswith("--")}
        tasks = ["--tasks", "x"] if "--tasks" in flags and name == "evaluate" else []
        probe = [word for word in words if name == "probe" and word.isalpha()][-1:]
        assert cli.main([name, *probe, *tasks, "--help"]) == 0
        said = capsys.readouterr().out
        assert said.startswith("usage: gptjax " + name) and said.rstrip().endswith(
            EXAMPLES[name][-1]
        )
        assert not {flag for flag in flags if f"{flag} " not in said and f"{flag}\n" not in said}
        assert "\x1b" not in said
        told = [line for line in said.splitlines() if line.startswith("\u2502       ")]
        assert not [
            line
            for line in told
            if line.rstrip(" \u2502").endswith(("The default is", ", which a"))
        ]


def test_help_is_plain_where_no_colours_are_wanted(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli.main(["doctor", "--help"]) == 0
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(["doctor", "--help"]) == 0
    said = capsys.readouterr().out
    assert "\x1b[" not in said and said.startswith("usage: gptjax doctor")


def test_the_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gptjax {__version__}\n"


def test_another_shell_is_refused_in_one_line(capsys):
    assert cli.main(["completion", "tcsh"]) == 2
    assert "it needs bash or zsh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["gptjax", "sc"], "score scaling"),
        (["gptjax", "doctor", "--he"], "--help"),
        (["gptjax", "train", "configs/quick"], "configs/quickstart.py"),
    ],
)
def test_bash_completes_commands_flags_and_files(words, found):
    names = " ".join(EXAMPLES)
    script = f"""
{SCRIPT.replace("NAMES", names)}
gptjax() {{ echo '  -h, --help  show this'; }}
COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
_gptjax; echo "${{COMPREPLY[@]}}"
"""
    command = ["bash", "--norc", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (found, "")
