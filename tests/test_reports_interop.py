"""Faults that people reported of other programs, in files of published models, chat and generation:
each test is a neighbour of a report, or holds what was missing. Row I1 and so on are those of
docs/reports/reports.md."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import keys_page
import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from test_gguf import SHRUNK, all_keys, described, made
from test_interop import rewritten
from test_published import slow
from walks import speller, walk

from gptjax.api import Model
from gptjax.cli import chat as chat_command
from gptjax.cli import main as cli
from gptjax.cli import sample as sample_command
from gptjax.cli.chat import start_talk
from gptjax.cli.model_settings import settings_of
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Characters
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.data.tokenizers.spelling import Special
from gptjax.formats import OpenedModel, equivalence, gguf, gguf_keys
from gptjax.formats import load_model as read_files
from gptjax.formats import save_model as write_files
from gptjax.formats.opened import task_of
from gptjax.formats.sampling import sampling_of
from gptjax.generate import GenerateConfig, fill_masks, masked
from gptjax.generate.constraints import compiled
from gptjax.generate.constraints.syntaxes import byte_automaton
from gptjax.model import YarnScaling, bert, forward, gpt2, llama, t5, unembed
from gptjax.model.layers import activate
from gptjax.model.rope_scaling import frequencies

LLAMA = llama(**SHRUNK)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A tiny Llama with a tokenizer of bytes, in a Hugging Face directory."""
    path = tmp_path_factory.mktemp("saved") / "m"
    tokenizer = tok.train_tokenizer(Bytes(), [])
    write_files(path, made(dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size), tokenizer))
    return path


def altered(saved: Path, path: Path, file: str = "config.json", **changes) -> Path:
    """A copy in which a file of JSON says something else."""
    path.mkdir()
    for one in saved.iterdir():
        (path / one.name).write_bytes(one.read_bytes())
    data = json.loads((path / file).read_text()) if (path / file).is_file() else {}
    (path / file).write_text(json.dumps(data | changes))
    return path


# --- I1: GGUF metadata that changes the computation ----------------------------------------------


def test_every_key_that_the_gguf_package_names_is_in_one_of_our_lists():
    """I1 (vllm#30691): a new version of the package that names a new key fails here."""
    known = gguf_keys.COMPUTED | gguf_keys.HARMLESS | set(gguf_keys.NEUTRAL) | gguf_keys.REFUSED
    assert set(all_keys()) <= known, f"new keys: {sorted(set(all_keys()) - known)}"
    accepted = gguf_keys.COMPUTED | gguf_keys.HARMLESS | set(gguf_keys.NEUTRAL)
    assert not gguf_keys.REFUSED & accepted


@pytest.mark.parametrize(
    ("arch", "key", "value"),
    [
        ("qwen2", "attention.sliding_window", 16),
        ("arcee", "rope.scaling.yarn_log_multiplier", 0.1),
        ("qwen3moe", "expert_weights_scale", 2.5),
        ("phi3", "rope.dimension_sections", np.array([4, 4, 0, 0])),
        ("llama", "attention.temperature_scale", 0.1),
        ("llama", "attention.scale", 0.25),
    ],
)
def test_a_gguf_key_of_any_architecture_that_is_not_computed_is_refused_by_name(arch, key, value):
    """I1 (llama.cpp#2268, #2772): neighbours in other architectures, of lists and of scales."""
    config = dataclasses.replace(LLAMA, qk_norm=arch == "qwen3moe")
    with pytest.raises(ConfigError, match=re.escape(f"{arch}.{key} =")) as caught:
        described(arch, config, **{key: value})
    assert f"--ignore-keys {key}" in str(caught.value)


def test_a_key_is_ignored_only_by_a_flag_of_convert(saved, tmp_path):
    """I1, I12: unknown keys are refused with the flag that passes them, in both formats."""
    odd = altered(saved, tmp_path / "odd", head_temperature=0.7)
    with pytest.raises(ConfigError, match=r"'head_temperature': 0.7.*--ignore-keys head_temper"):
        read_files(odd)
    assert (
        cli.main(
            ["convert", str(odd), str(tmp_path / "a.gguf"), "--ignore-keys", "head_temperature"]
        )
        == 0
    )
    assert read_files(tmp_path / "a.gguf").config.width == LLAMA.width
    with pytest.raises(ConfigError, match="'head_temperature'"):
        read_files(odd, ignored=("another",))


