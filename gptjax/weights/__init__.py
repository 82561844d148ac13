"""Weights as values: what is stored, and how an activation is multiplied by it.

Read `weight` (the kinds), `linear` (the product), `embed` (the look-up), `adapters` (LoRA).
`sharded` and `narrow` are how a mesh and a CPU compute a product.
"""

from gptjax.weights.adapters import Adapter, Adapters, attach, lora, merge, side_by_side
from gptjax.weights.embed import embed
from gptjax.weights.linear import contract, linear, linears, multiply, ragged
from gptjax.weights.weight import Adapted, Quantized, Role, Weight, dense, quantize, transposed

__all__ = [
    "Adapted",
    "Adapter",
    "Adapters",
    "Quantized",
    "Role",
    "Weight",
    "attach",
    "contract",
    "dense",
    "embed",
    "linear",
    "linears",
    "lora",
    "merge",
    "multiply",
    "quantize",
    "ragged",
    "side_by_side",
    "transposed",
]
