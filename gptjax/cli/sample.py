"""The `sample` command: prompts from the command line, a file or a person; text to the terminal, or
JSON lines to a file.

Read `SampleOptions`, then `run` (what there is to do), then the ways to do it: `_show`, `_print`,
`_write`, `_converse`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.api import Model, load
from gptjax.cli.terminal import NoOptions, Speed, changed, remembered_lines, streams
from gptjax.core import config
from gptjax.core.config import ConfigError, require
from gptjax.generate import Completion, GenerateConfig
from gptjax.generate.settings import plain
from gptjax.model import Stored
from gptjax.sharding.mesh import MeshConfig

__all__ = ["GenerateConfig", "SampleOptions", "run"]


@dataclass(frozen=True)
class SampleOptions:
    """Flags of `sample` beside those of the generator."""

    prompt: tuple[str, ...] = ()
    """One or several prompts; none, and nothing on standard input, begins a new document."""
    prompt_file: str | None = None
    """Read prompts from a file, one a line, or in a .jsonl file objects with `prompt` and any
    settings; `-` is standard input."""
    prefix: str = ""
    """A text with which all prompts begin; it is read once."""
    out: str | None = None
    """Write JSON lines to this file; one that is there already goes on after its last whole
    line."""
    interactive: bool = False
    """Ask for prompts, and remember them; a line of flags changes settings."""
    draft: str | None = None
    """A run of a smaller model with the same tokenizer, which guesses tokens: faster, and the same
    law."""
    step: int | None = None
    """Checkpoint to use; none is the newest."""
    weights: Stored | None = None
    """How weights are stored while generating; none keeps the type in which the model computes."""
    batch: int = 8
    """Texts that are written together; they do not depend on it."""
    json: bool = False
    """One JSON object a line: prompt, text, ids, logprobs, reason."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices that share the model. Without any --mesh flag it is on one device."""
    progress: bool | None = None
    """Say tokens/s and the time to the first token on standard error; by default if that is a
    terminal."""

    def __post_init__(self) -> None:
        require(self.batch >= 1, f"batch is {self.batch}; it needs at least 1 (--batch).")
        require(
            not (self.out and self.interactive),
            "out and interactive can't be joined; leave one away (--out, --interactive).",
        )


class _Asked(NamedTuple):
    """A prompt, and how to answer it."""

    prompt: str
    settings: GenerateConfig


def run(path: Path | None, options: SampleOptions, settings: GenerateConfig) -> None:
    """Does what the flags say.

    Raises:
      ConfigError: something in them, in the files that they name or in a prompt can't be used;
        nothing was printed of that prompt.
    """
    require(path is not None, "sample needs a run directory, for example runs/quickstart.")
    asked = [] if options.interactive else _asked(options, settings)
    model = load(path, options.step, options.mesh).prepared(options.weights)
    if model.config.classes:
        require(
            not (options.interactive or options.out),
            "a model that tells labels prints them; leave away --out and --interactive (--json for"
            " all of them).",
        )
        for found in model.classify([a.prompt for a in asked], options.batch):
            print(
                (
                    json.dumps(found._asdict(), ensure_ascii=False)
                    if options.json
                    else f"{found.label}\t{found.text}"
                ),
                flush=True,
            )
        return
    more: dict[str, Any] = (
        {"draft": load(options.draft, mesh=options.mesh).prepared(options.weights)}
        if options.draft
        else {}
    )
    if options.prefix:
        more["prefix"] = model.prefix(options.prefix, int8_cache=settings.int8_cache)
    shown = sys.stderr.isatty() if options.progress is None else options.progress
    if options.interactive:
        _converse(model, settings, more, shown)
    elif options.out:
        _write(model, asked, Path(options.out), more | {"batch": options.batch}, shown)
    elif len(asked) == 1 and not options.json and streams(asked[0].settings):
        _show(model, *asked[0], more, shown)
    else:
        _print(model, asked, options.json, more | {"batch": options.batch}, shown)


# --- to the terminal
# ---------------------------------------------------------------------------------------------


def _show(
    model: Model, prompt: str, settings: GenerateConfig, more: dict[str, Any], shown: bool
) -> None:
    """One text as it is written. The prompt is printed once it is known to be usable."""
    speed = Speed(shown)
    pieces = model.stream(prompt, settings, **more, watch=speed)
    if not model.task.answers:
        print(prompt, end="", flush=True)
    try:
        for piece in pieces:
            if isinstance(piece, str):
                print(piece, end="", flush=True)
    finally:
        print(flush=True)
    speed.end()


def _print(
    model: Model, asked: list[_Asked], as_json: bool, more: dict[str, Any], shown: bool
) -> None:
    speed = Speed(shown)
    for done in model.each(
        [a.prompt for a in asked],
        [a.settings for a in asked],
        **more,
        watch=speed if shown else None,
    ):
        said = done.text if model.task.answers else f"{done.prompt}{done.text}\n{'─' * 40}"
        print(json.dumps(_record(done), ensure_ascii=False) if as_json else said, flush=True)
    speed.end()


def _record(done: Completion) -> dict[str, Any]:
    """All that was asked for."""
    return {name: value for name, value in done._asdict().items() if value is not None}


# --- to a file
# ---------------------------------------------------------------------------------------------------


