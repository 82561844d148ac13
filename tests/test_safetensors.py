"""Laws of safetensors files: what we write the library reads and the other way about; what is
damaged or hostile is refused at once, in little memory."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptjax import formats
from gptjax.core.config import ConfigError
from gptjax.formats import huggingface, safetensors
from gptjax.formats.safetensors import DTYPES, File, write_safetensors

DESCRIBED = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
}


def raw(described: object, room: int = 32, length: int | None = None) -> bytes:
    """A file with this header; `described` is text, bytes or what JSON is made of."""
    head = (
        described
        if isinstance(described, bytes)
        else (described if isinstance(described, str) else json.dumps(described)).encode()
    )
    return (len(head) if length is None else length).to_bytes(8, "little") + head + bytes(room)


def changed(**a: object) -> bytes:
    return raw(DESCRIBED | {"a": DESCRIBED["a"] | a})


TWICE = (
    json.dumps(DESCRIBED)[:-1] + ', "a": {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]}}'
)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "length of 2^63": (raw(DESCRIBED, length=1 << 63), "cut short"),
    "length of 2^64 - 1": (raw(DESCRIBED, length=(1 << 64) - 1), "cut short"),
    "longer than the file": (raw(DESCRIBED, length=500), "cut short"),
    "empty": (b"", "cut short"),
    "seven bytes": (b"\1\0\0\0\0\0\0", "cut short"),
    "no JSON": (raw("{" + "x" * 40), "invalid JSON"),
    "not UTF-8": (raw(b'{"\xff": {}}'), "invalid UTF-8"),
    "a list": (raw("[1, 2]"), "not a safetensors file"),
    "begins with a space": (raw(" " + json.dumps(DESCRIBED)), "not a safetensors file"),
    "something after the end": (raw(json.dumps(DESCRIBED) + "{}"), "trailing characters"),
    "a tensor twice": (raw(TWICE), "invalid offset"),
    "a key twice": (
        raw('{"a": {"dtype": "F32", "dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}', 0),
        "duplicate field",
    ),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 32]}}), "missing field"),
    "unknown type": (changed(dtype="PICKLE"), "unknown variant"),
    "negative": (changed(data_offsets=[-24, 0]), "invalid value"),
    "negative shape": (changed(shape=[-2, -3]), "invalid value"),
    "a fraction": (changed(shape=[2.0, 3]), "invalid type"),
    "true as a number": (changed(shape=[True, 6]), "invalid type"),
    "a product beyond 2^64": (changed(shape=[1 << 33, 1 << 33]), "overflow"),
    "a product that is 0 modulo 2^64": (
        changed(shape=[1 << 32, 1 << 32], data_offsets=[0, 0]),
        "overflow",
    ),
    "end before begin": (changed(data_offsets=[24, 0]), "invalid offset"),
    "smaller than its shape": (changed(shape=[2, 4]), "invalid shape"),
    "overlap": (
        raw(DESCRIBED | {"b": DESCRIBED["b"] | {"data_offsets": [20, 28]}}, 28),
        "invalid offset",
    ),
    "hole": (
        raw(DESCRIBED | {"b": DESCRIBED["b"] | {"data_offsets": [28, 36]}}, 36),
        "invalid offset",
    ),
    "trailing bytes": (raw(DESCRIBED, 33), "not fully covered"),
    "cut short": (raw(DESCRIBED, 31), "not fully covered"),
    "deeply nested": (raw('{"a":' + "[" * 100_000), "recursion limit"),
    "nested in a tensor": (
        raw(
            '{"a": {"dtype": "F32", "shape": '
            + "[" * 900
            + "]" * 900
            + ', "data_offsets": [0, 0]}}',
            0,
        ),
        "recursion limit",
    ),
    "metadata of numbers": (raw(DESCRIBED | {"__metadata__": {"a": 1}}), "expected a string"),
    "a shape of a thousand dimensions": (changed(shape=[1] * 200), "invalid shape"),
    "a number of 5,000 digits": (
        raw('{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 0]}}', 0),
        "out of range",
    ),
}


def memory(begin: bool = False) -> float:
    """The most that this process held since it was asked to `begin`, in MB."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured by Linux's /proc")
    if begin:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.row(54)
