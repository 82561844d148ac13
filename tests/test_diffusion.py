"""Laws of masked diffusion: the bound by enumeration, the sampler against any-order sampling, and
what every task, loss and writer obeys."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from proving import outcome
from runs import fingerprint, losses_of
from safetensors.numpy import load_file as safetensors_of
from safetensors.numpy import save_file
from variants import VARIANTS

from gptjax import formats, generate, model
from gptjax.api import Model
from gptjax.cli.chat import answer_message, start_talk
from gptjax.core import config as configs
from gptjax.core.config import ConfigError
from gptjax.data import (
    Batch,
    Bytes,
    Characters,
    Conversations,
    DataConfig,
    DiffusionChat,
    MaskedDiffusion,
    Noise,
    Text,
    batches,
    prepare,
    store,
)
from gptjax.data.rows import Plan, RowNumbers
from gptjax.data.tokenizers.chat import Message, choose_template
from gptjax.data.tokenizers.tokenizer import train_tokenizer
from gptjax.formats import OpenedModel
from gptjax.generate import GenerateConfig
from gptjax.generate import unmask as unmask_module
from gptjax.losses import CrossEntropy, Diffusion
from gptjax.model import ModelConfig
from gptjax.sharding.mesh import MeshConfig, make_mesh, param_shardings
from gptjax.train import optim, step
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.verify import setting as verify_setting
from gptjax.verify.suite import DIFFUSION

LETTERS = train_tokenizer(Characters(end_of_document=False), ["abc"])
LETTERS_AND_ROLES = train_tokenizer(
    Characters(end_of_document=False), ["abcdefghijklmnopqrstuvwxyz :\nUA"]
)
SIZE, LENGTH, MASK = 3, 3, 3
"""Three letters, and texts of three of them: everything can be enumerated."""
TEXTS = list(itertools.product(range(SIZE), repeat=LENGTH))
TINY = ModelConfig(
    vocab_size=SIZE + 1,
    context=16,
    width=16,
    num_layers=1,
    num_heads=2,
    feed_forward=32,
    causal=False,
    init_std=0.6,
)
TASK = MaskedDiffusion()


@functools.cache
def weights():
    return jax.jit(functools.partial(model.init, TINY))(jax.random.key(3))


@functools.cache
def conditionals() -> dict[tuple[int, ...], np.ndarray]:
    """ln p [LENGTH SIZE + 1] at each place of every text of letters and masks."""
    shown = np.asarray(list(itertools.product(range(SIZE + 1), repeat=LENGTH)), np.int32)
    hidden = model.forward(TINY, weights(), jnp.asarray(shown)).hidden
    logp = jax.nn.log_softmax(model.unembed(TINY, weights(), hidden), axis=-1)
    return dict(zip(map(tuple, shown.tolist()), np.asarray(logp, np.float64), strict=True))


def hide(text, places) -> tuple[int, ...]:
    return tuple(MASK if i in places else x for i, x in enumerate(text))


def bound_of(text) -> float:
    """The bound of −ln p by enumeration of all sets of masks."""
    nats = 0.0
    for count in range(1, LENGTH + 1):
        sets = list(itertools.combinations(range(LENGTH), count))
        for places in sets:
            logp = conditionals()[hide(text, places)]
            lost = -sum(logp[i, text[i]] for i in places)
            nats += lost * LENGTH / count / len(sets) / LENGTH
    return nats


def in_order(text, order, size: int = SIZE) -> float:
    """ln p of a text whose places are written in an order, each from what is there; masks are not
    drawn."""
    left, logp = set(range(LENGTH)), 0.0
    for i in order:
        seen = conditionals()[hide(text, left)][i, :size]
        logp += seen[text[i]] - np.logaddexp.reduce(seen)
        left -= {i}
    return logp


def exactly(text, size: int = SIZE) -> float:
    """p of a text that is written in a random order."""
    orders = list(itertools.permutations(range(LENGTH)))
    return sum(math.exp(in_order(text, order, size)) for order in orders) / len(orders)


def noised(noise: Noise, ids: np.ndarray, seed: int | None = 0, segments=None) -> Batch:
    """Rows of ids as a batch of the task."""
    rows, length = ids.shape
    plan = Plan(TASK, length, length, rows, seed, False, False, 0, np.zeros(1))
    numbers = np.arange(rows)
    weights = np.ones(ids.shape, np.float32)
    batch = Batch(ids, ids, weights, segments=segments)
    return noise.hidden(batch, MASK, plan, RowNumbers(numbers, numbers * 0, numbers))


@functools.cache
def measuring():
    loss, params = Diffusion().build(TINY).held_out(), weights()
    return loss, jax.jit(lambda batch: loss(params, {}, batch, None))


def estimate(batch: Batch) -> tuple[float, float]:
    """The loss of a batch a token, and half of its interval."""
    loss, measure = measuring()
    total, weight, sums = jax.device_get(measure(batch))
    sums = {"loss": total, **sums}
    return total / weight, loss.metrics()["interval"](sums, weight)


# --- the bound


def test_with_all_masked_the_loss_is_cross_entropy_and_every_mask_weighs_one():
    ids = np.asarray(TEXTS, np.int32)
    weights_of = [Noise().weights(LENGTH, 1.0, np.random.default_rng(n)) for n in range(9)]
    weights_of += [Noise(fixed_number=True).weights(LENGTH, 1.0, np.random.default_rng(0))]
    assert (np.asarray(weights_of) == 1).all()
    every = np.ones(ids.shape, np.float32)
    batch = Batch(np.full_like(ids, MASK), ids, every, columns={"tokens": every.sum(1)})
    plain = CrossEntropy().build(TINY)(weights(), {}, batch, None)
    mine = Diffusion().build(TINY)(weights(), {}, batch, None)
    assert float(mine[0]) == float(plain[0]) and float(mine[1]) == float(plain[1]) == ids.size


def test_the_bound_of_one_token_is_its_cross_entropy():
    ids = np.asarray([[0], [1], [2], [2]], np.int32)
    batch = noised(Noise(held_out=1), ids, seed=None)
    assert (batch.tokens == MASK).all() and (batch.weights == 1).all()
    found, interval = estimate(batch)
    hidden = model.forward(TINY, weights(), jnp.asarray([[MASK]])).hidden
    logp = np.asarray(jax.nn.log_softmax(model.unembed(TINY, weights(), hidden)))[0, 0]
    assert found == pytest.approx(-logp[ids[:, 0]].mean(), rel=1e-6) and interval > 0


def test_the_enumerated_bound_is_above_the_exact_likelihood_of_any_order_sampling():
    """By Jensen's inequality, for every text; of all texts p sums to one."""
    assert sum(exactly(text) for text in TEXTS) == pytest.approx(1, abs=1e-6)
    gaps = [bound_of(text) + math.log(exactly(text, SIZE + 1)) for text in TEXTS]
    assert min(gaps) > 0 and max(gaps) > 0.05
    means = [  # the mean over orders of −ln p is the bound itself
        -np.mean([in_order(t, o, SIZE + 1) for o in itertools.permutations(range(LENGTH))])
        for t in TEXTS
    ]
    np.testing.assert_allclose(means, [bound_of(text) for text in TEXTS], rtol=1e-6)


