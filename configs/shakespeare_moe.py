"""`configs/shakespeare_char.py` as a mixture of experts: 8 experts, top-2 routing.

2.37M parameters, of which 0.80M are active per token. The dense twin is
`configs/shakespeare_char.py --model.compute float32`, whose MLP width of 512 is that of two
experts. Training FLOPs per token: 4.99M with experts, router included; 4.97M for the twin.

Result after 1,000 steps, loss over all validation characters in blocks of 64 (seeds 0, 1, 2):

    experts       1.794, 1.803, 1.799   mean 1.799   core time 336, 353 s (seeds 0, 1)
    dense twin    1.800, 1.799, 1.805   mean 1.801   core time 157, 171 s (seeds 0, 1)

At equal active FLOPs, three times the parameters gained nothing in 768,000 characters, less than an
epoch; the two were even at 500 steps (1.951, 1.944, 1.944 against 1.932, 1.941, 1.964). Over the
last 100 steps the busiest expert of any layer had 1.26, 1.21 and 1.27 times its fair share, the
idlest 0.71, 0.80 and 0.72 (in the first 20 steps of seeds 0 and 1: 3.3, 2.9 and 0.09); no token is
dropped. On a CPU, dispatching tokens to experts costs more than the products.

Measured on 2026-11-25 on two shared cores of an AMD EPYC without AVX-512, Python 3.12, with other
work running.

    python train.py configs/shakespeare_moe.py --data.source.path input.txt --seed 0

Source: Shazeer et al. 2017, arXiv:1701.06538; the balance loss: Fedus et al. 2022, Switch
Transformers, arXiv:2101.03961.
"""

from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import Experts, ModelConfig
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
        positions="rope",
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        experts=Experts(count=8, active=2, width=256),
        compute="float32",
    ),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=100, floor=0.1),
    evaluation=Evaluation(
        every=500, rows=240, prompt="\n", sample=SampleConfig(new_tokens=60, top_p=1.0)
    ),
    steps=1000,
    batch=12,
)
