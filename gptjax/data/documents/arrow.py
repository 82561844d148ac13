"""Arrow files, and the folders of them that Hugging Face's `datasets` writes with `save_to_disk`,
read without that library.

Read `saved_files`, then `arrow_batches`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.opening import Unpacked


def saved_files(folder: Path) -> list[Path] | None:
    """Returns the Arrow files of a saved data set, in its order; `None` if the folder is none.

    Raises:
      ConfigError: it holds several splits, of which one is to be named, or its description is
        damaged.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _described(folder / "dataset_dict.json").get("splits")
        names = [str(name) for name in splits] if isinstance(splits, list) else []
        raise ConfigError(
            f"{folder} holds the splits {', '.join(names) or 'of a data set'}; give one of them:"
            f" --data.source.path {folder / (names or ['train'])[0]}"
        )
    if not all((folder / name).is_file() for name in ("state.json", "dataset_info.json")):
        return None
    files = _described(folder / "state.json").get("_data_files")
    names = [file.get("filename") for file in files] if isinstance(files, list) else []
    require(
        bool(names) and all(type(name) is str and Path(name).name == name for name in names),
        f"{folder / 'state.json'} does not name the files of a data set; save it again.",
    )
    return [folder / name for name in names]


def _described(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{file} can't be read as JSON; save the data set again.")
    return found


def arrow_batches(
    path: Path, fields: Sequence[str] | None, check: Callable[[list[str]], None]
) -> Iterator[Any]:
    """Yields the rows of an Arrow file, in the stream format or that of files, as many at a time as
    were written together. For arguments and errors see `columns.read_columns`."""
    from pyarrow import ipc

    unpacked = Unpacked(path)
    with path.open("rb") as file:
        whole = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = ipc.open_file(file) if whole else ipc.open_stream(file)
        check(reader.schema.names)
        numbers = range(reader.num_record_batches) if whole else None
        for batch in map(reader.get_batch, numbers) if numbers is not None else iter(reader):
            unpacked.add(batch.nbytes)
            yield batch
