"""The record of the speedrun to 1.88; see README.md beside it."""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import Muon, Schedule

STEPS = 350

experiment = Experiment(
    data=DataConfig(
        source=Text("input.txt"), tokenizer=Characters(end_of_document=False), validation=0.1
    ),
    model=ModelConfig(
        context=64,
        width=128,
        num_layers=4,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        qk_norm=True,
        residual_init="zero",
        bias=False,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    optim=Muon(peak=4e-3, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("wsd", warmup=20, floor=0.0, decay_share=0.5),
    evaluation=Evaluation(every=STEPS, prompt="\n", sample=SampleConfig(new_tokens=1)),
    steps=STEPS,
    batch=12,
    log_every=50,
)
