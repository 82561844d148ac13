"""openai-python as a validator: `_strict_response_validation` holds each answer and each chunk to
OpenAI's types. Every endpoint, plain and streamed, by the blocking and by the async client.

A streamed answer has to be the same as the whole one with the same seed, and one of many that are
asked for at once the same as alone. Three things are read without the option, since OpenAI's own
answers do not have these types either: `finish_reason` is null in chunks of a completion, an echo's
first log-probability is null, and embeddings are base64 unless the client asks for numbers.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import openai
from openai_forms import NAMED, SCHEMA, TOKENS, TOOLS, Pet, is_object, is_pet
from openai_responses import responses
from tally import Tally, address

URL, MODEL = address()
TALLY = Tally("openai")
REASONS = {"stop", "length", "tool_calls"}
OPTIONS: dict[str, Any] = {
    "base_url": f"{URL}/v1",
    "api_key": "none",
    "max_retries": 0,
    "timeout": 300,
    "_strict_response_validation": True,
}
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "How many colours has a rainbow?"}]},
]
FORMS: dict[str, dict[str, Any]] = {
    "text": {},
    "stop": {"stop": ["e", "a"]},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True},
        }
    },
    "json_object": {"response_format": {"type": "json_object"}},
    "tools none": {"tools": TOOLS, "tool_choice": "none"},
    "tools auto": {"tools": TOOLS},
    "tools required": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    "tools parallel": {"tools": TOOLS, "tool_choice": "required"},
    "tool named": {"tools": TOOLS, "tool_choice": NAMED},
}


# --- chats


def cases() -> list[tuple[str, dict[str, Any]]]:
    """Every combination of a form, `n` and `logprobs`."""
    found = []
    scores = ({}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 5})
    for (form, more), n, score in itertools.product(FORMS.items(), (1, 3), scores):
        body = {"model": MODEL, "messages": MESSAGES, "seed": 7, "n": n, "max_tokens": TOKENS}
        told = f"chat {form}, n {n}, {score}"
        found.append((told, {**body, **score, **more}))
    return found


def joined(chunks: list[Any], told: str) -> dict[int, dict[str, Any]]:
    """What the chunks of a stream say of each choice."""
    said: dict[int, dict[str, Any]] = {}
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    TALLY.check(len(usages) == 1 and not chunks[-1].choices, f"{told}: usage comes last, once")
    TALLY.check(len({chunk.id for chunk in chunks}) == 1, f"{told}: one id")
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        one = said.setdefault(
            choice.index, {"text": "", "calls": {}, "scores": [], "reason": None, "role": None}
        )
        TALLY.check(one["reason"] is None, f"{told}: nothing follows the reason of the end")
        one["role"] = choice.delta.role or one["role"]
        one["text"] += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            known = one["calls"].setdefault(call.index, [call.id, call.function.name, ""])
            known[2] += call.function.arguments or ""
        one["scores"] += (choice.logprobs and choice.logprobs.content) or []
        one["reason"] = choice.finish_reason
    return said


def whole(answer: Any) -> dict[int, dict[str, Any]]:
    """What a whole answer says of each choice."""
    return {
        choice.index: {
            "text": choice.message.content or "",
            "calls": {
                i: [call.id, call.function.name, call.function.arguments]
                for i, call in enumerate(choice.message.tool_calls or [])
            },
            "scores": (choice.logprobs and choice.logprobs.content) or [],
            "reason": choice.finish_reason,
            "role": choice.message.role,
        }
        for choice in answer.choices
    }


def require_chat(told: str, body: dict[str, Any], said: dict[int, dict[str, Any]]) -> None:
    """Checks one answer against what was asked."""
    TALLY.check(sorted(said) == list(range(body["n"])), f"{told}: choices {sorted(said)}")
    for one in said.values():
        TALLY.check(one["reason"] in REASONS and one["role"] == "assistant", f"{told}: {one}")
        calls = list(one["calls"].values())
        TALLY.check(bool(calls) == (one["reason"] == "tool_calls"), f"{told}: {one}")
        for _, name, arguments in calls:
            TALLY.check(is_pet(arguments), f"{told}: {name} of {arguments}")
        if "json_schema" in told:
            TALLY.check(is_pet(one["text"]) and one["reason"] == "stop", f"{told}: {one['text']}")
        if "json_object" in told:
            TALLY.check(is_object(one["text"]), f"{told}: {one['text']}")
        if "tool named" in told or "tools required" in told:
            TALLY.check(len(calls) == 1, f"{told}: {calls}")
        if "tool named" in told:
            TALLY.check(calls and calls[0][1] == "remove", f"{told}: {calls}")
        require_scores(told, body, one)


def require_scores(told: str, body: dict[str, Any], one: dict[str, Any]) -> None:
    scores = one["scores"]
    TALLY.check(bool(scores) == bool(body.get("logprobs")), f"{told}: scores {len(scores)}")
    top = body.get("top_logprobs", 0)
    TALLY.check(all(len(s.top_logprobs) == top for s in scores), f"{told}: {top} alternatives")
    TALLY.check(all(s.logprob <= 0 for s in scores), f"{told}: ln p is at most 0")
    if scores and not one["calls"] and "stop" not in told:
        spelled = bytes(byte for score in scores for byte in score.bytes or [])
        told = f"{told}: bytes {spelled[:60]!r} of {one['text'][:60]!r}"
        TALLY.check(spelled.decode("utf-8", errors="replace") == one["text"], told)


def same(left: dict[int, dict[str, Any]], right: dict[int, dict[str, Any]]) -> bool:
    """Whether two answers say the same, but for the ids of calls."""

    def plain(said: dict[int, dict[str, Any]]) -> list[Any]:
        return [
            (
                one["text"],
                [call[1:] for call in one["calls"].values()],
                one["scores"],
                one["reason"],
            )
            for _, one in sorted(said.items())
        ]

    return plain(left) == plain(right)


STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def chats(client: openai.OpenAI) -> dict[str, dict[int, dict[str, Any]]]:
    """Asks one after the other."""
    answers = {}
    for told, body in cases():
        with TALLY.calling(told):
            answer = client.chat.completions.create(**body)
            said = answers[told] = whole(answer)
            require_chat(told, body, said)
            with client.chat.completions.create(**body, **STREAMED) as stream:
                streamed = joined(list(stream), f"{told}, streamed")
            require_chat(f"{told}, streamed", body, streamed)
            TALLY.check(same(said, streamed), f"{told}: {said} is streamed as {streamed}")
    return answers


async def async_chats(client: openai.AsyncOpenAI, before: dict[str, Any]) -> None:
    """Asks all at the same time, which must not change an answer."""

    async def one(told: str, body: dict[str, Any]) -> None:
        with TALLY.calling(f"{told}, async"):
            said = whole(await client.chat.completions.create(**body))
            stream = await client.chat.completions.create(**body, **STREAMED)
            streamed = joined([chunk async for chunk in stream], f"{told}, async")
            TALLY.check(same(said, streamed), f"{told}, async: {said} is streamed as {streamed}")
            TALLY.check(same(said, before[told]), f"{told}: alone {before[told]}, at once {said}")

    every = cases()
    for start in range(0, len(every), 16):
        await asyncio.gather(*(one(*case) for case in every[start : start + 16]))


# --- completions, embeddings, models


def texts(client: openai.OpenAI, loose: openai.OpenAI) -> None:
    """The older endpoint, which scores prompts too."""
    prompts = ("The cat", ["The cat", "A dog"], [84, 70], [[84, 70], [12]])
    scores = (None, 0, 5)
    for prompt, n, score, echo in itertools.product(prompts, (1, 2), scores, (False, True)):
        told = f"completion {prompt}, n {n}, logprobs {score}, echo {echo}"
        body = {"model": MODEL, "prompt": prompt, "n": n, "logprobs": score, "echo": echo}
        body |= {"seed": 3, "max_tokens": 12}
        with TALLY.calling(told):
            by = loose if echo and score is not None else client
            answer = by.completions.create(**body)
            many = 2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
            TALLY.check(len(answer.choices) == many * n, f"{told}: {len(answer.choices)} choices")
            with loose.completions.create(**body, **STREAMED) as stream:
                chunks = list(stream)
            for choice in answer.choices:
                parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
                TALLY.check("".join(p.text for p in parts) == choice.text, f"{told}: streamed")
                TALLY.check(parts[-1].finish_reason == choice.finish_reason, f"{told}: its end")
                require_lists(told, choice, score, echo)
    with TALLY.calling("completion best_of"):
        best = client.completions.create(model=MODEL, prompt="A", n=2, best_of=4, max_tokens=4)
        TALLY.check(len(best.choices) == 2, "best_of gives n")


def require_lists(told: str, choice: Any, score: int | None, echo: bool) -> None:
    if score is None:
        TALLY.check(choice.logprobs is None, f"{told}: no logprobs")
        return
    lists = choice.logprobs
    sizes = {len(lists.tokens), len(lists.token_logprobs), len(lists.text_offset)}
    TALLY.check(len(sizes | {len(lists.top_logprobs)}) == 1, f"{told}: lists of one length")
    TALLY.check((lists.token_logprobs[0] is None) == echo, f"{told}: the first follows nothing")
    TALLY.check(sorted(lists.text_offset) == lists.text_offset, f"{told}: {lists.text_offset}")


def others(client: openai.OpenAI, loose: openai.OpenAI) -> None:
    with TALLY.calling("models"):
        names = [one.id for one in client.models.list()]
        TALLY.check(MODEL in names, f"models: {names}")
        TALLY.check(client.models.retrieve(MODEL).id == MODEL, "model")
    for kind, given in itertools.product(
        ("float", "base64", None), ("A cat", ["a", "b"], [1, 2], [[1], [2, 3]])
    ):
        with TALLY.calling(f"embeddings {kind} {given}"):
            form = {} if kind is None else {"encoding_format": kind}
            by = client if kind == "float" else loose
            found = by.embeddings.create(model=MODEL, input=given, **form).data
            TALLY.check(
                len(found) == (2 if isinstance(given[0], list) or given == ["a", "b"] else 1)
            )
            if kind is None:
                length = sum(value**2 for value in found[0].embedding)
                TALLY.check(abs(length - 1) < 1e-3, f"embeddings: length {length}")


def helpers(client: openai.OpenAI) -> None:
    """The client's own helpers, which read answers more strictly than it does."""
    body: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 200, "seed": 1}
    with TALLY.calling("parse"):
        parsed = client.chat.completions.parse(**body, response_format=Pet)
        TALLY.check(isinstance(parsed.choices[0].message.parsed, Pet), "parse gives a Pet")
    with TALLY.calling("parse a tool's arguments"):
        tools = [openai.pydantic_function_tool(Pet)]
        parsed = client.chat.completions.parse(**body, tools=tools, tool_choice="required")
        call = parsed.choices[0].message.tool_calls[0]
        TALLY.check(isinstance(call.function.parsed_arguments, Pet), "a Pet as arguments")
    with TALLY.calling("stream helper"):
        with client.chat.completions.stream(**body, response_format=Pet) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        TALLY.check({"content.delta", "content.done", "chunk"} <= kinds, f"events {kinds}")
        TALLY.check(isinstance(final.choices[0].message.parsed, Pet), "a Pet at the end")
    with TALLY.calling("stream helper with tools"):
        tools = [openai.pydantic_function_tool(Pet)]
        with client.chat.completions.stream(**body, tools=tools, tool_choice="required") as stream:
            kinds = {event.type for event in stream}
        TALLY.check("tool_calls.function.arguments.done" in kinds, f"events {kinds}")
    with TALLY.calling("raw answer"):
        raw = client.chat.completions.with_raw_response.create(**body)
        TALLY.check(raw.parse().object == "chat.completion", "the raw answer is one")
    with TALLY.calling("the round of a tool"):
        answer = client.chat.completions.create(**body, tools=TOOLS, tool_choice=NAMED)
        message = answer.choices[0].message
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": "done"}
            for call in message.tool_calls
        ]
        talk = [*MESSAGES, message.model_dump(exclude_none=True), *results]
        client.chat.completions.create(**body | {"messages": talk, "max_tokens": 20}, tools=TOOLS)


