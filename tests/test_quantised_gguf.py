"""Quantised GGUF files: written as the package `gguf` rounds, read as it widens, and kept as they
are stored, bit for bit."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

pytest.importorskip("gguf")
import gguf as published
from gguf import GGMLQuantizationType as Kind
from quantised_files import TINY, tiny

from gptjax import model, weights
from gptjax.cli.main import main
from gptjax.core.config import ConfigError
from gptjax.data import Bytes
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.formats import gguf, gguf_writer
from gptjax.formats.gguf_file import File, Tensor, numbers, open_file
from gptjax.formats.quantised.ggml_blocks import grid_of_blocks
from gptjax.formats.quantised.grid import widened

MODEL = tiny(tokenizer=tok.train_tokenizer(Bytes(), []))
BLOCKS = tuple(dtype for dtype in gguf.KINDS if gguf.KINDS[dtype] not in gguf.PLAIN)
WIDE = [kind for kind in Kind if kind in published.quants._type_traits and kind != Kind.BF16]
"""Formats that `gguf` widens."""


def raw(file: File, tensor: Tensor) -> np.ndarray:
    count, size = published.GGML_QUANT_SIZES[tensor.kind]
    num_bytes = int(np.prod(tensor.shape)) // count * size
    return np.fromfile(file.path, np.uint8, num_bytes, offset=tensor.offset)


@pytest.mark.parametrize("dtype", BLOCKS)
def test_a_quantised_file_holds_what_the_package_rounds_to(dtype, tmp_path):
    gguf.save_gguf(tmp_path / "plain.gguf", MODEL)
    gguf.save_gguf(tmp_path / "a.gguf", MODEL, dtype)
    plain, file = open_file(tmp_path / "plain.gguf"), open_file(tmp_path / "a.gguf")
    rounded = 0
    for name, tensor in file.tensors.items():
        values = numbers(plain, plain.tensors[name])
        rounded += tensor.kind == gguf.KINDS[dtype]
        wanted = published.quantize(values, tensor.kind).view(np.uint8).ravel()
        np.testing.assert_array_equal(raw(file, tensor), wanted, err_msg=name)
    assert rounded == len([name for name in file.tensors if "norm" not in name])


@pytest.mark.parametrize("dtype", BLOCKS)
def test_a_quantised_file_is_kept_as_it_is_stored(dtype, tmp_path):
    """Every kernel and the tables, in its own order of heads: the numbers that are read widened."""
    gguf.save_gguf(tmp_path / "a.gguf", MODEL, dtype)
    wide, kept = (gguf.load_gguf(tmp_path / "a.gguf", packed=packed) for packed in (False, True))
    found = jax.tree.map(weights.dense, kept.params, is_leaf=is_quantised)
    jax.tree.map(np.testing.assert_array_equal, found, wide.params)
    narrow = [x for x in jax.tree.leaves(kept.params, is_leaf=is_quantised) if is_quantised(x)]
    assert len(narrow) == 9
    four = dtype.startswith("q4")
    assert {x.values.dtype.name for x in narrow} == {
        ("uint4" if four else "uint8") if dtype.endswith("1") else ("int4" if four else "int8")
    }


def is_quantised(leaf) -> bool:
    return isinstance(leaf, weights.Quantized)


@pytest.mark.parametrize("kind", WIDE, ids=lambda kind: kind.name)
def test_every_block_format_is_widened_as_the_package_does(kind, tmp_path, monkeypatch):
    """Random bytes as blocks, in a file; more than one slab."""
    count, size = published.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(kind).integers(0, 256, (90_000 // count, size), np.uint8)
    with np.errstate(all="ignore"):
        every = published.dequantize(blocks, kind)
    sound = np.isfinite(every).all(axis=1) & (np.abs(every).max(axis=1) < 1e30)
    blocks, wanted = blocks[sound], every[sound]
    assert wanted.size > 70_000
    shape = (len(blocks), count)
    planned = [gguf_writer.Planned("x", shape, kind)]
    monkeypatch.setattr(published, "quantize", lambda values, kind: blocks)
    gguf_writer.write_gguf(tmp_path / "a.gguf", "llama", {}, planned, [np.empty((1, 1))])
    file = open_file(tmp_path / "a.gguf")
    np.testing.assert_array_equal(numbers(file, file.tensors["x"]), wanted)
    grid = grid_of_blocks(file, file.tensors["x"])
    kept = kind in (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
    kept |= kind in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K)
    assert (grid is not None) == kept
    if kept:
        np.testing.assert_array_equal(widened(grid), wanted)


def test_scales_that_are_not_finite_or_gone_are_refused(tmp_path):
    gguf.save_gguf(tmp_path / "a.gguf", MODEL, "q4_0")
    file = open_file(tmp_path / "a.gguf")
    tensor = file.tensors["blk.1.ffn_up.weight"]
    data = bytearray(file.path.read_bytes())
    data[tensor.offset : tensor.offset + 2] = np.float16(np.inf).tobytes()
    file.path.write_bytes(data)
    for packed in (False, True):
        with pytest.raises(ConfigError, match=r"blk\.1\.ffn_up\.weight' has numbers that are not"):
            gguf.load_gguf(file.path, packed=packed)
    file.path.write_bytes(data[: tensor.offset + 40])  # after its header was read
    with pytest.raises(ConfigError, match="has become shorter"):
        grid_of_blocks(file, tensor)


def test_the_command_writes_and_runs_quantised_files(tmp_path, capsys):
    """`convert --dtype q4_0`, then `sample` with and without widening."""
    gguf.save_gguf(tmp_path / "a.gguf", MODEL)
    path = str(tmp_path / "b.gguf")
    flags = ["--dtype", "q4_0"]
    assert main(["convert", str(tmp_path / "a.gguf"), path, *flags]) == 0
    assert open_file(path).fields["general.file_type"] == 2
    ask = ["--prompt", "to be", "--temperature", "0", "--new-tokens", "8"]
    texts = []
    for more in ([], ["--packed"]):
        capsys.readouterr()
        assert main(["sample", path, *ask, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    capsys.readouterr()
    assert main(["convert", path, str(tmp_path / "c.gguf"), "--dtype", "q4_k"]) == 2
    assert "can be float32" in capsys.readouterr().err


def test_a_kernel_with_minima_is_not_widened_to_be_multiplied():
    """A loop over tokens reads it as it is stored; the product is that of the array."""
    draw, size = np.random.default_rng(0), 1024
    values = jax.numpy.asarray(draw.integers(0, 16, (size, size)), jax.numpy.uint4)
    scales, minima = jax.numpy.asarray(draw.normal(size=(2, size // 32, size)) / size, "float32")
    weight = weights.Quantized(values, scales, minima)
    x = jax.numpy.asarray(draw.normal(size=(1, size)), "float32")

    @jax.jit
    def loop(weight, x):
        return jax.lax.fori_loop(0, 3, lambda _, y: weights.multiply(weight, y), x)

    used = loop.lower(weight, x).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * size * size
    array = np.asarray(weights.dense(weight), np.float64)
    np.testing.assert_allclose(weights.multiply(weight, x), x @ array, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, ids):
    hidden = model.forward(config, params, ids).hidden
    return model.unembed(config, params, hidden)


def test_a_model_that_is_kept_as_it_is_stored_computes_the_same(tmp_path):
    """Tied embeddings too: the look-up and the output read one quantised table."""
    config = dataclasses.replace(TINY, tied=True, layers="scan")
    gguf.save_gguf(tmp_path / "a.gguf", tiny(config, MODEL.tokenizer), "q4_1")
    wide, kept = (gguf.load_gguf(tmp_path / "a.gguf", packed=packed) for packed in (False, True))
    assert is_quantised(kept.params["embedding"]["embedding"])
    ids = np.arange(32)[None]
    one, other = (
        logits(dataclasses.replace(m.config, compute="float32"), m.params, ids)
        for m in (wide, kept)
    )
    np.testing.assert_allclose(one, other, atol=2e-5)
