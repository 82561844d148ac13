"""Tokenised examples on disk: flat, memory-mapped, with a header that knows what it was made of.

A store is a folder: `header.json`, `ids.bin` (all examples one after another), `offsets.bin` (where each begins, int64).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.config import ConfigError, require
from gptjax.data.tasks import Example

FORMAT = 1


@dataclass(frozen=True)
class Header:
    """What a store holds, and of what it was made."""

    dtype: str
    vocab_size: int
    num_tokens: int
    num_examples: int
    num_bytes: int
    """UTF-8 bytes of the text behind the ids: bits per byte divide by it."""
    fingerprint: str
    """Hash of source, tokenizer and settings."""
    facts: dict[str, Any]
    """What else is worth knowing, for example bits per byte of gzip and xz."""
    format: int = FORMAT


class Store(NamedTuple):
    """An open store. `ids[offsets[i] : offsets[i + 1]]` is example i."""

    header: Header
    ids: np.ndarray
    offsets: np.ndarray


def build(path: Path, examples: Iterable[Example], *, vocab_size: int, num_bytes: Any, fingerprint: str, facts: Any = dict) -> None:
    """Writes a store from a stream of examples, in memory bounded by the largest.

    Args:
      num_bytes, facts: called at the end of the stream, when the caller has counted.

    Raises:
      ValueError: an id is outside [0, vocab_size).
    """
    path.mkdir(parents=True)
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
    offsets = [0]
    with open(path / "ids.bin", "wb") as file:
        for example in examples:
            low, high = int(example.ids.min(initial=0)), int(example.ids.max(initial=0))
            if low < 0 or high >= vocab_size:
                raise ValueError(f"example {len(offsets) - 1} has the id {low if low < 0 else high}, outside [0, {vocab_size}).")
            file.write(example.ids.astype(dtype).tobytes())
            offsets.append(offsets[-1] + len(example.ids))
    np.asarray(offsets, np.int64).tofile(path / "offsets.bin")
    header = Header(dtype.name, vocab_size, offsets[-1], len(offsets) - 1, num_bytes(), fingerprint, facts())
    (path / "header.json").write_text(json.dumps(asdict(header), indent=2))


def open_store(path: Path) -> Store:
    """Opens a store for reading; nothing is read but the header and the offsets.

    Raises:
      ConfigError: files are missing, of another format, or not as long as the header says.
    """
    try:
        header = Header(**json.loads((path / "header.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"the token store {path} is damaged ({' '.join(str(error).split())}); delete that folder, it is made again.") from None
    counts = (header.num_tokens, header.num_examples, header.num_bytes, header.vocab_size)
    require(all(type(count) is int and count >= 0 for count in counts), f"the token store {path} has counts {counts}; delete that folder, it is made again.")
    require(header.format == FORMAT, f"the token store {path} has format {header.format}, this gptjax reads {FORMAT}; delete that folder.")
    require(header.dtype in ("uint16", "int32"), f"the token store {path} says dtype {header.dtype!r}; delete that folder, it is made again.")
    for name, size in (("ids.bin", header.num_tokens * np.dtype(header.dtype).itemsize), ("offsets.bin", 8 * (header.num_examples + 1))):
        found = (path / name).stat().st_size if (path / name).is_file() else None
        require(found == size, f"{path / name} has {found} bytes, its header says {size}; delete the folder {path}, it is made again.")
    ids = np.memmap(path / "ids.bin", header.dtype, "r") if header.num_tokens else np.zeros(0, header.dtype)
    offsets = np.fromfile(path / "offsets.bin", np.int64)
    sound = offsets[0] == 0 and offsets[-1] == header.num_tokens and bool((np.diff(offsets) >= 0).all())
    require(sound, f"{path / 'offsets.bin'} does not fit the header; delete the folder {path}, it is made again.")
    return Store(header, ids, offsets)
