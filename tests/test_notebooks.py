"""The notebooks run, in one process, as a kernel would run them, and hold no output."""

from __future__ import annotations

import ast
import json
import os
import sys
import types
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples/notebooks"


def cells(name: str, kind: str = "code") -> list[str]:
    """Sources of a notebook's cells."""
    notebook = json.loads((FOLDER / name).read_text("utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_a_notebook_has_a_form_that_opens_and_no_output(name):
    notebook = json.loads((FOLDER / name).read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len({*ids}) == len(ids)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            assert max(map(len, "".join(cell["source"]).split("\n"))) <= 100
            ast.parse("".join(cell["source"]))  # plain Python, without magic
    if nbformat := sys.modules.get("nbformat") or _nbformat():
        nbformat.validate(nbformat.read(FOLDER / name, as_version=4))


def _nbformat():
    try:
        import nbformat
    except ImportError:
        return None
    return nbformat


@pytest.mark.slow
def test_the_quickstart_trains_writes_continues_plots_and_shows(
    text_file, tmp_path, monkeypatch, capsys
):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    shown = types.ModuleType("IPython.display")
    shown.HTML = str
    shell = types.ModuleType("IPython")
    shell.get_ipython, shell.version_info = (lambda: None), (9, 0)  # which matplotlib asks
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gca().get_lines()))
    small = {
        "TEXT = None": f"TEXT = {str(text_file)!r}",
        "STEPS = 200": "STEPS = 6",
        "VOCABULARY = 1024": "VOCABULARY = 400",
        "width=128": "width=32",
        "every=50": "every=3",
    }
    kernel: dict = {"__name__": "__main__"}
    for source in cells("quickstart.ipynb"):
        for piece, instead in small.items():
            if piece in source:
                source = source.replace(piece, instead)  # noqa: PLW2901
                small[piece] = ""
        exec(compile(source, "cell", "exec"), kernel)
    assert not any(small.values()), "each number that this test makes small is there"
    assert "finished already" not in capsys.readouterr().out
    losses, held_out = drawn[0]
    assert list(losses.get_xdata()) == list(range(1, 10)) and 9 in held_out.get_xdata()
    assert "srcdoc" in str(kernel["HTML"]("srcdoc")) and kernel["page"].startswith("&lt;!")
    assert sorted(os.listdir("runs")) == ["quickstart"]
    plt.close("all")
