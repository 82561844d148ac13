"""Fine-tunes SmolLM2-135M-Instruct with an adapter (LoRA) on conversations: the answers are
learned, the questions only read. Data and rows are those of configs/sft_smollm2.py, which trains
all parameters.

The adapter has 4.88M parameters beside the model's 135M: with its optimizer state it takes 56 MiB,
and the frozen base 513 MiB, where training all parameters keeps 1,539. Four ways took the same 40
steps of one row in turns: from 2.105 nats per token of held-out answers LoRA came to 2.032,
2.030 and 2.028 (seeds 0, 1 and 2), DoRA to 2.032, 2.029 and 2.028, all parameters at a tenth of the
rate to 2.037, 2.034 and 2.032. LoRA's step took 0.63 of full training's
processor time (median), DoRA's 0.75. This config's 120 steps have not been run.

Measured on 2026-11-29 on two Intel Xeon cores with AMX in bfloat16, little else running with seed
0, where the times are from; seed 2 on 2026-12-01 on an AMD EPYC core beside other
work: benchmarks/adapters_smollm2.py.

    python examples/oasst_chats.py oasst_trees.jsonl data/chats.jsonl
    python train.py configs/lora_smollm2.py --data.source.path data/chats.jsonl
    gptjax chat runs/lora_smollm2
    gptjax convert runs/lora_smollm2 merged --merge

Another adapter is a flag away: `--adapter dora`, or `--adapter prompt-tuning --adapter.tokens 16`,
which began at 2.101 and 2.103 and came to 2.084 and 2.085 at a rate of 1e-2 (`--optim.peak`).

Sources: Hu et al. 2021, LoRA, arXiv:2106.09685; Ben Allal et al. 2025, SmolLM2, arXiv:2502.02737.
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
        source=Conversations("data/chats.jsonl"), tokenizer=Given(), task=Chat(), validation=0.1
    ),
    model=smollm(
        "2-135m", context=512, layers="scan", compute="bfloat16" if fast_bfloat16() else "float32"
    ),
    optim=AdamW(peak=5e-4, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("linear", warmup=5, floor=0.0),
    evaluation=Evaluation(
        every=40, rows=16, prompt="How do I boil an egg?", sample=SampleConfig(new_tokens=60)
    ),
    steps=120,
    batch=2,
)
