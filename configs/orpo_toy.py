"""ORPO from random weights: a model of 0.3 million parameters learns to sort five digits, from
pairs of a sorted answer and one with two neighbours swapped.

    python examples/toy_sets.py data
    python train.py configs/orpo_toy.py
    gptjax sample runs/orpo_toy --prompt "73915>" --temperature 0

Result (seeds 0, 1, 2): the sorted answer is the likelier one in all of the held-out pairs, ln p a
token -0.005, -0.006, -0.005 against -3.86, -3.81, -3.84 for the other; 73915 becomes 13579. A run
takes 28 to 32 seconds of one core. Measured on 2026-11-29 on one of two Xeon cores with AMX, shared
with other work.

Source: Hong et al. 2024, arXiv:2403.07691.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, Comparisons, DataConfig, Preferences
from gptjax.generate import SampleConfig
from gptjax.losses import Preference
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Comparisons("data/sorted_pairs.jsonl"),
        tokenizer=Characters(),
        task=Preferences(),
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
    loss=Preference("orpo", beta=0.1, nll=1.0, reference="none"),
    optim=AdamW(peak=2e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("linear", warmup=20, floor=0.0),
    evaluation=Evaluation(
        every=50, prompt="73915>", sample=SampleConfig(new_tokens=6, temperature=0.0)
    ),
    steps=200,
    batch=16,
)
