"""Questions about pictures of one shape, answered by a small prefix LM that reads patches.

    pip install --no-deps easy-vqa
    python examples/easy_vqa.py data/easy_vqa
    python train.py configs/easy_vqa.py
    gptjax chat runs/easy_vqa --image PICTURE.png

Not trained to its end yet; baselines are in docs/see.md. The control that sees grey pictures alone:
`python train.py configs/easy_vqa.py --data.task.blind True --dir runs/easy_vqa_blind`.

Source: pictures and questions of the package easy-vqa (MIT); the model is Beyer et al. 2024,
PaliGemma, arXiv:2407.07726, very small and without an encoder of its own.
"""

from gptjax.data import Characters, DataConfig, Media, VisualAnswers
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig, Vision
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Media("data/easy_vqa/train.jsonl", held_out="data/easy_vqa/test.jsonl"),
        tokenizer=Characters(),
        task=VisualAnswers(tokens=64, images=1),
        validation=0.0,
    ),
    model=ModelConfig(
        context=120,
        width=128,
        num_layers=4,
        num_heads=4,
        prefix_lm=True,
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        compute="float32",
        vision=Vision(size=(64, 64), patch=8, overlap=4),
    ),
    optim=AdamW(peak=1.5e-3, weight_decay=0.05),
    schedule=Schedule("cosine", warmup=100, floor=0.02),
    evaluation=Evaluation(every=500, rows=1024, sample=SampleConfig(temperature=0.0)),
    steps=1500,
    batch=64,
)
