"""What an experiment is made of, told without allocating anything: every parameter, FLOPs, memory."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.model import flops_per_token
from gptjax.train import optim, step
from gptjax.train.experiment import Experiment
from gptjax.train.metrics import human


def overview(experiment: Experiment) -> dict[str, Any]:
    """Gives the parameter table, counts, FLOPs per token and bytes, as plain values.

    A vocabulary that only the data knows is taken from the tokenizer's settings, or as 257 (bytes).
    """
    config = experiment.model
    if config.vocab_size is None:
        guess = getattr(experiment.data.tokenizer, "vocab_size", 257)
        config = dataclasses.replace(config, vocab_size=guess)
    rate = optim.learning_rate(experiment.schedule, experiment.optim.peak, experiment.steps)
    optimizer = optim.build(experiment.optim, rate)
    state = jax.eval_shape(lambda: step.init(model.init(config, jax.random.key(0)), optimizer))
    names = model.axes(config)
    decayed = optim.decayed(state.params)
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        keys = [key.key for key in path]
        axes, decays = names, decayed
        for key in keys:
            axes, decays = axes[key], decays[key]
        rows.append({"path": "/".join(keys), "shape": list(leaf.shape), "axes": list(axes), "decayed": decays, "parameters": math.prod(leaf.shape)})
    cache = jax.eval_shape(lambda: model.empty_cache(config, 1, 1))
    return {
        "parameters": sum(row["parameters"] for row in rows),
        "vocab_size": config.vocab_size,
        "flops_per_token": flops_per_token(config, config.context),
        "flops_per_step": flops_per_token(config, config.context) * experiment.tokens_per_step,
        "tokens_per_step": experiment.tokens_per_step,
        "bytes": {
            "parameters": _bytes(state.params),
            "optimizer": _bytes(state.opt_state),
            "gradients": _bytes(state.params),
            "cache_per_token": _bytes(cache) - cache.lengths.size * 4,
        },
        "table": rows,
    }


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def table(facts: dict[str, Any]) -> str:
    """The same as lines to read."""
    rows = [(row["path"], " × ".join(map(str, row["shape"])), " ".join(str(a) for a in row["axes"]), "decayed" if row["decayed"] else "", f"{row['parameters']:,}") for row in facts["table"]]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.rjust(w) if i == 4 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in rows]
    size = facts["bytes"]
    state = size["parameters"] + size["optimizer"]
    return "\n".join(
        [
            *lines,
            "",
            f"parameters   {facts['parameters']:,} (vocabulary {facts['vocab_size']:,})",
            f"FLOPs        {human(facts['flops_per_token'])} a token, {human(facts['flops_per_step'])} a step of {facts['tokens_per_step']:,} tokens (training)",
            f"memory       state {state / 2**20:,.1f} MiB (parameters {size['parameters'] / 2**20:,.1f}, optimizer {size['optimizer'] / 2**20:,.1f}), "
            f"gradients {size['gradients'] / 2**20:,.1f} MiB, cache {size['cache_per_token']:,} bytes a token",
        ]
    )
