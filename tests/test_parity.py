"""Laws of parity: with the same weights, our model computes what `transformers` computes, and our
training what `torch` trains.

Read `families.CASES` first: the architectures, both configs of each, and, by `gptjax.formats`,
which of their weights is which of ours. Weights are random and made here: nothing is downloaded.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from encoders import CASES as ENCODERS
from families import CASES, SMALL, Case, as_saved
from peers import torch

from gptjax import model
from gptjax.data import Batch, Side
from gptjax.formats import layout
from gptjax.generate import Sampling, generate
from gptjax.losses import CrossEntropy
from gptjax.model import ModelConfig
from gptjax.train import optim
from gptjax.train.step import init as first_state
from gptjax.train.step import train_step


def in_our_shapes(case: Case, values: dict[str, Any], offset: float = 0.0) -> Any:
    """Their named tensors as our tree of JAX arrays, copied: torch changes its own in place. Norm
    scales are moved by `offset`.

    Raises:
      AssertionError: a tensor of theirs was not used.
    """
    named, used = as_saved({name: value.detach().numpy() for name, value in values.items()}), set()

    def take(name: str) -> np.ndarray:
        used.add(name)
        return named[name]

    entries = case.entries(case.config) if callable(case.entries) else case.entries
    as_it_is = [entry._replace(plus=offset if entry.plus else 0.0, folded="") for entry in entries]
    tree = layout.read_params(case.config, layout.places(case.config, as_it_is), take)
    assert used == named.keys(), f"our tree has no place for {sorted(named.keys() - used)}"
    return tree


class Pair(NamedTuple):
    """Two models with the same weights."""

    case: Case
    config: ModelConfig
    params: Any
    theirs: Any


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Nearly all the time here is compilation, and unoptimised code computes the same sums. Other
    modules test the optimised code."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


@functools.cache
def pair_of(case: Case) -> Pair:
    """Every weight is random, also biases and norm scales, and large enough that attention is far
    from uniform."""
    theirs = case.build(case.config).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in learned(theirs).items():
            scale = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(
                scale * (1 - case.offset) + 0.2 * torch.randn(weight.shape, generator=random)
            )
    return Pair(case, case.config, in_our_shapes(case, learned(theirs), case.offset), theirs)


def learned(theirs: Any) -> dict[str, Any]:
    """Their weights, without tables that are only kept as such."""
    return {name: weight for name, weight in theirs.named_parameters() if weight.requires_grad}


def some_ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SMALL.vocabulary, shape).astype(np.int32)


def some_batch(length: int, seed: int = 0) -> Batch:
    """Two rows; about a quarter of the targets do not count."""
    ids = some_ids(2, length + 1, seed=seed)
    weights = (np.random.default_rng(seed).random((2, length)) > 0.25).astype(np.float32)
    return Batch(ids[:, :-1], ids[:, 1:], weights)


def their_logits(theirs: Any, batch: Batch) -> Any:
    """Theirs, of a side text too where there is one; its padding is masked, as ours is by its
    positions."""
    tokens = torch.tensor(batch.tokens)
    if batch.side is None:
        return theirs(tokens).logits
    return theirs(
        torch.tensor(batch.side.tokens),
        attention_mask=torch.tensor(batch.side.positions >= 0),
        decoder_input_ids=tokens,
    ).logits


def their_loss(theirs: Any, batch: Batch) -> Any:
    """Their mean −ln p over the targets that count."""
    targets = np.where(batch.weights > 0, batch.targets, -100).astype(np.int64)
    logits = their_logits(theirs, batch)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=-100
    )


# --- the laws ---


class Reading(NamedTuple):
    """What our model makes of one batch, with one of its ways to run."""

    config: ModelConfig
    batch: Batch
    logits: np.ndarray
    gradients: Any
    """Of the mean cross-entropy."""


@pytest.fixture(scope="module")
def readings(pair: Pair) -> list[Reading]:
    """One for each of the case's ways to run."""
    return [
        read(
            replace(pair.config, attention=attention, layers=layers),
            pair.params,
            some_batch(length),
        )
        for attention, layers, length in pair.case.ways
    ]


