"""Losses: what training minimises. `loss.py` defines the interface; other files hold the kinds."""

from gptjax.losses.adversarial import FGM, FreeLB
from gptjax.losses.contrastive import Contrastive
from gptjax.losses.cross_entropy import CrossEntropy, PredictionLoss, predict
from gptjax.losses.diffusion import Diffusion
from gptjax.losses.distillation import Distillation
from gptjax.losses.gkd import GKD
from gptjax.losses.kto import KTO
from gptjax.losses.loss import (
    Frozen,
    FunctionLoss,
    Loss,
    LossConfig,
    Metrics,
    Reduction,
    per_weight,
    ratio,
)
from gptjax.losses.own_answers import OwnAnswers
from gptjax.losses.policy import CRITIC, Policy, PolicyLoss
from gptjax.losses.policy_presets import advantages_of, penalty, token_advantages
from gptjax.losses.preference import Preference
from gptjax.losses.reward import BradleyTerry
from gptjax.losses.rounded import QuantisationAware
from gptjax.losses.tokens import losses_in_parts, token_losses

LossKind = (
    CrossEntropy
    | Diffusion
    | Distillation
    | FGM
    | FreeLB
    | Preference
    | KTO
    | BradleyTerry
    | Policy
    | GKD
    | Contrastive
    | QuantisationAware
    | LossConfig
)
"""A loss of gptjax, or one defined elsewhere."""

__all__ = [
    "CRITIC",
    "FGM",
    "GKD",
    "KTO",
    "BradleyTerry",
    "Contrastive",
    "CrossEntropy",
    "Diffusion",
    "Distillation",
    "FreeLB",
    "Frozen",
    "FunctionLoss",
    "Loss",
    "LossConfig",
    "LossKind",
    "Metrics",
    "OwnAnswers",
    "Policy",
    "PolicyLoss",
    "PredictionLoss",
    "Preference",
    "QuantisationAware",
    "Reduction",
    "advantages_of",
    "losses_in_parts",
    "penalty",
    "per_weight",
    "predict",
    "ratio",
    "token_advantages",
    "token_losses",
]