def test_the_page_of_keys_says_what_the_code_does():
    """I1, I12: docs/keys.md is generated, in both languages."""
    for path, text in keys_page.PAGES.items():
        assert path.read_text(encoding="utf-8") == keys_page.page(text), (
            f"docs/{path.name} is out of date: python tests/keys_page.py"
        )


# --- I2: directories of slow tokenizers ----------------------------------------------------------


def test_a_sentencepiece_model_takes_the_tokens_of_added_tokens_json(tmp_path):
    """I2, I13 (llama.cpp#3732): control tokens of a chat model beside its tokenizer.model."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 20),
        model_writer=written,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        model_type="bpe",
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    plain = tok.train_tokenizer(tok.Published(str(tmp_path)), [])
    size = plain.vocab_size
    added = {"<|im_start|>": size, "<|im_end|>": size + 1, "the_tool": size + 2}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    settings = {"chat_template": "{{ '<|im_start|>' + messages[0].content + '<|im_end|>' }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    whole = tok.train_tokenizer(tok.Published(str(tmp_path)), [])
    assert whole.vocab_size == size + 3
    assert {"<|im_start|>", "<|im_end|>"} <= whole.controls.keys()
    assert whole.encode("the_tool").tolist()[-1] == size + 2, "a word, not a control token"
    assert size not in whole.encode("the <|im_start|> cat")
    assert whole.encode("the cat").tolist() == plain.encode("the cat").tolist()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size + 7}))
    with pytest.raises(ConfigError, match=r"added_tokens.json.*end at"):
        tok.train_tokenizer(tok.Published(str(tmp_path)), [])


def test_a_slow_tokenizer_of_a_class_that_spells_otherwise_is_refused(tmp_path):
    """I2 (faster-whisper#464): neighbours of other classes with the same two files."""
    names = ("Roberta", "Whisper", "Llama", "Bart", "CLIP", "Blenderbot", "DebertaFast")
    for name in (f"{one.removesuffix('Fast')}Tokenizer{'Fast' * ('Fast' in one)}" for one in names):
        folder = slow(tmp_path / name, "GPT2Tokenizer", tokenizer_class=name)
        with pytest.raises(ConfigError, match=f"class '{name}' and no tokenizer.json"):
            tok.train_tokenizer(tok.Published(str(folder)), [])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Qwen2TokenizerFast", "Qwen2Tokenizer"),
        ("CodeGenTokenizer", "GPT2Tokenizer"),
        (None, "GPT2Tokenizer"),
    ],
)
def test_a_slow_tokenizer_of_a_class_that_spells_alike_is_read(name, kind, tmp_path):
    """I2: neighbours: the fast class of a directory without its file, CodeGen, and no class."""
    one = tok.train_tokenizer(
        tok.Published(str(slow(tmp_path / "a", kind, tokenizer_class=name))), []
    )
    other = tok.train_tokenizer(tok.Published(str(slow(tmp_path / "b", kind))), [])
    text = "x 123456 y<tool> don't\n\n e\u0301"
    assert one.encode(text).tolist() == other.encode(text).tolist()
    assert one.decode(one.encode(text)) == (text if "Qwen2" not in kind else text[:-2] + "é")


