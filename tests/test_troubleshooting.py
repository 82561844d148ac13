"""docs/troubleshooting.md quotes messages that the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def messages() -> list[str]:
    """Returns the texts of the package, with … for what varies."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        return str(node.value) if isinstance(node, ast.Constant) else "…"

    trees = (ast.parse(file.read_text("utf-8")) for file in (ROOT / "gptjax").rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.expr))
    return [text(node) for node in nodes if isinstance(node, (ast.JoinedStr, ast.Constant))]


def test_troubleshooting_quotes_messages_that_there_are() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(quoted) >= 30
    there = "\n".join(message.replace("\n", " ") for message in messages())
    patterns = {q: ".*".join(map(re.escape, (p for p in q.split("…") if p))) for q in quoted}
    assert not [quote for quote, pattern in patterns.items() if not re.search(pattern, there)]