def test_a_hostile_header_is_refused_at_once_in_little_memory(tmp_path, record_property):
    before, slowest = memory(begin=True), 0.0
    sparse = tmp_path / "a header of 100 MB and a byte"
    with sparse.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)
    (tmp_path / "fifo").mkdir()
    files = {
        sparse: "a header of 100,000,001 bytes; at most",
        tmp_path / "fifo": "not a regular file",
        tmp_path / "nothere": "No such file",
    }
    for name, (content, said) in HOSTILE.items():
        files[tmp_path / name] = said
        (tmp_path / name).write_bytes(content)
    for file, said in files.items():
        begin = time.process_time()
        with pytest.raises(ConfigError, match=said) as caught:
            File(file)
        slowest = max(slowest, time.process_time() - begin)
        assert (
            str(file) in str(caught.value)
            and len(str(caught.value)) < 600
            and "\n" not in str(caught.value)
        )
    spent = f"each in ≤ {slowest:.2f} s of a core, memory +{memory() - before:.0f} MB"
    record_property(
        "figure", f"{len(files)} of {len(files)} hostile headers refused by name, {spent}"
    )
    assert slowest < 1 and memory() - before < 50


@pytest.mark.row(54)
def test_the_largest_header_that_is_read_at_all_costs_little_memory(tmp_path, record_property):
    """Four megabytes of it, sound up to the last tensor, or of anything else."""
    entry = '"%05d":{"dtype":"F32","shape":[],"data_offsets":[%d,%d]}'
    many = ",".join(entry % (i, 4 * i, 4 * i + 4) for i in range(56_000))
    texts = {"tensors": "{" + many + "," + entry % (0, 0, 4) + "}"}
    texts |= {
        "brackets": '{"a":' + "[" * (safetensors.LONGEST - 8),
        "escapes": '{"' + "\\" * (safetensors.LONGEST - 8),
    }
    texts["name"], texts["objects"] = (
        '{"' + "x" * (safetensors.LONGEST - 8),
        '{"a":' + '{"a":' * (safetensors.LONGEST // 5 - 2),
    )
    for name, text in texts.items():
        (tmp_path / name).write_bytes(raw(text, 8))
        assert len(text) <= safetensors.LONGEST
    texts, many, text = list(texts), "", ""
    before, slowest = memory(begin=True), 0.0
    for name in texts:
        begin = time.process_time()
        with pytest.raises(ConfigError, match="is damaged, or not a safetensors file"):
            File(tmp_path / name)
        slowest = max(slowest, time.process_time() - begin)
    record_property(
        "figure",
        f"the longest headers that are read, 4 MB: each in ≤ {slowest:.2f} s of a core, memory"
        f" +{memory() - before:.0f} MB",
    )
    assert slowest < 1 and memory() - before < 50


def fuzz(count: int, path: Path) -> tuple[int, float]:
    """Reads so many files with random damage; gives how many were refused, and the slowest."""
    draw, refused, slowest = random.Random(0), 0, 0.0
    sound = raw(DESCRIBED)
    words = [
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"-",
        b"9" * 30,
        b"\\",
        b"\x00",
        b"\xff",
        b"null",
        b"1e9",
        b'"a"',
        b'"dtype"',
        b"\\ud800",
    ]
    for _ in range(count):
        content = bytearray(sound)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(content))
            match draw.randrange(4):
                case 0:
                    content[at] ^= 1 << draw.randrange(8)
                case 1:
                    del content[at : at + draw.randint(1, 9)]
                case 2:
                    content[at:at] = draw.choice(words)
                case 3:
                    content[at : at + 1] = draw.randbytes(draw.randint(1, 4))
            if not content:
                break
        path.write_bytes(bytes(content))
        begin = time.process_time()
        try:
            file = File(path)
            sizes = [file.take(name).nbytes for name in file.tensors]
            begin_of_data = 8 + int.from_bytes(bytes(content[:8]), "little")
            assert sum(sizes) == path.stat().st_size - begin_of_data
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error)
        slowest = max(slowest, time.process_time() - begin)
    return refused, slowest


@pytest.mark.row(54)
@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.fault)])
def test_random_damage_is_refused_or_harmless(count, tmp_path, record_property):
    before = memory(begin=True)
    refused, slowest = fuzz(count, tmp_path / "fuzzed.safetensors")
    spent = f"each in ≤ {slowest:.2f} s of a core, memory +{memory() - before:.0f} MB"
    record_property(
        "figure",
        f"{count:,} damaged headers: {refused:,} refused, the others as sound as any, {spent}",
    )
    assert refused > count / 2 and slowest < 1 and memory() - before < 50


