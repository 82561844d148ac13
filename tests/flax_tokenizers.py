"""Tokenizers as the former Flax families have them, trained on a few words and saved by
`transformers`. Needs transformers.

Read `TOKENIZERS` at the end first.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import tokenizers as hf
from conftest import documents
from peers import transformers

TEXTS = [text[:400] for text in documents(40)]


def _byte_level(first: list[str]) -> hf.Tokenizer:
    inner = hf.Tokenizer(hf.models.BPE())
    inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=first,
        show_progress=False,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def _saved(inner: hf.Tokenizer, folder: Path, **names: str) -> int:
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    made.save_pretrained(folder)
    return len(made)


def _around(inner: hf.Tokenizer, template: str) -> None:
    names = [word for word in template.split() if word != "$A"]
    ids = [(name, inner.token_to_id(name)) for name in names]
    inner.post_processor = hf.processors.TemplateProcessing(template, special_tokens=ids)


def gpt2(folder: Path) -> int:
    """As GPT-2's, without a beginning."""
    inner = _byte_level(["<|endoftext|>"])
    return _saved(inner, folder, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def opt(folder: Path) -> int:
    """Byte-level, and texts begin with the id that ends them."""
    inner = _byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    _around(inner, "</s> $A")
    return _saved(inner, folder, bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def roberta(folder: Path) -> int:
    """Byte-level between two marks, as RoBERTa's and BART's; the mask swallows the space before."""
    inner = _byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    inner.add_special_tokens([hf.AddedToken("<mask>", lstrip=True, special=True)])
    inner.post_processor = hf.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return _saved(inner, folder, **names)


def bert(folder: Path) -> int:
    """WordPiece, as BERT's."""
    inner = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = hf.normalizers.BertNormalizer()
    inner.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    inner.decoder = hf.decoders.WordPiece()
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = hf.trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=first, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    _around(inner, "[CLS] $A [SEP]")
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return _saved(inner, folder, **dict(zip(roles, first, strict=True)))


def _unigram(first: list[str]) -> hf.Tokenizer:
    inner = hf.Tokenizer(hf.models.Unigram())
    inner.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    inner.decoder = hf.decoders.Metaspace()
    trainer = hf.trainers.UnigramTrainer(
        vocab_size=300, special_tokens=first, unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def pegasus(folder: Path) -> int:
    """Unigram pieces, and an end behind each text, as Pegasus's and T5's."""
    inner = _unigram(["<pad>", "</s>", "<unk>"])
    _around(inner, "$A </s>")
    return _saved(inner, folder, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def mbart(folder: Path) -> int:
    """Unigram pieces, and an end and a language behind each text."""
    inner = _unigram(["<s>", "<pad>", "</s>", "<unk>", "en_XX", "de_DE"])
    _around(inner, "$A </s> en_XX")
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _saved(inner, folder, **names)


def marian(folder: Path) -> int:
    """A SentencePiece model for each language over one vocabulary, in which a few pieces of the
    source are missing."""
    folder.mkdir(exist_ok=True)
    pieces: list[str] = []
    for side, lines in (("source", TEXTS[:20]), ("target", [t.upper() for t in TEXTS[20:]])):
        made = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=made, vocab_size=80, minloglevel=2
        )
        (folder / f"{side}.spm").write_bytes(made.getvalue())
        model = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
        pieces += [model.id_to_piece(i) for i in range(3, model.vocab_size())]
    kept = [piece for piece in dict.fromkeys(pieces) if piece != pieces[5]]
    names = ["</s>", "<unk>", "<pad>", ">>deu<<", *kept]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(names)}))
    made = transformers.MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json")
    )
    made.save_pretrained(folder)
    return len(names)


TOKENIZERS: dict[str, Callable[[Path], int]] = {
    **dict.fromkeys(("gptj", "gpt_neo", "mpt", "falcon", "bloom"), gpt2),
    "opt": opt,
    **dict.fromkeys(("roberta", "bart"), roberta),
    **dict.fromkeys(("distilbert", "electra"), bert),
    **dict.fromkeys(("pegasus", "mt5"), pegasus),
    "mbart": mbart,
    "marian": marian,
}
"""By the `model_type`: each writes its files to a folder and returns the number of its ids."""
