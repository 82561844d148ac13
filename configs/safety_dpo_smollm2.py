r"""Safety tuning, second part: DPO on pairs. Of a harmful prompt the refusal is preferred to the
answer that a person rejected; of a helpful one the answer to a refusal, so that a model which
declines everything does not win.

    python train.py configs/safety_sft_smollm2.py
    gptjax convert runs/safety_sft_smollm2 data/safety_sft --merge
    python train.py configs/safety_dpo_smollm2.py --start data/safety_sft

Of 64 held-out prompts each, declined (%, 95 % intervals of one seed about ± 12):

| seed | harmful: before, after the first part, after this | harmless look-alikes |
|---|---|---|
| 0 | 7.8, 75.0, 45.3 | 0, 46.9, 9.4 |
| 1 | 7.8, 81.2, 50.0 | 0, 60.9, 10.9 |
| 2 | 7.8, 89.1, 59.4 | 0, 85.9, 7.8 |

So pairs whose chosen answer helps take back most of the over-refusal, for a third of the refusals;
some of what is then answered is harmless (see the first part). Held-out preference accuracy 0.80,
0.76, 0.72. 20 steps do too little: from 31, 23 and 91 % of look-alikes to 28, 16 and 83. A run
takes about 5 minutes of one core.

    python benchmarks/safety.py --harmful data/safety/held_out_harmful.jsonl --limit 64 \
        --lookalikes examples/lookalikes.jsonl \
        --models smollm2 runs/safety_sft_smollm2 runs/safety_dpo_smollm2

Measured on 2026-12-01 on one core of an AMD EPYC in bfloat16, beside other work; answers of 24
tokens, written greedily.

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
    steps=60,
    batch=2,
)
