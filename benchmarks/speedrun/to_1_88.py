"""The record of the speedrun to 1.88; see README.md beside it."""

from typing import Literal

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig, Shortcuts
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Muon, Schedule

SHORTCUTS = {
    "none": None,
    "stream": Shortcuts(),
    "first": Shortcuts(stream=False, values="first"),
    "table": Shortcuts(stream=False, values="table"),
}
OPTIMIZERS = {
    "muon": Muon(peak=4e-3, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
    "adamw": AdamW(peak=2e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
}


def experiment(
    steps: int = 300,
    optimizer: Literal["muon", "adamw"] = "muon",
    shortcuts: Literal["none", "stream", "first", "table"] = "none",
) -> Experiment:
    """The flags of this file; the record is without any: steps, the optimizer, and shortcuts from
    the embedded tokens (to the stream, or to values: the first layer's, or a table's)."""
    return Experiment(
        data=DataConfig(
            source=Text("input.txt"), tokenizer=Characters(end_of_document=False), validation=0.1
        ),
        model=ModelConfig(
            context=64,
            width=128,
            num_layers=4,
            num_heads=4,
            positions="rope",
            norm="rmsnorm",
            activation="relu2",
            qk_norm=True,
            residual_init="zero",
            bias=False,
            shortcuts=SHORTCUTS[shortcuts],
            compute="bfloat16" if fast_bfloat16() else "float32",
        ),
        optim=OPTIMIZERS[optimizer],
        schedule=Schedule("wsd", warmup=20, floor=0.0, decay_share=0.5),
        evaluation=Evaluation(every=steps, prompt="\n", sample=SampleConfig(new_tokens=1)),
        steps=steps,
        batch=12,
        log_every=50,
    )
