"""Tokenizers in the files of a directory, as Hugging Face and OpenAI lay them out.

Read the configs `Published` and `GPT2`; then `read_directory` (any published tokenizer) with
`_content` (its pieces) and `_special` (what begins and ends texts); then `read_gpt2`. Nothing in a
directory is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.core.config import require
from gptjax.data.tokenizers import json_form, marian, published, sentencepieces
from gptjax.data.tokenizers.json_form import END, GPT2_PATTERN, QWEN2_PATTERN
from gptjax.data.tokenizers.published import NEED
from gptjax.data.tokenizers.spelling import Special, control_ids, letters


@dataclass(frozen=True)
class Published:
    """The tokenizer of a published model, from its Hugging Face files."""

    path: str
    """A folder with tokenizer.json, tokenizer.model, or vocab.json and merges.txt;
    tokenizer_config.json beside it is read too."""


@dataclass(frozen=True)
class GPT2:
    """GPT-2's byte-level pieces, from its vocabulary files."""

    path: str
    """A folder with encoder.json and vocab.bpe, or vocab.json and merges.txt, or tokenizer.json."""


SLOW = {
    "GPT2": (GPT2_PATTERN, False),
    "CodeGen": (GPT2_PATTERN, False),
    "Qwen2": (QWEN2_PATTERN, True),
}
"""`tokenizer_class` without "Tokenizer", of tokenizers that are made of vocab.json and merges.txt →
how they cut text, and whether they compose Unicode first."""


PIECES = "spiece.model"
"""How some models call their SentencePiece model."""
FILES = (*published.KINDS, "vocab.json", PIECES)
"""A folder with one of them holds a tokenizer."""
AS_THEY_ARE = {"T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast"}
"""Classes whose ids are those of that file; others move them (Pegasus, mBART)."""


def read_directory(folder: Path) -> tuple[str, dict[str, bytes]]:
    """Returns the kind and the files of the tokenizer in a Hugging Face directory.

    Raises:
      ConfigError: there is none, it is of an unsupported class, or its files are damaged.
    """
    settings = _object(folder / "tokenizer_config.json")
    if marian.has_marian(folder):
        return "Marian", marian.marian_files(folder)
    name, content = _content(folder, settings)
    return published.payload(name, content, _special(folder, settings, name, content))


def _content(folder: Path, settings: dict[str, Any]) -> tuple[str, bytes]:
    """The file that holds all pieces, and its bytes; made from several where there is none."""
    name = next((n for n in published.KINDS if (folder / n).is_file()), None)
    file = folder / (name or PIECES)
    if name is None and file.is_file() and str(settings.get("tokenizer_class")) in AS_THEY_ARE:
        name = "tokenizer.model"
    if name is None:
        return "tokenizer.json", json.dumps(_slow(folder, settings)).encode()
    content = file.read_bytes()
    if name == "tokenizer.model":
        tokens = list(_added(folder, settings, {}).values())
        controls = control_ids(tokens, _template(folder, settings), ())
        if controls is None:
            controls = tuple(token["id"] for token in tokens if token["special"])
        ids = {token["content"]: token["id"] for token in tokens}
        content = sentencepieces.extended(content, ids, controls) if ids else content
    return name, content


