"""Text ↔ token ids, exactly: what `encode` writes, `decode` gives back, whatever the text.

Read in this order: the configs (`Bytes`, `Characters`, `SentencePiece`, `GPT2`); `Tokenizer`, what all of them become;
`train`, `save`, `load`, `fingerprint`; then how each kind is made. A tokenizer is a table of what each id spells and a
function that spells text; everything else is common to all kinds.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from gptjax.config import ConfigError, require

Ids = np.ndarray
"""int32 [n]"""


@dataclass(frozen=True)
class Bytes:
    """The 256 bytes of UTF-8, and an id that ends a document."""


@dataclass(frozen=True)
class Characters:
    """The distinct characters of the training text."""

    end_of_document: bool = True
    """Add an id that ends a document."""


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
        require(low <= size <= high, f"data.tokenizer.vocab_size is {size}; it needs {low} to {high}: pass --data.tokenizer.vocab-size N.")
        require(lines > 0, f"data.tokenizer.sample_lines is {lines}; it needs at least 1: pass --data.tokenizer.sample-lines N.")


@dataclass(frozen=True)
class GPT2:
    """GPT-2's byte-level pieces, from its vocabulary files."""

    path: str
    """A folder with encoder.json and vocab.bpe, or vocab.json and merges.txt, or tokenizer.json."""


TokenizerConfig = Bytes | Characters | SentencePiece | GPT2


@runtime_checkable
class Tokenizer(Protocol):
    """What every kind becomes."""

    vocab_size: int
    end_of_document: int | None

    def encode(self, text: str) -> Ids:
        """Gives the ids of `text`; the id that ends a document is never among them, whatever the text says.

        Raises:
          ConfigError: the text has a lone surrogate, or a character that a `Characters` vocabulary lacks.
        """

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        """Gives the ids of every text, on all cores."""

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Gives the text; the end of a document is nothing, bytes that aren't UTF-8 are U+FFFD.

        Raises:
          ValueError: an id is outside the vocabulary.
        """

    def token_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        """Gives the exact bytes; those of a concatenation are the concatenation of theirs, so they can be streamed."""

    def files(self) -> dict[str, bytes]:
        """Gives what `save` writes, by file name."""


CONFIG_FILE = "tokenizer_config.json"
PAYLOAD = {"Bytes": (), "Characters": ("characters.json",), "SentencePiece": ("tokenizer.model",), "GPT2": ("vocab.json", "merges.txt")}


def train(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Makes the tokenizer that `config` describes; kinds that learn nothing don't touch `texts` (whole documents).

    Raises:
      ConfigError: a file is absent or is something else, or the text is too small for the vocabulary.
    """
    if isinstance(config, Bytes):
        return _from_payload("Bytes", {})
    if isinstance(config, Characters):
        return _from_payload("Characters", _learn_characters(config, texts))
    if isinstance(config, GPT2):
        return _from_payload("GPT2", _read_gpt2(Path(config.path)))
    if config.path is None:
        return _from_payload("SentencePiece", {"tokenizer.model": _learn_sentencepiece(config, texts)})
    path = Path(config.path)
    require(path.is_file(), f"{path} is not there; give a SentencePiece .model file with --data.tokenizer.path FILE.")
    return _from_payload("SentencePiece", {"tokenizer.model": path.read_bytes()}, name=str(path))


def save(dir: Path | str, tokenizer: Tokenizer) -> None:
    """Writes `tokenizer.files()` into `dir`, the file that vouches for the others last."""
    Path(dir).mkdir(parents=True, exist_ok=True)
    for name, content in sorted(tokenizer.files().items(), key=lambda item: item[0] == CONFIG_FILE):
        Path(dir, name).write_bytes(content)


def load(dir: Path | str) -> Tokenizer:
    """Reads what `save` wrote. Nothing in it is executed, and no other file is needed.

    Raises:
      ConfigError: names the file that is absent or isn't what was saved.
    """
    restore = f"restore it from a copy of {dir}"

    def read(name: str) -> bytes:
        require(Path(dir, name).is_file(), f"{Path(dir, name)} is not there, so the tokenizer can't be read; {restore}.")
        return Path(dir, name).read_bytes()

    try:
        found = json.loads(read(CONFIG_FILE))
        payload, hashes = {name: read(name) for name in PAYLOAD[found["kind"]]}, dict(found["sha256"])
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ConfigError(f"{Path(dir, CONFIG_FILE)} describes no tokenizer of ours; {restore}.") from None
    for name, content in payload.items():
        same = hashes.get(name) == hashlib.sha256(content).hexdigest()
        require(same, f"{Path(dir, name)} is not the file that was saved (its sha256 differs from {CONFIG_FILE}); {restore}.")
    tokenizer = _from_payload(found["kind"], payload, name=str(dir))
    same = found == json.loads(tokenizer.files()[CONFIG_FILE])
    require(same, f"{Path(dir, CONFIG_FILE)} does not describe the files beside it; {restore}.")
    return tokenizer


