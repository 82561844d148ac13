"""The `sample` command: prompts from the command line, a file or a person; text to the terminal, or
JSON lines to a file.

Read `SampleOptions`, then `run_sample`, then the ways to do it: `_show`, `_print`, `_write`,
`_converse`.
"""

from __future__ import annotations

import dataclasses
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
from gptjax.cli.adapters import holding
from gptjax.cli.pictures import DrawingOptions, print_about
from gptjax.cli.prompts import LibraryOptions, library_prompt, written_prompts
from gptjax.cli.terminal import NoOptions, Speed, changed, remembered_lines, streams
from gptjax.core import config
from gptjax.core.config import ConfigError, require
from gptjax.generate import Completion, GenerateConfig
from gptjax.generate.settings import plain
from gptjax.sharding.mesh import MeshConfig
from gptjax.weights import Prepared

__all__ = ["GenerateConfig", "SampleOptions", "run_sample"]


@dataclass(frozen=True)
class SampleOptions(LibraryOptions, DrawingOptions):
    """Flags of `sample`, besides those of `GenerateConfig`."""

    prompt: tuple[str, ...] = ()
    """One or several prompts; without any, and with nothing on standard input, the text begins a
    new document."""
    prompt_file: str | None = None
    """Read prompts from a file, one per line, or from a .jsonl file of objects with `prompt` and
    any settings; `-` is standard input. With --prompts, the values of a template, an object a
    line."""
    prefix: str = ""
    """Text with which all prompts begin; it is read once."""
    out: str | None = None
    """Write JSON lines to this file; an existing file is continued after its last whole line."""
    interactive: bool = False
    """Ask for prompts; a line of flags changes settings."""
    draft: str | None = None
    """A smaller model with the same tokenizer, which guesses tokens: only faster."""
    judge: str | None = None
    """Run of a reward model, whose scores choose among the --best-of answers."""
    step: int | None = None
    """Checkpoint to use; `None` is the newest."""
    adapter: tuple[str, ...] = ()
    """NAME=DIR of an adapter to load beside the model, a run or PEFT's directory; may be repeated.
    --use NAME chooses one."""
    live: bool = False
    """Take the latest weights of a run, also where it kept averaged ones (--optim.ema)."""
    packed: bool = False
    """Keep weights that the model's files quantise as they are stored, instead of widening them."""
    weights: Prepared | None = None
    """Type of the weights while generating; `None` is that in which the model computes."""
    batch: int = 8
    """Number of rows that are computed together; the texts do not depend on it."""
    json: bool = False
    """One JSON object per line: prompt, text, ids, logprobs, reason."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices that share the model. Without any --mesh flag it is on one device."""
    progress: bool | None = None
    """Report tokens/s on standard error; by default if that is a terminal."""

    def __post_init__(self) -> None:
        require(self.batch >= 1, f"batch is {self.batch}; it needs at least 1 (--batch).")
        require(
            not (self.out and self.interactive),
            "out and interactive can't be joined; omit one of them (--out, --interactive).",
        )
        require(
            not (self.prompts and (self.prompt or self.prefix or self.interactive)),
            "prompts takes the place of prompt, prefix and interactive; omit them (--prompts).",
        )


class _Prompt(NamedTuple):
    """A prompt and its settings."""

    text: str | list[int]
    """Ids where a chat template has written it."""
    settings: GenerateConfig


