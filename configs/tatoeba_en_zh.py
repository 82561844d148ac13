"""English to Chinese with a small original Transformer, an encoder beside a decoder.
"""

from gptjax.data import DataConfig, Records, SentencePiece, SequenceToSequence
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.objectives import Loss
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import Muon, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Records("data/tatoeba_cmn_eng/cmn.txt"),
        tokenizer=SentencePiece(vocab_size=3000),
        validation=0.03,
        task=SequenceToSequence(),
    ),
    model=ModelConfig(
        context=64,
        width=96,
        num_layers=2,
        encoder_layers=2,
        num_heads=4,
        positions="rope",
        norm="rmsnorm",
        activation="relu",
        bias=False,
        residual_dropout=0.1,
        compute="float32",
    ),
    loss=Loss(label_smoothing=0.1),
    optim=Muon(peak=1e-2, weight_decay=0.1, beta2=0.98),
    schedule=Schedule("linear", warmup=30, floor=0.0),
    evaluation=Evaluation(every=250, prompt="I don't know where Tom lives.", sample=SampleConfig(temperature=0.0, new_tokens=30)),
    steps=750,
    batch=32,
)
