"""Code completion at a cursor: a small GPT over bytes learns to fill in the middle of Python, from
the source of the interpreter's own standard library.

Not measured yet: benchmarks/middle.py does, beside the left side alone and a byte 6-gram model.

    python train.py configs/fill_in_middle.py
    python benchmarks/middle.py runs/fill_in_middle
    gptjax sample runs/fill_in_middle --temperature 0 --prompt "for i in <fill>(10):"

Source: Bavarian et al. 2022, arXiv:2207.14255.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import DataConfig, FillInMiddle, SentencePiece, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import Muon, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text(),
        tokenizer=SentencePiece(vocab_size=2048),
        validation=0.05,
        split="documents",
        task=FillInMiddle(share=0.9),
    ),
    model=ModelConfig(
        context=128,
        width=192,
        num_layers=4,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    optim=Muon(peak=1e-2, weight_decay=0.1, beta2=0.98),
    schedule=Schedule("linear", warmup=30, floor=0.0),
    evaluation=Evaluation(
        every=500,
        rows=64,
        prompt="for i in <fill>(10):",
        sample=SampleConfig(temperature=0.0, new_tokens=40),
    ),
    steps=700,
    batch=32,
)
