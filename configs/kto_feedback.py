"""KTO on what a person said of a model's answers in `gptjax chat --feedback`.

    gptjax chat runs/chat_toy --feedback judged.jsonl
    python train.py configs/kto_feedback.py --start runs/chat_toy --data.source.path judged.jsonl
    gptjax chat runs/kto_feedback --feedback more.jsonl

Three rounds of 48 judged answers each (docs/feedback.md) raised the share of answers that a
scripted person liked from 27 % to 50, 62 and 75 % (one seed). With beta 0.1 the model was lost
after one round, at a rate of 1e-3 as at 2e-4: 0 % liked. A round of 30 steps takes half a minute of
one core. Measured on 2026-11-29 on one of two Xeon cores with AMX, shared with other work.

For a model of your own: --start MODEL --model.context 512 --adapter lora; with an adapter the
reference is its base, without memory of its own.

Source: Ethayarajh et al. 2024, arXiv:2402.01306.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Comparisons, DataConfig, Feedback, Given
from gptjax.losses import KTO
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    start="runs/chat_toy",
    data=DataConfig(
        source=Comparisons("judged.jsonl"), tokenizer=Given(), task=Feedback(), validation=0.0
    ),
    model=ModelConfig(
        context=128, positions="rope", compute="bfloat16" if fast_bfloat16() else "float32"
    ),
    loss=KTO(beta=1.0, cached=True),
    optim=AdamW(peak=1e-4, weight_decay=0.0, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("linear", warmup=5, floor=0.0),
    evaluation=Evaluation(every=30, prompt="What is 3 and 4?"),
    steps=30,
    batch=8,
)
