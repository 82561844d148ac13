"""The Python door: `gptjax.load(path)` gives a model with `.config, .params, .tokenizer, .generate(…)`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax import config, generate, model
from gptjax.arrays import Params
from gptjax.checkpoint import Run
from gptjax.config import ConfigError, require
from gptjax.data import tokenizer as tokenizers
from gptjax.data.tasks import LanguageModel, Task
from gptjax.data.tokenizer import Tokenizer
from gptjax.generate import Completion, Draft, GenerateConfig, Labelled, Prefix, SampleConfig
from gptjax.model import ModelConfig


class Model(NamedTuple):
    """A trained model."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    task: Task = LanguageModel()
    """What it has learned: to go on with a prompt, or to answer it."""

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """Continues a prompt; `settings` are those of `GenerateConfig`, and `prefix` and `draft` of `complete`."""
        return self.complete([prompt], **settings)[0].text

    def complete(self, prompts: Sequence[str], settings: SampleConfig | Sequence[SampleConfig] | None = None, **more: Any) -> list[Completion]:
        """Continues every prompt, with ids, log-probabilities and the reason of the end.

        Args:
          settings: one for all prompts, or one for each; or their fields by name in `more`.
          more: also `prefix`, from `self.prefix(text)`; `draft`, a smaller model with the same tokenizer; `batch`, rows at a time.
        """
        return generate.complete(*self[:3], prompts, *self._settings(settings, more), **more, task=self.task)

    def each(self, prompts: Sequence[str], settings: SampleConfig | Sequence[SampleConfig] | None = None, **more: Any) -> Iterator[Completion]:
        """Like `complete`, but gives each batch when it is done."""
        return generate.completions(*self[:3], prompts, *self._settings(settings, more), **more, task=self.task)

    def stream(self, prompt: str, settings: SampleConfig | None = None, **more: Any) -> Iterator[str | Completion]:
        """Continues a prompt piece by piece, each valid UTF-8; the last item is the whole `Completion`."""
        return generate.stream_text(*self[:3], prompt, *self._settings(settings, more), **more, task=self.task)

    def astream(self, prompt: str, settings: SampleConfig | None = None, **more: Any) -> AsyncIterator[str | Completion]:
        """Like `stream`, for `async for`."""
        return generate.astream_text(*self[:3], prompt, *self._settings(settings, more), **more, task=self.task)

    def classify(self, texts: Sequence[str], batch: int = 8) -> list[Labelled]:
        """Gives the likeliest label of each text, with ln p of all, if that is what the model has learned."""
        return list(generate.classify(*self, texts, batch))

    def prefix(self, text: str) -> Prefix:
        """Reads a text that many prompts begin with, once: `model.generate(end, prefix=model.prefix(beginning))`."""
        return generate.shared_prefix(*self[:3], text, self.task)

    def _settings(self, settings: Any, more: dict[str, Any]) -> tuple[Any]:
        """The settings, and what is left in `more` as `generate` takes it."""
        if isinstance(more.get("draft"), Model):
            draft = more["draft"]
            same = tokenizers.fingerprint(draft.tokenizer) == tokenizers.fingerprint(self.tokenizer)
            require(same, "the draft model has another tokenizer; give one that was trained with the same (--draft RUN).")
            more["draft"] = Draft(draft.config, draft.params)
        fields = {f.name for f in dataclasses.fields(GenerateConfig)} & set(more)
        named = {name: more.pop(name) for name in fields}
        named = {name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value for name, value in named.items()}
        named = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in named.items()}  # a schema
        require(not (named and settings), f"give settings, or {', '.join(sorted(named))} by name, not both.")
        unknown = set(more) - {"prefix", "draft", "batch", "watch"}
        for name in unknown:
            raise ConfigError(f"{name} is not a setting of GenerateConfig.{config.nearest(name, [f.name for f in dataclasses.fields(GenerateConfig)])}")
        return (settings or config.from_dict(GenerateConfig, named),)


def load(path: Path | str, step: int | None = None) -> Model:
    """Opens a run directory for sampling; optimizer state is not read.

    Args:
      step: the checkpoint to use; none is the newest whole one. Averaged weights are used where the run kept them.

    Raises:
      ConfigError: the directory is not a run, or has no such checkpoint.
    """
    from gptjax.train.experiment import Experiment

    path = Path(path)
    require(path.is_dir(), f"{path} is not a directory; give a run directory, for example runs/quickstart (python train.py makes one).")
    require((path / "config.json").is_file(), f"{path} holds no config.json, so it is not a run; give a run directory.")
    experiment = config.load(Experiment, path / "config.json")
    known = experiment.model
    run = Run(path)
    steps = run.steps()
    require(bool(steps), f"{path} has no checkpoint yet; train it first: python train.py {path}/config.json")
    tree = "params" if experiment.optim.ema is None else "ema"
    shapes = jax.eval_shape(lambda: model.init(known, jax.random.key(0)))
    restored = run.restore({tree: shapes}, step=step)
    require(restored is not None, f"{path} has no checkpoint yet; train it first: python train.py {path}/config.json")
    return Model(known, restored[1][tree], _tokenizer(path), experiment.data.task)


def _tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a run, if it is still the one that the run was trained with."""
    found = tokenizers.load(path / "tokenizer")
    recorded = path / "identity.json"
    same = not recorded.is_file() or json.loads(recorded.read_text())["tokenizer"] == tokenizers.fingerprint(found)
    require(same, f"{path / 'tokenizer'} is not the tokenizer that this run was trained with ({recorded} has its hash); restore it from a copy.")
    return found
