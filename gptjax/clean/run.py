"""Cleans a source into a folder, in three passes.

1. Shards of records go through the stages, in several processes, and are committed one by one.
2. Duplicates are found among all that is left.
3. The records that stay are written in order, with `dropped.jsonl` (every dropped record, its rule
   and line), `clean.json` (counts, settings, hashes) and `clean.html` (the same to look at).

A process that is killed leaves committed shards, which the next call takes over; what is written is
the same. Read `clean_source`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptjax.clean.duplicates import Found, find_duplicates, repeated_lines
from gptjax.clean.report import Report, write_clean_report
from gptjax.clean.shard_files import Shards
from gptjax.clean.work import WORK, Job, Part, clean_shards, source_digest
from gptjax.clean.writing import write_all
from gptjax.core.config import ConfigError, require, to_dict
from gptjax.data.documents.folders import leads_nowhere
from gptjax.data.documents.text import text_files

UNPACKED = 4
"""Times that a packed file may grow, as far as it decides the number of processes."""
EVERY = 5.0
"""Seconds between lines of progress."""


def clean_source(
    job: Job,
    out: Path | str,
    *,
    processes: int | None = None,
    wait: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Cleans a source into a folder and returns what its clean.json holds; goes on where an
    earlier call was stopped.

    What is written is a function of the source and the job, not of the number of processes.

    Args:
      processes: that clean at the same time; `None` is one for each core.
      wait: for another process that cleans into the same folder.

    Raises:
      ConfigError: the source or a setting can't be used, or the folder holds something else.
    """
    out, made_of = Path(out), job.made_of()
    require(
        processes is None or processes >= 1,
        f"processes is {processes}; it needs 1 or more: pass --processes 2.",
    )
    _begin(job, out, made_of)
    with _held(out, wait):
        if (out / "clean.json").is_file():
            shutil.rmtree(out / WORK)  # all was written
            return _finished(job, out, made_of, say)
        part = _first_pass(job, out, processes or len(os.sched_getaffinity(0)), say)
        shards = Shards(out / WORK, part.shards)
        found, lines = _second_pass(job, shards, say)
        report = write_all(job, out, shards, found, lines, part.passed_over)
        report["made_of"] = made_of
        write_clean_report(out, report)
        shutil.rmtree(out / WORK)
    say(report["headline"])
    return report


def _begin(job: Job, out: Path, made_of: dict[str, Any]) -> None:
    """Makes the folders, or checks that they are of this job."""
    source = Path(str(job.source.path)).resolve()
    require(
        out.resolve() != source and source not in out.resolve().parents,
        f"{out} lies in {job.source.path}, which is cleaned; write to a folder beside it.",
    )
    ours = (out / WORK).is_dir() or _is_clean(out)
    require(
        not out.exists() or ours or not any(out.iterdir()),
        f"{out} is there and is no folder of gptjax clean; give another (gptjax clean SOURCE OUT).",
    )
    begun = out / WORK / "job.json"
    (out / WORK).mkdir(parents=True, exist_ok=True)
    if begun.is_file() and not _is_clean(out):
        known = json.loads(begun.read_bytes())["made_of"]
        require(
            known == made_of,
            f"{out} was begun with other settings, files or versions"
            f" ({_first_change(known, made_of)}); delete {out}, or give another folder.",
        )
        return
    partial = begun.with_suffix(".partial")
    partial.write_text(json.dumps({**_plain(job), "made_of": made_of}), encoding="utf-8")
    os.replace(partial, begun)


@contextlib.contextmanager
def _held(out: Path, wait: bool) -> Iterator[None]:
    """Keeps other processes out of the folder."""
    with (out / WORK / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ConfigError(
                f"{out} is being cleaned by another process; wait for it, or give another folder."
            ) from None
        yield


def _plain(job: Job) -> dict[str, Any]:
    return {
        "source": to_dict(job.source),
        "cleaning": to_dict(job.cleaning),
        "packing": job.packing,
    }


def _is_clean(out: Path) -> bool:
    return (out / "clean.json").is_file()


def _first_change(old: Any, new: Any, where: str = "") -> str:
    """The first place in which two values of JSON differ, with both."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                return _first_change(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    return f"{where}: {json.dumps(old)}, now {json.dumps(new)}"


def _finished(job: Job, out: Path, made_of: dict[str, Any], say: Callable[[str], None]) -> Report:
    """What an earlier call wrote, if it was of the same source and job."""
    report = json.loads((out / "clean.json").read_bytes())
    require(
        report["made_of"] == made_of,
        f"{out} was cleaned with other settings, files or versions"
        f" ({_first_change(report['made_of'], made_of)}); delete it, or give another folder.",
    )
    require(
        report["source"]["sha256"] == source_digest(job),
        f"{job.source.path} changed since {out} was cleaned; delete {out} to clean it anew.",
    )
    say(f"{out} is clean already. {report['headline']}")
    return report


def _first_pass(job: Job, out: Path, processes: int, say: Callable[[str], None]) -> Part:
    files = text_files(Path(str(job.source.path)), job.source.pattern)
    size = sum(file.stat().st_size for _, file in files if not leads_nowhere(file))
    processes = max(1, min(processes, UNPACKED * size // job.cleaning.shard_bytes))
    if processes == 1 and job.cleaning.classifier.run is None:
        return clean_shards(job, out)
    root = str(Path(__file__).parents[2])
    paths = filter(None, [root, os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with contextlib.ExitStack() as stack:
        files = [
            [stack.enter_context(tempfile.TemporaryFile()) for _ in "oe"] for _ in range(processes)
        ]
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "gptjax.clean.worker", str(out), str(first), str(processes)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
            )
            for first, (stdout, stderr) in enumerate(files)
        ]
        try:
            _wait(workers, out, say)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
                if worker.stdin:
                    worker.stdin.close()
        said = [[_content(stream) for stream in pair] for pair in files]
    for worker, (_, errors) in zip(workers, said, strict=True):
        if worker.returncode == 2:
            raise ConfigError(errors.rsplit("\n", 1)[-1])
    for worker, (_, errors) in zip(workers, said, strict=True):
        if worker.returncode:
            last = errors.rsplit("\n", 1)[-1]
            raise RuntimeError(f"a process that cleans ended ({worker.returncode}): {last}")
    return Part(**json.loads(said[0][0]))


def _content(stream: Any) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace").strip()


def _wait(workers: list[subprocess.Popen], out: Path, say: Callable[[str], None]) -> None:
    """Waits until all processes have ended, or one has failed."""
    begun = said = time.monotonic()
    while any(worker.poll() is None for worker in workers):
        if any(worker.poll() for worker in workers):
            return
        time.sleep(0.05)
        if time.monotonic() - said > EVERY:
            said = time.monotonic()
            done = sum(path.name.isdigit() for path in (out / WORK).iterdir())
            say(f"{done:,} shards in {said - begun:.0f} s")


def _second_pass(job: Job, shards: Shards, say: Callable[[str], None]) -> tuple[Found, Any]:
    """Finds duplicates and repeated lines."""
    settings = job.cleaning.duplicates
    count = shards.records
    found = find_duplicates(
        (lambda: shards.column("exact", 0), lambda: shards.column("exact", 1)),
        [lambda k=k: shards.column("bands", k) for k in range(settings.bands * settings.near)],
        count,
        settings,
        shards.text,
    )
    if not settings.lines:
        return found, None
    total = sum(len(column) for column in shards.column("lines"))
    kept = (found.exact < 0) & (found.near < 0)
    return found, repeated_lines(lambda: shards.column("lines"), shards.owners, total, kept)
