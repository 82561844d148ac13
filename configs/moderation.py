r"""A classifier that says whether a text is harmful, for `gptjax serve MODEL --moderate
runs/moderation`: MiniLM (six layers), further trained.

The file has a text and its label, harmful or harmless, in each line:

    python examples/safety_sets.py harmful.jsonl helpful.jsonl examples/lookalikes.jsonl data/safety
    python train.py configs/moderation.py
    gptjax serve smollm2 --moderate runs/moderation

Result, seed 0: accuracy 0.883 on the texts held out of that file. Of 101 held-out harmful prompts
it stops 94.1 % (95 % interval 87.6 to 97.2) at the threshold 0.5, and **of 32 harmless
look-alikes 28.1 %** (15.6 to 45.4); at 0.9 81.2 % (72.5 to 87.6) and 12.5 % (5.0 to 28.1). The
24 steps read each text one and a half times.

    python benchmarks/safety.py --harmful data/safety/held_out_harmful.jsonl \
        --lookalikes data/safety/held_out_lookalikes.jsonl --moderator runs/moderation

Measured on 2026-11-30 on two AMD EPYC cores in bfloat16.

It knows one language and the kinds of harm of its data, and no more: see docs/responsible-use.md.

Model: Wang et al. 2020, MiniLM, arXiv:2002.10957; Reimers and Gurevych 2019, Sentence-BERT,
arXiv:1908.10084.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Classification, DataConfig, Given, Records
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    start="minilm",
    freeze=("embedding", "positions"),
    data=DataConfig(
        source=Records("data/safety/moderation.tsv"),
        tokenizer=Given(),
        validation=0.15,
        task=Classification(labels=("harmful", "harmless")),
    ),
    model=ModelConfig(
        causal=False,
        pool="mean",
        residual_dropout=0.1,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    optim=AdamW(peak=3e-4, weight_decay=0.01, beta2=0.98, clip_norm=1.0),
    schedule=Schedule("linear", warmup=4, floor=0.0),
    evaluation=Evaluation(every=24),
    steps=24,
    batch=1,
)
