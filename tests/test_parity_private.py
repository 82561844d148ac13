"""Clipped gradients are those of Opacus on the same small GPT: torch's per-example gradients by its
hooks, clipped by its optimizer. Written against opacus 1.6.0 and torch 2.13.0."""

from __future__ import annotations

import math
import warnings

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gptjax import model
from gptjax.data.layouts import Batch
from gptjax.lab import private, promise
from gptjax.losses import CrossEntropy

torch = pytest.importorskip("torch", reason="torch is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    opacus = pytest.importorskip("opacus", reason="opacus is not installed")

B, T, V, D, N, L = 6, 16, 29, 32, 4, 2
CONFIG = model.ModelConfig(
    vocab_size=V, context=T, width=D, num_layers=L, num_heads=N, tied=False, norm_epsilon=1e-5
)


class Block(torch.nn.Module):
    """A block of GPT-2 out of layers that Opacus knows."""

    def __init__(self):
        super().__init__()
        linear = torch.nn.Linear
        self.attention_norm, self.mlp_norm = torch.nn.LayerNorm(D), torch.nn.LayerNorm(D)
        self.query, self.key, self.value, self.out = (linear(D, D) for _ in range(4))
        self.up, self.down = linear(D, 4 * D), linear(4 * D, D)

    def forward(self, x):
        y = self.attention_norm(x)
        q, k, v = (
            layer(y).view(len(x), T, N, D // N).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(D // N)
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(len(x), T, D))
        risen = torch.nn.functional.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + self.down(risen)


class GPT(torch.nn.Module):
    """GPT-2 with an output of its own."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = torch.nn.Embedding(V, D), torch.nn.Embedding(T, D)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(L))
        self.norm, self.head = torch.nn.LayerNorm(D), torch.nn.Linear(D, V, bias=False)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(T).expand(len(ids), T))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def copied(tree) -> dict[str, np.ndarray]:
    """A tree like the parameters by the names of `GPT`; kernels become [outputs inputs]."""
    tree = jax.tree.map(np.asarray, tree)
    found = {
        "tokens.weight": tree["embedding"]["embedding"],
        "places.weight": tree["positions"]["embedding"],
        "norm.weight": tree["norm"]["scale"],
        "norm.bias": tree["norm"]["bias"],
        "head.weight": tree["head"]["kernel"].T,
    }
    layers = tree["layers"]
    for i in range(L):
        for name in ("attention_norm", "mlp_norm"):
            found[f"blocks.{i}.{name}.weight"] = layers[name]["scale"][i]
            found[f"blocks.{i}.{name}.bias"] = layers[name]["bias"][i]
        for name, layer in (layers["attention"] | layers["mlp"]).items():
            inputs = D if name != "down" else 4 * D
            kernel = layer["kernel"][i].reshape(inputs, -1)
            found[f"blocks.{i}.{name}.weight"] = kernel.T
            found[f"blocks.{i}.{name}.bias"] = layer["bias"][i].reshape(-1)
    return found


def theirs(params, batch: Batch, clip: float) -> dict[str, np.ndarray]:
    """The sum of clipped gradients of each row's mean loss, by Opacus."""
    gpt = GPT()
    state = {name: torch.tensor(np.array(x)) for name, x in copied(params).items()}
    gpt.load_state_dict(state)
    hooked = opacus.GradSampleModule(gpt, loss_reduction="sum")
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    logits = hooked(torch.tensor(batch.tokens.astype(np.int64)))
    targets = torch.tensor(batch.targets.astype(np.int64))
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    (each * B).backward()  # the sum over rows of their means
    optimizer.clip_and_accumulate()
    return {name: p.summed_grad.numpy() for name, p in gpt.named_parameters()}


@pytest.mark.parametrize("clip", [0.5, 3.0, 1e3], ids=["all clipped", "some clipped", "none"])
@pytest.mark.filterwarnings("ignore")  # Opacus uses hooks that torch is about to change
def test_clipped_gradients_are_those_of_opacus(clip):
    ids = np.random.default_rng(0).integers(0, V, (B, T + 1)).astype(np.int32)
    words = np.broadcast_to(np.array([3, 4], np.uint32), (B, 2))
    batch = Batch(
        ids[:, :-1], ids[:, 1:], np.ones((B, T), np.float32), columns={private.NOISE: words}
    )
    params = model.init(CONFIG, jax.random.key(0))
    params = jax.tree.map(lambda p: 3 * p if p.ndim > 1 else p, params)  # not nearly uniform
    loss = CrossEntropy().build(CONFIG)

    def objective(params, rows, key):
        total, weight, sums = loss(params, {}, rows, key)
        return total, (weight, sums)

    mechanism = promise.Mechanism(
        noise=0.0,
        clip=clip,
        rate=0.1,
        rows=100,
        expected=1,
        length=T,
        capacity=B,
        delta=1e-5,
        delta_of_noise=0.99e-5,
        accountant="pld",
    )
    gradients = private.private_gradients(mechanism)
    _, summed = jax.jit(lambda p, rows: gradients(objective, p, rows, None))(params, batch)
    ours = copied(jax.tree.map(lambda g: g / T, summed))
    wanted = theirs(params, batch, clip)
    assert ours.keys() == wanted.keys()
    norm = float(np.linalg.norm(ravel_pytree(wanted)[0]))
    for name, found in ours.items():
        assert np.abs(found - wanted[name]).max() <= 1e-5 * max(norm, 1.0), name
    assert (norm <= clip * B + 1e-4) and norm > 0.1
