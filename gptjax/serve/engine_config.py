"""How much an engine does at a time, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, get_args

from gptjax.core.config import require
from gptjax.model import KVCache

LOOK_SECONDS = 0.25
"""About how long rows write before clients get what was written, unless a token takes longer."""


@dataclass(frozen=True)
class EngineConfig:
    """How much an engine does at a time."""

    SYNONYMS: ClassVar[Mapping[str, str]] = {"int8_cache": "kv_cache"}
    """Old names."""

    slots: int = 8
    """Requests that are answered at the same time; the rest wait. Part of what an answer is
    computed with: another number may round otherwise."""
    context: int = 2048
    """Maximum number of tokens of a request, prompt and answer together, at most the model's."""
    cache_gib: float = 1.0
    """Memory for beginnings of prompts that were read before, in GiB; 0 keeps none."""
    kv_cache: KVCache = "full"
    """How keys and values are kept, of rows and of prefixes; see `GenerateConfig.kv_cache`."""
    max_waiting: int = 256
    """Requests that may wait; further ones are refused."""
    max_waiting_tokens: int = 1 << 20
    """Tokens of prompts that may wait; further ones are refused."""
    log: str | None = None
    """File to which the events of the scheduler are appended, as JSON lines without any text; a
    test can replay them."""

    def __post_init__(self) -> None:
        least = {
            "slots": 1,
            "context": 2,
            "max_waiting": 1,
            "max_waiting_tokens": 1,
            "cache_gib": 0,
        }
        for name, bound in least.items():
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            require(value >= bound, f"{name} is {value}; it needs at least {bound} ({flag}).")
        require(
            self.kv_cache in get_args(KVCache),
            f"kv_cache is {self.kv_cache}; it needs full, int8 or int4 (--kv-cache).",
        )
        require(
            self.max_waiting_tokens >= self.context,
            f"max_waiting_tokens is {self.max_waiting_tokens}, and one request may have"
            f" {self.context}; it needs at least as many (--max-waiting-tokens).",
        )


class Facts(NamedTuple):
    """What an engine has done and holds now."""

    rows: int
    writing: int
    reading: int
    waiting: int
    waiting_tokens: int
    prompt_tokens: int
    """Of all requests that began, those from the prefix cache included."""
    cached_tokens: int
    written_tokens: int
    steps: int
    """Calls of the program that writes, of up to 8 tokens a row each."""
    parts: int
    submitted: int
    finished: int
    cancelled: int
    rejected: int
    failed: int
    expired: int
    compiles: int
    """Programs that this process has compiled."""
    slot_bytes: int
    """Of keys and values of all rows, used or not."""
    cache_bytes: int
    cache_blocks: int
    seconds: float
    """Since it was opened."""
