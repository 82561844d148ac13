"""Texts about pictures: an answer to a question about some (`VisualAnswers`), or a text and the
picture that it belongs to (`PictureTexts`). Both need `Media` or `Shapes`.

Batches hold pixels, 8 bits a colour; the model cuts them into patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.idx import GREY, grey_pixels
from gptjax.data.documents.media import Pictured
from gptjax.data.documents.shapes import SCENE, draw_scene
from gptjax.data.documents.sources import Document
from gptjax.data.frames import FrameWriter
from gptjax.data.layouts import Batch, Piece, answer
from gptjax.data.packing import pack
from gptjax.data.rows import Plan, RowNumbers, packed_examples
from gptjax.data.store import Store
from gptjax.data.tasks.task import (
    RecordTask,
    Shape,
    answer_end,
    bounded,
    example_order,
    row_each,
)
from gptjax.data.tokenizers.tokenizer import Tokenizer


def named_picture(
    name: str,
    size: tuple[int, int],
    fit: Literal["stretch", "crop", "pad"] = "stretch",
    cubic: bool = False,
) -> np.ndarray:
    """Returns a picture of a document at a size (height, width), 8 bits a colour [H W 3].

    Args:
      name: a file, or a scene of `documents.shapes`, or a grey picture of `documents.idx`.
    """
    from gptjax.model.inputs.image import prepared  # most runs read no pictures
    from gptjax.model.inputs.image_files import read_image

    if name.startswith(SCENE):
        return draw_scene(name, size)
    image = grey_pixels(name) if name.startswith(GREY) else read_image(name)
    return prepared(image, size, fit, cubic)


@dataclass(frozen=True)
class _Pictures(RecordTask):
    """What both tasks know of pictures."""

    size: tuple[int, int] = (64, 64)
    """Height and width in pixels, as `model.vision.size`."""
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    """How a picture of another shape is brought to it."""
    cubic: bool = False
    """Pixels are interpolated by cubic curves instead of lines."""
    shift: int = 0
    """Pixels by which each training picture is shifted at random, another way each time; what is
    uncovered repeats the border."""
    flip: bool = False
    """Half of the training pictures are mirrored, others each time."""

    sources: ClassVar[tuple[str, ...]] = ("Media", "Shapes", "Idx")
    cuts: ClassVar[bool] = False

    @property
    def most_pictures(self) -> int:
        """Most pictures in a row."""
        return 1

    def __post_init__(self) -> None:
        require(
            0 <= self.shift < min(self.size),
            f"data.task.shift is {self.shift}; it needs 0 or more, less than the picture's side.",
        )

    def require_model(self, model: Any) -> None:
        """Refuses a model that reads no pictures, or those of another size."""
        require(
            model.vision is not None,
            f"data.task is {type(self).__name__} and the model reads no pictures; set model.vision"
            " in the config file.",
        )
        require(
            model.vision.size == self.size,
            f"data.task.size is {self.size} and model.vision.size {model.vision.size}; use one"
            " size.",
        )

    def texts(self, document: Document) -> tuple[str, ...]:
        """Returns the prompt and the answer."""
        record = Pictured.load(document.text)
        return tuple(text for text in (record.prompt, record.answer) if text)

    def num_bytes(self, document: Document) -> int:
        """Returns the bytes of UTF-8 of the answer."""
        return len(Pictured.load(document.text).answer.encode())

    @property
    def shown(self) -> tuple[int, ...]:
        """The shape of what a name stands for: a picture."""
        return (*self.size, 3)

    def frame_writer(self, path: Path) -> FrameWriter:
        """Returns what writes the pictures of documents into a store."""
        return FrameWriter(path, self.shown, "uint8", self._pixels_of)

    def _pixels_of(self, name: str) -> np.ndarray:
        return named_picture(name, self.size, self.fit, self.cubic)

    def pixels(self, store: Store, plan: Plan, at: RowNumbers) -> np.ndarray:
        """Returns the pictures of rows, 8 bits a colour [B I H W 3]; 0 where there is none."""
        pixels = np.zeros((len(at.row), self.most_pictures, *self.shown), np.uint8)
        draws = at.draws(plan.seed)
        for row, (examples, draw) in enumerate(zip(packed_examples(plan, at), draws, strict=True)):
            if not examples or store.frames is None:
                continue
            found = np.concatenate([store.frames.values(i) for i in examples])
            changed = found if plan.seed is None else self._changed(found, draw)
            pixels[row, : len(found)] = changed
        return pixels

    def _changed(self, pictures: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """The pictures of a row, shifted and mirrored at random."""
        by, (height, width) = self.shift, self.size
        if by:
            wide = np.pad(pictures, ((0, 0), (by, by), (by, by), (0, 0)), mode="edge")
            starts = draw.integers(0, 2 * by + 1, (len(pictures), 2))
            pictures = np.stack(
                [
                    one[top : top + height, left : left + width]
                    for one, (top, left) in zip(wide, starts, strict=True)
                ]
            )
        if self.flip:
            mirrored = draw.random(len(pictures)) < 0.5
            pictures = np.where(mirrored[:, None, None, None], pictures[:, :, ::-1], pictures)
        return pictures


@dataclass(frozen=True)
class VisualAnswers(_Pictures):
    """A question about pictures is answered, or a picture described. An example is a placeholder
    for each embedding of its pictures, the prompt, an id, and the answer with its end, of which
    alone is learned. Examples that share a row do not see each other.

    Source: Liu et al. 2023, LLaVA, arXiv:2304.08485, section 4.
    """

    tokens: int = 64
    """Embeddings that a picture becomes: patches / merge² of `model.vision`."""
    images: int = 1
    """Most pictures in a row; more need more memory."""
    picture: int | None = None
    """The placeholder, if it is an id of the tokenizer; `None` adds one to the vocabulary."""
    begin: int | None = None
    """The id before an answer, if it is one of the tokenizer's; `None` adds one. −1 where a model's
    files do not say how its prompts surround a picture."""
    blind: bool = False
    """All pictures are grey: a control of what can be answered without looking."""

    answers: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("accuracy", "exact_match")
    kind: ClassVar[str] = "pictures"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.tokens > 0 and self.images > 0,
            f"data.task.tokens is {self.tokens} and images {self.images}; each needs at least 1.",
        )

    def require_prompts(self) -> None:
        """Refuses a model of which nobody said how a prompt surrounds a picture."""
        require(
            self.begin != -1,
            "this model's files do not say how its prompts surround a picture, so it would misread"
            " a question; train it further with data.task VisualAnswers, or call model.look and"
            " model.forward with ids of your own.",
        )

    @property
    def most_pictures(self) -> int:
        """Most pictures in a row."""
        return self.images

    @property
    def frames_each(self) -> int:
        """Pictures that a name stands for."""
        return 1

    @property
    def tokens_each(self) -> int:
        """Embeddings of what a name stands for."""
        return self.frames_each * self.tokens

    @property
    def extra_ids(self) -> int:
        """The border before an answer, and the placeholder."""
        return 2

    @property
    def blank(self) -> list[int]:
        """An example without pictures."""
        return [0, 1, 0]

    def vocabulary(self, tokenizer: Tokenizer) -> int:
        """Returns the number of ids that the model has to know."""
        own = [n for n, given in enumerate((self.begin, self.picture), 1) if given is None]
        return tokenizer.vocab_size + max(own, default=0)

    def require_model(self, model: Any) -> None:
        """Refuses a model whose pictures become another number of embeddings."""
        super().require_model(model)
        require(
            model.vision.frames == self.frames_each,
            f"data.task {type(self).__name__} reads {self.frames_each} frames at once and"
            f" model.vision.frames is {model.vision.frames}; use one number (1 for pictures, and"
            " --data.task.frames of VideoAnswers for videos).",
        )
        require(
            model.vision.joint is None and model.vision.tokens == self.tokens,
            f"data.task.tokens is {self.tokens} and model.vision makes {model.vision.tokens}"
            " embeddings of a picture; use the same (--data.task.tokens"
            f" {model.vision.tokens}), without model.vision.joint.",
        )

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields each record as one example.

        Raises:
          ConfigError: a record has more pictures than a row may.
        """
        records = [Pictured.load(document.text) for document in documents]
        answers = tokenizer.encode_answers([record.answer for record in records])
        prompts = tokenizer.encode_all([record.prompt for record in records])
        for document, asked, written in zip(documents, prompts, answers, strict=True):
            count = len(document.pictures)
            if count > self.images:
                raise ConfigError(
                    f"{document.name} has {count} {self.kind}, and a row may have {self.images}"
                    f" (--data.task.images {count})."
                )
            read, border = self.read(asked, tokenizer.vocab_size, count), tokenizer.vocab_size
            ids = [read, [border], written, [answer_end(tokenizer)]]
            yield np.concatenate(ids).astype(np.int32)

    def read(self, ids: Sequence[int] | np.ndarray, vocab_size: int, count: int) -> np.ndarray:
        """Returns the ids of a store for some pictures and a prompt about them."""
        places = np.full(count * self.tokens_each, vocab_size + 1)
        return np.concatenate([places, np.asarray(ids, np.int32)]).astype(np.int32)

    def asked_about(self, ids: Sequence[int], tokenizer: Tokenizer, count: int) -> list[int]:
        """Returns what the model reads of a prompt about some pictures before it answers; the last
        id begins the answer."""
        size = tokenizer.vocab_size
        read = self._known(self.read(ids, size, count), size)
        return [*read.tolist(), self._begin(size)]

    def _begin(self, vocab_size: int) -> int:
        return vocab_size if self.begin is None else self.begin

    def _picture(self, vocab_size: int) -> int:
        return vocab_size + 1 if self.picture is None else self.picture

    def _known(self, ids: np.ndarray, vocab_size: int) -> np.ndarray:
        """The ids of a store as the model knows them."""
        return np.where(ids == vocab_size + 1, self._picture(vocab_size), ids)

    def sizes(self, store: Store, with_encoder: bool) -> np.ndarray:
        """Returns the positions that each example takes of a row, and its pictures as a share of
        those that fit [n 2]."""
        lengths = super().sizes(store, with_encoder)[:, 0]
        counts = np.zeros_like(lengths) if store.frames is None else store.frames.counts
        return np.stack([lengths, counts], axis=1)

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Packs the records into rows, in an order of the seed, so that neither positions nor
        pictures are too many."""
        sizes, room = self.sizes(store, plan.with_encoder), plan.width * self.images
        scaled = sizes * np.asarray([self.images, plan.width])
        return plan._replace(packing=pack(scaled, example_order(store, plan), room, cut=False))

    def piece(self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool) -> Piece:
        """Returns a record as a piece; only its answer is learned."""
        border = int(np.flatnonzero(ids == vocab_size)[0])
        read = self._known(ids[:border], vocab_size)
        return answer(read, ids[border + 1 :], self._begin(vocab_size), with_encoder=False)

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, with the columns `pixels` [B I H W 3] and `places`
        [B I·Q], where the embeddings of pictures stand. It depends on nothing else."""
        batch = super().batch(store, plan, at)
        size = store.header.vocab_size - self.extra_ids
        pixels = self.pixels(store, plan, at)
        pixels = np.full_like(pixels, 128) if self.blind else pixels
        places = self.places(np.asarray(batch.tokens), size)
        return batch._replace(columns={"pixels": pixels, "places": places})

    def places(self, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
        """Returns where the placeholders of rows stand [B I·Q], −1 for those that are not there."""
        places = np.full((len(tokens), self.images * self.tokens_each), -1, np.int32)
        for row, ids in enumerate(tokens):
            found = np.flatnonzero(ids == self._picture(vocab_size))
            places[row, : len(found)] = found
        return places

    def describe(self, store: Store) -> str:
        """Says how many answers there are, to how many pictures."""
        number = 0 if store.frames is None else store.frames.shape[0]
        count = f"{store.header.num_examples:,} answers"
        return f"{count} about {number:,} {self.kind}, loss on answers"


@dataclass(frozen=True)
class PictureTexts(_Pictures):
    """A picture and the text that belongs to it, one pair a row, for the loss `Contrastive`. A
    prompt stands before the text.

    Source: Radford et al. 2021, CLIP, arXiv:2103.00020, section 2.3.
    """

    shapes: ClassVar[tuple[Shape, ...]] = ("decoder", "encoder")
    figures: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "pair"
    batches: ClassVar[str] = "pictures and texts"

    def require_model(self, model: Any) -> None:
        """Refuses a model that does not compare pictures and texts."""
        super().require_model(model)
        require(
            model.vision.joint is not None,
            "data.task PictureTexts compares pictures with texts; set model.vision.joint.",
        )

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields the text of each record as one example.

        Raises:
          ConfigError: a record has several pictures.
        """
        for document in documents:
            require(
                len(document.pictures) == 1,
                f"{document.name} has {len(document.pictures)} pictures, and each text belongs to"
                " one; give records with one.",
            )
            record = Pictured.load(document.text)
            text = " ".join(part for part in (record.prompt, record.answer) if part)
            yield self.text_ids(text, tokenizer)

    def text_ids(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
        """Returns a text as the model compares it with pictures."""
        return bounded(tokenizer.encode(text), tokenizer)

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Gives each record a row, in an order of the seed."""
        return plan._replace(packing=row_each(store, plan))

    def piece(self, ids: np.ndarray, vocab_size: int, width: int, with_encoder: bool) -> Piece:
        """Returns a text as a piece, cut to `width`."""
        ids = ids[:width]
        return Piece(ids, np.zeros_like(ids), np.arange(len(ids)) == len(ids) - 1)

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, with the column `pixels` [B 1 H W 3]."""
        batch = super().batch(store, plan, at)
        columns = {"pixels": self.pixels(store, plan, at)}
        return batch._replace(segments=None, prefix=None, columns=columns)
