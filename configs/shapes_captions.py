"""Drawn shapes, named from left to right: an encoder of pictures, a projector and a decoder.

    python train.py configs/shapes_captions.py
    gptjax sample runs/shapes_captions --image PICTURE.png

One combination of colour and form in five is never shown in training; held out are pictures with
one of these. `--data.source.unseen False --dir runs/shapes_familiar` holds out pictures like those
of training instead. Not trained to its end yet: 1,000 steps of 16 pictures (2026-12-01, about 2
minutes of one core of an AMD EPYC, one seed) learned how captions go and not to look, 0.217 nats a
token, and no unseen caption was right. The nearest training picture has the right caption for
33.4 % of familiar pictures and for no unseen one (`python benchmarks/shapes.py captions`).
"""

from gptjax.data import Characters, DataConfig, Shapes, VisualAnswers
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig, Vision
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Shapes("captions", count=8000, held_out_count=500),
        tokenizer=Characters(),
        task=VisualAnswers(size=(48, 48), tokens=36, shift=3),
        validation=0.0,
    ),
    model=ModelConfig(
        context=112,
        width=128,
        num_layers=3,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        compute="float32",
        vision=Vision(
            size=(48, 48),
            patch=8,
            overlap=4,
            num_layers=2,
            width=96,
            projector="mlp",
        ),
    ),
    optim=AdamW(peak=2e-3, weight_decay=0.05),
    schedule=Schedule("cosine", warmup=100, floor=0.02),
    evaluation=Evaluation(every=500, sample=SampleConfig(temperature=0.0)),
    steps=1500,
    batch=32,
)