def _write(model: Model, asked: list[_Asked], out: Path, more: dict[str, Any], shown: bool) -> None:
    """Appends a line for each answer; what is there already is checked, and not written again."""
    each = asked[0].settings.num_samples
    marks = _marks(model, asked, more)
    known = (
        _known(
            out,
            [(a.prompt, mark) for a, mark in zip(asked, marks, strict=True) for _ in range(each)],
        )
        // each
    )
    rest, speed = asked[known:], Speed(shown)
    with out.open("rb+" if out.exists() else "wb") as file:
        file.truncate(_end_of_line(out, known * each))
        file.seek(0, os.SEEK_END)
        answers = (
            model.each(
                [a.prompt for a in rest],
                [a.settings for a in rest],
                **more,
                watch=speed if shown else None,
            )
            if rest
            else iter(())
        )
        for n, done in enumerate(answers):
            line = {
                "index": known + n // each,
                "sample": n % each,
                "mark": marks[known + n // each],
                **_record(done),
            }
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
    speed.end()


def _marks(model: Model, asked: list[_Asked], more: dict[str, Any]) -> list[str]:
    """For each prompt a short hash of all else that its answer depends on: weights, settings,
    prefix."""
    weights = 0
    for leaf in jax.tree.leaves(model.params):
        weights = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), weights)
    rest = [weights, more["prefix"].ids if "prefix" in more else [], "draft" in more]
    known: dict[GenerateConfig, str] = {}
    for settings in {a.settings for a in asked}:
        known[settings] = hashlib.sha256(
            json.dumps([*rest, config.to_dict(settings)]).encode()
        ).hexdigest()[:12]
    return [known[a.settings] for a in asked]


def _known(out: Path, wanted: list[tuple[str, str]]) -> int:
    """How many whole lines the file has, all of them answers to these prompts.

    Raises:
      ConfigError: a line answers something else.
    """
    lines = out.read_bytes().split(b"\n")[:-1] if out.exists() else []
    for n, line in enumerate(lines):
        try:
            found = json.loads(line)
            same = n < len(wanted) and (found["prompt"], found["mark"]) == wanted[n]
        except (ValueError, KeyError, TypeError):
            same = False
        require(
            same,
            f"{out}:{n + 1} is no answer to prompt {n + 1} with this model and these settings;"
            " write to another file (--out FILE).",
        )
    return len(lines)


def _end_of_line(out: Path, count: int) -> int:
    """The size of the file's first `count` lines, in bytes."""
    lines = out.read_bytes().split(b"\n") if out.exists() else []
    return sum(len(line) + 1 for line in lines[:count])


# --- with a person
# -----------------------------------------------------------------------------------------------


def _converse(model: Model, settings: GenerateConfig, more: dict[str, Any], shown: bool) -> None:
    """Reads prompts until the end of input. Ctrl-C ends an answer, or forgets the line."""
    if sys.stdin.isatty():
        print(
            "Write a prompt, or change settings like --temperature 0.5. Ctrl-C ends an answer,"
            " Ctrl-D ends it all."
        )
    with remembered_lines():
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "")
                if line.startswith("--"):
                    _, settings = changed(NoOptions, settings, line)
                elif line:
                    _show(model, line, settings, more, shown)
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
            except ConfigError as error:
                print(f"error: {error}", file=sys.stderr)


# --- prompts
# -----------------------------------------------------------------------------------------------------


def _asked(options: SampleOptions, settings: GenerateConfig) -> list[_Asked]:
    if options.prompt_file == "-" or (
        not options.prompt and options.prompt_file is None and not sys.stdin.isatty() and _waiting()
    ):
        return [
            _Asked(line, settings) for _, line in _lines(sys.stdin.buffer.read(), "standard input")
        ] or [_Asked("", settings)]
    if options.prompt_file is None:
        return [_Asked(prompt, settings) for prompt in options.prompt or ("",)]
    file = Path(options.prompt_file)
    require(
        file.is_file(),
        f"{file} is not there; give a file of prompts, one a line (--prompt-file FILE).",
    )
    lines = list(_lines(file.read_bytes(), str(file)))
    require(
        bool(lines), f"{file} is empty; give a file of prompts, one a line (--prompt-file FILE)."
    )
    return [
        (
            _parsed(line, f"{file}:{n}", settings)
            if file.suffix == ".jsonl"
            else _Asked(line, settings)
        )
        for n, line in lines
    ]


def _parsed(line: str, where: str, settings: GenerateConfig) -> _Asked:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(
            f'{where} is not JSON; write one object a line, like {{"prompt": "def "}}.'
        ) from None
    usable = isinstance(found, dict) and isinstance(found.get("prompt"), str)
    require(
        usable, f'{where} has no text in \'prompt\'; write an object like {{"prompt": "def "}}.'
    )
    own = {name: plain(name, value) for name, value in found.items() if name != "prompt"}
    try:
        return _Asked(
            found["prompt"], config.from_dict(GenerateConfig, {**config.to_dict(settings), **own})
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _waiting() -> bool:
    """Something was piped in: a regular file or a pipe, not an empty terminal-less start."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _lines(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, and their numbers."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 at byte {error.start}; convert it first.") from None
    yield from ((n, line) for n, line in enumerate(lines, 1) if line)
