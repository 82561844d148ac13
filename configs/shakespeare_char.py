"""Character-level Tiny Shakespeare at nanoGPT's CPU size: 4 layers, 4 heads, width 128, context 64,
12 rows per step.

Sizes, optimizer, learning rates and evaluations every 250 steps are nanoGPT's. This config uses
RoPE, RMSNorm and ReLU² instead of learned positions, LayerNorm and GELU, and needs only half of the
2,000 steps.

Result, loss over all validation characters in blocks of 64 (seeds 0, 1, 2), wall time from process
start:

    this config, 1,000 steps     1.799, 1.799, 1.805   mean 1.801   44.6, 48.0, 46.7 s
    this config, 2,000 steps     1.674, 1.673, 1.670                68.2 s (seed 0)
    GPT-2's block, 2,000 steps   1.905, 1.909, 1.910   mean 1.908
    plain PyTorch, 2,000 steps   1.918, 1.884, 1.907   mean 1.903   114.8, 106.8, 82.7 s

GPT-2's block is --model.positions learned --model.norm layernorm --model.activation gelu --steps
2000; it is no better than PyTorch's (benchmarks/torch_gpt.py, Python 3.11, run in turn; 82.7 s
while the machine was quieter). Measured on 2026-11-22 on two shared cores of an AMD EPYC with
AVX-512, Python 3.12. Repeated on 2026-11-26 on a machine of the same kind with the changes until
then (docs/reports/performance.md): 1.800, 1.803, 1.807, mean 1.803; 37.4, 38.4, 34.4 s; plain
PyTorch earlier that day 1.916 in 108.5 s (one run).
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text("data/tinyshakespeare/input.txt"),
        tokenizer=Characters(end_of_document=False),
        validation=0.1,
    ),
    model=ModelConfig(
        context=64,
        width=128,
        num_layers=4,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=100, floor=0.1),
    evaluation=Evaluation(
        every=250, rows=240, prompt="\n", sample=SampleConfig(new_tokens=60, top_p=1.0)
    ),
    steps=1000,
    batch=12,
)