def read(config: ModelConfig, params: Any, batch: Batch) -> Reading:
    def mean(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        total, weight, _ = CrossEntropy().build(config)(params, {}, batch, None)
        memory = model.encode(config, params, batch.side)
        return total / weight, model.unembed(
            config, params, model.forward(config, params, batch.tokens, memory=memory).hidden
        )

    (_, logits), gradients = jax.jit(jax.value_and_grad(mean, has_aux=True))(params, batch)
    return Reading(config, batch, *jax.device_get((logits, gradients)))


def test_logits_are_those_of_transformers(pair: Pair, readings: list[Reading]) -> None:
    for reading in readings:
        with torch.no_grad():
            theirs = their_logits(pair.theirs, reading.batch).numpy()
        difference = np.abs(reading.logits - theirs).max()
        print(f"largest difference of a logit {difference:.1e} with {reading.config.attention}")
        assert theirs.std() > 0.3 * pair.config.logit_scale, "flat logits prove nothing"
        assert difference <= 1e-4, reading.config


def test_gradients_of_every_parameter_are_those_of_torch(
    pair: Pair, readings: list[Reading]
) -> None:
    for reading in readings:
        pair.theirs.zero_grad()
        their_loss(pair.theirs, reading.batch).backward()
        theirs = in_our_shapes(
            pair.case, {name: weight.grad for name, weight in learned(pair.theirs).items()}
        )
        norms = {}
        for (path, mine), (_, other) in zip(
            *map(jax.tree_util.tree_leaves_with_path, (reading.gradients, theirs)), strict=True
        ):
            norms[jax.tree_util.keystr(path)] = (
                np.linalg.norm(mine - np.asarray(other)),
                np.linalg.norm(other),
            )
        # Without rotation a key's bias adds the same to all scores of a query, which softmax
        # forgets: its gradient is rounding alone.
        for name in [
            name
            for name in norms
            if name.endswith("['key']['bias']") and pair.config.positions != "rope"
        ]:
            assert max(norms.pop(name)) < 1e-6
        relative = {name: difference / norm for name, (difference, norm) in norms.items()}
        worst = max(relative, key=relative.get)
        print(
            f"largest relative difference of a gradient {relative[worst]:.1e} at {worst} with"
            f" {reading.config.attention}"
        )
        assert all(value <= 1e-4 for value in relative.values()), (
            relative,
            reading.config,
        )  # a NaN is not less


def test_ten_adamw_steps_lose_what_torch_loses(pair: Pair) -> None:
    settings = optim.AdamW(peak=1e-3, weight_decay=0.1, clip_norm=1.0)
    rate = optim.learning_rate(optim.Schedule(kind="constant", warmup=0), settings.peak, 10)
    optimizer = optim.build_optimizer(settings, rate)
    loss = CrossEntropy().build(pair.config)
    step = jax.jit(functools.partial(train_step, loss=loss, optimizer=optimizer, rate=rate, seed=0))
    state, theirs = first_state(pair.params, optimizer), copy.deepcopy(pair.theirs)
    groups = [
        {
            "params": [w for w in theirs.parameters() if w.ndim > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [w for w in theirs.parameters() if w.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups, lr=settings.peak, betas=(settings.beta1, settings.beta2), eps=settings.epsilon
    )
    losses, norms = [], []
    for i in range(10):
        batch = some_batch(32, seed=i % 3)
        state, metrics = step(state, {}, batch)
        adamw.zero_grad()
        loss = their_loss(theirs, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), settings.clip_norm)
        adamw.step()
        losses.append((float(metrics["loss"]), loss.item()))
        norms.append((float(metrics["gradient_norm"]), norm.item()))
    ours, torchs = np.asarray(losses).T
    print(
        f"largest difference of a loss {np.abs(ours - torchs).max():.1e}, from {torchs[0]:.3f} to"
        f" {torchs[-1]:.3f}"
    )
    assert np.max(norms) > settings.clip_norm, "the clip was never tried"
    np.testing.assert_allclose(
        ours, torchs, rtol=0, atol=3e-5 if pair.config.experts else 1e-5
    )  # AdamW makes steps of a router's rounding
    np.testing.assert_allclose(*np.asarray(norms).T, rtol=1e-4)


def some_side(length: int, seed: int = 1) -> Side:
    """Two side texts, the second shorter."""
    where = np.where(
        np.arange(length) < np.asarray([[length], [length - 6]]), np.arange(length), -1
    ).astype(np.int32)
    return Side(some_ids(2, length, seed=seed), where)


@pytest.mark.parametrize("case", ENCODERS, ids=lambda case: case.name)
def test_logits_and_gradients_with_an_encoder_are_those_of_transformers(case: Case) -> None:
    pair, found = pair_of(case), []
    for attention, layers, length in case.ways:
        side = some_side(length - 4) if case.config.encoder_layers else None
        found.append(
            read(
                replace(case.config, attention=attention, layers=layers),
                pair.params,
                some_batch(length)._replace(side=side),
            )
        )
    test_logits_are_those_of_transformers(pair, found)
    test_gradients_of_every_parameter_are_those_of_torch(pair, found)


PROMPTS = (1, 7, 16, 21)
"""Lengths of the prompts of a ragged batch."""
NEW = 24
"""Tokens to write; a prompt and these pass every power of two up to 32."""


def test_greedy_generation_writes_the_ids_of_transformers(pair: Pair) -> None:
    ours = greedy(pair)
    assert ours == [their_greedy(pair.theirs, prompt) for prompt in ragged()]
    assert all(len(ids) == NEW for ids in ours)


def test_a_stop_token_ends_a_row_where_transformers_ends_it(pair: Pair) -> None:
    stop = their_greedy(pair.theirs, ragged()[1])[NEW // 2]
    ours = greedy(pair, stop)
    theirs = [their_greedy(pair.theirs, prompt, stop) for prompt in ragged()]
    assert ours == [ids[: ids.index(stop)] if stop in ids else ids for ids in theirs]
    assert min(map(len, ours)) < NEW


def ragged() -> list[np.ndarray]:
    return [some_ids(length, seed=10 + length) for length in PROMPTS]


def greedy(pair: Pair, *stop: int) -> list[list[int]]:
    """What our model writes after all prompts at once; the padding is noise, not zeros."""
    rows, padded = len(PROMPTS), some_ids(len(PROMPTS), max(PROMPTS), seed=5)
    for row, prompt in zip(padded, ragged(), strict=True):
        row[: len(prompt)] = prompt
    sampling = Sampling(
        np.zeros(rows, np.float32),
        np.full(rows, pair.config.vocabulary, np.int32),
        np.ones(rows, np.float32),
    )
    keys = jax.random.split(jax.random.key(0), rows)
    out = generate(
        pair.config,
        pair.params,
        padded,
        np.asarray(PROMPTS, np.int32),
        keys,
        sampling=sampling,
        new_tokens=NEW,
        stop=stop,
    )
    return [
        ids[:length].tolist()
        for ids, length in zip(np.asarray(out.ids), np.asarray(out.lengths), strict=True)
    ]


def their_greedy(theirs: Any, prompt: np.ndarray, stop: int | None = None) -> list[int]:
    """What their model writes after one prompt alone, with its stop token."""
    ids = torch.tensor(prompt[None].astype(np.int64))
    out = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=stop,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()
