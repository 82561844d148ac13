"""Weights as values: what is stored, and how an activation is multiplied by it.

Read `weight` (the kinds), `linear` (the product), `embed` (the look-up), `lora` and `adapters`
(low-rank products beside frozen weights), `virtual` (what trains before every text), `storage`
(narrow types). `sharded` and `narrow` are how
a mesh and a CPU compute a product; `logical` says which dimensions a mesh splits.
"""

from gptjax.weights.adapters import (
    Adapter,
    Adapters,
    attach,
    choose_adapter,
    detach,
    merge,
    pad_rank,
    serve,
    side_by_side,
    sum_adapters,
    unmerge,
    with_keys,
)
from gptjax.weights.embed import embed
from gptjax.weights.linear import contract, linear, linears, multiply, ragged
from gptjax.weights.logical import axes_within, on_mesh, weight_axes
from gptjax.weights.lora import DoRA, LoRA, adapt, with_leaves
from gptjax.weights.storage import NormalFloat, Prepared, Stored, has_packed, store
from gptjax.weights.virtual import VIRTUAL, Prefix, PrefixTuning, Prompt, PromptTuning
from gptjax.weights.weight import Adapted, Quantized, Role, Weight, dense, quantize, transposed

AdapterKind = LoRA | DoRA | PromptTuning | PrefixTuning
"""Settings of an adapter."""

__all__ = [
    "VIRTUAL",
    "Adapted",
    "Adapter",
    "AdapterKind",
    "Adapters",
    "DoRA",
    "LoRA",
    "NormalFloat",
    "Prefix",
    "PrefixTuning",
    "Prepared",
    "Prompt",
    "PromptTuning",
    "Quantized",
    "Role",
    "Stored",
    "Weight",
    "adapt",
    "attach",
    "axes_within",
    "choose_adapter",
    "contract",
    "dense",
    "detach",
    "embed",
    "has_packed",
    "linear",
    "linears",
    "merge",
    "multiply",
    "on_mesh",
    "pad_rank",
    "quantize",
    "ragged",
    "serve",
    "side_by_side",
    "store",
    "sum_adapters",
    "transposed",
    "unmerge",
    "weight_axes",
    "with_keys",
    "with_leaves",
]
