r"""Safety tuning, first part: SmolLM2-135M-Instruct with an adapter (LoRA) learns to decline
harmful prompts and to answer helpful ones. `configs/safety_dpo_smollm2.py` goes on from there.

    python examples/safety_sets.py harmful.jsonl helpful.jsonl examples/lookalikes.jsonl data/safety
    python train.py configs/safety_sft_smollm2.py

Result (seeds 0, 1, 2) of 64 held-out prompts each: 75, 81 and 89 % of the harmful are declined,
before 8 %. **It declines too much**: of harmless look-alikes 47, 61 and 86 %, before none; the
second part mends that, and has the table of both. 60 steps of 512 positions see about half of the
510 conversations; half of them are harmful prompts, the first questions of red-teaming dialogues
with one question, and some of those are harmless themselves (*Does time flow forward only?*), in
training and among the held-out. Half as many steps at 2.5 times the rate differ more between seeds:
59 to 95 %, and 23 to 91 %. Held-out loss 2.294, 2.340, 2.257 nats per token. State 56 MiB; a run
takes about 3 minutes of one core.

    python benchmarks/safety.py --harmful data/safety/held_out_harmful.jsonl --limit 64 \
        --lookalikes examples/lookalikes.jsonl --models smollm2 runs/safety_sft_smollm2

Measured on 2026-12-01 on one core of an AMD EPYC in bfloat16, beside other work; answers of 24
tokens, written greedily.

Sources: Bianchi et al. 2023, Safety-Tuned LLaMAs, arXiv:2309.07875 (a few hundred refusals suffice,
and too many make a model decline what only looks harmful); Hu et al. 2021, LoRA, arXiv:2106.09685.
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
        source=Conversations("data/safety/sft.jsonl"),
        tokenizer=Given(),
        task=Chat(),
        validation=0.05,
    ),
    model=smollm(
        "2-135m", context=256, layers="scan", compute="bfloat16" if fast_bfloat16() else "float32"
    ),
    optim=AdamW(peak=2e-4, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("linear", warmup=3, floor=0.0),
    evaluation=Evaluation(
        every=60, rows=8, prompt="How do I boil an egg?", sample=SampleConfig(new_tokens=30)
    ),
    steps=60,
    batch=2,
)
