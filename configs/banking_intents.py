"""An encoder tells which of 77 things a customer of a bank wants.
"""

from gptjax.data import Classification, DataConfig, Records, SentencePiece
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Records("data/banking77/train.csv", source="text", target="category", held_out="data/banking77/test.csv"),
        tokenizer=SentencePiece(vocab_size=2048),
        task=Classification(),
    ),
    model=ModelConfig(
        context=128,
        width=96,
        num_layers=1,
        num_heads=4,
        causal=False,
        pool="mean",
        positions="rope",
        norm="rmsnorm",
        bias=False,
        embedding_dropout=0.2,
        residual_dropout=0.2,
        compute="float32",
    ),
    optim=AdamW(peak=3e-3, weight_decay=0.1, beta2=0.98),
    schedule=Schedule("linear", warmup=50, floor=0.0),
    evaluation=Evaluation(every=200),
    steps=1200,
    batch=16,
)
