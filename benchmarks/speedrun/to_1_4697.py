"""A candidate for the track to 1.4697; see README.md beside it."""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, DataConfig, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import Muon, Schedule


def experiment(
    steps: int = 2400,
    width: int = 256,
    layers: int = 6,
    context: int = 256,
    batch: int = 12,
    dropout: float = 0.1,
) -> Experiment:
    """The flags of this file; the candidate is without any."""
    return Experiment(
        data=DataConfig(
            source=Text("input.txt"), tokenizer=Characters(end_of_document=False), validation=0.1
        ),
        model=ModelConfig(
            context=context,
            width=width,
            num_layers=layers,
            num_heads=width // 32,
            positions="rope",
            norm="rmsnorm",
            activation="relu2",
            qk_norm=True,
            residual_init="zero",
            bias=False,
            residual_dropout=dropout,
            embedding_dropout=dropout,
            compute="bfloat16" if fast_bfloat16() else "float32",
        ),
        optim=Muon(peak=4e-3, weight_decay=0.1, beta2=0.95, clip_norm=1.0),
        schedule=Schedule("wsd", warmup=20, floor=0.0, decay_share=0.5),
        evaluation=Evaluation(
            every=max(1, steps // 6), prompt="\n", sample=SampleConfig(new_tokens=1)
        ),
        steps=steps,
        batch=batch,
        log_every=max(1, steps // 24),
    )
