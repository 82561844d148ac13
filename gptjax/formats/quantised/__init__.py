"""Quantised checkpoints of Hugging Face directories: `scheme_of` reads what config.json says about
them, strictly, and `assembled` makes one weight of the tensors of each.

A format is one file: its settings, the checks of its tensors' types and shapes, and how they become
a `Grid` of values and scales. `widened` gives a grid's numbers in float32, `leaves` keeps it as it
is stored, and `ggml_blocks` reads GGUF's blocks into the same.
"""

from __future__ import annotations

from typing import Any

from gptjax.core.config import nearest, require
from gptjax.formats.keys import Keys
from gptjax.formats.quantised.awq import awq_scheme
from gptjax.formats.quantised.bitsandbytes import bitsandbytes_scheme
from gptjax.formats.quantised.compressed_tensors import compressed_scheme
from gptjax.formats.quantised.fp8_blocks import fp8_scheme
from gptjax.formats.quantised.gptq import gptq_scheme
from gptjax.formats.quantised.mxfp4 import mxfp4_scheme
from gptjax.formats.quantised.parts import QuantisedTensor, Scheme, assembled

__all__ = ["SCHEMES", "QuantisedTensor", "Scheme", "assembled", "scheme_of"]

SCHEMES = {
    "fp8": fp8_scheme,
    "mxfp4": mxfp4_scheme,
    "compressed-tensors": compressed_scheme,
    "gptq": gptq_scheme,
    "awq": awq_scheme,
    "bitsandbytes": bitsandbytes_scheme,
}
"""By `quant_method`."""


def scheme_of(data: dict[str, Any], where: str) -> tuple[dict[str, Any], Scheme | None]:
    """Returns a config.json without its quantisation, and that; `None` if it has none.

    Args:
      where: the file, for messages.

    Raises:
      ConfigError: the method, or a setting of it, is not known.
    """
    rest = dict(data)
    older, settings = rest.pop("compression_config", None), rest.pop("quantization_config", None)
    settings = settings or older
    if not settings:
        return rest, None
    place = f"quantization_config in {where}"
    require(isinstance(settings, dict), f"{place} is not an object; get it again.")
    method = settings.get("quant_method")
    require(
        isinstance(method, str) and method in SCHEMES,
        f"{place} has the quant_method {str(method)[:60]!r}; known are"
        f" {', '.join(SCHEMES)}.{nearest(str(method)[:60], SCHEMES)}",
    )
    keys = Keys({**settings, "model_type": method}, place)
    for known in ("quant_method", "model_type"):
        keys.take(known)
    return rest, SCHEMES[method](keys)
