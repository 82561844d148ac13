"""A GPT learns Python in about three minutes on two CPU cores, from the source of the interpreter's
own standard library.

2.2M parameters, SentencePiece of 2,048 pieces, 128 tokens of context. Measured on 2026-11-26, two
shared cores of an AMD EPYC with AVX-512, from an empty clone, one run each: Python 3.12, 500 steps
in 2m 23s (3m 09s with installation), 1.81 bits per byte on 27 held-out files, gzip -9 2.12, xz -9
1.86; Python 3.11, 300 steps in 2m 09s (2m 52s), 1.92, gzip 2.12, xz 1.87. The library is read
without its generated tables (encodings, pydoc_data): with them a 5 % split had gzip at 1.82 and xz
at 1.43, because the tables repeat each other, and AdamW ended at 2.11. Muon was chosen from five
short runs judged on the same held-out files: with 256 tokens of context, 300 steps and one seed,
Muon at 6e-3 reached 2.00 and AdamW at 3e-3, the only rate tried, 2.43, for a fifth more time a
step. jaxlib 0.10 (Python 3.11) has no fast bfloat16 products on a CPU, so there it computes in
float32 and takes fewer steps; so it does on processors without bfloat16 instructions, which are
slower: two shared cores of an AMD EPYC without AVX-512, Python 3.12, 2026-11-25, one run: 4m 07s
with start and evaluations, 1.93 bits per byte (gzip -9 2.12, xz -9 1.86); Python 3.11, from an
empty clone, two runs: 4m 18s and 4m 50s with installation, steps 2m 50s and 3m 00s, 1.92 (2.12,
1.87).
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import DataConfig, SentencePiece, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import Muon, Schedule

FAST = fast_bfloat16()

experiment = Experiment(
    data=DataConfig(
        source=Text(), tokenizer=SentencePiece(vocab_size=2048), validation=0.05, split="documents"
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
        compute="bfloat16" if FAST else "float32",
    ),
    optim=Muon(peak=1e-2, weight_decay=0.1, beta2=0.98),
    schedule=Schedule("linear", warmup=30, floor=0.0),
    evaluation=Evaluation(every=100, rows=64, prompt="def ", sample=SampleConfig(new_tokens=100)),
    steps=500 if FAST else 300,
    batch=16,
)
