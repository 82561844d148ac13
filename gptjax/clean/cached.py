"""`data.clean`: a source of training text is cleaned once and kept in the user's cache folder,
under a hash of its records, the settings, and the versions that decide what is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptjax.clean.run import clean_source
from gptjax.clean.work import Job, source_digest
from gptjax.core.config import require
from gptjax.data.cleaning import Cleaning
from gptjax.data.documents.folders import leads_nowhere
from gptjax.data.documents.sources import Mixture
from gptjax.data.documents.structured import format_of
from gptjax.data.documents.text import Text, text_files
from gptjax.data.prepare import digest_of

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
    field = _written_field(source)
    job = Job(source, cleaning)
    out = folder / "cleaned" / digest_of([job.made_of(), source_digest(job)])[:32]
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
        "settings sha256": digest_of(report["made_of"]),
        "dropped": {
            rule: number for stage in report["stages"] for rule, number in stage["dropped"].items()
        },
        "replaced": report["counts"].get("pii", {}),
    }
    return Text(path=str(out / "data"), field=field), facts


def _written_field(source: Text) -> str:
    """The field of the text in what cleaning writes: records of JSON stay as they were, of all else
    the text and its place are written."""
    kinds = {
        format_of(file, source.encoding) if source.format == "auto" else source.format
        for _, file in text_files(Path(str(source.path)), source.pattern)
        if not leads_nowhere(file)
    }
    if not kinds & {"jsonl", "json"}:
        return Text.field
    require(
        source.field == Text.field or not kinds & {"csv", "tsv", "parquet", "arrow"},
        f"{source.path} has JSON beside tables, and their texts are in {source.field!r}; data.clean"
        " takes one kind at a time: name the files with --data.source.pattern.",
    )
    return source.field
