"""Aligns SmolLM2-135M-Instruct with pairs of answers, by DPO on all parameters.

The file has a pair in each line, {"prompt": ..., "chosen": ..., "rejected": ...}, of texts or of
lists of messages; texts become what a user says and an assistant answers:

    python train.py configs/dpo_smollm2.py --data.source.path pairs.jsonl
    gptjax chat runs/dpo_smollm2

The first loss is ln 2 = 0.6931, because the model is its own reference. With an adapter (--adapter
lora --optim.peak 1e-4 --model.context 256 --batch 1), on 400 pairs of polite and rude answers, two
in a step, the loss of 37 held-out pairs went from 0.6931 to 0.4349 in 50 steps, and the share of
pairs whose chosen answer gains more to 0.892: chosen answers gained 0.29 nats in the mean, rejected
ones lost 1.23. It took 3.6 minutes of processor time, compilation and evaluations included. In
bfloat16 policy and reference are rounded apart while training, by 0.05 to 0.2 nats an answer: the
first training step had a loss of 0.659, the evaluation before it 0.6931. With all parameters no run
has been measured.

Measured on 2026-11-29 on one of two Intel Xeon cores with AMX, shared with much other work, one
seed.

Source: Rafailov et al. 2023, arXiv:2305.18290; the rate and beta of SmolLM2's own recipe (Ben Allal
et al. 2025, arXiv:2502.02737, section 5.3).
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Comparisons, DataConfig, Given, Preferences
from gptjax.generate import SampleConfig
from gptjax.losses import Preference
from gptjax.model.presets import smollm
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    start="smollm2",
    data=DataConfig(
        source=Comparisons("data/pairs.jsonl", as_messages=True),
        tokenizer=Given(),
        task=Preferences(),
        validation=0.1,
    ),
    model=smollm(
        "2-135m", context=512, layers="scan", compute="bfloat16" if fast_bfloat16() else "float32"
    ),
    loss=Preference(beta=0.5),
    optim=AdamW(peak=1e-6, weight_decay=0.0, clip_norm=1.0),
    schedule=Schedule("linear", warmup=5, floor=0.0),
    evaluation=Evaluation(
        every=25, rows=16, prompt="How do I boil an egg?", sample=SampleConfig(new_tokens=60)
    ),
    steps=50,
    batch=2,
)
