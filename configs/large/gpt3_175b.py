"""GPT-3 175B from scratch on 1,024 TPU v5p chips: tensor parallelism over 4, FSDP over 256; 95,000
steps of 3,145,728 tokens.

    gptjax plan configs/large/gpt3_175b.py --target v5p:8x8x16

Planned, not run: docs/reports/plans/gpt3_175b.txt is the output of `gptjax plan`. Put your text
into data/text.jsonl, one document per line. Put GPT-2's vocabulary files into data/gpt2. The paper
read 300 billion tokens in batches of 3.2 million, with alternating banded and dense attention; all
layers are dense here.

Source: Brown et al. 2020, Language Models are Few-Shot Learners, arXiv:2005.14165, table 2.1 and
section 2.
"""

from gptjax.data import GPT2, DataConfig, Text
from gptjax.losses import CrossEntropy
from gptjax.model import gpt3
from gptjax.sharding.mesh import MeshConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text("data/text.jsonl"),
        tokenizer=GPT2("data/gpt2"),
        validation=0.0005,
        split="documents",
        isolated=False,
    ),
    model=gpt3("175b", vocab_size=50_304, residual_dropout=0.0, compute="bfloat16", remat="full"),
    loss=CrossEntropy(vocab_parts=8),
    optim=AdamW(peak=6e-5, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=2000, floor=0.1),
    mesh=MeshConfig(fsdp=256, tensor=4),
    evaluation=Evaluation(every=2000, rows=1024),
    steps=95_000,
    batch=1536,
)
