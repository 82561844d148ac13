"""SentencePiece: pieces learned from the training text, or read from a .model file.

Read `SentencePiece`, then `learn` (texts → a .model), then `load` (a .model → a table and a way to
spell).
"""

from __future__ import annotations

import collections
import io
import os
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers.spelling import PROBE, Table, at_newlines, in_chunks, utf8


@dataclass(frozen=True)
class SentencePiece:
    """Pieces learned from the training text, or a .model file that exists."""

    vocab_size: int = 2048
    """Number of ids, among them 256 bytes for all that the pieces can't spell."""
    algorithm: Literal["bpe", "unigram"] = "bpe"
    """How pieces are chosen: by merging pairs (fast), or by likelihood (slower)."""
    path: str | None = None
    """A SentencePiece .model to use instead of training one."""
    sample_lines: int = 60_000
    """Lines of the text, drawn at random with a fixed seed, from which pieces are learned."""

    def __post_init__(self) -> None:
        low, high = 320, 1_000_000
        size, lines = self.vocab_size, self.sample_lines
        require(
            low <= size <= high,
            f"data.tokenizer.vocab_size is {size}; it needs {low} to {high}: pass"
            " --data.tokenizer.vocab-size N.",
        )
        require(
            lines > 0,
            f"data.tokenizer.sample_lines is {lines}; it needs at least 1: pass"
            " --data.tokenizer.sample-lines N.",
        )


SPACE = "\u2581"
"""How SentencePiece writes a space; a text that has this very character is spelled around it, in
bytes."""


def learn(config: SentencePiece, texts: Iterable[str]) -> bytes:
    """Gives a .model. The same text gives the same bytes."""
    import sentencepiece

    written = io.BytesIO()
    # Pieces may hold spaces inside and mix letters with signs (`return self.`, `):`): on the
    # standard library
    # 3.27 bytes a token at 2,048 pieces against 2.84 with the defaults, for 1.1 s of training
    # instead of 0.6 s. (Only spaces
    # inside: 3.04; only signs: 3.01; digits apart: 2.79; space as suffix: 3.18.) 32 characters hold
    # most indentation.
    pieces = {
        "split_by_whitespace": False,
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
    # The number of threads stands in the file, so it must not follow the machine.
    settings = {
        "model_type": config.algorithm,
        "vocab_size": config.vocab_size,
        "num_threads": 2,
        "minloglevel": 2,
        "max_sentence_length": 1 << 14,
    }
    lines = _training_lines(config, texts)
    require(bool(lines), "the training text is empty; give a text with --data.source.path FILE.")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            **settings,
            **exact,
            **special,
            **pieces,
        )
    except RuntimeError as error:
        fits = re.search(r"value <= (\d+)", str(error))
        if not fits:
            raise ConfigError(
                f"SentencePiece can't learn from the training text: {' '.join(str(error).split())};"
                " choose Bytes() as data.tokenizer."
            ) from None
        enough = f"it has enough for {fits[1]}: pass --data.tokenizer.vocab-size {fits[1]}"
        if int(fits[1]) < 320:
            enough = "it has too little for any: choose Bytes() as data.tokenizer"
        raise ConfigError(
            f"the training text is too small for {config.vocab_size} pieces; {enough}, or give more"
            " text."
        ) from None
    return written.getvalue()


def _training_lines(
    config: SentencePiece, texts: Iterable[str], longest: int = 1000, most: int = 4_000_000
) -> list[str]:
    """Draws lines evenly from all texts in one pass, then keeps the characters that are worth a
    piece of their own.

    Rare characters (1 in 2,000 together), and those beyond half of the vocabulary, are spelled in
    bytes. `most` characters in all bound the time of training, lines longer than `longest` are cut.
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
    lines = lines[: max(1, int(np.searchsorted(ends, most, side="right")))]
    counts = collections.Counter("".join(lines))
    for (
        reserved
    ) in f"\0\t\u2585{SPACE}":  # NUL, and the characters that the trainer uses as marks of its own
        counts.pop(reserved, None)
    total, covered, kept = sum(counts.values()), 0, []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[
        : (config.vocab_size - 259) // 2
    ]:
        if covered > 0.9995 * total:
            break
        kept.append(character)
        covered += count
    run = re.compile(f"[{re.escape(''.join(kept))}]+") if kept else re.compile("(?!)")
    return [part for line in lines for part in run.findall(line)]


def load(payload: Mapping[str, bytes], name: str) -> Table:
    """Gives the tokenizer of a .model; `name` is for errors."""
    model = _processor(payload["tokenizer.model"], name)

    def spelled(i: int) -> bytes:
        piece = model.id_to_piece(i)
        if model.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return (
            b""
            if model.is_control(i)
            else "\ufffd".encode()
            if model.is_unknown(i)
            else piece.replace(SPACE, " ").encode()
        )

    def plain(texts: list[str]) -> list[list[int]]:
        return model.encode(texts, out_type=int, num_threads=min(os.cpu_count() or 1, len(texts)))

    pieces = tuple(spelled(i) for i in range(model.vocab_size()))
    end = model.eos_id() if model.eos_id() >= 0 else None
    marked = [model.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
    own = model.piece_to_id("\n") != model.unk_id() and all(model.is_byte(i) for i in marked)
    probe = PROBE.replace(SPACE, "")
    if own and b"".join(pieces[i] for i in plain([probe])[0]).decode(errors="replace") == probe:

        def cut(text: str) -> list[str]:
            return [
                part
                for chunk in at_newlines(text)
                for part in re.split(f"({SPACE})", chunk)
                if part
            ]

        def spell(texts: list[str]) -> list[list[int]]:
            return [
                marked if text == SPACE else ids
                for text, ids in zip(texts, plain(texts), strict=True)
            ]

        return Table(
            "SentencePiece", pieces, end, payload, lambda texts: in_chunks(texts, spell, cut)
        )
    leading = model.encode("a", out_type=str)[0].startswith(SPACE)
    return Table(
        "SentencePiece",
        pieces,
        end,
        payload,
        lambda texts: in_chunks(texts, plain, lambda t: [t]),
        leading,
    )


def controls(content: bytes, name: str) -> dict[str, int]:
    """Gives the control tokens of a .model, which no text is spelled with; `name` is for errors."""
    model = _processor(content, name)
    return {model.id_to_piece(i): i for i in range(model.vocab_size()) if model.is_control(i)}


class Described(NamedTuple):
    """What a .model says, for formats that say it in other words."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    """1 is normal, 2 unknown, 3 control, 4 given by the user, 5 unused, 6 a byte."""
    by_pairs: bool
    """Pieces are joined by pairs (BPE), not chosen by likelihood."""
    prefix: bool
    """A space is put before a text."""


def described(content: bytes) -> Described:
    """Takes a .model that `load` has read apart."""
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


def _processor(content: bytes, name: str) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise ConfigError(
            f"{name} is not a SentencePiece model; give a .model file with --data.tokenizer.path"
            " FILE."
        ) from None
