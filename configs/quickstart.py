"""A GPT that learns Python in about three minutes on two CPU cores, from the source of the
interpreter's own standard library.

2.2M parameters, SentencePiece with 2,048 pieces, context 128. One run each, from an empty clone:

    machine (two shared cores)   Python  steps  time   with install  bits per byte  gzip -9  xz -9
    AMD EPYC, AVX-512            3.12    500    2m 23s  3m 09s       1.81           2.12     1.86
    AMD EPYC, AVX-512            3.11    300    2m 09s  2m 52s       1.92           2.12     1.87
    AMD EPYC, no AVX-512         3.12    300    4m 07s  -            1.93           2.12     1.86
    AMD EPYC, no AVX-512         3.11    300    -       4m 18s       1.92           2.12     1.87
    AMD EPYC, no AVX-512         3.11    300    -       4m 50s       1.92           2.12     1.87

AVX-512: 2026-11-26. No AVX-512: 2026-11-25; 4m 07s includes start-up and evaluations, and the steps
alone of the last two rows took 2m 50s and 3m 00s. The first row holds out 27 files.

jaxlib 0.10 (Python 3.11) has no fast bfloat16 products on CPUs, and some processors have no
bfloat16 instructions; there the config computes in float32 and takes fewer steps. The library is
read without its generated tables (encodings, pydoc_data), which repeat each other: with them, a 5 %
split had gzip at 1.82 and xz at 1.43, and AdamW ended at 2.11. Muon was chosen from five short runs
on the same held-out files: with context 256, 300 steps and one seed, Muon at 6e-3 reached 2.00 and
AdamW at 3e-3, the only rate tried, 2.43; Muon takes a fifth more time per step.
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
