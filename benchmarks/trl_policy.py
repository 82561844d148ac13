"""Writes what TRL computes of random answers: `python benchmarks/trl_policy.py OUT.json`.

The loss methods of GRPOTrainer and RLOOTrainer run on trainers that were never initialised, with
given log-probabilities, in float64. Group advantages are inline in both trainers, so their lines
are repeated here with TRL's `nanstd`. Loss, gradient and advantages are written with the versions;
tests/test_policy.py compares ours with the file, so it needs neither TRL nor PyTorch.

Needs: pip install trl==1.16.0 torch==2.13.0 (Python 3.11).
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
import trl
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import nanstd

GROUPS, ANSWERS, LONGEST, CAP = 10, 5, 12, 2.0

GRPO = {
    "grpo": {"loss_type": "grpo"},
    "grpo with kl": {"loss_type": "grpo", "beta": 0.04},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dapo with kl": {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.1},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "gspo with kl": {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.04},
    "grpo corrected": {"loss_type": "grpo", "use_vllm": True},
}
"""Our name → settings of theirs."""

ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,
)


def draws() -> dict[str, np.ndarray]:
    """Answers of 0 to 12 tokens with ratios from .01 to 100; rewards by group, of which the second
    is flat, and NaN where nobody judged; the third group has one judged answer."""
    draw, rows = np.random.default_rng(0), GROUPS * ANSWERS
    lengths = draw.integers(1, LONGEST + 1, rows)
    lengths[0] = 0
    counted = np.arange(LONGEST)[None] < lengths[:, None]
    logp = -draw.exponential(2.0, (rows, LONGEST))
    log_ratio = np.log(100) * draw.uniform(-1, 1, (rows, LONGEST))
    log_ratio[1] = 0
    reference, sampled = (draw.standard_normal((2, rows, LONGEST)) + logp).round(6)
    rewards = draw.standard_normal((GROUPS, ANSWERS))
    rewards[1] = 0.3
    rewards[2, 1:] = rewards[4, 3] = np.nan
    joint = log_ratio / np.maximum(lengths, 1)[:, None]
    return {
        "logp": logp.round(6),
        "old": (logp - log_ratio).round(6),
        "old_joint": (logp - joint).round(6),
        "reference": reference,
        "sampled": sampled,
        "counted": counted.astype(int),
        "rewards": rewards.round(6),
    }


def trainer(kind: type, **settings):
    """A trainer of which only what its loss reads is set."""
    made = object.__new__(kind)
    made.accelerator = ACCELERATOR
    made.model = SimpleNamespace(training=True)
    made._metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    made.aux_loss_enabled = False
    made.epsilon_low = made.epsilon_high = 0.2
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def of_group(rewards: torch.Tensor) -> torch.Tensor:
    """GRPOTrainer's lines for `scale_rewards="group"`."""
    mean = torch.nanmean(rewards, dim=1, keepdim=True)
    std = nanstd(rewards, dim=1, keepdim=True)
    return torch.nan_to_num((rewards - mean) / (std + 1e-4), nan=0.0)


def of_others(rewards: torch.Tensor) -> torch.Tensor:
    """RLOOTrainer's lines."""
    count = (~torch.isnan(rewards)).sum(dim=1, keepdim=True)
    total = torch.nansum(rewards, dim=1, keepdim=True)
    return torch.nan_to_num(rewards - (total - rewards) / (count - 1), nan=0.0)


def inputs(drawn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What both losses read of a batch, without a prompt."""
    counted = drawn["counted"]
    none = torch.zeros(len(counted), 0, dtype=torch.long)
    return {
        "prompt_ids": none,
        "prompt_mask": none,
        "completion_ids": torch.zeros_like(counted),
        "completion_mask": counted,
    }


def grpo(drawn: dict[str, torch.Tensor], **settings) -> dict:
    """GRPOTrainer's loss, and its slope in each log-probability."""
    logp = drawn["logp"].clone().requires_grad_()
    told = {"beta": 0.0, "importance_sampling_level": "token", "use_vllm": False} | settings
    made = trainer(
        GRPOTrainer,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        **told,
    )
    made._get_per_token_logps_and_entropies = lambda *a, **k: (logp, torch.zeros_like(logp), None)
    batch = inputs(drawn) | {
        "advantages": of_group(drawn["rewards"]).reshape(-1),
        "old_per_token_logps": drawn["old"],
        "ref_per_token_logps": drawn["reference"],
        "num_items_in_batch": drawn["counted"].sum(),
        "importance_sampling_ratio": (drawn["old"] - drawn["sampled"]).exp().clamp(max=CAP),
    }
    loss = made._compute_loss(None, batch)
    (slope,) = torch.autograd.grad(loss, logp)
    return {"loss": loss.item(), "slope": rounded(slope)}


def rloo(drawn: dict[str, torch.Tensor]) -> dict:
    """RLOOTrainer's loss, whose ratio is that of whole answers."""
    logp = drawn["logp"].clone().requires_grad_()
    made = trainer(RLOOTrainer)
    made._get_per_token_logps_and_entropies = lambda *a, **k: (logp, torch.zeros_like(logp), None)
    batch = inputs(drawn) | {
        "advantages": of_others(drawn["rewards"]).reshape(-1),
        "old_logps": (drawn["old_joint"] * drawn["counted"]).sum(1),
    }
    loss = made._compute_loss(None, batch)
    (slope,) = torch.autograd.grad(loss, logp)
    return {"loss": loss.item(), "slope": rounded(slope)}


def rounded(x: torch.Tensor) -> list:
    """Nine digits: more than float32 compares."""
    return [[float(f"{v:.9g}") for v in row] for row in x.detach().double().tolist()]


if __name__ == "__main__":
    drawn = {name: torch.tensor(value) for name, value in draws().items()}
    plain = {name: value.tolist() for name, value in drawn.items() if name != "rewards"}
    rewards = [[None if r != r else r for r in row] for row in drawn["rewards"].tolist()]
    golden = {
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "inputs": plain | {"rewards": rewards},
        "advantages": {
            "group": rounded(of_group(drawn["rewards"])),
            "leave-one-out": rounded(of_others(drawn["rewards"])),
        },
        "losses": {name: grpo(drawn, **told) for name, told in GRPO.items()}
        | {"rloo": rloo(drawn)},
    }
    Path(sys.argv[1]).write_text(json.dumps(golden) + "\n")
