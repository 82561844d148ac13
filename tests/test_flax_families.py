"""Laws of the former Flax families that need no other program: what their tensors hold, what stands
around a text, and Marian's two models over one vocabulary.

Parity is in `test_parity_flax.py`, out and in again in `test_interop.py`.
"""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import flax_shapes
import jax
import numpy as np
import pytest
import sentencepiece
from conftest import documents
from test_interop import randomly, rewritten, rows_of, same, theirs_of

from gptjax import formats
from gptjax.core.config import ConfigError, stable_dict
from gptjax.data import MaskedLanguageModel, SequenceToSequence
from gptjax.data.documents.sources import Document
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.data.tokenizers.around import marks_around
from gptjax.data.tokenizers.spelling import Control
from gptjax.formats import About, OpenedModel
from gptjax.formats.opened import task_of
from gptjax.generate.masked import between_marks

# --- tensors --------------------------------------------------------------------------------------


def test_tensors_are_what_their_family_says() -> None:
    """A table that is wrong in both directions gives every model back, and is still wrong."""
    ours, theirs = theirs_of("gptj")  # RoPE turns neighbours, in the first half of a head
    query = rows_of(ours["attention"]["query"]["kernel"][:, 1:2])
    rows = theirs["transformer.h.0.attn.q_proj.weight"][8:16]
    same(rows[:4], query[[0, 2, 1, 3]])
    same(rows[4:], query[4:])
    for name in ("bloom", "falcon with a head for each query"):  # head by head
        ours, theirs = theirs_of(name)
        three = [ours["attention"][part]["kernel"] for part in ("query", "key", "value")]
        by_head = [rows_of(kernel[:, n : n + 1]) for n in range(4) for kernel in three]
        found = theirs["transformer.h.0.self_attention.query_key_value.weight"]
        same(found, np.concatenate(by_head))
    ours, theirs = theirs_of("falcon")
    three = [ours["attention"][part]["kernel"] for part in ("query", "key", "value")]
    found = theirs["transformer.h.0.self_attention.query_key_value.weight"]
    same(found, np.concatenate([rows_of(kernel) for kernel in three]))
    ours, theirs = theirs_of("mpt")
    three = [ours["attention"][part]["kernel"] for part in ("query", "key", "value")]
    found = theirs["transformer.blocks.0.attn.Wqkv.weight"]
    same(found, np.concatenate([rows_of(kernel) for kernel in three]))


def test_positions_stand_behind_those_of_padding_and_widths_are_projected() -> None:
    for name, table, skipped in (
        ("opt", "model.decoder.embed_positions.weight", 2),
        ("bart", "model.encoder.embed_positions.weight", 2),
        ("roberta", "roberta.embeddings.position_embeddings.weight", 2),
        ("electra", "electra.embeddings.position_embeddings.weight", 0),
    ):
        params = randomly(flax_shapes.MODELS[name][1])
        own = params["encoder"] if name == "bart" else params
        found = theirs_of(name)[1][table]
        same(found[skipped:], own["positions"]["embedding"])
        assert not found[:skipped].any()
    assert theirs_of("roberta")[1]["roberta.embeddings.token_type_embeddings.weight"].shape == (
        1,
        32,
    )
    params, theirs = randomly(flax_shapes.MODELS["opt 350m"][1]), theirs_of("opt 350m")[1]
    same(theirs["model.decoder.project_in.weight"], params["projection"]["into"]["kernel"].T)
    same(theirs["model.decoder.project_out.weight"], params["projection"]["out_of"]["kernel"].T)
    params, theirs = randomly(flax_shapes.MODELS["bart"][1]), theirs_of("bart")[1]
    same(theirs["final_logits_bias"], params["logits"]["bias"][None])


def test_a_bias_of_logits_that_a_file_lacks_is_zero(tmp_path: Path) -> None:
    config = flax_shapes.MODELS["marian"][1]
    formats.save_model(tmp_path, OpenedModel(config, randomly(config), None, About("marian")))
    rewritten(tmp_path, lambda values: values.pop("final_logits_bias"))
    found = formats.load_model(tmp_path).params
    assert not np.asarray(found["logits"]["bias"]).any()
    same(found["layers"], randomly(config)["layers"])


