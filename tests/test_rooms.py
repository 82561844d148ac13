"""Laws of the architecture, read from the source with `ast`: which room imports which, where
foreign packages enter, what must never run, and how long files, functions and the step may be.

Imports inside functions count like any other: nothing is imported to be read. The exceptions are
the subprocesses that import the package without a client room, and the one that traces a step.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from step_lines import code_lines

ROOT = Path(__file__).parents[1]

ROOMS = (
    *("core", "sharding", "weights", "model", "data", "losses", "formats", "runs", "generate"),
    *(
        "rewards",
        "observe",
        "train",
        "api",
        "retrieve",
        "evaluate",
        "clean",
        "hear",
        "compress",
        "lab",
        "serve",
        "verify",
        "plan",
        "cli",
        "__main__",
    ),
)
"""From the bottom up: a room imports only rooms before it."""

CLIENTS = ("retrieve", "evaluate", "clean", "hear", "compress", "lab", "serve", "verify", "plan")
"""Rooms that no other room needs; a command imports its room when it is called."""

EXCEPTIONS = {
    ("gptjax/train/identity.py", "gptjax"): "the version is part of a run's identity",
    ("gptjax/train/facts.py", "gptjax"): "the version is in the banner",
    ("gptjax/data/prepare.py", "gptjax"): "the version is part of the key of prepared data",
}
"""Imports of the package itself, whose door is `api`, from below it. Only `__version__` is read."""

OFFERED = {
    ("gptjax/data/prepare.py", "gptjax.clean.cached"): "data.clean cleans before it tokenises",
    ("gptjax/api.py", "gptjax.serve.engine"): "Model.engine opens one; without the room it cannot",
    ("gptjax/api.py", "gptjax.hear"): "Model.transcribe hears; without the room it cannot",
    ("gptjax/train/watched.py", "gptjax.evaluate.watched"): "a run that watches tasks opens them",
}
"""Imports of a client room from below it, inside a function that offers what the room does."""

EVERYWHERE = {"numpy"}
DOORS = {
    "jax": ("",),
    "flax": ("model/", "weights/"),
    "optax": ("train/", "losses/"),
    "orbax": ("runs/",),
    "tensorflow_datasets": ("data/documents/tfds.py",),
    "pyarrow": ("data/documents/",),
    "charset_normalizer": ("data/documents/encodings.py",),
    "sentencepiece": ("data/tokenizers/",),
    "tokenizers": ("data/tokenizers/",),
    "jinja2": ("data/tokenizers/",),
    "outlines_core": ("generate/constraints/",),
    "llguidance": ("generate/constraints/",),
    "tyro": ("core/user_config.py",),
    "tensorboardX": ("observe/log.py",),
    "jaxtyping": ("core/arrays.py",),
    "PIL": ("model/inputs/image_files.py", "model/inputs/video_files.py"),
    "safetensors": ("formats/",),
    "gguf": ("formats/",),
    "runpy": ("core/user_config.py",),
    "starlette": ("serve/http.py",),
    "uvicorn": ("serve/listen.py",),
    "h11": ("serve/listen.py",),
    "bm25s": ("retrieve/index.py",),
    "prometheus_client": ("serve/metrics.py",),
    "py3langid": ("clean/language.py",),
    "ftfy": ("clean/normalise.py",),
    "phonenumbers": ("clean/pii_phones.py",),
    "dp_accounting": ("lab/accounting.py",),
    "lm_eval": ("evaluate/harness.py",),
    "sacrebleu": ("evaluate/figures/written.py",),
    "soundfile": ("model/inputs/audio_files.py",),
    "rouge_score": ("evaluate/figures/written.py",),
    "wandb": ("observe/loggers.py",),
    "mlflow": ("observe/loggers.py",),
    "trackio": ("observe/loggers.py",),
    "fsspec": ("core/remote.py",),
}
"""Package → the files or rooms that may import it ("" is everywhere). A package that is in neither
table may not be imported."""

WITHOUT_JAX = ("core/config.py", "core/user_config.py", "core/backend.py", "data/")
INSIDE_FUNCTIONS = {
    "tensorflow_datasets": "it takes a second to import",
    "tyro": "reading a run needs no flags",
}
FORBIDDEN = {
    *("tensorflow", "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"),
}

FILE_LINES = 400
FUNCTION_LINES = 60

SHARED_NAMES = 4
"""Public functions that share their name with one of another module."""

STEP_LINES = 2000
"""Lines of all functions that one default training step executes, docstrings included."""

SLACK = 150
"""Lines by which a published figure may exceed the measured one."""


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


# --- rooms ---


def test_every_file_is_in_a_known_room():
    assert [short(p) for p in sources() if room(p) not in ("", *ROOMS)] == []


def test_a_room_imports_only_rooms_before_it():
    wrong = []
    for path in (p for p in sources() if room(p)):
        for found in imports(path):
            if found.module.split(".")[0] != "gptjax" or (short(path), found.module) in EXCEPTIONS:
                continue
            if (short(path), found.module) in OFFERED and (found.in_function or found.typing_only):
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


@pytest.mark.parametrize("client", [name for name in CLIENTS if (ROOT / "gptjax" / name).is_dir()])
def test_a_client_room_can_be_deleted_and_all_else_still_imports(client: str, tmp_path: Path):
    shutil.copytree(
        ROOT / "gptjax",
        tmp_path / "gptjax",
        ignore=lambda folder, names: (
            {"__pycache__"} | ({client} if Path(folder) == ROOT / "gptjax" else set())
        ),
    )
    program = (
        "import gptjax, importlib, pkgutil; print(gptjax.__file__)\n"
        "for module in pkgutil.walk_packages(gptjax.__path__, 'gptjax.'):\n"
        "    if module.name != 'gptjax.__main__': importlib.import_module(module.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path / "gptjax"


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
        assert len(code_lines((ROOT / name).read_bytes())) <= 10


# --- doors ---


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
    modules = (
        "gptjax, gptjax.cli.main, gptjax.core.config, gptjax.core.backend, gptjax.data, gptjax.runs"
    )
    slow = (
        "{'jax', 'flax', 'optax', 'orbax', 'tensorflow', 'tensorflow_datasets', 'tyro',"
        " 'sentencepiece', 'tokenizers'}"
    )
    program = f"import sys, {modules}; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_command_line_imports_no_room_before_a_command_is_chosen():
    program = (
        "import sys, gptjax.cli.main; print(*sorted({name.split('.')[1] for name in sys.modules"
        " if name.startswith('gptjax.')}), 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("cli core False", "")


# --- what may not run ---


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
            here = short(path) == "gptjax/core/user_config.py"
            risky |= called.startswith(("runpy.", "pkgutil.")) and not here
            if risky:
                wrong.append(f"{short(path)}:{node.lineno} calls {called}")
    assert not wrong, "\n".join(wrong)
    calls = [
        ast.unparse(n)
        for n in ast.walk(tree(ROOT / "gptjax/core/user_config.py"))
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "runpy"
    ]
    assert calls == ["runpy.run_path"], "config files are run in one place"


# --- what a reader finds ---


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


# --- how much a reader finds ---


def test_no_file_is_longer_than_400_lines():
    lengths = {short(p): len(p.read_text(encoding="utf-8").splitlines()) for p in sources()}
    over = {n: size for n, size in lengths.items() if size > FILE_LINES}
    assert not over, over


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_no_function_is_longer_than_60_lines():
    over = {}
    for path in sources():
        for node in functions(path):
            name, length = f"{short(path)}:{node.name}", node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES:
                over[name] = length
    assert not over, over


def test_few_public_functions_share_a_name():
    """A name that many modules use can't be searched for."""
    modules = defaultdict(list)
    for path in sources():
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                modules[node.name].append(short(path).removeprefix("gptjax/"))
    shared = {name: where for name, where in modules.items() if len(where) > 1}
    listing = "\n".join(
        f"{name}: {', '.join(where)}"
        for name, where in sorted(shared.items(), key=lambda item: -len(item[1]))
    )
    assert sum(map(len, shared.values())) <= SHARED_NAMES, listing


