"""Runs clients that nobody here wrote against `gptjax serve`, and prints a table.

    python benchmarks/clients/run.py --folder /tmp/clients --data DIR [--only NAME,…]

Each client has an environment of its own in the folder, made when it is missing, and a script here
that prints `client version: N checks, M errors`. The server listens on a free port of the loopback
interface with a tiny random model (`tiny.py`), or with `--model`. Ends with status 1 if anything
was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
NODE = ("openai@6.30.1", "ai@6.0.325", "@ai-sdk/openai-compatible@2.0.92", "zod@4")
"""The last versions for Node 20."""


class Client(NamedTuple):
    """A client: its script, and what that needs."""

    script: str
    packages: tuple[str, ...]
    """For pip, or for npm if the script is one of Node."""
    flags: tuple[str, ...] = ()
    """Of the script, filled from those of the command."""
    context: int = 2048
    """Tokens of a request; answers without a limit are as long."""


CLIENTS = {
    "openai": Client("openai_strict.py", ("openai==3.51.0",)),
    "llm-comply": Client("comply.py", ("llm-comply==0.5.0",)),
    "litellm": Client("litellm_calls.py", ("litellm==1.110.2",)),
    "langchain": Client("langchain_calls.py", ("langchain-openai==1.7.4",)),
    "instructor": Client("instructor_calls.py", ("instructor==1.17.0",)),
    "agents": Client("agents_calls.py", ("openai-agents==0.24.0",)),
    "llm": Client("llm_calls.py", ("llm==0.36",)),
    "node": Client("openai_node.mjs", NODE),
    "ai-sdk": Client("ai_sdk.mjs", NODE),
    "lm-eval": Client(
        "lm_eval_calls.py",
        ("lm-eval[api]==0.4.13",),
        ("--path", "{model}", "--python", sys.executable, "--data", "{data}", "--items", "{items}"),
    ),
    "schemathesis": Client(
        "fuzz.py", ("schemathesis==4.32.5",), ("--examples", "{examples}"), context=96
    ),
}


def read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for environments and the model")
    parser.add_argument("--only", default=",".join(CLIENTS), help="names, with commas")
    parser.add_argument("--model", help="serve this one instead of the tiny one")
    parser.add_argument("--data", type=Path, help="folder with copa.jsonl, … for lm-eval")
    parser.add_argument("--items", type=int, default=50, help="documents of each lm-eval task")
    parser.add_argument("--examples", type=int, default=20, help="bodies of each route to fuzz")
    parser.add_argument("--template", default="own", help="of the server, where it has several")
    flags = parser.parse_args()
    flags.only = flags.only.split(",")
    unknown = set(flags.only) - CLIENTS.keys()
    if unknown:
        parser.error(f"--only has {', '.join(unknown)}; there are {', '.join(CLIENTS)}")
    if "lm-eval" in flags.only and flags.data is None:
        parser.error("lm-eval needs --data, or choose others with --only")
    flags.folder = flags.folder.resolve()
    return flags


def command_of(client: Client, folder: Path) -> list[str]:
    """The command that runs a client's script; makes its environment if it is missing."""
    is_node = client.script.endswith(".mjs")
    home = folder / ("node" if is_node else client.script.removesuffix(".py"))
    python, ready = home / "bin" / "python", home / "ready.json"
    if not ready.exists() or json.loads(ready.read_text()) != list(client.packages):
        home.mkdir(parents=True, exist_ok=True)
        if is_node:
            (home / "package.json").write_text('{"private": true}')
            subprocess.run(["npm", "install", "--silent", *client.packages], cwd=home, check=True)
        else:
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            told = [str(python), "-m", "pip", "install", "--quiet", *client.packages]
            subprocess.run(told, check=True)
        ready.write_text(json.dumps(client.packages))
    if not is_node:
        return [str(python), str(HERE / client.script)]
    for name in (client.script, "tally.mjs"):  # Node looks for packages beside the script
        shutil.copy(HERE / name, home / name)
    return ["node", str(home / client.script)]


@contextlib.contextmanager
def served(model: str, context: int, template: str, log: Path) -> Iterator[tuple[str, str]]:
    """A server as a process, while it is used: its address and its model's name."""
    told = [sys.executable, "-m", "gptjax", "serve", model, "--port", "0"]
    told += ["--context", str(context)]
    told += [] if template == "own" else ["--template", template]
    with log.open("w") as errors:
        process = subprocess.Popen(told, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.match(r"(\S+) is served at (http://\S+): ", line)
            if not found:
                raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")
            yield found[2], found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def result_of(name: str, client: Client, at: tuple[str, str], flags: argparse.Namespace) -> tuple:
    """Runs one client: its name, line and seconds, and whether all was right."""
    filled = [flag.format(**vars(flags)) for flag in client.flags]
    told = [*command_of(client, flags.folder), *at, *filled]
    apart = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OPENAI_"))}
    began = time.monotonic()
    ended = subprocess.run(told, capture_output=True, text=True, env=apart)
    lines = ended.stdout.strip().splitlines() or ["no result"]
    wrong = [
        line for line in ended.stderr.splitlines() if line.startswith(("  wrong:", "  failed:"))
    ]
    if ended.returncode and not wrong:
        wrong = [ended.stderr[-4000:]]
    print(*lines[:-1], *wrong, sep="\n", file=sys.stderr, flush=True)
    return name, lines[-1], time.monotonic() - began, ended.returncode == 0


def main() -> int:
    flags = read_flags()
    if flags.model is None:
        from tiny import write_tiny

        flags.model = str(flags.folder / "tiny")
        write_tiny(Path(flags.model))
    results = []
    for context in sorted({CLIENTS[name].context for name in flags.only}, reverse=True):
        with served(flags.model, context, flags.template, flags.folder / "server.log") as at:
            for name in flags.only:
                if CLIENTS[name].context == context:
                    print(f"{name} …", file=sys.stderr, flush=True)
                    results.append(result_of(name, CLIENTS[name], at, flags))
    print("| name | client | seconds | |\n|---|---|---|---|")
    for name, line, seconds, right in results:
        print(f"| {name} | {line} | {seconds:.0f} | {'ok' if right else 'wrong'} |")
    return 0 if all(right for *_, right in results) else 1


if __name__ == "__main__":
    sys.exit(main())
