"""Laws of tokenizers: whatever the text, `decode(encode(text)) == text`, and what is saved is what
is loaded."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gptjax.core.config import ConfigError, from_dict, to_dict
from gptjax.data.tokenizers import json_form, spelling
from gptjax.data.tokenizers import tokenizer as tok

DATA = Path(__file__).parents[2] / "shared/data"
PROSE = (
    "def attend(q, k, v):\n    return softmax(q @ k.T) @ v  # 12 heads\n\n\tif x == 'é':\n       "
    " yield 3.14\n"
)
WORDS = random.Random(1)
TEXT = "\n".join(
    " " * WORDS.choice([0, 4, 8]) + " ".join(WORDS.choices(re.findall(r"\w+|\W", PROSE), k=9))
    for _ in range(800)
)
SPECIAL = [
    "\u2581",
    "\0",
    "\t",
    "\r\n",
    "\n",
    "  ",
    " ",
    "\ufeff",
    "\u2028",
    "\u0085",
    "e\u0301",
    "\u200d",
]
SPECIAL += [
    "🙂",
    "ﬁ",
    "中",
    "</s>",
    "<unk>",
    "<0x41>",
    "<|endoftext|>",
    "\u2585",
    "\u2047",
    "\U0010ffff",
    "\ufffd",
    "\uffff",
]


def needs(path: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (DATA / path).exists(), reason=f"{DATA / path} is not on this machine"
    )


def strings(count: int, seed: int = 0) -> list[str]:
    """Random Unicode, from all planes, with what tokenizers like to lose thrown in."""
    draw = random.Random(seed)
    ranges = [
        (0, 0x7F),
        (0, 0x2FF),
        (0x2000, 0x30FF),
        (0, 0xD7FF),
        (0xE000, 0xFFFF),
        (0x10000, 0x10FFFF),
    ]

    def one() -> str:
        return (
            draw.choice(SPECIAL) if draw.random() < 0.3 else chr(draw.randint(*draw.choice(ranges)))
        )

    return ["".join(one() for _ in range(draw.randint(0, 24))) for _ in range(count)]


@pytest.fixture(scope="module")
def made() -> dict[str, tok.Tokenizer]:
    """Every kind that can spell any text, and `Characters`."""
    made = {
        "bytes": tok.train_tokenizer(tok.Bytes(), []),
        "characters": tok.train_tokenizer(tok.Characters(), [TEXT]),
        "bpe": tok.train_tokenizer(tok.SentencePiece(vocab_size=500), [TEXT]),
        "unigram": tok.train_tokenizer(
            tok.SentencePiece(vocab_size=400, algorithm="unigram"), [TEXT]
        ),
    }
    if (DATA / "gpt2_bpe").exists():
        made["gpt2"] = tok.train_tokenizer(tok.GPT2(str(DATA / "gpt2_bpe")), [])
    return made


def exact(made: dict[str, tok.Tokenizer]) -> list[tok.Tokenizer]:
    return [t for name, t in made.items() if name != "characters"]


@pytest.mark.row(52)
def test_every_unicode_string_comes_back(made, record_property):
    texts = [
        *strings(10_000),
        *SPECIAL,
        "",
        *(s * 7 for s in SPECIAL),
        " \u2581 \u2581\u2581a\u2581 b",
    ]
    for tokenizer in exact(made):
        ids = tokenizer.encode_all(texts)
        assert [tokenizer.decode(i) for i in ids] == texts
        assert [tokenizer.token_bytes(i) for i in ids] == [t.encode() for t in texts]
        assert tok.lossless(tokenizer)
    record_property(
        "figure",
        f"{len(texts):,} random Unicode strings come back from {len(exact(made))} of"
        f" {len(exact(made))} tokenizers",
    )


def test_the_end_of_a_document_never_comes_out_of_text_and_says_nothing(made):
    texts = ["</s>", "<|endoftext|>", "<s>", " </s> ", *strings(300, seed=2)]
    for tokenizer in exact(made):
        end = tokenizer.end_of_document
        assert not any(end in ids for ids in tokenizer.encode_all(texts))
        assert tokenizer.decode([end, *tokenizer.encode("a b"), end]) == "a b"


def test_every_id_is_below_the_vocabulary_size_and_int32(made):
    for tokenizer in made.values():
        ids = tokenizer.encode(TEXT)
        assert isinstance(tokenizer, tok.Tokenizer) and ids.dtype == np.int32 and ids.ndim == 1
        assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
        assert tokenizer.encode("").shape == (0,) and tokenizer.encode_all([]) == []


def test_streaming_id_by_id_gives_the_same_bytes(made):
    text = (
        "  two  spaces,\n    an indent, 中文 and 🙂 " if "gpt2" in made else " a  b\n    c 中 🙂 "
    )
    for tokenizer in exact(made):
        ids = tokenizer.encode(text)
        assert b"".join(tokenizer.token_bytes([i]) for i in ids) == text.encode()


def test_a_long_text_is_spelled_as_if_it_were_not_cut(made, monkeypatch):
    text = (TEXT + "\n\n  \u2581 \t\n\r\n") * 3
    kinds = [
        t for name, t in made.items() if name not in ("characters", "unigram")
    ]  # unigram may take another of equally likely spellings
    whole = [t.encode(text) for t in kinds]
    monkeypatch.setattr(spelling, "CHUNK", 50)
    assert len(list(spelling.at_newlines(text))) > 500
    for tokenizer, ids in zip(kinds, whole, strict=True):
        np.testing.assert_array_equal(tokenizer.encode(text), ids)


def test_bytes_that_are_not_utf8_decode_to_the_replacement_character(made):
    assert made["bytes"].decode([0xF0, 0x9F, 65]) == "\ufffdA"


def test_one_space_before_a_text_is_taken_off_again_and_no_other():
    spaced = dataclasses.replace(tok.train_tokenizer(tok.Bytes(), []), leading_space=True)
    assert [spaced.decode([*text]) for text in (b"  a", b" a", b"a ")] == [" a", "a", "a "]


def test_pairs_are_joined_in_the_order_of_their_scores():
    pieces = ["<unk>", "a", "b", "c", "bc", "ab", "abc"]
    scores, joined = np.asarray([0, -9, -9, -9, -1, -2, -3.0]), np.arange(7) > 0
    made = json_form.joined_by_score(pieces, scores, joined, 0, prefix=False)
    assert made["model"]["merges"] == [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]


def test_letters_of_bytes_are_those_of_gpt2():
    """Visible bytes are themselves; the others are from U+0100 on, in their order."""
    known = spelling.letters()
    assert sorted(known.values()) == [*range(256)]
    for letter, byte in {"!": 33, "~": 126, "¡": 161, "¬": 172, "®": 174, "ÿ": 255}.items():
        assert known.get(letter) == byte == ord(letter)
    assert [known[letter] for letter in "ĀĠġĢŁłŃ"] == [0, 32, 127, 128, 159, 160, 173]
    assert known["Ċ"] == 10


def test_ids_outside_the_vocabulary_are_named(made):
    for tokenizer in made.values():
        for wrong in (-1, tokenizer.vocab_size):
            with pytest.raises(ValueError, match=f"the id {wrong} is outside"):
                tokenizer.decode([1, wrong])


def test_ids_may_be_any_iterable(made):
    ids = made["bpe"].encode("a b")
    assert (
        made["bpe"].decode(iter(ids.tolist()))
        == made["bpe"].decode(ids)
        == made["bpe"].decode(tuple(ids))
        == "a b"
    )
    assert made["bpe"].decode([]) == ""


def test_lone_surrogates_are_refused_with_their_position(made):
    for tokenizer in made.values():
        with pytest.raises(ConfigError, match=r"U\+D800, at character 3"):
            tokenizer.encode_all(["fine", "bad\ud800"])
    for config in (tok.Characters(), tok.SentencePiece()):
        with pytest.raises(ConfigError, match="surrogate"):
            tok.train_tokenizer(config, ["\udfff"])


def test_characters_know_their_text_alone(made):
    tokenizer = made["characters"]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.vocab_size == len(set(TEXT)) + 1 and tokenizer.end_of_document == len(
        set(TEXT)
    )
    for text, at in (("Ω", 0), ("def\U0001f642", 3), ("\0", 0)):
        with pytest.raises(ConfigError, match=f"number {at} of the text.*Bytes()"):
            tokenizer.encode(text)
    without = tok.train_tokenizer(tok.Characters(end_of_document=False), [TEXT])
    assert without.end_of_document is None and without.vocab_size == len(set(TEXT))
    with pytest.raises(ConfigError, match="no characters"):
        tok.train_tokenizer(tok.Characters(), [""])


def test_held_out_characters_that_training_lacks_have_one_id(tmp_path):
    same = tok.train_tokenizer(tok.Characters(), [TEXT], held_out=[TEXT[:50]])
    assert (
        same.files() == tok.train_tokenizer(tok.Characters(), [TEXT]).files()
        and same.unknown is None
    )
    tokenizer = tok.train_tokenizer(tok.Characters(), ["abc"], held_out=["cab", "cΩ中"])
    assert tokenizer.encode("aΩb中").tolist() == [0, 3, 1, 3]
    assert (tokenizer.unknown, tokenizer.end_of_document, tokenizer.vocab_size) == (3, 4, 5)
    assert tokenizer.decode([0, 3, 4]) == "a\ufffd" and not tok.lossless(tokenizer)
    tok.save_tokenizer(tmp_path, tokenizer)
    assert tok.load_tokenizer(tmp_path).encode("Ωc").tolist() == [3, 2]


def test_training_twice_gives_the_same_file_and_the_order_of_reading_is_fixed(made):
    for config, name in (
        (tok.SentencePiece(vocab_size=500), "bpe"),
        (tok.SentencePiece(vocab_size=400, algorithm="unigram"), "unigram"),
    ):
        again = tok.train_tokenizer(config, iter([TEXT]))
        assert again.files() == made[name].files() and tok.hash_tokenizer(
            again
        ) == tok.hash_tokenizer(made[name])


def test_pieces_hold_indentation_and_newlines_stand_alone(made):
    tokenizer = made["bpe"]
    assert len(tokenizer.encode("        ")) == 1
    newline = tokenizer.encode("\n")
    assert len(newline) == 1
    assert tokenizer.encode(TEXT).tolist().count(newline[0]) == TEXT.count("\n")
    spelling = [i for i in range(tokenizer.vocab_size) if b"\n" in tokenizer.token_bytes([i])]
    assert [tokenizer.token_bytes([i]) for i in spelling] == [
        b"\n",
        b"\n",
    ], "the newline's own piece and its byte, no other"


def test_a_text_too_small_has_a_smaller_vocabulary():
    draw = random.Random(0)
    words = ["".join(chr(0x4E00 + draw.randrange(700)) for _ in range(2)) for _ in range(400)]
    chinese = "".join(words[int(400 * draw.random() ** 2)] for _ in range(1500))
    for algorithm in ("bpe", "unigram"):
        for text in (TEXT, chinese):
            asked = tok.SentencePiece(vocab_size=30_000, algorithm=algorithm)
            made = tok.train_tokenizer(asked, [text])
            assert 260 < made.vocab_size < 30_000
            assert made.decode(made.encode(text)) == text
    for texts in ([], [""], ["\n\n"]):
        with pytest.raises(ConfigError, match="training text is"):
            tok.train_tokenizer(tok.SentencePiece(), texts)


def test_text_with_more_characters_than_pieces_still_trains():
    words = ["".join(chr(WORDS.randint(0x4E00, 0x9000)) for _ in range(3)) for _ in range(300)]
    texts = ["".join(words[int(300 * WORDS.random() ** 3)] for _ in range(50)) for _ in range(200)]
    tokenizer = tok.train_tokenizer(tok.SentencePiece(vocab_size=400), texts)
    assert len(set("".join(texts))) > 400 == tokenizer.vocab_size and all(
        tokenizer.decode(tokenizer.encode(t)) == t for t in texts
    )


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_pieces_end_where_words_do_if_asked_and_span_them_otherwise(algorithm):
    colours, forms = ("red", "green", "blue"), ("circle", "square", "cross")
    texts = [
        f"a {a} {b} and a {c} {d}" for a in colours for b in forms for c in colours for d in forms
    ]
    for words in (True, False):
        asked = tok.SentencePiece(vocab_size=330, algorithm=algorithm, words=words)
        made = tok.train_tokenizer(asked, texts)
        pieces = [made.token_bytes([i]) for i in made.encode(texts[0])]
        assert words == all(b" " not in piece[1:] for piece in pieces), pieces
        assert made.decode(made.encode("a blue square")) == "a blue square"


def test_training_is_silent(capfd):
    tok.train_tokenizer(tok.SentencePiece(vocab_size=400), [TEXT])
    tok.train_tokenizer(tok.SentencePiece(vocab_size=90_000), [TEXT])  # fewer pieces are taken
    assert capfd.readouterr() == ("", "")


def test_what_is_saved_is_loaded(made, tmp_path):
    for name, tokenizer in made.items():
        tok.save_tokenizer(tmp_path / name, tokenizer)
        again = tok.load_tokenizer(tmp_path / name)
        assert (
            again.files()
            == tokenizer.files()
            == {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        )
        assert (again.vocab_size, again.end_of_document) == (
            tokenizer.vocab_size,
            tokenizer.end_of_document,
        )
        assert tok.hash_tokenizer(again) == tok.hash_tokenizer(tokenizer)
        np.testing.assert_array_equal(again.encode(TEXT), tokenizer.encode(TEXT))
    assert len({tok.hash_tokenizer(t) for t in made.values()}) == len(made)


def test_load_does_not_need_where_the_tokenizer_came_from(made, tmp_path):
    tok.save_tokenizer(tmp_path / "first", made["bpe"])
    copy = tmp_path / "elsewhere.model"
    shutil.move(tmp_path / "first/tokenizer.model", copy)
    foreign = tok.train_tokenizer(tok.SentencePiece(path=str(copy)), [])
    tok.save_tokenizer(tmp_path / "second", foreign)
    copy.unlink()
    assert tok.hash_tokenizer(tok.load_tokenizer(tmp_path / "second")) == tok.hash_tokenizer(
        made["bpe"]
    )


def test_damage_is_named(made, tmp_path):
    for name, tokenizer in made.items():
        for file in tokenizer.files():
            for damage in ("flip", "cut", "remove"):
                tok.save_tokenizer(tmp_path / name, tokenizer)
                path = tmp_path / name / file
                content = path.read_bytes()
                changed = (
                    content[:30] + bytes([content[30] ^ 1]) + content[31:]
                    if damage == "flip"
                    else content[: len(content) // 2]
                )
                path.unlink() if damage == "remove" else path.write_bytes(changed)
                with pytest.raises(ConfigError, match=re.escape(str(path))):
                    tok.load_tokenizer(tmp_path / name)


@pytest.mark.row(49)
def test_a_flipped_bit_anywhere_in_a_tokenizer_is_refused(made, tmp_path, record_property):
    flips = 0
    for name, tokenizer in made.items():
        tok.save_tokenizer(tmp_path / name, tokenizer)
        files = sorted((tmp_path / name).iterdir())
        for seed in range(200):
            dice, file = random.Random(seed), files[seed % len(files)]
            content = file.read_bytes()
            bit = dice.randrange(8 * len(content))
            file.write_bytes(
                content[: bit // 8]
                + bytes([content[bit // 8] ^ 1 << bit % 8])
                + content[bit // 8 + 1 :]
            )
            with pytest.raises(ConfigError, match=re.escape(str(tmp_path / name))):
                tok.load_tokenizer(tmp_path / name)
            file.write_bytes(content)
            flips += 1
    record_property(
        "figure", f"{flips} of {flips} flipped bits refused, 200 for each of {len(made)} tokenizers"
    )


FOREIGN = [
    "[]",
    "{}",
    "[" * 100_000,
    "\xff",
    '{"kind": "Bytes"}',
    '{"kind": [], "sha256": {}}',
    '{"kind": "Pickle", "sha256": {}}',
]
FOREIGN += ['{"kind": "Bytes", "vocab_size": 9, "end_of_document": 256, "sha256": {}}']


@pytest.mark.parametrize("described", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_description_is_refused_in_one_line(described, tmp_path):
    (tmp_path / tok.CONFIG_FILE).write_text(described, encoding="latin-1")
    with pytest.raises(ConfigError, match=tok.CONFIG_FILE) as caught:
        tok.load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_configs_survive_json_and_refuse_what_cannot_be():
    for config in (tok.Bytes(), tok.Characters(), tok.SentencePiece(vocab_size=999), tok.GPT2("x")):
        assert (
            from_dict(
                tok.TokenizerConfig,
                json.loads(json.dumps({"kind": type(config).__name__, **to_dict(config)})),
            )
            == config
        )
    for wrong in ({"vocab_size": 100}, {"sample_lines": 0}):
        with pytest.raises(
            ConfigError, match=f"--data.tokenizer.{next(iter(wrong)).replace('_', '-')}"
        ):
            tok.SentencePiece(**wrong)


def test_files_that_are_not_vocabularies_are_refused(tmp_path):
    (tmp_path / "x.model").write_bytes(b"hello" * 40)
    for config in (
        tok.SentencePiece(path=str(tmp_path / "none.model")),
        tok.SentencePiece(path=str(tmp_path / "x.model")),
        tok.GPT2(str(tmp_path)),
    ):
        with pytest.raises(ConfigError, match=r"--data\.tokenizer\.path"):
            tok.train_tokenizer(config, [])
    for vocabulary, merges in (
        ("{", ""),
        ("[]", ""),
        ('{"a": 0}', "a b\n"),
        ('{"a": 5}', ""),
        ('{"a": "b"}', ""),
    ):
        (tmp_path / "vocab.json").write_text(vocabulary)
        (tmp_path / "merges.txt").write_text(merges)
        with pytest.raises(ConfigError, match=r"vocab\.json.*--data\.tokenizer\.path"):
            tok.train_tokenizer(tok.GPT2(str(tmp_path)), [])


@needs("gpt2_bpe")
@needs("tinyshakespeare")
def test_tiny_shakespeare_has_the_published_number_of_gpt2_tokens(made):
    text = (DATA / "tinyshakespeare/input.txt").read_bytes().decode()
    train, rest = made["gpt2"].encode_all([text[:1_003_854], text[1_003_854:]])
    assert (len(train), len(rest)) == (
        301_966,
        36_059,
    ), "nanoGPT's data/shakespeare/readme.md states these counts"
    assert made["gpt2"].vocab_size == 50_257 and made["gpt2"].end_of_document == 50_256
    assert made["gpt2"].encode("Hello world").tolist() == [15496, 995], "from OpenAI's own encoder"


@needs("gpt2_bpe/hf")
def test_all_three_forms_of_gpt2s_files_are_one_tokenizer(made, tmp_path):
    shutil.copy(DATA / "gpt2_bpe/hf/tokenizer.json", tmp_path)
    for folder in (DATA / "gpt2_bpe/hf", tmp_path):
        assert tok.hash_tokenizer(
            tok.train_tokenizer(tok.GPT2(str(folder)), [])
        ) == tok.hash_tokenizer(made["gpt2"])


@needs("sentencepiece_models")
@pytest.mark.parametrize("name", ["test_model", "test_ja_model"])
def test_foreign_models_are_followed_to_the_letter_and_known_to_lose(name):
    import sentencepiece

    path = str(DATA / f"sentencepiece_models/{name}.model")
    tokenizer, theirs = (
        tok.train_tokenizer(tok.SentencePiece(path=path), []),
        sentencepiece.SentencePieceProcessor(model_file=path),
    )
    text = "I saw a girl with a telescope."
    assert (
        tokenizer.encode(text).tolist() == theirs.encode(text)
        and tokenizer.decode(tokenizer.encode(text)) == text
    )
    assert tokenizer.end_of_document == theirs.eos_id() and not tok.lossless(tokenizer)


def test_importing_the_module_imports_no_library():
    import subprocess

    code = (
        "import sys, gptjax.data.tokenizers.chat; sys.exit(bool({'sentencepiece', 'tokenizers',"
        " 'jinja2', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False
        ).returncode
        == 0
    )
