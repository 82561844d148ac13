"""Metrics in Prometheus' text form, under the names that vLLM uses where it has the same.

Counts of requests and their times come from finished records (`observe`) and pieces (`Timing`); all
else is read from `engine.facts()` whenever somebody asks. No label is a text that a client chose.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from gptjax.serve.access import GONE, Record
from gptjax.serve.stream import Piece

GAUGES = {
    "writing": ("num_requests_running", "Requests that write an answer."),
    "reading": ("num_requests_reading", "Requests whose prompt is being read."),
    "waiting": ("num_requests_waiting", "Requests that wait for a slot."),
    "waiting_tokens": ("waiting_prompt_tokens", "Prompt tokens of the requests that wait."),
    "rows": ("slots", "Requests that can be answered at the same time."),
    "slot_bytes": ("slots_bytes", "Memory of the keys and values of all slots."),
    "cache_bytes": ("prefix_cache_bytes", "Memory of the kept beginnings of prompts."),
    "cache_blocks": ("prefix_cache_blocks", "Blocks of tokens among them."),
}
"""Fact → name and meaning, of what goes up and down."""

COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts, cached ones included."),
    "written_tokens": ("generation_tokens", "Tokens written."),
    "cached_tokens": ("prefix_cache_hits", "Tokens of prompts taken from the prefix cache."),
    "finished": ("request_success", "Requests that ended by themselves."),
    "cancelled": ("request_cancelled", "Requests whose client left."),
    "failed": ("request_failed", "Requests that failed inside the engine."),
    "rejected": ("request_rejected", "Requests that found too many others waiting."),
    "steps": ("engine_steps", "Steps of the engine."),
    "compiles": ("compiles", "Programs compiled since the start."),
}
"""Fact → name and meaning, of what only grows; each name ends in `_total`."""

FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
BETWEEN = (0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)
"""Borders of the histograms, in seconds."""

REASONS = {
    400: "bad_request",
    401: "key",
    403: "origin",
    404: "not_found",
    405: "method",
    408: "slow",
    413: "too_large",
    421: "host",
    429: "busy",
    GONE: "disconnected",
    503: "unavailable",
}
"""Status → reason of a request that got no whole answer."""


class Metrics:
    """The metrics of one server."""

    def __init__(self, engine: Any, model: str) -> None:
        """Args: `model` is the value of the label `model_name`."""
        self._registry = CollectorRegistry()
        self._engine, self._model = engine, model
        self._registry.register(self)  # type: ignore[arg-type]  # it has `collect`

        def histogram(name: str, meaning: str, borders: tuple[float, ...]) -> Histogram:
            made = Histogram(
                f"gptjax_{name}",
                meaning,
                ["model_name"],
                buckets=borders,
                registry=self._registry,
            )
            return made.labels(model)

        self.first = histogram("time_to_first_token_seconds", "Time to the first token.", FIRST)
        self.between = histogram("inter_token_latency_seconds", "Time between tokens.", BETWEEN)
        self.whole = histogram("e2e_request_latency_seconds", "Time of a whole request.", WHOLE)
        self._requests = Counter(
            "gptjax_http_requests",
            "Requests by status.",
            ["model_name", "status"],
            registry=self._registry,
        )
        self._refused = Counter(
            "gptjax_http_refused",
            "Requests without a whole answer, by reason.",
            ["model_name", "reason"],
            registry=self._registry,
        )

        self._moderated = Counter(
            "gptjax_moderated",
            "Requests that the content filter stopped, by where: input or output.",
            ["model_name", "where"],
            registry=self._registry,
        )

    def observe(self, record: Record) -> None:
        """Counts a finished request."""
        status = record["status"]
        if "moderated" in record:
            self._moderated.labels(self._model, record["moderated"]).inc()
        self._requests.labels(self._model, str(status)).inc()
        if status >= 400:
            self._refused.labels(self._model, REASONS.get(status, "error")).inc()
        elif "written_tokens" in record:
            self.whole.observe(record["seconds"])

    def text(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """What the registry asks for: the engine's facts."""
        facts = self._engine.facts()._asdict()
        for made, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for fact, (name, meaning) in table.items():
                if fact in facts:
                    family = made(f"gptjax_{name}", meaning, labels=["model_name"])
                    family.add_metric([self._model], facts[fact])
                    yield family


class Timing:
    """The times of one request's pieces."""

    def __init__(self, metrics: Metrics, record: Record) -> None:
        """Begins now."""
        self._metrics, self._record = metrics, record
        self._began = time.perf_counter()
        self._last: dict[int, float] = {}

    def take(self, number: int, piece: Piece) -> None:
        """Notes a piece of answer `number`."""
        now = time.perf_counter()
        if piece.ids and number not in self._last:
            self._metrics.first.observe(now - self._began)
            self._record.setdefault("first_token_seconds", round(now - self._began, 4))
        elif piece.ids:
            between = (now - self._last[number]) / len(piece.ids)
            for _ in piece.ids:
                self._metrics.between.observe(between)
        if piece.ids:
            self._last[number] = now
        if piece.usage is not None:
            record, usage = self._record, piece.usage
            record["prompt_tokens"] = record.get("prompt_tokens", 0) + usage.prompt
            record["cached_tokens"] = record.get("cached_tokens", 0) + usage.cached
            record["written_tokens"] = record.get("written_tokens", 0) + usage.written
        if piece.reason is not None:
            self._record.setdefault("reasons", []).append(piece.reason)
