"""From bodies to asks: what each field means for generation, and what can't be served.

`read_chat`, `read_completion` and `read_embedding` take a body's bytes. Settings have OpenAI's
defaults, temperature 1 and top_p 1. What is wrong is refused here, before the engine hears of it;
only constraints are compiled elsewhere, since that may take seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError
from gptjax.data.tasks import LanguageModel
from gptjax.data.tokenizers import chat
from gptjax.generate.request import Request, requests
from gptjax.generate.schedule import adapter_number
from gptjax.generate.settings import GenerateConfig
from gptjax.serve import tools
from gptjax.serve.bodies import ChatBody, CompletionBody, EmbeddingBody, Sampled
from gptjax.serve.fields import read_fields
from gptjax.serve.pictures import asked_about, read_question
from gptjax.serve.protocol import BadRequest, Call, CallForm, Form, Served, Stamp, require_model
from gptjax.serve.stream import Ask
from gptjax.serve.templates import PromptReference, referred_text

COMPLETION_TOKENS = 16
"""Tokens of a completion without `max_tokens`, as OpenAI has it. A chat may fill the context."""
MAX_ASKS = 256
"""Answers of one request."""
LONGEST = 64
"""Characters, or ids, of a prompt for each token of the context; longer ones are not tokenized."""

Prompt = str | Sequence[int]


class _Way(NamedTuple):
    """What the endpoint adds to the settings of a body."""

    limit: int | None
    """Tokens to write; `None` is as many as there is room for."""
    constraint: Mapping[str, Any] = {}
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()


# --- endpoints ----------------------------------------------------------------------------------


def read_chat(
    body: bytes | Mapping[str, Any], served: Served, stamp: Stamp, tenant: str = ""
) -> Call:
    """Returns what a body of /v1/chat/completions asks for.

    Args:
      tenant: name of the key that the request came with; no two share a cached prefix.

    Raises:
      BadRequest: a field is unknown, wrong, or can't be served.
    """
    asked, ignored = read_fields(ChatBody, body)
    if asked.top_logprobs and not asked.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
    toolset, form = tools.chosen_tools(asked), CallForm()
    constraint = _constraint(asked)
    if toolset.tools:
        if constraint:
            raise BadRequest(
                f"{next(iter(constraint))} can't be joined with tools; choose one of them, or"
                ' "tool_choice": "none".',
                "tools",
            )
        form = tools.call_form(served.template, served.tokenizer)
        constraint = {"grammar": tools.call_grammar(toolset, form)}
    question = read_question(asked, served)
    if question is not None:
        served, talk, ids = served._replace(task=LanguageModel()), [], [0] * len(question.ids)
    else:
        talk, described = tools.conversation(asked.messages, toolset, served.template)
        with _refusing("messages"):
            ids = chat.render(served.template, talk, served.tokenizer, tools=described)
    way = _Way(
        limit=_limit(asked),
        constraint=constraint,
        stop=served.ends.texts,
        stop_ids=served.ends.ids,
    )
    call = _call(
        "chat",
        asked,
        [[*ids, *(form.forced if toolset.required else ())]],
        way,
        Form(
            n=asked.n,
            keep=asked.n,
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            calls=form if toolset.tools else None,
            required=toolset.required,
        ),
        (served, stamp, tenant, ignored),
    )
    if question is not None:
        return asked_about(call, question)
    return call._replace(texts=tuple(message.text for message in talk))


def read_completion(
    body: bytes | Mapping[str, Any], served: Served, stamp: Stamp, tenant: str = ""
) -> Call:
    """Returns what a body of /v1/completions asks for; arguments and errors as of `read_chat`."""
    asked, ignored = read_fields(CompletionBody, body)
    drawn = asked.n if asked.best_of is None else asked.best_of
    if drawn < asked.n:
        raise BadRequest(f"best_of is {drawn}; it needs n, which is {asked.n}, or more.", "best_of")
    if drawn > asked.n and asked.stream:
        raise BadRequest("best_of can't be streamed; omit one of them.", "best_of", "unsupported")
    limit = COMPLETION_TOKENS if asked.max_tokens is None else asked.max_tokens
    given: Any = asked.prompt
    if isinstance(given, PromptReference):
        given = referred_text(given, served)
    return _call(
        "completion",
        asked,
        _prompts(given, served, "prompt"),
        _Way(limit, _constraint(asked)),
        Form(
            n=drawn,
            keep=asked.n,
            echo=asked.echo,
            logprobs=asked.logprobs,
        ),
        (served, stamp, tenant, ignored),
    )


def read_embedding(
    body: bytes | Mapping[str, Any], served: Served, stamp: Stamp, tenant: str = ""
) -> Call:
    """Returns what a body of /v1/embeddings asks for; arguments and errors as of `read_chat`."""
    asked, ignored = read_fields(EmbeddingBody, body)
    use, width = require_model(asked.model, served), served.config.width
    if asked.dimensions not in (None, width):
        raise BadRequest(
            f"dimensions is {asked.dimensions}; this model gives {width}.", "dimensions"
        )
    prompts = _prompts(asked.input, served, "input")
    made = _requests(prompts, GenerateConfig(new_tokens=1, use=use), served, "input")
    for one in made:
        if len(one.ids) >= served.context:
            raise _too_long(len(one.ids), 1, served, "input")
    salt = _salt(tenant, None)
    return Call(
        kind="embedding",
        asks=[Ask(one, wants="embedding", tenant=tenant, salt=salt) for one in made],
        stream=False,
        ignored=ignored,
        model=asked.model or served.name,
        seed=0,
        stamp=stamp,
        served=served,
        form=Form(base64=asked.encoding_format == "base64"),
        texts=tuple(one.prompt for one in made),
    )


# --- what they share ----------------------------------------------------------------------------


def _call(
    kind: str,
    asked: Sampled,
    prompts: list[Prompt],
    way: _Way,
    form: Form,
    of: tuple[Served, Stamp, str, tuple[str, ...]],
) -> Call:
    served, stamp, tenant, ignored = of
    if asked.stream_options is not None and not asked.stream:
        raise BadRequest("stream_options needs stream to be true.", "stream_options")
    if asked.prompt_logprobs is not None and asked.stream:
        raise BadRequest("prompt_logprobs can't be streamed; omit one of them.", "prompt_logprobs")
    if len(prompts) * form.n > MAX_ASKS:
        raise BadRequest(
            f"{len(prompts)} prompts with n {form.n} are {len(prompts) * form.n} answers; a request"
            f" can have {MAX_ASKS}.",
            "n",
        )
    seed = (stamp.seed if asked.seed is None else asked.seed) % 2**32
    form = form._replace(
        silent=way.limit == 0,
        usage=asked.stream_options is not None and asked.stream_options.include_usage,
        prompt_logprobs=asked.prompt_logprobs,
        token_ids=asked.return_token_ids,
    )
    settings = _settings(asked, way, form, served, seed)
    with_limit = []
    for one in _requests(prompts, settings, served, "prompt" if kind != "chat" else "messages"):
        room = served.context - len(one.ids)
        wanted = max(1, room if way.limit is None else way.limit)
        if wanted > room:
            raise _too_long(len(one.ids), wanted, served, "max_tokens" if room > 0 else "prompt")
        least = wanted if asked.ignore_eos else min(asked.min_tokens, wanted)
        own = dataclasses.replace(settings, new_tokens=wanted, min_new_tokens=least)
        with_limit.append(one._replace(settings=own))
    salt = _salt(tenant, asked.cache_salt)
    asks = [
        Ask(one, sample=i, tenant=tenant, salt=salt, seconds=asked.max_seconds)
        for one in with_limit
        for i in range(form.n)
    ]
    return Call(
        kind=kind,
        asks=asks,
        stream=asked.stream,
        ignored=ignored,
        model=asked.model or served.name,
        seed=seed,
        stamp=stamp,
        served=served,
        form=form,
        texts=tuple(one.prompt for one in with_limit),
    )


def _settings(asked: Sampled, way: _Way, form: Form, served: Served, seed: int) -> GenerateConfig:
    """The settings of a body, but for the numbers of tokens, which depend on the prompt."""
    biases = _biases(asked.logit_bias or {}, served.tokenizer.vocab_size)
    greedy = asked.top_p == 0
    vocabulary = served.tokenizer.vocab_size
    if asked.ignore_eos and way.constraint:
        raise BadRequest("ignore_eos can't be joined with a form of the answer.", "ignore_eos")
    if way.limit is not None and asked.min_tokens > max(way.limit, 1):
        raise BadRequest(
            f"min_tokens is {asked.min_tokens}, more than max_tokens, {way.limit}.", "min_tokens"
        )
    stop = (asked.stop,) if isinstance(asked.stop, str) else asked.stop
    with _refusing(None):
        return GenerateConfig(
            **{name: getattr(asked, name) for name in _SAME},
            **way.constraint,
            top_k=1 if greedy else min(max(asked.top_k, 0), vocabulary),
            top_p=1.0 if greedy else asked.top_p,
            top_n_sigma=max(asked.top_n_sigma, 0.0),
            seed=seed,
            logit_bias=tuple((i, bias) for i, bias in biases.items() if bias > -100),
            banned=tuple(i for i, bias in biases.items() if bias <= -100),
            allowed=asked.allowed_token_ids,
            stop=(*stop, *way.stop),
            stop_ids=(*asked.stop_token_ids, *way.stop_ids),
            use=require_model(asked.model, served),
            watermark=served.watermark,
            top_logprobs=min(max(form.logprobs or 0, form.prompt_logprobs or 0), vocabulary),
            prompt_logprobs=form.prompt_logprobs is not None
            or (form.echo and form.logprobs is not None),
        )


_SAME = (
    *("temperature", "min_p", "typical_p", "xtc_probability", "xtc_threshold"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "penalty_window"),
    *("no_repeat_ngram", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_breakers"),
)
"""Settings whose names and values are ours."""


def _biases(given: Mapping[str, Any], vocabulary: int) -> dict[int, float]:
    """Id → what is added to its logit; −100 bans it."""
    biases = {}
    for key, bias in given.items():
        where = f"logit_bias.{key[:40]}"
        if not re.fullmatch(r"[0-9]{1,10}", key) or int(key) >= vocabulary:
            raise BadRequest(f"{where}: the ids are 0 to {vocabulary - 1}.", where)
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise BadRequest(f"{where} needs a number from -100 to 100.", where)
        biases[int(key)] = float(bias)
    return biases


def _limit(asked: ChatBody) -> int | None:
    """Tokens that an answer of a chat may have."""
    old, new = asked.max_tokens, asked.max_completion_tokens
    if None not in (old, new) and old != new:
        raise BadRequest(
            f"max_completion_tokens is {new} and max_tokens {old}; give one of them.",
            "max_completion_tokens",
        )
    return old if new is None else new


def _constraint(asked: Sampled) -> dict[str, Any]:
    """The form that the whole answer has to have, as the setting that asks for it."""
    anything = {"type": "object"}
    form, more = asked.response_format, asked.structured_outputs
    found: dict[str, tuple[str, Any]] = {
        name: (setting, value)
        for name, setting, value in (
            ("json_schema", "schema", asked.json_schema),
            ("regex", "regex", asked.regex),
            ("grammar", "grammar", asked.grammar),
            ("choices", "choices", asked.choices),
        )
        if value is not None
    }
    if form is not None and form.type != "text":
        schema = form.json_schema.schema if form.json_schema else form.schema
        if form.type == "json_schema" and schema is None:
            field = "response_format.json_schema"
            raise BadRequest(f"{field} is missing; it is needed.", field, "missing")
        found["response_format"] = "schema", anything if schema is None else schema
    if more is not None:
        for setting, value in (
            ("schema", more.json or (anything if more.json_object else None)),
            ("regex", more.regex),
            ("grammar", more.grammar),
            ("choices", more.choice),
        ):
            if value is not None:
                found[f"structured_outputs.{setting}"] = setting, value
    if len(found) > 1:
        raise BadRequest(f"{' and '.join(found)} can't be joined; choose one.", list(found)[1])
    return {
        setting: json.dumps(value) if isinstance(value, dict) else value
        for setting, value in found.values()
    }


def _prompts(given: Any, served: Served, where: str) -> list[Prompt]:
    """Prompts as texts or lists of ids."""
    if isinstance(given, str):
        return [given]
    prompts = [given] if given and isinstance(given[0], int) else list(given)
    size = served.tokenizer.vocab_size
    for i, prompt in enumerate(prompts):
        wrong = [] if isinstance(prompt, str) else [t for t in prompt if t >= size]
        if wrong:
            raise BadRequest(f"{where} has the id {wrong[0]}; the ids are 0 to {size - 1}.", where)
        if not isinstance(prompt, str) and not prompt:
            field = f"{where}.{i}"
            raise BadRequest(f"{field} is an empty list; give at least one id.", field)
        if len(prompt) > LONGEST * served.context:
            raise _too_long(len(prompt), 1, served, where)
    return [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts]


def _requests(
    prompts: list[Prompt], settings: GenerateConfig, served: Served, where: str
) -> list[Request]:
    """Checked requests, each with the number of its adapter."""
    made = []
    for prompt in prompts:
        try:
            with _refusing(where):
                made += requests(
                    served.config, served.tokenizer, [prompt], settings, task=served.task
                )
        except BadRequest:
            ids = served.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            if len(ids) >= served.context:
                raise _too_long(len(ids), 1, served, where) from None
            raise
    if not served.adapters:
        return made
    number = adapter_number(settings.use, served.adapters)
    return [one._replace(adapter=number) for one in made]


def _too_long(prompt: int, wanted: int, served: Served, where: str) -> BadRequest:
    return BadRequest(
        f"the prompt has {prompt} tokens and the answer may have {wanted}, together"
        f" {prompt + wanted}; this server takes {served.context} a request. Shorten the prompt, or"
        " ask for fewer tokens (max_tokens).",
        where,
        "context_length_exceeded",
    )


def _salt(tenant: str, more: str | None) -> bytes:
    """No two pairs give the same bytes."""
    return f"{len(tenant)}:{tenant}:{more or ''}".encode()


@contextlib.contextmanager
def _refusing(param: str | None) -> Iterator[None]:
    """Names the field that was refused below, where flags of the command line are named too."""
    try:
        yield
    except BadRequest:
        raise
    except (ConfigError, ValueError) as error:
        raise BadRequest(re.sub(r" \(--[^()]*\)", "", str(error)), param) from None
