"""Laws of exchange with `transformers` for the families that it had Flax classes of until its
version 5: logits, gradients, text, and what we write.

Weights are random and made here, tokenizers are trained here: nothing is downloaded. Read
`flax_models.BUILDERS` first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax_models import BUILDERS
from flax_tokenizers import TOKENIZERS
from peers import torch, transformers
from test_parity_interop import logits, randomly

from gptjax import formats
from gptjax.cli import main as cli
from gptjax.data import Side
from gptjax.formats import OpenedModel, layout
from gptjax.formats.huggingface_families import FAMILIES

V = 97


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Nearly all the time here is compilation, and unoptimised code computes the same sums."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def shaken(theirs: Any, size: float = 0.2) -> Any:
    """Their model with random weights, biases, norms and biases of logits; sinusoids stay."""
    random = torch.Generator().manual_seed(1)
    biases = [b for n, b in theirs.named_buffers() if n == "final_logits_bias"]
    learned = [weight for weight in theirs.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in (*learned, *biases):
            drawn = torch.randn(weight.shape, generator=random)
            weight.copy_(weight * (weight.ndim == 1) + size * drawn)
    return theirs.eval()


def some_ids(*shape: int, seed: int = 0) -> np.ndarray:
    """Without the ids of padding, whose positions RoBERTa does not count."""
    return np.random.default_rng(seed).integers(3, V, shape).astype(np.int32)


TOKENS, SIDE, LENGTHS = some_ids(2, 33), some_ids(2, 21, seed=1), np.asarray([[21], [13]])
PLACES = np.where(np.arange(21) < LENGTHS, np.arange(21), -1).astype(np.int32)
"""Two rows, and side texts of which the second is shorter."""


def their_logits(theirs: Any) -> Any:
    if not theirs.config.is_encoder_decoder:
        return theirs(torch.tensor(TOKENS)).logits
    return theirs(
        torch.tensor(SIDE),
        attention_mask=torch.tensor(PLACES >= 0),
        decoder_input_ids=torch.tensor(TOKENS),
    ).logits


def our_logits(opened: OpenedModel, params: Any = None) -> Any:
    side = Side(SIDE, PLACES) if opened.config.encoder_layers else None
    return logits(opened.config, opened.params if params is None else params, TOKENS, side)


def difference(theirs: Any, ours: OpenedModel) -> float:
    with torch.no_grad():
        wanted = their_logits(theirs).numpy()
    assert wanted.std() > 0.3, "flat logits prove nothing"
    return float(np.abs(our_logits(ours) - wanted).max())


def size_of(name: str) -> float:
    """The spread of random weights. mT5's logits are not scaled, and large ones are rounded
    more."""
    return 0.1 if name == "mt5" else 0.2


def built(name: str) -> Any:
    return shaken(BUILDERS[name](V), size_of(name))


@pytest.mark.parametrize("name", BUILDERS)
def test_both_ways_compute_the_same(name: str, tmp_path: Path, record_property: Any) -> None:
    theirs = built(name)
    theirs.save_pretrained(tmp_path / "theirs")
    found = formats.load_model(tmp_path / "theirs")
    first = difference(theirs, found)

    share = size_of(name) / 0.2
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "scale" else share * leaf,
        randomly(found.params, seed=2),
    )
    ours = found._replace(params=params)
    formats.save_model(tmp_path / "ours", ours)
    loaded, told = type(theirs).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    strange = {*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]}
    assert not {key for key in strange if not key.endswith("embed_positions.weight")}, told
    second = difference(loaded.eval(), ours)
    print(f"{name}: largest difference of a logit {first:.1e} read, {second:.1e} written")
    record_property("figure", f"{name} {max(first, second):.1e}")
    assert first <= 1e-4 and second <= 1e-4

    data = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert data["architectures"] == [type(theirs).__name__]
    again = formats.load_model(tmp_path / "ours")
    assert again.config == found.config
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)


@pytest.mark.parametrize("name", ["gptj", "opt_350m", "bloom", "roberta", "electra", "bart"])
def test_gradients_are_those_of_torch(name: str, tmp_path: Path, record_property: Any) -> None:
    """Of one model of each kind: side by side, projected, ALiBi with a norm, positions behind
    padding, a projected sum, an encoder beside a decoder."""
    theirs = built(name)
    theirs.save_pretrained(tmp_path)
    opened = formats.load_model(tmp_path)
    weights = np.random.default_rng(2).normal(size=(2, 33, V)).astype(np.float32)
    (their_logits(theirs).log_softmax(-1) * torch.tensor(weights)).sum().backward()

    def total(params: Any) -> jax.Array:
        return (jax.nn.log_softmax(our_logits(opened, params)) * weights).sum()

    places = FAMILIES[opened.about.family].places(opened.config)
    folded = {place.entry.folded for place in places}
    ours = dict(layout.tensors(jax.grad(total)(opened.params), places))
    wanted = {n: w.grad.numpy() for n, w in theirs.named_parameters() if w.requires_grad}
    compared = wanted.keys() & ours.keys() - folded
    assert wanted.keys() - ours.keys() <= {"lm_head.decoder.bias"}
    relative = {}
    for key in compared:
        size = np.linalg.norm(wanted[key])
        # A key's bias adds the same to all scores of a query, which softmax forgets.
        if size > 1e-2:
            relative[key] = float(np.linalg.norm(ours[key] - wanted[key]) / size)
    worst = max(relative, key=relative.get)
    print(f"{name}: largest relative difference of a gradient {relative[worst]:.1e} at {worst}")
    record_property("figure", f"gradients {name} {relative[worst]:.1e}")
    assert len(relative) > 0.8 * len(compared) and relative[worst] <= 1e-4


# --- as a user does -------------------------------------------------------------------------------

NEW = 20
PROMPT = "The cat sat on the moon and looked"
WRITERS = ("gptj", "gpt_neo", "opt", "opt_350m", "bloom", "mpt", "falcon")
ANSWERERS = {
    "bart": {"decoder_start_token_id": 2, "forced_bos_token_id": 0},
    "mbart": {"decoder_start_token_id": 2, "forced_bos_token_id": 5},
    "pegasus": {"decoder_start_token_id": 0},
    "marian": {"decoder_start_token_id": 2},
    "mt5": {"decoder_start_token_id": 0},
}
"""What each begins to write with."""


def directory(name: str, folder: Path) -> Any:
    """Their model with its tokenizer, as they save it; it writes no end before it has to."""
    size = TOKENIZERS[name.removesuffix("_350m")](folder)
    theirs = shaken(BUILDERS[name](size), size_of(name))
    if name in ANSWERERS:
        theirs.generation_config.update(**ANSWERERS[name])
    theirs.save_pretrained(folder)
    return theirs


def said(capsys: pytest.CaptureFixture, *arguments: str) -> list[dict[str, Any]]:
    """What a command prints as JSON, a line each."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("name", [*WRITERS, *ANSWERERS])
