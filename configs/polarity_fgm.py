"""A one-layer encoder on film reviews with adversarial training: half of the loss is taken at
embeddings that are moved along the gradient by a step of norm 0.05 per row. `configs/polarity.py`
says how to make the data, and is far better, since it starts from a trained model.

Result: **no gain in accuracy**: 0.715, 0.717, 0.699 (seeds 0, 1, 2), mean 0.710, against 0.726 of
the same settings without it. The held-out loss is lower: 0.558, 0.547, 0.561 against 0.585, 0.587,
0.573. Steps of norm 0.5 (seed 0) learned nothing (accuracy 0.485, loss
ln 2): the embeddings of 25 tokens begin with a norm of √(25 · 64) · 0.02 = 0.8 together.

Measured on 2026-11-25 on two shared cores of an AMD EPYC without AVX-512, Python 3.12, with other
work running.

    python train.py configs/polarity_fgm.py --data.source.path sentence_polarity.tsv --seed 0
    python benchmarks/classify.py runs/polarity_fgm

Source: Miyato et al. 2017, arXiv:1605.07725, without its normalised embeddings.
"""

from gptjax.data import Classification, DataConfig, Records, SentencePiece
from gptjax.losses import FGM
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Records("data/movie_sentiment/sentence_polarity.tsv"),
        tokenizer=SentencePiece(vocab_size=4096),
        validation=0.1,
        task=Classification(),
    ),
    model=ModelConfig(
        context=128,
        width=64,
        num_layers=1,
        num_heads=4,
        causal=False,
        pool="mean",
        positions="rope",
        norm="rmsnorm",
        bias=False,
        embedding_dropout=0.3,
        residual_dropout=0.3,
        compute="float32",
    ),
    loss=FGM(size=0.05),
    optim=AdamW(peak=2e-3, weight_decay=5.0, beta2=0.98, ema=0.98),
    schedule=Schedule("linear", warmup=30, floor=0.0),
    evaluation=Evaluation(every=140),
    steps=280,
    batch=16,
)