def test_code_lines_leave_out_blanks_comments_and_docstrings():
    source = (
        '"""Doc.\n\nMore."""\n\nx = """a\n\nb"""  # why\n# why\n\n\n'
        'def f():\n    """Doc."""\n    return [\n        1,\n    ]\n'
    )
    assert code_lines(source.encode()) == {5, 6, 7, 11, 13, 14, 15}


@cache
def step_lines() -> dict:
    """The figures of tests/step_lines.py, from a process of its own that has traced nothing yet."""
    done = subprocess.run(
        [sys.executable, "tests/step_lines.py"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_default_training_step_executes_at_most_2000_lines():
    figures = step_lines()
    by_file = {name: sum(n for _, n in rows.values()) for name, rows in figures["files"].items()}
    assert figures["lines"] <= STEP_LINES, by_file


def test_the_counted_step_reaches_the_model_the_loss_the_optimizer_and_the_batch():
    """A tracer that lost a part of the step would publish a smaller figure."""
    files = step_lines()["files"]
    for file in ("model/transformer.py", "train/step.py", "train/optim.py", "data/batches.py"):
        assert f"gptjax/{file}" in files
    assert any(file.startswith("gptjax/losses/") for file in files)


def test_the_architecture_page_publishes_the_figures_of_the_step():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    match = re.search(r"<!-- step lines -->(.*?)<!-- /step lines -->", page, re.DOTALL)
    published = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", match[1])]
    figures = step_lines()
    names = ("lines", "code", "lines_with_assembly", "code_with_assembly")
    measured = [figures[name] for name in names]
    assert all(n <= limit <= n + SLACK for n, limit in zip(measured, published, strict=True)), (
        f"docs/architecture.md says at most {published}; {names} are {measured}"
    )
