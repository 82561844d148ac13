"""Aligns SmolLM2-135M-Instruct with pairs of answers, by DPO on all parameters.

The file has a pair in each line, {"prompt": ..., "chosen": ..., "rejected": ...}, of texts or of
lists of messages; texts become what a user says and an assistant answers:

    python train.py configs/dpo_smollm2.py --data.source.path pairs.jsonl
    gptjax chat runs/dpo_smollm2

The first loss is ln 2 = 0.6931, because the model is its own reference. No run has been measured
yet.

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
