"""Converts the tokenizer of a GGUF file to tokenizer.json, and any tokenizer to GGUF metadata.

Read `tokenizer_of` (metadata → tokenizer), with its two kinds `_byte_level` and `_marked`, then
`metadata_of` (tokenizer → metadata).

Metadata has pieces, merges or scores, and the *name* of how text is cut before pieces are merged
(`tokenizer.ggml.pre`); `CUTS` says what a name means.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.data.tokenizers import json_form, published, sentencepieces
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.json_form import GPT2_PATTERN, QWEN2_PATTERN
from gptjax.data.tokenizers.spelling import Special, control_ids
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats.gguf_file import File, Texts, abbreviate

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`."""
PAD = "[PAD"
"""Beginning of pieces that only pad the vocabulary."""


class Cut(NamedTuple):
    """One way to cut text before pieces are merged, and its names."""

    names: tuple[str, ...]
    """`metadata_of` uses the first."""
    patterns: tuple[str, ...]
    """Regular expressions, applied in order; each cuts the results of the one before into matches
    and the rest."""
    composed: bool = False
    """Unicode is normalised to NFC first."""
    whole: bool = False
    """A word that is a piece stays whole, whatever the merges say."""
    begins: bool = False
    """Texts begin with `bos`, unless the file says otherwise."""


