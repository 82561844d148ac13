"""Laws of the architecture, read from the source with `ast`: who may import whom, what may run,
what a newcomer must read.

Everything is read, nothing is imported, so an import inside a function counts like any other.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = (
    "core", "sharding", "weights", "model", "data", "losses", "formats", "runs", "generate", "observe", "train",
    "api", "evaluate", "lab", "serve", "verify", "plan", "cli", "__main__",
)  # fmt: skip
"""Ground floor first: a room imports only rooms before it. `doctor` only looks at versions,
`__main__` only calls `cli`."""

EXCEPTIONS = {
    (
        "gptjax/train/identity.py",
        "gptjax",
    ): "reads `gptjax.__version__`, which is part of what a run is",
    ("gptjax/train/facts.py", "gptjax"): "reads `gptjax.__version__` for the banner",
    (
        "gptjax/data/prepare.py",
        "gptjax",
    ): "reads `gptjax.__version__`, which is part of what prepared data is made of",
}
"""Imports of the package itself from below `api`, whose door it is. `gptjax/api.py` needs none:
`train` is before it."""

EVERYWHERE = {"numpy"}
DOORS = {
    "jax": ("",),
    "flax": ("model/",),
    "optax": ("train/", "losses/cross_entropy.py"),
    "orbax": ("checkpoint/",),
    "tensorflow_datasets": ("data/documents/tfds.py",),
    "sentencepiece": ("data/tokenizers/sentencepieces.py",),
    "tokenizers": ("data/tokenizers/gpt2_pieces.py", "data/tokenizers/published.py"),
    "tyro": ("core/config.py",),
    "tensorboardX": ("train/metrics.py",),
    "jaxtyping": ("core/arrays.py",),
    "safetensors": ("interop/",),
    "gguf": ("interop/",),
    "runpy": ("core/config.py",),
}
"""Package → the files or rooms that may import it. Packages that are in neither table have no door
at all."""

WITHOUT_JAX = ("core/config.py", "core/backend.py", "data/")
INSIDE_FUNCTIONS = {
    "tensorflow_datasets": "it takes a second to import",
    "tyro": "reading a run needs no flags",
}
FORBIDDEN = {
    "tensorflow",
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
}


class Import(NamedTuple):
    """One name that a file imports."""

    module: str
    """With the name itself where `from package import module` names one of our modules."""
    line: int
    in_function: bool
    typing_only: bool


def sources() -> list[Path]:
    return sorted((ROOT / "gptjax").rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), str(path))


def ours(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir() or (
        ROOT / (module.replace(".", "/") + ".py")
    ).is_file()


def imports(path: Path) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool, typing_only: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(
                Import(alias.name, node.lineno, in_function, typing_only) for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{short(path)}:{node.lineno} imports relatively; write the whole name."
            )
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(
                    Import(
                        (
                            inner
                            if node.module.split(".")[0] != "gptjax" or ours(inner)
                            else node.module
                        ),
                        node.lineno,
                        in_function,
                        typing_only,
                    )
                )
        in_function |= isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        guard = (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        )
        for child in ast.iter_child_nodes(node):
            visit(child, in_function, typing_only or guard)

    visit(tree(path), False, False)
    return found


def room(path: Path) -> str:
    """The room of a file below gptjax/, or an empty string for `gptjax/__init__.py`."""
    first = path.relative_to(ROOT / "gptjax").parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def room_of(module: str) -> str:
    parts = module.split(".")
    return "api" if len(parts) == 1 else parts[1]


# --- rooms
# -------------------------------------------------------------------------------------------------------


def test_every_file_is_in_a_known_room():
    assert [short(p) for p in sources() if room(p) not in ("", *ROOMS)] == []


def test_a_room_imports_only_rooms_before_it():
    wrong = []
    for path in (p for p in sources() if room(p)):
        for found in imports(path):
            if found.module.split(".")[0] != "gptjax" or (short(path), found.module) in EXCEPTIONS:
                continue
            target = room_of(found.module)
            if target not in ROOMS or (
                target != room(path) and ROOMS.index(target) > ROOMS.index(room(path))
            ):
                wrong.append(f"{short(path)}:{found.line} ({room(path)}) imports {found.module}")
    assert not wrong, "\n".join(wrong)


def test_the_exceptions_are_still_needed_and_read_only_the_version():
    for (name, module), reason in EXCEPTIONS.items():
        path = ROOT / name
        assert module in {i.module for i in imports(path)}, (
            f"{name} does not import {module} any more; forget the exception ({reason})."
        )
        read = {
            n.attr
            for n in ast.walk(tree(path))
            if isinstance(n, ast.Attribute)
            and isinstance(n.value, ast.Name)
            and n.value.id == module
        }
        assert read == {"__version__"}, (name, read)


def test_the_package_itself_imports_only_lazily():
    now = [i for i in imports(ROOT / "gptjax/__init__.py") if not (i.in_function or i.typing_only)]
    assert {i.module.split(".")[0] for i in now} <= {"__future__", "typing"}, now


def test_every_import_of_ours_leads_to_a_file():
    """An import inside a function fails only when someone calls it."""
    files = [*sources(), ROOT / "train.py", ROOT / "sample.py", *(ROOT / "configs").glob("*.py")]
    missing = [
        f"{short(p)}:{i.line} imports {i.module}"
        for p in files
        for i in imports(p)
        if i.module.split(".")[0] == "gptjax" and not ours(i.module)
    ]
    assert not missing, "\n".join(missing)


def test_the_scripts_are_thin():
    for name in ("train.py", "sample.py"):
        assert {i.module for i in imports(ROOT / name)} == {"sys", "gptjax.cli.main"}
        assert len(code_lines(ROOT / name)) <= 10


# --- doors
# -------------------------------------------------------------------------------------------------------


def test_every_foreign_package_comes_through_its_door():
    wrong = []
    for path in sources():
        inside = path.relative_to(ROOT / "gptjax").as_posix()
        for found in imports(path):
            package = found.module.split(".")[0]
            if (
                package == "gptjax"
                or package in EVERYWHERE
                or (package in sys.stdlib_module_names and package not in DOORS)
            ):
                continue
            if not any(
                inside == door or (door.endswith("/") and inside.startswith(door)) or not door
                for door in DOORS.get(package, ())
            ):
                wrong.append(
                    f"gptjax/{inside}:{found.line} imports {found.module}; its door is"
                    f" {DOORS.get(package, 'nowhere')}"
                )
    assert not wrong, "\n".join(wrong)


def test_of_flax_only_linen_and_struct_are_used():
    wrong = [
        f"{short(p)}:{i.line} imports {i.module}"
        for p in sources()
        for i in imports(p)
        if i.module.split(".")[0] == "flax"
        and tuple(i.module.split(".")[:2]) not in {("flax", "linen"), ("flax", "struct")}
    ]
    assert not wrong, "\n".join(wrong)
    mentions = [
        short(p)
        for p in sources()
        if any(
            isinstance(n, ast.Name | ast.Attribute) and "nnx" in ast.unparse(n).split(".")
            for n in ast.walk(tree(p))
        )
    ]
    assert not mentions


def test_data_and_config_know_no_jax():
    for path in sources():
        if path.relative_to(ROOT / "gptjax").as_posix().startswith(WITHOUT_JAX):
            assert not [
                i
                for i in imports(path)
                if i.module.split(".")[0] in ("jax", "jaxlib", "flax", "optax")
            ], short(path)


def test_slow_packages_are_imported_inside_functions():
    for path in sources():
        assert not [
            i
            for i in imports(path)
            if i.module.split(".")[0] in INSIDE_FUNCTIONS and not i.in_function
        ], short(path)


def test_the_door_of_the_command_line_opens_before_jax():
    """CPU flags are chosen before jax is imported, and reading a config or preparing data never
    needs it."""
    modules = "gptjax, gptjax.cli.main, gptjax.core.config, gptjax.core.backend, gptjax.data, gptjax.runs"
    slow = (
        "{'jax', 'flax', 'optax', 'orbax', 'tensorflow', 'tensorflow_datasets', 'tyro',"
        " 'sentencepiece', 'tokenizers'}"
    )
    program = f"import sys, {modules}; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- what may not run
# --------------------------------------------------------------------------------------------


@pytest.mark.row(53)
def test_nothing_imports_tensorflow_or_a_format_that_executes_code():
    wrong = [
        f"{short(p)}:{i.line} imports {i.module}"
        for p in sources()
        for i in imports(p)
        if i.module.split(".")[0] in FORBIDDEN
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.row(53)
def test_no_text_is_executed_but_a_config_file():
    wrong = []
    for path in sources():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            risky = called in (
                "eval",
                "exec",
                "compile",
                "__import__",
                "yaml.load",
                "importlib.import_module",
                "import_module",
            )
            risky |= any(word.arg == "allow_pickle" for word in node.keywords)
            risky |= called.startswith("runpy.") and short(path) != "gptjax/core/config.py"
            if risky:
                wrong.append(f"{short(path)}:{node.lineno} calls {called}")
    assert not wrong, "\n".join(wrong)
    calls = [
        ast.unparse(n)
        for n in ast.walk(tree(ROOT / "gptjax/core/config.py"))
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "runpy"
    ]
    assert calls == ["runpy.run_path"], "config files are run in one place"


# --- what a reader finds
# -----------------------------------------------------------------------------------------


def documented(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The module and its public functions and classes."""
    yield short(path), tree(path)
    for node in tree(path).body:
        if isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        ) and not node.name.startswith("_"):
            yield f"{short(path)}:{node.lineno} {node.name}", node


