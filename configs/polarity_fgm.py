"""`configs/polarity.py` with adversarial training: half of the loss is at embedded tokens that are moved a step of length 0.05 a row up its slope.

Not run to its end yet; the plain runs are told of in `configs/polarity.py`, which says how the data is made.

    python train.py configs/polarity_fgm.py --data.source.path sentence_polarity.tsv --seed 0 --dir runs/polarity_fgm
    python benchmarks/classify.py runs/polarity_fgm

Source: Miyato et al. 2017, arXiv:1605.07725, without its normalised embeddings.
"""

from gptjax.data import Classification, DataConfig, Records, SentencePiece
from gptjax.model import ModelConfig
from gptjax.objectives import FGM, Loss
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
    loss=Loss(adversarial=FGM(size=0.05)),
    optim=AdamW(peak=2e-3, weight_decay=5.0, beta2=0.98, ema=0.98),
    schedule=Schedule("linear", warmup=30, floor=0.0),
    evaluation=Evaluation(every=140),
    steps=280,
    batch=16,
)
