"""A small encoder fills in what is hidden of twelve novels and histories, as BERT does: 15 % of the pieces, of which 80 % are hidden.
"""

from gptjax.data import DataConfig, MaskedLanguageModel, SentencePiece, Text
from gptjax.model import Layer, ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import Muon, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text("data/books/books.jsonl.gz"),
        tokenizer=SentencePiece(vocab_size=1024),
        validation=0.01,
        task=MaskedLanguageModel(share=0.15),
        split="documents",
    ),
    model=ModelConfig(
        context=64,
        width=128,
        num_layers=3,
        num_heads=4,
        causal=False,
        pattern=(Layer(sees="window", span=2), Layer(sees="window", span=4), Layer()),
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        compute="float32",
    ),
    optim=Muon(peak=1e-2, weight_decay=0.1, beta2=0.98),
    schedule=Schedule("linear", warmup=30, floor=0.0),
    evaluation=Evaluation(every=400, rows=256),
    steps=800,
    batch=16,
)
