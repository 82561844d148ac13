"""A reward model of 0.3 million parameters that learns which of two rows of digits is sorted.

    python examples/toy_sets.py data
    python train.py configs/reward_toy.py
    gptjax score runs/reward_toy data/sorted_pairs.jsonl --out scores.jsonl

Result (seeds 0, 1, 2): the sorted answer leads in all of the held-out pairs after 150, 100 and 100
steps, and at the end; held-out loss 0.028, 0.013, 0.015 nats a pair, mean lead 4.1, 4.9, 4.9. A run
takes 22 to 27 seconds of one core. The task is easy on purpose. Measured on 2026-11-29 on one of
two Xeon cores with AMX, shared with other work.

Source: Ouyang et al. 2022, arXiv:2203.02155.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, Comparisons, DataConfig, Preferences
from gptjax.losses import BradleyTerry
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Comparisons("data/sorted_pairs.jsonl"),
        tokenizer=Characters(),
        task=Preferences(score=True),
        validation=0.1,
    ),
    model=ModelConfig(
        context=64,
        width=96,
        num_layers=3,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    loss=BradleyTerry(centre=0.01),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("linear", warmup=20, floor=0.0),
    evaluation=Evaluation(every=50),
    steps=200,
    batch=16,
)
