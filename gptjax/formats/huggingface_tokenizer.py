"""Tokenizers in the files of a Hugging Face directory: `files` writes any kind of ours, `fitting`
drops tokens that a model has no rows for."""

from __future__ import annotations

import json
from typing import Any

from gptjax.data.tokenizers import json_form, marian, sentencepieces
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.spelling import Special
from gptjax.data.tokenizers.tokenizer import Tokenizer


def files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    """Returns the files that `transformers` reads as the same tokenizer, by name.

    Texts that contain SentencePiece's mark for spaces (U+2581) are the one exception: that form
    cannot tell the mark from a space.

    Args:
      context: maximum number of tokens of the model.
    """
    if tokenizer.kind == "Marian":
        return marian.written_files(tokenizer, context)
    special = tokenizer.special
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if special is not None:
        names = {control.id: name for name, control in tokenizer.controls.items()}
        settings |= {
            "bos_token": names.get(special.bos),
            "eos_token": names.get(special.eos),
            "add_bos_token": special.begins,
        }
    elif (end := json_form.end_name(tokenizer)) is not None:
        settings |= {"bos_token": end, "eos_token": end, "add_bos_token": True}
    kept = [n for n in ("tokenizer.json", "tokenizer.model") if special and n in tokenizer.payload]
    made = {name: tokenizer.payload[name] for name in kept}
    if not made:
        described = json_form.of_tokenizer(tokenizer)
        made = {"tokenizer.json": (json.dumps(described, ensure_ascii=False) + "\n").encode()}
    if "tokenizer.model" in made:
        model = sentencepieces.described(made["tokenizer.model"])
        unknown = model.pieces[model.types.index(sentencepieces.UNKNOWN)]
        settings |= {"tokenizer_class": "LlamaTokenizer", "unk_token": unknown}
    settings["chat_template"] = tokenizer.template
    given = {key: value for key, value in settings.items() if value is not None}
    text = json.dumps(given, indent=2, ensure_ascii=False) + "\n"
    made["tokenizer_config.json"] = text.encode()
    if tokenizer.template is not None:
        made["chat_template.jinja"] = tokenizer.template.encode()
    return made


def fitting(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """Returns the tokenizer without added tokens beyond a model's rows, such as those of images in
    Gemma 3's text models."""
    content = tokenizer.payload.get("tokenizer.json")
    if tokenizer.vocab_size <= rows or content is None:
        return tokenizer
    described = json.loads(content)
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < rows]
    special = tokenizer.special or Special()
    return tokenizers.published("tokenizer.json", json.dumps(described).encode(), special)
