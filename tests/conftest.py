"""What every test stands on: eight CPU devices, no user folders, strict ranks, and shape
annotations that are executed.

All of it is decided before jax is imported, in the process that starts the workers; they inherit
it.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

DEVICES = "--xla_force_host_platform_device_count"
"""Eight CPU devices, so that meshes are tested on any machine."""

if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault(
    "JAX_DISABLE_MOST_OPTIMIZATIONS", "1"
)  # most of a test's time is compilation; with 0 the tests run what users run

OWNED = None if "XDG_CACHE_HOME" in os.environ else tempfile.mkdtemp(prefix="gptjax-tests-")
"""The cache folder that this process made and removes at the end; none where it was given, and in
the workers."""
if OWNED:
    os.environ["XDG_CACHE_HOME"] = OWNED
# A folder each: jax writes its cache in place, so another worker could read half an entry, and a
# warning is an error here.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(os.environ["XDG_CACHE_HOME"]) / "compiled" / os.environ.get("PYTEST_XDIST_WORKER", "main")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import jaxtyping

HOOKED = (
    *(
        "core.arrays",
        "api",
        "data.batches",
        "data.rows",
        "data.store",
        "model",
        "lab.look",
        "losses",
        "sharding",
        "weights",
    ),
    *(
        f"generate.{name}"
        for name in (
            *(
                "chain",
                "contrastive",
                "decode",
                "beams",
                "engine",
                "history",
                "likelihood",
                "search",
            ),
            *("speculative", "transforms"),
        )
    ),
    *("train.optim", "train.program", "train.step"),
)
"""Modules whose annotations every call in a test is checked against. Not `generate.settings`: a
user's temperature may be a whole number."""

jaxtyping.install_import_hook(
    [f"gptjax.{name}" for name in HOOKED], "beartype.beartype"
)  # before anything imports gptjax

import pytest

PROSE = (
    "The cat sat on the mat and looked at the moon. The moon looked back. ",
    "A small boat left the harbour at dawn, and the harbour was quiet. ",
    "Rain fell on the roof all night; in the morning the garden was green. ",
    "She counted the steps: one, two, three, four, five, and so on to the top. ",
    "Ein kurzer Satz auf Deutsch, mit Umlauten: schön, größer, über. ",
    "def add(a, b):\n    return a + b\n",
)


def documents(count: int) -> list[str]:
    """Small documents of several lengths, all different, with characters of more than one byte."""
    return [
        f"{i}. " + "".join(PROSE[(i * k) % len(PROSE)] for k in range(1, 2 + i % 5))
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """About 20 kB of text in one file, one document."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("\n".join(documents(100)))
    return path


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    """Sixty small documents, a file each; several fit into one row."""
    folder = tmp_path_factory.mktemp("documents")
    for i, text in enumerate(documents(60)):
        (folder / f"{i:02}.txt").write_text(text[: 20 + 7 * (i % 11)])
    return folder


@pytest.fixture(scope="session")
def tiny_experiment(text_file):
    """A run of 30 steps of a few milliseconds each, on eight devices."""
    from gptjax.data import Bytes, DataConfig, Text
    from gptjax.generate import SampleConfig
    from gptjax.model import small
    from gptjax.train.experiment import Checkpoints, Evaluation, Experiment
    from gptjax.train.optim import AdamW, Schedule

    return Experiment(
        model=small("tiny", context=32),
        data=DataConfig(source=Text(str(text_file)), tokenizer=Bytes()),
        optim=AdamW(peak=1e-2),
        schedule=Schedule(
            warmup=4, steps=30
        ),  # written out, so that runs of other lengths share one compiled step
        evaluation=Evaluation(every=10, rows=64, prompt="The ", sample=SampleConfig(new_tokens=8)),
        checkpoints=Checkpoints(every=5),
        steps=30,
        batch=8,
        log_every=5,
    )


TIERS = {
    tier: frozenset(
        Path(__file__).with_name(f"{tier}.txt").read_text(encoding="utf-8").splitlines()
    )
    for tier in ("deep", "deepest")
}
"""Tests that `pytest` without a file leaves to `pytest -m deep` and `pytest -m deepest`:
tests/tiers.py writes the lists."""
WHOLE = "GPTJAX_TESTS_WHOLE"
"""Set where no file, and none of these markers, was asked for; workers inherit it."""


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        unnamed = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        os.environ[WHOLE] = str(int(unnamed and "deep" not in config.option.markexpr))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """Tells benchmarks/reliability.py, which reads the JUnit report, which rows of the fault matrix
    a test proves, and leaves out what is of a later tier where the whole suite was asked for."""
    later = {}
    for item in items:
        item.user_properties.extend(("row", mark.args[0]) for mark in item.iter_markers("row"))
        name = item.nodeid.removeprefix("tests/")
        for tier in (tier for tier, names in TIERS.items() if name in names):
            item.add_marker(tier)
            later[name] = item
    files = {item.path.name for item in items}
    if os.environ[WHOLE] == "0":
        return
    for tier, names in TIERS.items():
        if gone := sorted(n for n in names - set(later) if n.split("::")[0] in files):
            raise pytest.UsageError(
                f"tests/{tier}.txt names {gone[0]}, which is gone; omit its line."
            )
    config.hook.pytest_deselected(items=list(later.values()))
    items[:] = [item for item in items if item.nodeid.removeprefix("tests/") not in later]


def pytest_unconfigure() -> None:
    if OWNED:
        shutil.rmtree(OWNED, ignore_errors=True)


MAPPINGS = 25_000
"""Linux allows a process 65,530; each compiled program takes some, and XLA fails without any."""

FINISHED = itertools.count(1)


@pytest.fixture(autouse=True)
def few_mappings() -> Iterator[None]:
    """Forgets compiled programs once they have mapped much memory; looks after every few tests,
    since one file may compile enough to run out of mappings."""
    yield
    maps = Path("/proc/self/maps")
    if next(FINISHED) % 16 == 0 and maps.is_file() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()