@pytest.mark.parametrize(
    "noise",
    [Noise(least=0), Noise(least=0, stratified=False), Noise(fixed_number=True)],
    ids=["stratified", "independent", "fixed number"],
)
def test_the_estimate_agrees_with_the_enumerated_bound(noise):
    text, intervals = TEXTS[7], {}
    for seed in (0, None):
        found, interval = estimate(noised(noise, np.tile(np.int32(text), (8192, 1)), seed))
        assert 0 < interval < 0.15
        assert abs(found - bound_of(text) / LENGTH) < 2 * interval, seed
        intervals[seed] = interval
    # held-out text has a fixed number, which varies less
    assert intervals[None] < 0.7 * intervals[0] or noise.fixed_number


def test_a_stratified_batch_has_one_share_in_each_part_and_an_independent_one_has_not():
    ids = np.zeros((64, 64), np.int32)

    def parts(stratified):
        batch = noised(Noise(stratified=stratified, fixed_number=True), ids)
        return ((batch.tokens == MASK).sum(axis=1) - 1).tolist()  # l = 1 + the part of t

    assert sorted(parts(True)) == list(range(63, -1, -1))[::-1]
    assert len(set(parts(False))) < 50
    own = noised(Noise(), ids, seed=1)
    assert not np.array_equal(own.tokens, noised(Noise(), ids, seed=2).tokens)