_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CUTS = (
    Cut(("gpt-2", "phi-2", "olmo", "mpt", "gigachat", "exaone4"), (GPT2_PATTERN,)),
    Cut(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        (r"\p{N}", GPT2_PATTERN),
    ),
    Cut(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"),
        (_CASELESS + r"\p{N}{1,3}" + _REST,),
        whole=True,
        begins=True,
    ),
    Cut(("dbrx", "smaug-bpe"), (_CASELESS + r"\p{N}{1,3}" + _REST,)),
    Cut(("qwen2", "deepseek-r1-qwen", "megrez"), (QWEN2_PATTERN,), composed=True),
    Cut(("stablelm2",), (QWEN2_PATTERN,)),
    Cut(("tekken",), (_CASED,), whole=True, begins=True),
    Cut(("default",), (r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]")),
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
"""Control tokens that end an answer, even if the file does not say so."""


# --- metadata → tokenizer


def tokenizer_of(file: File) -> Tokenizer | None:
    """Returns the tokenizer of a file, or `None` if it has none.

    Raises:
      ConfigError: it is of an unsupported kind, or its lists contradict each other.
    """
    if "tokenizer.ggml.model" not in file.fields:
        return None
    pieces, types = _pieces(file)
    kind = file.get("tokenizer.ggml.model", str)
    require(
        kind in ("gpt2", "llama"),
        f"{file.path} has a tokenizer of the kind {abbreviate(kind)}; supported are 'gpt2' and"
        " 'llama'.",
    )
    described, begins = (_byte_level if kind == "gpt2" else _marked)(file, pieces, types)
    special = CONTROL, UNKNOWN
    described["added_tokens"] = [
        json_form.added(i, pieces[i], bool(types[i] in special))
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


def num_pieces(file: File) -> int | None:
    """Returns the number of a file's pieces without padding, or `None` if it has no tokenizer."""
    return len(_pieces(file)[0]) if "tokenizer.ggml.model" in file.fields else None


def _pieces(file: File) -> tuple[list[str], np.ndarray]:
    """The pieces, and the type of each."""
    pieces = file.get("tokenizer.ggml.tokens", Texts).decoded()
    types = _numbers(file, "tokenizer.ggml.token_type", len(pieces), NORMAL)
    while pieces and types[len(pieces) - 1] == UNUSED and pieces[-1].startswith(PAD):
        pieces.pop()
    require(
        len(set(pieces)) == len(pieces) > 0,
        f"{file.path} has duplicate pieces in tokenizer.ggml.tokens, or none; the file is damaged.",
    )
    return pieces, types[: len(pieces)]


def _special(file: File, pieces: list[str], types: np.ndarray, begins: bool) -> Special:
    """The ids that begin and end texts and answers, and the chat template."""

    def named(key: str) -> int | None:
        if f"tokenizer.ggml.{key}_token_id" not in file.fields:
            return None
        i = file.get(f"tokenizer.ggml.{key}_token_id", int)
        require(
            0 <= i < len(pieces),
            f"{file.path}: tokenizer.ggml.{key}_token_id is {i}, and there are {len(pieces)}"
            " pieces.",
        )
        return i

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
        f"{file.path} cuts text as {abbreviate(name)}; supported are"
        f" {', '.join(n for c in CUTS for n in c.names)}.",
    )
    merges = [_pair(merge) for merge in file.get("tokenizer.ggml.merges", Texts).decoded()]
    known = set(pieces)
    good = all({*pair, "".join(pair)} <= known for pair in merges)
    require(
        good,
        f"{file.path} has a merge of pieces that tokenizer.ggml.tokens lacks; the file is damaged.",
    )
    vocabulary = {p: i for i, p in enumerate(pieces)}
    described = json_form.byte_level(
        vocabulary, merges, cut.patterns, composed=cut.composed, whole_words=cut.whole
    )
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
    joined = np.isin(types, (NORMAL, USER))
    return json_form.joined_by_score(pieces, scores, joined, unknown, prefix), True


def _numbers(file: File, key: str, count: int, default: float) -> np.ndarray:
    """A list with one number for each piece; `default` for all if the file has none."""
    if key not in file.fields:
        return np.full(count, default)
    numbers = file.get(key, np.ndarray)
    require(
        len(numbers) == count,
        f"{file.path}: {key} has {len(numbers)} numbers for {count} pieces; the file is damaged.",
    )
    return numbers


# --- tokenizer → metadata


def metadata_of(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Returns the metadata of a tokenizer, padded to `vocab_size` pieces, from which
    `tokenizer_of` returns the tokenizer.

    Raises:
      ConfigError: GGUF cannot express how this tokenizer works.
    """
    if "tokenizer.model" in tokenizer.payload:
        metadata = _of_model(sentencepieces.described(tokenizer.payload["tokenizer.model"]))
    else:
        metadata = _of_json(json_form.of_tokenizer(tokenizer))
    size = len(metadata["tokens"])
    require(
        size <= vocab_size,
        f"the tokenizer has {size} ids and the model {vocab_size}; it needs at least as many.",
    )
    padding = range(size, vocab_size)
    metadata["tokens"] = [*metadata["tokens"], *(f"{PAD}{i}]" for i in padding)]
    metadata["token_type"] = [*metadata["token_type"], *(UNUSED for _ in padding)]
    if "scores" in metadata:
        metadata["scores"] = [*metadata["scores"], *(-1e4 for _ in padding)]
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | _ids(tokenizer)).items()}


def _ids(tokenizer: Tokenizer) -> dict[str, Any]:
    begin, special = tokenizer.begin_of_document, tokenizer.special
    ids = {
        "bos_token_id": begin if special is None else special.bos,
        "eos_token_id": tokenizer.end_of_document,
        "eot_token_id": next(iter(tokenizer.ends), None),
    }
    given = {key: i for key, i in ids.items() if i is not None}
    return {"add_bos_token": begin is not None} | given


def _of_model(model: sentencepieces.Described) -> dict[str, Any]:
    require(
        model.by_pairs,
        "the tokenizer chooses pieces by likelihood (unigram), and GGUF's llama tokenizer joins"
        " pieces by pairs; write a Hugging Face directory, or train with algorithm='bpe'.",
    )
    return _llama(model.pieces, model.scores, model.types, model.prefix)


def _llama(
    pieces: list[str], scores: list[float], types: list[int], prefix: bool
) -> dict[str, Any]:
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
    names = {i: piece for piece, i in model["vocab"].items()}
    names |= {token["id"]: token["content"] for token in added}
    pieces = [names.get(i, f"{PAD}{i}]") for i in range(max(names) + 1)]
    cuts = list(json_form.patterns(described.get("pre_tokenizer")))
    if described.get("pre_tokenizer") and None not in cuts:
        metadata = _of_bytes(described, pieces, cuts)
    else:
        metadata = _of_marked(described, pieces)
    for token in added:
        kind = CONTROL if token["special"] else USER
        unknown = token["content"] == model.get("unk_token")
        metadata["token_type"][token["id"]] = UNKNOWN if unknown else kind
    return metadata


def _of_bytes(described: dict[str, Any], pieces: list[str], cuts: list[str]) -> dict[str, Any]:
    """Byte-level pieces, by the name of how text is cut before they are merged."""
    model, merges = described["model"], published.merges(described)
    composed = (described.get("normalizer") or {}).get("type") == "NFC"
    whole = bool(model.get("ignore_merges"))
    same = [c for c in CUTS if not merges or (list(c.patterns) == cuts and c.whole == whole)]
    same.sort(key=lambda c: c.composed != composed)
    require(
        bool(same),
        "the tokenizer cuts text in a way that has no name in GGUF; write a Hugging Face"
        " directory.",
    )
    return {
        "model": "gpt2",
        "pre": same[0].names[0],
        "tokens": pieces,
        "token_type": [NORMAL] * len(pieces),
        "merges": [" ".join(pair) for pair in merges],
    }


def _of_marked(described: dict[str, Any], pieces: list[str]) -> dict[str, Any]:
    """SentencePiece's pieces; earlier merges get better scores."""
    model, merges = described["model"], published.merges(described)
    prefix = _space_prefix(described)
    require(
        prefix is not None and bool(model.get("byte_fallback")),
        "the tokenizer is neither of bytes nor of SentencePiece's kind; write a Hugging Face"
        " directory.",
    )
    rank = {left + right: -float(n) for n, (left, right) in reversed(list(enumerate(merges)))}
    scores = [rank.get(piece, -float(len(merges) + 1)) for piece in pieces]
    byte = re.compile("<0x[0-9A-F]{2}>")
    types = [BYTE if byte.fullmatch(piece) else NORMAL for piece in pieces]
    metadata = _llama(pieces, scores, types, bool(prefix))
    if model.get("unk_token") in model["vocab"]:
        metadata["unknown_token_id"] = model["vocab"][model["unk_token"]]
    return metadata


def _space_prefix(described: dict[str, Any]) -> bool | None:
    """Whether a space is put before a text whose spaces are written as ▁; `None` means that they
    are not, or that words are cut apart."""
    normalizer, cut = described.get("normalizer") or {}, described.get("pre_tokenizer")
    steps = [
        n.get("type") for n in normalizer.get("normalizers", [normalizer] if normalizer else [])
    ]
    match cut:
        case {"type": "Metaspace", "split": False} if not steps:
            return cut.get("prepend_scheme") != "never"
        case None | {"type": "Split", "pattern": {"String": " "}}:  # no space is left to split at
            spaced = "Replace" in steps and {*steps} <= {"Prepend", "Replace"}
            return "Prepend" in steps if spaced else None
    return None
