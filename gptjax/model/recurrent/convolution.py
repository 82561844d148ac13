"""The short gated convolution of LFM2 as a layer."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from gptjax.core.arrays import Array, Float, Key
from gptjax.model.activations import Observed
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.cache import Cache
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.layers import Linear, residual_std, together
from gptjax.model.recurrent.mixing import Convolution, through_memory, with_state


class GatedConvolution(nn.Module):
    """Takes the place of `attention.Attention`; see `options.ShortConvolution`."""

    config: ModelConfig
    layer: Layer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer_inputs: LayerInputs,
        cache: Cache | None,
        number: Any,
        key: Key | None,
        seen: Observed,
    ) -> tuple[Float[Array, "B T D"], Cache | None, Observed]:
        c, options = self.config, self.config.recurrent
        probe, sizes = layer_inputs.probe._replace(layer=number), ((c.width,), (c.width,))
        three = tuple(
            Linear(*sizes, ("embed", "mlp"), c.init_std, options.bias, name=name)
            for name in ("before", "after", "value")
        )
        before, after, value = together(x, three, joined=True)
        reading = through_memory(c, number, layer_inputs, cache, (before * value,), ())
        convolution = Convolution(
            (c.width,), options.taps, ("mlp",), options.bias, name="convolution"
        )
        read = reading.own(convolution(reading.inputs[0], reading.texts))
        if cache is not None:
            cache = with_state(c, number, cache, reading, None)
        read, seen = probe.saved("recurrent", read, seen)
        mixed = after * read.astype(x.dtype)
        out = Linear(*sizes, ("mlp", "embed"), residual_std(c), options.bias, name="out")
        return out(mixed), cache, seen
