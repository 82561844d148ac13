"""`gptjax detect-watermark FILE`: whether texts were written with a key; `--new-key` makes one.

Read `watermark_command`, then `scored_texts`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.cli.arguments import first_path
from gptjax.core import backend, user_config
from gptjax.core.config import ConfigError, require

if TYPE_CHECKING:
    from gptjax.data.tokenizers.tokenizer import Tokenizer
    from gptjax.generate.watermark import Watermark

USAGE = "gptjax detect-watermark FILE --key KEYFILE --model MODEL"


@dataclass(frozen=True)
class DetectOptions:
    """Flags of `detect-watermark`."""

    key: str | None = None
    """Key file with which texts were marked (sample --watermark, serve --watermark)."""
    model: str | None = None
    """The model that may have written them; only its tokenizer is read."""
    threshold: float = 0.001
    """Largest p-value at which a text is called marked; of texts that owe nothing to the key this
    share is called so by mistake."""
    json: bool = False
    """One JSON object per text."""
    new_key: str | None = None
    """Write a new random key to this file instead, which only you can read."""
    gamma: float = 0.25
    """Of a new key: share of tokens that are green."""
    delta: float = 2.0
    """Of a new key: what is added to the logits of green tokens."""
    width: int = 1
    """Of a new key: tokens before a token that decide which are green after them, 1 to 4."""


def watermark_command(args: list[str]) -> None:
    """Prints for each text of a file what it says of a watermark, or makes a key."""
    backend.configure()
    flags, path = args, None
    if "--new-key" not in " ".join(args).replace("=", " ").split():
        path, flags = first_path(args, USAGE, "a text, or JSON lines with a `text` each")
    options = user_config.cli(
        DetectOptions,
        flags,
        prog="gptjax detect-watermark FILE",
        description="Says of a text, or of each `text` of a .jsonl file, how many of its tokens are"
        " green under a key, and how likely as many are by chance.",
    )
    if options.new_key is not None:
        _make_key(Path(options.new_key), options)
        return
    require(
        options.key is not None and options.model is not None,
        f"the key or the model is missing: {USAGE}.",
    )
    require(
        0 < options.threshold < 1,
        f"threshold is {options.threshold}; it needs a probability in (0, 1) (--threshold 0.001).",
    )
    from gptjax.generate.watermark import read_watermark
    from gptjax.runs.open import open_tokenizer

    watermark = read_watermark(str(options.key))
    tokenizer = open_tokenizer(Path(str(options.model)))
    for found in scored_texts(Path(str(path)), tokenizer, watermark):
        marked = found["p_value"] <= options.threshold
        if options.json:
            print(json.dumps({**found, "marked": marked}))
        else:
            print(
                f"{found['text']}: {'marked' if marked else 'not marked'};"
                f" {found['green']} of {found['tokens']} tokens green, {watermark.gamma:.0%} by"
                f" chance; z {found['z']:.2f}, p {found['p_value']:.2g}"
            )


def scored_texts(
    path: Path, tokenizer: Tokenizer, watermark: Watermark
) -> Iterator[dict[str, Any]]:
    """Yields what `detect_watermark` says of each text of a file, with its number from 1.

    Raises:
      ConfigError: the file can't be read, or a line of a .jsonl file has no `text`.
    """
    from gptjax.generate.watermark import detect_watermark

    for number, text in enumerate(_texts(path), 1):
        found = detect_watermark(tokenizer.encode(text).tolist(), watermark)
        yield {"text": number, **found._asdict()}


def _texts(path: Path) -> Iterator[str]:
    from gptjax.data.documents.opening import bare_name, opened
    from gptjax.data.documents.structured import read_objects

    require(path.is_file(), f"{path} is not there; give a text or a .jsonl file: {USAGE}.")
    if not bare_name(path).endswith(".jsonl"):
        with opened(path) as stream:
            yield stream.read().decode("utf-8", "replace")
        return
    for number, value, broken in read_objects(path, "jsonl", "utf-8"):
        text = value.get("text")
        if broken or not isinstance(text, str):
            raise ConfigError(
                f"{path}:{number} {broken or 'has no text'}; each line needs a `text`, as sample"
                " --json writes it."
            )
        yield text


def _make_key(path: Path, options: DetectOptions) -> None:
    """Writes a key that only its owner can read; a file that is there is never replaced."""
    from gptjax.generate.watermark import new_watermark

    made = new_watermark(gamma=options.gamma, delta=options.delta, width=options.width)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{path} can't be written ({error.strerror}); name a new file (--new-key FILE)."
        ) from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"{made.text}\n")
    print(f"{path}: whoever has it can find the mark, and write it; keep it secret.")
