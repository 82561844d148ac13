"""Code in a loaded file is never executed: canaries in checkpoints, configs, tokenizers, data and
prompts, and a damaged compile cache.

Read `Canary` first: what each payload would do, if anyone ran it, is to make a folder.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import json
import os
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptjax
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Characters, DataConfig, Text, prepare, store
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.observe import goodput
from gptjax.observe.log import read_metrics
from gptjax.runs import Run, manifest
from gptjax.runs.manifest import Damaged
from gptjax.train.experiment import Experiment

FIXTURE = Path(__file__).parent / "fixtures/checkpoint_1"


class Canary:
    """Makes a folder when it is unpickled; the same deed as other formats would write it."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)

    @property
    def pickled(self) -> bytes:
        return pickle.dumps(self)

    @property
    def npy(self) -> bytes:
        file = io.BytesIO()
        np.save(file, np.asarray([self], dtype=object), allow_pickle=True)
        return file.getvalue()

    @property
    def yaml(self) -> bytes:
        return f"!!python/object/apply:os.mkdir ['{self.folder}']\n".encode()

    @property
    def python(self) -> str:
        return f"__import__('os').mkdir({self.folder!r})"

    @property
    def template(self) -> str:
        return "{{ cycler.__init__.__globals__.os.mkdir('" + self.folder + "') }}"


@pytest.fixture
def canary(tmp_path) -> Canary:
    return Canary(tmp_path / "canary")


def test_the_canaries_sing_if_anyone_lets_them(canary):
    """What is proved below is worth something only if each payload would do its deed."""
    for sing in (
        lambda: pickle.loads(canary.pickled),
        lambda: np.load(io.BytesIO(canary.npy), allow_pickle=True),
        lambda: eval(canary.python),
    ):
        sing()
        os.rmdir(canary.folder)
    yaml = pytest.importorskip("yaml", exc_type=ImportError)
    yaml.unsafe_load(canary.yaml)
    os.rmdir(canary.folder)


# --- where they are put ---


def in_file(name: str, kind: str) -> Callable[[Path, Canary], None]:
    """Puts a payload in place of a file of the run."""
    return lambda run, canary: (run / name).write_bytes(getattr(canary, kind))


def sealed(name: str, kind: str) -> Callable[[Path, Canary], None]:
    """The same by someone who can write manifests: sizes and hashes are those of the payload."""

    def put(run: Path, canary: Canary) -> None:
        folder, content = run / "checkpoints/60", getattr(canary, kind)
        (folder / name).write_bytes(content)
        told = manifest.read_manifest(folder)
        manifest.write_manifest(
            folder, told._replace(files={n: manifest._measure(folder / n) for n in told.files})
        )

    return put


