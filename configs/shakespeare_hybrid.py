"""`configs/shakespeare_char.py` with three of its four layers of attention replaced by gated
DeltaNet: the same width, optimizer, text and number of steps, and within 0.1 % as many parameters
(the MLPs are narrower).

0.80M parameters. Attention, the last layer, has an output gate, as in Qwen3-Next.
`benchmarks/hybrid.py` makes the table of both, on this text and on books:

    python train.py configs/shakespeare_hybrid.py --data.source.path input.txt --seed 0
    python benchmarks/hybrid.py --text input.txt
    python benchmarks/hybrid.py --books books.jsonl.gz

Held-out bits per byte after 1,000 steps of 768 tokens, seeds 0, 1, 2:

| text | attention | hybrid |
|---|---|---|
| tiny Shakespeare by characters | 2.595, 2.597, 2.605 | 2.428, 2.403, 2.424 |
| novels and histories by 1,024 pieces | 2.105, 2.108, 2.107 | 2.052, 2.056, 2.057 |

Steps, not time, are equal: on these cores one of the hybrid takes longer (docs/recurrent.md). Rows
of 64 tokens, less than an epoch. Two AMD EPYC cores in bfloat16, Python 3.12, 2026-12-01.

Source: Yang et al. 2024, Gated Delta Networks, arXiv:2412.06464.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import DeltaNet, Layer, ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text("data/tinyshakespeare/input.txt"),
        tokenizer=Characters(end_of_document=False),
        validation=0.1,
    ),
    model=ModelConfig(
        context=64,
        width=128,
        num_layers=4,
        num_heads=4,
        feed_forward=490,
        pattern=(*3 * (Layer(recurrent=True),), Layer()),
        recurrent=DeltaNet(4, key_width=16, value_width=32),
        attention_gate=True,
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=100, floor=0.1),
    evaluation=Evaluation(
        every=250, rows=240, prompt="\n", sample=SampleConfig(new_tokens=60, top_p=1.0)
    ),
    steps=1000,
    batch=12,
)
