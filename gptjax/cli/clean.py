"""`gptjax clean SOURCE OUT`: cleans training text."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from gptjax.cli.arguments import first_path
from gptjax.core import backend, config, remote, user_config
from gptjax.core.config import ConfigError
from gptjax.data.cleaning import Cleaning
from gptjax.data.documents.structured import Format
from gptjax.data.documents.text import Text
from gptjax.data.documents.writing import Packing


@dataclass(frozen=True)
class CleanOptions:
    """Flags of `clean` besides those of the stages."""

    config: str | None = None
    """Python file that defines `cleaning`, or a clean.json of an earlier cleaning."""
    processes: int | None = None
    """Processes that clean at the same time; `None` is one for each core. The result is the
    same."""
    packing: Packing = "jsonl"
    """Format of the files that are written."""
    field: str = Text.field
    """Field of a row that has the text; --fields for several, or those of a list."""
    separator: str | None = Text.separator
    """Text between the documents of a plain file, such as `\\n\\n`."""
    pattern: str = Text.pattern
    """Which files of a folder are read."""
    format: Format = "auto"
    """Format of the files that are read."""
    encoding: str = Text.encoding
    """Their encoding."""
    max_bad_records: int = Text.max_bad_records
    """Records that may be unreadable; dropped.jsonl names them."""
    json: bool = False
    """Print the report as one JSON object."""


def clean_command(args: list[str]) -> None:
    """Cleans a file or a folder of text into another folder."""
    backend.configure()
    usage = "gptjax clean SOURCE OUT [--config FILE] [flags]"
    path, flags = first_path(args, usage, "a file or a folder of text, and a folder to write to")
    remote.require_local(flags[0] if flags else "", "cleaned text")
    out, flags = (None, flags) if path is None else first_path(flags, usage, "a folder to write to")
    options, cleaning = user_config.cli(
        CleanOptions,
        flags,
        prog="gptjax clean SOURCE OUT",
        description="Cleans training text: normal form, language, quality, test items, PII,"
        " duplicates, sampling. Goes on where it was stopped; OUT/data has what stays, clean.html"
        " what was done, dropped.jsonl each dropped record with its rule and line.",
        base=_base(flags),
    )
    if path is None or out is None:
        raise ConfigError(f"{usage}: it needs a source and a folder to write to.")
    from gptjax.clean.run import clean_source
    from gptjax.clean.work import Job

    names = {f.name for f in dataclasses.fields(Text)} - {"path"}
    read = {name: value for name, value in vars(options).items() if name in names}
    try:
        source = Text(path=str(path), **read)
        report = clean_source(
            Job(source, cleaning, options.packing),
            out,
            processes=options.processes,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except ConfigError as error:
        # the readers are those of training data, and name its flags
        message = str(error).replace("--data.source.path FILE", "another SOURCE")
        raise ConfigError(message.replace("data.source.", "")) from None
    if options.json:
        print(json.dumps(report))
    else:
        print(f"{out}/clean.html shows what was done; train on it: --data.source.path {out}/data")


def _base(flags: list[str]) -> Cleaning:
    """The settings of --config, which the flags change."""
    words = [word for flag in flags for word in flag.split("=", 1)]
    if "--config" not in words[:-1]:
        return Cleaning()
    file = Path(words[words.index("--config") + 1])
    if file.suffix == ".json":
        plain = config.load_config(dict, file)
        return config.from_dict(Cleaning, plain.get("config", plain), str(file))
    return user_config.load_python(Cleaning, file, "cleaning")
