"""Random answers under a constraint without a model, the tokenizers they are spelled with, and the
schemas that Pydantic writes for ordinary models.
"""

from __future__ import annotations

import functools
import tempfile

import numpy as np

from gptjax.data import GPT2, Bytes, SentencePiece
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate.constraints.tokens import TokenAutomaton, spell

PROSE = "".join(
    f"def f{i}(x): return x + {i * i}  # né {{}} [] yes no (1+2)-3 2026-01-{i % 28 + 1:02} null"
    " true\n"
    for i in range(400)
)
SPELLERS = ("bytes", "SentencePiece", "BPE")


@functools.cache
def speller(name: str):
    """A tokenizer of each kind; those with merges have learned tokens that reach over the borders
    of the constraints."""
    if name == "bytes":
        return tokenizers.train_tokenizer(Bytes(), [])
    if name == "SentencePiece":
        return tokenizers.train_tokenizer(SentencePiece(vocab_size=400), [PROSE])
    from tokenizers import ByteLevelBPETokenizer

    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(
        [PROSE], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        learned.save_model(folder)
        return tokenizers.train_tokenizer(GPT2(folder), [])


def walk(automaton: TokenAutomaton, tokenizer, limit: int, draw: np.random.Generator) -> bytes:
    """A random answer of at most `limit` tokens, each drawn from those that are allowed."""
    spelled, end = spell(tokenizer), tokenizer.end_of_document
    state, answer = 0, bytearray()
    eagerness = draw.choice([0.02, 0.3])
    for written in range(limit):
        enough = limit - written >= automaton.need[state]
        masks = automaton.masks if enough else automaton.shortest
        bits = np.unpackbits(masks[automaton.mask[state]].view(np.uint8), bitorder="little")
        possible = np.flatnonzero(bits)
        assert len(possible), f"{bytes(answer)} cannot end within {limit} tokens"
        token = end if bits[end] and draw.random() < eagerness else int(draw.choice(possible))
        if token == end:
            return bytes(answer)
        for value in spelled[token][spelled[token] >= 0].tolist():
            state = automaton.table[state, value]
            assert state >= 0
            answer.append(value)
    assert automaton.masks[automaton.mask[state]][end // 32] >> end % 32 & 1, (
        f"{bytes(answer)} is not finished after {limit} tokens"
    )
    return bytes(answer)


CAT = {
    "type": "object",
    "properties": {"kind": {"const": "cat", "type": "string"}, "lives": {"type": "integer"}},
    "required": ["kind", "lives"],
}
DOG = {
    "type": "object",
    "properties": {"kind": {"const": "dog", "type": "string"}, "good": {"type": "boolean"}},
    "required": ["kind", "good"],
}


def model(required: bool = True, **properties) -> dict:
    """What Pydantic writes for a class with these fields."""
    return {
        "type": "object",
        "title": "Model",
        "properties": {name: {"title": name} | given for name, given in properties.items()},
    } | ({"required": list(properties)} if required else {})


PYDANTIC = {
    "plain fields": model(name={"type": "string"}, age={"type": "integer"}),
    "PositiveInt": model(n={"type": "integer", "exclusiveMinimum": 0}),
    "float between": model(p={"type": "number", "minimum": 0, "maximum": 1}),
    "date and datetime": model(
        day={"type": "string", "format": "date"}, at={"type": "string", "format": "date-time"}
    ),
    "UUID": model(id={"type": "string", "format": "uuid"}),
    "EmailStr": model(email={"type": "string", "format": "email"}),
    "tuple": model(
        point={
            "type": "array",
            "maxItems": 3,
            "minItems": 3,
            "prefixItems": [{"type": "integer"}, {"type": "number"}, {"type": "string"}],
        }
    ),
    "set of literals": model(
        tags={"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", "c"]}}
    ),
    "set of int": model(
        numbers={"type": "array", "uniqueItems": True, "items": {"type": "integer"}}
    ),
    "set of str": model(
        words={"type": "array", "uniqueItems": True, "items": {"type": "string"}, "minItems": 1}
    ),
    "discriminator": model(
        pet={
            "discriminator": {"propertyName": "kind"},
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        }
    )
    | {"$defs": {"Cat": CAT, "Dog": DOG | {"required": ["good"]}}},
    "Any and dict": model(anything={}, more={"type": "object", "additionalProperties": True}),
    "allOf": model(base={"allOf": [{"$ref": "#/$defs/Cat"}], "default": None})
    | {"$defs": {"Cat": CAT}, "allOf": [{"required": ["base"]}]},
    "patternProperties": model(
        scores={"type": "object", "patternProperties": {"^[a-z]+$": {"type": "integer"}}}
    ),
    "dict of few": model(
        m={
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "minProperties": 1,
            "maxProperties": 3,
        }
    ),
    "dict of enum": model(
        m={
            "type": "object",
            "propertyNames": {"enum": ["x", "y"]},
            "additionalProperties": {"type": "number"},
            "minProperties": 1,
        }
    ),
    "multipleOf": model(
        n={"type": "integer", "multipleOf": 5}, x={"type": "number", "multipleOf": 0.5}
    ),
    "pattern with lengths": model(
        code={"type": "string", "pattern": "^[A-Z]{2}[0-9]*$", "minLength": 4, "maxLength": 8}
    ),
    "recursion": {
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "children": {
                        "default": [],
                        "type": "array",
                        "items": {"$ref": "#/$defs/Node"},
                    },
                },
                "required": ["value"],
            }
        },
        "$ref": "#/$defs/Node",
    },
    "Enum and Optional": model(
        color={"$ref": "#/$defs/Color"},
        colors={
            "type": "array",
            "items": {"$ref": "#/$defs/Color"},
            "minItems": 1,
            "maxItems": 3,
        },
        opt={"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    )
    | {"$defs": {"Color": {"enum": ["red", "green"], "type": "string"}}},
    "Decimal, time, timedelta, HttpUrl, bytes": model(
        price={"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\d+(\.\d{2})?$"}]},
        t={"type": "string", "format": "time"},
        d={"type": "string", "format": "duration"},
        url={"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
        b={"type": "string", "format": "binary"},
    )
    | {"additionalProperties": False},
}
"""Ordinary Pydantic models, by what is special about them."""