# --- rows


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A store of nine documents, several of which share a row."""
    folder = tmp_path_factory.mktemp("store") / "train"
    tokenizer, draw = train_tokenizer(Bytes(), []), np.random.default_rng(0)
    writer = store.Writer(folder, tokenizer.vocab_size + 1)
    for n in range(9):
        writer.add(TASK.example(draw.integers(0, 256, 9 + n).astype(np.int32), tokenizer))
    writer.close(num_bytes=1, fingerprint="", facts={})
    return store.open_store(folder)


def test_every_token_and_every_end_is_predicted_once_an_epoch(opened):
    plan = batches.plan(opened, length=24, rows=4, seed=0, task=TASK)
    found = []
    for number in range(plan.batches_per_epoch):
        rows = min(4, plan.rows_per_epoch - 4 * number)
        batch = batches.batch(opened, plan, number)
        hidden = batch.weights > 0
        assert (batch.tokens == np.where(hidden, 257, batch.targets)).all()
        assert (batch.columns["tokens"] == (batch.positions >= 0).sum(axis=1)).all()
        found += batch.targets[:rows][batch.positions[:rows] >= 0].tolist()
    documents = [opened.ids[a:b] for a, b in itertools.pairwise(opened.offsets)]
    assert sorted(found) == sorted(i for ids in documents for i in ids[1:].tolist())
    assert found.count(256) == 9


def test_a_text_without_marks_is_predicted_from_its_first_character():
    ids = LETTERS.encode("cab")
    assert TASK.example(ids, LETTERS)[1:].tolist() == ids.tolist()
    marked = train_tokenizer(Bytes(), [])
    ends = TASK.example(marked.encode("cab"), marked)[1:]
    assert ends.tolist() == [*b"cab", marked.end_of_document]


def test_held_out_rows_are_read_several_times_with_other_masks_and_always_the_same(opened):
    task = MaskedDiffusion(Noise(held_out=3))
    plan = batches.plan(opened, length=24, rows=2, seed=None, task=task)
    assert plan.rows_per_epoch == 3 * plan.rows_once
    read = [batches.batch(opened, plan, n) for n in range(plan.batches_per_epoch)]
    targets = np.concatenate([b.targets for b in read])[: plan.rows_per_epoch]
    tokens = np.concatenate([b.tokens for b in read])[: plan.rows_per_epoch]
    times = targets.reshape(3, plan.rows_once, -1)
    assert (times == times[:1]).all()
    shown = tokens.reshape(3, plan.rows_once, -1)
    assert (shown[0] != shown[1]).any() and (shown[1] != shown[2]).any()
    again = batches.batch(opened, plan, 1)
    np.testing.assert_array_equal(again.tokens, read[1].tokens)


def test_packed_texts_have_the_losses_that_they_have_alone(opened):
    """In a row, a mask sees its own text in both directions and no other."""
    config = dataclasses.replace(TINY, vocab_size=258, context=24)
    params = jax.jit(functools.partial(model.init, config))(jax.random.key(0))
    plan = batches.plan(opened, length=24, rows=4, seed=0, task=TASK)
    batch, loss = batches.batch(opened, plan, 0), Diffusion().build(config)
    measure = jax.jit(lambda batch: loss(params, {}, batch, None)[0])
    parts = 0.0
    for row in range(4):
        for segment in np.unique(batch.segments[row][batch.segments[row] > 0]):
            here = batch.segments[row] == segment
            size, alone = int(here.sum()), jax.tree.map(lambda x: np.zeros_like(x[:1]), batch)
            for name in ("tokens", "targets", "weights"):
                getattr(alone, name)[0, :size] = getattr(batch, name)[row][here]
            alone.positions[0] = np.where(np.arange(24) < size, np.arange(24), -1)
            alone.segments[0, :size] = 1
            parts += float(measure(alone))
    assert float(measure(batch)) == pytest.approx(parts, rel=1e-5)


def test_micro_batches_are_one_batch():
    """Also where rows have different lengths and one part has hardly a mask."""
    ids = np.random.default_rng(0).integers(0, SIZE, (8, 16)).astype(np.int32)
    batch = noised(Noise(), ids)
    counts = np.float32([16, 16, 3, 16, 9, 16, 1, 16])
    batch = batch._replace(columns={"tokens": counts})
    rate = optim.learning_rate(optim.Schedule("constant", warmup=0), 1.0, 10)
    optimizer = optim.build_optimizer(optim.SGD(peak=1.0, momentum=0.0, clip_norm=None), rate)
    told = {"loss": Diffusion().build(TINY), "optimizer": optimizer, "rate": rate, "seed": 0}
    begun, done = step.init(weights(), optimizer), {}
    for parts in (1, 4):
        take = functools.partial(step.train_step, **told, micro_batches=parts, dropout=False)
        done[parts] = jax.jit(take)(begun, {}, batch)
    assert float(done[4][1]["weight"]) == counts.sum()
    assert float(done[4][1]["loss"]) == pytest.approx(float(done[1][1]["loss"]), rel=1e-6)
    pairs = zip(*(jax.tree.leaves(done[n][0].trainable) for n in (1, 4)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-5)


# --- training


def diffusing(experiment: Experiment, **changes) -> Experiment:
    small = dataclasses.replace(experiment.model, causal=False, context=16)
    data = dataclasses.replace(experiment.data, task=TASK)
    return dataclasses.replace(experiment, model=small, data=data, loss=Diffusion(), **changes)


def test_a_run_resumes_bit_for_bit_and_its_bound_is_in_the_log(tiny_experiment, tmp_path):
    experiment = diffusing(tiny_experiment, steps=10)
    train(experiment, tmp_path / "whole")
    train(dataclasses.replace(experiment, steps=5), tmp_path / "parts")
    train(experiment, tmp_path / "parts")
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "parts")
    assert fingerprint(tmp_path / "whole", 10) == fingerprint(tmp_path / "parts", 10)
    lines = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    (last,) = [d for d in map(json.loads, lines) if "validation_loss" in d]
    assert 0 < last["validation_interval"] < 0.3 < last["validation_loss"] < 7
    bits = last["validation_bits_per_byte"]
    assert bits == pytest.approx(last["validation_loss"] / math.log(2), rel=0.02)
    saved = configs.load_config(Experiment, tmp_path / "whole/config.json")
    assert saved.data.task == TASK and saved.loss == Diffusion()


def test_a_mesh_learns_the_bound_as_one_device_does(monkeypatch):
    """Rows of unequal length on different devices: the normaliser is that of the whole batch."""
    plain = meshes.batch_of

    def with_tokens(config, seed):
        batch = plain(config, seed)
        tokens = np.float32((batch.positions >= 0).sum(axis=1)) - np.arange(len(batch.tokens))
        return batch._replace(columns={"tokens": np.float32(tokens)})

    monkeypatch.setattr(meshes, "batch_of", with_tokens)
    told = {"data": DataConfig(task=TASK), "loss": Diffusion(), "steps": 2}
    alone = meshes.trained(VARIANTS["encoder_with_windows"], devices=1, **told)
    split = {"data": 2, "fsdp": 2, "tensor": 2}
    several = meshes.trained(VARIANTS["encoder_with_windows"], mesh=split, **told)
    loss, state = meshes.apart(several, alone)
    assert loss <= 1e-6 and state <= 1e-5, (loss, state)


def test_a_loss_that_reads_other_batches_is_refused(tiny_experiment):
    with pytest.raises(ConfigError, match=r"data.task is MaskedDiffusion, whose batches hold nois"):
        dataclasses.replace(diffusing(tiny_experiment), loss=CrossEntropy())
    with pytest.raises(ConfigError, match=r"--model.causal False"):
        dataclasses.replace(diffusing(tiny_experiment), model=tiny_experiment.model)


def test_only_answers_are_masked_and_the_rest_of_a_conversation_is_seen(tmp_path):
    file = tmp_path / "chats.jsonl"
    talks = [
        [("user", f"{i} plus {i}?"), ("assistant", f"{2 * i}"), ("user", "so?"), ("assistant", "x")]
        for i in range(12)
    ]
    lines = [
        {"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    task = DiffusionChat("zephyr", ends=5)
    settings = DataConfig(Conversations(str(file)), Bytes(), 0.2, task, cache=str(tmp_path / "c"))
    made = prepare(settings)
    size = made.tokenizer.vocab_size
    plan = batches.plan(made.train, length=160, rows=4, seed=0, task=made.task)
    ends, hidden = made.tokenizer.end_of_document, 0
    for number in range(3):
        batch = batches.batch(made.train, plan, number)
        for row, segment in itertools.product(range(4), (1, 2)):
            here = batch.segments[row] == segment
            ids, masked = batch.targets[row][here], batch.weights[row][here] > 0
            if not len(ids):
                continue
            text = made.tokenizer.decode(ids[:-5])
            read = text.split("<|assistant|>\n")
            assert text.startswith("<|user|>") and len(read) == 3
            first = len(made.tokenizer.encode(f"{read[0]}<|assistant|>\n"))
            assert not masked[:first].any() and (ids[-6:] == ids[-1]).all(), text
            shown = batch.tokens[row][here]
            assert (shown == np.where(masked, size, ids)).all()
            hidden += masked.sum()
        assert (batch.columns["tokens"] > 0).all() and batch.prefix is None
    assert hidden > 20 and ends is not None
    assert made.task.vocabulary(made.tokenizer) == size + 1 == made.task.mask_id(made.tokenizer) + 1


# --- writing


def write(prompts, settings, **more):
    told = GenerateConfig(**{"temperature": 1.0, "top_p": 1.0, **settings})
    return generate.complete(TINY, weights(), LETTERS, prompts, told, task=TASK, **more)


def drawn(settings) -> tuple[np.ndarray, list]:
    """How often each text was written, of 3,000, and the completions."""
    count = 3000
    done = write([""], {"new_tokens": LENGTH, "num_samples": count, **settings})
    index = {text: i for i, text in enumerate(TEXTS)}
    return np.bincount([index[tuple(one.ids)] for one in done], minlength=len(TEXTS)), done


def surprise(counts: np.ndarray, p: list[float]) -> float:
    """Pearson's χ² of counts, rare texts as one; of at most 26 degrees of freedom, 54.1 at
    p = 0.001."""
    expected = np.asarray(p) * counts.sum()
    rare = expected < 5
    found, wanted = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    return float(((found - wanted) ** 2 / wanted).sum())


def test_one_random_token_a_step_is_any_order_sampling():
    counts, _ = drawn({"remasking": "random"})
    assert surprise(counts, [exactly(text) for text in TEXTS]) < 54
    left = [math.exp(in_order(text, range(LENGTH))) for text in TEXTS]
    assert surprise(counts, left) > 80, "the orders can't be told apart"


def test_blocks_of_one_token_are_sampling_from_left_to_right():
    counts, done = drawn({"block_length": 1})
    assert surprise(counts, [math.exp(in_order(t, range(LENGTH))) for t in TEXTS]) < 54
    for one in done[:50]:
        assert sum(one.logprobs) == pytest.approx(in_order(one.ids, range(LENGTH)), abs=1e-4)


def test_one_step_draws_every_token_by_itself():
    counts, _ = drawn({"denoising_steps": 1})
    own = conditionals()[(MASK,) * LENGTH][:, :SIZE]
    own = own - np.logaddexp.reduce(own, axis=1)[:, None]
    p = [math.exp(sum(own[i, x] for i, x in enumerate(text))) for text in TEXTS]
    assert surprise(counts, p) < 54


@jax.jit
def logits_of(params, ids, end):
    """The logits [S V] of a padded row."""
    place = jnp.arange(len(ids))
    where = jnp.where(place < end, place, -1)[None]
    hidden = model.forward(TINY, params, ids[None], positions=where).hidden
    return model.unembed(TINY, params, hidden)[0]


def greedy(prompt, length, block, steps):
    """LLaDA's loop over one row, by hand."""
    ids = [*prompt, *[MASK] * length]
    for begin in range(len(prompt), len(ids), block):
        end, done = min(begin + block, len(ids)), 0
        size = end - begin
        for i in range(min(size, steps)):
            row = jnp.asarray(ids + [0] * (16 - len(ids)))
            logits = np.asarray(logits_of(weights(), row, len(ids)), np.float64)[:, :SIZE]
            p = np.exp(logits - np.logaddexp.reduce(logits, 1)[:, None]).max(1)
            left = [n for n in range(begin, end) if ids[n] == MASK]
            done = size // steps + (i < size % steps)
            for n in sorted(left, key=lambda n: -p[n])[:done]:
                ids[n] = int(logits[n].argmax())
    return ids[len(prompt) :]


