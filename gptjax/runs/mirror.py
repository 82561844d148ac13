"""A run directory on an object store: a working copy on this machine in which everything happens as
in any run, and a mirror of it that a thread keeps up to date.

An object store can neither rename nor append, so a checkpoint is sent after it is complete: its
files first, its manifest next, and last the seal without which it is no checkpoint. Read
`mirrored`, then `Mirror.push` and `Mirror.begin`; then the lease, by which one trainer at a time
writes.
"""

from __future__ import annotations

import _thread
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptjax.core import processes, remote
from gptjax.core.backend import user_cache
from gptjax.core.config import ConfigError, first_line, require
from gptjax.runs import lock as locks
from gptjax.runs import manifest as manifests

SEAL = f"/{manifests.SEAL}"
KEPT = ("checkpoints/", "frozen/")
"""Where a run keeps what is sealed."""
LEASE = "lease.json"
EXPIRES = 120.0
"""Seconds without a renewal after which a trainer counts as dead."""
RENEW = 20.0
"""Seconds between renewals of the lease."""
REFRESH = 30.0
"""Seconds between uploads of logs while no checkpoint is new."""
LOOK = 1.0
"""Seconds between looks for a new checkpoint."""
WARN = 60.0
"""Seconds between warnings of failing uploads."""
PATIENCE = (1.0, 4.0)
"""Seconds before each further attempt of the last upload."""


class TakenOver(ConfigError):
    """Another trainer writes to this directory now."""


@contextlib.contextmanager
def mirrored(path: Path | str, say: Callable[[str], Any] = print) -> Iterator[Path]:
    """Yields the folder in which a run at `path` trains: `path` itself, or for a URL such as
    `gs://bucket/run` a working copy that is mirrored there.

    Leaving waits until everything has been uploaded. After a kill, the working copy is continued
    where it still is, otherwise what was uploaded is fetched.

    Raises:
      ConfigError: on entering: another process trains there, or it can't be reached.
      OSError: on leaving: the mirror could not be brought up to date.
    """
    url = remote.as_url(path)
    if url is None:
        yield Path(path)
        return
    require(
        not processes.several(),
        f"{url} can be the directory of a run of one process; several need a folder that all of"
        " them see, such as a mounted bucket (--dir).",
    )
    mirror = Mirror(url, say)
    mirror.begin()
    mirror.start()
    try:
        yield mirror.path
    except BaseException as error:
        try:
            mirror.finish()
        except (ConfigError, OSError) as failure:
            error.add_note(first_line(failure))
        raise
    mirror.finish()


