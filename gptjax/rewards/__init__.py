"""Rewards: judges of answers that a model wrote. `reward.py` defines the interface; other files
hold the kinds."""

from gptjax.rewards.best import expected_best, merit_of
from gptjax.rewards.function import Function
from gptjax.rewards.languages import JsonSchema, Regex
from gptjax.rewards.model import RewardModel
from gptjax.rewards.numbers import Number
from gptjax.rewards.program import Program
from gptjax.rewards.reward import Answered, Judge, Judgement, RewardConfig, judge
from gptjax.rewards.solved import Solved
from gptjax.rewards.texts import Ends, Exact, Length

RewardKind = (
    Exact
    | Number
    | Regex
    | JsonSchema
    | Length
    | Ends
    | Program
    | RewardModel
    | Solved
    | Function
    | RewardConfig
)
"""A reward of gptjax, or one defined elsewhere."""

__all__ = [
    "Answered",
    "Ends",
    "Exact",
    "Function",
    "JsonSchema",
    "Judge",
    "Judgement",
    "Length",
    "Number",
    "Program",
    "Regex",
    "RewardConfig",
    "RewardKind",
    "RewardModel",
    "Solved",
    "expected_best",
    "judge",
    "merit_of",
]