def test_the_most_likely_guesses_stay_block_by_block():
    prompts = ["ab", "c", ""]
    settings = {"temperature": 0.0, "new_tokens": 8, "block_length": 5, "denoising_steps": 4}
    done = write(prompts, settings)
    for prompt, one in zip(prompts, done, strict=True):
        assert one.ids == greedy(LETTERS.encode(prompt).tolist(), 8, 5, 2), prompt
        assert one.reason == "length" and len(one.logprobs) == 8


def test_a_row_is_written_the_same_alone_in_a_batch_in_pieces_and_on_a_mesh():
    prompts = ["ab", "c" * 5, "", "abcabc"]
    settings = [
        GenerateConfig(
            new_tokens=5 + n,
            temperature=0.7 * (n != 1),
            seed=n,
            block_length=3 * (n % 2),
            guidance=1.0 + n % 2,
            remasking="random" if n > 1 else "low_confidence",
        )
        for n in range(4)
    ]
    told = (TINY, weights(), LETTERS)
    whole = generate.complete(*told, prompts, settings, task=TASK)
    assert len({len(one.ids) for one in whole}) == 4 and all(MASK not in o.ids for o in whole)
    for prompt, own, one in zip(prompts, settings, whole, strict=True):
        *pieces, last = generate.stream_text(*told, prompt, own, task=TASK)
        assert last.ids == one.ids and "".join(pieces) == one.text
        assert len(pieces) == (2 if own.block_length else 1)  # a block, then the rest
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = jax.device_put(weights(), param_shardings(mesh, model.axes(TINY), model.shapes(TINY)))
    several = generate.complete(TINY, split, LETTERS, prompts, settings, task=TASK, mesh=mesh)
    assert [one.ids for one in several] == [one.ids for one in whole]