def run_sample(path: Path | None, options: SampleOptions, settings: GenerateConfig) -> None:
    """Runs the command.

    Raises:
      ConfigError: a flag, a file that it names or a prompt can't be used; nothing of that prompt
        was printed.
    """
    require(path is not None, "sample needs a run directory, for example runs/quickstart.")
    named = library_prompt(options, options.prompt_file)
    prompts = [] if options.interactive or named else _prompts(options, settings)
    opened = load(path, options.step, options.mesh, live=options.live, packed=options.packed)
    model = holding(opened, options.adapter).prepared(options.weights)
    if named:
        written, settings = written_prompts(named, model.tokenizer, model.task, settings)
        prompts = [_Prompt(prompt, settings) for prompt in written]
    if options.image or options.video or options.picture:
        print_about(model, options, prompts)
        return
    if model.config.classes:
        _print_labels(model, prompts, options)
        return
    writes = model.config.causal or model.task.mask_id(model.tokenizer) is not None
    if not (writes or model.task.answers):
        _print_filled(model, prompts, options)
        return
    more: dict[str, Any] = {}
    if options.draft:
        draft = load(options.draft, mesh=options.mesh)
        more["draft"] = draft.prepared(options.weights)
    if options.judge:
        from gptjax.rewards import RewardModel, merit_of  # most samples are not judged

        more["merit"] = merit_of([RewardModel(options.judge, options.batch)])
    if options.prefix:
        chosen = {settings.use, *(one.settings.use for one in prompts)}
        require(
            len(chosen) == 1,
            "prompts that use different adapters can't share a prefix; omit it (--prefix).",
        )
        model, settings = model.using(settings.use), dataclasses.replace(settings, use=None)
        prompts = [
            one._replace(settings=dataclasses.replace(one.settings, use=None)) for one in prompts
        ]
        more["prefix"] = model.prefix(options.prefix, kv_cache=settings.kv_cache)
    shown = sys.stderr.isatty() if options.progress is None else options.progress
    if options.interactive:
        _converse(model, settings, more, shown)
    elif options.out:
        _write(model, prompts, Path(options.out), more | {"batch": options.batch}, shown)
    elif len(prompts) == 1 and not options.json and streams(prompts[0].settings):
        _show(model, *prompts[0], more, shown)
    else:
        _print(model, prompts, options.json, more | {"batch": options.batch}, shown)


# --- to the terminal ---


def _show(
    model: Model,
    prompt: str | list[int],
    settings: GenerateConfig,
    more: dict[str, Any],
    shown: bool,
) -> None:
    """Prints one text as it is written. A prompt that it continues is printed once it is known to
    be usable."""
    speed = Speed(shown)
    pieces = model.stream(prompt, settings, **more, watch=speed)
    if isinstance(prompt, str) and not model.task.answers:
        print(prompt, end="", flush=True)
    try:
        for piece in pieces:
            if isinstance(piece, str):
                print(piece, end="", flush=True)
    finally:
        print(flush=True)
    speed.end()


def _print_labels(model: Model, prompts: list[_Prompt], options: SampleOptions) -> None:
    require(
        not (options.interactive or options.out),
        "a model that classifies prints labels; omit --out and --interactive (--json prints the"
        " probabilities of all labels).",
    )
    for one in model.classify(_texts(prompts), options.batch):
        line = json.dumps(one._asdict(), ensure_ascii=False)
        print(line if options.json else f"{one.label}\t{one.text}", flush=True)


def _print_filled(model: Model, prompts: list[_Prompt], options: SampleOptions) -> None:
    require(
        not (options.interactive or options.out),
        "a model that fills in masked tokens prints texts; omit --out and --interactive (--json"
        " prints the candidates of each mask, --top-logprobs N as many).",
    )
    top = (prompts[0].settings.top_logprobs if prompts else 0) or 5
    for one in model.fill(_texts(prompts), top, options.batch):
        print(json.dumps(one._asdict(), ensure_ascii=False) if options.json else one.text)


def _print(
    model: Model, prompts: list[_Prompt], as_json: bool, more: dict[str, Any], shown: bool
) -> None:
    speed, answers = Speed(shown), model.task.answers or not _texts(prompts)
    for done in model.each(
        [one.text for one in prompts],
        [one.settings for one in prompts],
        **more,
        watch=speed if shown else None,
    ):
        text = done.text if answers else f"{done.prompt}{done.text}\n{'─' * 40}"
        print(json.dumps(_record(done), ensure_ascii=False) if as_json else text, flush=True)
    speed.end()


def _record(done: Completion) -> dict[str, Any]:
    """The fields that were asked for."""
    return {name: value for name, value in done._asdict().items() if value is not None}


# --- to a file ---


