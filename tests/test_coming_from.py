"""The names that docs/coming-from.md gives for those of other programs exist."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

import gptjax
from gptjax import model
from gptjax.losses import CrossEntropy
from gptjax.train.experiment import Experiment
from gptjax.train.optim import AdamW

PAGE = Path(__file__).parents[1] / "docs/coming-from.md"
KINDS = {"optim": AdamW, "loss": CrossEntropy}
"""Where a field of a config is one of several classes."""


def fields_of(kind: type) -> dict[str, typing.Any]:
    return {field.name: field.default for field in dataclasses.fields(kind)}


def here() -> list[str]:
    """What stands in the right column, in backticks."""
    rows = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[1])]


def test_every_key_is_a_field_of_the_config():
    experiment, known = Experiment(), fields_of(Experiment)
    keys = [
        name.removeprefix("--").split()[0]
        for name in here()
        if re.fullmatch(r"(--)?[a-z_]+\.[a-z_0-9]+( .*)?", name) and name != "report.html"
    ]
    assert len(keys) > 40
    for key in keys:
        section, name = key.split(".")
        if section == "model" and hasattr(model, name) and callable(getattr(model, name)):
            continue  # a function of the package `model`
        if section == "gptjax":
            assert hasattr(gptjax, name), key
            continue
        if section == "data":
            assert hasattr(experiment.data, name), key
            continue
        assert section in known, key
        kind = KINDS.get(section) or type(getattr(experiment, section))
        assert name in fields_of(kind), key
    plain = [name for name in here() if re.fullmatch(r"[a-z]+(_[a-z]+)?", name)]
    assert {"batch", "micro_batch", "steps", "start"} <= set(plain) & set(known)


@pytest.mark.parametrize("name", ["forward", "unembed"])
def test_every_function_is_there(name):
    assert callable(getattr(model, name)) and f"model.{name}" in PAGE.read_text(encoding="utf-8")


def test_every_activation_is_there():
    from gptjax.model.activations import ACTIVATIONS

    shown = re.search(r"observe=\(([^)]*)\)", PAGE.read_text(encoding="utf-8"))[1]
    assert set(re.findall(r'"([a-z]+)"', shown)) <= set(ACTIVATIONS)
