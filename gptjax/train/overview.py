"""What an experiment consists of, without allocating anything: every parameter, FLOPs, memory.

Read `model_facts` and `model_table` (of a model alone), then `overview` and `table` (of an
experiment).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from gptjax import model
from gptjax.data import Batch, Heard, Side
from gptjax.losses import CrossEntropy
from gptjax.model import ModelConfig, flops_per_token
from gptjax.observe.progress import human
from gptjax.train import optim, placement, step
from gptjax.train.experiment import Experiment, guessed
from gptjax.train.halves import halves


def model_facts(config: ModelConfig) -> dict[str, Any]:
    """Returns the parameter table, counts, FLOPs of a token and bytes of its cache (the mean, where
    the context is full), as plain values.

    Returns:
      `parameters`; `active_parameters`, those that read a token: of experts, the chosen ones;
      `table`, a row for each leaf.
    """
    shapes = model.shapes(config)
    axes, decayed = model.axes(config), optim.decayed(shapes, model.roles(config))
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        keys = [key.key for key in path]
        names, decays = axes, decayed
        for key in keys:
            names, decays = names[key], decays[key]
        rows.append(
            {
                "path": "/".join(keys),
                "shape": list(leaf.shape),
                "axes": list(names),
                "decayed": decays,
                "parameters": math.prod(leaf.shape),
            }
        )
    idle = 0 if config.experts is None else 1 - config.experts.active / config.experts.count
    cache = jax.eval_shape(lambda: model.empty_cache(config, 1, config.context))
    return {
        "parameters": sum(row["parameters"] for row in rows),
        "active_parameters": round(
            sum(row["parameters"] * (1 - idle * ("experts/" in row["path"])) for row in rows)
        ),
        "vocab_size": config.vocabulary,
        "context": config.context,
        "flops_per_token": flops_per_token(config, config.context),
        "cache_per_token": tree_bytes(cache.groups) // config.context,
        "state_bytes": tree_bytes(cache.states),
        "table": rows,
    }


def model_table(facts: dict[str, Any]) -> str:
    """The same as lines to read."""
    cells = [
        (
            row["path"],
            " × ".join(map(str, row["shape"])),
            " ".join(map(str, row["axes"])),
            "decayed" if row["decayed"] else "",
            f"{row['parameters']:,}",
        )
        for row in facts["table"]
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    lines = [
        "  ".join(
            [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=False)]
            + [row[4].rjust(widths[4])]
        )
        for row in cells
    ]
    active = (
        ""
        if facts["active_parameters"] == facts["parameters"]
        else f", of which {facts['active_parameters']:,} read a token"
    )
    return "\n".join(
        [
            *lines,
            "",
            f"parameters   {facts['parameters']:,} (vocabulary {facts['vocab_size']:,}){active}",
            (
                f"FLOPs        {facts['flops_per_token']:,.0f} a token in training, in rows of"
                f" {facts['context']:,}"
            ),
            f"cache        {facts['cache_per_token']:,} bytes a token"
            + (f", states {facts['state_bytes']:,} a text" if facts["state_bytes"] else ""),
        ]
    )


def overview(experiment: Experiment) -> dict[str, Any]:
    """Returns what `model_facts` gives, and what a training step costs.

    What only the data know is guessed, see `guessed`.
    """
    experiment = guessed(experiment)
    config = experiment.model
    facts = model_facts(config)
    shapes = model.shapes(config)
    trainable, frozen = jax.eval_shape(functools.partial(halves, experiment), shapes)
    state = jax.eval_shape(
        lambda params: step.init(params, placement.optimizer(experiment)), trainable
    )
    rows = experiment.batch // experiment.micro_batches
    return facts | {
        "flops_per_step": facts["flops_per_token"] * experiment.tokens_per_step,
        "tokens_per_step": experiment.tokens_per_step,
        "rows_at_once": rows,
        "bytes": {
            "parameters": tree_bytes((trainable, frozen)),
            "optimizer": tree_bytes(state.opt_state),
            "gradients": tree_bytes(trainable),
            "activations": activation_bytes(config, rows),
            "cache_per_token": facts["cache_per_token"],
        },
    }


def activation_bytes(config: ModelConfig, rows: int) -> int:
    """Returns the bytes that the forward pass keeps for the backward pass, besides the parameters,
    when that many rows are processed at once.

    That is what JAX asks to be kept. A compiler may keep less, by computing again what is cheap,
    and needs room for what it works on.
    """
    config = dataclasses.replace(
        config, layers="scan" if config.layers == "auto" else config.layers
    )
    params = model.shapes(config)
    ints, floats = (
        jax.ShapeDtypeStruct((rows, config.context), kind) for kind in (jnp.int32, jnp.float32)
    )
    side: Any = Side(ints, ints, ints) if config.encoder_layers else None
    if config.frames is not None:
        shape = (rows, config.frames.entering, config.frames.channels)
        side = Heard(jax.ShapeDtypeStruct(shape, jnp.float32))
    batch = Batch(ints, ints, floats, ints, ints, side)

    loss = CrossEntropy().build(config)

    def kept(params: Any, batch: Any) -> Any:
        key = jax.random.key(0) if config.uses_dropout else None
        return jax.vjp(lambda params: loss(params, {}, batch, key)[0], params)[1]

    program = jax.make_jaxpr(kept)(params, batch).jaxpr
    given = set(program.invars)
    outputs = {
        id(out): out.aval
        for out in program.outvars
        if not isinstance(out, Literal) and out not in given
    }
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in outputs.values())


def table(facts: dict[str, Any]) -> str:
    """An experiment's overview as lines to read."""
    size = {name: count / 2**20 for name, count in facts["bytes"].items()}
    return "\n".join(
        [
            model_table(facts),
            (
                f"step         {human(facts['flops_per_step'])}FLOP for"
                f" {facts['tokens_per_step']:,} tokens"
            ),
            (
                f"memory       state {size['parameters'] + size['optimizer']:,.1f} MiB (parameters"
                f" {size['parameters']:,.1f}, optimizer {size['optimizer']:,.1f}), gradients"
                f" {size['gradients']:,.1f} MiB, kept for the backward pass"
                f" {size['activations']:,.1f} MiB for {facts['rows_at_once']} rows"
            ),
        ]
    )


def tree_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree, which may be shapes alone."""
    return sum(
        math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )
