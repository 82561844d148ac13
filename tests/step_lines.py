"""Counts the source lines that one default training step executes: `python tests/step_lines.py`.

The step is that of `Experiment()`, over a small file of text and bytes as tokens. A profiler notes
every function of the package that is called while one batch is made and while `train_step` is
traced and run: the model, the loss, the optimizer and all that they call. Nothing is listed by
hand. A nested function counts with the function that holds it, so the builder of an optimizer
counts whole. What happens once at the start (reading a config, preparing data, drawing initial
weights, choosing shardings) is not part of a step; `program.build` with all of it is the second
figure.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).parents[1]
PACKAGE = str(ROOT / "gptjax")


class Calls:
    """The code objects of the package that were called."""

    def __init__(self) -> None:
        self.assembly: set[CodeType] = set()
        """Called while the program was built, or by the step."""
        self.step: set[CodeType] = set()
        """Called by the step alone."""

    @contextmanager
    def recorded(self, step: bool) -> Iterator[None]:
        """Records calls; those below `train_step` belong to the step in any case."""

        def note(frame: FrameType, event: str, _: object) -> None:
            code = frame.f_code
            if event != "call" or code in self.step or not code.co_filename.startswith(PACKAGE):
                return
            callers = [code]
            while frame := frame.f_back:
                callers.append(frame.f_code)
            ours = [c for c in callers if c.co_filename.startswith(PACKAGE)]
            if any(c.co_name == "<module>" for c in ours):
                return  # an import
            self.assembly.add(code)
            if step or any(c.co_name == "train_step" for c in ours):
                self.step.add(code)

        sys.setprofile(note)
        try:
            yield
        finally:
            sys.setprofile(None)


def code_lines(source: bytes) -> set[int]:
    """Numbers of the lines that hold code: no blank line, comment or docstring."""
    docs = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    silent = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.ENCODING,
    }
    tokens = tokenize.tokenize(io.BytesIO(source).readline)
    lines = {
        number
        for token in tokens
        if token.type not in silent
        for number in range(token.start[0], token.end[0] + 1)
    }
    return lines - docs


def spans(path: Path) -> list[tuple[str, int, int]]:
    """Name, first and last line of each function and method that no other function holds, and of
    each lambda outside of them."""
    found: list[tuple[str, int, int]] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                found.append((prefix + child.name, first, child.end_lineno))
            elif isinstance(child, ast.Lambda):
                found.append((f"{prefix}<lambda>", child.lineno, child.end_lineno))
            else:
                name = f"{child.name}." if isinstance(child, ast.ClassDef) else ""
                visit(child, prefix + name)

    visit(ast.parse(path.read_bytes()), "")
    return found


def counted(called: set[CodeType]) -> dict[str, dict[str, tuple[int, int]]]:
    """File → function → its lines of code and its lines."""
    table: dict[str, dict[str, tuple[int, int]]] = {}
    for name in sorted({code.co_filename for code in called}):
        path = Path(name)
        starts = {code.co_firstlineno for code in called if code.co_filename == name}
        code = code_lines(path.read_bytes())
        rows = {
            function: (len(code & set(range(first, last + 1))), last - first + 1)
            for function, first, last in spans(path)
            if any(first <= start <= last for start in starts)
        }
        if rows:
            table[path.relative_to(ROOT).as_posix()] = rows
    return table


def traced() -> Calls:
    """Builds the default experiment's program and takes its first step."""
    from gptjax.data import Bytes, DataConfig, Text
    from gptjax.data.prepare import prepare
    from gptjax.train import identity, program
    from gptjax.train.experiment import Experiment

    calls = Calls()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("The cat sat on the mat and looked at the moon.\n" * 2000)
        settings = DataConfig(source=Text(str(text)), tokenizer=Bytes(), cache=folder)
        data = prepare(settings, say=lambda line: None)
        experiment = identity.resolve(dataclasses.replace(Experiment(), data=settings), data)
        with calls.recorded(step=False):
            built = program.build(experiment, data)
        state, frozen = built.init(None)
        with calls.recorded(step=True):
            built.step(state, frozen, built.batch(0, state))
    return calls


def figures() -> dict:
    """The two figures, and the functions of the step by file."""
    calls = traced()
    step, assembly = counted(calls.step), counted(calls.assembly)

    def total(table: dict, which: int) -> int:
        return sum(lines[which] for rows in table.values() for lines in rows.values())

    return {
        "code": total(step, 0),
        "lines": total(step, 1),
        "functions": sum(map(len, step.values())),
        "code_with_assembly": total(assembly, 0),
        "lines_with_assembly": total(assembly, 1),
        "files": step,
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(json.dumps(figures()))