@pytest.mark.parametrize(
    ("name", "key", "value", "reason"),
    [
        ("bart", "encoder_ffn_dim", 64, "encoder and decoder have the same"),
        ("marian", "share_encoder_decoder_embeddings", False, "share_encoder_decoder_embeddings"),
        ("bloom", "apply_residual_connection_post_layernorm", True, "post_layernorm"),
        ("falcon", "new_decoder_architecture", True, "new_decoder_architecture"),
        ("gpt_neo", "attention_types", [[["global"], 7]], "name 3 layers"),
        ("roberta", "pad_token_id", 0, "pad_token_id"),
        ("opt", "layer_norm_elementwise_affine", False, "layer_norm_elementwise_affine"),
        ("mpt", "attn_config", {"alibi": False}, "alibi"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_its_key(
    name: str, key: str, value: object, reason: str, tmp_path: Path
) -> None:
    config = flax_shapes.MODELS[name][1]
    formats.save_model(tmp_path, OpenedModel(config, randomly(config), None, About(name)))
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {key: value}))
    with pytest.raises(ConfigError, match=reason) as refused:
        formats.load_model(tmp_path)
    assert "\n" not in str(refused.value)


# --- around a text --------------------------------------------------------------------------------

TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "de", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ],
    "special_tokens": {"de": {"ids": [7, 8]}, "</s>": {"ids": [2]}},
}
PAIR = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}


@pytest.mark.parametrize(
    ("processor", "wanted"),
    [
        (None, ((), ())),
        ({"type": "ByteLevel"}, ((), ())),
        (TEMPLATE, ((7, 8), (2,))),
        (PAIR, ((0,), (2,))),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, PAIR]}, ((0,), (2,))),
    ],
)
def test_a_post_processor_says_what_stands_around_a_text(processor, wanted) -> None:
    assert marks_around({"post_processor": processor}) == wanted


def test_an_answer_begins_and_its_text_is_bounded_as_the_files_say() -> None:
    letters = tok.train_tokenizer(tok.Characters(), ["abc "])
    bart, end = flax_shapes.BART, letters.end_of_document
    about = About("mbart", generation={"decoder_start_token_id": 2, "forced_bos_token_id": 5})
    marked = dataclasses.replace(letters, around=((9,), (end, 7)))
    task = task_of(bart, about, marked)
    read = letters.encode("ab").tolist()
    assert task.prompt(read, marked, with_encoder=True) == ([9, *read, end, 7], [2, 5])
    example = next(task.examples([Document(name="1", text="c", source="ab")], marked)).tolist()
    assert example == [9, *read, end, 7, letters.vocab_size, 5, *letters.encode("c"), end]
    plain = task_of(bart, About("t5", pad=3), dataclasses.replace(letters, around=((), (end,))))
    assert plain == SequenceToSequence(begin=3, closed=True)
    assert plain.prompt(read, letters, with_encoder=True) == ([*read, end], [3])
    with pytest.raises(ConfigError, match=r"data\.task\.lead"):
        SequenceToSequence(lead=(-1,))


def test_an_encoder_masks_with_its_tokenizers_own_id() -> None:
    letters = tok.train_tokenizer(tok.Characters(), ["abc "])
    own = dataclasses.replace(
        letters, controls={"<mask>": Control(4)}, around=((0,), (letters.end_of_document,))
    )
    task = task_of(flax_shapes.ENCODER, About("roberta"), own)
    assert task == MaskedLanguageModel(mask=4) and task.vocabulary(own) == letters.vocab_size
    ids, real = np.full(4000, 1, np.int32), np.ones(4000, bool)
    shown, chosen = task.masked(ids, real, letters.vocab_size, np.random.default_rng(0))
    share = (shown[chosen] == 4).mean()
    assert 0.75 < share < 0.9 and (shown[~chosen] == 1).all()
    assert between_marks(own, [1, 2]) == [0, 1, 2, letters.end_of_document]


def test_tasks_of_earlier_versions_keep_their_fingerprints() -> None:
    assert stable_dict(MaskedLanguageModel()) == {"share": 0.15}
    assert stable_dict(SequenceToSequence(closed=True)) == {"begin": None, "closed": True}
    assert stable_dict(SequenceToSequence(lead=(5,)))["lead"] == [5]


