"""placeholder"""

from gptjax.data import DataConfig, Given, Prompts, Puzzles
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
    model=ModelConfig(context=16),
    loss=Policy("group", normalise="token"),
    rollout=Rollout(rewards=(Solved(),), answers=16, new_tokens=5),
    optim=AdamW(peak=3e-4, weight_decay=0.0),
    schedule=Schedule("constant", warmup=5),
    evaluation=Evaluation(every=50, prompt="37+58="),
    batch=256,
    steps=500,
)
