"""Proofs of masked diffusion: what is masked, what the bound is, and how masks are filled in.
(Setting) → Figure or Skipped."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from gptjax.data import Batch, batches
from gptjax.generate import GenerateConfig, complete
from gptjax.train.sources import row_plan
from gptjax.verify.reading import ROUNDING
from gptjax.verify.setting import Figure, Setting, Skipped, difference
from gptjax.verify.text import numbered_store


def masks(setting: Setting) -> Figure | Skipped:
    """Reads ids that are their own places: each but a text's first must be a target once an epoch.
    A token is shown or it is the mask and counts; held-out weights add up to the tokens; and a
    batch is the same again, whole or in halves."""
    task = setting.experiment.data.task
    if task.conversations:
        return Skipped("rows of conversations hold whole ones; `counted` is proved of Chat")
    part, numbered = numbered_store(setting.data.train)
    plan = row_plan(setting.experiment, numbered, seed=setting.experiment.seed)
    times, wrong = np.zeros(len(numbered.ids), np.int64), 0
    for number in range(plan.batches_per_epoch):
        batch = batches.batch(numbered, plan, number)
        rows = slice(0, plan.rows_per_epoch - number * plan.rows)
        times += np.bincount(batch.targets[rows][_real(batch)[rows]], minlength=len(times))
    once = np.ones(len(times), np.int64)
    once[numbered.offsets[:-1]] = 0  # stands where others have what the first is predicted from
    wrong += int((times != once).sum())
    for number in (0, 1, plan.batches_per_epoch):
        batch = batches.batch(part, plan, number)
        halves = [
            batches.batch(part, plan, number, rows)
            for rows in np.array_split(np.arange(plan.rows), 2)
            if len(rows)
        ]
        again = np.concatenate([half.tokens for half in halves])
        shown = batch.weights == 0
        wrong += int((again != batch.tokens).sum())
        wrong += int((batch.tokens != batch.targets)[shown & _real(batch)].sum())
        wrong += int((batch.tokens[~shown] != task.mask_id(setting.data.tokenizer)).sum())
    held = batches.batch(part, row_plan(setting.experiment, part, seed=None), 0)
    assert held.columns is not None
    beyond = np.abs(held.weights.sum(axis=1) - held.columns["tokens"])
    wrong += int((beyond > ROUNDING * held.columns["tokens"]).sum())
    return Figure(wrong, 0, f"faults in {len(times):,} tokens and their masks")


def _real(batch: Batch) -> np.ndarray:
    """Which positions of a batch are no padding [B T]."""
    assert batch.positions is not None
    return batch.positions >= 0


def masked_loss(setting: Setting) -> Figure:
    """Computes the loss of a batch by hand: −ln p of what is masked, by its weight, a token."""
    batch = setting.batch
    assert batch.columns is not None
    loss = setting.experiment.objective.build(setting.exact)
    with jax.default_matmul_precision("highest"):
        total, weight, _ = jax.jit(loss)(setting.params, {}, batch, None)
    segments = np.ones_like(batch.tokens) if batch.segments is None else batch.segments
    states = setting.functions.hidden(setting.params, batch.tokens, batch.positions, segments)
    logits = np.asarray(setting.functions.logits(setting.params, states), np.float64)
    own = np.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    nats = np.logaddexp.reduce(logits, axis=-1) - own
    by_hand = float((nats * batch.weights).sum() / _real(batch).sum())
    return Figure(
        difference(float(total) / float(weight), by_hand),
        ROUNDING,
        f"relative difference of the loss ({by_hand:.4f} nats a token) from −ln p of the masked",
    )


def unmasking(setting: Setting) -> Figure:
    """Fills in masks from left to right, in four rows together and each alone: the same tokens,
    each with the ln p that one more forward pass over what was there gives it."""
    rows, length = setting.batch.targets.shape
    new, task, tokenizer = min(8, length // 4), setting.experiment.data.task, setting.data.tokenizer
    lengths = [length // 2, length // 4 + 1, length // 8, 3 * length // 8]
    source = np.resize(setting.batch.targets, (4, length))
    prompts = [row[:n].tolist() for row, n in zip(source, lengths, strict=True)]
    told = GenerateConfig(new_tokens=new, top_p=1.0, block_length=1)
    each = [dataclasses.replace(told, temperature=t, seed=n) for n, t in enumerate((0, 1, 0, 0.7))]
    with jax.default_matmul_precision("highest"):
        given = (setting.exact, setting.params, tokenizer)
        together = complete(*given, prompts, each, task=task)
        alone = [
            complete(*given, [prompt], own, task=task)[0]
            for prompt, own in zip(prompts, each, strict=True)
        ]
    changed = sum(one.ids != other.ids for one, other in zip(together, alone, strict=True))
    if changed:
        return Figure(changed, 0, "of 4 rows write other tokens when they have neighbours")
    mask, worst = task.mask_id(tokenizer), 0.0
    for prompt, done in zip(prompts, together, strict=True):
        end = len(prompt) + new
        where = np.where(np.arange(length) < end, np.arange(length), -1).astype(np.int32)
        for n, logprob in enumerate(done.logprobs):
            seen = [*prompt, *done.ids[:n], *[mask] * (new - n)]
            row = np.zeros((rows, length), np.int32)
            row[:, :end] = seen
            places = np.tile(where, (rows, 1)), np.ones((rows, length), np.int32)
            states = setting.functions.hidden(setting.params, row, *places)
            logits = setting.functions.logits(setting.params, states)
            own = np.asarray(logits[0, len(prompt) + n], np.float64)
            own = np.delete(own, mask)[: tokenizer.vocab_size]
            chosen = own[done.ids[n] - (done.ids[n] > mask)] - np.logaddexp.reduce(own)
            worst = max(worst, abs(chosen - logprob))
    return Figure(worst, 1e-4, "nats between the recorded ln p of a token and a forward pass")
