"""KTO on what a person said of a model's answers in `gptjax chat --feedback`.

    gptjax chat runs/chat_toy --feedback judged.jsonl
    python train.py configs/kto_feedback.py --start runs/chat_toy --data.source.path judged.jsonl
    gptjax chat runs/kto_feedback --feedback more.jsonl

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
