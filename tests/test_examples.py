"""The programs in examples/ run, and compute what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import numpy as np

FOLDER = Path(__file__).parents[1] / "examples"


def test_a_step_mapped_by_pmap_and_by_shard_map_is_the_step_of_one_device():
    example = runpy.run_path(str(FOLDER / "pmap.py"))
    example["with_pmap"].__globals__["STEPS"] = 3
    pmap, shard_map = example["with_pmap"](), example["with_shard_map"]()
    state, one = example["setup"]()
    one.keywords["axis"] = None
    alone, step = [], jax.jit(one)
    for number in range(3):
        state, metrics = step(state, {}, example["batch"](number))
        alone.append(float(metrics["loss"]))
    assert jax.device_count() == 8 and alone[-1] < alone[0]
    np.testing.assert_allclose(pmap, alone, rtol=1e-5)
    np.testing.assert_allclose(shard_map, alone, rtol=1e-5)
