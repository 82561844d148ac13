"""`RewardModel`: a run that was trained to score texts judges answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gptjax.core.config import load_config, require
from gptjax.rewards.reward import Answered, Judge, RewardConfig


@dataclass(frozen=True)
class RewardModel(RewardConfig):
    """The score that a model trained with the loss `BradleyTerry` gives to prompt and answer.

    A prompt of messages (in the record's `messages` or `prompt`) is written by that model's chat
    template, and a text too if it was trained with `as_messages`. What is longer than its context
    cannot be judged.
    """

    path: str
    """Path of its run."""
    batch: int = 8
    """Number of answers that are read together."""
    weight: float = 1.0
    """Factor in the sum of rewards."""

    @property
    def models(self) -> Mapping[str, str]:
        """The reward model."""
        return {"reward": self.path}

    def build(self) -> Judge:
        """Returns the judge; loads the model.

        Raises:
          ConfigError: there is no such model, or it gives no score.
        """
        from gptjax.runs.open import open_model

        require(
            self.batch >= 1, f"a reward RewardModel has the batch {self.batch}; it needs 1 or more."
        )
        opened, file = open_model(self.path), Path(self.path) / "config.json"
        own = load_config(dict, file) if file.is_file() else {}
        source = (own.get("data") or {}).get("source") or {}
        return score_judge(opened, bool(source.get("as_messages")), self.batch, self.path)


def score_judge(opened: Any, as_messages: bool, batch: int, name: str) -> Judge:
    """Returns the judge that scores with an opened model.

    Args:
      as_messages: prompts that are texts are messages of a user.
      name: what errors call the model.

    Raises:
      ConfigError: the model gives no score.
    """
    from gptjax.data import Preferences
    from gptjax.data.tasks.chat import Writer, render_record
    from gptjax.generate.decode import padded_size
    from gptjax.generate.scores import score_pieces

    require(
        opened.config.classes == 1,
        f"{name} gives no score; name a run that was trained with --data.task.score and the loss"
        " BradleyTerry, as configs/reward_toy.py does.",
    )
    writer, size = Writer.of(opened.tokenizer), opened.tokenizer.vocab_size
    trained = opened.task.conversations
    task = cast(Preferences, opened.task) if trained else Preferences(score=True)

    def one(answered: Sequence[Answered]) -> list[float | None]:
        records = (_conversation(row, as_messages) for row in answered)
        ids = (render_record(record, writer, "last").ids for record in records)
        pieces = [task.piece(read, size, opened.config.context, with_encoder=False) for read in ids]
        widths = [padded_size(len(piece.tokens), opened.config.context) for piece in pieces]
        scores: list[float | None] = [None] * len(pieces)
        for width in sorted(set(widths)):  # else a longer neighbour would change the rounding
            rows = [row for row, own in enumerate(widths) if own == width]
            found = score_pieces(opened.config, opened.params, (pieces[row] for row in rows), batch)
            for row, score in zip(rows, found, strict=True):
                scores[row] = score
        return scores

    return one


def _conversation(row: Answered, as_messages: bool) -> Any:
    """The record of prompt and answer, as `Comparisons` would read it."""
    from gptjax.data.documents.conversations import Record

    prompt = row.record.get("messages") or row.record.get("prompt")
    messages = prompt if isinstance(prompt, list) else []
    if as_messages and not messages:
        messages = [{"role": "user", "content": row.prompt}]
    if not messages:
        return Record(prompt=row.prompt, text=row.answer)
    while messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]  # an answer that the record has
    answer = {"role": "assistant", "content": row.answer}
    return Record((*messages, answer), len(messages), tuple(row.record.get("tools") or ()))
