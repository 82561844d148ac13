"""One process's part of the first pass: every n-th shard of the source goes through the stages and
is committed. Read `Job`, then `clean_shards`.

Every process reads the whole source and cleans its own part, so that none waits for another;
reading is many times faster than cleaning.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import gptjax
from gptjax.clean.pii import scrubber
from gptjax.clean.records import Shard, read_items, shards
from gptjax.clean.shard_files import commit_shard, shard_folder
from gptjax.clean.stages import build_stages, run_stages
from gptjax.core import config
from gptjax.core.config import require
from gptjax.data.cleaning import Cleaning
from gptjax.data.documents.text import Text
from gptjax.data.documents.writing import Packing, file_hash

FORMAT = 1
"""Rises when the same source and settings are cleaned otherwise."""
WORK = ".work"
"""Folder, within that of the output, of what is not finished."""
LIBRARIES = ("py3langid", "ftfy", "phonenumberslite", "phonenumbers")
"""Packages that decide what is kept."""


class Job(NamedTuple):
    """What is cleaned, and how."""

    source: Text
    cleaning: Cleaning
    packing: Packing = "jsonl"

    def made_of(self) -> dict[str, Any]:
        """What decides the result, but for the source's content: settings, versions of this and
        of the packages, hashes of the files that stages read."""
        settings = self.cleaning
        files = dict.fromkeys(settings.decontaminate.files, "--decontaminate.files")
        files |= {settings.pii.names: "--pii.names"} if settings.pii.names else {}
        return {
            "format": FORMAT,
            "source": {**config.stable_dict(self.source), "path": Path(str(self.source.path)).name},
            "cleaning": config.stable_dict(settings),
            "packing": self.packing,
            "versions": cleaning_versions(),
            "files": {file: _hash_of(Path(file), flag) for file, flag in files.items()},
            "classifier": _model_hash(settings.classifier.run),
        }


def cleaning_versions() -> dict[str, str]:
    """Returns the versions that decide what is kept."""
    found = {"gptjax": gptjax.__version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hash_of(path: Path, flag: str) -> str:
    require(path.is_file(), f"{path} is not there; give one that is ({flag}).")
    return file_hash(path)


def _model_hash(run: str | None) -> str | None:
    """A hash of a classifier: its config, and the manifest of its newest checkpoint, which has the
    hashes of all weights."""
    if run is None:
        return None
    manifests = sorted(Path(run).glob("checkpoints/*/manifest.json"), key=_step)[-1:]
    digest = hashlib.sha256()
    for file in (Path(run) / "config.json", *manifests):
        digest.update(_hash_of(file, "--classifier.run").encode())
    return digest.hexdigest()


def _step(manifest: Path) -> int:
    return int(manifest.parent.name) if manifest.parent.name.isdigit() else -1


class Part(NamedTuple):
    """What a process has done."""

    shards: int
    """Of the whole source."""
    passed_over: list[str]
    """Records that could not be read, and why."""


def clean_shards(job: Job, out: Path, first: int = 0, step: int = 1) -> Part:
    """Cleans shards `first`, `first + step`, … that are not committed yet.

    Raises:
      ConfigError: something can't be read, or the source is not what it was when a shard was
        committed.
    """
    stages, scrubbed = build_stages(job.cleaning), scrubber(job.cleaning.pii)
    passed_over: list[str] = []
    number = -1
    above = f"{Path(str(job.source.path)).parent}/"

    def pass_over(message: str) -> None:
        passed_over.append(message.removeprefix(above))

    items = read_items(job.source, job.cleaning.fields, pass_over)
    for shard in shards(items, job.cleaning.shard_bytes):
        number = shard.number
        if number % step != first:
            continue
        folder = shard_folder(out / WORK, number)
        if folder.is_dir():
            known = json.loads((folder / "summary.json").read_bytes())["digest"]
            require(
                known == shard.digest,
                f"{job.source.path} changed since {out} was begun; delete {out} to clean it anew.",
            )
            continue
        judged = run_stages(shard.items, stages, scrubbed)
        commit_shard(out / WORK, number, judged, job.cleaning, shard_facts(shard))
    return Part(number + 1, passed_over)


def shard_facts(shard: Shard) -> dict[str, Any]:
    """Returns what a report counts of a shard before the stages."""
    return {
        "digest": shard.digest,
        "records": len(shard.items),
        "characters": sum(len(item.text) for item in shard.items),
        "lengths": lengths(item.text for item in shard.items),
    }


def lengths(texts: Any) -> dict[str, int]:
    """Returns how many texts have from 2^k to 2^(k+1) − 1 characters, by k."""
    counts = Counter(str(int(math.log2(max(1, len(text))))) for text in texts)
    return dict(sorted(counts.items(), key=lambda one: int(one[0])))


def source_digest(job: Job) -> str:
    """Returns a hash of all records of the source, read anew."""
    hasher = hashlib.sha256()
    for shard in shards(read_items(job.source, job.cleaning.fields), job.cleaning.shard_bytes):
        hasher.update(shard.digest.encode())
    return hasher.hexdigest()


def read_job(out: Path) -> Job:
    """Returns the job that was begun in a folder."""
    plain = json.loads((out / WORK / "job.json").read_bytes())
    return Job(
        config.from_dict(Text, plain["source"], "source"),
        config.from_dict(Cleaning, plain["cleaning"], "cleaning"),
        plain["packing"],
    )
