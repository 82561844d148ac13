"""A model of 0.8 million parameters that adds two two-digit numbers, and is right in a third of its
answers: the start of reinforcement learning.

    python train.py configs/sums.py
    gptjax sample runs/sums --prompt "37+58="
    python benchmarks/pass_rate.py runs/sums

It learns 600 of the 8,100 sums. Result on 400 others (seeds 0, 1, 2): 32.6, 31.0, 31.9 % of the
answers sampled at temperature 1 are right (8 answers a sum), and 53.5, 52.5, 52.5 % of the
likeliest ones; held-out loss 0.465, 0.469, 0.462 nats a token. 1,000 sums and 500 steps give 33.4
and 74.8 % (seed 0). A run takes 34 to 43 seconds of processor time, 55 to 69 of the clock while
other work ran.

Answers that show their working (`7+8=15 3+5+1=9 95`) are learned from fewer sums:

    python train.py configs/sums.py --dir runs/working --data.source.scratchpad True
        --model.context 32 --data.source.count 300 --steps 300

gives 34.8 % sampled and 51.7 % likeliest; 600 sums and 600 steps 89.5 and 98.5 % (seed 0). Measured
on 2026-11-29 on two shared Xeon cores with AMX.
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
    steps=700,
    batch=32,
)