@pytest.mark.parametrize("name", [short(path) for path in sources()])
def test_every_module_and_public_name_says_what_it_gives(name):
    lacking = [what for what, node in documented(ROOT / name) if not ast.get_docstring(node)]
    assert not lacking, "\n".join(lacking)


def test_a_docstring_begins_with_a_whole_sentence():
    wrong = []
    for name, node in (pair for path in sources() for pair in documented(path)):
        first = (ast.get_docstring(node) or ".").split("\n\n")[0].rstrip()
        if not first.endswith((".", "?", ":", "`")):
            wrong.append(f"{name}: {first.splitlines()[-1]}")
    assert not wrong, "\n".join(wrong)


def test_no_file_is_longer_than_460_lines():
    lengths = {short(p): len(p.read_text(encoding="utf-8").splitlines()) for p in sources()}
    assert not {name: n for name, n in lengths.items() if n > 460}


def code_lines(path: Path, functions: tuple[str, ...] = ()) -> set[int]:
    """Numbers of the lines that hold code: not blank, no comment, no docstring (that of a field
    included)."""
    docs = {
        n for node in ast.walk(tree(path)) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for n in range(node.lineno, node.end_lineno + 1)
    }  # fmt: skip
    silent = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.ENCODING,
    }
    tokens = tokenize.tokenize(io.BytesIO(path.read_bytes()).readline)
    lines = {
        n for t in tokens if t.type not in silent for n in range(t.start[0], t.end[0] + 1)
    } - docs
    if not functions:
        return lines
    bodies = [
        node
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef) and node.name in functions
    ]
    assert {node.name for node in bodies} == set(functions), (
        f"{short(path)} lost one of {functions}"
    )
    return {n for n in lines for node in bodies if node.lineno <= n <= node.end_lineno}


