"""Writes what TRL computes of random log-probabilities: `python benchmarks/trl_golden.py OUT.json`.

TRL's own loss methods run on trainers that were never initialised, with models that return given
log-probabilities, in float64; loss and gradient of each kind are written with the versions.
tests/test_preferences.py compares ours with the file, so it needs neither TRL nor PyTorch.

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
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

PAIRS, LONGEST, BETA = 200, 12, 0.1
PAIR_KINDS = {
    "sigmoid": ("sigmoid", 0.0),
    "robust": ("robust", 0.1),
    "hinge": ("hinge", 0.0),
    "ipo": ("ipo", 0.0),
    "exo": ("exo_pair", 1e-3),
    "nca": ("nca_pair", 0.0),
    "bco": ("bco_pair", 0.0),
    "sppo": ("sppo_hard", 0.0),
    "apo_zero": ("apo_zero", 0.0),
    "apo_down": ("apo_down", 0.0),
    "sigmoid_norm": ("sigmoid_norm", 0.0),
    "discopop": ("discopop", 0.0),
}
"""Our name → theirs, and the label smoothing."""

ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
)


def trainer(kind: type, **settings):
    """A trainer of which only what its loss reads is set."""
    made = object.__new__(kind)
    made.accelerator = ACCELERATOR
    made.model = SimpleNamespace(training=False)
    made._metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    made._total_train_tokens, made._tp_size = 0, 1
    made.aux_loss_enabled = False
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def outputs(log_probs: torch.Tensor) -> SimpleNamespace:
    """What TRL reads of a model's answer."""
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(
        log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )


def draws() -> dict[str, np.ndarray]:
    """Sums of log-probabilities and lengths; the first pair is empty, the second has equal sums."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, LONGEST + 1, (2, PAIRS))
    lengths[:, 0] = 0
    policy = -draw.exponential(2.0, (2, PAIRS)) * np.maximum(lengths, 0.1)
    reference = policy + draw.standard_normal((2, PAIRS)) * 4
    reference[:, 1] = policy[:, 1]
    policy[:, 0] = reference[:, 0] = 0
    return {"policy": policy.round(6), "reference": reference.round(6), "lengths": lengths}


def mask(lengths: np.ndarray) -> torch.Tensor:
    """Tokens of an answer after one of the prompt [n, 1 + LONGEST]."""
    return torch.tensor(np.arange(LONGEST + 1)[None] - 1 < lengths[:, None]) & torch.tensor(
        np.arange(LONGEST + 1)[None] > 0
    )


def pairs(kind: str, smoothing: float, drawn: dict[str, np.ndarray]) -> dict:
    """DPOTrainer's loss of all pairs, and its slope in both sums."""
    sums = torch.tensor(drawn["policy"], requires_grad=True)
    first = torch.zeros(2 * PAIRS, LONGEST, dtype=torch.float64)
    first[:, 0] = 1  # the whole sum lies in one token
    log_probs = first * sums.reshape(-1, 1)
    counts = mask(drawn["lengths"].reshape(-1)).long()
    made = trainer(
        DPOTrainer,
        args=SimpleNamespace(discopop_tau=0.05),
        beta=BETA,
        label_smoothing=smoothing,
        loss_types=[kind],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        ld_alpha=None,
        use_weighting=False,
        precompute_ref_logps=True,
    )
    reference = torch.tensor(drawn["reference"])
    inputs = {
        "input_ids": torch.zeros_like(counts),
        "attention_mask": torch.ones_like(counts),
        "completion_mask": counts,
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    loss = made._compute_loss(lambda **kwargs: outputs(log_probs), inputs, False)
    (slope,) = torch.autograd.grad(loss, sums)
    return {"loss": loss.item(), "chosen": rounded(slope[0]), "rejected": rounded(slope[1])}


def without_reference(kind: str, drawn: dict[str, np.ndarray]) -> dict:
    """SimPO's and CPO's loss, and ORPO's term of odds."""
    sums = torch.tensor(drawn["policy"], requires_grad=True)
    mean = sums / torch.tensor(np.maximum(drawn["lengths"], 1))
    settings = {"alpha": 0.0, "label_smoothing": 0.0}
    if kind == "simpo":
        made = trainer(CPOTrainer, beta=2.0, simpo_gamma=0.5, loss_type="simpo", **settings)
        losses = made.cpo_loss(*mean)[0]
    elif kind == "cpo":
        made = trainer(CPOTrainer, beta=BETA, loss_type="sigmoid", **settings)
        losses = made.cpo_loss(*sums)[0]
    else:
        losses = -trainer(ORPOTrainer, beta=BETA).odds_ratio_loss(*mean[:, 1:])[0]
    loss = losses.mean()
    (slope,) = torch.autograd.grad(loss, sums)
    return {"loss": loss.item(), "chosen": rounded(slope[0]), "rejected": rounded(slope[1])}


def judged(drawn: dict[str, np.ndarray]) -> dict:
    """KTOTrainer's loss of the chosen as good and the rejected as bad answers; the mismatched
    answers are the pairs in reverse."""
    sums = torch.tensor(drawn["policy"].reshape(-1), requires_grad=True)
    first = torch.zeros(2 * PAIRS, LONGEST, dtype=torch.float64)
    first[:, 0] = 1
    reference = torch.tensor(drawn["reference"].reshape(-1))
    made = trainer(
        KTOTrainer,
        beta=BETA,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=True,
        desirable_weight=1.0,
        undesirable_weight=1.5,
    )
    mismatched = (sums.detach() + 3).flip(0)
    made._compute_kl_logps = lambda model, batch: mismatched
    counts = mask(drawn["lengths"].reshape(-1)).long()
    inputs = {
        "input_ids": torch.zeros_like(counts),
        "attention_mask": torch.ones_like(counts),
        "completion_mask": counts,
        "label": torch.arange(2 * PAIRS) < PAIRS,
        "ref_logps": reference,
        "ref_KL_logps": reference.flip(0),
    }
    log_probs = first * sums[:, None]
    loss = made._compute_loss(lambda **kwargs: outputs(log_probs), inputs, False)
    (slope,) = torch.autograd.grad(loss, sums)
    return {"loss": loss.item(), "slope": rounded(slope)}


def rewards(drawn: dict[str, np.ndarray]) -> dict:
    """RewardTrainer's loss of scores with margins and centring."""
    scores = torch.tensor(drawn["policy"] / 4, requires_grad=True)
    args = SimpleNamespace(center_rewards_coefficient=0.01)
    made = trainer(RewardTrainer, args=args)
    margin = torch.tensor(np.abs(drawn["reference"][0]) / 10)
    logits = scores.reshape(-1, 1)
    loss = made.compute_loss(lambda **kwargs: SimpleNamespace(logits=logits), {"margin": margin})
    (slope,) = torch.autograd.grad(loss, scores)
    return {"loss": loss.item(), "chosen": rounded(slope[0]), "rejected": rounded(slope[1])}


def divergence(share: float) -> dict:
    """GKDTrainer's divergence of 50 rows of logits."""
    draw = np.random.default_rng(1)
    student, teacher = (torch.tensor(3 * draw.standard_normal((50, 1, 7))) for _ in range(2))
    student.requires_grad_()
    loss = GKDTrainer.generalized_jsd_loss(student, teacher, beta=share, reduction="batchmean")
    (slope,) = torch.autograd.grad(loss, student)
    return {"loss": loss.item(), "slope": rounded(slope.reshape(-1))}


def rounded(x: torch.Tensor) -> list[float]:
    """Nine digits: more than float32 compares."""
    return [float(f"{v:.9g}") for v in x.detach().double().tolist()]


if __name__ == "__main__":
    drawn = draws()
    golden = {
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "inputs": {name: value.tolist() for name, value in drawn.items()},
        "pairs": {ours: pairs(theirs, s, drawn) for ours, (theirs, s) in PAIR_KINDS.items()},
        "without_reference": {
            kind: without_reference(kind, drawn) for kind in ("simpo", "cpo", "orpo")
        },
        "kto": judged(drawn),
        "reward": rewards(drawn),
        "divergence": {str(share): divergence(share) for share in (0.0, 0.1, 0.5, 0.9, 1.0)},
    }
    Path(sys.argv[1]).write_text(json.dumps(golden) + "\n")
