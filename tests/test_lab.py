"""Gradients of single rows, their noise, curvature: each equals what it stands for."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.core.user_config import load_python
from gptjax.data import Bytes, DataConfig, Text
from gptjax.data.layouts import Batch
from gptjax.lab import curvature, examples, noise
from gptjax.lab.observing import FILE, Observer, averaged_scales
from gptjax.losses import CrossEntropy
from gptjax.sharding.mesh import MeshConfig, make_mesh, place_batch, with_mesh
from gptjax.train.experiment import Checkpoints, Evaluation, Experiment
from gptjax.train.loop import train

CONFIG = model.ModelConfig(vocab_size=13, context=8, width=8, num_layers=2, num_heads=2, bias=False)


def objective(params, batch, key):
    total, weight, sums = CrossEntropy().build(CONFIG)(params, {}, batch, key)
    return total, (weight, sums)


@pytest.fixture(scope="module")
def params():
    return model.init(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    """Eight rows, some of them half empty."""
    ids = np.random.default_rng(0).integers(0, 13, (8, 9)).astype(np.int32)
    weights = np.ones((8, 8), np.float32)
    weights[::3, 5:] = 0
    return Batch(ids[:, :-1], ids[:, 1:], weights)


@pytest.fixture(scope="module")
def whole(params, batch):
    return jax.jit(jax.grad(lambda p: objective(p, batch, None)[0]))(params)


def close(found, wanted, tolerance=1e-5):
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * size), found, wanted
    )


@pytest.mark.parametrize("how", [{}, {"at_once": 4}, {"map": "vmap"}])
def test_gradients_of_rows_add_up_to_that_of_the_batch(how, params, batch, whole):
    each = jax.jit(examples.per_example(objective, lambda e: e.gradient, **how))(params, batch)
    close(jax.tree.map(lambda g: g.sum(0), each), whole)
    add = examples.per_example(objective, lambda e: e.gradient, add=True, **how)
    close(jax.jit(add)(params, batch), whole)
    norms = jax.jit(examples.gradient_norms(objective, **how))(params, batch)
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])(each)
    wanted = np.linalg.norm(flat, axis=1) / batch.weights.sum(1)
    np.testing.assert_allclose(norms, wanted, rtol=1e-5)
    cosines = jax.jit(examples.gradient_cosines(objective, **how))(params, whole, batch)
    direction = ravel_pytree(whole)[0]
    expected = flat @ direction / np.linalg.norm(flat, axis=1) / np.linalg.norm(direction)
    np.testing.assert_allclose(cosines, expected, atol=1e-5)


def test_on_a_mesh_each_device_differentiates_its_own_rows(params, batch, whole):
    mesh = make_mesh(MeshConfig(fsdp=2))
    placed = place_batch(batch, mesh, 8)
    each = examples.per_example(objective, lambda e: (e.gradient, e.loss))
    gradients, losses = jax.jit(with_mesh(mesh, each))(params, placed)
    close(jax.tree.map(lambda g: g.sum(0), gradients), whole)
    assert losses.shape == (8,)
    added = examples.per_example(objective, lambda e: e.gradient, add=True)
    close(jax.jit(with_mesh(mesh, added))(params, placed), whole)


def test_a_row_that_does_not_count_is_left_out(params, batch):
    empty = batch._replace(weights=np.where(np.arange(8)[:, None] < 6, batch.weights, 0))
    count = examples.per_example(
        objective, lambda e: jnp.ones(()), present=lambda row: row.weights.any()
    )
    seen = jax.jit(count)(params, empty)
    assert seen.tolist() == [1.0] * 6 + [0.0] * 2


def quadratic(matrix):
    """½ (θ − x)ᵀ A (θ − x) of each row x, which is in the weights of the batch."""

    def loss(params, batch, key):
        apart = params["theta"][None] - batch.weights
        return 0.5 * jnp.einsum("bi,ij,bj->", apart, matrix, apart), (
            jnp.asarray(float(len(batch.weights))),
            {},
        )

    return loss


def test_the_noise_scale_of_a_quadratic_is_its_closed_form():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    matrix, deviations = jnp.asarray(root @ root.T / 5, jnp.float32), np.arange(1, 6) / 5
    theta, mean = rng.normal(size=5), rng.normal(size=5)
    rows = (mean + deviations * rng.normal(size=(4096, 5))).astype(np.float32)
    ids = np.zeros(rows.shape, np.int32)
    params = {"theta": jnp.asarray(theta, jnp.float32)}
    batch = Batch(ids, ids, rows)
    found, by_path = jax.jit(noise.gradient_noise(quadratic(matrix), map="vmap"))(params, batch)
    gradients = (theta - rows) @ np.asarray(matrix)
    sample = gradients.var(0, ddof=1).sum()
    assert float(found.variance) == pytest.approx(sample, rel=1e-4)
    signal = (gradients.mean(0) ** 2).sum() - sample / len(rows)
    assert float(found.signal) == pytest.approx(signal, rel=1e-4)
    a = np.asarray(matrix)
    true = np.trace(a @ np.diag(deviations**2) @ a) / np.sum((a @ (theta - mean)) ** 2)
    assert float(found.scale) == pytest.approx(true, rel=0.1)  # 4,096 rows were drawn
    assert float(by_path["theta"].scale) == pytest.approx(float(found.scale))


def test_noise_by_layer_adds_up(params, batch):
    together, by_path = jax.jit(noise.gradient_noise(objective))(params, batch)
    layers = noise.by_layer(by_path)
    assert {"layer_0", "layer_1", "embedding"} <= layers.keys()
    total = sum(float(one.variance) for one in layers.values())
    assert total == pytest.approx(float(together.variance), rel=1e-4)


@pytest.fixture(scope="module")
def hessian(params, batch):
    flat, unflat = ravel_pytree(params)
    loss = curvature.mean_loss(objective, batch)
    return np.asarray(jax.jit(jax.hessian(lambda v: loss(unflat(v))))(flat))


def test_products_spectrum_and_trace_are_those_of_the_dense_hessian(params, batch, hessian):
    flat, unflat = ravel_pytree(params)
    direction = jax.random.normal(jax.random.key(1), flat.shape)
    product = jax.jit(curvature.hessian_product(objective))(params, batch, unflat(direction))
    np.testing.assert_allclose(ravel_pytree(product)[0], hessian @ direction, atol=2e-4)
    values = np.linalg.eigvalsh(hessian)
    found = jax.jit(curvature.hessian_spectrum(objective, 60))(params, batch, jax.random.key(2))
    np.testing.assert_allclose(found.eigenvalues[-3:], values[-3:], rtol=1e-3)
    assert float(found.eigenvalues[0]) == pytest.approx(values[0], rel=1e-3)
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-4)
    assert (np.asarray(found.errors[-3:]) < 1e-3 * values[-1]).all()
    trace = jax.jit(curvature.hessian_trace(objective, 64))(params, batch, jax.random.key(3))
    assert abs(float(trace.mean) - np.trace(hessian)) < 4 * float(trace.error)
    spread = curvature.density(found, jnp.linspace(values[0] - 1, values[-1] + 1, 2000), 0.05)
    width = (values[-1] - values[0] + 2) / 1999
    assert float(spread.sum()) * width == pytest.approx(1, abs=0.02)


def test_a_landscape_passes_through_the_model_and_sharpness_climbs(params, batch):
    first, second = curvature.random_directions(params, jax.random.key(0))
    along, across = jnp.array([-0.5, 0.0, 0.5]), jnp.array([0.0, 1.0])
    given = (params, batch, first, second, along, across)
    grid = jax.jit(curvature.landscape(objective))(*given)
    loss = jax.jit(curvature.mean_loss(objective, batch))
    assert grid.shape == (3, 2) and float(grid[1, 0]) == pytest.approx(float(loss(params)))
    moved = jax.tree.map(lambda p, u, v: p + 0.5 * u + v, params, first, second)
    assert float(grid[2, 1]) == pytest.approx(float(loss(moved)), rel=1e-5)
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    lengths = jnp.sqrt(jnp.square(first["layers"]["mlp"]["up"]["kernel"]).sum((1, 2)))
    np.testing.assert_allclose(lengths, jnp.sqrt(jnp.square(kernel).sum((1, 2))), rtol=1e-5)
    scales = {k: v for k, v in examples.squared_norms(first).items() if k.endswith("scale")}
    assert len(scales) == 3 and not any(np.any(one) for one in scales.values())
    gradient = jax.grad(loss)(params)
    slope = float(jnp.sqrt(examples.squared_norm(gradient)))
    rise = float(jax.jit(curvature.sharpness(objective, 1e-2))(params, batch))
    assert rise == pytest.approx(1e-2 * slope, rel=0.05)


def test_fisher_is_the_mean_of_squared_gradients(params, batch):
    each = jax.jit(examples.per_example(objective, lambda e: e.gradient))(params, batch)
    weights = batch.weights.sum(1)

    def wanted(g):
        return ((np.asarray(g).T / weights).T ** 2).mean(0)

    found = jax.jit(examples.fisher_diagonal(objective))(params, batch)
    close(found, jax.tree.map(wanted, each))


# --- while a model trains


@pytest.fixture(scope="module")
def experiment(text_file):
    return Experiment(
        model=dataclasses.replace(CONFIG, vocab_size=None),
        data=DataConfig(source=Text(str(text_file)), tokenizer=Bytes()),
        evaluation=Evaluation(every=4, rows=8),
        checkpoints=Checkpoints(every=2),
        steps=4,
        batch=8,
    )


def test_a_run_that_is_observed_is_the_same_run_and_resumes(experiment, tmp_path):
    def losses(path):
        lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    def observed(path, given):
        watch = Observer(("noise", "curvature"), 1, given)
        train(given, path, hooks=(watch,), source=watch.source)
        return [json.loads(line) for line in (path / FILE).read_text().splitlines()]

    train(experiment, tmp_path / "plain")
    lines = observed(tmp_path / "watched", experiment)
    assert losses(tmp_path / "watched") == losses(tmp_path / "plain")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["hessian_max"]) for line in lines)
    assert lines[0]["noise_variance"] > 0 and "noise_scale/layer_0" in lines[0]
    shutil.rmtree(tmp_path / "watched/checkpoints/4")
    assert observed(tmp_path / "watched", experiment) == lines


def test_what_is_no_observation_is_refused(experiment):
    with pytest.raises(ConfigError, match="Did you mean 'noise'"):
        Observer(("noize",), 1, experiment)
    clip = load_python(Experiment, Path(__file__).parents[1] / "configs/clip_shapes.py")
    for message, given in (
        ("train all weights", dataclasses.replace(experiment, freeze=("embedding",))),
        ("compares the rows", clip),
        ("at least 2", dataclasses.replace(experiment, batch=1)),
    ):
        with pytest.raises(ConfigError, match=message):
            Observer(("noise",), 1, given)


def test_an_average_is_of_the_observations_that_measured_the_same():
    lines = [{"step": 1, "hessian_max": 2.0}, {"step": 2, "noise_variance": 6.0, "noise_signal": 2}]
    assert averaged_scales(lines) == {"noise_scale": 3.0}
