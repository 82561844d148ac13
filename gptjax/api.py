"""The Python interface: `gptjax.load(path)` opens a model, whose methods generate text.

A `Model` has `.config, .params, .tokenizer, .generate(…), .complete(…), .stream(…), .chat(…)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from jax.sharding import Mesh

from gptjax import formats, generate
from gptjax.core import config
from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.data.tasks import Classification, LanguageModel, MaskedLanguageModel, Task
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.chat import Message
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import About, OpenedModel
from gptjax.generate import (
    Completion,
    Draft,
    Filled,
    GenerateConfig,
    Labelled,
    Prefix,
    SampleConfig,
)
from gptjax.generate.schedule import adapter_number
from gptjax.generate.settings import plain
from gptjax.model import KVCache, ModelConfig, axes, prepare_weights
from gptjax.runs.adapted import hold_adapters
from gptjax.runs.open import open_model
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.weights import Prepared, choose_adapter, on_mesh

if TYPE_CHECKING:
    from gptjax.hear import Transcript
    from gptjax.rewards import RewardConfig
    from gptjax.serve.engine import Engine


class Model(NamedTuple):
    """A trained model."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    about: About = About()
    """What its files say besides: where it came from, settings of generation."""
    task: Task = LanguageModel()
    """What it has been trained for: to continue a prompt, or to answer it."""
    mesh: Mesh | None = None
    """The devices on which its parameters are placed; `None` is one device."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters that its parameters hold side by side."""

    def generate(self, prompt: str = "", **settings: Any) -> str:
        """Continues a prompt.

        Args:
          settings: fields of `GenerateConfig`, and `prefix` and `draft` of `complete`.
        """
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
            tokenizer; `batch`, the number of rows that are computed together; `merit`, by which
            the best of several are chosen.
        """
        return list(self.each(prompts, settings, **more))

    def best_of(
        self,
        answers: int,
        prompt: str,
        rewards: Sequence[RewardConfig],
        record: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Completion:
        """Draws answers to a prompt and returns the one with the highest reward.

        Args:
          record: what else rewards read, such as the right `answer`.
          settings: fields of `GenerateConfig`.
        """
        from gptjax.rewards import merit_of  # most callers judge nothing

        merit = merit_of(rewards, record)
        return self.complete([prompt], best_of=answers, merit=merit, **settings)[0]

    def each(
        self,
        prompts: Sequence[str | Sequence[int]],
        settings: SampleConfig | Sequence[SampleConfig] | None = None,
        **more: Any,
    ) -> Iterator[Completion]:
        """Like `complete`, but yields each completion as soon as it and those before it are
        done."""
        return generate.completions(
            *self[:3],
            prompts,
            self.make_settings(settings, more),
            **more,
            task=self.task,
            mesh=self.mesh,
            adapters=self.adapters,
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
          template: how messages are written, by name or as a .jinja file; `None` is the model's
            own.
        """
        form = chat.choose_template(template, self.tokenizer)
        written = [m if isinstance(m, Message) else Message(*m) for m in messages]
        ids = chat.render(form, written, self.tokenizer)
        closing = chat.ends(form, self.tokenizer)
        settings["stop"] = (*settings.get("stop", ()), *closing.texts)
        settings["stop_ids"] = (*settings.get("stop_ids", ()), *closing.ids)
        return self.complete([ids], **settings)[0].text.strip()

    def stream(
        self, prompt: str | Sequence[int], settings: SampleConfig | None = None, **more: Any
    ) -> Iterator[str | Completion]:
        """Continues a prompt piece by piece, each valid UTF-8; the last item is the whole
        `Completion`."""
        return generate.stream_text(
            *self[:3],
            prompt,
            self.make_settings(settings, more),
            **more,
            task=self.task,
            mesh=self.mesh,
            adapters=self.adapters,
        )

    def astream(
        self, prompt: str | Sequence[int], settings: SampleConfig | None = None, **more: Any
    ) -> AsyncIterator[str | Completion]:
        """Like `stream`, for `async for`."""
        return generate.astream_text(
            *self[:3],
            prompt,
            self.make_settings(settings, more),
            **more,
            task=self.task,
            mesh=self.mesh,
            adapters=self.adapters,
        )

    def answer(
        self,
        pictures: Sequence[generate.Picture],
        prompt: str = "",
        settings: SampleConfig | None = None,
        **more: Any,
    ) -> Completion:
        """Answers a prompt about pictures or videos, if the model was trained to (`VisualAnswers`,
        `VideoAnswers`).

        Args:
          pictures: files, their contents, or arrays of 8 bits a colour [H W 3]; videos as files,
            folders or arrays [frames H W 3].
          more: fields of `GenerateConfig`.
        """
        made = self.make_settings(settings, more)
        kept, mesh = made.kv_cache, self.mesh
        read = generate.read_pictured_prompt(
            *self[:3], self.task, prompt, pictures, kv_cache=kept, mesh=mesh
        )
        alone = self._replace(task=LanguageModel())  # what is answered is read already
        return alone.complete([[]], made, prefix=read)[0]

    def draw(self, prompts: Sequence[str], settings: Any = None, **more: Any) -> np.ndarray:
        """Draws `num_samples` pictures of each prompt [N H W 3] as `PictureTokens` describes."""
        task, made = generate.drawing_task(self.task), self.make_settings(settings, more)
        each = [generate.drawing_settings(task, self.tokenizer, one, made) for one in prompts]
        done = self.complete(prompts, each, **more)
        return np.stack([task.pictured(one.prompt + one.text) for one in done])

    def label(self, pictures: Sequence[generate.Picture], labels: Sequence[str] = ()) -> np.ndarray:
        """Returns how likely each label is for each picture [pictures labels], if the model
        compares pictures and texts (CLIP, SigLIP); of a classifier (ViT) its classes are the
        labels."""
        return generate.label_pictures(*self[:3], self.task, pictures, labels)

    def classify(self, texts: Sequence[str], batch: int = 8) -> list[Labelled]:
        """Returns the likeliest label of each text, with ln p of all labels, if the model was
        trained to classify."""
        task = cast(Classification, self.task)  # the only one whose models have classes
        return list(generate.classify(*self[:3], task, texts, batch))

    def fill(self, texts: Sequence[str], top: int = 5, batch: int = 8) -> list[Filled]:
        """Returns each text with its masked tokens filled in, and the `top` likeliest pieces of
        each, if the model is an encoder (BERT): `model.fill(["The cat [MASK] here."])[0].text`."""
        mask = self.task.mask if isinstance(self.task, MaskedLanguageModel) else None
        return list(generate.fill_masks(*self[:3], texts, top, batch, mask))

    def embed(self, texts: Sequence[str], batch: int = 8) -> np.ndarray:
        """Returns texts as vectors of length 1 [texts, width], the means of their tokens' hidden
        states; of a model that writes they are those of the server's /v1/embeddings."""
        return generate.embed_texts(*self[:3], self.task, texts, batch)

    def transcribe(self, sound: Path | str | np.ndarray, **settings: Any) -> Transcript:
        """Writes down what is said in a sound: a file, or 16 kHz mono samples in [−1, 1].

        Args:
          settings: fields of `hear.Hearing`: `language`, `timestamps`, `choices`, ….

        Raises:
          ConfigError: the model reads no sound, or the file can't be read.
        """
        from gptjax.hear import Hearing, transcribe_sounds  # a client room: few callers need it
        from gptjax.model.inputs.audio_files import open_sound, sound_of

        opened = sound_of(sound) if isinstance(sound, np.ndarray) else open_sound(sound)
        how = config.from_dict(Hearing, {name: _plain(name, v) for name, v in settings.items()})
        (found,) = transcribe_sounds(self, [opened], how)
        if isinstance(found, ConfigError):
            raise found
        return found

    def prefix(
        self,
        text: str | Sequence[int],
        before: Prefix | None = None,
        *,
        kv_cache: KVCache = "full",
    ) -> Prefix:
        """Reads a text that many prompts begin with, once: `model.generate(end,
        prefix=model.prefix(beginning))`. Of a model that holds adapters it needs one:
        `model.using(name).prefix(…)`.

        Args:
          before: a prefix that this one continues, and which is used up.
          kv_cache: as in the settings of the prompts that continue it; a prefix that continues
            another is kept like that one.
        """
        require(not self.adapters, "a prefix is read with one adapter: model.using(NAME).prefix().")
        return generate.shared_prefix(
            *self[:3], text, before, self.task, kv_cache=kv_cache, mesh=self.mesh
        )

    def with_adapters(self, named: Mapping[str, Path | str]) -> Model:
        """The model with adapters side by side, of which each prompt uses one: `adapter="a"`, or
        `adapter=["a", "b", "base"]` for one prompt each.

        Args:
          named: name → directory of a run that trained an adapter, or of PEFT's.

        Raises:
          ConfigError: an adapter belongs to another model, or can't stand beside others.
        """
        require("base" not in named, "no adapter can be called base; that is the model without.")
        opened = OpenedModel(*self[:5])
        held = hold_adapters(opened, {name: Path(path) for name, path in named.items()})
        params = held.params
        if self.mesh is not None:
            params = on_mesh(self.mesh, params, axes(self.config))
        return self._replace(params=params, adapters=tuple(named))

    def using(self, adapter: str | None) -> Model:
        """The model with one of its adapters alone; see `GenerateConfig.use`."""
        number = adapter_number(adapter, self.adapters)
        return self._replace(params=choose_adapter(self.params, number), adapters=())

    def prepared(self, stored: Prepared | None = None) -> Model:
        """The same model for generation alone, its weights stored as `prepare_weights` says."""
        config, params = prepare_weights(self.config, self.params, stored, self.mesh)
        return self._replace(config=config, params=params)

    def engine(self, **settings: Any) -> Engine:
        """Opens an engine that answers many requests at once, each as if it were alone: `submit`,
        iterate, `cancel`; or `complete` from several threads.

        Args:
          settings: fields of `serve.engine.EngineConfig`: `slots`, `context`, `cache_gib`, ….

        Raises:
          ConfigError: the model does not write one token after another.
        """
        from gptjax.serve.engine import (
            Engine,
            EngineConfig,
        )  # a client room: most callers need none

        return Engine(self, config.from_dict(EngineConfig, settings))

    def make_settings(self, settings: Any, more: dict[str, Any]) -> Any:
        """The settings; `more` keeps what is not a setting, as `generate` takes it."""
        if isinstance(draft := more.get("draft"), Model):
            same = tokenizers.hash_tokenizer(draft.tokenizer) == tokenizers.hash_tokenizer(
                self.tokenizer
            )
            require(
                same,
                "the draft model has another tokenizer; give one that was trained with the same"
                " (--draft RUN).",
            )
            more["draft"] = Draft(draft.config, draft.params)
        adapter = more.pop("adapter", None)
        if isinstance(adapter, str):
            more["use"] = adapter
        names = [field.name for field in dataclasses.fields(GenerateConfig)]
        named = {name: _plain(name, more.pop(name)) for name in names if name in more}
        require(
            not (named and settings),
            f"give settings, or {', '.join(sorted(named))} by name, not both.",
        )
        for name in set(more) - {"prefix", "draft", "batch", "watch", "merit"}:
            hint = config.suggestion(GenerateConfig, name, names)
            raise ConfigError(f"{name} is not a setting of GenerateConfig.{hint}")
        made = settings or config.from_dict(GenerateConfig, named)
        if isinstance(adapter, str | None):
            return made
        require(not settings, "give settings, or adapter by name, not both.")
        return [dataclasses.replace(made, use=one) for one in adapter]


