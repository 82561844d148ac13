"""Fine-tunes SmolLM2-135M-Instruct with an adapter (LoRA) on your text. The weights come with a
Python package.

The adapter has 4.88M parameters beside the model's 135M: it and its optimizer state take 56 MiB,
and the frozen base 0.5 GiB, where training all parameters (configs/smollm2_135m.py) keeps 1.5 GiB.

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
