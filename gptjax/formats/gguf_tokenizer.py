"""The tokenizer in a GGUF file's metadata, as the `tokenizer.json` that a published tokenizer is
made of, and back.

Read `read` (metadata → tokenizer), its two kinds `_byte_level` and `_marked`, then `write`
(tokenizer → metadata).

Metadata holds pieces, merges or scores, and the *name* of how text is cut before pieces are merged
(`tokenizer.ggml.pre`); what a name means is the table `CUTS`, by the tokenizers that the names were
given for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.data.tokenizers import sentencepieces
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.spelling import Special, control_ids
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import huggingface_tokenizer
from gptjax.formats.gguf_file import File, Texts, short

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`."""
PAD = "[PAD"
"""How pieces begin that only fill a padded vocabulary."""


class Cut(NamedTuple):
    """How text is cut before pieces are merged, for the names that mean the same."""

    names: tuple[str, ...]
    """The first is the one that is written."""
    patterns: tuple[str, ...]
    """Each cuts what the one before has left into matches and the rest."""
    composed: bool = False
    """Unicode is composed (NFC) first."""
    whole: bool = False
    """A word that is a piece stays whole, whatever the merges say."""
    begins: bool = False
    """A text begins with the id for that, unless the file says otherwise."""


_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CUTS = (
    Cut(("gpt-2", "phi-2", "olmo", "mpt", "gigachat", "exaone4"), (_WORDS,)),
    Cut(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        (r"\p{N}", _WORDS),
    ),
    Cut(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"),
        (_CASELESS + r"\p{N}{1,3}" + _REST,),
        whole=True,
        begins=True,
    ),
    Cut(("dbrx", "smaug-bpe"), (_CASELESS + r"\p{N}{1,3}" + _REST,)),
    Cut(("qwen2", "deepseek-r1-qwen", "megrez"), (_CASELESS + r"\p{N}" + _REST,), composed=True),
    Cut(("stablelm2",), (_CASELESS + r"\p{N}" + _REST,)),
    Cut(("tekken",), (_CASED,), whole=True, begins=True),
    Cut(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")),
)
"""Sources: the tokenizers of GPT-2, SmolLM, Llama 3, Qwen 2, StableLM 2 and Mistral NeMo;
llama.cpp's default."""

ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<eos>",
)
"""Control tokens after which an answer is over, whether a file says so or not."""


# --- metadata → tokenizer
# ----------------------------------------------------------------------------------------


def read(file: File) -> Tokenizer | None:
    """Gives the tokenizer of a file; none where it has none.

    Raises:
      ConfigError: it is of a kind that is not known here, or its lists do not fit together.
    """
    if "tokenizer.ggml.model" not in file.fields:
        return None
    pieces, types = _pieces(file)
    kind = file.get("tokenizer.ggml.model", str)
    require(
        kind in ("gpt2", "llama"),
        f"{file.path} has a tokenizer of the kind {short(kind)}; 'gpt2' and 'llama' can be read.",
    )
    described, begins = (_byte_level if kind == "gpt2" else _marked)(file, pieces, types)
    special = CONTROL, UNKNOWN
    described["added_tokens"] = [
        added(i, pieces[i], types[i] in special)
        for i in np.flatnonzero(np.isin(types, (*special, USER))).tolist()
    ]
    special = _special(file, pieces, types, begins)
    control = control_ids(
        described["added_tokens"], special.template, (special.bos, special.eos, *special.ends)
    )
    return tokenizers.published(
        "tokenizer.json",
        json.dumps(described).encode(),
        dataclasses.replace(special, control=control),
    )


def size(file: File) -> int | None:
    """Gives the number of a file's pieces, those that only fill its vocabulary left out; none where
    it has no tokenizer."""
    return len(_pieces(file)[0]) if "tokenizer.ggml.model" in file.fields else None


def _pieces(file: File) -> tuple[list[str], np.ndarray]:
    """The pieces, and what each is."""
    pieces = file.get("tokenizer.ggml.tokens", Texts).decoded()
    types = _numbers(file, "tokenizer.ggml.token_type", len(pieces), NORMAL)
    while pieces and types[len(pieces) - 1] == UNUSED and pieces[-1].startswith(PAD):
        pieces.pop()
    require(
        len(set(pieces)) == len(pieces) > 0,
        f"{file.path} has a piece twice in tokenizer.ggml.tokens, or none; the file is damaged.",
    )
    return pieces, types[: len(pieces)]


def _special(file: File, pieces: list[str], types: np.ndarray, begins: bool) -> Special:
    """What the file says of ids that begin and end a text."""

    def named(key: str) -> int | None:
        if f"tokenizer.ggml.{key}_token_id" not in file.fields:
            return None
        found = file.get(f"tokenizer.ggml.{key}_token_id", int)
        require(
            0 <= found < len(pieces),
            f"{file.path}: tokenizer.ggml.{key}_token_id is {found}, and there are {len(pieces)}"
            " pieces.",
        )
        return found

    bos, eos = named("bos"), named("eos")
    known = [i for i, piece in enumerate(pieces) if piece in ENDS and types[i] == CONTROL]
    ends = dict.fromkeys(
        i for i in (named("eot"), named("eom"), *known) if i is not None and i != eos
    )
    begins = file.get("tokenizer.ggml.add_bos_token", bool, begins)
    template = file.get("tokenizer.chat_template", str, "") or None
    return Special(bos, eos, begins and bos is not None, tuple(ends), None, template)