def test_code_lines_leave_out_blanks_comments_and_docstrings(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""Doc.\n\nMore."""\n\nx = """a\n\nb"""  # why\n# why\n\n\ndef f():\n    """Doc."""\n   '
        " return [\n        1,\n    ]\n"
    )
    assert code_lines(tmp_path / "a.py") == {5, 6, 7, 11, 13, 14, 15}


READ = {
    "train.py": (),
    "gptjax/cli/main.py": ("main", "guarded", "train", "_experiment"),
    "gptjax/train/loop.py": (),
    "gptjax/train/program.py": (
        "build",
        "lowered",
        "abstract",
        "_initial",
        "placed",
        "_settle",
        "row_plan",
        "require_divides",
    ),
    "gptjax/train/step.py": (),
    "gptjax/losses/cross_entropy.py": (
        "training",
        "cross_entropy",
        "predict",
        "token_losses",
        "summary",
    ),
    "gptjax/model/transformer.py": (
        "encode",
        "forward",
        "unembed",
        "_embedding",
        "_enter",
        "_head",
        "_reading",
        "_transform",
        "_biased_by_distance",
    ),
    "gptjax/model/stack.py": (),
    "gptjax/model/attention/layer.py": (),
    "gptjax/model/attention/reference.py": (),
    "gptjax/model/attention/mask.py": (),
    "gptjax/model/layers.py": (),
    "gptjax/model/positions.py": (),
}
"""What someone reads who follows `python train.py` down to the loss: whole files, or the functions
on the way."""


def test_a_newcomer_reads_at_most_a_thousand_lines_from_the_command_to_the_loss():
    lines = {name: len(code_lines(ROOT / name, functions)) for name, functions in READ.items()}
    total = sum(lines.values())
    assert total <= 1000, f"{total} lines of code from train.py to the loss: {lines}"


@pytest.mark.parametrize("name", sorted(READ))
def test_the_path_to_the_loss_is_connected(name):
    """Each file of the newcomer's read is imported by another one of them."""
    module = name.removesuffix(".py").replace("/", ".")
    imported = {i.module for other in READ if other != name for i in imports(ROOT / other)}
    door = "gptjax.model" in imported and module in {
        i.module for i in imports(ROOT / "gptjax/model/__init__.py")
    }
    assert name == "train.py" or module in imported or door