def test_a_stop_token_ends_the_text_and_what_is_behind_it_is_dropped():
    (whole,) = write(["ab"], {"new_tokens": 9, "temperature": 0.8})
    end = whole.ids[4]
    first = whole.ids.index(end)
    (cut,) = write(["ab"], {"new_tokens": 9, "temperature": 0.8, "stop_ids": (end,)})
    assert cut.ids == whole.ids[:first] and cut.reason == "stop"
    assert cut.end is not None and cut.end[0] == end
    (text,) = write(["ab"], {"new_tokens": 9, "temperature": 0.8, "stop": (whole.text[3:5],)})
    assert text.text == whole.text.partition(whole.text[3:5])[0] and text.reason == "stop_string"


def test_guidance_moves_away_from_the_answer_without_a_prompt():
    plain, none, strong = (
        write(["abcab"], {"new_tokens": 8, "temperature": 0.0, "guidance": scale})[0]
        for scale in (1.0, 1.0 + 1e-6, 6.0)
    )
    assert plain.ids == none.ids != strong.ids


def test_what_has_no_probability_keeps_none_under_guidance():
    logits = jnp.asarray([[1.0, 0.0, -jnp.inf]])
    moved = generate.guidance(logits, logits[:, jnp.asarray([1, 0, 2])], jnp.full(1, 2.0))
    assert (np.isneginf(moved) == [[False, False, True]]).all()
    assert float(moved[0, 0] - moved[0, 1]) == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beams": 2}, "beams is set.*fills in masks"),
        ({"repetition_penalty": 1.2}, "shapes single tokens"),
        ({"top_logprobs": 2}, "top_logprobs is set"),
        ({"regex": "a+"}, "shapes single tokens"),
        ({"kv_cache": "int8"}, "kv_cache is set"),
    ],
)
def test_settings_of_one_token_after_another_are_refused_in_one_line(settings, words):
    with pytest.raises(ConfigError, match=words) as no:
        write(["ab"], settings)
    assert "\n" not in str(no.value)


