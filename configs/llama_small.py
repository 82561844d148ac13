"""A small Llama (RoPE, RMSNorm, SwiGLU, grouped-query attention, untied output) on any text; by
default on the Python standard library.

Source of the architecture: Touvron et al. 2023, Llama 2, arXiv:2307.09288.
"""

from gptjax.data import DataConfig, SentencePiece, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(source=Text(), tokenizer=SentencePiece(vocab_size=4096), validation=0.05),
    model=ModelConfig(
        context=256,
        width=288,
        num_layers=6,
        num_heads=6,
        num_kv_heads=2,
        positions="rope",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        tied=False,
        compute="bfloat16",
    ),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.95),
    schedule=Schedule("cosine", warmup=100, floor=0.1),
    evaluation=Evaluation(every=250, rows=128, sample=SampleConfig(new_tokens=120)),
    steps=1000,
    batch=16,
)
