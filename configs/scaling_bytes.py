r"""A ladder of small models over the bytes of Python's standard library, each about twice as
expensive as the one before, for `gptjax scaling fit`.

    for step in "16 400" "20 580" "24 780" "28 1020" "32 1280"; do
      set -- $step
      gptjax train configs/scaling_bytes.py --dir runs/ladder_$1 --model.width $1 \
          --steps $2 --schedule.warmup $(($2 / 10))
    done
    gptjax train configs/scaling_bytes.py --dir runs/held_out --model.width 56 \
        --steps 4300 --schedule.warmup 430
    gptjax scaling fit runs/ladder_* --predict runs/held_out

Each width reads about 40 bytes per parameter. docs/reports/scaling.md has the losses, the fit, and
its prediction of the last run, which costs 8.5 times as much as the largest of the ladder: it was 5
% off, and outside its interval.

Source of the method: OpenAI 2023, GPT-4 Technical Report, arXiv:2303.08774, section 3.1.
"""

from gptjax.data import Bytes, DataConfig, Text
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(source=Text(), tokenizer=Bytes(), validation=0.02),
    model=ModelConfig(
        context=128,
        width=32,
        num_layers=2,
        num_heads=2,
        positions="rope",
        norm="rmsnorm",
        bias=False,
        tied=True,
    ),
    optim=AdamW(peak=4e-3, weight_decay=0.1, beta2=0.95),
    schedule=Schedule("cosine", warmup=128, floor=0.1),
    evaluation=Evaluation(every=100_000),
    steps=1280,
    batch=8,
)
