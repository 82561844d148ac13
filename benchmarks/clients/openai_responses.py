"""OpenAI's newer endpoint by openai-python, plain and streamed; `openai_strict.py` calls this."""

from __future__ import annotations

from typing import Any

import openai
from openai_forms import SCHEMA, TOKENS, TOOLS, Pet, is_pet
from tally import Tally

FUNCTIONS = [{"type": "function", **one["function"]} for one in TOOLS]
PET = {"format": {"type": "json_schema", "name": "pet", "schema": SCHEMA, "strict": True}}
RESPONSES: dict[str, dict[str, Any]] = {
    "text": {},
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
    "json_schema": {"text": PET},
    "json_object": {"text": {"format": {"type": "json_object"}}},
    "tools auto": {"tools": FUNCTIONS},
    "tools required": {"tools": FUNCTIONS, "tool_choice": "required"},
    "tool named": {"tools": FUNCTIONS, "tool_choice": {"type": "function", "name": "remove"}},
}


def spoken(response: Any) -> list[Any]:
    """What a response says, without ids."""
    return [
        (item.name, item.arguments) if item.type == "function_call" else item.content[0].text
        for item in response.output
    ]


def responses(client: openai.OpenAI, model: str, tally: Tally) -> None:
    """The newer endpoint, with the chat's forms."""
    body = {"model": model, "input": "Name a pet.", "max_output_tokens": TOKENS, "temperature": 0}
    for form, more in RESPONSES.items():
        with tally.calling(f"response {form}"):
            whole = client.responses.create(**body, **more)
            with client.responses.create(**body, **more, stream=True) as stream:
                events = list(stream)
            numbers = [event.sequence_number for event in events]
            tally.check(numbers == list(range(len(events))), f"response {form}: {numbers}")
            last = events[-1]
            tally.check(last.type == f"response.{whole.status}", f"response {form}: {last.type}")
            tally.check(spoken(last.response) == spoken(whole), f"response {form}: {whole.output}")
            parts = "".join(e.delta for e in events if e.type == "response.output_text.delta")
            tally.check(parts == whole.output_text, f"response {form}: {parts}")
            calls = [one for one in spoken(whole) if isinstance(one, tuple)]
            tally.check(all(is_pet(arguments) for _, arguments in calls), f"{form}: {calls}")
            needs = form in ("tools required", "tool named")
            tally.check(calls or not needs, f"response {form}: {whole.output}")
            tally.check(form != "json_schema" or is_pet(whole.output_text), whole.output_text)
    with tally.calling("response parse"):
        parsed = client.responses.parse(**body, text_format=Pet)
        tally.check(isinstance(parsed.output_parsed, Pet), "parse gives a Pet")
    with tally.calling("the round of a tool in responses"):
        called = client.responses.create(**body, **RESPONSES["tool named"]).output[0]
        result = {"type": "function_call_output", "call_id": called.call_id, "output": "done"}
        talk = [{"role": "user", "content": "Name a pet."}, called.model_dump(), result]
        client.responses.create(**body | {"input": talk}, tools=FUNCTIONS)