def test_settings_of_masks_are_refused_by_a_model_that_writes_on():
    config = dataclasses.replace(TINY, causal=True)
    with pytest.raises(ConfigError, match=r"block_length is 4.*--block-length"):
        generate.complete(config, weights(), LETTERS, ["ab"], GenerateConfig(block_length=4))
    with pytest.raises(ConfigError, match="share a prefix"):
        generate.shared_prefix(TINY, weights(), LETTERS, "ab", task=TASK)


def test_a_conversation_is_answered_in_blocks_after_all_of_it():
    """Each turn is asked as `Model.chat` asks it, with what was said before."""
    template = choose_template("plain", LETTERS_AND_ROLES)
    config = dataclasses.replace(TINY, vocab_size=LETTERS_AND_ROLES.vocab_size + 1, context=128)
    params = jax.jit(functools.partial(model.init, config))(jax.random.key(0))
    talker = Model(config, params, LETTERS_AND_ROLES, task=DiffusionChat())
    talk, told = start_talk(talker, "plain"), {"new_tokens": 6, "block_length": 3}
    for text in ("ab", "ba"):
        shown = []
        asked = [*talk.messages, Message("user", text)]
        talk = answer_message(talker, talk, text, GenerateConfig(**told), shown.append)
        wanted = talker.chat(asked, "plain", **told)
        assert talk.messages[-1] == Message("assistant", wanted) and talk.read is None
        assert "".join(shown).strip() == wanted and template.source


