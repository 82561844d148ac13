"""A part of a model that sees is trained (the projector alone, LoRA on the language model): nothing
else moves, only the part has moments and is saved, and a resumed run has the same bits."""

import functools

import jax
import numpy as np
import pytest

from gptjax import model
from gptjax.core.trees import paths
from gptjax.data import Characters, DataConfig, Shapes, VisualAnswers, prepare
from gptjax.model import ModelConfig, Vision
from gptjax.runs import Run, leaves
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.train import identity, program, saved
from gptjax.train.experiment import Experiment
from gptjax.train.optim import AdamW
from gptjax.weights import LoRA

VISION = Vision((16, 16), patch=4, num_layers=1, width=16, num_heads=2, projector="mlp")
TINY = ModelConfig(
    context=80, width=32, num_layers=1, num_heads=4, positions="rope", norm="rmsnorm", vision=VISION
)
PROJECTOR = ("vision/encoder", "vision/patches", "embedding", "layers", "norm")
PARTS = {
    "projector": ({"freeze": PROJECTOR}, "vision/projector/"),
    "lora": ({"adapter": LoRA(rank=2, targets=("layers",))}, "layers/"),
}
"""What is told to the experiment, and how the paths of what trains begin."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return DataConfig(
        Shapes(count=8, held_out_count=2),
        Characters(),
        validation=0.0,
        task=VisualAnswers(VISION.size, tokens=16),
        cache=str(tmp_path_factory.mktemp("cache")),
    )


def built(settings, told):
    """The experiment, its program on one device, and the weights that it starts from."""
    experiment = Experiment(
        model=TINY, data=settings, optim=AdamW(peak=1e-2), steps=4, batch=4, start="a run", **told
    )
    data = prepare(settings)
    experiment = identity.resolve(experiment, data)
    params = jax.jit(model.init, static_argnums=0)(experiment.model, jax.random.key(0))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return experiment, program.build(experiment, data, mesh=mesh), params


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_trained_and_saved_alone_and_resumes_to_the_same_bits(part, settings, tmp_path):
    told, begins = PARTS[part]
    experiment, steps, params = built(settings, told)
    run = Run(tmp_path / "run")
    opened = functools.partial(saved.restore_or_init, run, steps, experiment, None, params=params)
    with run.lock():
        state, frozen, *_ = opened()
        still = jax.tree.map(np.array, frozen)
        state, _ = steps.step(state, frozen, steps.batch(0, state))
        run.save(1, saved.trees(state))
        run.wait()
        whole, _ = steps.step(state, frozen, steps.batch(1, state))
        state, frozen, restored, *_ = opened()
    assert restored == 1
    resumed, _ = steps.step(state, frozen, steps.batch(1, state))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    jax.tree.map(np.testing.assert_array_equal, frozen, still)
    kept = [leaf.path for leaf in leaves(run.path, tree="params")]
    assert kept == paths(resumed.trainable) and all(begins in path for path in kept), kept


def test_a_resume_that_forgot_the_moments_is_seen(settings):
    _, steps, params = built(settings, PARTS["projector"][0])
    state, frozen = steps.init(params)
    state, _ = steps.step(state, frozen, steps.batch(0, state))
    kept = jax.tree.map(np.array, state.trainable)  # the step takes its arrays
    whole, _ = steps.step(state, frozen, steps.batch(1, state))
    fresh, _ = steps.init(params)
    fresh = fresh._replace(trainable=jax.tree.map(jax.numpy.asarray, kept), step=fresh.step + 1)
    forgot, _ = steps.step(fresh, frozen, steps.batch(1, fresh))
    same = jax.tree.map(np.array_equal, forgot.trainable, whole.trainable)
    assert not any(jax.tree.leaves(same))
