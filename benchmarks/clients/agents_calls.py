"""openai-agents: runs of agents with tools, with outputs of a type, and streamed, by chats and by
responses.
"""

from __future__ import annotations

import asyncio

from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel, Field
from tally import Tally, address


class City(BaseModel):
    name: str = Field(max_length=8)
    people: int = Field(ge=0, le=99)


CALLED: list[str] = []


@function_tool
def weather(city: str) -> str:
    """Tells the weather of a city."""
    CALLED.append(city)
    return f"sunny in {city}"


async def work(tally: Tally, model: Model) -> None:
    CALLED.clear()
    settings = ModelSettings(max_tokens=200, include_usage=True)
    plain = Agent(name="plain", instructions="Be brief.", model=model, model_settings=settings)
    with tally.calling("run"):
        found = await Runner.run(plain, "Hello")
        tally.check(isinstance(found.final_output, str), found)
        tally.check(found.context_wrapper.usage.total_tokens > 0, "usage")
    with tally.calling("run, streamed"):
        running = Runner.run_streamed(plain, "Hello")
        kinds = [event.type async for event in running.stream_events()]
        tally.check(kinds.count("raw_response_event") > 3, kinds)
        tally.check(isinstance(running.final_output, str), running)
    with tally.calling("conversation"):
        first = await Runner.run(plain, "Hello")
        talk = [*first.to_input_list(), {"role": "user", "content": "And now?"}]
        tally.check(isinstance((await Runner.run(plain, talk)).final_output, str), "an answer")
    typed = plain.clone(name="typed", output_type=City)
    with tally.calling("output of a type"):
        tally.check(isinstance((await Runner.run(typed, "A city")).final_output, City), "a City")
    with tally.calling("output of a type, streamed"):
        running = Runner.run_streamed(typed, "A city")
        async for _ in running.stream_events():
            pass
        tally.check(isinstance(running.final_output, City), "a City")
    forced = ModelSettings(max_tokens=200, tool_choice="required", parallel_tool_calls=False)
    using = plain.clone(
        name="using",
        tools=[weather],
        model_settings=forced,
        tool_use_behavior="stop_on_first_tool",
    )
    with tally.calling("tool"):
        found = await Runner.run(using, "How is the weather?")
        tally.check(str(found.final_output).startswith("sunny in"), found)
        tally.check(len(CALLED) == 1, CALLED)
    with tally.calling("tool, streamed"):
        running = Runner.run_streamed(using, "How is the weather?")
        async for _ in running.stream_events():
            pass
        tally.check(str(running.final_output).startswith("sunny in"), running)
    with tally.calling("tool, and an answer to what it gave"):
        again = using.clone(tool_use_behavior="run_llm_again", reset_tool_choice=True)
        found = await Runner.run(again, "How is the weather?", max_turns=20)
        tally.check(found.final_output is not None, found)


def main() -> None:
    url, model = address()
    set_tracing_disabled(True)
    tally = Tally("openai-agents")

    async def both() -> None:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
        for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
            await work(tally, kind(model=model, openai_client=client))

    asyncio.run(both())
    tally.end()


if __name__ == "__main__":
    main()
