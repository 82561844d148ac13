"""A third of `shakespeare_char.py` that learns from it: 2 layers, width 104, 0.26M parameters.

Train the teacher first: python train.py configs/shakespeare_char.py. Half of the loss is the
divergence from its predictions at temperature 2, half the text's own; steps, data and optimizer are
the teacher's.

It has not been trained to its end yet. Its twin, which learns from the text alone, is --loss
cross-entropy.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.losses import Distillation
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text("data/tinyshakespeare/input.txt"),
        tokenizer=Characters(end_of_document=False),
        validation=0.1,
    ),
    model=ModelConfig(
        context=64,
        width=104,
        num_layers=2,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    loss=Distillation("runs/shakespeare_char", temperature=2.0, share=0.5),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=100, floor=0.1),
    evaluation=Evaluation(
        every=250, rows=240, prompt="\n", sample=SampleConfig(new_tokens=60, top_p=1.0)
    ),
    steps=1000,
    batch=12,
)
