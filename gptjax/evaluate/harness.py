"""Models for lm-evaluation-harness: `gptjax lm-eval` is its command, with one more `--model`.

Read `HarnessModel`: the harness asks it for three things, which are the three requests of
`respond`. `harness_class` joins it with the harness' own base, and `register` makes it known as
`gptjax`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptjax import api
from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.tokenizer import Tokenizer, hash_tokenizer
from gptjax.evaluate.encoding import start_of_text
from gptjax.evaluate.requests import Request, Response, Roll, Score, Write
from gptjax.evaluate.respond import Cost, Progress, respond_and_count
from gptjax.generate import GenerateConfig

NAME = "gptjax"
ANSWER_TOKENS = 256
"""Length of an answer where a task names none; that of the harness' `hf`."""


@functools.cache
def harness_class() -> type[HarnessModel]:
    """Returns `HarnessModel` as a class of the harness, which spells pairs of texts by itself."""
    from lm_eval.api.model import TemplateLM

    return type("GptjaxModel", (HarnessModel, TemplateLM), {})


def register() -> None:
    """Makes `--model gptjax` known to the harness of this process."""
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=harness_class())


def run(args: list[str]) -> None:
    """Runs the harness' own command with these arguments; `--model` is gptjax if there is none."""
    from lm_eval.__main__ import cli_evaluate

    register()
    given = [arg for arg in args if arg.split("=")[0] in ("--model", "-M")]
    other = bool(args) and args[0] in ("ls", "validate", "-h", "--help")
    begin = [] if other else ["run", "--model", NAME] if not given else ["run"]
    rest = args[1:] if args[:1] == ["run"] else args
    sys.argv = ["lm-eval", *begin, *rest]
    cli_evaluate()


class HarnessModel:
    """A model as the harness asks it. It reads requests together, whatever `--batch_size` says."""

    cache_hook: Any
    """The harness' own, for answers that it keeps."""
    rows: int
    progress: Callable[[Progress], None] | None
    costs: list[Cost]
    """What each call took."""

    def __init__(
        self,
        path: str = "",
        *,
        model: api.Model | None = None,
        step: int | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        rows: int = 4,
        template: str | None = None,
        **more: Any,
    ) -> None:
        """Opens a model.

        Args:
          path: as `gptjax.load` takes it; `--model_args path=MODEL`.
          model: an open one, in place of a path.
          dtype: `float32` or `bfloat16`, that it computes in; `None` is its own.
          max_length: tokens that it reads at once, fewer than its own context.
          rows: as in `respond`.
          template: of conversations, by name or as a .jinja file; `None` is the model's own.
          more: what the harness itself passes.

        Raises:
          ConfigError: there is no such model, or an argument is unknown or does not fit.
        """
        super().__init__()
        unknown = set(more) - {"batch_size", "max_batch_size", "device"}
        require(
            not unknown,
            f"{min(unknown, default='')} is no argument of a gptjax model; there are path, step,"
            " dtype, max_length, rows and template (--model_args path=MODEL,…).",
        )
        require(
            bool(path) or model is not None,
            "the model is missing; name it (--model_args path=MODEL).",
        )
        self._open(model or api.load(path, step), dtype, max_length)
        self.rows, self.progress, self.costs = rows, _reporter(), []
        self._template = template

    def _open(self, model: api.Model, dtype: str | None, length: int | None) -> None:
        config = model.config
        require(
            length is None or 2 <= length <= config.context,
            f"max_length is {length}; it needs 2 to {config.context}, the model's context.",
        )
        require(
            dtype in (None, "float32", "bfloat16"),
            f"dtype is {dtype}; it needs float32 or bfloat16.",
        )
        config = dataclasses.replace(
            config, compute=dtype or config.compute, context=length or config.context
        )
        self.model = model._replace(config=config)
        self._writer: api.Model | None = None

    # --- what the harness asks for

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **more: Any,
    ) -> list[tuple[float, bool]]:
        asked = [Score(tuple(before), tuple(after)) for _, before, after in requests]
        found = [(one.logprob, one.greedy) for one in self._respond(asked)]
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns ln p of each whole text, each token predicted once."""
        texts = [one.args[0] for one in requests]
        found = self._respond([Roll(tuple(self.tok_encode(text))) for text in texts])
        for text, one in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), one.logprob)
        return [one.logprob for one in found]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns an answer to each context, without the text that ends it."""
        asked, again = [], Counter()
        for context, told in (one.args for one in requests):
            number = again[context, repr(told)]
            again[context, repr(told)] += 1
            settings = answer_settings(told, self.model.tokenizer, number)
            asked.append(Write(tuple(self.tok_encode(context)), settings))
        if self._writer is None:
            self._writer = self.model.prepared()
        found = [one.text for one in self._respond(asked, self._writer)]
        for one, text in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", one.args, text)
        return found

    def _respond(self, asked: Sequence[Request], model: api.Model | None = None) -> list[Response]:
        found, cost = respond_and_count(
            model or self.model, asked, rows=self.rows, progress=self.progress
        )
        self.costs.append(cost)
        return found

    # --- texts

    @property
    def eot_token_id(self) -> int:
        """The id that ends documents."""
        end = self.model.tokenizer.end_of_document
        return start_of_text(self.model.tokenizer) if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """The id that stands for an empty context."""
        return start_of_text(self.model.tokenizer)

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        return self.model.config.context

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **more: Any
    ) -> list[int]:
        """Returns the ids of a text, in which names of control tokens are these tokens, after the
        one that begins texts if the tokenizer has it put there and the text does not begin so."""
        tokenizer = self.model.tokenizer
        ids, begin = chat.spell_rendered(string, tokenizer), tokenizer.begin_of_document
        if begin is None or add_special_tokens is False:
            return ids
        return ids if add_special_tokens is None and ids[:1] == [begin] else [begin, *ids]

    # --- conversations

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the keys of the harness' caches."""
        return f"{NAME}-{hash_tokenizer(self.model.tokenizer)[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the source of the template: the model's own for `True`, or one by its name."""
        if chat_template is False or chat_template is None:
            return None
        if isinstance(chat_template, str):
            self._template = chat_template
        return chat.choose_template(self._template, self.model.tokenizer).source

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a conversation as text; without `add_generation_prompt` it ends with the last
        message, which the model is to continue. A template without a place for a system prompt
        writes the conversation without it."""
        template = chat.choose_template(self._template, self.model.tokenizer)
        messages = [chat.Message(one["role"], one["content"]) for one in chat_history]
        try:
            return self._rendered(template, messages, add_generation_prompt)
        except ConfigError:
            others = [one for one in messages if one.role != "system"]
            if len(others) == len(messages):
                raise
            return self._rendered(template, others, add_generation_prompt)

    def _rendered(
        self, template: chat.ChatTemplate, messages: Sequence[chat.Message], reply: bool
    ) -> str:
        return chat.rendered_text(template, messages, self.model.tokenizer, reply=reply)


ALIASES = {"num_beams": "beams"}
"""What the harness' tasks call a setting → its name here."""


