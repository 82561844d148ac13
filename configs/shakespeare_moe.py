"""Tiny Shakespeare by characters with a mixture of experts: `configs/shakespeare_char.py`'s model, each MLP split into eight experts of which two read.
"""

from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import Experts, ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(source=Text("data/tinyshakespeare/input.txt"), tokenizer=Characters(end_of_document=False), validation=0.1),
    model=ModelConfig(
        context=64,
        width=128,
        num_layers=4,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        experts=Experts(count=8, active=2, width=256),
        compute="float32",
    ),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=100, floor=0.1),
    evaluation=Evaluation(every=500, rows=240, prompt="\n", sample=SampleConfig(new_tokens=60, top_p=1.0)),
    steps=1000,
    batch=12,
)
