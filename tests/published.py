"""Tiny tokenizers in the files of published models, made in a blink with the library that wrote
those."""

from __future__ import annotations

import json
import random
import re

import tokenizers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

PROSE = (
    "The quick brown fox isn't 12 years old: user and assistant say hello.\n  He jumps\tover\n\nthe"
    " lazy dog, doesn't he? Système. "
)
WORDS = random.Random(0)
TEXTS = [" ".join(WORDS.choices(re.findall(r"\w+|\W", PROSE), k=12)) for _ in range(300)] + [PROSE]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(
    controls: tuple[str, ...], *, begins: str | None = None, split: bool = True, **flags: bool
) -> bytes:
    """Byte-level BPE as in GPT-2 (or with a split by `SPLIT`), behind it control tokens, and
    `begins` before a text if there is one."""
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    made.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"), level])
        if split
        else level
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(
        [AddedToken(c, normalized=False, special=True, **flags) for c in controls]
    )
    if begins:
        made.post_processor = processors.TemplateProcessing(
            single=f"{begins} $A",
            pair=f"{begins} $A $B",
            special_tokens=[(begins, made.token_to_id(begins))],
        )
    return made.to_str().encode()


def fallback(
    controls: tuple[str, ...] = (),
    *,
    unigram: bool = False,
    prepend: bool = True,
    first: bool = False,
    **flags: bool,
) -> bytes:
    """Pieces with a mark for spaces and 256 bytes for all else, as in Llama 2 and Mistral (BPE) or
    T5 (Unigram); `<s>` before a text.

    A space is put before each text, those behind a control token included; with `first` only before
    a text that begins all.
    """
    own = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    marked = [t.replace(" ", "▁") for t in TEXTS]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learned.train_from_iterator(marked, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    pieces = json.loads(learned.to_str())["model"]
    names = [*own, *(p for p in pieces["vocab"] if p not in own)]
    if unigram:
        made = Tokenizer(
            models.Unigram(
                [(p, -float(n > 2) * (5 + n / 100)) for n, p in enumerate(names)],
                unk_id=0,
                byte_fallback=True,
            )
        )
    else:
        merges = [
            tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in pieces["merges"]
        ]
        made = Tokenizer(
            models.BPE(
                {p: i for i, p in enumerate(names)},
                merges,
                unk_token="<unk>",
                fuse_unk=True,
                byte_fallback=True,
            )
        )
    replace = normalizers.Replace(" ", "▁")
    made.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    )
    if first:
        made.normalizer, made.pre_tokenizer = (
            None,
            pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False),
        )
    stripped = [decoders.Strip(" ", 1, 0)] if prepend else []
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    made.add_special_tokens([AddedToken(c, normalized=False, special=True) for c in own[:3]])
    made.add_special_tokens(
        [AddedToken(c, normalized=False, special=True, **flags) for c in controls]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return made.to_str().encode()
