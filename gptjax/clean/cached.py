"""`data.clean`: a source of training text is cleaned once and kept in the user's cache folder,
under a hash of its records, the settings, and the versions that decide what is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptjax.clean.run import clean_source
from gptjax.clean.work import Job, source_digest
from gptjax.core.config import require
from gptjax.data.cleaning import Cleaning
from gptjax.data.documents.sources import Mixture
from gptjax.data.documents.text import Text

Say = Callable[[str], None]


def cleaned_source(
    source: Text | Mixture, cleaning: Cleaning, folder: Path, say: Say
) -> tuple[Text | Mixture, tuple[dict[str, Any], ...]]:
    """Returns the cleaned source, and what a run's report says of it: what was read and written,
    with hashes, and where clean.html lies. Each part of a mixture is cleaned by itself.

    Raises:
      ConfigError: the source can't be cleaned, or nothing is left of it.
    """
    if isinstance(source, Mixture):
        parts = [_cleaned_text(part, cleaning, folder, say) for part in source.sources]
        sources = tuple(part for part, _ in parts)
        return dataclasses.replace(source, sources=sources), tuple(facts for _, facts in parts)
    text, facts = _cleaned_text(source, cleaning, folder, say)
    return text, (facts,)


def _cleaned_text(
    source: Any, cleaning: Cleaning, folder: Path, say: Say
) -> tuple[Text, dict[str, Any]]:
    require(
        isinstance(source, Text) and source.path is not None,
        f"data.clean cleans text files, and data.source is {type(source).__name__} without a path;"
        " name a file or a folder with --data.source.path, or omit data.clean.",
    )
    job = Job(source, cleaning)
    made_of = json.dumps([job.made_of(), source_digest(job)], sort_keys=True)
    out = folder / "cleaned" / hashlib.sha256(made_of.encode()).hexdigest()[:32]
    if (out / "clean.json").is_file():
        report = json.loads((out / "clean.json").read_bytes())
    else:
        report = clean_source(job, out, say=say, wait=True)
    require(
        bool(report["outputs"]),
        f"nothing of {source.path} is left after cleaning; {out / 'clean.html'} says why: change"
        " data.clean.",
    )
    facts = {
        "text": str(source.path),
        "headline": report["headline"],
        "page": str(out / "clean.html"),
        "read sha256": report["source"]["sha256"],
        "written sha256": report["written"]["sha256"],
        "settings sha256": _hash(report["made_of"]),
        "dropped": {
            rule: number for stage in report["stages"] for rule, number in stage["dropped"].items()
        },
        "replaced": report["counts"].get("pii", {}),
    }
    return Text(path=str(out / "data"), field=source.field), facts


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
