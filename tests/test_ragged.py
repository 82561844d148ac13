"""Choices that travel to their experts and back make what one device makes of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from meshes import differences, loss_and_gradients
from variants import ROPE

from gptjax.model import Experts
from gptjax.model.moe.ragged import Blocks, ragged_all_to_all
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import MeshConfig, make_mesh

PLAIN = dataclasses.replace(ROPE, num_layers=1, context=16)
EXPERTS = {
    "shared": Experts(count=8, active=2, width=16, shared=1),
    "biases, weighed inputs": Experts(
        count=4, active=3, width=16, weighs="input", scores="sigmoid", biases=True
    ),
}


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("shared", {"expert": 4}),
        pytest.param("shared", {"expert": 2, "tensor": 2}, marks=pytest.mark.slow),
        pytest.param("biases, weighed inputs", {"expert": 4}, marks=pytest.mark.slow),
        pytest.param("biases, weighed inputs", {"expert": 2, "context": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_one_device(name, mesh):
    one = dataclasses.replace(PLAIN, experts=EXPERTS[name])
    ragged = dataclasses.replace(EXPERTS[name], exchange="ragged")
    found = loss_and_gradients(dataclasses.replace(one, experts=ragged), True, mesh)
    loss, gradients = differences(found, loss_and_gradients(one, True))
    assert loss <= 1e-6 and gradients <= 1e-5, (loss, gradients)


def test_rows_go_where_they_are_sent_and_come_back():
    """Device s sends device r as many rows as the table says."""
    devices, room = 4, 24
    sizes = np.asarray([[0, 3, 1, 2], [1, 1, 0, 4], [0, 0, 6, 0], [2, 2, 1, 1]], np.int32)
    begin, end_up = np.cumsum(sizes, 1) - sizes, np.cumsum(sizes, 0) - sizes
    rows = np.arange(devices * 6, dtype=np.float32)[:, None] + 1
    made = make_mesh(MeshConfig(data=1, expert=devices), jax.devices()[:devices])

    def there(x):
        ways = Blocks(*map(jax.numpy.asarray, (sizes, begin, end_up)))
        got = ragged_all_to_all(x, ways, room)
        return got, ragged_all_to_all(got, ways.back(), 6)

    with use_mesh(made):
        mapped = jax.shard_map(there, mesh=made, in_specs=P("expert"), out_specs=P("expert"))
        got, back = map(np.asarray, jax.jit(mapped)(rows))
    for r in range(devices):
        sent = [rows[6 * s + begin[s, r] :][: sizes[s, r]] for s in range(devices)]
        wanted = np.concatenate([*sent, np.zeros((room - sizes[:, r].sum(), 1))])
        np.testing.assert_array_equal(got[room * r : room * (r + 1)], wanted)
    np.testing.assert_array_equal(back, rows)
