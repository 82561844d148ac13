"""litellm, which rewrites requests and answers between providers."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices

import litellm
from tally import Tally, address

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": SCHEMA,
    },
}


def tools(tally: Tally, talk: list[dict[str, str]], to: dict[str, Any]) -> None:
    """Calls, whole and streamed."""
    for choice in ("auto", "required", {"type": "function", "function": {"name": "weather"}}):
        with tally.calling(f"tools {choice}"):
            answer = litellm.completion(messages=talk, tools=[WEATHER], tool_choice=choice, **to)
            calls = answer.choices[0].message.tool_calls or []
            tally.check(choice == "auto" or calls, answer)
            tally.check(all("city" in json.loads(c.function.arguments) for c in calls), answer)
    with tally.calling("tools, streamed"):
        chunks = litellm.completion(
            messages=talk, tools=[WEATHER], tool_choice="required", stream=True, **to
        )
        built = litellm.stream_chunk_builder(list(chunks), messages=talk)
        tally.check("city" in built.choices[0].message.tool_calls[0].function.arguments, built)


def main() -> None:
    url, model = address()
    tally = Tally("litellm")
    litellm.suppress_debug_info = True
    talk = [{"role": "user", "content": "How is the weather?"}]
    to: dict[str, Any] = {
        "model": f"openai/{model}",
        "api_base": f"{url}/v1",
        "api_key": "none",
        "num_retries": 0,
        "timeout": 300,
        "max_tokens": 100,
    }
    with tally.calling("chat"):
        answer = litellm.completion(messages=talk, **to)
        tally.check(answer.choices[0].finish_reason in ("stop", "length"), answer)
        tally.check(answer.usage.total_tokens > 0, answer)
    with tally.calling("stream"):
        chunks = list(
            litellm.completion(
                messages=talk, stream=True, stream_options={"include_usage": True}, **to
            )
        )
        built = litellm.stream_chunk_builder(chunks, messages=talk)
        tally.check(built.choices[0].message.content, built)
    with tally.calling("n and logprobs"):
        answer = litellm.completion(messages=talk, n=3, logprobs=True, top_logprobs=2, **to)
        tally.check(len(answer.choices) == 3, answer)
        tally.check(answer.choices[2].logprobs.content[0].top_logprobs, answer)
    with tally.calling("json_schema"):
        form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
        answer = litellm.completion(messages=talk, response_format=form, **to)
        tally.check(set(json.loads(answer.choices[0].message.content)) == {"city"}, answer)
    tools(tally, talk, to)
    with tally.calling("completion"):
        answer = litellm.text_completion(
            **{**to, "model": f"text-completion-openai/{model}"}, prompt="The cat", logprobs=2
        )
        tally.check(answer.choices[0].logprobs.tokens, answer)
    with tally.calling("embedding"):
        found = litellm.embedding(
            input=["a", "b"], **{k: to[k] for k in ("model", "api_base", "api_key")}
        )
        tally.check(len(found.data) == 2, found)
    with tally.calling("async"):
        answer = asyncio.run(litellm.acompletion(messages=talk, **to))
        tally.check(answer.choices[0].message.role == "assistant", answer)
    try:
        litellm.completion(messages=talk, **{**to, "max_tokens": 10**6})
        tally.check(False, "too many tokens were taken")
    except litellm.BadRequestError as error:
        tally.check("max_tokens" in str(error), error)
    tally.end()


if __name__ == "__main__":
    main()
