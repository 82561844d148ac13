"""Tokenizers of published models: a Hugging Face `tokenizer.json` or a SentencePiece
`tokenizer.model`, with its control tokens named.

Read `Published`, then `read` (a folder → the payload that is kept) and `load` (the payload → a
table with control tokens). A control token is an id that means something to the model
(`<|im_start|>`) and spells nothing: no text is ever encoded as one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers import sentencepieces
from gptjax.data.tokenizers.spelling import Control, Ids, Special, Table, control_ids, in_chunks
from gptjax.data.tokenizers.spelling import letters as byte_letters


@dataclass(frozen=True)
class Published:
    """The tokenizer of a published model, from its Hugging Face files."""

    path: str
    """A folder with tokenizer.json or tokenizer.model, and tokenizer_config.json beside it."""


KINDS = {"tokenizer.json": "Published", "tokenizer.model": "PublishedModel"}
NEED = "give a folder with the tokenizer.json or tokenizer.model of a published model"


def payload(name: str, content: bytes, special: Special) -> tuple[str, dict[str, bytes]]:
    """Gives the kind and the files of a tokenizer that is made of one file's bytes;
    `tokenizer.published` makes the tokenizer.

    Args:
      name: `tokenizer.json`, in the form of the `tokenizers` library, or `tokenizer.model`, a
        SentencePiece model.
      content: its bytes.
      special: what they don't say.
    """
    return KINDS[name], {name: content, "special.json": (json.dumps(vars(special)) + "\n").encode()}


def read(folder: Path) -> tuple[str, dict[str, bytes]]:
    """Gives the kind and the files of the tokenizer in a Hugging Face directory. Nothing in it is
    executed.

    Raises:
      ConfigError: there is none, or its files are damaged.
    """
    name = next((n for n in KINDS if (folder / n).is_file()), None)
    require(name is not None, f"{folder} has no tokenizer; {NEED}.")
    content, said = (folder / name).read_bytes(), _object(folder / "tokenizer_config.json")
    require(
        name == "tokenizer.json" or not (folder / "added_tokens.json").is_file(),
        f"{folder} has tokens in added_tokens.json; {NEED}, where all are in one file.",
    )
    ids = _ids(name, content, str(folder))

    def token(role):
        return ids.get(
            _content(said.get(f"{role}_token"))
            or _content(_object(folder / "special_tokens_map.json").get(f"{role}_token"))
        )

    bos, eos = token("bos"), token("eos")
    if name == "tokenizer.model" and bos is None and eos is None:
        bos, eos = ids.get("<s>"), ids.get("</s>")
    known, generation, config = (
        set(ids.values()),
        _object(folder / "generation_config.json"),
        _object(folder / "config.json"),
    )
    stops = [
        i
        for i in (*_listed(generation.get("eos_token_id")), *_listed(config.get("eos_token_id")))
        if i in known
    ]
    bos = next((i for i in (bos, *_listed(config.get("bos_token_id"))) if i in known), None)
    eos = next((i for i in (eos, *stops) if i in known), None)
    ends = tuple(i for i in dict.fromkeys(stops) if i != eos)
    wants = said.get("add_bos_token")
    begins = (
        bool(wants) if wants is not None else name == "tokenizer.model" or _begins(content, bos)
    )
    template = _template(folder, said)
    added = _parsed(content, str(folder))["added_tokens"] if name == "tokenizer.json" else []
    control = control_ids(added, template, (bos, eos, *ends))
    return payload(
        name, content, Special(bos, eos, begins and bos is not None, ends, control, template)
    )


def _template(folder: Path, said: dict[str, Any]) -> str | None:
    """The text of the chat template, from its own file or the configuration; of several that which
    is called default."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    found = said.get("chat_template")
    if isinstance(found, list):
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}.get(
            "default"
        )
    return found if isinstance(found, str) else None


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    require(
        isinstance(found, dict),
        f"{path} is not a JSON object; restore it from where the model came from.",
    )
    return found


def _listed(value: Any) -> list[int]:
    """Ids, written as one or as a list of them."""
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]


def _content(token: Any) -> str | None:
    """The text of a token that is written as a string or as an object."""
    return (
        token.get("content")
        if isinstance(token, dict)
        else token
        if isinstance(token, str)
        else None
    )


def _ids(name: str, content: bytes, where: str) -> dict[str, int]:
    if name == "tokenizer.model":
        return sentencepieces.controls(content, where)
    described = _parsed(content, where)
    return _vocabulary(described) | {t["content"]: t["id"] for t in described["added_tokens"]}


