"""Texts of what is heard: frames of sound are answered by a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gptjax.core.config import require
from gptjax.data.documents.media import Pictured
from gptjax.data.documents.sources import Document
from gptjax.data.frames import FrameWriter
from gptjax.data.layouts import Batch, Heard, Piece
from gptjax.data.rows import Plan, RowNumbers, packed_examples
from gptjax.data.store import Store
from gptjax.data.tasks.task import RecordTask, Shape, answer_end, row_each
from gptjax.data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Transcription(RecordTask):
    """What is said in a sound is written from its log-mel frames, which an encoder of frames reads:
    one sound a row. It needs `Media` with the names of sounds.

    An example is the ids before a text, the text and its end, of which alone is learned. Training
    changes the frames, another way each time: a function of seed and row number.

    Sources: Radford et al. 2022, Whisper, arXiv:2212.04356; masks: Park et al. 2019, SpecAugment,
    arXiv:1904.08779, section 2; bands: Jaitly and Hinton 2013, Vocal tract length perturbation.
    """

    begin: tuple[int, ...] = ()
    """Ids before a text, as Whisper's start, language and task; empty adds an id to the
    vocabulary."""
    frames: int = 3000
    """Frames of a sound, 10 ms each, as many as enter `model.frames`; silence follows shorter
    sounds."""
    mels: int = 80
    """Bands of a frame, as `model.frames.channels`."""
    ids: int = 0
    """Most ids of a text, with those before it; a longer one is cut. 0 is the model's context."""
    time_masks: int = 0
    """Number of stretches of time that are hidden in training."""
    time_width: int = 10
    """Frames of such a stretch, at most."""
    mel_masks: int = 0
    """Number of groups of bands that are hidden in training."""
    mel_width: int = 8
    """Bands of such a group, at most."""
    pitch: int = 0
    """Bands by which a training sound is moved up or down, at most."""
    delay: int = 0
    """Frames by which a training sound begins later, at most; its last ones are lost then."""
    stretch: float = 0.0
    """Share by which a training sound is spoken faster or slower, at most."""

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-decoder",)
    sources: ClassVar[tuple[str, ...]] = ("Media",)
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "exact_match")
    cuts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            all(i >= 0 for i in self.begin),
            f"data.task.begin is {self.begin}; it needs ids of the tokenizer.",
        )
        for name in ("ids", "time_masks", "time_width", "mel_masks", "mel_width", "pitch", "delay"):
            require(
                getattr(self, name) >= 0,
                f"data.task.{name} is {getattr(self, name)}; it needs 0 or more.",
            )
        require(
            self.time_width <= self.frames and max(self.mel_width, self.pitch + 1) <= self.mels,
            "data.task.time_width, mel_width or pitch is more than a sound has"
            f" ({self.frames} frames of {self.mels} bands).",
        )
        require(
            0 <= self.stretch < 1,
            f"data.task.stretch is {self.stretch}; it needs a share in [0, 1).",
        )

    def require_model(self, model: Any) -> None:
        """Refuses a model that hears nothing, or other frames."""
        require(
            model.frames is not None,
            "data.task is Transcription and the model hears nothing; set model.frames in the config"
            " file.",
        )
        have, need = (model.frames.entering, model.frames.channels), (self.frames, self.mels)
        require(
            have == need,
            f"data.task has {need[0]} frames of {need[1]} bands and {have[0]} of {have[1]} enter"
            " model.frames; use the same (--data.task.frames"
            f" {have[0]} --data.task.mels {have[1]}).",
        )

    @property
    def extra_ids(self) -> int:
        """The id before a text, where the tokenizer has none for it."""
        return 0 if self.begin else 1

    @property
    def blank(self) -> list[int]:
        """Ids of an example over a vocabulary of one."""
        return [*(0 for _ in self.begin or (0,)), 0]

    def border(self, tokenizer: Tokenizer) -> int:
        """Returns the id before a text."""
        return self.begin[0] if self.begin else tokenizer.vocab_size

    # --- documents to examples

    def texts(self, document: Document) -> tuple[str, ...]:
        """Returns what is said."""
        return (Pictured.load(document.text).answer,)

    def num_bytes(self, document: Document) -> int:
        """Returns the bytes of UTF-8 of what is said."""
        return len(self.texts(document)[0].encode())

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields each record as one example.

        Raises:
          ConfigError: a record has not exactly one sound.
        """
        for document in documents:
            require(
                len(document.pictures) == 1,
                f"{document.name} has {len(document.pictures)} sounds, and each text belongs to"
                " one; give records with one.",
            )
        before, end = self.begin or (tokenizer.vocab_size,), answer_end(tokenizer)
        texts = tokenizer.encode_answers([self._written(document) for document in documents])
        for ids in texts:
            yield np.concatenate([before, ids, [end]]).astype(np.int32)

    def _written(self, document: Document) -> str:
        """A text as it follows a start: Whisper's begin with a space."""
        text = self.texts(document)[0].strip()
        return f" {text}" if self.begin else text

    def frame_writer(self, path: Path) -> FrameWriter:
        """Returns what writes the frames of documents into a store."""
        return FrameWriter(path, (self.frames, self.mels), "float16", self._frames_of)

    def _frames_of(self, name: str) -> np.ndarray:
        """The frames of a sound file, silence behind the last."""
        from gptjax.model.inputs.audio import HOP, RATE, log_mel  # most runs hear nothing
        from gptjax.model.inputs.audio_files import read_sound

        samples, size = read_sound(name), self.frames * HOP
        require(
            len(samples) <= size,
            f"{name} has {len(samples) / RATE:.2f} seconds of sound and the model hears"
            f" {size / RATE:.2f}; cut it, or hear more (--data.task.frames"
            f" {-(-len(samples) // HOP)}, with model.frames.context to match).",
        )
        return log_mel(np.pad(samples, (0, size - len(samples))), self.mels)

    # --- a store to batches

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Gives each record a row, in an order of the seed."""
        width = min(self.ids or plan.width, plan.width)
        return plan._replace(packing=row_each(store, plan), width=width, length=width)

    def piece(self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool) -> Piece:
        """Returns a record as a piece, cut to `width`, of which the ids before a text are read."""
        ids = ids[: width + 1]
        read = max(len(self.begin), 1) - 1
        return Piece(ids[:-1], ids[1:], np.arange(len(ids) - 1) >= read)

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, with the frames that an encoder reads. It depends on
        nothing else."""
        batch = super().batch(store, plan._replace(with_encoder=False), at)
        values = np.zeros((len(at.row), self.frames, self.mels), np.float16)
        draws, examples = at.draws(plan.seed), packed_examples(plan, at)
        for row, (one, draw) in enumerate(zip(examples, draws, strict=True)):
            if one and store.frames is not None:
                (own,) = store.frames.values(one[0])
                values[row] = own if plan.seed is None else self._changed(own, draw)
        return batch._replace(segments=None, prefix=None, side=Heard(values))

    def _changed(self, frames: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """The frames of a training sound, at another speed, time and pitch, partly hidden."""
        frames, silence = frames.astype(np.float32), float(frames.min())
        if self.stretch:
            by = 1 + draw.uniform(-self.stretch, self.stretch)
            place = np.arange(self.frames) * by
            low = np.minimum(place.astype(int), self.frames - 1)
            share = (place - low)[:, None]
            high = np.minimum(low + 1, self.frames - 1)
            between = (1 - share) * frames[low] + share * frames[high]
            frames = np.where((place <= self.frames - 1)[:, None], between, silence)
        if self.delay:
            count = int(draw.integers(0, self.delay + 1))
            ahead = np.full((count, self.mels), silence)
            frames = np.concatenate([ahead, frames])[: self.frames]
        if self.pitch:
            by = int(draw.integers(-self.pitch, self.pitch + 1))
            moved = np.clip(np.arange(self.mels) - by, 0, self.mels - 1)
            frames = frames[:, moved]
        return self._masked(frames, draw)

    def _masked(self, frames: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """The frames, parts of which have their mean."""
        hidden = np.zeros(frames.shape, bool)
        masks = ((self.time_masks, self.time_width), (self.mel_masks, self.mel_width))
        for axis, (count, most) in enumerate(masks):
            for _ in range(count):
                width = int(draw.integers(0, most + 1))
                first = int(draw.integers(0, frames.shape[axis] - width + 1))
                part = slice(first, first + width)
                hidden[(slice(None),) * axis + (part,)] = True
        return np.where(hidden, frames.mean(), frames)

    def describe(self, store: Store) -> str:
        """Says how many sounds there are."""
        number = 0 if store.frames is None else store.frames.shape[0]
        return f"{store.header.num_examples:,} texts of {number:,} sounds"