def answer_settings(told: Mapping[str, Any], tokenizer: Tokenizer, number: int) -> GenerateConfig:
    """Returns the settings of an answer from a task's `generation_kwargs`. Without a temperature
    the likeliest tokens are written; with one, the model's own distribution is sampled unless
    `top_p` or `top_k` are given.

    Args:
      number: which of several answers to one context it is.

    Raises:
      ConfigError: a setting is unknown.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    settings = dict(normalize_gen_kwargs(dict(told), ANSWER_TOKENS))
    until, tokens = settings.pop("until"), settings.pop("max_gen_toks")
    settings.pop("do_sample")
    names = {field.name for field in dataclasses.fields(GenerateConfig)}
    own = {ALIASES.get(name, name): value for name, value in settings.items()}
    unknown = sorted(set(own) - names)
    require(
        not unknown,
        f"generation_kwargs has {unknown and unknown[0]}, which is no setting of gptjax; remove it"
        " from the task, or from --gen_kwargs.",
    )
    ends = [end for end in dict.fromkeys(until) if end]
    controls = tokenizer.controls
    return GenerateConfig(
        **{"temperature": 0.0, "top_p": 1.0, "top_k": 0}
        | own
        | {
            "new_tokens": tokens,
            "seed": (int(own.get("seed", 0)) + number) % 2**32,
            "stop": tuple(end for end in ends if end not in controls),
            "stop_ids": tuple(controls[end].id for end in ends if end in controls),
        }
    )


EVERY = 10.0
"""Seconds between lines of progress."""


def _reporter() -> Callable[[Progress], None]:
    """Says on stderr how far the model is, now and then."""
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if progress.seconds < last:
            last = 0.0
        if progress.seconds - last >= EVERY:
            last = progress.seconds
            print(f"gptjax: {progress}", file=sys.stderr, flush=True)

    return report