def test_a_directory_writes_by_sample_what_transformers_writes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    theirs = directory(name, tmp_path / "m")
    spelling = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    prompt = f">>deu<< {PROMPT}" if name == "marian" else PROMPT
    read = spelling(prompt, return_tensors="pt")
    read = {key: read[key] for key in ("input_ids", "attention_mask")}
    lead = 1 + ("forced_bos_token_id" in ANSWERERS.get(name, {}))
    begin = lead if name in ANSWERERS else read["input_ids"].shape[1]
    count = NEW + (lead - 1 if name in ANSWERERS else 0)
    limits = {"min_new_tokens": count, "max_new_tokens": count, "no_repeat_ngram_size": 2}
    how = {"do_sample": False, "num_beams": 1, "eos_token_id": spelling.eos_token_id}
    out = theirs.generate(**read, **limits, **how)[0, begin:].tolist()
    flags = {"temperature": 0, "new-tokens": NEW, "min-new-tokens": NEW, "no-repeat-ngram": 2}
    named = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    (found,) = said(capsys, "sample", str(tmp_path / "m"), "--prompt", prompt, *named)
    assert found["ids"] == out and len(set(out)) > 4, "it repeats itself, which proves little"
    text = spelling.decode(out, skip_special_tokens=True)
    if "\ufffd" not in text and "<unk>" not in text:
        assert found["text"].strip() == text.strip()


@pytest.mark.parametrize("name", ["roberta", "distilbert", "electra"])
def test_masks_are_filled_in_by_sample_as_by_transformers(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    theirs = directory(name, tmp_path / "m")
    spelling = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "The cat [MASK] on the moon."
    read = spelling(text.replace("[MASK]", spelling.mask_token), return_tensors="pt")
    with torch.no_grad():
        logits = theirs(read["input_ids"]).logits[0].log_softmax(-1)
    place = int((read["input_ids"][0] == spelling.mask_token_id).nonzero())
    wanted = logits[place].topk(5)
    (found,) = said(capsys, "sample", str(tmp_path / "m"), "--prompt", text)
    ((*candidates,),) = found["candidates"]
    logprobs = [logprob for _, logprob in candidates]
    np.testing.assert_allclose(logprobs, wanted.values.numpy(), atol=1e-4)
    best = spelling.convert_tokens_to_string(spelling.convert_ids_to_tokens(wanted.indices[:1]))
    assert candidates[0][0].strip().removeprefix("##") == best.strip().removeprefix("##")


def test_the_held_out_loss_of_masked_tokens_uses_the_models_own_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    theirs = directory("roberta", tmp_path / "m")
    (tmp_path / "text.txt").write_text("\n".join([PROMPT] * 40))
    text = ("--data.source.path", str(tmp_path / "text.txt"))
    (figures,) = said(capsys, "evaluate", str(tmp_path / "m"), *text)
    assert 0 < figures["loss"] < 3 * np.log(theirs.config.vocab_size)
    task = formats.load_model(tmp_path / "m").task
    assert task.mask == transformers.AutoTokenizer.from_pretrained(tmp_path / "m").mask_token_id
