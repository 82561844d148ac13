r"""Fine-tunes SmolLM2-135M-Instruct with an adapter (LoRA) and a new output over its last state to
classify sentences of film reviews as positive or negative: 9,589 training sentences, 1,073 held
out.

Make the data, one sentence with its label a line, from the two files of the archive:

    unzip -p sentence_polarity.zip '*.pos' | sed 's/$/\tpositive/' > sentence_polarity.tsv
    unzip -p sentence_polarity.zip '*.neg' | sed 's/$/\tnegative/' >> sentence_polarity.tsv
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Classification, DataConfig, Given, Records
from gptjax.model.presets import smollm
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule
from gptjax.weights import LoRA

experiment = Experiment(
    start="smollm2",
    adapter=LoRA(rank=16, alpha=32.0),
    data=DataConfig(
        source=Records("data/movie_sentiment/sentence_polarity.tsv"),
        tokenizer=Given(),
        validation=0.1,
        task=Classification(),
    ),
    model=smollm(
        "2-135m",
        context=128,
        pool="last",
        layers="scan",
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    optim=AdamW(peak=5e-4, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("linear", warmup=20, floor=0.0),
    evaluation=Evaluation(every=320),
    steps=320,
    batch=4,
)
