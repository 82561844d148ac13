"""The files of a folder that a pattern names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from gptjax.core.config import ConfigError


def files_below(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    """Returns (name relative to the folder, path) of files that match, sorted by name.

    Hidden files and folders are left out. Links are followed, to files and to folders alike, except
    to a folder that holds the link, which would never end. Links that lead nowhere are listed.

    Raises:
      ConfigError: a folder can't be read.
    """
    try:
        found = dict(_walk(folder, "", ()))
        return [(name, found[name]) for name in matching(found, pattern)]
    except OSError as error:
        raise ConfigError(
            f"{error.filename} can't be read ({error.strerror}); fix that, or pass another folder"
            " with --data.source.path."
        ) from None


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Returns the names that match, sorted, without hidden files and those of hidden folders."""
    patterns = [part for part in pattern.split("/") if part not in ("", ".")]
    split = ((name, name.split("/")) for name in names)
    return sorted(
        name
        for name, parts in split
        if _matches(parts, patterns) and not any(part.startswith(".") for part in parts)
    )


def _walk(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        name, path = prefix + entry.name, folder / entry.name
        if leads_nowhere(path):
            yield name, path
        elif entry.is_dir():
            yield from _walk(path, f"{name}/", (*above, real))
        elif entry.is_file():
            yield name, path


def leads_nowhere(path: Path) -> bool:
    """Whether this is a link to nothing, or to itself."""
    return path.is_symlink() and not path.exists()


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a path matches a glob pattern, in which `**` matches any number of folders."""
    if not patterns:
        return not parts
    first, *rest = patterns
    if first == "**":
        return any(_matches(parts[i:], rest or ["*"]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], first) and _matches(parts[1:], rest)
