"""Tiny Shakespeare by characters at nanoGPT's CPU size: 4 layers, 4 heads, width 128, 64 characters
of context, 12 rows a step.

What is nanoGPT's: the sizes, the optimizer, its rates and the evaluation every 250 steps. What is
not: RoPE, RMSNorm and ReLU² instead of learned positions, LayerNorm and GELU, and half of the 2,000
steps, because this block needs fewer.

Measured on 2026-11-22, two shared cores of an AMD EPYC with AVX-512, Python 3.12. Loss over all
validation characters in blocks of 64, seeds 0, 1, 2: 1.799, 1.799, 1.805, mean 1.801. Wall time
from process start 44.6, 48.0, 46.7 s. The same sizes in plain PyTorch, 2,000 steps, run in turn
with them (benchmarks/torch_gpt.py, Python 3.11): 114.8 and 106.8 s, and 82.7 s while the machine
was quieter; losses 1.918, 1.884, 1.907, mean 1.903. With 2,000 steps this config ends at 1.674,
1.673, 1.670 (seed 0: 68.2 s). With GPT-2's block and 2,000 steps (--model.positions learned
--model.norm layernorm --model.activation gelu --steps 2000) it ends at 1.905, 1.909, 1.910, mean
1.908: no better than PyTorch's. On 2026-11-26, a machine of the same kind and what was changed
until then (docs/reports/performance.md), seeds 0, 1, 2: 1.800, 1.803, 1.807, mean 1.803; 37.4,
38.4, 34.4 s from process start; the plain PyTorch earlier that day 108.5 s and 1.916 (one run).
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
