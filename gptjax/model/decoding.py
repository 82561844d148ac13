"""Weights as decoding reads them: once a token, so that their bytes and their order cost, not
arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from gptjax.core.arrays import Params
from gptjax.core.backend import fast_bfloat16
from gptjax.model.config import ModelConfig
from gptjax.model.parameters import axes, roles
from gptjax.model.virtual import kept_prompt
from gptjax.weights.logical import on_mesh
from gptjax.weights.nibbles import laid_out
from gptjax.weights.storage import Prepared, has_packed, store
from gptjax.weights.virtual import VIRTUAL, split_virtual
from gptjax.weights.weight import transposed


def prepare_weights(
    config: ModelConfig, params: Params, stored: Prepared | None = None, mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """Returns the same model with `Quantized` kernels, the parameters of each layer apart, and an
    output of its own for tied embeddings.

    Only for generation: the result can't be trained, saved or exported. Embeddings stay as they
    are, since a token reads a row of them, and so do routers. A prompt of virtual tokens is read.

    Args:
      stored: type of the kernels. `None` means the type that the model computes in, and gives the
        model back as it is where that would save nothing: on an accelerator if it computes in
        float32, on a CPU with fast bfloat16 products if it computes in that.
      mesh: the devices that share the parameters. Kernels are split as before, with their scales;
        layers stay stacked, and `None` as `stored` changes nothing.
    """
    params = kept_prompt(config, params)
    on_cpu = jax.default_backend() == "cpu"
    narrow = config.compute == "bfloat16"
    as_it_is = narrow and fast_bfloat16() if on_cpu else not narrow
    if stored is None and (mesh is not None or as_it_is):
        return config, params
    stored, (params, virtual) = stored or config.compute, split_virtual(dict(params))
    own = {} if virtual is None else {VIRTUAL: virtual}
    if config.tied and not config.classes:
        params["head"] = {"kernel": transposed(params["embedding"]["embedding"])}
        config = dataclasses.replace(config, tied=False)
    if stored != "float32":
        params = store(params, roles(config), stored)
    compute = "float32" if on_cpu else config.compute
    if on_cpu and mesh is None and has_packed(params):
        params = laid_out(params, roles(config))
    if mesh is not None:
        placed = on_mesh(mesh, params | own, axes(config))
        return dataclasses.replace(config, compute=compute), placed
    params["layers"] = _apart(params["layers"], config.mixed)
    if "encoder" in params:
        params["encoder"] = params["encoder"] | {
            "layers": _apart(params["encoder"]["layers"], mixed=False)
        }
    return dataclasses.replace(config, compute=compute, layers="unroll"), params | own


def _apart(layers: Params, mixed: bool) -> Any:
    """A tuple of the layers of each stack: a slice of a stack would be copied for every token."""
    if isinstance(layers, tuple):
        return layers
    if mixed:
        return {kind: _apart(stack, mixed=False) for kind, stack in layers.items()}
    count = jax.tree.leaves(layers)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, n=n: leaf[n], layers) for n in range(count))
