r"""Fine-tunes SmolLM2-135M-Instruct with an adapter (LoRA) to summarise abstracts of papers in one
line: SciTLDR, 1,992 training papers.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Chat, Conversations, DataConfig, Given
from gptjax.generate import SampleConfig
from gptjax.model.presets import smollm
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule
from gptjax.weights import LoRA

experiment = Experiment(
    start="smollm2",
    adapter=LoRA(rank=16, alpha=32.0),
    data=DataConfig(
        source=Conversations("data/summaries.jsonl"),
        tokenizer=Given(),
        task=Chat(),
        validation=0.05,
    ),
    model=smollm(
        "2-135m", context=512, layers="scan", compute="bfloat16" if fast_bfloat16() else "float32"
    ),
    optim=AdamW(peak=1e-3, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("linear", warmup=10, floor=0.0),
    evaluation=Evaluation(every=120, rows=16, sample=SampleConfig(new_tokens=40)),
    steps=120,
    batch=1,
)
