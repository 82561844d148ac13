r"""Fine-tunes SmolLM2-135M-Instruct with an adapter (LoRA) to summarise abstracts of papers in one
line: SciTLDR, 1,992 training papers, of which a twentieth is held out.

Baselines on 40 papers of the development set, ROUGE-1, -2, -L: the first sentence 28.4, 9.2, 21.4;
the model without training 31.6, 10.7, 24.2, with 45 words where the summaries have 22. **This
config has not been run**: in the two hours for it the machine was taken.

Measured on 2026-11-30 on two shared cores of an AMD EPYC with AVX-512, Python 3.12.

    python examples/paper_summaries.py summaries train.jsonl data/summaries.jsonl
    python train.py configs/summaries_smollm2.py
    python benchmarks/summarise.py dev.jsonl --models smollm2 runs/summaries_smollm2

Data: Cachola et al. 2020, TLDR, arXiv:2004.15011.
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
