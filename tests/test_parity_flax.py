"""Laws of exchange with `transformers` for the families that it had Flax classes of until its
version 5: logits, gradients, text, and what we write.

Weights are random and made here, tokenizers are trained here: nothing is downloaded. Read
`flax_models.BUILDERS` first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gptjax import formats
from gptjax.data import Side
from gptjax.formats import OpenedModel, layout
from gptjax.formats.huggingface_families import FAMILIES

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip(
    "torch", reason="parity is measured against torch: pip install 'gptjax[test-parity]'"
)
transformers = pytest.importorskip(
    "transformers",
    reason="parity is measured against transformers: pip install 'gptjax[test-parity]'",
)
from flax_models import BUILDERS  # noqa: E402 it imports transformers
from test_parity_interop import logits, randomly  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
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
