"""A mixture of 16 experts with 1.8 trillion parameters, 0.26 trillion of them active per token, on
4,096 TPU v5p chips: expert parallelism over 16, tensor parallelism over 4.

    gptjax plan configs/large/moe_1800b.py --target v5p:16x16x16

Planned, not run: docs/reports/plans/moe_1800b.txt is the output of `gptjax plan`. Put your text
into data/text.jsonl, one document per line. The shape is what articles ascribe to GPT-4: 120
layers, 16 experts of about 111 billion parameters each, two per token, about 13 trillion tokens; it
was never confirmed, and the widths here are ours, chosen to come out at these counts. The batch has
8,388,608 tokens.

Source: Patel and Wong 2023, GPT-4 Architecture, Infrastructure, Training Dataset, Costs, Vision,
MoE, SemiAnalysis, 10 July 2023.
"""

from gptjax.data import DataConfig, SentencePiece, Text
from gptjax.losses import CrossEntropy
from gptjax.model import Experts, ModelConfig
from gptjax.sharding.mesh import MeshConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text("data/text.jsonl"),
        tokenizer=SentencePiece(vocab_size=100_352),
        validation=0.0005,
        split="documents",
        isolated=False,
    ),
    model=ModelConfig(
        vocab_size=100_352,
        context=8192,
        width=12_288,
        num_layers=120,
        num_heads=96,
        num_kv_heads=8,
        feed_forward=36_864,
        experts=Experts(count=16, active=2, capacity=1.25),
        positions="rope",
        norm="rmsnorm",
        bias=False,
        tied=False,
        compute="bfloat16",
        remat="full",
    ),
    loss=CrossEntropy(vocab_parts=8),
    optim=AdamW(peak=6e-5, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=2000, floor=0.1),
    mesh=MeshConfig(fsdp=64, expert=16, tensor=4),
    evaluation=Evaluation(every=2000, rows=1024),
    steps=1_500_000,
    batch=1024,
)