def _byte_level(file: File, pieces: list[str], types: np.ndarray) -> tuple[dict[str, Any], bool]:
    """Pieces of bytes, written in GPT-2's letters."""
    name = file.get("tokenizer.ggml.pre", str, "default")
    cut = next((c for c in CUTS if name in c.names), None)
    require(
        cut is not None,
        f"{file.path} cuts text as {short(name)}; known are"
        f" {', '.join(n for c in CUTS for n in c.names)}.",
    )
    merges = [_pair(merge) for merge in file.get("tokenizer.ggml.merges", Texts).decoded()]
    known = set(pieces)
    good = all({*pair, "".join(pair)} <= known for pair in merges)
    require(
        good,
        f"{file.path} has a merge of pieces that tokenizer.ggml.tokens lacks; the file is damaged.",
    )
    splits = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in cut.patterns
    ]
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    model = {
        "type": "BPE",
        "vocab": {p: i for i, p in enumerate(pieces)},
        "merges": merges,
        "ignore_merges": cut.whole,
    }
    described = {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if cut.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "decoder": level | {"use_regex": True},
        "model": model,
    }
    return described, cut.begins


def _pair(merge: str) -> list[str]:
    """The two pieces of a merge; a space may begin the first."""
    at = merge.find(" ", 1)
    return [merge[:at], merge[at + 1 :]] if at > 0 else [merge, ""]


def _marked(file: File, pieces: list[str], types: np.ndarray) -> tuple[dict[str, Any], bool]:
    """SentencePiece's pieces, spaces written as ▁, joined by score; bytes for all else."""
    scores = _numbers(
        file, "tokenizer.ggml.scores", file.get("tokenizer.ggml.tokens", Texts).count, 0.0
    )[: len(pieces)]
    unknown = file.get(
        "tokenizer.ggml.unknown_token_id",
        int,
        next(iter(np.flatnonzero(types == UNKNOWN).tolist()), 0),
    )
    require(
        0 <= unknown < len(pieces),
        f"{file.path}: tokenizer.ggml.unknown_token_id is {unknown}, and there are {len(pieces)}"
        " pieces.",
    )
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    return marked(pieces, scores, np.isin(types, (NORMAL, USER)), unknown, prefix), True


def marked(
    pieces: Sequence[str], scores: np.ndarray, joined: np.ndarray, unknown: int, prefix: bool
) -> dict[str, Any]:
    """The tokenizer.json of SentencePiece's kind of BPE, in which the pair is joined first whose
    union has the best score.

    Args:
      pieces: spaces are written as ▁, bytes as `<0x0A>`.
      joined: which of them are joined from others.
      prefix: a space is put before a text.

    Source: Kudo and Richardson 2018, SentencePiece, arXiv:1808.06226.
    """
    ids = {p: i for i, p in enumerate(pieces)}
    known = {pieces[i] for i in np.flatnonzero(joined).tolist()}
    merges = [
        (float(scores[ids[p]]), p[:k], p[k:])
        for p in known
        for k in range(1, len(p))
        if p[:k] in known and p[k:] in known
    ]
    merges.sort(key=lambda m: (-m[0], -len(m[1]), ids[m[1]], ids[m[2]]))
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    fallback = all(f"<0x{b:02X}>" in ids for b in range(256))
    return {
        "version": "1.0",
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": "▁"}] if prefix else []), space],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "vocab": ids,
            "merges": [[left, right] for _, left, right in merges],
            "unk_token": pieces[unknown],
            "fuse_unk": True,
            "byte_fallback": fallback,
        },
    }


