r"""Fine-tunes MiniLM (all-MiniLM-L6-v2, six layers) to tell which of twelve books a paragraph is
from, names struck out: 3,000 training paragraphs, 720 held out, from other chapters.

`configs/banking_intents.py` says where the model comes from.

Baselines: logistic regressions of `benchmarks/classify.py` reach 0.697 on word counts and 0.733 on
tf-idf of words and word pairs; SmolLM2-135M-Instruct, not trained for it, names the right title for
0.170 of 100 paragraphs (`benchmarks/label_words.py`). **This config has not been run**: in the two
hours for it the machine was taken.

Measured on 2026-11-30 on two shared cores of an AMD EPYC with AVX-512, Python 3.12.

    python examples/book_topics.py books.jsonl.gz data
    python train.py configs/book_topics.py
    python benchmarks/classify.py runs/book_topics
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Classification, DataConfig, Given, Records
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    start="data/minilm",
    freeze=("embedding", "positions"),
    data=DataConfig(
        source=Records("data/topics_train.tsv", held_out="data/topics_test.tsv"),
        tokenizer=Given(),
        task=Classification(),
    ),
    model=ModelConfig(
        causal=False,
        pool="mean",
        residual_dropout=0.1,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    optim=AdamW(peak=2e-4, weight_decay=0.01, beta2=0.98, clip_norm=1.0),
    schedule=Schedule("linear", warmup=60, floor=0.0),
    evaluation=Evaluation(every=320),
    steps=320,
    batch=2,
)