def _begins(content: bytes, bos: int | None) -> bool:
    """Whether the post-processor of a tokenizer.json puts `bos` before a text."""
    import tokenizers

    return tokenizers.Tokenizer.from_str(content.decode()).encode("").ids[:1] == [bos]


# --- payload → table
# ---------------------------------------------------------------------------------------------


def load(files: Mapping[str, bytes], name: str) -> Table:
    """Gives the tokenizer of what `payload` or `read` gave; `name` is for errors.

    Raises:
      ConfigError: a file is not what its name says, or holds a kind of pieces that is not known
        here.
    """
    try:
        described = json.loads(files["special.json"])
        special = Special(
            **{n: tuple(v) if isinstance(v, list) else v for n, v in described.items()}
        )
    except (ValueError, TypeError):
        raise ConfigError(
            f"{name} has a special.json that describes no control tokens; {NEED}."
        ) from None
    if "tokenizer.model" in files:
        table, known = (
            sentencepieces.load(files, name),
            sentencepieces.controls(files["tokenizer.model"], name),
        )
        controls = {
            piece: Control(i)
            for piece, i in known.items()
            if special.control is None or i in special.control
        }
        pieces, spell, leading, after = table.pieces, table.spell, table.leading_space, None
    else:
        pieces, spell, leading, after, controls = _from_json(files["tokenizer.json"], special, name)
    for role, i in (
        ("bos", special.bos),
        ("eos", special.eos),
        *(("ends", i) for i in special.ends),
    ):
        require(
            i is None or 0 <= i < len(pieces),
            f"{name} calls the id {i} its {role}, and has 0 to {len(pieces) - 1}; {NEED}.",
        )
    kind = KINDS["tokenizer.model" if "tokenizer.model" in files else "tokenizer.json"]
    return Table(kind, pieces, special.eos, files, spell, leading, after, special, controls)


class _Read(NamedTuple):
    """What a tokenizer.json says."""

    pieces: tuple[bytes, ...]
    spell: Callable[[list[str]], list[Ids]]
    leading_space: bool
    spell_after: Callable[[list[str]], list[Ids]]
    controls: dict[str, Control]


def _from_json(content: bytes, special: Special, name: str) -> _Read:
    described = _parsed(content, name)
    added, unknown = described["added_tokens"], _unknown(described["model"])
    names = {i: piece for piece, i in _vocabulary(described).items()} | {
        t["id"]: t["content"] for t in added
    }
    hidden = (
        {t["id"] for t in added if t["special"]}
        if special.control is None
        else set(special.control) & set(names)
    )
    flags = {t["id"]: (t["lstrip"], t["rstrip"]) for t in added}
    controls = {
        names[i]: Control(i, *flags.get(i, ())) for i in sorted(hidden) if names[i] != unknown
    }
    pieces, spelled = [b""] * (max(names) + 1), _speller(described)
    for i, piece in names.items():
        pieces[i] = (
            b""
            if piece in controls
            else (
                "\ufffd".encode()
                if piece == unknown
                else piece.encode()
                if i in flags
                else spelled(piece)
            )
        )
    try:
        ids, after = _spelling(_unspeakable(described, {names[i] for i in hidden}))
        probes = ids(["a", "x\nB", "x\n", "B", "x).\nB", "x).\n"])
    except BaseException as error:  # the library panics on some files, and a panic is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise ConfigError(
            f"{name} has a tokenizer.json that can't be used"
            f" ({' '.join(str(error).split())[:200]}); {NEED}."
        ) from None
    leading = b"".join(pieces[i] for i in probes[0]).startswith(b" ")
    cuttable = "ByteLevel" in _types(described.get("pre_tokenizer")) and not leading
    cut = (
        _before_letters
        if cuttable and probes[1] == probes[2] + probes[3] and probes[4] == probes[5] + probes[3]
        else lambda t: [t]
    )

    def whole(texts):
        return [np.asarray(found, np.int32) for found in after(texts)]

    return _Read(tuple(pieces), lambda texts: in_chunks(texts, ids, cut), leading, whole, controls)


