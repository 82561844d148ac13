"""Records of local files for the tasks beside this file. The folder is `--metadata
'{"folder": "DIR"}'`, or the environment variable EVAL_DATA; nothing is downloaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets


def read(file: str, folder: str | None = None, **other: Any) -> dict[str, datasets.Dataset]:
    """Returns the records of a file of JSON lines as the harness' `test` split."""
    where = folder or os.environ.get("EVAL_DATA")
    if where is None or not (path := Path(where, file)).is_file():
        raise SystemExit(
            f"error: {file} is not in {where or 'any folder'}; name the folder of evaluation files"
            """ (EVAL_DATA=DIR, or --metadata '{"folder": "DIR"}')."""
        )
    lines = path.read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line.strip()]
    return {"test": datasets.Dataset.from_list(records)}
