"""Pictures and videos on the command line: `sample --image FILE`, `chat --image FILE` and a line
`/image FILE`; `--video` and `/video` likewise; `sample --picture FILE` draws."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptjax.api import Model
from gptjax.core.config import ConfigError, require
from gptjax.data.tasks import Task, VisualAnswers
from gptjax.generate import GenerateConfig, picture_grid, pixels_for, seeing_task
from gptjax.model.inputs.image_files import save_png


@dataclass(frozen=True)
class PictureOptions:
    """The flags that show pictures and videos."""

    image: tuple[str, ...] = ()
    """Pictures that the prompt is about, of models that read some."""
    video: tuple[str, ...] = ()
    """Videos that the prompt is about, of models that read some: animations, folders of pictures,
    or .npy files [frames height width colours]."""


@dataclass(frozen=True)
class DrawingOptions(PictureOptions):
    """The flag that draws pictures."""

    picture: str | None = None
    """Draw --num-samples pictures of each prompt, a caption, and write them to this PNG file, of
    models that write pictures as tokens."""


COMMANDS = {"/image": "pictures", "/video": "videos"}
"""A line of chat that begins so names some."""


def shown_files(task: Task, options: PictureOptions) -> tuple[str, ...]:
    """Returns the pictures or videos that flags name.

    Raises:
      ConfigError: the model reads the other kind, or both are named.
    """
    for kind, files in (("pictures", options.image), ("videos", options.video)):
        if files:
            require_kind(task, kind)
    return options.image or options.video


def require_kind(task: Task, kind: str) -> None:
    """Refuses what the model does not read."""
    reads = seeing_task(task).kind
    flag = "video" if reads == "videos" else "image"
    require(kind == reads, f"this model reads {reads}, not {kind}; use --{flag} FILE.")


def print_about(model: Model, options: Any, prompts: Sequence[tuple[Any, GenerateConfig]]) -> None:
    """Prints an answer to each prompt about the same pictures or videos, or draws a
    picture of each.

    Args:
      options: the flags of `sample`.
    """
    if options.picture:
        _draw(model, options, prompts)
        return
    files = shown_files(model.task, options)
    require_without(options, "interactive", "out", "prefix", "draft", "judge")
    for prompt, settings in prompts:
        require(
            settings.num_samples == 1,
            f"num_samples is {settings.num_samples}, and a prompt about pictures has one answer;"
            " omit it (--num-samples).",
        )
        require(isinstance(prompt, str), "a prompt about pictures is plain text (--prompt TEXT).")
        done = model.answer(files, prompt, settings)
        record = {k: v for k, v in done._asdict().items() if v is not None} | {"prompt": prompt}
        print(json.dumps(record, ensure_ascii=False) if options.json else done.text, flush=True)


def _draw(model: Model, options: Any, prompts: Sequence[tuple[Any, GenerateConfig]]) -> None:
    """Writes pictures of each prompt side by side: a row for each prompt, if there are several."""
    given = [name for name in DRAWS_NONE if getattr(options, name)]
    require(not given, f"--picture draws pictures alone; omit --{', --'.join(given)}.")
    require(options.picture.endswith(".png"), f"{options.picture} needs a name that ends in .png.")
    texts = [prompt for prompt, _ in prompts]
    require(all(isinstance(one, str) for one in texts), "a caption is plain text (--prompt TEXT).")
    settings = prompts[0][1]
    drawn = model.draw(texts, settings, batch=options.batch)
    columns = settings.num_samples if len(texts) > 1 else 0
    save_png(options.picture, picture_grid(list(drawn), columns))
    print(f"{options.picture}: {len(drawn)} pictures", flush=True)


DRAWS_NONE = ("image", "video", "interactive", "out", "prefix", "draft", "judge", "json")
"""Flags of `sample` that mean nothing where pictures are drawn."""


def require_without(options: Any, *names: str) -> None:
    """Refuses flags that mean nothing where pictures are asked about."""
    given = [name for name in names if getattr(options, name)]
    require(
        not given,
        f"each question about pictures is answered by itself; omit --{', --'.join(given)}.",
    )


def ask_about(
    model: Model,
    pictures: Sequence[str],
    settings: GenerateConfig,
    line_of: Callable[[], str],
) -> None:
    """Answers lines about pictures or videos until input ends; each line is a question of its own.

    Args:
      line_of: reads a line.

    Raises:
      ConfigError: the model answers no such questions, or one of the pictures can't be read.
    """
    task, seen = seeing_task(model.task), list(pictures)
    for one in seen:
        pixels_for(task, one)
    if sys.stdin.isatty():
        print(f"Write a question; {_command(task)} FILE shows others. Ctrl-D ends.")
    while True:
        try:
            line = line_of().strip()
            word = line.split(" ")[0]
            if word in COMMANDS:
                require_kind(task, COMMANDS[word])
                seen = named_pictures(line)
            elif line:
                missing = f"there is no {task.kind[:-1]} yet; show one with {_command(task)} FILE."
                require(bool(seen), missing)
                print(model.answer(seen, line, settings).text, flush=True)
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)


def named_pictures(line: str) -> list[str]:
    """Returns the files that a line `/image FILE ...` or `/video FILE ...` names.

    Raises:
      ConfigError: it names none, or a quote is open.
    """
    word = line.split(" ")[0]
    try:
        names = shlex.split(line)[1:]
    except ValueError as error:
        raise ConfigError(f"{line} can't be read ({error}); write {word} FILE.") from None
    require(bool(names), f"{word} needs a file; write {word} FILE.")
    return names


def _command(task: VisualAnswers) -> str:
    return next(word for word, kind in COMMANDS.items() if kind == task.kind)
