"""Llama 3 405B from scratch on 2,048 TPU v5p chips: tensor parallelism over 8, FSDP over 256;
1,000,000 steps of 4,194,304 tokens.

    gptjax plan configs/large/llama3_405b.py --target v5p:8x16x16

Planned, not run: docs/reports/plans/llama3_405b.txt is the output of `gptjax plan`. Put your text
into data/text.jsonl, one document per line. The paper trained on 15.6 trillion tokens, with a batch
that grew from 4 to 16 million.

Source: Grattafiori et al. 2024, The Llama 3 Herd of Models, arXiv:2407.21783, sections 3.2 and 3.4.
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
        tokenizer=SentencePiece(vocab_size=128_256),
        validation=0.0005,
        split="documents",
        isolated=False,
    ),
    model=llama("3-405b", compute="bfloat16", remat="full"),
    loss=CrossEntropy(vocab_parts=8),
    optim=AdamW(peak=8e-5, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=2000, floor=0.1),
    mesh=MeshConfig(fsdp=256, tensor=8),
    evaluation=Evaluation(every=2000, rows=1024),
    steps=1_000_000,
    batch=512,
)
