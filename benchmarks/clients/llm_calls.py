"""llm, the command and library of Simon Willison, with a model of its extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tally import Tally, address

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"enum": [1, 2]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def written(url: str, model: str) -> str:
    """The configuration of three ways to ask the model."""
    shared = f"  model_name: {model}\n  api_base: {url}/v1\n  api_key_name: none\n"
    able = "  supports_schema: true\n  supports_tools: true\n"
    return (
        f"- model_id: chat\n{shared}{able}"
        f"- model_id: whole\n{shared}{able}  can_stream: false\n"
        f"- model_id: text\n{shared}  completion: true\n"
    )


def main() -> None:
    url, model = address()
    tally = Tally("llm")
    command = Path(sys.executable).parent / "llm"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "extra-openai-models.yaml").write_text(written(url, model))
        (Path(folder) / "keys.json").write_text('{"none": "none"}')
        (Path(folder) / "tool.py").write_text(
            'def weather(city: str) -> str:\n    """Tells the weather."""\n    return "sunny"\n'
        )
        world = {**os.environ, "LLM_USER_PATH": folder}

        def ask(*flags: str) -> str:
            told = [str(command), "prompt", "Hello", "-n", "-o", "max_tokens", "80", *flags]
            ended = subprocess.run(told, capture_output=True, text=True, env=world, timeout=300)
            if ended.returncode:
                raise RuntimeError(f"status {ended.returncode}: {ended.stderr[-300:]}")
            return ended.stdout

        for name in ("chat", "whole", "text"):
            with tally.calling(name):
                tally.check(ask("-m", name).strip(), "a text")
        for name in ("chat", "whole"):
            with tally.calling(f"{name}, schema"):
                found = json.loads(ask("-m", name, "--schema", json.dumps(SCHEMA)))
                tally.check(set(found) == {"name", "age"}, found)
            with tally.calling(f"{name}, tools"):
                ask("-m", name, "--functions", str(Path(folder) / "tool.py"), "--chain-limit", "9")
            with tally.calling(f"{name}, settings"):
                ask("-m", name, "-s", "Be brief.", "-o", "temperature", "0", "-o", "seed", "3")
    tally.end()


if __name__ == "__main__":
    main()
