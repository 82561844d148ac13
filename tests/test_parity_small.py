"""Grids as other libraries have them: qwix's values and scales, and files that compressed-tensors
widens to the numbers that were written."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantised_files import TINY, tiny

from gptjax import compress, formats
from gptjax.formats import layout, safetensors
from gptjax.formats.huggingface_families import FAMILIES
from gptjax.formats.quantised.writing import save_packed
from gptjax.weights import dense
from gptjax.weights.rounding import Rounding, rounded
from gptjax.weights.weight import MATRIX

KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(256, 96)), jnp.float32)


@pytest.mark.parametrize("group", [None, 32, 64])
@pytest.mark.parametrize("kind", ["int8", "int4", "int3", "int2", "nf4"])
def test_qwixs_codes_and_scales_are_equal(kind, group, record_property):
    qwix = pytest.importorskip("qwix", reason="pip install --no-deps qwix")
    theirs = {"int8": jnp.int8, "int4": jnp.int4}.get(kind, kind)
    tiled = {} if group is None else {0: group}
    found = qwix.quantize(jnp.asarray(KERNEL), theirs, channelwise_axes=[1], tiled_axes=tiled)
    grid = Rounding(kind, group, convention="own" if kind == "nf4" else "qwix")
    ours = rounded(grid, KERNEL, MATRIX)
    np.testing.assert_array_equal(
        np.asarray(ours.values, np.int32), np.asarray(found.qvalue, np.int32)
    )
    np.testing.assert_array_equal(ours.scales, found.scale)
    record_property("figure", f"qwix, {kind}, groups of {group}: codes and scales equal")


WAYS = {
    "int4": Rounding("int4", 32, scale="float16"),
    "int4 asymmetric": Rounding("int4", 32, "zero", scale="float16"),
    "int8": Rounding("int8", None, scale="float16"),
}


@pytest.mark.parametrize("name", WAYS)
def test_compressed_tensors_widens_our_files_to_the_numbers_written(
    name, tmp_path, record_property
):
    torch = pytest.importorskip("torch", reason="pip install 'gptjax[test-parity]'")
    library = pytest.importorskip(
        "compressed_tensors", reason="pip install 'gptjax[test-parity]' brings it"
    )
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    opened = tiny(TINY)
    opened = opened._replace(params=jax.tree.map(jnp.asarray, opened.params))
    how = compress.Quantising(WAYS[name], outer="same")
    narrow = compress.quantise_weights(opened.config, opened.params, how)
    save_packed(tmp_path / "out", opened._replace(params=narrow), "float32")
    data = json.loads((tmp_path / "out/config.json").read_text())
    settings = QuantizationConfig.model_validate(data["quantization_config"])
    (scheme,) = settings.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(settings.format)
    file = safetensors.File(tmp_path / "out/model.safetensors")
    wide = jax.tree.map(dense, narrow, is_leaf=lambda leaf: not isinstance(leaf, dict))
    places = FAMILIES[data["model_type"]].places(formats.load_model(tmp_path / "out").config)
    compared = 0
    for tensor, wanted in layout.tensors(wide, places):
        start = tensor.removesuffix(".weight")
        stored = {
            key.removeprefix(f"{start}."): torch.from_numpy(file.take(key).copy())
            for key in file.tensors
            if key.startswith(f"{start}.weight_")
        }
        if not stored:
            continue
        theirs = compressor.decompress(stored, scheme)["weight"]
        np.testing.assert_array_equal(theirs.float().numpy(), wanted.astype(np.float16))
        compared += 1
    assert compared == 16
    record_property("figure", f"compressed-tensors {library.__version__}, {name}: equal")
