"""Accuracy of a masked language model on the hidden tokens of held-out text.

    python benchmarks/cloze.py RUN ...

The run's own evaluation chooses the hidden tokens (`configs/books_mlm.py`); tokens that it predicts
but shows, or replaces by another, are left out. Two baselines are counted on the training tokens:
the most frequent token (unigram), and the most frequent token after the one on the left (bigram,
given the true token on the left even if it is hidden).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import gptjax
from gptjax import data, model
from gptjax.core import config
from gptjax.core.config import require
from gptjax.data.prepare import Prepared
from gptjax.losses import token_losses
from gptjax.sharding.mesh import make_mesh
from gptjax.train.experiment import Experiment
from gptjax.train.sources import evaluation_batches


class Cloze(NamedTuple):
    """Over all hidden tokens: their number, shares that are right, and −ln p in nats a token."""

    hidden: int
    model: float
    loss: float
    unigram: float
    unigram_loss: float
    bigram: float


def cloze(experiment: Experiment, prepared: Prepared, params: dict) -> Cloze:
    """Reads the held-out text once, hidden as at the run's own evaluation."""
    prior, after = counted(prepared.train.ids[:], prepared.train.header.vocab_size)
    count, batch = evaluation_batches(experiment, prepared.validation, make_mesh(experiment.mesh))
    found = []
    for number in range(count):
        rows = batch(number)
        best, losses = (
            np.asarray(x) for x in jax.jit(read, static_argnums=0)(experiment.model, params, rows)
        )
        tokens, targets, weights = (
            np.asarray(x) for x in (rows.tokens, rows.targets, rows.weights)
        )
        here = (weights > 0) & (tokens == prepared.tokenizer.vocab_size)
        left = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        guess = np.where(np.arange(targets.shape[1])[None] > 0, after[left], prior.argmax())
        right = [
            best == targets,
            losses,
            targets == prior.argmax(),
            -np.log(prior)[targets],
            guess == targets,
        ]
        found.append(np.stack([np.asarray(x, np.float64)[here] for x in right]))
    every = np.concatenate(found, axis=1)
    return Cloze(every.shape[1], *every.mean(axis=1))


def read(config: model.ModelConfig, params: dict, batch: data.Batch) -> tuple[jax.Array, jax.Array]:
    """The likeliest token of each place, and −ln p of the right one."""
    logits = model.unembed(
        config,
        params,
        model.forward(
            config, params, batch.tokens, positions=batch.positions, segments=batch.segments
        ).hidden,
    )
    return logits.argmax(-1), token_losses(logits, batch.targets)


def counted(ids: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of each token [V], one added to each count, and the most frequent one after each
    [V]."""
    ids = ids.astype(np.int64)
    pairs, times = np.unique(ids[:-1] * size + ids[1:], return_counts=True)
    rising = np.argsort(times, kind="stable")
    after = np.zeros(size, np.int64)
    after[pairs[rising] // size] = (
        pairs[rising] % size
    )  # of several values for one index numpy keeps the last
    ones = np.bincount(ids, minlength=size) + 1.0
    return ones / ones.sum(), after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", help="run directories of masked language models"
    )
    found = []
    for path in parser.parse_args().runs:
        experiment = config.load_config(Experiment, path / "config.json")
        require(
            type(experiment.data.task) is data.MaskedLanguageModel,
            f"{path} is no run of a masked language model (data.task).",
        )
        prepared = data.prepare(experiment.data, say=print)
        require(prepared.validation is not None, f"{path} held out no text (data.validation).")
        found.append(cloze(experiment, prepared, gptjax.load(path).params))
        one = found[-1]
        print(
            f"{path}: {one.mlp_dim} hidden, {one.model:.4f} right, loss {one.loss:.4f}; "
            f"unigram {one.unigram:.4f}, loss {one.unigram_loss:.4f}; bigram {one.bigram:.4f}"
        )
    mean = np.mean(found, axis=0)
    print(f"mean of {len(found)}: {mean[1]:.4f} right, loss {mean[2]:.4f}")


if __name__ == "__main__":
    main()
