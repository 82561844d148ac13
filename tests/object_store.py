"""An object store on this machine, for tests: objects appear whole, and can be neither renamed nor
appended to; there are no folders. Networks are slow and fail, so this one can too.

The environment says where the objects lie (`FAKE_STORE`) and how many seconds an upload takes
(`FAKE_STORE_SECONDS`), so that processes share them; `FAKE_STORE.failing` holds how many of the
next uploads fail. `URL` begins its URLs.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

URL = "fakestore://bucket"


class FakeStore(LocalFileSystem):
    """Objects below `FAKE_STORE`."""

    protocol = "fakestore"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        name = str(path).removeprefix(f"{cls.protocol}://").rstrip("/")
        root = os.environ["FAKE_STORE"]
        return name if name == root or name.startswith(f"{root}/") else f"{root}/{name}".rstrip("/")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        """Makes an object, whole or not at all."""
        time.sleep(float(os.environ.get("FAKE_STORE_SECONDS", "0")))
        failing = Path(os.environ["FAKE_STORE"] + ".failing")
        if failing.is_file() and (left := int(failing.read_text())):
            failing.write_text(str(left - 1))
            raise ConnectionError("the network is down")
        target = Path(self._strip_protocol(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(f"{os.environ['FAKE_STORE']}.draft-{os.getpid()}-{time.monotonic_ns()}")
        draft.write_bytes(value)
        draft.replace(target)

    def put_file(self, path1, path2, callback=None, **kwargs):
        """Uploads a file."""
        self.pipe_file(path2, Path(path1).read_bytes())

    def get_file(self, path1, path2, callback=None, **kwargs):
        """Fetches an object."""
        shutil.copyfile(self._strip_protocol(path1), path2)

    def _open(self, path, mode="rb", block_size=None, **kwargs):
        if mode != "rb":
            raise NotImplementedError(f"an object can't be opened as {mode}")
        return super()._open(path, mode, block_size, **kwargs)

    def rm_file(self, path):
        """Deletes an object, and the folders that have nothing any more, as there are none."""
        file = Path(self._strip_protocol(path))
        file.unlink()
        for folder in file.parents:
            if str(folder) == os.environ["FAKE_STORE"] or any(folder.iterdir()):
                return
            folder.rmdir()

    def rm(self, path, recursive=False, maxdepth=None):
        """Deletes objects."""
        for one in path if isinstance(path, list) else [path]:
            self.rm_file(one)

    def mv(self, *args: Any, **kwargs: Any):
        """Is not there."""
        raise NotImplementedError("objects can't be renamed")

    link = symlink = touch = chmod = mv


fsspec.register_implementation(FakeStore.protocol, FakeStore, clobber=True)