def _slow(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a directory with vocab.json and merges.txt, by its `tokenizer_class`,
    with all its added tokens."""
    files = [folder / "vocab.json", folder / "merges.txt"]
    require(all(f.is_file() for f in files), f"{folder} has no tokenizer; {NEED}.")
    named = settings.get("tokenizer_class") or "GPT2Tokenizer"
    cut = SLOW.get(str(named).removesuffix("Fast").removesuffix("Tokenizer"))
    require(
        cut is not None and not settings.get("add_prefix_space"),
        f"{folder} has a tokenizer of the class {named!r} and no tokenizer.json, which only"
        f" {', '.join(SLOW)}Tokenizer can do without, and not with add_prefix_space; {NEED}.",
    )
    pattern, composed = cut
    vocabulary, merges = _pieces(*files, NEED)
    described = json_form.byte_level(vocabulary, merges, (pattern,), composed=composed)
    tokens = _added(folder, settings, vocabulary)
    described["added_tokens"] = [tokens[i] for i in sorted(tokens)]
    return described


def _added(
    folder: Path, settings: dict[str, Any], vocabulary: Mapping[str, int]
) -> dict[int, dict[str, Any]]:
    """The added tokens of a directory without tokenizer.json, by id."""
    tokens = {
        i: json_form.added(i, text, special=False)
        for text, i in _object(folder / "added_tokens.json").items()
    }
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    for i, token in (settings.get("added_tokens_decoder") or {}).items():
        more = {flag: bool(token.get(flag)) for flag in flags}
        tokens[int(i)] = json_form.added(
            int(i), token["content"], bool(token.get("special")), **more
        )
    known = dict(vocabulary) | {token["content"]: i for i, token in tokens.items()}
    special = settings | _object(folder / "special_tokens_map.json")
    names = [special.get(f"{role}_token") for role in ("bos", "eos", "unk", "pad")]
    for token in (*names, *(special.get("additional_special_tokens") or ())):
        i = known.get(_text(token))
        if i is not None:
            tokens[i] = tokens.get(i, json_form.added(i, _text(token), True)) | {"special": True}
    return tokens


def _special(folder: Path, settings: dict[str, Any], name: str, content: bytes) -> Special:
    """What begins and ends texts and answers, what no text may yield, and the chat template."""
    where, tokens = str(folder), []
    if name == "tokenizer.json":
        described = published.parsed(content, where)
        tokens = described["added_tokens"]
        ids = published.vocabulary(described) | {t["content"]: t["id"] for t in tokens}
    else:
        ids = sentencepieces.controls(content, where)
    named, known = _object(folder / "special_tokens_map.json"), set(ids.values())
    bos, eos = (
        ids.get(_text(settings.get(role)) or _text(named.get(role)))
        for role in ("bos_token", "eos_token")
    )
    if name == "tokenizer.model" and bos is None and eos is None:
        bos, eos = ids.get("<s>"), ids.get("</s>")
    generation, config = _object(folder / "generation_config.json"), _object(folder / "config.json")
    stops = [
        i
        for i in (*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id")))
        if i in known
    ]
    bos = next((i for i in (bos, *_ids(config.get("bos_token_id"))) if i in known), None)
    eos = next((i for i in (eos, *stops) if i in known), None)
    ends = tuple(i for i in dict.fromkeys(stops) if i != eos)
    begins = settings.get("add_bos_token")
    if begins is None:
        begins = name == "tokenizer.model" or published.begins_with(content, bos)
    template = _template(folder, settings)
    control = control_ids(tokens, template, (bos, eos, *ends))
    return Special(bos, eos, bool(begins) and bos is not None, ends, control, template)


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The text of the chat template, from its own file or the configuration; of several, the one
    that is called default."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    require(
        isinstance(value, dict),
        f"{path} is not a JSON object; restore it from where the model came from.",
    )
    return value


def _ids(value: Any) -> list[int]:
    """Ids, written as one or as a list of them."""
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]


def _text(token: Any) -> str | None:
    """The text of a token that is written as a string or as an object."""
    if isinstance(token, dict):
        return token.get("content")
    return token if isinstance(token, str) else None


# --- GPT-2

NEED_GPT2 = (
    "give a folder with encoder.json and vocab.bpe, or vocab.json and merges.txt, or"
    " tokenizer.json: --data.tokenizer.path DIR"
)


def read_gpt2(folder: Path) -> dict[str, bytes]:
    """Returns vocabulary and merges as the files vocab.json and merges.txt, whichever hold them.

    Raises:
      ConfigError: there are no such files, or they hold another tokenizer.
    """
    forms = [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")]
    form = next((names for names in forms if all((folder / n).is_file() for n in names)), None)
    if form is not None:
        vocabulary, merges = _pieces(folder / form[0], folder / form[1], NEED_GPT2)
    else:
        path = folder / "tokenizer.json"
        require(path.is_file(), f"{folder} has no GPT-2 vocabulary; {NEED_GPT2}.")
        described = published.parsed(path.read_bytes(), str(folder))
        others = [t["content"] for t in described["added_tokens"] if t["content"] != END]
        others += [described.get("normalizer")]
        require(
            list(json_form.patterns(described.get("pre_tokenizer"))) == [GPT2_PATTERN]
            and not any(others),
            f"{folder} has a tokenizer.json of another kind than GPT-2's; {NEED_GPT2}.",
        )
        by_id = sorted(published.vocabulary(described).items(), key=lambda item: item[1])
        vocabulary, merges = dict(by_id), published.merges(described)
        _require_pieces(vocabulary, merges, path, NEED_GPT2)
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    return {
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": f"#version: 0.2\n{lines}".encode(),
    }


def _pieces(
    vocabulary: Path, merges: Path, need: str
) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """Pieces by their ids, in order, and merges, from two files in OpenAI's form."""
    try:
        ids = dict(sorted(json.loads(vocabulary.read_bytes()).items(), key=lambda item: item[1]))
        lines = merges.read_text(encoding="utf-8").split("\n")
        pairs = [
            tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")
        ]
    except (ValueError, TypeError, AttributeError):
        ids, pairs = {}, []
    _require_pieces(ids, pairs, vocabulary, need)
    return ids, pairs


def _require_pieces(
    vocabulary: Mapping[str, int], merges: list[tuple[str, ...]], path: Path, need: str
) -> None:
    """Refuses what is not a vocabulary of bytes in GPT-2's letters with its merges."""
    known = set(letters())
    good = (
        list(vocabulary.values()) == list(range(len(vocabulary)))
        and known <= vocabulary.keys()
        and all(len(pair) == 2 and {*pair, "".join(pair)} <= vocabulary.keys() for pair in merges)
    )
    require(good, f"{path} and its merges are not a GPT-2 vocabulary; {need}.")
