"""The source text of the Python standard library: a corpus that is always there."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from gptjax.core.config import require
from gptjax.data.documents.document import Document

SKIPPED = {
    *("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"),
    *("encodings", "pydoc_data"),
}
"""Folders of tests, of what was installed, and of tables that a program wrote, which do not read
like Python."""


def read_standard_library() -> Iterator[Document]:
    """Yields each source file that isn't empty, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    any_file = False
    for name in sorted(_sources(root)):
        try:
            text = (root / name).read_bytes().decode("utf-8")
        except (UnicodeDecodeError, OSError):  # a few sources are in another encoding, on purpose
            continue
        if text:
            any_file = True
            yield Document(text, name)
    require(
        any_file,
        f"{root} has no .py files (this Python packs its library otherwise); give a text with"
        " --data.source.path FILE.",
    )


def _sources(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name for name in folders if name not in SKIPPED and not name.startswith("config-")
        ]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name).relative_to(root).as_posix()
