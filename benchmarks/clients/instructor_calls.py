"""instructor: answers as pydantic models, in each of its modes, without a second try."""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, Field
from tally import Tally, address


class Size(Enum):
    small = "small"
    large = "large"


class Part(BaseModel):
    name: str = Field(max_length=8)
    size: Size


class Machine(BaseModel):
    """A machine with its parts."""

    kind: Literal["pump", "lamp"]
    weight: int = Field(ge=0, le=9)
    parts: list[Part] = Field(max_length=2)
    note: str | None = Field(default=None, max_length=8)


def main() -> None:
    url, model = address()
    tally = Tally("instructor")
    logging.disable(logging.ERROR)  # each failure is told once, by the tally
    to = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, "timeout": 300}
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": "Describe a machine."}],
        "response_model": Machine,
        "max_retries": 0,
        "max_tokens": 300,
    }
    modes = (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA)
    for mode in modes:
        client = instructor.from_openai(openai.OpenAI(**to), mode=mode)
        for seed in range(3):
            with tally.calling(f"{mode}, seed {seed}"):
                found = client.chat.completions.create(**asked, seed=seed)
                tally.check(isinstance(found, Machine), found)
        with tally.calling(f"{mode}, partial"):
            last = list(client.chat.completions.create_partial(**asked))[-1]
            tally.check(last.kind in ("pump", "lamp"), last)
        with tally.calling(f"{mode}, with the answer"):
            found, answer = client.chat.completions.create_with_completion(**asked)
            tally.check(answer.usage.completion_tokens > 0, answer)

        async def at_once(mode: instructor.Mode) -> list[Machine]:
            client = instructor.from_openai(openai.AsyncOpenAI(**to), mode=mode)
            calls = [client.chat.completions.create(**asked, seed=seed) for seed in range(4)]
            return await asyncio.gather(*calls)

        with tally.calling(f"{mode}, async"):
            tally.check(len(asyncio.run(at_once(mode))) == 4, "four machines")
    tally.end()


if __name__ == "__main__":
    main()
