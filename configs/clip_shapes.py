"""Pictures of drawn shapes and their captions in one space (CLIP), small.

    python train.py configs/clip_shapes.py

Held out are pictures with a combination of colour and form that training never shows. Not trained
to its end yet. After 500 steps (2026-12-01, 7 minutes of a busy core of an AMD EPYC, one seed) the
right one of 25 labels is the likeliest for 22.5 % of familiar pictures of one shape and for 33.3 %
of unseen ones, where chance is 4 %:

    python benchmarks/shapes.py label runs/clip_shapes

Source: Radford et al. 2021, arXiv:2103.00020; with `kind="sigmoid"` Zhai et al. 2023,
arXiv:2303.15343.
"""

from gptjax.data import Characters, DataConfig, PictureTexts, Shapes
from gptjax.losses import Contrastive
from gptjax.model import Joint, ModelConfig, Vision
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Shapes("captions", count=8000, held_out_count=512),
        tokenizer=Characters(),
        task=PictureTexts(size=(48, 48), shift=3),
        validation=0.0,
    ),
    model=ModelConfig(
        context=64,
        width=96,
        num_layers=2,
        num_heads=4,
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
            class_token=True,
            pool="first",
            projector="linear",
            projector_bias=False,
            joint=Joint(width=64),
        ),
    ),
    loss=Contrastive(),
    optim=AdamW(peak=2e-3, weight_decay=0.05),
    schedule=Schedule("cosine", warmup=100, floor=0.02),
    evaluation=Evaluation(every=500),
    steps=1500,
    batch=64,
)