def beside(name: str, kind: str) -> Callable[[Path, Canary], None]:
    """A file more."""

    def put(run: Path, canary: Canary) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        content = getattr(canary, kind)
        (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return put


def in_settings(change: Callable[[dict, Canary], object]) -> Callable[[Path, Canary], None]:
    """A value of config.json."""

    def put(run: Path, canary: Canary) -> None:
        settings = json.loads((run / "config.json").read_text())
        change(settings, canary)
        (run / "config.json").write_text(json.dumps(settings))

    return put


def in_tokenizer(run: Path, canary: Canary) -> None:
    """A kind of tokenizer that is code, with a hash that fits."""
    told = json.loads((run / "tokenizer/tokenizer_config.json").read_text())
    (run / "tokenizer/tokenizer_config.json").write_text(
        json.dumps(told | {"kind": canary.python, "auto_map": {"AutoTokenizer": "evil.Tokenizer"}})
    )
    (run / "tokenizer/evil.py").write_text(canary.python)


PLACES: dict[str, Callable[[Path, Canary], None]] = {
    "checkpoint: arrays": in_file("checkpoints/60/params/manifest.ocdbt", "pickled"),
    "checkpoint: arrays, sealed anew": sealed("params/manifest.ocdbt", "pickled"),
    "checkpoint: metadata": in_file("checkpoints/60/params/_METADATA", "pickled"),
    "checkpoint: metadata, sealed anew": sealed("params/_METADATA", "pickled"),
    "checkpoint: sharding as YAML, sealed anew": sealed("params/_sharding", "yaml"),
    "checkpoint: array metadata as npy objects, sealed anew": sealed(
        "params/array_metadatas/process_0", "npy"
    ),
    "checkpoint: manifest": in_file("checkpoints/60/manifest.json", "pickled"),
    "checkpoint: an npy file of objects beside the arrays": beside(
        "checkpoints/60/params/w.npy", "npy"
    ),
    "checkpoint: a pickle as in other libraries": beside(
        "checkpoints/60/pytorch_model.bin", "pickled"
    ),
    "config: a pickle": in_file("config.json", "pickled"),
    "config: YAML": in_file("config.json", "yaml"),
    "config: a kind that is code": in_settings(
        lambda s, canary: s["optim"].update(kind=canary.python)
    ),
    "config: a number that is code": in_settings(
        lambda s, canary: s["model"].update(width=canary.python)
    ),
    "config: a template": in_settings(
        lambda s, canary: s["evaluation"].update(prompt=canary.template)
    ),
    "config: Python files beside it": lambda run, canary: [
        (run / f"{name}.py").write_text(canary.python)
        for name in ("config", "sitecustomize", "json", "modeling")
    ],
    "identity: a pickle": in_file("identity.json", "pickled"),
    "tokenizer: a pickle": in_file("tokenizer/characters.json", "pickled"),
    "tokenizer: its description as YAML": in_file("tokenizer/tokenizer_config.json", "yaml"),
    "tokenizer: a kind that is code": in_tokenizer,
    "records: pickles": lambda run, canary: [
        in_file(name, "pickled")(run, canary) for name in ("metrics.jsonl", goodput.FILE)
    ],
}


def read_all(run: Path) -> None:
    """Everything that reads a run directory, each whatever the others say."""
    shape = {
        leaf.path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for leaf in manifest.read_manifest(FIXTURE / "checkpoints/60").trees["params"]
    }
    for reading in (
        lambda: gptjax.load(run),
        lambda: Run(run).restore({"params": manifest.nested(shape)}, say=lambda line: None),
        lambda: config.load_config(Experiment, run / "config.json"),
        lambda: tokenizers.load_tokenizer(run / "tokenizer"),
        lambda: read_metrics(run),
        lambda: goodput.read_goodput(run),
        lambda: manifest.verify(run / "checkpoints/60"),
    ):
        with contextlib.suppress(ConfigError, Damaged, ValueError, OSError):
            reading()


@pytest.mark.row(53)
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # TensorStore may fail once more when Orbax has given up
def test_no_canary_of_a_run_sings(canary, tmp_path, record_property, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for number, put in enumerate(PLACES.values()):
        run = shutil.copytree(FIXTURE, tmp_path / str(number) / "run")
        put(run, canary)
        monkeypatch.chdir(run)
        read_all(run)
        assert not Path(canary.folder).exists(), put
    gc.collect()  # what TensorStore left unawaited is told now, here, where it is expected
    record_property(
        "figure",
        f"0 of {len(PLACES)} canaries in checkpoints, configs, tokenizers and records executed",
    )


@pytest.mark.row(53)
def test_no_canary_of_a_text_sings(canary, tmp_path, record_property):
    """Data are bytes, whatever they look like; a prompt is text."""
    good = "a small boat left the harbour at dawn. " * 20
    texts: dict[str, bytes] = {
        "text.txt": canary.pickled + good.encode(),
        "objects.txt": canary.npy + good.encode(),
        "text.txt.gz": gzip.compress(canary.pickled + good.encode()),
        "records.jsonl": b"".join(
            json.dumps({"text": t + good, "__reduce__": canary.python}).encode() + b"\n"
            for t in (canary.template, canary.python, canary.yaml.decode())
        ),
        "template.txt": (canary.template + "{0.__class__.__init__.__globals__}" + good).encode(),
    }
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
        for tokenizer in (Bytes(), Characters()):
            with contextlib.suppress(ConfigError):  # a pickle is not UTF-8
                prepare(
                    DataConfig(
                        source=Text(str(tmp_path / name)),
                        tokenizer=tokenizer,
                        cache=str(tmp_path / "cache"),
                    )
                )
    for name in (*store.SEALED, store.SEAL):
        for made in (tmp_path / "cache").glob("*/train"):
            with contextlib.suppress(FileNotFoundError):
                kept = (made / name).read_bytes()
                (made / name).write_bytes(canary.pickled)
                with contextlib.suppress(ConfigError, ValueError):
                    store.open_store(made)
                (made / name).write_bytes(kept)
    told = tokenizers.train_tokenizer(Bytes(), iter(()))
    for prompt in (canary.template, canary.python, canary.yaml.decode(), "{0.__class__}"):
        assert told.decode(told.encode(prompt)) == prompt, "a prompt is text"
    assert not Path(canary.folder).exists()
    record_property(
        "figure", f"0 of {2 * len(texts)} canaries in texts, and of 4 in a token store, executed"
    )


# --- the compile cache ---


@pytest.mark.row(71)
@pytest.mark.parametrize("damage", ["cut", "emptied", "zeroed", "a bit flipped"])
def test_a_damaged_compile_cache_is_told_and_compiled_again(
    damage, tmp_path, record_property, monkeypatch
):
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    x = jnp.arange(12.0).reshape(3, 4)

    def compute() -> bytes:
        return np.asarray(jax.jit(lambda x: jnp.tanh(x @ x.T) / 3)(x)).tobytes()

    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        wanted = compute()
        entries = [file for file in tmp_path.iterdir() if "lambda" in file.name]
        assert entries, "nothing was kept"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert compute() == wanted, "read back"
        for file in entries:
            content = file.read_bytes()
            flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
            file.write_bytes(
                {
                    "cut": content[: len(content) // 2],
                    "emptied": b"",
                    "zeroed": bytes(len(content)),
                    "a bit flipped": flipped,
                }[damage]
            )
        with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
            assert compute() == wanted
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    record_property("figure", f"{damage}: a warning, compiled again, equal bits")
