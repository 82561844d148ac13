"""Constraints that a process of its own compiles, within a time."""

from __future__ import annotations

import asyncio
import time

import jax
import numpy as np
import pytest

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.data import Bytes
from gptjax.data.tokenizers.tokenizer import train_tokenizer
from gptjax.generate import GenerateConfig
from gptjax.generate.batch import automaton_of
from gptjax.generate.constraints import compiled
from gptjax.generate.request import requests
from gptjax.serve.constraints import WAITING, Compiler
from gptjax.serve.stream import Busy

TOKENIZER = train_tokenizer(Bytes(), [])

BOMB = "(.{0,40}x){8}y"
"""Takes some seconds to compile."""


@pytest.fixture(scope="module")
def compiler():
    made = Compiler(TOKENIZER, seconds=20)
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("kind", "source", "banned"),
    [
        ("regex", "[ab]{3}|c", frozenset()),
        ("regex", "[ab]{3}|c", frozenset([ord("a")])),
        ("choices", ("yes", "no"), frozenset()),
        ("schema", '{"type": "integer"}', frozenset()),
    ],
)
def test_the_child_compiles_what_the_library_compiles(compiler, kind, source, banned):
    theirs = compiler.compile_within(kind, source, banned)
    jax.tree.map(np.testing.assert_array_equal, theirs, compiled(kind, source, TOKENIZER, banned))
    assert compiler.compile_within(kind, source, banned) is theirs


def test_the_child_refuses_in_the_words_of_the_library(compiler):
    for kind, source in (("regex", "("), ("schema", "{"), ("regex", "(a{1000}){1000}")):
        with pytest.raises(ConfigError) as ours:
            compiled(kind, source, TOKENIZER)
        with pytest.raises(ConfigError) as theirs:
            compiler.compile_within(kind, source)
        assert str(theirs.value) == str(ours.value)


def test_a_constraint_that_takes_too_long_is_refused_in_time_and_the_next_one_compiled():
    compiler = Compiler(TOKENIZER, seconds=0.05)
    compiler.start()
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"more than 0\.05 seconds"):
        compiler.compile_within("regex", BOMB)
    assert time.monotonic() - began < 1
    compiler._seconds = 20
    try:
        found = compiler.compile_within("regex", "ab").least
    except ConfigError as error:
        found = str(error)
    assert found == 2
    child = compiler._child
    compiler.close()
    assert not child.is_alive()


def test_too_many_waiting_constraints_are_told_to_come_again(compiler):
    compiler._waiting = WAITING
    try:
        with pytest.raises(Busy):
            compiler.compile_within("regex", "never seen")
    finally:
        compiler._waiting = 0


def test_a_request_carries_its_automaton(compiler):
    config = model.small("tiny", vocab_size=TOKENIZER.vocab_size, context=32)
    settings = GenerateConfig(regex="[xy]+z", banned=(ord("x"),))
    (plain,) = requests(config, TOKENIZER, ["a"], settings)
    prepared = asyncio.run(compiler.prepared(plain))
    assert automaton_of(config, TOKENIZER, prepared, []) is prepared.automaton
    own = automaton_of(config, TOKENIZER, plain, [])
    jax.tree.map(np.testing.assert_array_equal, prepared.automaton, own)
    with pytest.raises(ConfigError, match="room for"):
        tight = prepared._replace(settings=GenerateConfig(new_tokens=1, regex="[xy]+z"))
        automaton_of(config, TOKENIZER, tight, [])
