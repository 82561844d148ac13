"""Mixtral 8x7B from nothing on 128 TPU v5p chips: an expert on each of 8, rows and state over 16
such groups; 500,000 steps of 1,048,576 tokens.

    gptjax plan configs/large/mixtral_8x7b.py --target v5p:4x4x8

Planned, not run here: docs/reports/plans/mixtral_8x7b.txt is what `gptjax plan` prints of it. Your
text goes into data/text.jsonl, one document a line. An expert reads at most 1.25 times its fair
share of a row here, so that what devices send each other has a fixed size; the model's own code
drops nobody. Rows of 4,096 tokens, not the 32,768 that it can read: the paper does not say which it
was trained with.

Source: Jiang et al. 2024, Mixtral of Experts, arXiv:2401.04088, section 2.
"""

from gptjax.data import DataConfig, SentencePiece, Text
from gptjax.losses.cross_entropy import Loss
from gptjax.model import Experts, mixtral
from gptjax.sharding.mesh import MeshConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text("data/text.jsonl"),
        tokenizer=SentencePiece(vocab_size=32_000),
        validation=0.0005,
        split="documents",
        isolated=False,
    ),
    model=mixtral(
        "8x7b",
        context=4096,
        experts=Experts(count=8, active=2, balance=0.02, capacity=1.25),
        compute="bfloat16",
        remat="full",
    ),
    loss=Loss(vocab_parts=8),
    optim=AdamW(peak=3e-4, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=2000, floor=0.1),
    mesh=MeshConfig(fsdp=16, expert=8),
    evaluation=Evaluation(every=2000, rows=1024),
    steps=500_000,
    batch=256,
)
