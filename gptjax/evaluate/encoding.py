"""Requests as ids, spelled as lm-evaluation-harness spells them for a Hugging Face model.

Read `Passage`, then `encode_scores`. Windows of long texts are in `rolling`.

| case | rule |
|---|---|
| the context ends in white space | it moves to the continuation |
| context and continuation | encoded as one text and cut where the context alone ends |
| empty context | one token: the one that begins texts, or else the one that ends them |
| the beginning of documents | before each context if the tokenizer puts it before texts |
| too long | the beginning of the context is dropped; the last token is never read |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gptjax.api import Model
from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.evaluate.requests import Score, Write


class Passage(NamedTuple):
    """Ids of which those from `first` on are scored, each given all before it; the last is not
    read."""

    ids: tuple[int, ...]
    first: int
    """At least 1."""
    prefix: int = 0
    """In a prefix LM, the number of tokens from the beginning that see each other."""
    side: tuple[int, ...] = ()
    """What an encoder reads."""

    @property
    def read(self) -> tuple[int, ...]:
        """The ids that a decoder reads."""
        return self.ids[:-1]


class Encoded(NamedTuple):
    """A request as passages: one, or the windows of a long text."""

    passages: list[Passage]
    truncated: bool = False
    """The beginning of the context did not fit the model."""


def start_of_text(tokenizer: Tokenizer) -> int:
    """Returns the id that stands for an empty context: the one that begins texts, or else the one
    that ends documents.

    Raises:
      ConfigError: the tokenizer has neither.
    """
    special = tokenizer.special
    for number in (special.bos if special else None, tokenizer.end_of_document):
        if number is not None:
            return number
    raise ConfigError(
        "the first token of a text follows nothing, and this tokenizer has no token that begins or"
        " ends a document; give each request a context."
    )


def encode_scores(model: Model, requests: Sequence[Score]) -> list[Encoded]:
    """Returns the ids of contexts and continuations.

    Raises:
      ConfigError: a continuation has no tokens of its own, or more than the model's context.
    """
    pairs = [_spaces_moved(one) for one in requests]
    spelled = _spelled(model.tokenizer, pairs, joined=not model.task.answers)
    return [_encoded(model, pair, spelled) for pair in pairs]


def _spaces_moved(one: Score) -> Score:
    """The request whose context ends in no white space."""
    if not (isinstance(one.context, str) and isinstance(one.continuation, str)):
        return one
    context = one.context.rstrip()
    return Score(context, one.context[len(context) :] + one.continuation)


def _spelled(
    tokenizer: Tokenizer, pairs: Iterable[Score], joined: bool
) -> dict[str, tuple[int, ...]]:
    """The ids of every text that is needed, each spelled once."""
    texts: dict[str, None] = {}
    for context, continuation in pairs:
        if isinstance(context, str) and isinstance(continuation, str):
            texts |= {context: None, context + continuation if joined else continuation: None}
        else:
            texts |= {part: None for part in (context, continuation) if isinstance(part, str)}
    every = tokenizer.encode_all(list(texts))
    return {text: tuple(ids.tolist()) for text, ids in zip(texts, every, strict=True)}


def _encoded(model: Model, pair: Score, spelled: dict[str, tuple[int, ...]]) -> Encoded:
    context, continuation = pair
    if model.task.answers:
        return _answer(model, pair, spelled)
    if isinstance(context, str):
        before = begun(model.tokenizer, spelled[context]) if context else ()
        if isinstance(continuation, str) and context:
            after = begun(model.tokenizer, spelled[context + continuation])[len(before) :]
        else:
            after = _ids(continuation, spelled)
    elif isinstance(continuation, str):
        before, after = tuple(context), tuple(model.tokenizer.encode_after(continuation).tolist())
    else:
        before, after = tuple(context), tuple(continuation)
    if not before:
        start = (start_of_text(model.tokenizer),)
        before, after = (start, after) if after[:1] != start else (start, after[1:])
    return _fitted(model, before, after, continuation)


def _ids(text: str | Sequence[int], spelled: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    return spelled[text] if isinstance(text, str) else tuple(text)


def begun(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int, ...]:
    """Returns the ids of a text after the one that begins texts, if there is one."""
    begin = tokenizer.begin_of_document
    return tuple(ids) if begin is None else (begin, *ids)


def _fitted(
    model: Model, before: tuple[int, ...], after: tuple[int, ...], text: str | Sequence[int]
) -> Encoded:
    """One passage, whose context loses its beginning if it does not fit."""
    most = model.config.context
    require(
        bool(after),
        f"the continuation {_short(text)} has no tokens of its own after its context; give it some"
        " text.",
    )
    require(
        len(after) <= most,
        f"the continuation {_short(text)} has {len(after)} tokens and the context of the model is"
        f" {most}; shorten it, or roll over it as a text.",
    )
    kept = before[max(0, len(before) + len(after) - most - 1) :]
    prefix = len(kept) - 1 if model.config.prefix_lm else 0
    return Encoded([Passage(kept + after, len(kept), prefix)], len(kept) < len(before))


def _answer(model: Model, pair: Score, spelled: dict[str, tuple[int, ...]]) -> Encoded:
    """The passage of a model that answers texts: the context is what is answered."""
    with_encoder = model.config.encoder_layers > 0
    read, before = model.task.prompt(_ids(pair.context, spelled), model.tokenizer, with_encoder)
    after = _ids(pair.continuation, spelled)
    one = _fitted(model, tuple(before), after, pair.continuation)
    kept = tuple(read[-model.config.context :])
    require(
        bool(kept) or not with_encoder,
        "the context is empty, and this model answers texts; give each request a context.",
    )
    passages = [passage._replace(side=kept) for passage in one.passages]
    return Encoded(passages, one.truncated or len(kept) < len(read))


def _short(text: str | Sequence[int]) -> str:
    shown = repr(text if isinstance(text, str) else list(text))
    return shown if len(shown) <= 40 else f"{shown[:36]} …"


def prompts_of(model: Model, requests: Sequence[Write]) -> list[str | tuple[int, ...]]:
    """Returns the contexts as prompts: ids that leave room for an answer, the beginning of longer
    ones dropped; texts as they are where the model answers them.

    Raises:
      ConfigError: an answer of the wanted length leaves no room for a context.
    """
    if model.task.answers:
        return [
            one.context if isinstance(one.context, str) else tuple(one.context) for one in requests
        ]
    texts = list(dict.fromkeys(one.context for one in requests if isinstance(one.context, str)))
    spelled = dict(zip(texts, model.tokenizer.encode_all(texts), strict=True))
    prompts: list[str | tuple[int, ...]] = []
    for one in requests:
        room = model.config.context - one.settings.new_tokens
        require(
            room > 0,
            f"an answer of {one.settings.new_tokens} tokens leaves no room for a question in a"
            f" context of {model.config.context}; ask for fewer (new_tokens).",
        )
        if isinstance(one.context, str):
            ids = begun(model.tokenizer, spelled[one.context].tolist())
        else:
            ids = tuple(one.context)
        prompts.append(ids[-room:] or (start_of_text(model.tokenizer),))
    return prompts
