"""Writes the plan of every config in configs/large to docs/reports/plans, by the command in its
docstring; names after the flags choose some of them.

    python benchmarks/plans.py [--fast] [NAME ...]

Needs the extra plan-tpu, and minutes of one core for each plan; a third of that with --fast.
"""

import contextlib
import io
import shlex
import sys
from pathlib import Path

from gptjax.cli import main as cli

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    flags, names = (
        [arg for arg in sys.argv[1:] if arg.startswith("--")],
        [arg for arg in sys.argv[1:] if not arg.startswith("--")],
    )
    for path in sorted((ROOT / "configs" / "large").glob("*.py")):
        if names and path.stem not in names:
            continue
        command = next(
            shlex.split(line)
            for line in path.read_text(encoding="utf-8").splitlines()
            if "gptjax plan" in line
        )
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = cli.main([*command[1:2], str(path), *command[3:], *flags])
        printed = " ".join([*command, *flags]) + f"\n\n{said.getvalue()}"
        print(printed, flush=True)
        if status in (0, 3):
            file = ROOT / "docs" / "reports" / "plans" / f"{path.stem}.txt"
            file.write_text(printed, encoding="utf-8")
