"""One dial: `--depth` gives the model's size, and everything else follows from it.

    python train.py configs/dial.py --depth 2
    python train.py configs/dial.py --depth 2 --recipe gpt2 --dir runs/dial_gpt2
    gptjax plan configs/dial.py --depth 12 --target v5e:2x4

A layer more makes the model 64 wider, with a head more; the run reads `ratio` tokens for each
weight of its layers (12 × depth × width²). Of the horizon D follow the batch, which grows as
D^0.383, and weight decay; of the batch B the rate, which grows as √B, while `base_width` carries it
to other widths. All of that is held against depth 2, where the rate was chosen.

`modern` is RoPE, RMSNorm, ReLU², QK-norm, outputs that start at zero, and Muon, whose rate is
constant and then falls. `gpt2` is learned positions, LayerNorm, GELU and biases under AdamW with
a cosine, its rate by the rule of Kaplan et al.

Python's own library, one seed, one core of an AMD EPYC beside other work, 2026-12-01; held-out bits
per byte, of gzip 2.12 and of xz 1.86:

    depth  tokens     modern            gpt2
    1      0.49M      2.09 (312k)       2.84 (198k)
    2      3.93M      1.62 (918k) 3m    2.00 (692k) 3m

Twice the rate of `modern` gave 1.64 at depth 2. GPT-2's is the rule's and was not searched, nor was
the batch of either; in brackets parameters,
of which embedding and output are most (`modern` has an output of its own).

Source: the dial and its powers are nanochat's (https://github.com/karpathy/nanochat), of 2026;
weight decay by the time scale of Wang and Aitchison 2024, arXiv:2405.13698; GPT-2's rate is
equation D.1 of Kaplan et al. 2020, arXiv:2001.08361.
"""

import math
from typing import Literal

from gptjax.core.backend import fast_bfloat16
from gptjax.core.config import require
from gptjax.data import DataConfig, SentencePiece, Text
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.optim import AdamW, Muon, Schedule

CONTEXT, BASE_DEPTH, BASE_ROWS, BASE_RATE, BASE_DECAY = 256, 2, 16, 1e-2, 0.1


def weights(depth: int) -> int:
    """Weights of all layers."""
    return 12 * depth * (64 * depth) ** 2


def experiment(
    depth: int = 2,
    recipe: Literal["modern", "gpt2"] = "modern",
    ratio: float = 10.0,
    text: str | None = None,
) -> Experiment:
    """The flags of this file: depth in layers, the recipe, tokens read per weight of a layer, and
    a text file or folder (the default is the source of Python's own library)."""
    require(depth >= 1 and ratio > 0, "--depth is at least 1, and --ratio more than 0.")
    modern, longer = recipe == "modern", weights(depth) / weights(BASE_DEPTH) * ratio / 10
    rows = max(8, 8 * round(BASE_ROWS * longer**0.383 / 8))
    steps = max(100, round(ratio * weights(depth) / (rows * CONTEXT)))
    larger = math.sqrt(rows / BASE_ROWS)
    architecture = (
        {"positions": "rope", "norm": "rmsnorm", "activation": "relu2", "qk_norm": True}
        | {"residual_init": "zero", "bias": False, "tied": False}
        if modern
        else {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}
    )
    muon = Muon(peak=BASE_RATE * larger, weight_decay=BASE_DECAY * larger / longer, beta2=0.98)
    adamw = AdamW(peak=0.003239 - 0.0001395 * math.log(weights(depth)), weight_decay=0.1)
    return Experiment(
        data=DataConfig(
            source=Text() if text is None else Text(text),
            tokenizer=SentencePiece(vocab_size=2048),
            validation=0.05,
            split="documents",
        ),
        model=ModelConfig(
            context=CONTEXT,
            width=64 * depth,
            num_layers=depth,
            num_heads=depth,
            compute="bfloat16" if fast_bfloat16() else "float32",
            **architecture,
        ),
        optim=muon if modern else adamw,
        schedule=Schedule("wsd", warmup=40, floor=0.0, decay_share=0.5)
        if modern
        else Schedule("cosine", warmup=40, floor=0.1),
        base_width=64 * BASE_DEPTH if modern else None,
        evaluation=Evaluation(
            every=steps // 4, rows=256, prompt="def ", sample=SampleConfig(new_tokens=60)
        ),
        steps=steps,
        batch=rows,
    )
