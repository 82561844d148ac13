"""Llama 2 7B from scratch on 64 TPU v5p chips, FSDP over all of them: 500,000 steps of 524,288
tokens.

    gptjax plan configs/large/llama2_7b.py --target v5p:4x4x4

Planned, not run: docs/reports/plans/llama2_7b.txt is the output of `gptjax plan`. Put your text
into data/text.jsonl, one document per line. The paper trained on two trillion tokens in batches of
four million; this batch fills 64 chips with two rows each.

Source: Touvron et al. 2023, Llama 2, arXiv:2307.09288, section 2.
"""

from gptjax.data import DataConfig, SentencePiece, Text
from gptjax.losses import CrossEntropy
from gptjax.model import llama
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
    model=llama("7b", compute="bfloat16", remat="full"),
    loss=CrossEntropy(vocab_parts=8),
    optim=AdamW(peak=3e-4, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=2000, floor=0.1),
    mesh=MeshConfig(fsdp=64),
    evaluation=Evaluation(every=2000, rows=1024),
    steps=500_000,
    batch=128,
)
