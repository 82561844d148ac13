r"""Corrects misspelled words with an encoder-decoder over bytes: 16,170 pairs of a list of common
misspellings and 51,557 made from words of books; held out are the 1,757 misspellings of a tenth of
the list's right words.

Baselines: copying corrects none; `benchmarks/correct.py`, by edit distance and word counts of the
same books and training pairs, 0.537 (0.514 to 0.561), with the right word in its dictionary for
0.618. **This config has not been run to its end**: after 40 steps, 2.1k tokens each, 0.013 of the
words were right, at 0.4 s a step; how many of the 700 steps' corrections are right is not known.

Measured on 2026-11-30 on two shared cores of an AMD EPYC with AVX-512, Python 3.12, with five other
programs running.

    python examples/spelling_pairs.py pairs.txt books.jsonl.gz data
    python train.py configs/spelling.py
    python benchmarks/correct.py runs/spelling --books books.jsonl.gz

Source: Vaswani et al. 2017, arXiv:1706.03762; Norvig 2007, How to Write a Spelling Corrector.
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
