"""Safety tuning, second part: DPO on pairs. Of a harmful prompt the refusal is preferred to the
answer that a person rejected; of a helpful one the answer to a refusal, so that a model which
declines everything does not win.

    python train.py configs/safety_sft_smollm2.py
    gptjax convert runs/safety_sft_smollm2 data/safety_sft --merge
    python train.py configs/safety_dpo_smollm2.py --start data/safety_sft

This config has not been run. The first part alone declines a quarter of the harmless look-alikes;
whether pairs whose chosen answer helps bring that down is what it is for.

Sources: Rafailov et al. 2023, arXiv:2305.18290; Bai et al. 2022, Training a Helpful and Harmless
Assistant, arXiv:2204.05862 (helpfulness and harmlessness pull apart).
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Comparisons, DataConfig, Given, Preferences
from gptjax.generate import SampleConfig
from gptjax.losses import Preference
from gptjax.model.presets import smollm
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule
from gptjax.weights import LoRA

experiment = Experiment(
    start="data/safety_sft",
    adapter=LoRA(rank=16, alpha=32.0),
    data=DataConfig(
        source=Comparisons("data/safety/pairs.jsonl", as_messages=True),
        tokenizer=Given(),
        task=Preferences(),
        validation=0.05,
    ),
    model=smollm(
        "2-135m", context=256, layers="scan", compute="bfloat16" if fast_bfloat16() else "float32"
    ),
    loss=Preference(beta=0.1),
    optim=AdamW(peak=1e-4, weight_decay=0.0, clip_norm=1.0),
    schedule=Schedule("linear", warmup=3, floor=0.0),
    evaluation=Evaluation(
        every=20, rows=4, prompt="How do I boil an egg?", sample=SampleConfig(new_tokens=30)
    ),
    steps=20,
    batch=2,
)
