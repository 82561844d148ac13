"""Serves a model over HTTP and talks to it as any client of OpenAI's interface would.

    python examples/serve_model.py runs/examples/chats   (half a minute, after finetune_chats.py)

The server is a process of its own on a free port of this machine; nobody else can reach it. Four
clients ask at once, then one asks alone: the answers are the same, to the bit, whoever else is
served. Needs `pip install -e '.[serve]'`. What to type next:

    gptjax serve smollm2                        (a real model, with a page to talk to it)
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

QUESTIONS = ["What is 3 and 4?", "What is 9 and 9?", "What is 0 and 5?", "What is 8 and 6?"]


@contextmanager
def serving(run: str) -> Iterator[str]:
    """Starts a server, gives its address, and ends it."""
    command = [sys.executable, "-m", "gptjax", "serve", run, "--port", "0", "--no-access-log"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://[\d.]+:\d+", line):
                yield found[0]
                return
        raise SystemExit(f"the server has ended with status {process.wait()}")
    finally:
        process.terminate()
        process.wait()


def ask(url: str, name: str, question: str, **settings: Any) -> Any:
    """Posts a conversation of one message; returns the open answer."""
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0} | settings
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body | {"model": name, "max_tokens": 24}).encode(),
        {"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=60)


def text_of(url: str, name: str, question: str) -> str:
    """The whole answer."""
    with ask(url, name, question) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def main(run: str) -> None:
    """Serves a run and asks it."""
    with serving(run) as url:
        with urllib.request.urlopen(f"{url}/v1/models") as answer:
            name = json.load(answer)["data"][0]["id"]
        print(f"{name} at {url}\n")

        # Four clients at the same time share the steps of one running batch.
        with ThreadPoolExecutor(4) as clients:
            together = list(clients.map(lambda question: text_of(url, name, question), QUESTIONS))
        for question, said in zip(QUESTIONS, together, strict=True):
            print(f"{question}  {said}")
        alone = [text_of(url, name, question) for question in QUESTIONS]
        print(f"asked alone, {sum(map(str.__eq__, alone, together))} of 4 answers are the same\n")

        # The same as a stream: a line of JSON for each piece, as it is written.
        with ask(url, name, QUESTIONS[0], stream=True) as lines:
            for line in lines:
                if line.startswith(b"data: {"):
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    print(delta.get("content") or "", end="|", flush=True)
        print()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/chats")