def added(i: int, piece: str, special: bool) -> dict[str, Any]:
    """A token that is found in texts before they are cut."""
    return {
        "id": i,
        "content": piece,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _numbers(file: File, key: str, count: int, default: float) -> np.ndarray:
    """A list with a number for each piece; without it the default for all."""
    if key not in file.fields:
        return np.full(count, default)
    found = file.get(key, np.ndarray)
    require(
        len(found) == count,
        f"{file.path}: {key} has {len(found)} numbers for {count} pieces; the file is damaged.",
    )
    return found


# --- tokenizer → metadata
# ----------------------------------------------------------------------------------------


def write(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Gives the metadata of a tokenizer, its vocabulary filled up to `vocab_size`; `read` gives the
    tokenizer back.

    Raises:
      ConfigError: GGUF can't say how this tokenizer works.
    """
    if "tokenizer.model" in tokenizer.payload:
        found = _of_model(*sentencepieces.described(tokenizer.payload["tokenizer.model"]))
    else:
        found = _of_json(json.loads(huggingface_tokenizer.files(tokenizer, 0)["tokenizer.json"]))
    pieces, types = found["tokens"], found["token_type"]
    require(
        len(pieces) <= vocab_size,
        f"the tokenizer has {len(pieces)} ids and the model {vocab_size}; it needs at least as"
        " many.",
    )
    missing = range(len(pieces), vocab_size)
    found["tokens"], found["token_type"] = (
        pieces + [f"{PAD}{i}]" for i in missing],
        types + [UNUSED for _ in missing],
    )
    if "scores" in found:
        found["scores"] += [-1e4 for _ in missing]
    return {f"tokenizer.ggml.{key}": value for key, value in (found | _ids(tokenizer)).items()}


def _ids(tokenizer: Tokenizer) -> dict[str, Any]:
    begin, special = tokenizer.begin_of_document, tokenizer.special
    ids = {
        "bos_token_id": begin if special is None else special.bos,
        "eos_token_id": tokenizer.end_of_document,
        "eot_token_id": next(iter(tokenizer.ends), None),
    }
    return {"add_bos_token": begin is not None} | {
        key: i for key, i in ids.items() if i is not None
    }


def _of_bytes(pieces: list[str], merges: list[str], cut: str) -> dict[str, Any]:
    return {
        "model": "gpt2",
        "pre": cut,
        "tokens": pieces,
        "token_type": [NORMAL] * len(pieces),
        "merges": merges,
    }


def _of_model(
    pieces: list[str], scores: list[float], types: list[int], bpe: bool, prefix: bool
) -> dict[str, Any]:
    need = (
        "GGUF's llama tokenizer joins pieces by pairs; write a Hugging Face directory, or train"
        " with algorithm='bpe'"
    )
    require(bpe, f"the tokenizer chooses pieces by likelihood (unigram), and {need}.")
    return {
        "model": "llama",
        "pre": "default",
        "tokens": pieces,
        "scores": scores,
        "token_type": types,
        "add_space_prefix": prefix,
    }


def _of_json(described: dict[str, Any]) -> dict[str, Any]:
    model, added = described["model"], described.get("added_tokens", [])
    require(
        model.get("type", "BPE") == "BPE",
        f"the tokenizer is of the kind {model.get('type')}, and GGUF's are BPE; write a Hugging"
        " Face directory.",
    )
    by_id = {i: piece for piece, i in model["vocab"].items()} | {
        t["id"]: t["content"] for t in added
    }
    pieces = [by_id.get(i, f"{PAD}{i}]") for i in range(max(by_id) + 1)]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    patterns = list(_patterns(described.get("pre_tokenizer")))
    if described.get("pre_tokenizer") and None not in patterns:
        composed = (described.get("normalizer") or {}).get("type") == "NFC"
        same = [
            c
            for c in CUTS
            if not merges
            or (list(c.patterns) == patterns and c.whole == bool(model.get("ignore_merges")))
        ]
        same.sort(key=lambda c: c.composed != composed)
        require(
            bool(same),
            "the tokenizer cuts text in a way that has no name in GGUF; write a Hugging Face"
            " directory.",
        )
        found = _of_bytes(pieces, [" ".join(m) for m in merges], same[0].names[0])
    else:
        normal = described.get("normalizer") or {}
        parts = {n.get("type") for n in normal.get("normalizers", [normal])}
        require(
            described.get("pre_tokenizer") is None
            and bool(model.get("byte_fallback"))
            and "Replace" in parts
            and parts <= {"Prepend", "Replace"},
            "the tokenizer is neither of bytes nor of SentencePiece's kind; write a Hugging Face"
            " directory.",
        )
        rank = {left + right: -float(n) for n, (left, right) in reversed(list(enumerate(merges)))}
        scores = [rank.get(piece, -float(len(merges) + 1)) for piece in pieces]
        found = _of_model(pieces, scores, [NORMAL] * len(pieces), True, "Prepend" in parts)
        found["token_type"] = [
            BYTE if len(p) == 6 and p.startswith("<0x") and p.endswith(">") else NORMAL
            for p in pieces
        ]
        if model.get("unk_token") in model["vocab"]:
            found["unknown_token_id"] = model["vocab"][model["unk_token"]]
    for token in added:
        unknown = token["content"] == model.get("unk_token")
        found["token_type"][token["id"]] = (
            UNKNOWN if unknown else CONTROL if token["special"] else USER
        )
    return found


def _patterns(cut: Any) -> Iterable[str | None]:
    """The patterns by which a pre-tokenizer cuts, one after another; none stands for what is no
    pattern."""
    match cut:
        case {"type": "Sequence", "pretokenizers": list(inner)}:
            for one in inner:
                yield from _patterns(one)
        case {"type": "Digits"}:
            yield r"\p{N}" if cut.get("individual_digits") else r"\p{N}+"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            yield from (_WORDS,) if cut.get("use_regex", True) else ()
        case {
            "type": "Split",
            "pattern": {"Regex": str(pattern)},
            "behavior": "Isolated",
        } if not cut.get("invert"):
            yield pattern
        case _:
            yield None