class Mirror:
    """The copy of one run directory on an object store."""

    def __init__(self, url: str, say: Callable[[str], Any]):
        self.url, self.say, self.place = url, say, remote.place_of(url)
        home = user_cache() / "runs" / hashlib.sha256(url.encode()).hexdigest()[:12]
        self.path, self._known = home / Path(url).name, home / "copy"
        self._threads = [
            threading.Thread(target=do, name=f"mirror-{do.__name__}", daemon=True)
            for do in (self._keep, self._beat)
        ]
        self._ended, self._finished = threading.Event(), threading.Event()
        self._seals: dict[str, bytes] = {}
        """Folder of each checkpoint that is whole there → its seal."""
        self._damaged: dict[str, bytes] = {}
        """Those that can't be sent, since they are damaged here."""
        self._sent: dict[str, tuple[int, int]] = {}
        """Name of each other file that was sent → its size and time of change then."""
        self._copy = ""
        self._refreshed = -REFRESH

    # --- uploading

    def push(self, *, everything: bool = False) -> None:
        """Uploads what is new, and deletes the checkpoints that the run has deleted.

        Args:
          everything: logs too, however lately they were sent.

        Raises:
          TakenOver: another trainer has taken the lease.
        """
        units = self._units()  # looked up before the logs, which hold every step of them
        known = (self._seals, self._damaged)
        new = [n for n, seal in units.items() if seal not in [seals.get(n) for seals in known]]
        gone = [name for name in self._seals if name not in units]
        now = time.monotonic()
        due = everything or bool(new) or now - self._refreshed >= REFRESH
        if due or gone:
            self._renew()
        if due:
            self._push_files()
            self._refreshed = now
        for name in new:
            self._push_unit(name, units[name])
        for name in gone:
            there = [n for n in self.place.files() if n.startswith(f"{name}/")]
            self._delete([n for n in there if n.endswith(SEAL)])  # what is half deleted is no step
            self._delete([n for n in there if not n.endswith(SEAL)])
            del self._seals[name]

    def _units(self) -> dict[str, bytes]:
        """The sealed folders of the run by name, checkpoints last and in their order."""
        units = {}
        for name in self._files():
            if name.endswith(SEAL):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    units[name.removesuffix(SEAL)] = (self.path / name).read_bytes()
        frozen = KEPT[1]
        order = sorted(units, key=lambda name: (not name.startswith(frozen), len(name), name))
        return {name: units[name] for name in order}

    def _files(self) -> Iterator[str]:
        """Names of the run's files, without those that are being written or deleted."""
        for folder, inside, files in os.walk(self.path):
            inside[:] = [name for name in inside if not name.startswith(".")]
            for name in files:
                if not name.startswith(".") and not name.endswith(".partial"):
                    yield Path(folder, name).relative_to(self.path).as_posix()

    def _push_files(self) -> None:
        """Uploads changed files that are of no checkpoint, config.json last."""
        names = (n for n in self._files() if n != "lock" and not n.startswith(KEPT))
        for name in sorted(names, key=lambda name: (name == "config.json", name)):
            with contextlib.suppress(FileNotFoundError):
                known = (self.path / name).stat()
                if self._sent.get(name) != (known.st_size, known.st_mtime_ns):
                    self._write(name, (self.path / name).read_bytes())
                    self._sent[name] = known.st_size, known.st_mtime_ns

    def _push_unit(self, name: str, seal: bytes) -> None:
        """Uploads a checkpoint. One that is damaged, or deleted or replaced meanwhile, is not
        sealed."""
        folder, fs, at = self.path / name, self.place.fs, self.place.at
        with locks.shared(folder / manifests.NAME):
            try:
                files = manifests.verify(folder).files
                described = (folder / manifests.NAME).read_bytes()
            except (manifests.Damaged, OSError):
                self._damaged[name] = seal
                if folder.is_dir():
                    self.say(f"warning: {folder} is damaged, and is not uploaded")
                return
            if name in self._seals:
                self._delete([n for n in self.place.files() if n == name + SEAL])
                del self._seals[name]
            if files:
                fs.put([str(folder / n) for n in files], [at(f"{name}/{n}") for n in files])
            self._write(f"{name}/{manifests.NAME}", described)
            there = self.place.files()
            short = [n for n in files if there[f"{name}/{n}"].get("size") != files[n][0]]
            if short:
                raise OSError(f"{name}/{short[0]} did not arrive whole")
            ours = {f"{name}/{n}" for n in (*files, manifests.NAME)}
            self._delete([n for n in there if n.startswith(f"{name}/") and n not in ours])
            if (folder / manifests.SEAL).read_bytes() == seal:
                self._renew()
                self._write(name + SEAL, seal)
                self._seals[name] = seal

    def _write(self, name: str, content: bytes) -> None:
        self.place.fs.pipe_file(self.place.at(name), content)

    def _delete(self, names: list[str]) -> None:
        if names:
            self.place.fs.rm([self.place.at(name) for name in names])

    # --- beginning

    def begin(self) -> None:
        """Takes the lease and makes the working copy whole: as it was left if nobody else has
        trained since, otherwise as it is there.

        Raises:
          ConfigError: another process trains there, or it can't be reached.
        """
        with remote.reaching(self.url):
            lease = self._read_lease()
            _require_free(self.url, lease)
            ours = self._known.read_text() if self._known.is_file() else None
            going_on = ours == lease.get("copy") and self.path.is_dir()
            self._copy = str(ours) if going_on else secrets.token_hex(8)
            self._renew(first=True)
            names = self.place.files()
            units = {name.removesuffix(SEAL) for name in names if name.endswith(SEAL)}
            inside = tuple(f"{unit}/" for unit in units)
            half = [n for n in names if n.startswith(KEPT) and not n.startswith(inside)]
            self._delete(half)  # what a killed trainer has left
            names = {name: known for name, known in names.items() if name not in half}
            for unit in units:
                self._seals[unit] = self.place.fs.cat_file(self.place.at(unit + SEAL))
            if not going_on:
                self._fetch([name for name in names if name != LEASE])
                self._known.write_text(self._copy)
            self._renew()
        self.say(f"{self.url} is the mirror of {self.path}")

    def _fetch(self, names: list[str]) -> None:
        """Makes the working copy of what is there."""
        draft = self.path.parent / ".fetching"
        for old in (draft, self.path):
            shutil.rmtree(old, ignore_errors=True)
        draft.mkdir(parents=True)
        for name in names:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
        if names:
            self.place.fs.get([self.place.at(n) for n in names], [str(draft / n) for n in names])
        draft.rename(self.path)
        if self._seals:
            self.say(f"fetched {len(names)} files of {self.url}")

    # --- the threads

    def start(self) -> None:
        """Uploads from now on."""
        for thread in self._threads:
            thread.start()

    def _beat(self) -> None:
        """Renews the lease until the end, however long an upload takes. What fails is tried again;
        a lease that was taken is noticed by `push`."""
        while not self._finished.wait(RENEW):
            with contextlib.suppress(Exception):
                self._renew()

    def _keep(self) -> None:
        """Uploads until the end. What fails is tried again, and training continues meanwhile."""
        warned = -WARN
        while not self._ended.wait(LOOK):
            try:
                self.push()
            except TakenOver as error:
                self.say(f"error: {error}")
                _thread.interrupt_main(signal.SIGTERM)  # as if a scheduler wanted the machine back
                return
            except Exception as error:
                if time.monotonic() - warned >= WARN:
                    warned = time.monotonic()
                    self.say(
                        f"warning: {self.url} is not up to date ({first_line(error)}); training"
                        f" continues in {self.path}, and it is tried again"
                    )

    def finish(self) -> None:
        """Uploads the rest and gives the lease back.

        Raises:
          TakenOver: another trainer has taken the lease.
          OSError: uploading failed, each time that it was tried.
        """
        self._ended.set()
        keep, beat = self._threads
        keep.join()
        try:
            self._push_patiently()
        finally:
            self._finished.set()
            beat.join()
        with contextlib.suppress(Exception):  # then it expires
            self._renew(released=True)

    def _push_patiently(self) -> None:
        for patience in (*PATIENCE, None):
            try:
                self.push(everything=True)
                return
            except TakenOver:
                raise
            except Exception as error:
                if patience is None:
                    raise OSError(
                        f"{self.url} is not up to date ({first_line(error)}); the run is whole in"
                        f" {self.path}, and the same command uploads it."
                    ) from error
                time.sleep(patience)

    # --- the lease

    def _read_lease(self) -> dict[str, Any]:
        self.place.fs.invalidate_cache()
        try:
            found = json.loads(self.place.fs.cat_file(self.place.at(LEASE)))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _renew(self, *, first: bool = False, released: bool = False) -> None:
        """Writes that this process trains here, unless another one does by now."""
        lease = {} if first else self._read_lease()
        if not first and lease.get("copy") != self._copy:
            raise TakenOver(
                f"{self.url} was taken over by {_holder(lease)}; this process writes nothing there"
                f" any more, and its own state is in {self.path}."
            )
        lease = {
            "copy": self._copy,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "renewed": time.time(),
            "released": released,
        }
        self._write(LEASE, json.dumps(lease).encode())


def _holder(lease: dict[str, Any]) -> str:
    return f"process {lease['process']} on {lease['host']}" if lease else "another process"


def _require_free(url: str, lease: dict[str, Any]) -> None:
    """Refuses a directory in which another process trains, as far as its lease tells."""
    if not lease or lease.get("released"):
        return
    age, number = time.time() - lease["renewed"], lease["process"]
    here = lease["host"] == socket.gethostname()
    dead = here and (number == os.getpid() or not _lives(number))
    require(
        dead or age >= EXPIRES,
        f"{url} is being trained by {_holder(lease)}, which was there {age:.0f} s ago; wait for it,"
        f" stop it, or choose another directory. One that was killed is forgotten after"
        f" {EXPIRES:.0f} s.",
    )


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
