"""Sampling settings of files: `settings_of` a model's own, the defaults of `sample` and `chat`;
`with_key`, a watermark.

A flag on the command line goes before them.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from gptjax import formats
from gptjax.core.config import ConfigError
from gptjax.formats.sampling import sampling_of
from gptjax.generate import GenerateConfig
from gptjax.generate.watermark import read_watermark
from gptjax.runs.open import read_about

NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "penalty_window": "penalty_window",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
}
"""Settings that are taken, by the names of `transformers`, and ours."""


def settings_of(path: Path | None, base: GenerateConfig) -> GenerateConfig:
    """Returns the settings with those that a model's files ask for, and says which on standard
    error. `do_sample: false` is temperature 0. Values that cannot be used are left out."""
    try:
        published = _published(path) if path is not None else {}
    except (ConfigError, OSError):  # opening the model names what is wrong
        return base
    wanted = {ours: published.get(theirs) for theirs, ours in NAMES.items()}
    if published.get("do_sample") is False:
        wanted["temperature"] = 0.0
    taken, settings = [], base
    for name, value in wanted.items():
        default = getattr(base, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value == default:
            continue
        try:
            settings = dataclasses.replace(settings, **{name: type(default)(value)})
        except ConfigError:
            continue
        taken.append(f"--{name.replace('_', '-')} {getattr(settings, name)}")
    if taken:
        print(f"[the model's own settings: {' '.join(taken)}]", file=sys.stderr, flush=True)
    return settings


def with_key(settings: GenerateConfig) -> GenerateConfig:
    """Returns the settings with what the key file of their watermark holds in place of its name.

    Raises:
      ConfigError: there is no such file, or it holds no key.
    """
    named = settings.watermark
    if not named or named.startswith("{"):
        return settings
    return dataclasses.replace(settings, watermark=read_watermark(named).text)


def _published(path: Path) -> dict:
    named = formats.located(path)
    if formats.kind(named) is None:
        return dict(read_about(named).generation) if named.is_dir() else {}
    return dict(sampling_of(path))