# --- proofs


@pytest.mark.parametrize("name", ["masks", "bound", "unmasking"])
def test_the_proofs_of_diffusion_hold_and_notice_a_defect(name, text_file, monkeypatch, tmp_path):
    data = DataConfig(Text(str(text_file)), Bytes(), 0.1, TASK, cache=str(tmp_path / "cache"))
    config = model.small("tiny", context=16, causal=False)
    experiment = Experiment(model=config, data=data, loss=Diffusion(), steps=4, batch=4)
    setting = verify_setting.make(experiment, prepare(data))
    assert outcome(DIFFUSION, name, setting).startswith("pass")
    if name == "masks":
        monkeypatch.setattr(Noise, "weights", lambda *args: np.arange(args[1]) % 2.0)
    elif name == "bound":
        shifted = setting.batch._replace(targets=np.roll(setting.batch.targets, 1, axis=1))
        wrong = Diffusion.build

        def build(self, config):
            loss = wrong(self, config)
            return lambda p, f, batch, k: loss(p, f, batch._replace(targets=shifted.targets), k)

        monkeypatch.setattr(Diffusion, "build", build)
    else:
        monkeypatch.setattr(unmask_module, "token_keys", lambda keys, _: jnp.roll(keys, 1))
        unmask_module.unmask.clear_cache()
    said = outcome(DIFFUSION, name, setting)
    monkeypatch.undo()
    unmask_module.unmask.clear_cache()
    assert said.startswith("fail"), said