def test_a_directory_with_other_files_alone_is_refused(tmp_path):
    """I2: neighbours: the vocabulary of BERT, T5's pieces, and half of GPT-2's files."""
    for name in ("vocab.txt", "spiece.model", "vocab.json", "merges.txt"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("[PAD]\n[UNK]\nthe\n")
        with pytest.raises(ConfigError, match="has no tokenizer; ") as caught:
            tok.train_tokenizer(tok.Published(str(folder)), [])
        assert "\n" not in str(caught.value)


# --- I4: contradicting settings ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "constraint", "letters"),
    [
        ("choices", ("yes", "no"), b"yn"),
        ("grammar", 'root ::= "a" [bc]+', b"a"),
        ("schema", '{"type": "boolean"}', b"tf"),
    ],
)
def test_a_banned_token_is_never_written_whatever_the_constraint(kind, constraint, letters):
    """I4: a constraint that needs a banned token is refused, of every kind."""
    tokenizer = speller("BPE")
    banned = frozenset(
        i for i in range(tokenizer.vocab_size) if set(tokenizer.token_bytes([i])) & set(letters)
    )
    with pytest.raises(ConfigError, match="that are not banned spell a text"):
        compiled(kind, constraint, tokenizer, banned)


# --- I5: one-sided bounds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"type": "integer", "minimum": 0, "multipleOf": 7}, [0, 7, 70], [-7, 1, 8]),
        ({"type": "integer", "minimum": -3, "exclusiveMaximum": 2.5}, [-3, 0, 2], [-4, 3]),
        ({"minimum": 10, "type": ["integer", "null"]}, [10, 11, None], [9, 0]),
    ],
)
def test_a_bound_on_one_side_goes_with_other_keywords(schema, inside, outside):
    """I5 (outlines-core#147)."""
    automaton = byte_automaton("schema", schema)
    assert all(automaton.accepts(json.dumps(value).encode()) for value in inside)
    assert not any(automaton.accepts(json.dumps(value).encode()) for value in outside)


# --- I6: ordinary models -------------------------------------------------------------------------

MODELS = {
    "a literal with a default": {"enum": ["a", "b", 3], "default": "a"},
    "a list of models in a dict": {
        "type": "object",
        "additionalProperties": {
            "type": "array",
            "maxItems": 2,
            "items": {"$ref": "#/$defs/P"},
        },
        "$defs": {"P": {"type": "object", "properties": {"x": {"type": "number"}}}},
    },
    "a frozenset of booleans": {
        "type": "array",
        "uniqueItems": True,
        "items": {"type": "boolean"},
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_answers_of_further_ordinary_models_are_valid(name):
    """I6: neighbours of the 21 Pydantic models of walks.py."""
    jsonschema = pytest.importorskip("jsonschema")
    schema, draw = MODELS[name], np.random.default_rng(0)
    automaton = compiled("schema", json.dumps(schema), speller("BPE"))
    for _ in range(20):
        answer = walk(automaton, speller("BPE"), automaton.least + 60, draw)
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer))


# --- I7: bounded repetition ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "constraint"),
    [
        ("regex", "[a-z ]{1,300}\\n"),
        ("grammar", 'root ::= ("ab" | "c"){0,250}'),
        ("schema", '{"type": "string", "minLength": 150, "maxLength": 150}'),
    ],
)
def test_repetitions_of_other_kinds_compile_in_seconds(kind, constraint):
    """I7 (outlines#658, #483): neighbours: a class, a grammar, an exact length."""
    start = time.process_time()
    compiled(kind, constraint, speller("BPE"))
    assert time.process_time() - start < 10


# --- I8: regular expressions that people write ---------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"(?i:yes|no)\.?", ["YES", "no.", "Yes."], ["yesno", "maybe"]),
        (r"(?P<y>\d{4})-(?P<m>0[1-9]|1[0-2])", ["2026-11", "0001-09"], ["2026-13", "26-01"]),
        (r"[^\n]*\S$", ["a b", "x"], ["a ", "a\nb", ""]),
    ],
)
def test_a_regex_of_daily_use_is_followed(pattern, inside, outside):
    """I8: neighbours with flags of a group, named groups and an anchor at the end."""
    automaton = byte_automaton("regex", pattern)
    assert all(automaton.accepts(text.encode()) for text in inside)
    assert not any(automaton.accepts(text.encode()) for text in outside)


# --- I9: tensors that nothing uses ---------------------------------------------------------------

UNUSED = {
    "gpt2": (gpt2(**SHRUNK | {"num_kv_heads": None}), "transformer.h.0.attn.masked_bias"),
    "llama": (LLAMA, "model.layers.1.self_attn.rotary_emb.inv_freq"),
    "bert": (bert("base", **SHRUNK | {"num_kv_heads": None}), "bert.embeddings.position_ids"),
}


