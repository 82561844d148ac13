"""A model with an adapter that changes what it says, on disk as PEFT writes it."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from gptjax import formats, model, weights
from gptjax.formats import OpenedModel, peft
from gptjax.formats.peft_config import Settings


def write_adapted(folder: Path, opened: OpenedModel, settings: weights.LoRA) -> OpenedModel:
    """Writes the model to `folder`/base and an adapter of it to `folder`/adapter; returns both as
    one."""
    formats.save_model(folder / "base", opened)
    made = settings.init(opened.params, model.roles(opened.config), jax.random.key(0))
    adapters = jax.tree.map(
        lambda x: x + 0.2 * jnp.cos(1.0 + jnp.arange(x.size)).reshape(x.shape), made
    )
    told = Settings(rs=settings.rs, dora=settings.magnitudes, base=str(folder / "base"))
    peft.write_peft(folder / "adapter", opened, peft.PeftAdapter(adapters, {}, told))
    return opened._replace(params=weights.attach(opened.params, adapters))
