"""A model of 0.8 million parameters that adds two two-digit numbers, right in some of its answers:
the start of reinforcement learning.

    python train.py configs/sums.py
    gptjax sample runs/sums --prompt "37+58="
    python benchmarks/pass_rate.py runs/sums

It learns 1,000 of the 8,100 sums. Result on 400 others (seeds 0, 1, 2): 38.9, 15.7 and 39.8 % of
the answers sampled at temperature 1 are right (8 answers a sum), and 60.2, 22.0 and 61.0 % of the
likeliest ones. After 700 steps: 31.9, 12.3 and 28.4 %, and 50.5, 16.5 and 35.0 %.

The learning rate does not fall, on purpose. One that falls to 0 teaches the same sums sooner (500
steps with `--schedule.kind linear`: 33.4 % sampled, 74.8 % likeliest), but ends in a sharp valley,
out of which the first updates of configs/grpo_sums.py then throw the model: from there a rate of
1e-4 gained 0.09 in 120 updates and 3e-4 lost 0.03 in 80 (seed 0). From a constant rate's 700 steps
2.5e-4 gained 0.23 in 100.

With their working (`--data.source.scratchpad True --model.context 32`) sums are learned sooner: of
300 sums and 300 steps with a falling rate (`--schedule.kind linear`) 34.8 % sampled and 51.7 %
likeliest, of 600 and 600 89.5 and 98.5 % (seed 0). Measured on 2026-11-29 on two Xeon cores with
AMX, shared with other work.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, Chat, DataConfig, Puzzles
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Puzzles("sums", count=1000, held_out_count=400),
        tokenizer=Characters(),
        task=Chat(),
        validation=0.0,
    ),
    model=ModelConfig(
        context=16,
        width=128,
        num_layers=4,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("constant", warmup=20),
    evaluation=Evaluation(
        every=200, prompt="37+58=", sample=SampleConfig(new_tokens=4, temperature=1.0)
    ),
    steps=800,
    batch=32,
)
