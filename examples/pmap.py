"""Trains a tiny GPT with `jax.pmap` and with `jax.shard_map`: the same step, mapped over devices.

gptjax itself shards one jitted step over a mesh (`--mesh.*`). Where a program is already written
with a mapped axis, `train_step(..., axis="devices")` sums loss and gradients over it:

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python examples/pmap.py
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from gptjax import model
from gptjax.data import Batch
from gptjax.losses import CrossEntropy
from gptjax.train import optim, step

CONFIG = model.small("tiny", vocab_size=64, context=32)
ROWS, STEPS = 16, 60


def setup():
    """Returns the initial state and the step, to be mapped over the axis `devices`."""
    rate = optim.learning_rate(optim.Schedule(warmup=5), 1e-2, STEPS)
    optimizer = optim.build_optimizer(optim.AdamW(), rate)
    params = jax.jit(functools.partial(model.init, CONFIG))(jax.random.key(0))
    one = functools.partial(
        step.train_step,
        loss=CrossEntropy().build(CONFIG),
        optimizer=optimizer,
        rate=rate,
        seed=0,
        dropout=False,
        axis="devices",
    )
    return step.init(params, optimizer), one


def batch(number: int) -> Batch:
    """Returns rows that count upwards from random beginnings."""
    begin = np.random.default_rng(number).integers(0, 64, (ROWS, 1))
    ids = ((begin + np.arange(CONFIG.context + 1)) % 64).astype(np.int32)
    return Batch(ids[:, :-1], ids[:, 1:], np.ones((ROWS, CONFIG.context), np.float32))


def with_pmap() -> list[float]:
    """Returns the losses of a run whose state is replicated and whose batch has a device axis."""
    state, one = setup()
    devices = jax.device_count()
    state = jax.tree.map(lambda leaf: jnp.stack([leaf] * devices), state)
    mapped = jax.pmap(one, axis_name="devices", in_axes=(0, None, 0))
    losses = []
    for number in range(STEPS):
        shards = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch(number))
        state, metrics = mapped(state, {}, shards)
        losses.append(float(metrics["loss"][0]))
    return losses


def with_shard_map() -> list[float]:
    """Returns the losses of the same run under `jax.shard_map`."""
    state, one = setup()
    mesh = Mesh(np.array(jax.devices()), ("devices",), axis_types=(AxisType.Auto,))
    mapped = jax.jit(
        jax.shard_map(
            one, mesh=mesh, in_specs=(P(), P(), P("devices")), out_specs=P(), check_vma=False
        )
    )
    losses = []
    for number in range(STEPS):
        state, metrics = mapped(state, {}, batch(number))
        losses.append(float(metrics["loss"]))
    return losses


if __name__ == "__main__":
    pmap, shard_map = with_pmap(), with_shard_map()
    print(f"{jax.device_count()} devices; loss {pmap[0]:.3f} → {pmap[-1]:.3f}")
    difference = np.abs(np.subtract(pmap, shard_map)).max()
    print(f"largest difference between both: {difference:.1e}")