def _spelling(
    described: dict[str, Any],
) -> tuple[Callable[[list[str]], list[list[int]]], Callable[[list[str]], list[list[int]]]]:
    """Functions that give the ids of texts, and of texts that stand behind a control token."""
    import tokenizers

    speller = tokenizers.Tokenizer.from_str(json.dumps(described))
    speller.encode_special_tokens = True
    mark = secrets.token_hex(16)
    speller.add_tokens(
        [tokenizers.AddedToken(mark, normalized=False)]
    )  # it stands for the control token, and its own id is dropped

    def ids(texts):
        return [e.ids for e in speller.encode_batch_fast(texts, add_special_tokens=False)]

    return ids, lambda texts: [found[1:] for found in ids([mark + text for text in texts])]


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    """A tokenizer.json, its shape checked as far as it is used here."""
    try:
        described = json.loads(content)
        added = described.setdefault("added_tokens", [])
        for token in added:
            token.update(
                special=bool(token.get("special")),
                lstrip=bool(token.get("lstrip")),
                rstrip=bool(token.get("rstrip")),
            )
        vocabulary = _vocabulary(described)
        ids = [*vocabulary.values(), *(t["id"] for t in added)]
        good = (
            all(isinstance(t["content"], str) for t in added)
            and all(type(i) is int and 0 <= i < 1 << 24 for i in ids)
            and bool(ids)
        )
        kind = described["model"].get("type", "BPE")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        good, kind = False, None
    require(good, f"{name} has a tokenizer.json that is none of the tokenizers library; {NEED}.")
    require(
        kind in ("BPE", "Unigram", "WordPiece"),
        f"{name} has a tokenizer.json with pieces of the kind {kind}; known are BPE, Unigram and"
        " WordPiece.",
    )
    return described


def _vocabulary(described: dict[str, Any]) -> dict[str, int]:
    found = described["model"]["vocab"]
    return (
        dict(found) if isinstance(found, dict) else {piece: i for i, (piece, _) in enumerate(found)}
    )


def _unknown(model: dict[str, Any]) -> str | None:
    if model.get("type") == "Unigram":
        return None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _speller(described: dict[str, Any]) -> Callable[[str], bytes]:
    """What a piece of the vocabulary spells, by the way in which this file writes bytes and
    spaces."""
    parts = _types(described.get("pre_tokenizer")) | _types(described.get("decoder"))
    if "ByteLevel" in parts:
        letters = byte_letters()
        return lambda piece: (
            bytes(letters[c] for c in piece) if letters.keys() >= set(piece) else piece.encode()
        )
    if described["model"].get("type") == "WordPiece":
        mark = described["model"].get("continuing_subword_prefix", "##")
        return lambda piece: (
            piece.removeprefix(mark).encode() if piece.startswith(mark) else b" " + piece.encode()
        )
    fallback = "ByteFallback" in parts or bool(described["model"].get("byte_fallback"))

    def spelled(piece: str) -> bytes:
        if fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return piece.replace(sentencepieces.SPACE, " ").encode()

    return spelled


def _types(part: Any) -> set[str]:
    """The types of a pre-tokenizer or decoder, those in a sequence included."""
    if not isinstance(part, dict):
        return set()
    inner = [*part.get("pretokenizers", ()), *part.get("decoders", ())]
    return {part.get("type")}.union(*map(_types, inner))


def _unspeakable(described: dict[str, Any], hidden: set[str]) -> dict[str, Any]:
    """The same tokenizer, in which no text reaches the tokens in `hidden`: each has a new name that
    nobody can know, and no merge makes it.

    The library has a switch against special tokens in texts (`encode_special_tokens`), but pieces
    of a vocabulary that happen to be called like one are found nevertheless: all those of Unigram,
    and whole words where `ignore_merges` is set.
    """
    secret = secrets.token_hex(16)
    renamed = {piece: f"{secret}{n}" for n, piece in enumerate(sorted(hidden))}

    def name(piece):
        return renamed.get(piece, piece)

    model = dict(described["model"])
    model["vocab"] = (
        [[name(p), s] for p, s in model["vocab"]]
        if isinstance(model["vocab"], list)
        else {name(p): i for p, i in model["vocab"].items()}
    )
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = name(model["unk_token"])
    if "merges" in model:
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        model["merges"] = [list(p) for p in pairs if not hidden.intersection((*p, "".join(p)))]
    added = [t | {"content": name(t["content"])} for t in described["added_tokens"]]
    return described | {
        "model": model,
        "added_tokens": added,
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "decoder": None,
    }


def _before_letters(text: str) -> list[str]:
    """Cuts a long text before letters that begin a line: no byte-level pre-tokenizer that passed
    the probes joins anything across that."""
    parts, start = [], 0
    while len(text) - start > CHUNK:
        end = _line(text, start + CHUNK, start + 16 * CHUNK)
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _line(text: str, low: int, high: int) -> int:
    """Where between two places a line begins with a letter after a line that ends visibly, or the
    later place."""
    at = low
    while (at := text.find("\n", at, high)) >= 0:
        if at + 1 < len(text) and text[at + 1].isalpha() and not text[at - 1].isspace():
            return at + 1
        at += 1
    return min(high, len(text))


CHUNK = 1 << 16
"""Characters."""
