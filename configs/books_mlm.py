"""A small encoder fills in what is hidden of twelve novels and histories, as BERT does: 15 % of the
pieces, of which 80 % are hidden.

0.72M parameters, SentencePiece of 1,024 pieces, 64 tokens of context, 819,200 tokens of about 6
million; 1 % of the chapters is held out. The first two layers see 2 and 4 tokens to each side. That
is what makes so short a run learn: with three layers that see all, the loss was 5.53 after 250
steps of 2,048 tokens; with windows 4.39 after 400 steps of 1,024.

Measured on 2026-11-25, two shared cores of an AMD EPYC without AVX-512, Python 3.12, other work
running beside; seeds 0, 1 and 2: validation loss 3.860, 3.801, 3.897, mean 3.853, in 189 s of core
time (seed 0). Of 6,217 hidden pieces 20.0, 20.5 and 19.5 % are filled in rightly, at a loss of
4.040, 4.003 and 4.075; the most frequent piece is right at 1.4 % (unigram, loss 6.114), the most
frequent one after the true piece on the left at 11.9 %.

    python train.py configs/books_mlm.py --data.source.path books.jsonl.gz --seed 0
    python benchmarks/cloze.py runs/books_mlm

Source: Devlin et al. 2019, BERT, arXiv:1810.04805; windows: Beltagy et al. 2020, Longformer,
arXiv:2004.05150.
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
