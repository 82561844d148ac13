"""SentencePiece: pieces learned from the training text, or read from a .model file.

Read `SentencePiece`, then `learn` (texts → a .model), then `from_model` (a .model → a tokenizer).
"""

from __future__ import annotations

import collections
import io
import os
import random
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, formerly, require
from gptjax.data.tokenizers.spelling import (
    PROBE,
    UNKNOWN_BYTES,
    Ids,
    Tokenizer,
    at_newlines,
    in_chunks,
    utf8,
)

SPACE = "\u2581"
"""How SentencePiece writes a space; this character itself, in a text, is spelled in bytes."""
NORMAL, UNKNOWN, CONTROL, GIVEN, BYTE = 1, 2, 3, 4, 6
"""Types of pieces in a .model; `GIVEN` are matched before any other, as the line break is in models
that are learned here."""
SMALLEST = 320
"""Smallest vocabulary: 256 bytes, and some pieces."""
RESERVED = 259
"""Ids that are no pieces: the bytes, unknown, the end of a document, the line break."""
Speller = Callable[[list[str]], list[list[int]]]
"""Returns the ids of texts."""


@formerly(added=("words",))
@dataclass(frozen=True)
class SentencePiece:
    """Pieces learned from the training text, or an existing .model file."""

    vocab_size: int = 2048
    """Number of ids, 256 of them for the bytes of whatever the pieces cannot spell; fewer if the
    text is too small for so many."""
    algorithm: Literal["bpe", "unigram"] = "bpe"
    """How pieces are learned: by merging pairs (fast), or by likelihood (slower)."""
    path: str | None = None
    """A SentencePiece .model to use instead of training one."""
    sample_lines: int = 60_000
    """Number of lines, drawn at random with a fixed seed, from which pieces are learned."""
    words: bool = False
    """Pieces end where a word does, so that no two words ever become one piece: for short texts of
    few words whose combinations matter."""

    def __post_init__(self) -> None:
        require(
            SMALLEST <= self.vocab_size <= 1_000_000,
            f"data.tokenizer.vocab_size is {self.vocab_size}; it needs {SMALLEST} to 1000000: pass"
            " --data.tokenizer.vocab-size N.",
        )
        require(
            self.sample_lines > 0,
            f"data.tokenizer.sample_lines is {self.sample_lines}; it needs at least 1: pass"
            " --data.tokenizer.sample-lines N.",
        )