@pytest.mark.parametrize("name", UNUSED)
def test_a_tensor_that_published_files_have_and_nothing_uses_is_passed_over(name, tmp_path):
    """I9 (transformers#8933): neighbours of T5's bias; an unknown one is still named."""
    config, tensor = UNUSED[name]
    write_files(tmp_path / name, made(dataclasses.replace(config, vocab_size=61)))
    rewritten(tmp_path / name, lambda values: values.update({tensor: np.zeros(4, np.float32)}))
    assert read_files(tmp_path / name).config.num_layers == 2
    rewritten(tmp_path / name, lambda values: values.update({"other": np.zeros(4, np.float32)}))
    with pytest.raises(ConfigError, match="other"):
        read_files(tmp_path / name)


# --- I10, I11: tokenizers on their way to GGUF, and unmarked control tokens ----------------------


@pytest.mark.parametrize(
    "names",
    [
        ("<|im_start|>", "<|im_end|>"),
        ("<|start_header_id|>", "<|eot_id|>"),
        ("[INST]", "[/INST]"),
        ("<start_of_turn>", "<end_of_turn>"),
    ],
)
def test_control_tokens_that_are_not_called_special_survive_gguf(names, saved, tmp_path):
    """I10, I11 (transformers#43062, llama.cpp#7049): ChatML of that kind, out and in again, and
    its neighbours of Llama 3, Mistral and Gemma."""
    begin, end = names
    content = json.loads((saved / "tokenizer.json").read_text())
    size = max(content["model"]["vocab"].values()) + 1
    size = max([size, *(t["id"] + 1 for t in content["added_tokens"])])
    for n, name in enumerate(names):
        content["added_tokens"].append(
            {"id": size + n, "content": name, "special": False, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        )
    turn = f"{{{{ '{begin}' + m.content + '{end}' }}}}"
    template = "{% for m in messages %}" + turn + "{% endfor %}"
    special = Special(None, size + 1, False, (), (size, size + 1), template)
    tokenizer = tok.published("tokenizer.json", json.dumps(content).encode(), special)
    config = dataclasses.replace(LLAMA, vocab_size=tokenizer.vocab_size)
    gguf.save_gguf(tmp_path / "a.gguf", made(config, tokenizer))
    back = gguf.load_gguf(tmp_path / "a.gguf").tokenizer
    assert set(names) <= back.controls.keys()
    assert back.end_of_document == size + 1
    assert not {size, size + 1} & set(back.encode(f"a{begin}b{end}").tolist())


# --- I12: harmless keys --------------------------------------------------------------------------


def test_keys_of_other_trainers_and_tasks_are_passed_over_and_traits_are_not(saved, tmp_path):
    """I12 (transformers#788): neighbours of BERT's and Unsloth's keys."""
    harmless = {"summary_type": "cls_index", "id2label": {"0": "a"}, "unsloth_tiled": 1}
    harmless |= {"eos_token_id": [1, 2], "use_sliding_window": False, "pruned_heads": {}}
    read_files(altered(saved, tmp_path / "a", **harmless))
    for n, trait in enumerate(({"use_mrope": True}, {"is_decoder": True}, {"logit_scale": 0.1})):
        with pytest.raises(ConfigError, match=f"'{next(iter(trait))}'"):
            read_files(altered(saved, tmp_path / f"b{n}", **trait))


# --- I13: missing pieces -------------------------------------------------------------------------


def test_yarn_without_truncation_begins_and_ends_between_waves():
    """I13: `truncate: false`, as gpt-oss has it."""
    whole, parts = (
        np.asarray(frequencies(16, 1e4, YarnScaling(4.0, 64, truncate=truncate)))
        for truncate in (True, False)
    )
    plain = np.asarray(frequencies(16, 1e4, None))
    assert not np.allclose(whole, parts)
    assert np.all(parts <= plain * 1.0001) and np.all(parts >= plain / 4.0001)
    low = 16 * np.log(64 / (2 * np.pi * 32)) / (2 * np.log(1e4))
    high = 16 * np.log(64 / (2 * np.pi)) / (2 * np.log(1e4))
    ramp = np.clip((np.arange(8) - max(low, 0)) / (high - max(low, 0)), 0, 1)
    np.testing.assert_allclose(parts, plain / 4 * ramp + plain * (1 - ramp), rtol=1e-5)


def test_the_gate_of_a_gated_mlp_has_the_activation_of_its_name():
    """I13: other `hidden_act`."""
    x = jnp.linspace(-4, 4, 33)
    erf = np.vectorize(math.erf)
    np.testing.assert_allclose(
        activate("geglu_exact", x), x * 0.5 * (1 + erf(x / np.sqrt(2))), atol=1e-6
    )
    np.testing.assert_allclose(activate("reglu", x), np.maximum(x, 0))
    np.testing.assert_allclose(activate("gelu_quick", x), x / (1 + np.exp(-1.702 * x)), atol=1e-5)


@pytest.mark.parametrize(
    ("act", "ours"),
    [("swish", "swiglu"), ("gelu_fast", "geglu"), ("gelu_python", "geglu_exact")],
)
def test_other_names_of_an_activation_are_the_same_activation(act, ours, saved, tmp_path):
    """I13: neighbours, by the names that older files have."""
    config = read_files(altered(saved, tmp_path / "m", hidden_act=act)).config
    assert config.activation == ours


def test_biases_are_asked_for_where_the_config_says_so(saved, tmp_path):
    """I13: `attention_bias` of Llama needs all four biases, and names those that are missing."""
    with pytest.raises(ConfigError, match=r"missing: .*self_attn\.\w_proj\.bias"):
        read_files(altered(saved, tmp_path / "a", attention_bias=True))
    with pytest.raises(ConfigError, match=r"missing: .*mlp\.\w+_proj\.bias"):
        read_files(altered(saved, tmp_path / "b", mlp_bias=True))


def test_dynamic_rope_reads_no_more_than_was_trained(saved, tmp_path):
    """I13: RoPE `dynamic` changes nothing within the context, in both forms of the key."""
    plain = read_files(saved).config
    for n, key in enumerate(("rope_scaling", "rope_parameters")):
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": plain.rope_base}
        if key == "rope_scaling":
            rope = {"type": "dynamic", "factor": 4.0}
        config = read_files(altered(saved, tmp_path / str(n), **{key: rope})).config
        assert equivalence.computed(config) == equivalence.computed(plain)


def wordpiece() -> tok.Tokenizer:
    """BERT's kind of tokenizer, with a handful of words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "dog", "##s", "."]
    inner = hf.Tokenizer(
        hf.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    inner.normalizer = hf.normalizers.BertNormalizer()
    inner.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    inner.decoder = hf.decoders.WordPiece()
    inner.add_special_tokens(words[:5])
    return tok.published("tokenizer.json", inner.to_str().encode(), Special())


BERT = bert("base", vocab_size=11, context=32, width=16, num_layers=1, num_heads=2, feed_forward=16)


@pytest.fixture(scope="module")
def masking() -> OpenedModel:
    """A tiny BERT of random numbers."""
    return made(BERT, wordpiece())


def test_an_encoder_fills_in_masks_alone_and_in_a_batch(masking, capsys, monkeypatch, tmp_path):
    """I13: filling masks with BERT, by Python and by `sample`."""
    texts = ["The cat [MASK].", "[MASK] dogs [MASK] the cat.", "the [MASK] sat. The cat sat."]
    together = list(fill_masks(*masking[:3], texts, top=3))
    assert [len(one.candidates) for one in together] == [1, 2, 1]
    for text, one in zip(texts, together, strict=True):
        (alone,) = fill_masks(*masking[:3], [text], top=3, batch=1)
        assert alone.text == one.text and masked.MASK not in one.text
        for ours, theirs in zip(alone.candidates, one.candidates, strict=True):
            assert [piece for piece, _ in ours] == [piece for piece, _ in theirs]
            assert ours[0][1] == max(p for _, p in ours)
    assert masked.hidden_ids(BERT, masking.tokenizer, texts[0], 4).tolist() == [2, 5, 6, 4, 10, 3]
    params = jax.tree.map(jnp.asarray, masking.params)
    ids = masked.hidden_ids(BERT, masking.tokenizer, texts[0], 4)
    hidden = forward(BERT, params, jnp.asarray(ids)[None]).hidden
    likely = np.asarray(jax.nn.log_softmax(unembed(BERT, params, hidden)[0, 3]))
    piece, logprob = together[0].candidates[0][0]
    assert piece == masking.tokenizer.decode(likely.argmax(keepdims=True))
    assert abs(logprob - likely.max()) < 1e-5
    model = Model(BERT, params, masking.tokenizer, task=task_of(BERT, masking.about))
    monkeypatch.setattr(sample_command, "load", lambda *a, **k: model)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert cli.main(["sample", str(tmp_path), "--prompt", texts[0]]) == 0
    assert capsys.readouterr().out.rstrip("\n") == together[0].text
    assert cli.main(["sample", str(tmp_path), "--prompt", texts[0], "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["candidates"][0]) == 5
    assert cli.main(["sample", str(tmp_path), "--prompt", "the cat"]) == 2
    assert "write [MASK] for each" in capsys.readouterr().err


def test_a_run_of_ours_hides_tokens_behind_the_id_after_its_vocabulary():
    """I13: neighbours: another tokenizer, a decoder, a text without room."""
    letters = tok.train_tokenizer(Characters(end_of_document=False), ["abc "])
    config = dataclasses.replace(BERT, vocab_size=letters.vocab_size + 1)
    mask = letters.vocab_size
    assert masked.mask_id(config, letters, None) == mask
    # a mask among the tokenizer's marks is taken unless training used another
    for size, named, used in ((11, None, 4), (12, None, 11), (11, 5, 5)):
        found = masked.mask_id(dataclasses.replace(BERT, vocab_size=size), wordpiece(), named)
        assert found == used
    ids = masked.hidden_ids(config, letters, "a[MASK]c", mask)
    assert ids.tolist() == [*letters.encode("a"), letters.vocab_size, *letters.encode("c")]
    with pytest.raises(ConfigError, match=r"has no \[MASK\], and the model no id beside"):
        masked.mask_id(dataclasses.replace(config, vocab_size=mask), letters, None)
    with pytest.raises(ConfigError, match="does not fill in masked tokens"):
        list(fill_masks(LLAMA, {}, letters, ["a[MASK]"]))
    with pytest.raises(ConfigError, match="has 41 tokens and the context is 32"):
        masked.hidden_ids(config, letters, "a" * 40 + "[MASK]", mask)


# --- I14: frictions ------------------------------------------------------------------------------


def test_a_models_own_sampling_settings_are_defaults_and_are_shown(saved, tmp_path, capsys):
    """I14: generation_config.json, and flags before it."""
    own = {"temperature": 0.2, "top_p": 0.9, "top_k": 7, "do_sample": True, "eos_token_id": 2}
    folder = altered(saved, tmp_path / "m", "generation_config.json", **own)
    settings = settings_of(folder, GenerateConfig())
    assert (settings.temperature, settings.top_p, settings.top_k) == (0.2, 0.9, 7)
    assert "--temperature 0.2 --top-k 7 --top-p 0.9" in capsys.readouterr().err
    greedy = altered(folder, tmp_path / "g", "generation_config.json", do_sample=False)
    assert settings_of(greedy, GenerateConfig()).temperature == 0
    odd = altered(folder, tmp_path / "o", "generation_config.json", temperature="hot", top_p=7)
    assert settings_of(odd, GenerateConfig()).top_k == 7, "what cannot be used is left out"
    capsys.readouterr()
    assert settings_of(saved, GenerateConfig()) == GenerateConfig()
    assert settings_of(tmp_path / "none", GenerateConfig()) == GenerateConfig()
    assert capsys.readouterr().err == "", "nothing is said where nothing is taken"


def test_a_flag_goes_before_a_models_own_settings(saved, tmp_path, capsys, monkeypatch):
    """I14: neighbours: chat takes them too, and a flag wins."""
    folder = altered(saved, tmp_path / "m", "generation_config.json", temperature=0.3, top_k=4)
    seen = []
    monkeypatch.setattr(
        chat_command, "run_chat", lambda path, options, settings: seen.append(settings)
    )
    assert cli.main(["chat", str(folder), "--top-k", "9"]) == 0
    assert (seen[0].temperature, seen[0].top_k, seen[0].new_tokens) == (0.3, 9, 512)


def test_sampling_settings_travel_through_gguf(saved, tmp_path, capsys):
    """I14: neighbours: `general.sampling.*` of GGUF files, out and in again."""
    folder = altered(saved, tmp_path / "m", "generation_config.json", temperature=0.5, min_p=0.05)
    gguf.save_gguf(tmp_path / "a.gguf", read_files(folder))
    assert gguf.load_gguf(tmp_path / "a.gguf").about.generation == {
        "temperature": 0.5,
        "min_p": 0.05,
    }
    settings = settings_of(tmp_path / "a.gguf", GenerateConfig())
    assert (settings.temperature, settings.min_p) == (0.5, 0.05)


def test_a_packaged_model_talks_with_the_settings_of_its_card(capsys):
    """I14: SmolLM2-135M's card says 0.2; a default of 0.8 gave odd answers."""
    settings = settings_of(Path("smollm2"), GenerateConfig())
    assert (settings.temperature, settings.top_p) in ((0.2, 0.9), (0.8, 0.95))
    assert sampling_of("smollm2") == {"temperature": 0.2, "top_p": 0.9}


def test_an_encoder_decoder_says_where_it_answers():
    """I14: `chat` on T5 said that it does not answer."""
    config = t5("small", vocab_size=11, width=16, num_layers=1, encoder_layers=1, num_heads=2)
    with pytest.raises(ConfigError, match=r"one text at a time.*gptjax sample MODEL --prompt"):
        start_talk(Model(config, {}, wordpiece()))


@pytest.mark.parametrize("command", ["sample", "chat"])
@pytest.mark.parametrize("flag", ["--max-tokens", "--max-new-tokens", "--n-predict"])
def test_flags_of_other_programs_are_answered_with_ours(command, flag, capsys, tmp_path):
    """I14: `--max-tokens` had no hint."""
    assert cli.main([command, str(tmp_path), flag, "5"]) == 2
    assert "'--new-tokens'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.head_count_kv", 3, "heads do not divide"),
        ("rope.dimension_count", 3, "RoPE turns pairs"),
        ("rope.freq_base", -1.0, "positive number"),
    ],
)
def test_a_model_that_cannot_be_is_blamed_on_its_file_and_not_on_flags(
    key, value, said, saved, tmp_path
):
    """I14: GGUF errors spoke of config.json, or of the flags of training."""
    with pytest.raises(ConfigError, match=rf"m\.gguf describes a model .*{said}") as caught:
        described("llama", LLAMA, **{key: value})
    assert "--model" not in str(caught.value) and "config.json" not in str(caught.value)
    odd = altered(saved, tmp_path / "m", num_key_value_heads=3)
    with pytest.raises(ConfigError, match=r"config\.json describes a model that cannot be"):
        read_files(odd)


def test_eight_bit_files_are_called_quantised_and_not_damaged(saved, tmp_path):
    """I14: FP8 files."""
    folder = altered(saved, tmp_path / "m")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
    for kind in ("F8_E4M3", "F8_E5M2", "U8"):
        packed, rest, at = {}, b"", 0
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                size = (end - begin) // 4 if name.endswith("q_proj.weight") else end - begin
                own = {"dtype": kind} if size < end - begin else {}
                packed[name] = entry | own | {"data_offsets": [at, at + size]}
                rest, at = rest + values[begin : begin + size], at + size
        head = json.dumps(packed).encode()
        file.write_bytes(len(head).to_bytes(8, "little") + head + rest)
        with pytest.raises(ConfigError, match=f"as {kind}, so it is quantised.*unquantised model"):
            read_files(folder)
