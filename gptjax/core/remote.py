"""Files of an object store, such as `gs://bucket/text.jsonl`, as files of this machine.

Any URL that fsspec can open is taken wherever a path is. Read `as_url`, then `local_copy`, which
fetches what is read; `runs/mirror.py` writes. Nothing here runs for a path of this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.backend import user_cache
from gptjax.core.config import ConfigError, first_line, require

URL = re.compile(r"([a-z][a-z0-9]*[a-z0-9+.-]):/+(.*)", re.DOTALL)
"""Scheme and the rest. A scheme has two characters at least; `Path` makes one slash of two."""

EXTRAS = {"gs": "gptjax[gcs]", "gcs": "gptjax[gcs]", "s3": "gptjax[s3]", "s3a": "gptjax[s3]"}
"""Scheme → what to install; other schemes name a package of their own."""

STAMPS = ("etag", "ETag", "md5Hash", "updated", "LastModified", "last_modified", "mtime", "created")
"""What file systems call the version of a file; which of them there are differs."""

Wanted = Callable[[Collection[str]], Collection[str]]
"""Chooses some of the names in a folder."""


class Place(NamedTuple):
    """Where a URL leads."""

    url: str
    fs: Any
    """The file system of fsspec."""
    root: str
    """The path there."""

    def at(self, name: str) -> str:
        """Returns the path of a name below the root; that of the root for an empty name."""
        return f"{self.root}/{name}" if name else self.root

    def files(self) -> dict[str, dict[str, Any]]:
        """Returns what is known of each file below the root, by its name there; of a root that is
        a file under an empty name. Nothing is there: an empty dict.

        Raises:
          ConfigError: a name leads out of the root.
        """
        self.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            info = self.fs.info(self.root)
            if info["type"] == "file":
                return {"": info}
        found = self.fs.find(self.root, detail=True)
        above = f"{self.root.rstrip('/')}/"
        names = {
            path.removeprefix(above): info
            for path, info in found.items()
            if path.startswith(above) and not path.endswith("/")
        }
        for name in names:
            require(
                not {"", ".", ".."} & set(name.split("/")),
                f"{self.url} holds {name!r}, which can't be the name of a file; rename it.",
            )
        return names


def as_url(path: Path | str) -> str | None:
    """Returns the URL that a path is; `None` for one of this machine, such as any that exists."""
    found = URL.fullmatch(str(path))
    if found is None or os.path.lexists(path):
        return None
    slashes = ":///" if found[1] in ("file", "local") else "://"
    return f"{found[1]}{slashes}{found[2]}".rstrip("/")


def require_local(path: Path | str, what: str) -> None:
    """Refuses a URL where something is written that is not mirrored.

    Args:
      what: is written, such as "a sweep".
    """
    require(
        as_url(path) is None,
        f"{as_url(path)} is a URL, and {what} is written to a folder; give one, and copy it there.",
    )


def place_of(url: str) -> Place:
    """Opens the file system of a URL.

    Raises:
      ConfigError: no installed package knows its scheme.
    """
    import fsspec

    scheme = url.partition(":")[0]
    try:
        made = {"auto_mkdir": True} if scheme in ("file", "local") else {}
        fs, root = fsspec.core.url_to_fs(url, **made)
    except ImportError as error:
        needed = EXTRAS.get(scheme)
        mend = f"pip install '{needed}'" if needed else first_line(error)
        raise ConfigError(f"{url} needs a package that is not installed: {mend}.") from None
    except ValueError:
        raise ConfigError(
            f"{url} has the scheme {scheme!r}, which no installed package reads; give a path, or a"
            " URL such as gs://BUCKET/NAME or s3://BUCKET/NAME."
        ) from None
    return Place(url, fs, root)


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Says which URL can't be read or written; file systems raise errors of any class.

    Raises:
      ConfigError: in place of any other error inside.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{url} can't be reached ({first_line(error)}); check the name, the network and your"
            " credentials."
        ) from None


def exists(path: Path | str) -> bool:
    """Whether there is something at a path or a URL; a URL that can't be reached has nothing."""
    url = as_url(path)
    if url is None:
        return Path(path).exists()
    try:
        place = place_of(url)
        return bool(place.fs.exists(place.root))
    except Exception:
        return False


def local_copy(path: Path | str, wanted: Wanted = tuple) -> Path:
    """Returns a path of this machine as it is, and for a URL a file or folder in the user's cache
    that holds the same.

    Each version of a file is fetched once: it is known by its URL, its size and its ETag or time
    of change. A folder is made of links to its files.

    Args:
      wanted: chooses which names of a folder are fetched; `tuple` is all.

    Raises:
      ConfigError: nothing is there, or it can't be reached.
    """
    url = as_url(path)
    if url is None:
        return Path(path)
    place = place_of(url)
    with reaching(url):
        files = place.files()
        require(bool(files), f"{url} is not there, or is empty; give the URL of a file or folder.")
        chosen = [name for name in wanted(files) if name] or [name for name in files if not name]
        require(bool(chosen), f"{url} holds none of the files that are wanted.")
        keys = {name: _key(place, name, files[name]) for name in sorted(chosen)}
        folder = user_cache() / "fetched"
        _fetch(place, folder, {name: (keys[name], files[name].get("size")) for name in keys})
        return _linked(folder, keys, Path(url).name)


def _key(place: Place, name: str, info: dict[str, Any]) -> str:
    """What a version of a file is kept under."""
    stamps = [str(info[stamp]) for stamp in STAMPS if info.get(stamp) is not None]
    known = json.dumps([place.url, name, info.get("size"), *stamps])
    return hashlib.sha256(known.encode()).hexdigest()[:32]


def _fetch(place: Place, folder: Path, files: dict[str, tuple[str, int | None]]) -> None:
    """Fetches what is not kept yet; a file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = {name: known for name, known in files.items() if not (folder / known[0]).is_file()}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as staged:
        drafts = {name: Path(staged, key) for name, (key, _) in missing.items()}
        if drafts:
            place.fs.get([place.at(name) for name in drafts], [str(d) for d in drafts.values()])
        for name, (key, size) in missing.items():
            got = drafts[name].stat().st_size
            require(
                size in (None, got),
                f"{place.url} {name} changed while it was read; start again when nothing writes to"
                " it.",
            )
            drafts[name].replace(folder / key)


def _linked(folder: Path, keys: dict[str, str], title: str) -> Path:
    """The fetched files under their own names."""
    made_of = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:32]
    view = folder / "folders" / made_of
    if not view.is_dir():
        view.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".linking-") as staged:
            draft = Path(staged, "view")
            for name, key in keys.items():
                file = draft / title / name if name else draft / title
                file.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(folder / key, file)
                except OSError:  # a file system without links
                    shutil.copyfile(folder / key, file)
            with contextlib.suppress(OSError):  # another process may have been first
                draft.rename(view)
    return view / title
