"""Character-level Tiny Shakespeare with nanoGPT's A100 settings: 6 layers, width 384, context 256,
5,000 steps.

Published by nanoGPT: validation loss 1.4697 in about 3 minutes on one A100. This config has not
been run to its end.

    python train.py configs/shakespeare_char_gpu.py --data.source.path input.txt
"""

from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text("data/tinyshakespeare/input.txt"),
        tokenizer=Characters(end_of_document=False),
        validation=0.1,
    ),
    model=ModelConfig(
        context=256,
        width=384,
        num_layers=6,
        num_heads=6,
        bias=False,
        embedding_dropout=0.2,
        attention_dropout=0.2,
        residual_dropout=0.2,
        compute="bfloat16",
    ),
    optim=AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=100, floor=0.1),
    evaluation=Evaluation(every=250, prompt="\n", sample=SampleConfig(new_tokens=200, top_p=1.0)),
    steps=5000,
    batch=64,
)
