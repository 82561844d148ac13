"""Time to the first training step: a whole run of one step of a config, split as the run itself
splits it.

    python benchmarks/startup.py [--config configs/quickstart.py]

The first turn finds an empty compile cache and prepares the data; the others find both, as a second
run does. Prints the time of `import gptjax.cli.main` alone, of the first line of output, and of the
whole command up to the end of its first step.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import paired


def main() -> None:
    """Takes the turns and prints the parts."""
    parser = paired.parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "XDG_CACHE_HOME": folder, "PYTHONPATH": str(paired.ROOT)}
        imports = [
            _timed([sys.executable, "-c", "import gptjax.cli.main"], env)[0]
            for _ in range(options.turns)
        ]
        for turn in range(options.turns + 1):
            found.append(_run(options.config, Path(folder) / f"run{turn}", env))
            print(
                f"{'warm' if turn else 'cold'}: "
                + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in found[-1].items()),
                flush=True,
            )
    print(
        f"import gptjax.cli.main: {sorted(imports)[len(imports) // 2]:.2f} s ({min(imports):.2f} to"
        f" {max(imports):.2f})"
    )
    middle = {
        what: sorted(one[what] for one in found[1:])[len(found) // 2 - 1] for what in found[1]
    }
    print(
        "median of warm turns: "
        + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in middle.items())
    )
    paired.write(
        options.out,
        {
            "config": options.config,
            "imports": imports,
            "cold": found[0],
            "warm": found[1:],
            "median": middle,
        },
    )


def _timed(command: list[str], env: dict[str, str]) -> tuple[float, str]:
    begun = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return time.perf_counter() - begun, done.stdout


def _run(config: str, path: Path, env: dict[str, str]) -> dict[str, float]:
    """Seconds up to the first line, up to the banner, and up to the end of the first step; and the
    parts that the banner names."""
    flags = [
        "--steps",
        "2",
        "--log-every",
        "1",
        "--evaluation.rows",
        "1",
        "--evaluation.prompt",
        "",
        "--dir",
        str(path),
    ]
    begun, marks, parts = time.perf_counter(), {}, {}
    with subprocess.Popen(
        [sys.executable, "-u", "train.py", config, *flags],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=paired.ROOT,
    ) as process:
        for line in process.stdout:
            now = time.perf_counter() - begun
            marks.setdefault("first line", now)
            if line.startswith("start "):
                marks["banner"] = now
                parts = {
                    what: float(number) * (60 if unit == "m" else 1)
                    for what, number, unit in re.findall(r"(\w+) ([\d.]+) ?(m|s)\b", line)
                }
            if line.startswith("step 1/2"):
                marks.setdefault("first step", now)
    return marks | {f"of it {what}": seconds for what, seconds in parts.items()}


if __name__ == "__main__":
    main()