def _plain(name: str, value: Any) -> Any:
    """A setting as JSON could hold it: numpy's numbers, a schema as a dict and a lone text where
    several are possible are taken too."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return plain(name, value)


def load(
    path: Path | str,
    step: int | None = None,
    mesh: MeshConfig | Mesh | None = None,
    *,
    live: bool = False,
    known: config.Classes = (),
    packed: bool = False,
) -> Model:
    """Opens a run directory, a Hugging Face directory, a GGUF file, a llama2.c file, or a model
    that a Python package ships.

    Args:
      path: where it is, also as a URL (gs://…, s3://…); or the name of a packaged model: smollm2,
        minilm.
      step: checkpoint of a run; `None` is the newest intact one.
      mesh: devices that share the weights and the cache: `tensor` splits heads, MLP and vocabulary,
        `fsdp` weights and rows, `data` rows, `expert` experts and rows. `None` is one device.
      live: the latest weights of a run, also where it kept averaged ones.
      known: task classes defined outside gptjax that a run may have been trained on.
      packed: keep the quantised weights of a Hugging Face directory or a GGUF file as they are
        stored, instead of widening them to float32; only for generation.

    Raises:
      ConfigError: there is no model, or it has no such checkpoint or no tokenizer, or the mesh does
        not fit the devices.
    """
    path = formats.located(path, step)
    if not path.exists():
        mesh = None  # a missing model is reported before missing devices
    devices = mesh if isinstance(mesh, Mesh) else mesh and _devices(mesh)
    model = open_model(path, step, devices, live=live, known=known, packed=packed)
    require(
        model.tokenizer is not None or (model.config.vision is not None and not model.task.writes),
        f"{path} has no tokenizer; put its tokenizer.json beside the weights.",
    )
    return Model(**model._asdict(), mesh=devices)


def _devices(mesh: MeshConfig) -> Mesh | None:
    """The devices of a mesh that generation can use; `None` where no axis is set."""
    for name in ("slices", "stage", "context", "offload_optimizer", "rules"):
        value, default = getattr(mesh, name), getattr(MeshConfig(), name)
        require(
            value == default,
            f"mesh.{name} is {value}, and generation uses only the axes data, fsdp, expert and"
            f" tensor; omit --mesh.{name.replace('_', '-')}.",
        )
    return make_mesh(mesh) if mesh.given else None
