"""Attention by vendors' kernels: Pallas' splash attention on TPU, cuDNN's flash attention on GPU.

Each has a function that computes attention and one that says what the kernel does not support,
which `select_attention` asks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.core.arrays import Array, Float
from gptjax.model.attention.mask import MaskInputs, ScoreConfig, visible
from gptjax.model.config import Layer, ModelConfig
from gptjax.sharding.constrain import current_mesh, device_kind
from gptjax.sharding.zigzag import zigzag_positions


def splash_lacks(config: ModelConfig, length: int, layer: Layer) -> str | None:
    """Returns what splash attention does not support in this case, or `None`."""
    lacks = {
        f"{length} queries, which are not a multiple of 128": length % 128 != 0,
        "an encoder, whose tokens see later ones": not config.causal,
        "a prefix LM, whose prefix sees later tokens": config.prefix_lm,
        f"a layer that sees {layer.sees!r}": layer.sees not in ("all", "window"),
        "a window with sinks": layer.sinks > 0,
        "biases by distance": config.positions_in(layer) in ("alibi", "t5"),
        "dropout of attention weights": config.attention_dropout > 0,
    }
    return next((what for what, here in lacks.items() if here), None)


def splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K value"],
    mask_inputs: MaskInputs,
    how: ScoreConfig,
    sink: Float[Array, " N"] | None,
    kernel: Any = None,
    interpret: bool = False,
) -> Float[Array, "B T N value"]:
    """Computes `attention.attend` with JAX's Pallas kernel for TPU. Tokens must be in order, at
    consecutive positions.

    Args:
      kernel: from `split_splash`, where the queries are sharded over devices.
      interpret: run the kernel step by step on any device, for tests.

    Source: jax.experimental.pallas.ops.tpu.splash_attention.
    """
    from jax.experimental.pallas.ops.tpu import (
        splash_attention as pallas,
    )  # takes a second to import

    rows, width = q.shape[0], q.shape[3]
    kernel = _splash(q.shape[1], q.shape[2], how, 1, interpret) if kernel is None else kernel

    def segments(of: Array | None, where: Array) -> Array:
        known = jnp.where(where < 0, -1, 0 if of is None else of)  # only padding attends to padding
        return jnp.broadcast_to(known, (rows, where.shape[1])).astype(jnp.int32)

    def one_row(q: Array, k: Array, v: Array, of_queries: Array, of_keys: Array) -> Array:
        return kernel(q, k, v, pallas.SegmentIds(of_queries, of_keys), sink)

    scaled = q * jnp.asarray(width**-0.5 if how.scale is None else how.scale, q.dtype)
    by_head = (jnp.swapaxes(x, 1, 2) for x in (scaled, k, v))
    segment_ids = (
        segments(mask_inputs.query_segments, mask_inputs.queries),
        segments(mask_inputs.key_segments, mask_inputs.keys),
    )
    return jnp.swapaxes(jax.vmap(one_row)(*by_head, *segment_ids), 1, 2)


def split_splash(
    q: Float[Array, "B T N H"], how: ScoreConfig, interpret: bool = False, zigzag: bool = False
) -> tuple[Any, Any]:
    """Returns a kernel for queries that are sharded over `context`, and its own sharding; keys are
    in the order of positions, and queries too or in zig-zag order."""
    mesh = current_mesh()
    heads = q.shape[2] // (mesh.shape["tensor"] if q.shape[2] % mesh.shape["tensor"] == 0 else 1)
    kernel = _splash(q.shape[1], heads, how, mesh.shape["context"], interpret, zigzag)
    return kernel, kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, "context")))


def _splash(
    length: int, heads: int, how: ScoreConfig, parts: int, interpret: bool, zigzag: bool = False
) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    square = (length, length)
    mask = (
        pallas.CausalMask(square)
        if how.layer.sees == "all"
        else pallas.LocalMask(square, (how.layer.span - 1, 0), 0)
    )
    if zigzag:  # the kernel skips blocks by the positions that the rows of its mask stand for
        mask.q_sequence = zigzag_positions(length, parts).astype(np.int32)
    piece = length // (2 * parts if zigzag else parts)
    size = next((size for size in (512, 256, 128) if piece % size == 0), 128)
    names = (
        "block_q",
        "block_kv",
        "block_kv_compute",
        "block_q_dkv",
        "block_kv_dkv",
        "block_kv_dkv_compute",
        "block_q_dq",
        "block_kv_dq",
    )
    settings = {
        "block_sizes": pallas.BlockSizes(**dict.fromkeys(names, size)),
        "attn_logits_soft_cap": how.cap,
        "interpret": interpret,
    }
    return pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name="attention",
        **settings,
    )


WIDE = ("H100", "H200", "H20", "GH200", "B100", "B200", "B300", "GB200", "GB300")
"""Devices whose cuDNN attention takes heads of 256: Hopper and Blackwell."""


def cudnn_lacks(config: ModelConfig, length: int, layer: Layer) -> str | None:
    """Returns what cuDNN's attention does not support in this case, or `None`.

    Source: jax._src.cudnn.fused_attention_stablehlo, `check_is_flash_attention`: heads of up to 256
    from Hopper on.
    """
    kind = device_kind()
    widest = 256 if any(name in kind for name in WIDE) else 128
    lacks = {
        f"{config.compute} compute": config.compute != "bfloat16",
        "an encoder, whose tokens see later ones": not config.causal,
        "a prefix LM, whose prefix sees later tokens": config.prefix_lm,
        f"heads of {config.head_dim}, which are not a multiple of 8 up to {widest}": (
            config.head_dim % 8 != 0 or config.head_dim > widest
        ),
        f"{length} queries, an odd number": length % 2 != 0,
        f"a layer that sees {layer.sees!r}": layer.sees not in ("all", "window"),
        "a window with sinks": layer.sinks > 0,
        "biases by distance": config.positions_in(layer) in ("alibi", "t5"),
        "caps of scores": config.attention_cap is not None,
        "learned sinks": config.attention_sink,
        "latent attention": config.latent is not None,
        "dropout of attention weights": config.attention_dropout > 0,
    }
    return next((what for what, here in lacks.items() if here), None)


def cudnn(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask_inputs: MaskInputs,
    how: ScoreConfig,
    implementation: str = "cudnn",
) -> Float[Array, "B T N H"]:
    """Computes `attention.attend` with cuDNN's flash attention. Tokens must be in order, at
    consecutive positions, with padding on the right.

    Segments become a boolean mask [B T T], the only array here that is quadratic in T.

    Args:
      implementation: `xla` computes the same call on any device, for tests.
    """
    mask = None if mask_inputs.query_segments is None else visible(mask_inputs, how.layer)[:, None]
    window = None if how.layer.sees == "all" else (how.layer.span - 1, 0)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        scale=how.scale,
        is_causal=True,
        local_window_size=window,
        implementation=implementation,
    )
