"""`configs/digits_pixels.py` by masked diffusion: the same pictures, shape, optimizer and number of
steps, but every pixel sees all others, any share of them is masked, and a picture is drawn by
filling in masks, the surest first (MaskGIT).

0.35M parameters. Not trained to its end yet: it has no figure of its own here.

    python train.py configs/digits_masked.py
    gptjax sample runs/digits_masked --prompt 7 --denoising-steps 28 --picture seven.png

Sources: Chang et al. 2022, MaskGIT, arXiv:2202.04200; Nie et al. 2025, LLaDA, arXiv:2502.09992.
"""

from gptjax.core.backend import fast_bfloat16
from gptjax.data import Characters, DataConfig, Idx, MaskedPictureTokens
from gptjax.generate import SampleConfig
from gptjax.losses import Diffusion
from gptjax.model import Layer, ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Schedule

experiment = Experiment(
    data=DataConfig(
        source=Idx("data/digits_images/images.idx3.gz", "data/digits_images/labels.idx1"),
        tokenizer=Characters(),
        validation=0.0,
        task=MaskedPictureTokens(size=(14, 14), levels=2),
    ),
    model=ModelConfig(
        context=197,
        width=96,
        num_layers=3,
        num_heads=4,
        causal=False,
        pattern=(Layer(positions="rope"),),
        norm="rmsnorm",
        activation="relu2",
        bias=False,
        compute="bfloat16" if fast_bfloat16() else "float32",
    ),
    loss=Diffusion(),
    optim=AdamW(peak=3e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    schedule=Schedule("cosine", warmup=50, floor=0.02),
    evaluation=Evaluation(
        every=250, rows=256, prompt="7", sample=SampleConfig(new_tokens=196, top_p=1.0)
    ),
    steps=1500,
    batch=16,
)
