"""Character-level Tiny Shakespeare, trained with differential privacy: gptjax private
configs/shakespeare_private.py.

The model is that of shakespeare_char.py with two layers of width 64. The unit of privacy is a row
of 64 characters, of which the text has 15,686; a step draws 256 of them on average. The alphabet is
taken to be public. Held-out loss of benchmarks/privacy.py, whose text has 188 rows of canaries
besides (2026-12-01, one seed): 2.544 at epsilon 1, 2.477 at 3, 2.453 at 8, and 2.004 without noise;
docs/lab.md has the exposure of the canaries.
"""

from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.lab.promise import Privacy
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

privacy = Privacy(epsilon=8.0, delta=1e-5, clip=0.5)

experiment = Experiment(
    data=DataConfig(
        source=Text("data/tinyshakespeare/input.txt"),
        tokenizer=Characters(end_of_document=False),
        validation=0.1,
    ),
    model=ModelConfig(
        context=64,
        width=64,
        num_layers=2,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
    ),
    optim=AdamW(peak=3e-3, weight_decay=0.0, clip_norm=None),
    schedule=Schedule("linear", warmup=20, floor=0.1),
    evaluation=Evaluation(
        every=100, rows=240, prompt="\n", sample=SampleConfig(new_tokens=60, top_p=1.0)
    ),
    steps=300,
    batch=256,
)
