"""A reward model of 0.3 million parameters that learns which of two rows of digits is sorted.

python examples/toy_sets.py data
python train.py configs/reward_toy.py
gptjax score runs/reward_toy data/sorted_pairs.jsonl --out scores.jsonl
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
