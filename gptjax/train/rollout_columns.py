"""What a rollout's rows hold, and what is read off the model for them.

Read `blank_rows` (the layout), then `reading`, which compiles the reading.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gptjax import model
from gptjax.core.arrays import Array, Float, Params
from gptjax.data.layouts import Batch
from gptjax.generate import transforms
from gptjax.losses import Frozen, OwnAnswers, Policy
from gptjax.losses.cross_entropy import forward_batch
from gptjax.model import ModelConfig
from gptjax.sharding.mesh import row_sharding, with_mesh
from gptjax.train.experiment import Experiment
from gptjax.train.rollout import Rollout


def rollout_of(experiment: Experiment) -> Rollout:
    """Returns the rollout of an experiment that has one."""
    assert experiment.rollout is not None
    return experiment.rollout


def own_answers(experiment: Experiment) -> OwnAnswers:
    """Returns the loss of an experiment that has a rollout."""
    return cast(OwnAnswers, experiment.objective)


def blank_rows(experiment: Experiment, rows: int) -> Batch:
    """Returns rows of padding, in the layout of a rollout."""
    shape = (rows, experiment.model.context)
    zeros = functools.partial(np.zeros, shape, np.float32)
    columns = {name: zeros() for name in ("sampled", "advantages")}
    facts = ("reward", "judged", "passed", "finished", "flat")
    columns |= {name: np.zeros(rows, np.float32) for name in facts}
    ids = functools.partial(np.zeros, shape, np.int32)
    return Batch(
        tokens=ids(),
        targets=ids(),
        weights=zeros(),
        segments=ids(),
        positions=np.full(shape, -1, np.int32),
        columns=columns,
    )


def row_shapes(experiment: Experiment, mesh: Mesh) -> Batch:
    """Returns shapes, types and shardings of a step's batch."""
    rows = blank_rows(experiment, 1)
    loss, updates = own_answers(experiment), rollout_of(experiment).updates
    known = dict.fromkeys([*loss.reads(updates), *loss.adds], rows.weights)
    rows = rows._replace(columns={**(rows.columns or {}), **known})
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (experiment.batch, *leaf.shape[1:]), leaf.dtype, sharding=row_sharding(mesh)
        ),
        rows,
    )


def reading(
    experiment: Experiment, mesh: Mesh, models: Mapping[str, ModelConfig]
) -> Callable[[Params, Frozen, Batch], dict[str, Array]] | None:
    """Returns the compiled function (params, frozen, batch) → columns of what the weights that
    wrote a rollout say of it, [B T] each; `None` if none is needed."""
    names = own_answers(experiment).reads(rollout_of(experiment).updates)
    if not names:
        return None
    policy = cast(Policy, experiment.objective)
    loss = policy.build(experiment.model, **models)

    def part(params: Params, frozen: Frozen, batch: Batch) -> dict[str, Array]:
        seen, found = loss.read(params, batch), {}
        found["old"], found["values"] = seen.log_probs, seen.values
        if "reference" in names:
            found["reference"] = loss.reference_log_probs(params, frozen, batch)
        if "drawn" in names:
            found["drawn"] = drawn(experiment, params, batch)
        if "sampled" in names:  # as far from `old` as the sampler is from the trainer at 1
            plain = dataclasses.replace(loss, settings=dataclasses.replace(policy, temperature=1.0))
            gap = (batch.columns or {})["sampled"] - plain.read(params, batch).log_probs
            found["sampled"] = seen.log_probs + gap
        counted = jnp.asarray(batch.weights) > 0
        return {name: jnp.where(counted, found[name], 0.0) for name in names}

    def whole(params: Params, frozen: Frozen, batch: Batch) -> dict[str, Array]:
        parts = jax.tree.map(lambda x: x.reshape(experiment.micro_batches, -1, *x.shape[1:]), batch)
        found = jax.lax.map(lambda one: part(params, frozen, one), parts)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

    return jax.jit(with_mesh(mesh, whole), out_shardings=row_sharding(mesh))


def drawn(experiment: Experiment, params: Params, batch: Batch) -> Float[Array, "B T"]:
    """Returns ln of the probability with which each target was drawn, after the truncation of the
    sampler and its temperature, in its order."""
    rollout, policy = rollout_of(experiment), cast(Policy, experiment.objective)
    hidden = forward_batch(experiment.model, params, batch, None).hidden
    logits = model.unembed(experiment.model, params, hidden)
    rows = logits.reshape(-1, logits.shape[-1])
    if rollout.top_k:
        rows = transforms.top_k(rows, jnp.full(len(rows), rollout.top_k))
    if rollout.top_p < 1:
        rows = transforms.top_p(rows, jnp.full(len(rows), rollout.top_p))
    logp = jax.nn.log_softmax(rows / policy.temperature).reshape(logits.shape)
    return jnp.take_along_axis(logp, jnp.asarray(batch.targets)[..., None], axis=-1)[..., 0]
