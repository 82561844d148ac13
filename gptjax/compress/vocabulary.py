"""A vocabulary cut down to a corpus: the tokens that its text needs, and those without which some
text could not be spelled.

Text of the corpus keeps its tokens, under other numbers, and so the model's predictions; other text
is spelled with more of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Int, Params
from gptjax.core.config import require
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.json_form import of_files
from gptjax.data.tokenizers.published import merges, vocabulary
from gptjax.data.tokenizers.spelling import Special
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import OpenedModel


def trim_vocabulary(model: OpenedModel, texts: Iterable[str]) -> OpenedModel:
    """Returns the model with the tokens that some texts need.

    Raises:
      ConfigError: its tokenizer is not one that joins pieces of a tokenizer.json (BPE), or the
        model reads more than text.
    """
    require(
        model.config.vision is None and model.config.frames is None,
        "this model reads pictures or sound, whose marks are tokens that no text shows; its"
        " vocabulary stays whole (omit --trim-vocabulary).",
    )
    tokenizer = model.tokenizer
    described = {} if tokenizer is None else _described(tokenizer)
    require(
        tokenizer is not None and described.get("model", {}).get("type") == "BPE",
        "a vocabulary is cut down where a tokenizer.json joins pieces (BPE); this model has another"
        " kind, or none.",
    )
    used: set[int] = set()
    for text in texts:
        used.update(np.unique(tokenizer.encode(text)).tolist())
    kept = np.asarray(sorted(_needed(described, used, tokenizer)), np.int32)
    config = dataclasses.replace(model.config, vocab_size=len(kept))
    smaller = _renumbered(described, tokenizer.special or Special(), kept)
    params = _rows(model.params, kept)
    about = dataclasses.replace(
        model.about,
        pad=_new(kept, model.about.pad),
        mask=_new(kept, model.about.mask),
        generation=_settings(kept, model.about.generation),
    )
    return model._replace(config=config, params=params, tokenizer=smaller, about=about)


def _described(tokenizer: Tokenizer) -> dict[str, Any]:
    if tokenizer.special is None or "tokenizer.json" not in tokenizer.payload:
        return {}
    return of_files(tokenizer.payload)


def _needed(described: dict[str, Any], used: set[int], tokenizer: Tokenizer) -> set[int]:
    """The ids used, all added tokens, pieces that nothing joins, and of every kept piece the parts
    that may be joined to it: so a text of kept tokens is joined in the very order as before."""
    ids = vocabulary(described)
    parts: dict[str, list[str]] = {}
    for pair in merges(described):
        parts.setdefault("".join(pair), []).extend(pair)
    added = {token["id"] for token in described["added_tokens"]}
    special = tokenizer.special or Special()
    named = {special.bos, special.eos, *special.ends, *(special.control or ())} - {None}
    names = {i: piece for piece, i in ids.items()}
    queue = [names[i] for i in used if i in names]
    queue += [piece for piece in ids if piece not in parts]
    kept: set[str] = set()
    while queue:
        piece = queue.pop()
        if piece not in kept:
            kept.add(piece)
            queue += [part for part in parts.get(piece, ()) if part in ids]
    return {ids[piece] for piece in kept} | added | named | (used - names.keys())


def _new(kept: Int[np.ndarray, " V"], old: int | None) -> int | None:
    """The new number of a token; `None` of one that is gone."""
    if old is None:
        return None
    place = int(np.searchsorted(kept, old))
    return place if place < len(kept) and kept[place] == old else None


def _settings(kept: Int[np.ndarray, " V"], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of generation with the new numbers of the tokens that they name."""

    def renumbered(value: Any) -> Any:
        if isinstance(value, list):
            return [new for new in map(renumbered, value) if new is not None]
        return _new(kept, value) if type(value) is int else value

    lists = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
    return {
        name: renumbered(value) if name.endswith("_token_id") or name in lists else value
        for name, value in generation.items()
    }


def _renumbered(described: dict[str, Any], special: Special, kept: np.ndarray) -> Tokenizer:
    """The tokenizer with the kept tokens, numbered in their order."""
    new = {old: i for i, old in enumerate(kept.tolist())}
    ids = {piece: new[i] for piece, i in vocabulary(described).items() if i in new}
    pairs = [
        list(pair)
        for pair in merges(described)
        if all(part in ids for part in (*pair, "".join(pair)))
    ]
    added = [{**token, "id": new[token["id"]]} for token in described["added_tokens"]]
    model = {**described["model"], "vocab": ids, "merges": pairs}
    content = {**described, "model": model, "added_tokens": added, "post_processor": None}
    renamed = dataclasses.replace(
        special,
        bos=_new(kept, special.bos),
        eos=_new(kept, special.eos),
        ends=tuple(new[i] for i in special.ends),
        control=None if special.control is None else tuple(new[i] for i in special.control),
    )
    return tokenizers.published("tokenizer.json", json.dumps(content).encode(), renamed)


def _rows(params: Params, kept: np.ndarray) -> Params:
    """The parameters with the kept tokens' rows of the table and columns of the output."""
    cut = {
        "embedding": lambda leaf: jnp.take(leaf, kept, axis=0),
        "head": lambda leaf: jnp.take(leaf, kept, axis=-1),
        "logits": lambda leaf: jnp.take(leaf, kept, axis=-1),
    }
    return {
        name: jax.tree.map(cut[name], tree) if name in cut else tree
        for name, tree in params.items()
    }
