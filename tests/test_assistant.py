"""The assistant of examples/assistant.py, with scripted embeddings and a scripted model."""

from __future__ import annotations

import json
import runpy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from gptjax.data.tokenizers.tokenizer import Bytes, train_tokenizer

pytest.importorskip("bm25s", reason="needs the extra retrieval: pip install bm25s")
EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples/assistant.py"))
WORDS = ("card", "transfer", "pin", "exchange", "fee", "arrive", "children", "identity")


def embed(texts):
    """Counts of a few words, of length 1; other texts point elsewhere, entries to another place."""
    counts = np.array(
        [
            [
                *(text.lower().count(w) for w in WORDS),
                0.1 * (": " in text),
                0.1 * (": " not in text),
            ]
            for text in texts
        ]
    )
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def assistant():
    def last(messages, answers):
        assert messages[-1][0] == "user" and all(
            a.split(" [")[0] in messages[-1][1] for a in answers
        )
        return answers[-1]

    made = EXAMPLE["open_assistant"](last, train_tokenizer(Bytes(), []), embed)
    return made._replace(least=0.5, margin=0.3, budget=1500)


def test_an_answer_cites_an_entry_that_was_read_and_nothing_is_said_of_other_questions(assistant):
    said = EXAMPLE["reply"](assistant, "Can children have an account?")
    assert said.cited == said.passages[-1:] and len(said.passages) >= 1
    assert assistant.entries[said.passages[0]]["intents"] == ["age_limit"]
    assert EXAMPLE["reply"](assistant, "Who wrote Hamlet?") == (EXAMPLE["UNKNOWN"], [], [])


def test_every_intent_is_in_one_entry():
    lines = EXAMPLE["FAQ"].read_text(encoding="utf-8").splitlines()
    intents = [intent for line in lines for intent in json.loads(line)["intents"]]
    assert len(lines) == 40 and len(intents) == len(set(intents))


def test_a_server_is_asked_for_one_of_the_quotes(assistant):
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers["content-length"])
            asked.append((self.path, json.loads(self.rfile.read(size))))
            said = asked[-1][1]["structured_outputs"]["choice"][0]
            body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        ask = EXAMPLE["remote"](f"http://127.0.0.1:{server.server_port}")
        said = EXAMPLE["reply"](assistant._replace(ask=ask), "My card: when does it arrive?")
        server.shutdown()
    path, body = asked[0]
    assert path == "/v1/chat/completions" and body["messages"][0]["role"] == "system"
    assert said.cited == said.passages[:1] and said.text in body["structured_outputs"]["choice"]

    from gptjax.serve.bodies import ChatBody
    from gptjax.serve.fields import read_fields

    read, ignored = read_fields(ChatBody, body)
    assert not ignored and len(read.messages) == len(body["messages"])
