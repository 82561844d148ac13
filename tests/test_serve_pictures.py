"""Laws of pictures that come over HTTP: an answer is the one that the library gives, whoever else
is served; two pictures share no prefix; and nothing is fetched."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading

import jax
import numpy as np
import pytest

from gptjax import model
from gptjax.api import Model
from gptjax.data import Characters, VideoAnswers, VisualAnswers
from gptjax.data.tokenizers.tokenizer import train_tokenizer
from gptjax.model import ModelConfig, Vision
from gptjax.model.inputs.image_files import save_png
from gptjax.serve import asks
from gptjax.serve.prefixes import block_keys
from gptjax.serve.protocol import BadRequest, Call, Served, Stamp, served_model
from gptjax.serve.slots import PART

SIZE, CONTEXT = (8, 12), 256
TOKENIZER = train_tokenizer(Characters(), ["abcdefghijklmnopqrstuvwxyz ?"])
TASK = VisualAnswers(SIZE, tokens=6, images=2)
CONFIG = ModelConfig(
    vocab_size=TASK.vocabulary(TOKENIZER),
    context=CONTEXT,
    width=32,
    num_layers=2,
    num_heads=4,
    positions="rope",
    vision=Vision(SIZE, patch=4, num_layers=1, width=16, num_heads=2, projector="mlp"),
)
PARAMS = jax.jit(model.init, static_argnums=0)(CONFIG, jax.random.key(0))
PARAMS["vision"] = jax.tree.map(lambda leaf: 4 * leaf, PARAMS["vision"])  # pictures are told apart
SEEING = Model(CONFIG, PARAMS, TOKENIZER, task=TASK)
SERVED = served_model("looker", CONFIG, TOKENIZER, context=CONTEXT, task=TASK)
STAMP = Stamp("00ff", 1_800_000_000, 77)
PICTURES = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)
LONG = "what is shown here? " * 8
"""More than one part of the prefix cache, with the embeddings of a picture."""


def url(picture: np.ndarray, tmp_path) -> str:
    save_png(tmp_path / "x.png", picture)
    return "data:image/png;base64," + base64.b64encode((tmp_path / "x.png").read_bytes()).decode()


def about(text: str, *urls: str) -> list[dict]:
    shown = [{"type": "image_url", "image_url": {"url": one, "detail": "low"}} for one in urls]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def chat(messages: list[dict], served: Served = SERVED, **body) -> Call:
    body = {"messages": messages, "temperature": 0, "max_tokens": 12, **body}
    return asks.read_chat(json.dumps(body).encode(), served, STAMP)


def answered(engine, call: Call) -> tuple[str, list[int], list[float]]:
    pieces = list(engine.submit(call.asks[0]))
    return (
        "".join(piece.text for piece in pieces),
        [i for piece in pieces for i in piece.ids],
        [x for piece in pieces for x in piece.logprobs],
    )


@pytest.fixture(scope="module")
def engine():
    with SEEING.engine(slots=3, context=CONTEXT) as opened:
        yield opened


def test_an_answer_is_the_librarys_alone_and_among_others_to_the_bit(engine, tmp_path):
    urls = [url(one, tmp_path) for one in PICTURES]
    calls = [
        chat(about(text, *shown))
        for text in ("what is abc?", LONG)
        for shown in (urls[:1], urls[1:2], urls[:2])
    ]
    alone = [answered(engine, call) for call in calls]
    together: list = [None] * len(calls)

    def ask(number: int) -> None:
        together[number] = answered(engine, calls[number])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    for call, (text, ids, logprobs) in zip(calls, alone, strict=True):
        shown = list(call.asks[0].shown.pixels)
        wanted = SEEING.answer(shown, call.texts[0], new_tokens=12, temperature=0.0)
        assert (text, ids) == (wanted.text, wanted.ids)
        np.testing.assert_allclose(logprobs, wanted.logprobs, atol=2e-5)
    assert len({tuple(x) for _, _, x in alone}) == len(calls), "every picture counts"


def test_two_pictures_with_the_same_text_share_no_prefix(tmp_path):
    """The second is answered from its own embeddings; the first, asked again, from the cache."""
    first, second = (chat(about(LONG, url(one, tmp_path))) for one in PICTURES[:2])
    assert len(first.asks[0].request.ids) > PART
    with SEEING.engine(slots=2, context=CONTEXT, cache_gib=0.0) as fresh:
        wanted = [answered(fresh, call) for call in (first, second)]
    with SEEING.engine(slots=2, context=CONTEXT) as caching:
        before = answered(caching, first)
        other = answered(caching, second)
        cached = caching.facts().cached_tokens
        again = answered(caching, first)
        assert (before, other) == tuple(wanted) and again == before
        assert cached == 0 and caching.facts().cached_tokens == PART
    assert wanted[0] != wanted[1]
    ids = [0] * PART
    keys = {tuple(block_keys(ids, model="m", shown=shown)) for shown in (b"", b"a", b"b")}
    assert len(keys) == 3


def test_texts_beside_pictures_are_answered_as_without_them(engine, tmp_path):
    """A model that reads pictures reads plain texts by the same programs."""
    body = {"prompt": "abc what", "temperature": 0, "max_tokens": 12}
    plain = asks.read_completion(json.dumps(body).encode(), SERVED, STAMP)
    with SEEING.engine(slots=3, context=CONTEXT) as other:
        alone = answered(other, plain)
    answered(engine, chat(about(LONG, url(PICTURES[0], tmp_path))))
    assert answered(engine, plain) == alone


BLIND = served_model("reader", dataclasses.replace(CONFIG, vision=None), TOKENIZER, context=CONTEXT)
WATCHER = served_model(
    "watcher", CONFIG, TOKENIZER, context=CONTEXT, task=VideoAnswers(SIZE, tokens=6, frames=2)
)
REFUSED = {
    "an address": (SERVED, "http://example.org/a.png", "this server fetches nothing"),
    "a safe address": (SERVED, "https://example.org/a.png", "this server fetches nothing"),
    "a file": (SERVED, "file:///etc/passwd", "this server fetches nothing"),
    "another kind": (SERVED, "data:text/html;base64,AAAA", "this server fetches nothing"),
    "no base64": (SERVED, "data:image/png;base64,%%%", "is not base64"),
    "no picture": (SERVED, "data:image/png;base64,AAAA", "the picture is no"),
    "nothing": (SERVED, "data:image/png;base64,", "picture"),
    "a model that does not see": (BLIND, None, "the model 'reader' does not answer questions"),
    "a model of videos": (WATCHER, None, "the model 'watcher' does not answer questions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_is_refused_in_one_line(name, tmp_path):
    served, given, words = REFUSED[name]
    with pytest.raises(BadRequest, match=words) as found:
        chat(about("what", given or url(PICTURES[0], tmp_path)), served)
    assert found.value.status == 400 and "\n" not in str(found.value)
    assert found.value.param.startswith("messages")


def test_pictures_that_are_huge_or_too_many_and_conversations_are_refused(tmp_path):
    good = url(PICTURES[0], tmp_path)
    huge = url(np.zeros((3000, 2000, 3), np.uint8), tmp_path)
    assert len(huge) < 50_000, "a short body can hold a large picture"
    with pytest.raises(BadRequest, match=r"says 2000 × 3000 pixels; at most 4,194,304 are read"):
        chat(about("what", huge))
    with pytest.raises(BadRequest, match="there are 3 pictures, and this model reads 2"):
        chat(about("what", good, good, good))
    with pytest.raises(BadRequest, match="is one message of the user"):
        chat([{"role": "system", "content": "a"}, *about("what", good)])
    with pytest.raises(BadRequest, match="prompt_logprobs can't be joined with pictures"):
        chat(about("what", good), prompt_logprobs=1)
    with pytest.raises(BadRequest, match="the prompt has") as found:
        chat(about(LONG * 2, good))
    assert found.value.code == "context_length_exceeded"
