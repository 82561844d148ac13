"""Prompts of a library (`--prompts FILE`), which clients name instead of writing them out.

`{"prompt": {"id": "summary", "variables": {"text": "…"}}}` is how OpenAI's clients ask
/v1/responses for a stored prompt; /v1/completions takes the same object, as text to continue.
`prompt_list` says which prompts there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from gptjax.core.config import ConfigError, nearest
from gptjax.data.prompt_library import PromptTemplate, prompt_messages, prompt_text
from gptjax.serve.fields import limits
from gptjax.serve.protocol import BadRequest, Served


@dataclass(frozen=True, kw_only=True)
class PromptReference:
    """A prompt of the server's library, with values of its variables."""

    id: Annotated[str, limits(minLength=1, maxLength=256)]
    variables: Annotated[dict, limits(maxProperties=64)] | None = None
    """Name → text, or a content part with text; a list of texts is written as numbered lines."""

    REFUSED: ClassVar[Mapping[str, str]] = {
        "version": "prompts of this server have no versions; omit it."
    }


def referred_messages(asked: PromptReference, served: Served) -> list[dict[str, Any]]:
    """Returns the messages of a prompt, as bodies have them.

    Raises:
      BadRequest: there is no such prompt, or the variables do not fit it.
    """
    template, values = _chosen(asked, served)
    try:
        talk = prompt_messages(template, values)
    except ConfigError as error:
        raise BadRequest(str(error), "prompt.variables") from None
    return [{"role": message.role, "content": message.text} for message in talk]


def referred_text(asked: PromptReference, served: Served) -> str:
    """Returns a prompt as text to continue; errors as of `referred_messages`."""
    template, values = _chosen(asked, served)
    try:
        return prompt_text(template, values)
    except ConfigError as error:
        raise BadRequest(str(error), "prompt.variables") from None


def _chosen(asked: PromptReference, served: Served) -> tuple[PromptTemplate, dict[str, Any]]:
    if asked.id not in served.prompts:
        has = ", ".join(served.prompts) or "none (gptjax serve MODEL --prompts FILE)"
        raise BadRequest(
            f"the prompt {asked.id!r} does not exist; this server has {has}."
            f"{nearest(asked.id, served.prompts)}",
            "prompt.id",
            "prompt_not_found",
            404,
        )
    given = asked.variables or {}
    return served.prompts[asked.id], {name: _value_of(value) for name, value in given.items()}


def _value_of(value: Any) -> Any:
    """A value of OpenAI's clients: text, or a content part that holds text."""
    is_part = isinstance(value, dict) and value.get("type") == "input_text"
    return value.get("text") if is_part else value


def prompt_list(served: Served) -> dict[str, Any]:
    """Returns all prompts, for `/v1/prompts`."""
    cards = [
        {
            "id": name,
            "object": "prompt",
            "about": one.about,
            "variables": list(one.variables),
            "defaults": dict(one.defaults),
        }
        for name, one in served.prompts.items()
    ]
    return {"object": "list", "data": cards}