# --- Marian ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models over one vocabulary, which lacks a piece of the source."""
    folder, pieces = tmp_path_factory.mktemp("marian"), []
    texts = [text[:300] for text in documents(30)]
    for side, lines in (("source", texts[:15]), ("target", [t.upper() for t in texts[15:]])):
        made = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=made, vocab_size=70, minloglevel=2
        )
        (folder / f"{side}.spm").write_bytes(made.getvalue())
        model = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
        pieces += [model.id_to_piece(i) for i in range(3, 70)]
    names = dict.fromkeys(("</s>", "<unk>", "<pad>", ">>deu<<", *pieces))
    names.pop(model_piece(folder, "the"))
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    return folder


def model_piece(folder: Path, text: str) -> str:
    """The first piece of a text in the source's model."""
    content = (folder / "source.spm").read_bytes()
    return sentencepiece.SentencePieceProcessor(model_proto=content).encode(text, out_type=str)[0]


def test_marian_cuts_what_it_reads_and_what_it_writes_by_a_model_each(
    marian: Path, tmp_path: Path
) -> None:
    made = tok.train_tokenizer(tok.Published(str(marian)), ())
    names = json.loads((marian / "vocab.json").read_text())
    for side, spelled in (("source", made.encode_all), ("target", made.encode_answers)):
        content = (marian / f"{side}.spm").read_bytes()
        theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
        for text in ("the cat sat", "THE MOON", "</s> <pad> >>deu<< x", "", "Größe"):
            pieces = theirs.encode(text, out_type=str)
            wanted = [names.get(p, 1) if p not in ("</s>", "<pad>") else 1 for p in pieces]
            assert spelled([text])[0].tolist() == wanted, "no text ends another"
    assert 1 in made.encode("the"), "a piece that the vocabulary lacks is unknown"
    with_language = made.encode(">>deu<< cat").tolist()
    assert (
        with_language[0] == names[">>deu<<"] and with_language[1:] == made.encode(" cat").tolist()
    )
    assert made.decode(made.encode_answers(["MOON"])[0]).strip() == "MOON"
    assert made.end_of_document == 0 and made.begin_of_document is None

    tok.save_tokenizer(tmp_path / "kept", made)
    again = tok.load_tokenizer(tmp_path / "kept")
    assert tok.hash_tokenizer(again) == tok.hash_tokenizer(made)
    config = dataclasses.replace(flax_shapes.MARIAN, vocab_size=made.vocab_size)
    formats.save_model(tmp_path / "m", OpenedModel(config, randomly(config), made, About("marian")))
    opened = formats.load_model(tmp_path / "m")
    assert opened.tokenizer.encode("the cat").tolist() == made.encode("the cat").tolist()
    jax.tree.map(np.testing.assert_array_equal, opened.params, randomly(config))


def test_a_damaged_marian_is_refused_in_a_line(marian: Path, tmp_path: Path) -> None:
    for name, content, reason in (
        ("vocab.json", b'{"a": 1}', "vocab.json that does not number"),
        ("source.spm", b"nothing", "not a SentencePiece model"),
        ("tokenizer_config.json", b'{"separate_vocabs": true}', "separate_vocabs"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in marian.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / name).write_bytes(content)
        with pytest.raises(ConfigError, match=reason):
            tok.train_tokenizer(tok.Published(str(folder)), ())


def test_the_pieces_of_mt5_are_read_as_they_are_and_those_of_pegasus_are_not(
    tmp_path: Path,
) -> None:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text[:300] for text in documents(15)]),
        model_writer=made,
        vocab_size=70,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    (tmp_path / "spiece.model").write_bytes(made.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "eos_token": "</s>"}))
    assert formats.holds_tokenizer(tmp_path)
    found = formats.read_model_tokenizer(tmp_path)
    assert found.encode("the moon").tolist() == theirs.encode("the moon")
    assert (found.end_of_document, found.begin_of_document) == (1, None)
    settings.write_text(json.dumps({"tokenizer_class": "PegasusTokenizer"}))
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        tok.train_tokenizer(tok.Published(str(tmp_path)), ())
