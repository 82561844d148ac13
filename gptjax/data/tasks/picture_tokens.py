"""Pictures as tokens behind their captions: predicted one after another (`PictureTokens`), or a
masked share from all others (`MaskedPictureTokens`).

A picture is spelled as text, one character a pixel from the upper left, so that every tokenizer of
characters, store, loss, sampler and command works as for text. Read `spelled` and `unspelled`, then
the two tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.media import Pictured
from gptjax.data.documents.sources import Document
from gptjax.data.layouts import Batch, Piece, filled
from gptjax.data.rows import Plan, RowNumbers, example_ids, packed_examples
from gptjax.data.store import Store
from gptjax.data.tasks.diffusion import NOISED, Noise
from gptjax.data.tasks.pictures import named_picture
from gptjax.data.tasks.task import RecordTask, Shape
from gptjax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptjax.model.inputs.codes import Codes

SHADES = {2: "·█", 3: "·▒█", 4: "·░▓█", 5: "·░▒▓█"}
"""How few levels are written, dark to light."""
PATTERNS = 0x2800
"""More levels are the patterns of Braille from this one on."""
MOST = 256


def alphabet(levels: int) -> str:
    """Returns the characters of grey levels, from dark to light."""
    return SHADES.get(levels) or "".join(chr(PATTERNS + level) for level in range(levels))


def spelled(numbers: np.ndarray, levels: int) -> str:
    """Returns levels [n], or codes, as text."""
    characters = alphabet(levels)
    return "".join(characters[number] for number in numbers.ravel().tolist())


def unspelled(text: str, levels: int) -> np.ndarray:
    """Returns the levels of a text [n]; −1 for a character that is none."""
    known = {character: level for level, character in enumerate(alphabet(levels))}
    return np.asarray([known.get(character, -1) for character in text], np.int32)


def quantised(picture: np.ndarray, levels: int) -> np.ndarray:
    """Returns the level of each pixel [H W] of a picture, 8 bits a colour [H W 3]: the mean of its
    colours, in equal parts of the range."""
    return (picture.astype(np.int32).sum(-1) * levels // (3 * 256)).astype(np.int32)


def from_levels(numbers: np.ndarray, levels: int) -> np.ndarray:
    """Returns levels [H W] as a picture, 8 bits a colour [H W 3]; the first is black, the last
    white."""
    grey = np.round(numbers * (255 / (levels - 1))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


@functools.lru_cache(maxsize=1)
def _codebook(path: str, digest: str, codes: int, patch: int) -> Codes:
    """The codebook of a file with this sha256.

    Raises:
      ConfigError: it is another one.
    """
    from gptjax.model.inputs.codes import load_codes  # most pictures are spelled by pixels

    found, own = load_codes(path)
    require(
        digest in ("", own),
        f"{path} is another codebook than the one of this run (its sha256 differs); restore it.",
    )
    require(
        (len(found.book), found.patch) == (codes, patch),
        f"{path} has {len(found.book)} codes of patches of {found.patch} pixels; set"
        f" --data.task.levels {len(found.book)} --data.task.patch {found.patch}.",
    )
    return found


@dataclass(frozen=True)
class PictureTokens(RecordTask):
    """A caption, then its picture in raster order, each pixel a token that is predicted from the
    caption and from the pixels before it. The caption is not predicted.

    Some training captions are replaced by an id that says nothing, so that the model also draws
    without one: `--guidance` moves away from that. Examples that share a row do not see each other.

    Sources: Chen et al. 2020, Generative Pretraining from Pixels; Ho and Salimans 2022,
    Classifier-Free Diffusion Guidance, arXiv:2207.12598.
    """

    size: tuple[int, int] = (14, 14)
    """Height and width in pixels; pictures are brought to it."""
    levels: int = 2
    """Number of grey levels, or of codes."""
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    """How a picture of another shape is brought to the size."""
    drop: float = 0.1
    """Share of training captions that are hidden, others each time."""
    patch: int = 1
    """Side of the square of pixels that a token stands for; above 1 it needs `codes`."""
    codes: str | None = None
    """File of a learned codebook (`model.inputs.codes`), whose `levels` codes spell patches; `None`
    spells the grey level of each pixel."""
    digest: str = ""
    """sha256 of that file; the data fills it in."""

    sources: ClassVar[tuple[str, ...]] = ("Idx", "Media", "Shapes")
    cuts: ClassVar[bool] = False
    writes: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("accuracy",)

    def __post_init__(self) -> None:
        height, width = self.size
        require(
            height > 0 and width > 0,
            f"data.task.size is {self.size}; it needs a height and a width: --data.task.size 14 14",
        )
        require(
            self.patch >= 1 and (self.patch > 1) == (self.codes is not None),
            f"data.task.patch is {self.patch} and codes {self.codes}; a patch above 1 needs a file"
            " of codes (--data.task.codes FILE), and codes a patch (--data.task.patch 4).",
        )
        require(
            height % self.patch == 0 == width % self.patch,
            f"data.task.size is {self.size}, which patches of {self.patch} do not divide.",
        )
        require(
            2 <= self.levels <= MOST,
            f"data.task.levels is {self.levels}; it needs 2 to {MOST} (--data.task.levels 2).",
        )
        require(0 <= self.drop <= 1, f"data.task.drop is {self.drop}; it needs a share in [0, 1].")

    @property
    def places(self) -> int:
        """Number of tokens of a picture."""
        height, width = self.grid
        return height * width

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tokens of a picture from top to bottom and from left to right."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def extra_ids(self) -> int:
        """The id in place of a caption that is hidden."""
        return 1

    def require_model(self, model: Any) -> None:
        """Refuses a model whose context is too short for a picture and its caption."""
        require(
            model.context > self.places,
            f"a picture has {self.places} tokens behind its caption and model.context is"
            f" {model.context}; use {self.places + 1} or more (--model.context).",
        )

    def resolve(self, labels: tuple[str, ...]) -> PictureTokens:
        """Returns the task with the hash of its codebook."""
        if self.codes is None:
            return self
        from gptjax.model.inputs.codes import load_codes  # most pictures are spelled by pixels

        return replace(self, digest=load_codes(self.codes)[1])

    # --- documents to examples

    def texts(self, document: Document) -> tuple[str, ...]:
        """Returns the caption, and the picture as text."""
        picture = named_picture(document.pictures[0], self.size, self.fit)
        return self.caption(document), spelled(self._numbers(picture), self.levels)

    def _numbers(self, picture: np.ndarray) -> np.ndarray:
        """The levels of a picture, or its codes."""
        if self.codes is None:
            return quantised(picture, self.levels)
        from gptjax.model.inputs.codes import picture_codes  # most pictures are spelled by pixels

        return picture_codes(_codebook(self.codes, self.digest, self.levels, self.patch), picture)

    def caption(self, document: Document) -> str:
        """Returns the prompt and the answer of a record as one text.

        Raises:
          ConfigError: it is empty, or has a character that spells pixels, or the record has several
            pictures.
        """
        record, characters = Pictured.load(document.text), set(alphabet(self.levels))
        count, caption = len(document.pictures), " ".join(filter(None, (*record[:2],)))
        require(
            count == 1,
            f"{document.name} has {count} pictures, and data.task draws one behind each caption.",
        )
        require(
            bool(caption) and not characters & set(caption),
            f"{document.name} has the caption {caption!r}; it needs one without the characters of"
            f" pixels ({alphabet(self.levels)[:8]}).",
        )
        return caption

    def num_bytes(self, document: Document) -> int:
        """Returns the number of pixels that are learned."""
        return self.places

    def examples(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
        """Yields the ids of each caption and its picture.

        Raises:
          ConfigError: a caption or a picture does not suit; names the document.
        """
        texts = [self.texts(document) for document in documents]
        captions = tokenizer.encode_all([caption for caption, _ in texts])
        pictures = tokenizer.encode_all([picture for _, picture in texts])
        for document, caption, picture in zip(documents, captions, pictures, strict=True):
            if len(picture) != self.places:
                raise ConfigError(
                    f"{document.name} has {self.places} pixels and the tokenizer spells them by"
                    f" {len(picture)} ids; use data.tokenizer Characters()."
                )
            yield np.concatenate([caption, picture]).astype(np.int32)

    # --- a store to batches

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, some of their captions hidden. It depends on nothing
        else."""
        size = store.header.vocab_size - self.extra_ids
        drop, rows = 0.0 if plan.seed is None else self.drop, []
        examples = packed_examples(plan, at)
        for row, draw in zip(examples, at.draws(plan.seed), strict=True):
            own = draw.spawn(1)[0]  # not the numbers that noise draws
            rows.append(
                [self._behind(example_ids(store, i), size, own.random() < drop) for i in row]
            )
        return filled(rows, plan.width)

    def _behind(self, ids: np.ndarray, unknown: int, hide: bool) -> Piece:
        """A caption, perhaps hidden, and its picture as a piece."""
        caption, picture = ids[: -self.places], ids[-self.places :]
        read = np.asarray([unknown]) if hide else caption
        row = np.concatenate([read, picture])
        weights = np.repeat([0.0, 1.0], [len(read) - 1, self.places])
        return Piece(row[:-1], row[1:], weights)

    def describe(self, store: Store) -> str:
        """Says how many pictures there are."""
        height, width = self.grid
        return (
            f"{store.header.num_examples:,} pictures of {height} × {width} tokens, loss on pictures"
        )

    def derived(self, loss: float) -> dict[str, float]:
        """Returns the nats of a picture."""
        return {"nats_per_picture": loss * self.places}

    # --- inference

    def prompt(
        self, ids: Sequence[int], tokenizer: Tokenizer, with_encoder: bool
    ) -> tuple[list[int], list[int]]:
        """Returns the caption, with as much of the picture as there is; without a caption, the id
        that says nothing comes first."""
        pixels = set(self.level_ids(tokenizer))
        bare = not ids or ids[0] in pixels
        return [], [*([tokenizer.vocab_size] if bare else []), *ids]

    def level_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Returns the ids of levels, as far as the tokenizer has learned them."""
        known = {piece: i for i, piece in enumerate(tokenizer.pieces)}
        spelled_by = (character.encode() for character in alphabet(self.levels))
        return tuple(known[piece] for piece in spelled_by if piece in known)

    def remaining(self, prompt: str) -> int:
        """Returns the number of tokens of a picture that a prompt leaves to be drawn."""
        return self.places - int((unspelled(prompt, self.levels) >= 0).sum())

    def pictured(self, text: str) -> np.ndarray:
        """Returns the picture that a caption and its tokens spell, 8 bits a colour [H W 3]; what is
        no level or code, or lacks, is the first.

        Raises:
          ConfigError: the file of the codebook is absent, or another one than in training.
        """
        read = unspelled(text[-self.places :].ljust(self.places), self.levels)
        numbers = np.maximum(read, 0).reshape(self.grid)
        if self.codes is None:
            return from_levels(numbers, self.levels)
        from gptjax.model.inputs.codes import painted  # most pictures are spelled by pixels

        return painted(_codebook(self.codes, self.digest, self.levels, self.patch), numbers)


@dataclass(frozen=True)
class MaskedPictureTokens(PictureTokens):
    """`PictureTokens` for masked diffusion: a share of each picture is masked, any share, and
    predicted from the rest and the caption. The model sees all of it (`model.causal` False) and
    draws by filling in masks, the surest first. The loss is `Diffusion`.

    Sources: Chang et al. 2022, MaskGIT, arXiv:2202.04200; Nie et al. 2025, LLaDA, arXiv:2502.09992.
    """

    noise: Noise = field(default_factory=Noise)
    """How much is masked, and where."""

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder",)
    figures: ClassVar[tuple[str, ...]] = ()
    batches: ClassVar[str] = NOISED

    def sizes(self, store: Store, with_encoder: bool) -> np.ndarray:
        """Returns the positions that each example takes of a row [n 1]."""
        return super().sizes(store, with_encoder) + 1

    def plan(self, store: Store, plan: Plan) -> Plan:
        """Packs the pictures into rows, in an order of the seed."""
        return self.noise.plan(super().plan(store, plan))

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, with their masks. It depends on nothing else."""
        rows = super().batch(store, plan, at.read_once(plan))._replace(prefix=None)
        return self.noise.hidden(rows, store.header.vocab_size - self.extra_ids, plan, at)

    def _behind(self, ids: np.ndarray, unknown: int, hide: bool) -> Piece:
        """A caption, perhaps hidden by as many masks, and its picture, which counts."""
        count = len(ids) - self.places
        whole = np.concatenate([np.full(count, unknown), ids[count:]]) if hide else ids
        return Piece(whole, whole, np.repeat([0.0, 1.0], [count, self.places]))

    def mask_id(self, tokenizer: Tokenizer) -> int:
        """Returns the id of a token that is not drawn yet."""
        return tokenizer.vocab_size
