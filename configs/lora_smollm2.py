"""Fine-tunes SmolLM2-135M-Instruct with an adapter (LoRA) on your text. The weights come with a
Python package.

The adapter has 4.88M parameters beside the model's 135M: with its optimizer state it takes 56 MiB,
and the frozen base 513 MiB, where training all parameters (configs/smollm2_135m.py) keeps 1,539.
Three steps of 512 tokens from the same texts, alternating with full training at a tenth of the
rate: losses 2.606, 2.109, 2.262 against 2.606, 2.080, 2.231; 6.2 to 7.2 s of processor time a step
against 8.0 to 8.6. A longer run was not made.

Measured on 2026-11-29 on two shared cores, Python 3.12, float32.

    python train.py configs/lora_smollm2.py --data.source.path mytext.txt
    gptjax convert runs/lora_smollm2 merged --merge

Sources: Hu et al. 2021, LoRA, arXiv:2106.09685; Ben Allal et al. 2025, SmolLM2, arXiv:2502.02737.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import DataConfig, Given, Text
from gptjax.generate import SampleConfig
from gptjax.model.presets import smollm
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule
from gptjax.weights import LoRA

experiment = Experiment(
    start="smollm2",
    adapter=LoRA(rank=16, alpha=32.0),
    data=DataConfig(source=Text(), tokenizer=Given(), validation=0.02),
    model=smollm(
        "2-135m", context=256, layers="scan", compute="bfloat16" if fast_bfloat16() else "float32"
    ),
    optim=AdamW(peak=5e-4, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("linear", warmup=5, floor=0.0),
    evaluation=Evaluation(every=50, rows=16, sample=SampleConfig(new_tokens=60)),
    steps=100,
    batch=4,
)