def fingerprint(tokenizer: Tokenizer) -> str:
    """Gives the sha256, in hex, of all that makes the tokenizer; where it came from doesn't matter."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files().items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def lossless(tokenizer: Tokenizer) -> bool:
    """Says whether any text survives: true of all that is trained here but `Characters`, of few foreign .model files."""
    try:
        return tokenizer.decode(tokenizer.encode(_PROBE)) == _PROBE
    except ConfigError:
        return False


_PROBE = " \n a  b\t\r\n\n\0ﬁ①e\u0301é\u3000\u2581\u2581 \U0001f642\u200d\ufeff<unk></s><0x41> "
"""All that usual normalisation changes."""


# --- the one class: a table, and a way to spell ------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class _Table:
    """Satisfies `Tokenizer`.

    `pieces` says what each id spells, with nothing for control ids; `spell` gives the ids of texts known to be UTF-8.
    `leading_space`: `encode` puts a space before the text, which `decode` takes off again.
    """

    kind: str
    pieces: tuple[bytes, ...]
    end_of_document: int | None
    payload: Mapping[str, bytes]
    spell: Callable[[list[str]], list[Ids]]
    leading_space: bool = False

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> Ids:
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        for text in texts:
            _utf8(text)
        return self.spell(list(texts))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        text = self.token_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.leading_space else text

    def token_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        ids = np.asarray(ids if hasattr(ids, "__len__") else list(ids)).ravel().tolist()
        for i in ids:
            if not 0 <= i < len(self.pieces):
                raise ValueError(f"the id {i} is outside the vocabulary, which has 0 to {len(self.pieces) - 1}.")
        return b"".join(map(self.pieces.__getitem__, ids))

    def files(self) -> dict[str, bytes]:
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in self.payload.items()}
        described = {"kind": self.kind, "vocab_size": self.vocab_size, "end_of_document": self.end_of_document, "sha256": hashes}
        return {CONFIG_FILE: (json.dumps(described, indent=2) + "\n").encode(), **self.payload}


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}"
        raise ConfigError(f"{found}, which UTF-8 can't hold; remove it, for example with text.encode('utf-8', 'ignore').decode().") from None


def _from_payload(kind: str, payload: Mapping[str, bytes], name: str = "the tokenizer") -> Tokenizer:
    """The inverse of `files`; `name` is for errors."""
    if kind == "Bytes":
        pieces = (*(bytes([i]) for i in range(256)), b"")
        return _Table(kind, pieces, 256, {}, lambda texts: [np.frombuffer(_utf8(t), np.uint8).astype(np.int32) for t in texts])
    make = {"Characters": _characters, "SentencePiece": _sentencepiece, "GPT2": _gpt2}[kind]
    return make(payload, name)


def _spell_in_chunks(texts: list[str], spell: Callable[[list[str]], Iterable[Sequence[int]]], cut: Callable[[str], list[str]]) -> list[Ids]:
    """Cuts texts into chunks, spells those, and joins the ids again: one long text then uses all cores too."""
    chunks = [cut(text) for text in texts]
    flat = [chunk for of_text in chunks for chunk in of_text]
    # A slice at a time, because lists of Python integers need ten times the memory of the array.
    spelled = iter([np.asarray(ids, np.int32) for i in range(0, len(flat), 1024) for ids in spell(flat[i : i + 1024])])
    return [np.concatenate([np.zeros(0, np.int32), *(next(spelled) for _ in of_text)]) for of_text in chunks]


def _at_newlines(text: str) -> Iterator[str]:
    """Cuts before a newline that follows a visible character: no piece of ours or of GPT-2's ever crosses that.

    BPE gives the same ids with and without cuts; unigram may give another of two equally likely spellings.
    """
    start = 0
    while len(text) - start > CHUNK and (found := _NEWLINE.search(text, start + CHUNK)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


CHUNK = 1 << 16
"""Characters."""
_NEWLINE = re.compile(r"(?<=\S)\n")


# --- characters --------------------------------------------------------------------------------------------------


def _learn_characters(config: Characters, texts: Iterable[str]) -> dict[str, bytes]:
    found: set[str] = set()
    for text in texts:
        _utf8(text)
        found.update(text)
    require(bool(found), "the training text has no characters; give a text with --data.source.path FILE.")
    described = {"characters": "".join(sorted(found)), "end_of_document": config.end_of_document}
    return {"characters.json": (json.dumps(described) + "\n").encode()}


def _characters(payload: Mapping[str, bytes], name: str) -> Tokenizer:
    described = json.loads(payload["characters.json"])
    characters, ends = described["characters"], described["end_of_document"]
    known = np.array([ord(c) for c in characters], np.uint32)

    def spell(text: str) -> Ids:
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        wrong = np.flatnonzero(known[ids] != codes)
        if wrong.size:
            at = int(wrong[0])
            found = f"the character {text[at]!r} (U+{ord(text[at]):04X}), number {at} of the text, is not among the {len(known)} of the training text"
            raise ConfigError(f"{found}; remove it, or train with a tokenizer that spells any text: Bytes() or SentencePiece() as data.tokenizer.")
        return ids.astype(np.int32)

    pieces = tuple(c.encode() for c in characters) + ((b"",) if ends else ())
    return _Table("Characters", pieces, len(characters) if ends else None, payload, lambda texts: [spell(t) for t in texts])


# --- SentencePiece -----------------------------------------------------------------------------------------------

SPACE = "\u2581"
"""How SentencePiece writes a space; a text that has this very character is spelled around it, in bytes."""


def _learn_sentencepiece(config: SentencePiece, texts: Iterable[str]) -> bytes:
    """Gives a .model. The same text gives the same bytes."""
    import sentencepiece

    written = io.BytesIO()
    # Pieces may hold spaces inside and mix letters with signs (`return self.`, `):`): on the standard library
    # 3.27 bytes a token at 2,048 pieces against 2.84 with the defaults, for 1.1 s of training instead of 0.6 s. (Only spaces
    # inside: 3.04; only signs: 3.01; digits apart: 2.79; space as suffix: 3.18.) 32 characters hold most indentation.
    pieces = dict(split_by_whitespace=False, split_by_unicode_script=False, allow_whitespace_only_pieces=True, max_sentencepiece_length=32)
    exact = dict(normalization_rule_name="identity", byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, character_coverage=1.0)
    special = dict(unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, user_defined_symbols=["\n"])
    # The number of threads stands in the file, so it must not follow the machine.
    settings = dict(model_type=config.algorithm, vocab_size=config.vocab_size, num_threads=2, minloglevel=2, max_sentence_length=1 << 14)
    lines = _training_lines(config, texts)
    require(bool(lines), "the training text is empty; give a text with --data.source.path FILE.")
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=written, **settings, **exact, **special, **pieces)
    except RuntimeError as error:
        fits = re.search(r"value <= (\d+)", str(error))
        if not fits:
            raise ConfigError(f"SentencePiece can't learn from the training text: {' '.join(str(error).split())}; choose Bytes() as data.tokenizer.") from None
        enough = f"it has enough for {fits[1]}: pass --data.tokenizer.vocab-size {fits[1]}"
        if int(fits[1]) < 320:
            enough = "it has too little for any: choose Bytes() as data.tokenizer"
        raise ConfigError(f"the training text is too small for {config.vocab_size} pieces; {enough}, or give more text.") from None
    return written.getvalue()


def _training_lines(config: SentencePiece, texts: Iterable[str], longest: int = 1000, most: int = 4_000_000) -> list[str]:
    """Draws lines evenly from all texts in one pass, then keeps the characters that are worth a piece of their own.

    Rare characters (1 in 2,000 together), and those beyond half of the vocabulary, are spelled in bytes. `most` characters
    in all bound the time of training, lines longer than `longest` are cut.
    """
    draw, seen, lines = random.Random(0), 0, []
    for text in texts:
        _utf8(text)
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
    for reserved in f"\0\t\u2585{SPACE}":  # NUL, and the characters that the trainer uses as marks of its own
        counts.pop(reserved, None)
    total, covered, kept = sum(counts.values()), 0, []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: (config.vocab_size - 259) // 2]:
        if covered > 0.9995 * total:
            break
        kept.append(character)
        covered += count
    run = re.compile(f"[{re.escape(''.join(kept))}]+") if kept else re.compile("(?!)")
    return [part for line in lines for part in run.findall(line)]


def _sentencepiece(payload: Mapping[str, bytes], name: str) -> Tokenizer:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=payload["tokenizer.model"])
    except RuntimeError:
        raise ConfigError(f"{name} is not a SentencePiece model; give a .model file with --data.tokenizer.path FILE.") from None

    def spelled(i: int) -> bytes:
        piece = model.id_to_piece(i)
        if model.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return b"" if model.is_control(i) else "\ufffd".encode() if model.is_unknown(i) else piece.replace(SPACE, " ").encode()

    def plain(texts: list[str]) -> list[list[int]]:
        return model.encode(texts, out_type=int, num_threads=min(os.cpu_count() or 1, len(texts)))

    pieces = tuple(spelled(i) for i in range(model.vocab_size()))
    end = model.eos_id() if model.eos_id() >= 0 else None
    marked = [model.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
    own = model.piece_to_id("\n") != model.unk_id() and all(model.is_byte(i) for i in marked)
    probe = _PROBE.replace(SPACE, "")
    if own and b"".join(pieces[i] for i in plain([probe])[0]).decode(errors="replace") == probe:

        def cut(text: str) -> list[str]:
            return [part for chunk in _at_newlines(text) for part in re.split(f"({SPACE})", chunk) if part]

        def spell(texts: list[str]) -> list[list[int]]:
            return [marked if text == SPACE else ids for text, ids in zip(texts, plain(texts), strict=True)]

        return _Table("SentencePiece", pieces, end, payload, lambda texts: _spell_in_chunks(texts, spell, cut))
    leading = model.encode("a", out_type=str)[0].startswith(SPACE)
    return _Table("SentencePiece", pieces, end, payload, lambda texts: _spell_in_chunks(texts, plain, lambda t: [t]), leading)


# --- GPT-2 -------------------------------------------------------------------------------------------------------

END = "<|endoftext|>"


def _read_gpt2(folder: Path) -> dict[str, bytes]:
    """Gives vocabulary and merges in one canonical form, whichever files hold them."""
    need = "give a folder with encoder.json and vocab.bpe, or vocab.json and merges.txt, or tokenizer.json: --data.tokenizer.path DIR"
    forms = [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"), ("tokenizer.json",)]
    form = next((names for names in forms if all((folder / name).is_file() for name in names)), None)
    require(form is not None, f"{folder} has no GPT-2 vocabulary; {need}.")
    try:
        described = json.loads((folder / form[0]).read_bytes())
        if len(form) == 2:
            lines = (folder / form[1]).read_text(encoding="utf-8").split("\n")
            vocabulary, merges = described, [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        else:
            model, cut = described["model"], described["pre_tokenizer"]
            extra = [t["content"] for t in described.get("added_tokens", []) if t["content"] != END] + [described.get("normalizer")]
            same = cut["type"] == "ByteLevel" and not cut["add_prefix_space"] and not any(extra)
            require(same, f"{folder} has a tokenizer.json of another kind than GPT-2's; {need}.")
            vocabulary, merges = model["vocab"], [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        by_id, letters = sorted(vocabulary.items(), key=lambda item: item[1]), set(_byte_letters())
        good = [i for _, i in by_id] == list(range(len(by_id))) and letters <= set(vocabulary)
        good = good and all(letters.issuperset(piece) for piece in vocabulary if piece != END)
        good = good and all(len(pair) == 2 and {*pair, "".join(pair)} <= vocabulary.keys() for pair in merges)
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    require(good, f"{folder / form[0]} and its merges are not a GPT-2 vocabulary; {need}.")
    text = "".join(f"{left} {right}\n" for left, right in merges)
    return {"vocab.json": json.dumps(dict(by_id)).encode(), "merges.txt": f"#version: 0.2\n{text}".encode()}


def _byte_letters() -> dict[str, int]:
    """The visible letter by which GPT-2's files write each byte: itself where it is visible, else one from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _gpt2(payload: Mapping[str, bytes], name: str) -> Tokenizer:
    import tokenizers

    vocabulary = json.loads(payload["vocab.json"])
    merges = [tuple(line.split(" ")) for line in payload["merges.txt"].decode().split("\n")[1:-1]]
    # No token is registered as special, so `<|endoftext|>` in a text is spelled like any other word.
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    letters = _byte_letters()
    pieces = tuple(b"" if piece == END else bytes(letters[c] for c in piece) for piece in vocabulary)

    def spell(texts: list[str]) -> list[list[int]]:
        return [e.ids for e in model.encode_batch_fast(texts, add_special_tokens=False)]

    return _Table("GPT2", pieces, vocabulary.get(END), payload, lambda texts: _spell_in_chunks(texts, spell, lambda t: list(_at_newlines(t))))
