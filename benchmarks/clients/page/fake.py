"""A server that speaks the protocol of `gptjax serve` without a model, for tests of the page.

It prints its address and runs until it is killed. The last message of a request says what happens:
`say TEXT` streams TEXT, `wait TEXT` does so slowly, and `busy`, `unready`, `breaks`, `cut` and
`long` stand for what can go wrong. A number in `seed` leads to an answer that repeats the request.
`--key KEY` makes every route ask for it.
"""

from __future__ import annotations

import argparse
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gptjax.serve import page

MODELS = ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct:sums")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    key: str = ""
    busy: int = 0

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        error = {"message": message, "type": "error", "param": None, "code": None}
        kind = {"Content-Type": "application/json", **(headers or {})}
        self.reply(status, json.dumps({"error": error}).encode(), kind)

    def allowed(self) -> bool:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.refuse(401, "A key is needed.", {"WWW-Authenticate": "Bearer"})
            return False
        return True

    def do_GET(self) -> None:
        name = self.path.split("?")[0].lstrip("/") or "index.html"
        if name in page.MEDIA_TYPES:
            kind = {"Content-Type": page.MEDIA_TYPES[name]}
            self.reply(200, page.page_file(name), page.HEADERS | kind)
        elif self.path != "/v1/models":
            self.refuse(404, "No such route.")
        elif self.allowed():
            data = [
                {"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in MODELS
            ]
            body = json.dumps({"object": "list", "data": data}).encode()
            self.reply(200, body, {"Content-Type": "application/json"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        asked = body["messages"][-1]["content"]
        if asked.startswith("busy") and Handler.busy == 0:
            Handler.busy += 1
            self.refuse(429, "8 requests are waiting.", {"Retry-After": "2"})
        elif asked.startswith("unready"):
            self.refuse(503, "The server is shutting down.", {"Retry-After": "30"})
        elif asked.startswith("refused"):
            self.refuse(400, "temperature is 9; use 0 to 2. <b>bold</b>")
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self.stream(body, asked)
            except (BrokenPipeError, ConnectionResetError):
                print("client left", flush=True)
                self.close_connection = True

    def stream(self, body: dict[str, Any], asked: str) -> None:
        text = asked.split(" ", 1)[-1] if " " in asked else asked
        if "seed" in body:
            text = json.dumps(body, ensure_ascii=False)
        slow = asked.startswith("wait ")
        self.chunk(body, {"role": "assistant", "content": ""})
        time.sleep(0.15)
        pieces = [text[i : i + 4] for i in range(0, len(text), 4)]
        for piece in pieces:
            self.chunk(body, {"content": piece})
            time.sleep(0.3 if slow else 0.004)
        if asked.startswith("breaks"):
            self.event({"error": {"message": "the engine failed.", "type": "server_error"}})
        elif asked.startswith("cut"):
            time.sleep(0.3)  # a browser may drop what it has not passed on when a connection ends
            self.close_connection = True
            self.connection.close()
            return
        else:
            self.chunk(body, {}, "length" if asked.startswith("long") else "stop")
            details = {"prompt_tokens_details": {"cached_tokens": 192}}
            usage = {"prompt_tokens": 212, "completion_tokens": len(pieces), **details}
            self.event({**self.head(body), "choices": [], "usage": usage})
        self.raw("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def head(self, body: dict[str, Any]) -> dict[str, Any]:
        known = {"id": "x", "object": "chat.completion.chunk", "created": 0}
        return {**known, "model": body["model"]}

    def chunk(self, body: dict[str, Any], delta: dict[str, str], reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        self.event({**self.head(body), "choices": [choice], "usage": None})

    def event(self, value: dict[str, Any]) -> None:
        """Sends an event in two halves, after a ping, so that the page has to join them."""
        data = f": ping\n\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"
        self.raw(data)

    def raw(self, text: str) -> None:
        data = text.encode()
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="")
    asked = parser.parse_args()
    Handler.key = asked.key
    server = ThreadingHTTPServer(("127.0.0.1", asked.port), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
