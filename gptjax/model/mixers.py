"""What mixes the tokens of a layer: one row for each kind."""

from __future__ import annotations

from typing import Any, NamedTuple

from gptjax.model.attention.layer import Attention
from gptjax.model.attention.mla import LatentAttention
from gptjax.model.recurrent.convolution import GatedConvolution
from gptjax.model.recurrent.delta import GatedDelta
from gptjax.model.recurrent.mamba import Mamba


class Mixer(NamedTuple):
    """A module (config, layer) that is called as `attention.layer.Attention` is."""

    name: str
    """Of its parameters in a layer's."""
    module: Any


MIXERS = {
    "attention": Mixer("attention", Attention),
    "latent": Mixer("attention", LatentAttention),
    "delta": Mixer("delta", GatedDelta),
    "mamba": Mixer("mamba", Mamba),
    "convolution": Mixer("convolution", GatedConvolution),
}
"""By `ModelConfig.mixer`."""
