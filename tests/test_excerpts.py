"""Laws of excerpts: an answer is a run of whole words of a text."""

from __future__ import annotations

import random
import re

import jax
import pytest

from gptjax import model
from gptjax.api import Model
from gptjax.core.config import ConfigError
from gptjax.data.tokenizers.tokenizer import Bytes, train_tokenizer
from gptjax.generate.constraints.automaton import compile_language
from gptjax.generate.constraints.excerpts import excerpt

TEXT = "A cat saw a cat.  The cat, in 1981, saw\nno dog: a cat saw a dog. Straße ängstlich 猫!"


def units(text):
    return re.findall(r"\w+|[^\w\s]", text)


def spans(text):
    """All runs of units, as the text spells them with single spaces."""
    flat = " ".join(text.split())
    borders = [(m.start(), m.end()) for m in re.finditer(r"\w+|[^\w\s]", flat)]
    return {flat[a:b] for i, (a, _) in enumerate(borders) for _, b in borders[i:]}


def test_every_run_of_words_is_an_excerpt_and_nothing_else_is():
    automaton, known = compile_language(excerpt(TEXT)), spans(TEXT)
    assert all(automaton.accepts(run.encode()) for run in known)
    assert all(automaton.accepts(f" {run}".encode()) for run in known)
    draw = random.Random(0)
    words = sorted({unit for run in known for unit in run.split(" ")})
    for _ in range(3000):
        made = " ".join(draw.choices(words, k=draw.randint(1, 4)))
        assert automaton.accepts(made.encode()) == (made in known), made
    for wrong in ("", " ", "ca", "cat saw a cat. The", "at saw", "A cat saw a dog. A"):
        assert automaton.accepts(wrong.encode()) == (wrong in known), wrong


def test_the_automaton_grows_with_the_text_and_not_with_its_excerpts():
    draw, sizes = random.Random(0), []
    for count in (100, 200, 400):
        text = " ".join("".join(draw.choices("abc", k=draw.randint(1, 4))) for _ in range(count))
        sizes.append(len(compile_language(excerpt(text)).table))
    assert sizes[1] < 2.5 * sizes[0] and sizes[2] < 2.5 * sizes[1]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_model_prefers_its_answer_is_an_excerpt(seed):
    config = model.ModelConfig(vocab_size=257, context=128, width=32, num_layers=1, num_heads=4)
    one = Model(config, model.init(config, jax.random.key(seed)), train_tokenizer(Bytes(), []))
    answers = one.complete(
        ["q"], excerpt=TEXT, temperature=1.5, top_p=1.0, new_tokens=60, num_samples=4, seed=seed
    )
    assert {done.text.strip() for done in answers} <= spans(TEXT)
    assert all(done.end is not None for done in answers)


def test_a_text_without_words_is_refused():
    with pytest.raises(ConfigError, match="excerpt is empty"):
        excerpt(" \n")
