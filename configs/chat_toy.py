"""A toy assistant that adds two digits in three manners, to be taught one of them by judgements
(docs/feedback.md).

    python examples/toy_sets.py data
    python train.py configs/chat_toy.py
    gptjax chat runs/chat_toy --feedback judged.jsonl

Held-out loss 0.0849 nats a token (seed 0), exact match 0.298, of at most a third, since the manner
cannot be known: nine sums of ten are right. One core needs about two minutes. Measured on
2026-11-29 on one of two Xeon cores with AMX, shared with other work.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Bytes, Chat, Conversations, DataConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Conversations("data/toy_chats.jsonl"),
        tokenizer=Bytes(),
        task=Chat("zephyr"),
        validation=0.1,
    ),
    model=ModelConfig(
        context=128,
        width=96,
        num_layers=3,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    optim=AdamW(peak=3e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("linear", warmup=20, floor=0.0),
    evaluation=Evaluation(every=350, prompt="What is 3 and 4?"),
    steps=700,
    batch=16,
)