def learn(config: SentencePiece, texts: Iterable[str]) -> bytes:
    """Returns a .model; the same text gives the same bytes. A text too small for the vocabulary
    gets a smaller one, of at most a piece for each 8 characters.

    Raises:
      ConfigError: the text is empty, or too small for any pieces.
    """
    lines = _sampled(config, texts)
    require(any(lines), "the training text is empty; give a text with --data.source.path FILE.")
    made, fits = _best(config, lines, config.vocab_size)
    size = min(fits, max(SMALLEST, sum(map(len, lines)) // 8))
    while made is None and size > RESERVED:
        made, fits = _best(config, lines, size)
        size = min(fits, size - 1)
    if made is None:
        raise ConfigError(
            "the training text is too small to learn pieces from; choose bytes (--data.tokenizer"
            " bytes), or give more text."
        )
    return made


def _best(config: SentencePiece, lines: list[str], size: int) -> tuple[bytes | None, int]:
    """A .model of `size` pieces, half of which may be single characters, or nearly all where the
    text is too small otherwise; or none, and how many pieces the text may be enough for."""
    made, fits = _trained(config, lines, size, characters=(size - RESERVED) // 2)
    if made is not None:
        return made, size
    made, more = _trained(config, lines, size, characters=(size - RESERVED) * 9 // 10)
    return made, max(fits, more)


def _trained(
    config: SentencePiece, lines: list[str], size: int, characters: int
) -> tuple[bytes | None, int]:
    """A .model of `size` pieces; or none, and the number of pieces that the trainer could make."""
    import sentencepiece

    written = io.BytesIO()
    # Pieces may hold spaces inside and mix letters with signs (`return self.`, `):`): on the
    # standard library 3.27 bytes a token at 2,048 pieces against 2.84 with the defaults, for 1.1 s
    # of training instead of 0.6 s. (Only spaces inside: 3.04; only signs: 3.01; digits apart: 2.79;
    # space as suffix: 3.18.) 32 characters hold most indentation.
    pieces = {
        "split_by_whitespace": config.words,
        "split_by_unicode_script": False,
        "allow_whitespace_only_pieces": True,
        "max_sentencepiece_length": 32,
    }
    exact = {
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "character_coverage": 1.0,
    }
    special = {"unk_id": 0, "eos_id": 1, "bos_id": -1, "pad_id": -1, "user_defined_symbols": ["\n"]}
    # The number of threads is written into the file, so it must not depend on the machine.
    settings = {
        "model_type": config.algorithm,
        "vocab_size": size,
        "num_threads": 2,
        "minloglevel": 2,
        "max_sentence_length": 1 << 14,
    }
    parts = _common(lines, characters)
    if not any(" " in part for part in parts):  # in bytes it would be the mark, not a space
        settings["required_chars"] = SPACE
    if not parts:
        return None, 0
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(parts),
            model_writer=written,
            **settings,
            **exact,
            **special,
            **pieces,
        )
    except RuntimeError as error:
        fits = re.search(r"value <= (\d+)", str(error))
        if fits:
            return None, int(fits[1])
        raise ConfigError(
            f"SentencePiece can't learn from the training text: {' '.join(str(error).split())};"
            " choose Bytes() as data.tokenizer."
        ) from None
    return written.getvalue(), size


def _sampled(
    config: SentencePiece, texts: Iterable[str], longest: int = 1000, most: int = 4_000_000
) -> list[str]:
    """Draws lines evenly from all texts in one pass.

    Args:
      longest: characters at which longer lines are cut.
      most: characters of all lines together, which bounds the time of training.
    """
    draw, seen, lines = random.Random(0), 0, []
    for text in texts:
        utf8(text)
        for whole in text.split("\n"):
            for i in range(0, len(whole), longest):
                seen += 1
                at = seen - 1 if seen <= config.sample_lines else int(draw.random() * seen)
                if at == len(lines):
                    lines.append(whole[i : i + longest])
                elif at < len(lines):
                    lines[at] = whole[i : i + longest]
    draw.shuffle(lines)
    ends = np.cumsum([len(line) for line in lines])
    return lines[: max(1, int(np.searchsorted(ends, most, side="right")))]


def _common(lines: list[str], most: int) -> list[str]:
    """The parts of lines whose characters are worth a piece of their own; rare ones (1 in 2,000
    together), and those beyond the `most` common, are spelled in bytes."""
    counts = collections.Counter("".join(lines))
    for reserved in f"\0\t\u2585{SPACE}":  # NUL, and the trainer's own marks
        counts.pop(reserved, None)
    total, covered, kept = sum(counts.values()), 0, []
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    for character, count in ranked[:most]:
        if covered > 0.9995 * total:
            break
        kept.append(character)
        covered += count
    run = re.compile(f"[{re.escape(''.join(kept))}]+") if kept else re.compile("(?!)")
    return [part for line in lines for part in run.findall(line)]


def from_model(payload: Mapping[str, bytes], name: str) -> Tokenizer:
    """Returns the tokenizer of a .model.

    Args:
      name: what error messages call it.
    """
    model = _processor(payload["tokenizer.model"], name)
    pieces = tuple(_spelled(model, i) for i in range(model.vocab_size()))

    def plain(texts: list[str]) -> list[list[int]]:
        return model.encode(texts, out_type=int, num_threads=min(os.cpu_count() or 1, len(texts)))

    probe = PROBE.replace(SPACE, "")
    probed = b"".join(pieces[i] for i in plain([probe])[0]).decode(errors="replace")
    mark = [model.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
    newline = model.piece_to_id("\n") != model.unk_id()
    exact = newline and all(model.is_byte(i) for i in mark) and probed == probe
    spell = _exact(plain, mark) if exact else _whole(plain)
    return Tokenizer(
        "SentencePiece",
        pieces,
        end_of_document=model.eos_id() if model.eos_id() >= 0 else None,
        payload=payload,
        spell=spell,
        leading_space=not exact and model.encode("a", out_type=str)[0].startswith(SPACE),
    )


def _spelled(model: Any, i: int) -> bytes:
    """What an id spells."""
    piece = model.id_to_piece(i)
    if model.is_byte(i):
        return bytes([int(piece[3:5], 16)])
    if model.is_control(i):
        return b""
    return UNKNOWN_BYTES if model.is_unknown(i) else piece.replace(SPACE, " ").encode()


def _exact(plain: Speller, mark: list[int]) -> Callable[[list[str]], list[Ids]]:
    """Spells texts, in chunks, with a model that keeps everything but its own mark for spaces, as
    those learned here do; the mark itself is spelled in bytes, `mark`."""

    def cut(text: str) -> list[str]:
        chunks = at_newlines(text)
        return [part for chunk in chunks for part in re.split(f"({SPACE})", chunk) if part]

    def spell(texts: list[str]) -> list[list[int]]:
        spelled = zip(texts, plain(texts), strict=True)
        return [mark if text == SPACE else ids for text, ids in spelled]

    return lambda texts: in_chunks(texts, spell, cut)


def _whole(plain: Speller) -> Callable[[list[str]], list[Ids]]:
    """Spells texts uncut, with a model that may change them."""
    return lambda texts: in_chunks(texts, plain, lambda text: [text])


def controls(content: bytes, name: str) -> dict[str, int]:
    """Returns the control tokens of a .model by name; no text is spelled with them.

    Args:
      name: what error messages call the .model.
    """
    model = _processor(content, name)
    return {model.id_to_piece(i): i for i in range(model.vocab_size()) if model.is_control(i)}


def cutter(content: bytes, name: str) -> Callable[[list[str]], list[list[str]]]:
    """Returns a function that cuts texts into the pieces of a .model.

    Args:
      name: what error messages call the .model.
    """
    model = _processor(content, name)

    def cut(texts: list[str]) -> list[list[str]]:
        threads = min(os.cpu_count() or 1, max(len(texts), 1))
        return model.encode(texts, out_type=str, num_threads=threads)

    return cut


class Described(NamedTuple):
    """The content of a .model, to convert it to other forms."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    """`NORMAL`, `UNKNOWN`, `CONTROL`, `GIVEN`, 5 (unused) or `BYTE`."""
    by_pairs: bool
    """Pieces are joined by pairs (BPE), not chosen by likelihood."""
    prefix: bool
    """A space is put before a text."""


def described(content: bytes) -> Described:
    """Parses a .model that `from_model` has read."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto.FromString(content)
    pieces, scores, types = (
        [getattr(p, name) for p in model.pieces] for name in ("piece", "score", "type")
    )
    return Described(
        pieces,
        scores,
        types,
        model.trainer_spec.model_type == proto.TrainerSpec.BPE,
        model.normalizer_spec.add_dummy_prefix,
    )


def extended(content: bytes, added: Mapping[str, int], controls: Container[int]) -> bytes:
    """Returns a .model with further pieces at its end, such as those of added_tokens.json.

    Args:
      added: ids of the pieces; those that the model has already are passed over.
      controls: ids that no text may yield.

    Raises:
      ConfigError: the new ids do not follow those of the model.
    """
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto.FromString(content)
    size = len(model.pieces)
    new = {i: text for text, i in added.items() if i >= size}
    require(
        sorted(new) == list(range(size, size + len(new))),
        f"the tokens of added_tokens.json have the ids {str(sorted(new))[:60]}, and those of"
        f" tokenizer.model end at {size - 1}; both have to come from the same model.",
    )
    for i in sorted(new):
        kind = CONTROL if i in controls else GIVEN
        model.pieces.add(piece=new[i], score=0.0, type=kind)
    return model.SerializeToString()


def _processor(content: bytes, name: str) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise ConfigError(
            f"{name} is not a SentencePiece model; give a .model file with --data.tokenizer.path"
            " FILE."
        ) from None