def _write(
    model: Model, prompts: list[_Prompt], out: Path, more: dict[str, Any], shown: bool
) -> None:
    """Appends a line for each answer; lines that are there already are checked and kept."""
    each = prompts[0].settings.num_samples
    marks = _marks(model, prompts, more)
    texts = (
        one.text if isinstance(one.text, str) else model.tokenizer.decode(one.text)
        for one in prompts
    )
    pairs = list(zip(texts, marks, strict=True))
    known = _known(out, [pair for pair in pairs for _ in range(each)]) // each
    rest, speed = prompts[known:], Speed(shown)
    with out.open("rb+" if out.exists() else "wb") as file:
        file.truncate(_end_of_line(out, known * each))
        file.seek(0, os.SEEK_END)
        answers = model.each(
            [one.text for one in rest],
            [one.settings for one in rest] or None,
            **more,
            watch=speed if shown else None,
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
    print(f"{out}: {len(rest) * each} new answers, {known * each} kept", file=sys.stderr)


def _marks(model: Model, prompts: list[_Prompt], more: dict[str, Any]) -> list[str]:
    """A short hash for each prompt of what else decides its answer: weights, settings, prefix."""
    weights = 0
    for leaf in jax.tree.leaves(model.params):
        weights = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), weights)
    rest = [weights, more["prefix"].ids if "prefix" in more else [], "draft" in more]
    rest += [repr(reward) for reward, _ in more["merit"].rewards] if "merit" in more else []
    known: dict[GenerateConfig, str] = {}
    for settings in {one.settings for one in prompts}:
        known[settings] = hashlib.sha256(
            json.dumps([*rest, config.to_dict(settings)]).encode()
        ).hexdigest()[:12]
    return [known[one.settings] for one in prompts]


def _known(out: Path, wanted: list[tuple[str, str]]) -> int:
    """The number of whole lines of the file, all of them answers to these prompts.

    Raises:
      ConfigError: a line answers something else.
    """
    lines = out.read_bytes().split(b"\n")[:-1] if out.exists() else []
    for n, line in enumerate(lines):
        try:
            answer = json.loads(line)
            same = n < len(wanted) and (answer["prompt"], answer["mark"]) == wanted[n]
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


# --- with a person ---


def _converse(model: Model, settings: GenerateConfig, more: dict[str, Any], shown: bool) -> None:
    """Reads prompts until the end of input. Ctrl-C ends an answer, or drops the line."""
    if sys.stdin.isatty():
        print(
            "Write a prompt, or change settings like --temperature 0.5. Ctrl-C ends an answer,"
            " Ctrl-D quits."
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


# --- prompts ---


def _texts(prompts: list[_Prompt]) -> list[str]:
    """The prompts that are texts: all of them, or none."""
    return [one.text for one in prompts if isinstance(one.text, str)]


def _prompts(options: SampleOptions, settings: GenerateConfig) -> list[_Prompt]:
    if options.prompt_file == "-" or (
        not options.prompt and options.prompt_file is None and not sys.stdin.isatty() and _waiting()
    ):
        return [
            _Prompt(line, settings) for _, line in _lines(sys.stdin.buffer.read(), "standard input")
        ] or [_Prompt("", settings)]
    if options.prompt_file is None:
        return [_Prompt(prompt, settings) for prompt in options.prompt or ("",)]
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
            else _Prompt(line, settings)
        )
        for n, line in lines
    ]


def _parsed(line: str, where: str, settings: GenerateConfig) -> _Prompt:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(
            f'{where} is not JSON; write one object a line, like {{"prompt": "def "}}.'
        ) from None
    usable = isinstance(fields, dict) and isinstance(fields.get("prompt"), str)
    require(
        usable, f'{where} has no text in \'prompt\'; write an object like {{"prompt": "def "}}.'
    )
    own = {name: plain(name, value) for name, value in fields.items() if name != "prompt"}
    try:
        return _Prompt(
            fields["prompt"], config.from_dict(GenerateConfig, {**config.to_dict(settings), **own})
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _waiting() -> bool:
    """Whether standard input is a file or a pipe."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _lines(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 at byte {error.start}; convert it first.") from None
    yield from ((n, line) for n, line in enumerate(lines, 1) if line)
