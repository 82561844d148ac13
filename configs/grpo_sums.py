"""GRPO: a model that adds two-digit numbers right in a third to a half of its answers learns from a
checker alone."""

from gptjax.data import DataConfig, Given, Prompts, Puzzles
from gptjax.generate import SampleConfig
from gptjax.losses import Policy
from gptjax.model import ModelConfig
from gptjax.rewards import Solved
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule
from gptjax.train.rollout import Rollout

experiment = Experiment(
    start="runs/sums",
    data=DataConfig(
        source=Puzzles("sums", count=4000, held_out_count=400),
        tokenizer=Given(),
        task=Prompts(),
        validation=0.0,
    ),
    model=ModelConfig(context=12),
    loss=Policy("group", normalise="token"),
    rollout=Rollout(rewards=(Solved(),), answers=8, new_tokens=5),
    optim=AdamW(peak=2.5e-4, weight_decay=0.0, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("linear", warmup=30, floor=0.0),
    evaluation=Evaluation(
        every=50, prompt="37+58=", sample=SampleConfig(new_tokens=5, temperature=1.0)
    ),
    batch=512,
    steps=500,
)
