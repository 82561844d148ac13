"""Fine-tunes SmolLM2-135M-Instruct, all parameters, on conversations: the answers are learned, the
questions only read.

The file has a conversation in each line, {"messages": [{"role": "user", "content": ...}, ...]};
`prompt` and `completion`, or `text`, do as well. Each token's part in it, before a step is paid
for, and 333 conversations to begin with, made from a file of trees of OpenAssistant (Apache-2.0):

    python examples/oasst_chats.py oasst_trees.jsonl data/chats.jsonl
    gptjax inspect data/chats.jsonl --model smollm2 --context 512
    python train.py configs/sft_smollm2.py --data.source.path data/chats.jsonl
    gptjax chat runs/sft_smollm2

Of the first hundred trees' 333 conversations 75 % of 124,858 tokens count, and 66 are longer than a
row of 512 tokens and are left out. 40 steps of one row instead of two: 2.105 → 2.037, 2.034 and
2.032 nats per token of held-out answers (seeds 0, 1 and 2), where LoRA (configs/lora_smollm2.py)
came to 2.032, 2.030 and 2.028 from the same 20,480 tokens. State 1,539 MiB; 5.4 s of
processor time a step. This config's 120 steps have not been run.

Measured on 2026-11-29 on two Intel Xeon cores with AMX in bfloat16, little else running with seed
0; seed 2 on 2026-12-01 on an AMD EPYC core beside other work: benchmarks/adapters_smollm2.py.

Source: Ben Allal et al. 2025, SmolLM2, arXiv:2502.02737 (two epochs; their rate of 1e-3 is for
batches of 128 rows).
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Chat, Conversations, DataConfig, Given
from gptjax.generate import SampleConfig
from gptjax.model.presets import smollm
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    start="smollm2",
    data=DataConfig(
        source=Conversations("data/chats.jsonl"), tokenizer=Given(), task=Chat(), validation=0.1
    ),
    model=smollm(
        "2-135m", context=512, layers="scan", compute="bfloat16" if fast_bfloat16() else "float32"
    ),
    optim=AdamW(peak=5e-5, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("linear", warmup=5, floor=0.0),
    evaluation=Evaluation(
        every=40, rows=16, prompt="How do I boil an egg?", sample=SampleConfig(new_tokens=60)
    ),
    steps=120,
    batch=2,
)