def errors(client: openai.OpenAI) -> None:
    """Each error has its class, and the field that is wrong."""
    chat, talk = client.chat.completions.create, {"messages": MESSAGES}
    wrong: list[tuple[type[openai.APIStatusError], str | None, Any]] = [
        (openai.NotFoundError, "model", lambda: chat(model="nobody", **talk)),
        (openai.NotFoundError, "model", lambda: client.models.retrieve("nobody")),
        (openai.BadRequestError, "temperature", lambda: chat(model=MODEL, temperature=-1, **talk)),
        (openai.BadRequestError, "messages", lambda: chat(model=MODEL, messages=[])),
        (openai.BadRequestError, "top_logprobs", lambda: chat(model=MODEL, top_logprobs=2, **talk)),
        (openai.BadRequestError, "max_tokens", lambda: chat(model=MODEL, max_tokens=9**9, **talk)),
        (openai.BadRequestError, "input", lambda: client.responses.create(model=MODEL, input=[])),
        (
            openai.BadRequestError,
            "colour",
            lambda: chat(model=MODEL, extra_body={"colour": 1}, **talk),
        ),
    ]
    for kind, param, call in wrong:
        try:
            call()
            TALLY.check(False, f"{kind.__name__} of {param} was not raised")
        except openai.APIStatusError as error:
            TALLY.check(type(error) is kind and error.param == param, f"{param}: {error}")


def main() -> None:
    with openai.OpenAI(**OPTIONS) as client:
        answers = chats(client)
        loose = openai.OpenAI(**OPTIONS | {"_strict_response_validation": False})
        texts(client, loose)
        others(client, loose)
        responses(client, MODEL, TALLY)
        helpers(client)
        errors(client)

    async def at_once() -> None:
        async with openai.AsyncOpenAI(**OPTIONS) as client:
            await async_chats(client, answers)

    asyncio.run(at_once())
    TALLY.end()


if __name__ == "__main__":
    main()
