"""Smaller models: narrow weights, fewer weights, smaller configs, each with what it costs.

Everything is a transform of a parameter tree. Read `quantise` (grids of few bits, rounded to the
nearest or by `gptq`, after `awq`), `prune` (weights set to zero), `structure` (heads, MLP columns
and layers taken out), `vocabulary` (tokens taken out). `moments` is what calibration knows of the
inputs, `compare` what a copy costs.
"""

from gptjax.compress.compare import Change, compared
from gptjax.compress.moments import input_moments, text_rows
from gptjax.compress.prune import Pruning, prune_weights
from gptjax.compress.quantise import Quantising, bits_per_weight, quantise_weights
from gptjax.compress.structure import Smaller, take_out
from gptjax.compress.vocabulary import trim_vocabulary

__all__ = [
    "Change",
    "Pruning",
    "Quantising",
    "Smaller",
    "bits_per_weight",
    "compared",
    "input_moments",
    "prune_weights",
    "quantise_weights",
    "take_out",
    "text_rows",
    "trim_vocabulary",
]
