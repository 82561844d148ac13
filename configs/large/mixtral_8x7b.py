"""Mixtral 8x7B from scratch on 128 TPU v5p chips: expert parallelism over 8, FSDP over 16; 500,000
steps of 1,048,576 tokens.

    gptjax plan configs/large/mixtral_8x7b.py --target v5p:4x4x8

Planned, not run: docs/reports/plans/mixtral_8x7b.txt is the output of `gptjax plan`. Put your text
into data/text.jsonl, one document per line. An expert takes at most 1.25 times its fair share of a
row here, so that messages between devices have a fixed size; the original drops no token. Rows of
4,096 tokens, not the maximum of 32,768: the paper does not say which length it was trained with.

Source: Jiang et al. 2024, Mixtral of Experts, arXiv:2401.04088, section 2.
"""

from gptjax.data import DataConfig, SentencePiece, Text
from gptjax.losses import CrossEntropy
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
    loss=CrossEntropy(vocab_parts=8),
    optim=AdamW(peak=3e-4, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=2000, floor=0.1),
    mesh=MeshConfig(fsdp=16, expert=8),
    evaluation=Evaluation(every=2000, rows=1024),
    steps=500_000,
    batch=256,
)
