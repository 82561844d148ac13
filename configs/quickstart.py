"""Draft."""

from gptjax.data import DataConfig, SentencePiece, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(source=Text(), tokenizer=SentencePiece(vocab_size=2048), validation=0.05, split="documents"),
    model=ModelConfig(context=256, width=192, num_layers=4, num_heads=4, positions="rope", norm="rmsnorm", activation="relu2", bias=False, compute="bfloat16"),
    optim=AdamW(peak=3e-3, weight_decay=0.1, beta2=0.98),
    schedule=Schedule("linear", warmup=50, floor=0.0),
    evaluation=Evaluation(every=200, rows=128, prompt="def ", sample=SampleConfig(new_tokens=120)),
    steps=1000,
    batch=8,
)
