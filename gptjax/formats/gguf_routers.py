"""Experts in GGUF metadata: `experts_of` (metadata to config) and `experts_metadata`, its inverse.

Some architectures fix how experts are chosen, others have keys for it (`ROUTED`). Source: what
llama.cpp computes, with which `tests/test_parity_llama_cpp.py` compares.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gptjax.core.config import require
from gptjax.formats.gguf_keys import Metadata
from gptjax.model import Experts, Layer, ModelConfig

SIGMOID = Experts(scores="sigmoid", bias_step=1e-3)
"""Chosen by sigmoids and a bias, as DeepSeek-V3's."""

ROUTED = {"dots1", "glm4moe"}
"""Architectures with keys of the scores, shared experts and layers without experts."""
OWN_WIDTH = {"qwen3moe", "minimax-m2", *ROUTED}
"""Architectures with a key of the width inside an expert; in the others it is the MLP's."""

SCORES = {1: "softmax", 2: "sigmoid"}
"""Numbers of `expert_gating_func`."""
BIAS = ".exp_probs_b"
"""Part of the names of biases that choose experts."""


def experts_of(fields: Metadata, base: ModelConfig, feed_forward: int) -> dict[str, Any]:
    """Returns the fields of a config that say which experts it has; none if there are none.

    Raises:
      ConfigError: they are chosen in a way that is not known here.
    """
    count, active = fields.number("expert_count", 0), fields.number("expert_used_count", 0)
    width = fields.number("expert_feed_forward_length", feed_forward)
    if not count:
        return {}
    experts = replace(base.experts or Experts(), count=count, active=active, width=width)
    if fields.arch == "minimax-m2":
        _require_sigmoid(fields)
    if fields.arch not in ROUTED:
        return {"experts": experts}
    _require_sigmoid(fields)
    experts = replace(
        experts,
        scale=fields.real("expert_weights_scale", 1.0) or 1.0,
        normalised=fields.take("expert_weights_norm", bool, False),
        shared=fields.number("expert_shared_count", 0),
        bias_step=experts.bias_step * any(BIAS in name for name in fields.file.tensors),
    )
    dense = fields.number("leading_dense_block_count", 0, most=1 << 10)
    return {"experts": experts, "first": (Layer(dense=True),) * dense}


def _require_sigmoid(fields: Metadata) -> None:
    kind = SCORES.get(fields.number("expert_gating_func", 2))
    require(
        kind == "sigmoid",
        f"{fields.file.path}: {fields.arch}.expert_gating_func is not 2 (sigmoid); nothing"
        " else is known of this architecture.",
    )


def experts_metadata(arch: str, c: ModelConfig) -> dict[str, Any]:
    """Returns the metadata of a model's experts, without the name of the architecture."""
    e = c.experts
    if e is None:
        return {}
    width = "expert_feed_forward_length" if arch in OWN_WIDTH else "feed_forward_length"
    fields = {"expert_count": e.count, "expert_used_count": e.active, width: c.expert_width}
    if arch == "minimax-m2":  # llama.cpp takes either key
        fields["feed_forward_length"] = c.expert_width
    if arch in (*ROUTED, "minimax-m2"):
        fields["expert_gating_func"] = 1 if e.scores == "softmax" else 2
    if arch in ROUTED:
        dense = next((i for i, layer in enumerate(c.stack) if c.sparse(layer)), c.num_layers)
        fields |= {
            "expert_weights_scale": float(e.scale),
            "expert_weights_norm": e.normalised,
            "expert_shared_count": e.shared,
            "leading_dense_block_count": dense,
        }
    return fields
