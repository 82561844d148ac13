"""The forms of answers that `openai_strict.py` and `openai_responses.py` ask for."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def tool(name: str) -> dict[str, Any]:
    function = {"name": name, "description": f"Does {name}.", "parameters": SCHEMA, "strict": True}
    return {"type": "function", "function": function}


TOOLS = [tool("register"), tool("remove")]
NAMED = {"type": "function", "function": {"name": "remove"}}
TOKENS = 160
"""Enough for the longest pet, a byte a token."""


class Pet(BaseModel):
    name: str
    age: int


def is_pet(text: str) -> bool:
    try:
        pet = json.loads(text)
    except ValueError:
        return False
    ages, kinds = range(100), ("cat", "dog")
    return set(pet) == {"name", "age", "kind"} and pet["age"] in ages and pet["kind"] in kinds


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
