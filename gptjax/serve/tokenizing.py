"""Texts ↔ ids over HTTP, in vLLM's form: what programs need that score texts by ids.

A text is plain text here as everywhere: control tokens in it are spelled. Only a text that is
exactly the name of one is that token, so that a client can learn its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptjax.core.config import ConfigError
from gptjax.data.tokenizers import chat
from gptjax.serve import tools
from gptjax.serve.bodies import DetokenizeBody, TokenizeBody
from gptjax.serve.fields import read_fields
from gptjax.serve.protocol import BadRequest, Served, require_model
from gptjax.serve.tokens import end_token, token_name


def tokenize(body: bytes | Mapping[str, Any], served: Served) -> dict[str, Any]:
    """Returns the ids of a text, or of a conversation as the model reads it, for /tokenize.

    Raises:
      BadRequest: a field is wrong, or the text can't be spelled.
    """
    asked, _ = read_fields(TokenizeBody, body)
    require_model(asked.model, served)
    if (asked.prompt is None) == (asked.messages is None):
        raise BadRequest("give either prompt or messages.", "prompt")
    tokenizer = served.tokenizer
    try:
        if asked.messages is not None:
            toolset = tools.Toolset(asked.tools)
            talk, described = tools.conversation(asked.messages, toolset, served.template)
            ids = chat.render(
                served.template,
                talk,
                tokenizer,
                reply=asked.add_generation_prompt,
                tools=described,
            )
        else:
            ids = _spelled(asked.prompt or "", served, whole=asked.add_special_tokens)
    except BadRequest:
        raise
    except ConfigError as error:
        field = "prompt" if asked.messages is None else "messages"
        raise BadRequest(str(error), field) from None
    names = [token_name(tokenizer, i) for i in ids] if asked.return_token_strs else None
    return {
        "count": len(ids),
        "max_model_len": served.context,
        "tokens": ids,
        "token_strs": names,
    }


def _spelled(text: str, served: Served, whole: bool) -> list[int]:
    """The ids of a text; a `whole` one begins as documents do."""
    tokenizer = served.tokenizer
    if text in tokenizer.controls:
        return [tokenizer.controls[text].id]
    if tokenizer.end_of_document is not None and text == end_token(tokenizer):
        return [tokenizer.end_of_document]
    ids = tokenizer.encode(text).tolist()
    begin = tokenizer.begin_of_document
    return [begin, *ids] if whole and begin is not None else ids


def detokenize(body: bytes | Mapping[str, Any], served: Served) -> dict[str, Any]:
    """Returns the text of ids, for /detokenize.

    Raises:
      BadRequest: an id is outside the vocabulary.
    """
    asked, _ = read_fields(DetokenizeBody, body)
    require_model(asked.model, served)
    try:
        return {"prompt": served.tokenizer.decode(asked.tokens)}
    except ValueError as error:
        raise BadRequest(str(error), "tokens") from None


def tokenizer_info(served: Served) -> dict[str, Any]:
    """Returns what a client has to know of the tokenizer, for /tokenizer_info."""
    tokenizer = served.tokenizer
    special = tokenizer.special
    begin = tokenizer.begin_of_document if special is None else special.bos
    return {
        "tokenizer_class": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": served.context,
        "eos_token": end_token(tokenizer),
        "bos_token": None if begin is None else token_name(tokenizer, begin),
        "pad_token": None,
        "add_bos_token": tokenizer.begin_of_document is not None,
        "chat_template": served.template.source,
    }
