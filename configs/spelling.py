r"""Corrects misspelled words with an encoder-decoder over bytes: pairs of a list of common
misspellings, and words of books with made mistakes.
"""

from gptjax.data import Bytes, DataConfig, Records, SequenceToSequence
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import Muon, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Records("data/spelling_train.tsv", held_out="data/spelling_test.tsv"),
        tokenizer=Bytes(),
        task=SequenceToSequence(),
    ),
    model=ModelConfig(
        context=64,
        width=128,
        num_layers=2,
        encoder_layers=2,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu",
        bias=False,
        residual_dropout=0.1,
        compute="float32",
    ),
    optim=Muon(peak=1e-2, weight_decay=0.1, beta2=0.98),
    schedule=Schedule("linear", warmup=30, floor=0.0),
    evaluation=Evaluation(
        every=700,
        prompt="apropriate",
        sample=SampleConfig(temperature=0.0, new_tokens=30),
    ),
    steps=700,
    batch=32,
)