def test_what_is_written_is_read_again(tmp_path):
    values = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.float32(3).reshape(()),
    }
    values |= {"empty": np.zeros((0, 4), np.float32), "Ж": np.ones(5, np.float32)}
    for dtype in DTYPES:
        file = tmp_path / f"{dtype}.safetensors"
        write_safetensors(
            file,
            {name: value.shape for name, value in values.items()},
            values.items(),
            dtype,
            {"format": "pt"},
        )
        found = File(file)
        assert {t.dtype for t in found.tensors.values()} == {DTYPES[dtype][0]}
        assert found.tensors.keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_array_equal(np.asarray(found.take(name)).astype(np.float32), value)
        assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
    with pytest.raises(ValueError, match="was given instead of"):
        write_safetensors(tmp_path / "x", {"x": (3, 2)}, [("x", values["x"])], "float32", {})


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path):
    values = {
        f"t{i}": np.random.default_rng(i).normal(size=(i, 3)).astype(np.float32) for i in range(5)
    }
    write_safetensors(
        tmp_path / "ours",
        {name: value.shape for name, value in values.items()},
        values.items(),
        "float32",
        {"format": "pt"},
    )
    save_file(values, tmp_path / "theirs", {"format": "pt"})
    read = load_file(tmp_path / "ours")
    theirs = File(tmp_path / "theirs")
    for name, value in values.items():
        np.testing.assert_array_equal(read[name], value)
        np.testing.assert_array_equal(theirs.take(name), value)


def test_a_file_that_is_cut_short_after_it_was_opened_is_an_error(tmp_path):
    write_safetensors(
        tmp_path / "a", {"x": (1000,)}, [("x", np.ones(1000, np.float32))], "float32", {}
    )
    file = File(tmp_path / "a")
    os.truncate(tmp_path / "a", 200)
    with pytest.raises(ConfigError, match="cut short while it was read"):
        file.take("x")


# --- names that lead elsewhere --------------------------------------------------------------------

CONFIG = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "tie_word_embeddings": True,
}
NAMES = (
    *(
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../secret.safetensors",
        "./model.safetensors",
        "~/secret.safetensors",
        "~",
        "..",
        ".",
        "",
        "a\0b",
    ),
    *(
        "sub/model.safetensors",
        "..\\secret.safetensors",
        "C:\\secret",
        "file:///etc/passwd",
        "con\n",
        "x" * 300,
        "-rf",
        "%2e%2e/secret",
        "·",
    ),
)


@pytest.mark.row(55)
def test_names_in_an_index_that_lead_elsewhere_are_refused(tmp_path, record_property):
    home = tmp_path / "model"
    home.mkdir()
    (home / "config.json").write_text(json.dumps(CONFIG))
    secret = tmp_path / "secret.safetensors"
    write_safetensors(secret, {"x": (2,)}, [("x", np.ones(2, np.float32))], "float32", {})
    for name in NAMES:
        (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(ConfigError, match="only plain names"):
            formats.load_model(home)
    links = 0
    (home / "model.safetensors.index.json").unlink()
    write_safetensors(
        home / "model.safetensors", {"x": (2,)}, [("x", np.ones(2, np.float32))], "float32", {}
    )
    for name in (*huggingface.FILES, "shard.safetensors"):
        (home / "model.safetensors.index.json").unlink(missing_ok=True)
        if name == "shard.safetensors":
            (home / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"x": name}})
            )
        kept = (home / name).read_bytes() if (home / name).exists() else None
        (home / name).unlink(missing_ok=True)
        (home / name).symlink_to(secret)
        with pytest.raises(ConfigError, match=r"is a link to|not a model that can be read"):
            formats.load_model(home)
        (home / name).unlink()
        links += 1
        if kept is not None:
            (home / name).write_bytes(kept)
    refused = (
        f"{len(NAMES)} of {len(NAMES)} names of shards and {links} of {links} links that lead"
        " elsewhere refused"
    )
    record_property("figure", f"{refused}; links into a hub cache's blobs followed")


@pytest.mark.row(53)
def test_a_pickled_model_is_refused_and_never_opened(tmp_path, record_property):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    canary = tmp_path / "canary"
    (tmp_path / "pytorch_model.bin").write_bytes(
        b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    )
    with pytest.raises(ConfigError, match=r"pytorch_model.bin, which can run code"):
        formats.load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "pytorch_model.bin").read_bytes())
    with pytest.raises(ConfigError, match="cut short, or not a safetensors"):
        formats.load_model(tmp_path)
    assert not canary.exists()
    record_property(
        "figure", "a pickle beside and in the place of safetensors: refused, 0 canaries"
    )
