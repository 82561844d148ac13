"""Adapters of a model: low-rank products beside its weights, or virtual tokens before its texts.

Read `add_adapter`, then `initial_virtual`. Of virtual tokens `transformer.forward` needs the keys
and values in each layer, which prefix tuning trains, and which prompt tuning lets the model make of
the embeddings that it trains.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from gptjax import weights
from gptjax.core.arrays import Key, Params
from gptjax.core.config import require
from gptjax.core.trees import partition
from gptjax.model.config import ModelConfig
from gptjax.model.parameters import roles
from gptjax.model.transformer import embed_tokens, read_virtual
from gptjax.weights import AdapterKind
from gptjax.weights.virtual import VIRTUAL, PrefixTuning, Prompt, PromptTuning, Virtual


def add_adapter(
    config: ModelConfig, settings: AdapterKind, params: Params, key: Key | None
) -> tuple[Params, Params]:
    """What trains of a model with an adapter in its initial state and what is frozen, as
    `core.trees.partition` gives them.

    Args:
      key: `None` says that the initial state does not matter: shapes may stand for it.

    Raises:
      ConfigError: the adapter is none for this model.
    """
    matters, key = key is not None, jax.random.key(0) if key is None else key
    if not isinstance(settings, PromptTuning):
        return weights.adapt(settings, params, roles(config), key)
    initial = functools.partial(initial_virtual, config, settings)
    virtual = initial(params, key) if matters else jax.eval_shape(initial, params, key)
    if settings.base != "float32":
        params = weights.store(params, roles(config), settings.base, layers_only=True)
    frozen = jax.tree.map(lambda leaf: False, params)
    trains = frozen | {VIRTUAL: jax.tree.map(lambda leaf: True, virtual)}
    return partition(params | {VIRTUAL: virtual}, trains)


def initial_virtual(
    config: ModelConfig, settings: PromptTuning, params: Params, key: Key
) -> Virtual:
    """Virtual tokens that begin as tokens of the text of their settings, or as tokens drawn from
    the vocabulary: as their embeddings, or as the keys and values that the model makes of these.

    Raises:
      ConfigError: the model can't have virtual tokens.
    """
    require_virtual(config)
    ids = jax.random.randint(key, (settings.tokens,), 0, config.vocab_size)
    if settings.ids:
        ids = jnp.resize(jnp.asarray(settings.ids, jnp.int32), settings.tokens)
    wide = dataclasses.replace(config, compute="float32")
    prompt = Prompt(embed_tokens(wide, params, ids[None])[0])
    if not isinstance(settings, PrefixTuning):
        return prompt
    return jax.tree.map(jax.lax.stop_gradient, read_virtual(wide, {**params, VIRTUAL: prompt})[1])


def require_virtual(config: ModelConfig, *, trained: bool = True) -> None:
    """Refuses virtual tokens for models that are no decoder alone, or whose layers have no keys of
    their own.

    Args:
      trained: rows of training will be as long as the context.

    Raises:
      ConfigError: names what stands against it.
    """
    lacks = {
        "is no decoder": not config.causal,
        "has an encoder": config.has_encoder,
        "sees its whole prefix at once (model.prefix_lm)": config.prefix_lm,
        "makes keys of latents (model.latent)": config.latent is not None,
        "has recurrent layers (model.recurrent)": config.recurrent is not None,
    }
    for what, there in lacks.items():
        require(
            not there,
            f"the model {what}, and virtual tokens (prompt and prefix tuning) are for other"
            " decoders; use --adapter lora.",
        )
    require(
        not (trained and config.positions == "learned"),
        "virtual tokens take positions before the text's, and this model's are learned, as many as"
        f" a row has ({config.context}); use --adapter lora.",
    )


def kept_prompt(config: ModelConfig, params: Params) -> Params:
    """The parameters with a prompt's keys and values in place of its embeddings, so that a decoder
    need not read it again for every token."""
    if VIRTUAL not in params:
        return params
    rest, prefix = jax.jit(read_virtual, static_argnums=0)(config, params)
    return {**rest, VIRTUAL: prefix}
