"""Questions about drawn shapes: how many, which colour, what is beside, is there one.

    python train.py configs/shapes_vqa.py
    gptjax chat runs/shapes_vqa --image PICTURE.png

One combination of colour and form in five is never shown in training; held out are pictures with
one of these. `--data.source.unseen False --dir runs/shapes_vqa_familiar` holds out pictures like
those of training instead.

One run (seed 0, 2026-12-01, one core of an AMD EPYC beside other work) was stopped after 4,246 of
the 6,000 steps, at a training loss still falling. By kind, familiar and unseen pictures: how many
92.0 and 87.2 %, yes or no 91.4 and 56.4 %, others (colours and neighbours) 59.0 and 23.5 %; all
81.0 and 58.0 %. From step 2,000 to 4,000 unseen ones got no better. Training never says yes to an
unseen combination nor answers with one, and a model may learn just that.

Right without a model: the most frequent answer to a question 54.5 and 38.1 %, that of the nearest
training picture 67.8 and 44.0 % (`python benchmarks/shapes.py questions`).
"""

from gptjax.data import DataConfig, SentencePiece, Shapes, VisualAnswers
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig, Vision
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import Muon, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Shapes("questions", count=8000, held_out_count=500),
        tokenizer=SentencePiece(vocab_size=400, words=True),  # a piece a word
        task=VisualAnswers(size=(48, 48), tokens=16, shift=3),
        validation=0.0,
    ),
    model=ModelConfig(
        context=28,
        width=128,
        num_layers=3,
        num_heads=4,
        prefix_lm=True,
        norm="rmsnorm",
        qk_norm=True,
        activation="swiglu",
        bias=False,
        vision=Vision(  # the background is near 0
            size=(48, 48), patch=12, overlap=6, mean=(0.94, 0.94, 0.94), std=(0.2, 0.2, 0.2)
        ),
    ),
    optim=Muon(peak=4e-3, weight_decay=0.05),
    schedule=Schedule("cosine", warmup=60, floor=0.02),
    evaluation=Evaluation(every=2000, rows=512, sample=SampleConfig(temperature=0.0)),
    steps=6000,
    batch=32,
)