# --- LLaDA's files


def test_llada_is_llama_that_sees_both_ways_and_writes_by_filling_in_masks(tmp_path):
    """No class of transformers reads LLaDA: here its tensors are Llama's, under LLaDA's names."""
    shape = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "feed_forward": 48}
    config = model.llama("7b", vocab_size=259, context=32, compute="float32", **shape)
    params = jax.jit(functools.partial(model.init, config))(jax.random.key(1))
    tokenizer = train_tokenizer(Bytes(), [])
    opened = OpenedModel(config, params, tokenizer)
    formats.save_model(tmp_path / "llama", opened)
    tensors = safetensors_of(tmp_path / "llama/model.safetensors")
    names = {
        "self_attn.o_proj": "attn_out",
        "self_attn.": "",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ff_norm",
        "mlp.gate_proj": "ff_proj",
        "mlp.up": "up",
        "mlp.down_proj": "ff_out",
        "model.layers": "model.transformer.blocks",
        "model.embed_tokens": "model.transformer.wte",
        "model.norm": "model.transformer.ln_f",
        "lm_head": "model.transformer.ff_out",
    }
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, own in names.items():
            name = name.replace(theirs, own)  # noqa: PLW2901
        renamed[name] = tensor
    assert "model.transformer.blocks.1.q_proj.weight" in renamed
    folder = tmp_path / "llada"
    folder.mkdir()
    save_file(renamed, folder / "model.safetensors")
    told = {
        "model_type": "llada",
        "block_type": "llama",
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "n_layers": 2,
        "mlp_hidden_size": 48,
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rms_norm_eps": config.norm_epsilon,
        "rope": True,
        "rope_theta": config.rope_base,
        "max_sequence_length": 32,
        "weight_tying": False,
        "vocab_size": 259,
        "embedding_size": 259,
        "mask_token_id": 258,
        "alibi": False,
        "init_fn": "mitchell",
        "scale_logits": False,
        "include_bias": False,
    }
    (folder / "config.json").write_text(json.dumps(told))
    read = formats.load_model(folder)
    both = dataclasses.replace(config, causal=False)
    assert read.config == both and read.task == MaskedDiffusion(mask=258)
    ids = jnp.arange(24).reshape(2, 12) * 9 % 250
    found, wanted = (model.forward(c, p, ids).hidden for c, p in (read[:2], (both, params)))
    np.testing.assert_array_equal(found, wanted)
    assert (np.asarray(found) != np.asarray(model.forward(config, params, ids).hidden)).any()
    written = read._replace(tokenizer=tokenizer)
    formats.save_model(tmp_path / "again", written)
    again = formats.load_model(tmp_path / "again")
    assert again.task == read.task and again.fingerprint() == read.fingerprint()
