"""Next-token prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.core.config import require
from gptjax.data.tasks.task import Task, bounded
from gptjax.data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class LanguageModel(Task):
    """Each token is predicted from those before it."""

    backward: bool = False
    """Read documents from their end to their beginning."""
    middle: float = 0.0
    """Share of documents whose middle is moved to their end (fill-in-the-middle). Source: Bavarian
    et al. 2022, arXiv:2207.14255, section 3."""

    writes: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("bits_per_byte",)

    def __post_init__(self) -> None:
        require(
            0 <= self.middle <= 1, f"data.task.middle is {self.middle}; it needs a share in [0, 1]."
        )

    @property
    def extra_ids(self) -> int:
        """Marks before prefix, suffix and middle."""
        return 3 if self.middle else 0

    def example(self, ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        """Returns the text, perhaps backward, perhaps with its middle last."""
        ids = ids[::-1] if self.backward else ids
        if self.middle and _draw(ids).random() < self.middle:
            ids = _middle_last(ids, tokenizer.vocab_size)
        return bounded(ids, tokenizer)


def _middle_last(ids: np.ndarray, first_mark: int) -> np.ndarray:
    """Mark, prefix, mark, suffix, mark, middle; cut at two random places."""
    begin, end = np.sort(_draw(ids, 1).integers(0, len(ids) + 1, 2))
    parts = [ids[:begin], ids[end:], ids[begin:end]]
    marked = [piece for i, part in enumerate(parts) for piece in ([first_mark + i], part)]
    return np.concatenate(marked).astype(np.int32)


def _draw(ids: np.ndarray, salt: int = 0) -> np.random.Generator:
    """Random numbers that depend on the document alone (its first 1,024 ids)."""
    content = np.ascontiguousarray(ids, np.int32).tobytes()[:4096].ljust(4, b"\0")
    return np.random.default_rng([salt, *np.frombuffer(content, np.uint32).tolist()])
