"""The laws of virtual tokens (prompt and prefix tuning): they are a text before every text, they
train alone, and what is generated after them is what was trained."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_adapters import CONFIG, ROLES, TOKENS, base, close, described

import gptjax
from gptjax import model, weights
from gptjax.cli.convert import ConvertOptions, convert, write_run
from gptjax.core.config import ConfigError
from gptjax.core.trees import combine
from gptjax.data import Batch, Bytes
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.formats import OpenedModel
from gptjax.losses import CrossEntropy
from gptjax.runs import Run
from gptjax.runs.open import open_model
from gptjax.train import optim, start, step
from gptjax.train.experiment import Experiment
from gptjax.weights import VIRTUAL, Prefix, PrefixTuning, Prompt, PromptTuning

IDS = (5, 7, 9, 11)
RATE = 1e-1


adapt = jax.jit(model.add_adapter, static_argnums=(0, 1))


def whole(settings, c=CONFIG):
    trainable, rest = adapt(c, settings, base(), jax.random.key(1))
    return combine({"params": rest}, trainable)


@functools.partial(jax.jit, static_argnums=0)
def logits(c, params, tokens, positions=None, segments=None):
    hidden = model.forward(c, params, tokens, positions=positions, segments=segments).hidden
    return model.unembed(c, params, hidden)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [(PromptTuning, "unroll"), (PromptTuning, "scan"), (PrefixTuning, "unroll")],
)
def test_virtual_tokens_are_a_text_before_each_segment_of_a_row(kind, layers):
    c = dataclasses.replace(CONFIG, layers=layers)
    text = jnp.broadcast_to(jnp.asarray((*IDS, *IDS[:2])), (3, 6))
    written = jnp.concatenate([text, TOKENS[:, :5], text, TOKENS[:, 5:8]], axis=1)
    places = jnp.asarray([*range(11), *range(9)])[None]
    pieces = jnp.broadcast_to(jnp.asarray([1] * 11 + [2] * 9), written.shape)
    wanted = logits(CONFIG, base(), written, places, pieces)
    positions = jnp.asarray([0, 1, 2, 3, 4, 0, 1, 2, -1])[None]
    segments = jnp.broadcast_to(jnp.asarray([1, 1, 1, 1, 1, 2, 2, 2, 0]), TOKENS.shape)
    found = logits(c, whole(kind(tokens=6, ids=IDS), c), TOKENS, positions, segments)
    close(found[:, :5], wanted[:, 6:11])
    close(found[:, 5:8], wanted[:, 17:])


def test_without_virtual_tokens_the_model_is_its_base_to_the_last_bit():
    none = jax.tree.map(lambda leaf: leaf[:, :0], whole(PrefixTuning())[VIRTUAL])
    assert none.count == 0
    found = logits(CONFIG, {**base(), VIRTUAL: none}, TOKENS)
    np.testing.assert_array_equal(found, logits(CONFIG, base(), TOKENS))


def test_only_virtual_tokens_train_and_the_loss_falls():
    settings = PromptTuning(tokens=3, base="int8")
    trainable, rest = adapt(CONFIG, settings, base(), jax.random.key(0))
    assert list(jax.tree.leaves(trainable)) == list(jax.tree.leaves(trainable[VIRTUAL]))
    assert rest["layers"]["mlp"]["up"]["kernel"].values.dtype == jnp.int8
    optimizer = optim.build_optimizer(optim.AdamW(), lambda _: RATE, ROLES)
    one = functools.partial(
        step.train_step,
        loss=CrossEntropy().build(CONFIG),
        optimizer=optimizer,
        rate=lambda _: RATE,
        seed=0,
    )
    ids = np.asarray(TOKENS)
    batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((3, 8), np.float32))
    state, losses, compiled = step.init(trainable, optimizer), [], jax.jit(one)
    for _ in range(3):
        state, metrics = compiled(state, {"params": rest}, batch)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[1] < losses[0]
    moved = jax.tree.map(lambda old, new: jnp.abs(old - new).max(), trainable, state.trainable)
    assert all(float(change) > RATE for change in jax.tree.leaves(moved))


# --- runs


@pytest.fixture(scope="module")
def base_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base"
    write_run(path, OpenedModel(CONFIG, base(), tokenizers.train_tokenizer(Bytes(), ())))
    return path


def run_of(path, settings, base_run):
    """A run as `train` leaves it."""
    opened = open_model(base_run)
    experiment = Experiment(model=CONFIG, start=str(base_run), adapter=settings)
    trainable = adapt(CONFIG, settings, opened.params, jax.random.key(1))[0]
    described(path, experiment, opened.fingerprint(), opened.tokenizer)
    run = Run(path)
    with run.lock():
        run.save(1, {"params": jax.tree.map(lambda x: 3 * x, trainable)})
        run.wait()
    return path


@pytest.fixture(scope="module")
def prompt_run(base_run, tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("prompt") / "run", PromptTuning(3, ids=IDS), base_run)


@pytest.mark.parametrize("prepared", [True, False])
def test_what_is_generated_has_the_probabilities_of_the_trained_model(prompt_run, prepared):
    opened = gptjax.load(prompt_run)
    served = opened.prepared("float32") if prepared else opened
    assert isinstance(served.params[VIRTUAL], Prefix if prepared else Prompt)
    prompts = [[84, 104, 101], [73], [65, 32, 108, 111, 110]]
    found = served.complete(prompts, new_tokens=4, temperature=0.0)
    ids = np.zeros((3, 9), np.int32)
    for row, (prompt, one) in enumerate(zip(prompts, found, strict=True)):
        ids[row, : len(prompt) + 4] = [*prompt, *one.ids]
    logs = jax.nn.log_softmax(logits(CONFIG, opened.params, ids))
    for row, (prompt, one) in enumerate(zip(prompts, found, strict=True)):
        wanted = [logs[row, len(prompt) - 1 + i, token] for i, token in enumerate(one.ids)]
        np.testing.assert_allclose(one.logprobs, wanted, atol=1e-5)


def test_virtual_tokens_go_to_peft_and_back_and_nowhere_else(prompt_run, base_run, tmp_path):
    assert convert(prompt_run, tmp_path / "peft", ConvertOptions(to="peft"), say=[].append)
    again, own = (gptjax.load(path).params[VIRTUAL] for path in (tmp_path / "peft", prompt_run))
    jax.tree.map(np.testing.assert_array_equal, again, own)
    for options in (ConvertOptions(merge=True), ConvertOptions()):
        with pytest.raises(ConfigError, match=r"which no weight can hold.*--to peft"):
            convert(prompt_run, tmp_path / "merged", options)
    with pytest.raises(ConfigError, match="can't be merged or trained further"):
        start.of(Experiment(start=str(prompt_run)), tmp_path, resuming=False)
    for path in (prompt_run, tmp_path / "peft"):
        with pytest.raises(ConfigError, match="can't stand beside other adapters; open it alone"):
            gptjax.load(base_run).with_adapters({"one": path})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"positions": "learned"}, "this model's are learned"),
        ({"prefix_lm": True}, "sees its whole prefix at once"),
        ({"causal": False}, "is no decoder"),
    ],
)
def test_a_model_that_can_have_no_virtual_tokens_is_refused(changed, said):
    c = dataclasses.replace(CONFIG, **changed)
    with pytest.raises(ConfigError, match=said):
        model.add_adapter(c, PromptTuning(), base(), jax.random.key(0))


def test_the_reference_of_preferences_is_the_model_without_its_virtual_tokens():
    plain, adapters = weights.detach(whole(PromptTuning()))
    assert VIRTUAL not in plain and list(adapters) == [VIRTUAL]
    assert VIRTUAL in weights.attach(plain, adapters)
