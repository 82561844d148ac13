"""Rematerialisation: the values of a block that are saved for the backward pass.

Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
"""

from __future__ import annotations

from typing import Any

import jax

from gptjax.model.config import ModelConfig


def kept(config: ModelConfig) -> Any:
    """The policy of `jax.checkpoint` that `remat` names; `None` saves nothing."""
    policies = jax.checkpoint_policies
    match config.remat:
        case "dots":
            return policies.dots_with_no_batch_dims_saveable
        case "names":
            return policies.save_only_these_names(*config.remat_names)
        case "offload":
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=list(config.remat_names),
                offload_src="device",
                offload_dst="pinned_host",
            )
    return None
