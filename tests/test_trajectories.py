"""Ten steps of training are TRL's: SFT, DPO, KTO, ORPO, CPO and reward models of a two-layer Llama.

TRL's trainers took them from the same texts, weights and optimizer; their losses lie in
golden/trl_trajectories.json, made by benchmarks/trl_trajectories.py, with the versions.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax import formats
from gptjax.data import (
    Bytes,
    Chat,
    Comparisons,
    Conversations,
    DataConfig,
    Feedback,
    Preferences,
    batches,
    prepare,
)
from gptjax.formats.safetensors import write_safetensors
from gptjax.losses import KTO, BradleyTerry, CrossEntropy, Preference
from gptjax.train import optim, step

GOLDEN = json.loads((Path(__file__).parent / "golden/trl_trajectories.json").read_text())
KINDS = {
    "sft": (Chat(), CrossEntropy(), 24),
    "dpo": (Preferences(), Preference(beta=0.1, reference="other"), 40),
    "kto": (Feedback(), KTO(beta=0.5, bad=1.5, reference="other"), 40),
    "orpo": (
        Preferences(),
        Preference(loss="orpo", beta=0.5, reference="none", nll=1.0, nll_prompts=True),
        40,
    ),
    "cpo": (Preferences(), Preference(beta=0.1, reference="none", nll=1.0), 40),
    "reward": (Preferences(score=True), BradleyTerry(), 40),
}
"""Task, loss, and the length of a row, which has room for one record and not for two."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The model that TRL trained, opened as transformers writes it, and the kernel of the score
    that it had as a reward model."""
    folder, draw = tmp_path_factory.mktemp("llama"), np.random.default_rng(0)
    tensors = {
        name: (draw.standard_normal(shape) * 0.2 + (len(shape) == 1)).astype(np.float32)
        for name, shape in sorted(GOLDEN["shapes"].items())
    }
    score = tensors.pop("score.weight").T
    shape = GOLDEN["shape"] | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(shape))
    shapes = {name: x.shape for name, x in tensors.items()}
    path = folder / "model.safetensors"
    write_safetensors(path, shapes, tensors.items(), "float32", {"format": "pt"})
    found = formats.load_model(folder)
    config = replace(found.config, pool="last", compute="float32", attention="reference")
    return config, found.params, score


def prepared(folder: Path, name: str, task):
    """The records that TRL's trainers read, of characters as ids."""
    records = GOLDEN["judged" if name == "kto" else "pairs"]
    if name == "sft":
        records = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in records]
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = (Conversations if name == "sft" else Comparisons)(str(file))
    config = DataConfig(source, Bytes(), task=task, validation=0, cache=str(folder))
    return prepare(config, say=lambda line: None)


@pytest.mark.parametrize("name", KINDS)
def test_ten_steps_have_the_losses_of_trl(name, llama, tmp_path, record_property):
    task, settings, length = KINDS[name]
    config, params, score = llama
    if task.classes:
        config = replace(config, classes=task.classes)
        params = {**params, "classes": {"kernel": score, "bias": np.zeros(1, np.float32)}}
    data = prepared(tmp_path, name, task)
    plan = batches.plan(data.train, length=length, rows=4, seed=None, task=data.task)
    assert plan.rows_per_epoch == 40, "each row has one record"

    loss = settings.build(config, **dict.fromkeys(settings.models, config))
    frozen = dict.fromkeys(settings.models, params)
    rate = GOLDEN["optimizer"]["rate"]
    adam = optim.Adam(peak=rate, epsilon=GOLDEN["optimizer"]["epsilon"], clip_norm=None)
    optimizer = optim.build_optimizer(adam, lambda _: rate, None)
    one = jax.jit(
        functools.partial(
            step.train_step, loss=loss, optimizer=optimizer, rate=lambda _: rate, seed=0
        )
    )
    state, losses = step.init(params, optimizer), []
    for number in range(10):
        state, metrics = one(state, frozen, batches.batch(data.train, plan, number))
        losses.append(float(metrics["loss"]))
    apart = np.abs(np.subtract(losses, GOLDEN["losses"][name]))
    record_property("figure", f"{name} {apart[0]:.1e} at the first step, {apart.max():.1e} in all")
    print(f"{name}: apart by {apart[0]:.1e} at the first step, {apart.max():.1e} in all")
    assert apart[0] <= 1e-5 and apart.max() <= 1e-4
    assert losses[-1] < losses[0] - 0.3, "a run that learns nothing shows nothing"
