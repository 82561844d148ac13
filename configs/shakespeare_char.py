"""Tiny Shakespeare by characters, with nanoGPT's CPU settings exactly: 4 layers, width 128, 64 characters of context, 2,000 steps.

Measured on 2026-11-22, two cores of an AMD EPYC with AVX-512, Python 3.12, one seed: 66.3 s from process start with an evaluation
every 250 steps, loss 1.9049 over all validation characters in blocks of 64 (2.75 bits a character; the evaluations on the way read
256 blocks). The same settings as a plain PyTorch program (benchmarks/torch_gpt.py, Python 3.11) on the same machine just after:
92.5 s, 43.1 ms a step, 1.9155 over all validation characters and 1.9063 by its own estimate over 20 random batches.
"""

from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(source=Text("data/tinyshakespeare/input.txt"), tokenizer=Characters(end_of_document=False), validation=0.1),
    model=ModelConfig(context=64, width=128, num_layers=4, num_heads=4, bias=False, compute="bfloat16"),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=100, floor=0.1),
    evaluation=Evaluation(every=250, rows=240, prompt="\n", sample=SampleConfig(new_tokens=60, top_p=1.0)),
    steps=2000,
    batch=12,
)
