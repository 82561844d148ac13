"""langchain-openai: messages, streams, structured answers and tools."""

from __future__ import annotations

import asyncio

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field
from tally import Tally, address


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=8)
    people: int = Field(ge=0, le=99)


@tool
def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


def main() -> None:
    url, model = address()
    tally = Tally("langchain-openai")
    to = {"base_url": f"{url}/v1", "api_key": "none", "model": model, "max_retries": 0}
    chat = ChatOpenAI(**to, max_tokens=100, timeout=300)
    with tally.calling("invoke"):
        answer = chat.invoke("Hello")
        tally.check(answer.usage_metadata["total_tokens"] > 0, answer)
    with tally.calling("stream"):
        parts = list(chat.stream([("system", "Be brief."), ("human", "Hello")], stream_usage=True))
        tally.check("".join(part.text for part in parts), parts[-1])
        tally.check(sum(bool(part.usage_metadata) for part in parts) == 1, "usage, once")
    with tally.calling("batch"):
        tally.check(len(chat.batch(["a", "b", "c", "d"])) == 4, "four answers")
    with tally.calling("n and logprobs"):
        asked = chat.bind(logprobs=True, top_logprobs=3)
        scores = asked.invoke("Hello").response_metadata["logprobs"]["content"]
        tally.check(len(scores[0]["top_logprobs"]) == 3, scores[:1])
        made = chat.bind(n=2).generate([[HumanMessage("Hello")]])
        tally.check(made.generations, made)
    for method in ("json_schema", "function_calling"):
        with tally.calling(f"structured output by {method}"):
            city = chat.with_structured_output(City, method=method).invoke("Name a city")
            tally.check(isinstance(city, City), city)
    with tally.calling("structured output by json_mode"):
        found = chat.with_structured_output(None, method="json_mode").invoke("Name a city as JSON")
        tally.check(isinstance(found, dict), found)
    with tally.calling("tools"):
        asked = chat.bind_tools([weather], tool_choice="any")
        called = asked.invoke("How is the weather?")
        tally.check(called.tool_calls and not called.invalid_tool_calls, called)
        results = [
            ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
            for call in called.tool_calls[:1]
        ]
        first = called.model_copy(
            update={
                "tool_calls": called.tool_calls[:1],
                "additional_kwargs": {},
                "content": "",
            }
        )
        chat.bind_tools([weather]).invoke([HumanMessage("How is the weather?"), first, *results])
    with tally.calling("tools, streamed"):
        first, *parts = chat.bind_tools([weather], tool_choice="weather").stream("How is it?")
        whole = sum(parts, start=first)
        tally.check(whole.tool_calls[0]["name"] == "weather", whole)
    with tally.calling("completion"):
        tally.check(OpenAI(**to, max_tokens=10).invoke("The cat"), "a text")
    with tally.calling("embeddings"):
        vectors = OpenAIEmbeddings(**to, check_embedding_ctx_length=False).embed_documents(["a"])
        tally.check(len(vectors) == 1 and isinstance(vectors[0][0], float), vectors)
    with tally.calling("async stream"):

        async def parts_of() -> int:
            return len([part async for part in chat.astream("Hello")])

        tally.check(asyncio.run(parts_of()) > 1, "several parts")
    tally.end()


if __name__ == "__main__":
    main()
