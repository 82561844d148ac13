"""Pictures in messages of /v1/chat/completions, for models that answer questions about some.

A picture comes in the message itself, as a data: URL; the server fetches nothing. Read
`read_question`, then `asked_about`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.core.config import ConfigError
from gptjax.data.tasks import VisualAnswers
from gptjax.model.inputs.image import prepared
from gptjax.model.inputs.image_files import decoded
from gptjax.serve.bodies import ChatBody, ChatMessage
from gptjax.serve.protocol import BadRequest, Call, Served
from gptjax.serve.stream import Shown

MOST_PIXELS = 2**22
"""Most pixels of a picture, 4.2 million; larger ones take seconds to unpack."""
DATA_URL = re.compile(r"data:image/[a-z+.-]{1,20};base64,", re.IGNORECASE)


class Question(NamedTuple):
    """A prompt about pictures."""

    text: str
    ids: list[int]
    shown: Shown


def read_question(asked: ChatBody, served: Served) -> Question | None:
    """Returns the question of a conversation about pictures; `None` if it shows none.

    Raises:
      BadRequest: the model does not read pictures, one can't be read, or there is more than one
        message: each question is answered by itself, as in training.
    """
    showing = [m for m in asked.messages if isinstance(m.content, tuple) and _urls(m, 0)]
    if not showing:
        return None
    task = served.task
    if not isinstance(task, VisualAnswers) or task.frames_each > 1 or task.begin == -1:
        why = "does not answer questions about pictures; send text alone."
        raise BadRequest(f"the model {served.name!r} {why}", "messages", "unsupported")
    if len(asked.messages) > 1 or showing[0].role != "user":
        raise BadRequest(
            "a question about pictures is one message of the user, for each is answered by itself;"
            " omit the others.",
            "messages",
            "unsupported",
        )
    for name, given in (
        ("tools", bool(asked.tools)),
        ("prompt_logprobs", asked.prompt_logprobs is not None),
    ):
        if given:
            raise BadRequest(f"{name} can't be joined with pictures; omit it.", name, "unsupported")
    found = _urls(showing[0], 0)
    if len(found) > task.images:
        raise BadRequest(
            f"there are {len(found)} pictures, and this model reads {task.images} at once.",
            "messages.0.content",
        )
    pixels = np.stack([_pixels(url, where, task) for where, url in found])
    text = "\n".join(part.text or "" for part in showing[0].content or () if _is_text(part))
    ids = task.asked_about(served.tokenizer.encode(text).tolist(), served.tokenizer, len(found))
    places = task.places(np.asarray(ids)[None], served.tokenizer.vocab_size)[0]
    places = places[: len(found) * task.tokens]
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    return Question(text, ids, Shown(pixels, places, digest))


def asked_about(call: Call, question: Question) -> Call:
    """Returns a call whose prompt is a question about pictures; it was read with as many ids."""
    asks = [
        ask._replace(
            request=ask.request._replace(prompt=question.text, ids=question.ids),
            shown=question.shown,
        )
        for ask in call.asks
    ]
    return call._replace(asks=asks, texts=(question.text,))


def _is_text(part: object) -> bool:
    return getattr(part, "type", "") in ("text", "input_text")


def _urls(message: ChatMessage, number: int) -> list[tuple[str, str]]:
    """The address of each picture of a message, with its field."""
    parts: Sequence = message.content if isinstance(message.content, tuple) else ()
    found = []
    for place, part in enumerate(parts):
        if part.type == "image_url":
            where = f"messages.{number}.content.{place}.image_url"
            if part.image_url is None:
                raise BadRequest(f"{where} is missing; it is needed.", where, "missing")
            found.append((where, part.image_url.url))
    return found


def _pixels(url: str, where: str, task: VisualAnswers) -> np.ndarray:
    """The picture of a data: URL at the size that the model reads [H W 3]."""
    match = DATA_URL.match(url[:64])
    if match is None:
        raise BadRequest(
            f"{where}.url begins with {url[:24]!r}, and this server fetches nothing; send the"
            " picture itself, as data:image/png;base64,….",
            where,
            "unsupported",
        )
    try:
        content = base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{where}.url is not base64.", where) from None
    try:
        image = decoded(content, "the picture", MOST_PIXELS)
    except ConfigError as error:
        raise BadRequest(f"{where}: {error}", where) from None
    return prepared(image, task.size, task.fit, task.cubic)
