"""GPT-2 124M from scratch on JSON lines of your own, with GPT-2's vocabulary: nanoGPT's recipe,
which reproduces GPT-2 on OpenWebText.

Published by nanoGPT: validation loss about 2.85 on OpenWebText after 600,000 steps of 491,520
tokens, four days on eight A100s. This config has not been run to its end. Put GPT-2's vocabulary
files (encoder.json and vocab.bpe, or vocab.json and merges.txt) into data/gpt2.

    python train.py configs/gpt2_124m.py --data.source.path openwebtext.jsonl

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners; schedule and batch
size from nanoGPT.
"""

from gptjax.data import GPT2, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import gpt2
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Text("data/openwebtext.jsonl"),
        tokenizer=GPT2("data/gpt2"),
        validation=0.0005,
        split="documents",
    ),
    model=gpt2(
        "124m",
        # padded to a multiple of 64, which hardware likes; the padding is never drawn
        vocab_size=50_304,
        bias=False,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
        compute="bfloat16",
    ),
    optim=AdamW(peak=6e-4, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=2000, floor=0.1),
    evaluation=Evaluation(every=1000, rows=2400, sample=SampleConfig(new_tokens=200)),
    steps=600_000,
    batch=480,
    micro_batch=96,
)
