"""The Python door: `gptjax.load(path)` gives a model with `.config, .params, .tokenizer,
.generate(…)` and `.chat(…)`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from gptjax import generate
from gptjax.core import config
from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.data.tasks import LanguageModel, Task
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.chat import Message
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import About
from gptjax.generate import Completion, Draft, GenerateConfig, Labelled, Prefix, SampleConfig
from gptjax.model import ModelConfig, Stored, prepare_weights
from gptjax.runs.open import open_model


class Model(NamedTuple):
    """A trained model."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    about: About = About()
    """What its files say beside: where it came from, settings of generation."""
    task: Task = LanguageModel()
    """What it has learned: to go on with a prompt, or to answer it."""

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """Continues a prompt; `settings` are those of `GenerateConfig`, and `prefix` and `draft` of
        `complete`."""
        return self.complete([prompt], **settings)[0].text

    def complete(
        self,
        prompts: Sequence[str | Sequence[int]],
        settings: SampleConfig | Sequence[SampleConfig] | None = None,
        **more: Any,
    ) -> list[Completion]:
        """Continues every prompt, with ids, log-probabilities and the reason of the end.

        Args:
          settings: one for all prompts, or one for each; or their fields by name in `more`.
          more: also `prefix`, from `self.prefix(text)`; `draft`, a smaller model with the same
            tokenizer; `batch`, rows at a time.
        """
        return generate.complete(
            *self[:3], prompts, *self._settings(settings, more), **more, task=self.task
        )

    def each(
        self,
        prompts: Sequence[str],
        settings: SampleConfig | Sequence[SampleConfig] | None = None,
        **more: Any,
    ) -> Iterator[Completion]:
        """Like `complete`, but gives each batch when it is done."""
        return generate.completions(
            *self[:3], prompts, *self._settings(settings, more), **more, task=self.task
        )

    def chat(
        self,
        messages: Sequence[Message | tuple[str, str]],
        template: str | None = None,
        **settings: Any,
    ) -> str:
        """Answers a conversation: (role, text) pairs, a system prompt or none, then user and
        assistant in turns, the last from the user.

        Args:
          template: how messages are written, by name or as a .jinja file; none is the model's own.
        """
        form = chat.choose(template, self.tokenizer)
        ids = chat.render(form, [Message(*m) for m in messages], self.tokenizer)
        closing = chat.ends(form, self.tokenizer)
        ends = {"stop": closing.texts, "stop_ids": closing.ids}
        return self.complete(
            [ids],
            **settings | {name: (*settings.get(name, ()), *more) for name, more in ends.items()},
        )[0].text.strip()

    def stream(
        self, prompt: str | Sequence[int], settings: SampleConfig | None = None, **more: Any
    ) -> Iterator[str | Completion]:
        """Continues a prompt piece by piece, each valid UTF-8; the last item is the whole
        `Completion`."""
        return generate.stream_text(
            *self[:3], prompt, *self._settings(settings, more), **more, task=self.task
        )

    def astream(
        self, prompt: str, settings: SampleConfig | None = None, **more: Any
    ) -> AsyncIterator[str | Completion]:
        """Like `stream`, for `async for`."""
        return generate.astream_text(
            *self[:3], prompt, *self._settings(settings, more), **more, task=self.task
        )

    def classify(self, texts: Sequence[str], batch: int = 8) -> list[Labelled]:
        """Gives the likeliest label of each text, with ln p of all, if that is what the model has
        learned."""
        return list(generate.classify(*self[:3], self.task, texts, batch))

    def prefix(
        self, text: str | Sequence[int], before: Prefix | None = None, *, int8_cache: bool = False
    ) -> Prefix:
        """Reads a text that many prompts begin with, once: `model.generate(end,
        prefix=model.prefix(beginning))`.

        Args:
          before: a prefix from which this one goes on, and which is used up.
          int8_cache: as in the settings of the prompts that go on from it; a prefix that goes on
            from another is kept like that one.
        """
        return generate.shared_prefix(*self[:3], text, before, self.task, int8_cache=int8_cache)

    def prepared(self, stored: Stored | None = None) -> Model:
        """The same model for generation alone, its weights stored as `model.prepare_weights` says."""
        config, params = prepare_weights(self.config, self.params, stored)
        return self._replace(config=config, params=params)

    def _settings(self, settings: Any, more: dict[str, Any]) -> tuple[Any]:
        """The settings, and what is left in `more` as `generate` takes it."""
        if isinstance(more.get("draft"), Model):
            draft = more["draft"]
            same = tokenizers.fingerprint(draft.tokenizer) == tokenizers.fingerprint(self.tokenizer)
            require(
                same,
                "the draft model has another tokenizer; give one that was trained with the same"
                " (--draft RUN).",
            )
            more["draft"] = Draft(draft.config, draft.params)
        fields = {f.name for f in dataclasses.fields(GenerateConfig)} & set(more)
        named = {name: more.pop(name) for name in fields}
        named = {
            name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
            for name, value in named.items()
        }
        named = {
            name: json.dumps(value) if isinstance(value, dict) else value
            for name, value in named.items()
        }  # a schema
        require(
            not (named and settings),
            f"give settings, or {', '.join(sorted(named))} by name, not both.",
        )
        unknown = set(more) - {"prefix", "draft", "batch", "watch"}
        for name in unknown:
            raise ConfigError(
                f"{name} is not a setting of"
                f" GenerateConfig.{config.nearest(name, [f.name for f in dataclasses.fields(GenerateConfig)])}"
            )
        return (settings or config.from_dict(GenerateConfig, named),)


def load(path: Path | str, step: int | None = None, mesh: Mesh | None = None) -> Model:
    """Opens a model: see `open_model`, which also documents the arguments.

    Raises:
      ConfigError: there is no model, or it has no such checkpoint or no tokenizer.
    """
    model = open_model(path, step, mesh)
    require(
        model.tokenizer is not None,
        f"{path} has no tokenizer; put its tokenizer.json beside the weights.",
    )
    return Model(*model)
