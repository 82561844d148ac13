"""Which values of a block are kept for the backward pass; it computes the others again.

Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
"""

from __future__ import annotations

from typing import Any

import jax

from gptjax.model.config import ModelConfig


def kept(config: ModelConfig) -> Any:
    """The policy of `jax.checkpoint` that `remat` names; none keeps nothing."""
    policies = jax.checkpoint_policies
    match config.remat:
        case "dots":
            return policies.dots_with_no_batch_dims_saveable
        case "names":
            return policies.save_only_these_names(*config.remat_names)
        case "offload":
            told = {
                "names_which_can_be_saved": [],
                "names_which_can_be_offloaded": list(config.remat_names),
            }
            return policies.save_and_offload_only_these_names(
                **told, offload_src="device", offload_dst="pinned_host"
            )
    return None
