"""Laws of token stores: what was not written whole, was changed or is another's is refused by name,
before a step could be made of it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from gptjax.core.config import ConfigError
from gptjax.data import batch, plan, store
from gptjax.data.store import Store

ROOT = Path(__file__).parents[1]


def written(path: Path, *lengths: int, vocab_size: int | None = None) -> Store:
    """A store whose ids count up from 0."""
    writer, ends = store.Writer(path, vocab_size or sum(lengths)), np.cumsum(lengths)
    for n, end in zip(lengths, ends, strict=True):
        writer.add(np.arange(end - n, end, dtype=np.int32))
    writer.close(num_bytes=0, fingerprint="test", facts={})
    return store.open_store(path)


def seal(path: Path) -> None:
    """Makes the seal fit what a test changed, so that what stands behind it is seen."""
    (path / store.SEAL).write_text(
        "".join(
            f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n"
            for name in store.SEALED
        )
    )


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        store.open_store(path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and "delete" in message
    for word in (str(path), *words):
        assert word in message, message


def test_a_store_that_is_cut_short_or_has_grown_is_refused(tmp_path):
    for name in ("ids.bin", "offsets.bin"):
        for change in (-1, -2, +2):
            path = tmp_path / f"{name}{change}"
            written(path, 10, 5)
            content = (path / name).read_bytes()
            (path / name).write_bytes(content[:change] if change < 0 else content + b"\0\0")
            refused(path, name, str(len(content)), str(len(content) + change))
        (path / name).unlink()
        refused(path, name, "None")


HEADERS = {
    "num_tokens": 16,
    "num_examples": 3,
    "dtype": "float64",
    "format": 99,
    "extra": 1,
    "no num_tokens": None,
    "num_tokens null": None,
    "num_examples text": "2",
    "vocab_size text": "15",
    "vocab_size null": None,
}


@pytest.mark.parametrize("name", HEADERS)
def test_an_edited_header_is_refused(tmp_path, name):
    written(tmp_path / "store", 10, 5)
    path = tmp_path / "store/header.json"
    header = json.loads(path.read_text())
    if name.startswith("no "):
        del header[name[3:]]
    else:
        header[name.split()[0]] = HEADERS[name]
    path.write_text(json.dumps(header))
    refused(tmp_path / "store")


def test_a_header_that_is_not_there_or_is_no_header_is_refused(tmp_path):
    written(tmp_path / "store", 10, 5)
    for content in ("", "[]", "{", "null", '"a"', "\0"):
        (tmp_path / "store/header.json").write_text(content)
        refused(tmp_path / "store", "damaged")
    (tmp_path / "store/header.json").unlink()
    refused(tmp_path / "store", "header.json")


@pytest.mark.row(17)
def test_a_flipped_bit_anywhere_in_a_store_is_refused(tmp_path, record_property):
    written(tmp_path / "s", 300, 200)
    files, result = sorted((tmp_path / "s").iterdir()), 0
    for seed in range(200):
        dice = random.Random(seed)
        file = files[seed % len(files)]
        content = file.read_bytes()
        bit = dice.randrange(8 * len(content))
        file.write_bytes(
            bytes(
                [*content[: bit // 8], content[bit // 8] ^ 1 << bit % 8, *content[bit // 8 + 1 :]]
            )
        )
        refused(tmp_path / "s")
        result += 1
        file.write_bytes(content)
    assert len(store.open_store(tmp_path / "s").ids) == 500
    record_property("figure", f"{result} of 200 flipped bits of a token store refused")


def swap_dtype(path: Path) -> None:
    header = path / "header.json"
    header.write_text(header.read_text().replace("uint16", "int32"))


FOREIGN = {
    "another dtype": (swap_dtype, "bytes, its header says"),
    "half a header": (lambda path: os.truncate(path / "header.json", 40), "is damaged"),
    "no header": (lambda path: (path / "header.json").unlink(), "is damaged"),
    "other offsets": (
        lambda path: np.array([0, 9, 15], np.int64).tofile(path / "offsets.bin"),
        "offsets.bin",
    ),
    "no seal": (lambda path: (path / store.SEAL).unlink(), "vouches"),
    "the seal of another": (
        lambda path: (path / store.SEAL).write_bytes(
            (path.parent / "other" / store.SEAL).read_bytes()
        ),
        "vouches",
    ),
}


@pytest.mark.row(17)
def test_a_store_that_is_read_as_another_is_refused(tmp_path, record_property):
    written(tmp_path / "other", 9, 6)
    for name, (change, word) in FOREIGN.items():
        written(path := tmp_path / name, 10, 5)
        change(path)
        refused(path, word)
    record_property(
        "figure",
        f"{len(FOREIGN)} of {len(FOREIGN)} foreign or cut headers, dtypes, offsets and seals"
        " refused",
    )


# --- ids outside the vocabulary


OUTSIDE = [(15, 15), (15, 16), (15, 65535), (2**17, 2**17), (2**17, -1), (2**17, 2**31 - 1)]
"""(size of the vocabulary, id)"""


@pytest.mark.row(5)
def test_an_id_outside_the_vocabulary_never_reaches_the_model_and_its_place_is_named(
    tmp_path, record_property
):
    """The seal is mended, so that the last line of defence is tested: every row that has the id, as
    token or as target."""
    refusals = 0
    for number, (size, wrong) in enumerate(OUTSIDE):
        path = tmp_path / str(number)
        made = written(path, 10, 5, vocab_size=size)
        ids = made.ids[:].copy()
        ids[7] = np.asarray(wrong).astype(ids.dtype)
        ids.tofile(path / "ids.bin")
        seal(path)
        damaged = store.open_store(path)
        said = (
            rf"{number}/ids\.bin has at byte {7 * ids.itemsize} the id {wrong}, outside the"
            rf" vocabulary \[0, {size}\).*delete the folder"
        )
        for seed in (None, 0, 1):
            layout, clean = (plan(each, length=3, rows=1, seed=seed) for each in (damaged, made))
            for step in range(layout.batches_per_epoch):
                wanted = batch(made._replace(ids=np.arange(15)), clean, step)
                if not (np.isin(7, wanted.tokens) or np.isin(7, wanted.targets)):
                    batch(damaged, layout, step)
                    continue
                with pytest.raises(ConfigError, match=said):
                    batch(damaged, layout, step)
                refusals += 1
    assert refusals >= 3 * len(OUTSIDE)
    record_property(
        "figure",
        f"{refusals} of {refusals} batches with one of {len(OUTSIDE)} wrong ids refused on the"
        " host",
    )


@pytest.mark.row(5)
def test_looking_at_every_id_costs_next_to_nothing(tmp_path, record_property):
    from gptjax.data.rows import require_known_ids

    made = written(tmp_path / "s", 64 * 1024 + 1, vocab_size=2**17)
    layout = plan(made, length=1024, rows=64, seed=None)
    result = batch(made, layout, 0)
    at = np.arange(64 * 1024).reshape(64, 1024)
    best = min(
        _seconds(
            lambda: (
                require_known_ids(made, result.tokens, at),
                require_known_ids(made, result.targets, at),
            )
        )
        for _ in range(50)
    )
    record_property("figure", f"{1e3 * best:.3f} ms for 64 x 1024")
    assert best < 1e-4


def _seconds(call) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@pytest.mark.row(5)
def test_what_the_tokenizer_gives_is_checked_before_it_is_stored(tmp_path):
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=f"id {wrong}, outside"):
            store.Writer(tmp_path / str(wrong), 5).add(np.array([1, wrong], np.int32))


# --- cut short while it is open


@pytest.mark.row(48)
def test_a_file_truncated_while_it_is_read_is_named_and_kills_no_process(tmp_path, record_property):
    """In a process of its own, which a mapped file would end with SIGBUS."""
    written(tmp_path / "s", 100_000, vocab_size=2**17)
    code = """
    import os, sys
    from pathlib import Path
    from gptjax.core.config import ConfigError
    from gptjax.data import batch, plan, store
    made = store.open_store(Path(sys.argv[1]))
    layout = plan(made, length=64, rows=8, seed=0)
    batch(made, layout, 0)
    os.truncate(made.path / "ids.bin", 4096)
    caught = 0
    for step in range(1, 51):
        try:
            batch(made, layout, step)
        except ConfigError as error:
            caught, said = caught + 1, str(error)
    print(caught, said)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "s")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    caught, said = done.stdout.split(" ", 1)
    assert (
        int(caught) == 50
        and said
        == f"{tmp_path}/s/ids.bin had 400000 bytes when it was opened and now has 4096; delete the"
        f" folder {tmp_path}/s, it is made again.\n"
    )
    refused(tmp_path / "s", "ids.bin", "4096", "400000")
    record_property(
        "figure",
        f"{caught} of 50 batches refused by name, exit status {done.returncode}, no SIGBUS; refused"
        " again when opened",
    )


def test_a_file_that_is_deleted_while_it_is_read_is_read_to_the_end(tmp_path):
    made = written(tmp_path / "s", 50)
    (tmp_path / "s/ids.bin").unlink()
    assert (
        made.ids[:].tolist() == list(range(50))
        and made.ids[48:].tolist() == [48, 49]
        and made.ids[10:3].tolist() == []
    )
