"""Quantised checkpoints: each is read as the numbers that its format's formula gives, bit for bit;
a damaged or unknown one is refused in one line."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
from quantised_files import (
    CASES,
    MXFP4,
    TINY,
    WIDTHS,
    Case,
    Raw,
    gpt_oss,
    mxfp4,
    raw_of,
    tiny,
    write_file,
    write_pair,
    write_raw,
)
from test_safetensors import memory

import gptjax
from gptjax import formats, weights
from gptjax.cli.main import main
from gptjax.core.config import ConfigError, require
from gptjax.data import Bytes
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.formats import gguf, layout, safetensors
from gptjax.formats.huggingface_families import FAMILIES
from gptjax.formats.huggingface_files import StoredTensor, read_tensors
from gptjax.formats.quantised import assembled, scheme_of
from gptjax.runs.open import open_tokenizer
from gptjax.sharding.mesh import MeshConfig

MODEL = tiny(tokenizer=tok.train_tokenizer(Bytes(), []))


def leaves(params) -> dict[str, np.ndarray]:
    pairs = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in pairs}


@pytest.mark.parametrize("name", CASES)
def test_a_quantised_checkpoint_is_read_as_the_numbers_of_its_formula(name, tmp_path):
    """Widened to float32 or kept as it is stored: the very numbers either way."""
    write_pair(CASES[name], MODEL, tmp_path / "a", tmp_path / "b")
    one, plain = (formats.load_model(tmp_path / folder).params for folder in "ab")
    wanted, found = leaves(plain), leaves(one)
    assert found.keys() == wanted.keys()
    for path, values in wanted.items():
        np.testing.assert_array_equal(found[path], values, err_msg=path)
    if not CASES[name].held:
        with pytest.raises(ConfigError, match="no quantised weights that can be kept"):
            formats.load_model(tmp_path / "a", packed=True)
        return
    kept = formats.load_model(tmp_path / "a", packed=True).params
    kernels = {"attention": ("query", "key", "value", "out"), "mlp": ("gate", "up", "down")}
    for part, each in kernels.items():
        for one in each:
            weight = kept["layers"][part][one]["kernel"]
            assert isinstance(weight, weights.Quantized), (part, one)
            numbers = np.asarray(weights.dense(weight))
            np.testing.assert_array_equal(numbers, plain["layers"][part][one]["kernel"])


def test_kept_weights_are_split_over_a_mesh_with_their_scales(tmp_path):
    write_pair(CASES["awq"], MODEL, tmp_path / "a", tmp_path / "b")
    plain = formats.load_model(tmp_path / "b").params["layers"]["mlp"]["up"]["kernel"]
    for mesh in (MeshConfig(tensor=2), MeshConfig(fsdp=2)):
        kept = gptjax.load(tmp_path / "a", mesh=mesh, packed=True)
        weight = kept.params["layers"]["mlp"]["up"]["kernel"]
        for leaf in (weight.values, weight.scales, weight.offsets):
            assert leaf.addressable_shards[0].data.size == leaf.size // 2
        np.testing.assert_array_equal(weights.dense(weight), plain)


def test_a_part_of_a_joined_weight_has_its_own_scales(tmp_path):
    """Phi-3's query, key and value are one tensor, its gate and up another; every head's rows keep
    their scales."""
    joined = tiny(TINY)
    joined = joined._replace(about=formats.About(family="phi3"))
    write_pair(CASES["gptq"], joined, tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "a/config.json").read_text())["model_type"] == "phi3"
    kept = formats.load_model(tmp_path / "a", packed=True).params["layers"]
    plain = formats.load_model(tmp_path / "b").params["layers"]
    for part, one in (("attention", "key"), ("attention", "value"), ("mlp", "up")):
        weight = kept[part][one]["kernel"]
        assert isinstance(weight, weights.Quantized)
        np.testing.assert_array_equal(weights.dense(weight), plain[part][one]["kernel"])


def test_experts_of_mxfp4_are_read_as_the_numbers_of_the_formula(tmp_path):
    kernels = np.random.default_rng(0).normal(size=(3, 64, 16)).astype(np.float32)
    tensors, wanted = mxfp4(kernels)
    write_file(tmp_path / "a", {f"experts.up{end}": part for end, part in tensors.items()})
    file = safetensors.File(tmp_path / "a")
    raw = {n: StoredTensor(file, n, file.tensors[n].shape) for n in file.tensors}
    scheme = scheme_of({"quantization_config": {"quant_method": "mxfp4"}}, "config.json")[1]
    found = assembled(raw, scheme, "a")
    assert found.keys() == {"experts.up"} and found["experts.up"].shape == kernels.shape
    np.testing.assert_array_equal(found["experts.up"].take(), wanted)
    assert found["experts.up"].grid().bits == 4


def test_gpt_oss_is_read_and_run_as_it_is_stored(tmp_path, capsys):
    """Its gate and up alternate in one tensor, whose columns keep their scales."""
    write_pair(MXFP4, tiny(gpt_oss(), MODEL.tokenizer), tmp_path / "a", tmp_path / "b")
    one, plain = (formats.load_model(tmp_path / folder).params for folder in "ab")
    jax.tree.map(np.testing.assert_array_equal, one, plain)
    kept = formats.load_model(tmp_path / "a", packed=True).params
    for name in ("gate", "up", "down"):
        weight = kept["layers"]["moe"]["experts"][name]["kernel"]
        assert weight.values.dtype.name == "float4_e2m1fn"
        wanted = plain["layers"]["moe"]["experts"][name]["kernel"]
        np.testing.assert_array_equal(weights.dense(weight), wanted)
    ask = ["--prompt", "to be", "--temperature", "0", "--new-tokens", "8"]
    texts = []
    for flags in (["a"], ["b"], ["a", "--packed"]):
        assert main(["sample", str(tmp_path / flags[0]), *flags[1:], *ask]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]


# --- commands -------------------------------------------------------------------------------------

COMMANDS = ("fp8 in blocks", "gptq", "awq", "int4 packed", "int8", "float8")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_open_a_quantised_checkpoint(name, tmp_path, capsys, record_property):
    write_pair(CASES[name], MODEL, tmp_path / "a", tmp_path / "b")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    ask = ["--prompt", "to be", "--temperature", "0", "--new-tokens", "8"]
    texts = []
    for flags in ([a], [b], [a, "--packed"]):
        assert main(["sample", *flags, *ask]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    assert main(["convert", a, str(tmp_path / "c")]) == 0
    assert "largest difference of a logit: 0.00e+00" in capsys.readouterr().out
    one, other = (leaves(formats.load_model(tmp_path / folder).params) for folder in "bc")
    assert all(np.array_equal(one[path], other[path]) for path in one)


def test_weights_of_which_none_is_quantised_can_t_be_kept_as_they_are(tmp_path, monkeypatch):
    """Which is said before one of them is read."""
    write_pair(CASES["gptq"], MODEL, tmp_path / "a", tmp_path / "b")
    gguf.save_gguf(tmp_path / "c.gguf", MODEL)
    begun, read = [], layout.read_params
    monkeypatch.setattr(layout, "read_params", lambda *given: begun.append(1) or read(*given))
    for path in (tmp_path / "b", tmp_path / "c.gguf"):
        with pytest.raises(ConfigError, match="omit --packed"):
            gptjax.load(path, packed=True)
    assert not begun


def test_a_directory_with_a_tokenizer_alone_is_opened_for_it(tmp_path):
    """And is no model, which the error says."""
    write_pair(CASES["gptq"], MODEL, tmp_path / "a", tmp_path / "b")
    (tmp_path / "t").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "t" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    tokenizer = open_tokenizer(tmp_path / "t")
    assert tokenizer.decode(tokenizer.encode("to be")) == "to be"
    with pytest.raises(ConfigError, match="has a tokenizer and no model"):
        gptjax.load(tmp_path / "t")


# --- what is refused ------------------------------------------------------------------------------


def changed(settings: dict, path: tuple[str, ...], value: object) -> dict:
    """Settings with one of them changed."""
    new = copy.deepcopy(settings)
    at = new
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return new


WEIGHTS = ("config_groups", "group_0", "weights")
UNKNOWN = (
    ("gptq", ("quant_method",), "gptk", "'gptk'; known are .* Did you mean 'gptq'"),
    ("gptq", ("quant_method",), ["gptq"], "known are fp8, mxfp4"),
    ("gptq", ("bits",), 5, "'bits': 5"),
    ("gptq", ("group_size",), 0, "'group_size': 0"),
    ("gptq", ("checkpoint_format",), "marlin", "'checkpoint_format': 'marlin'"),
    ("gptq", ("dynamic",), {"x": {"bits": 8}}, "'dynamic': .*not known here"),
    ("gptq", ("is_marlin_format",), True, "'is_marlin_format': True"),
    ("awq", ("version",), "gemv", "'version': 'gemv'"),
    ("awq", ("zero_point",), False, "'zero_point': False"),
    ("awq", ("rotation",), "hadamard", "'rotation': hadamard.*not known here"),
    ("fp8 in blocks", ("weight_block_size",), [128], "'weight_block_size'"),
    ("fp8 in blocks", ("fmt",), "e3m4", "'fmt': 'e3m4'"),
    ("fp8 in blocks", ("expert_dtype",), "fp4", "'expert_dtype': 'fp4'"),
    ("int8", ("format",), "marlin-24", "'format': 'marlin-24'"),
    ("int8", ("transform_config",), {"r1": {}}, "transform_config"),
    ("int8", ("quantization_status",), "frozen", "'quantization_status': 'frozen'"),
    ("int8", (*WEIGHTS, "strategy"), "tensor_group", "'strategy': 'tensor_group'"),
    ("int8", (*WEIGHTS, "num_bits"), 6, "6 bits of the type 'int'"),
    ("int8", (*WEIGHTS, "lattice"), "e8", "'lattice': e8.*not known here"),
    ("int4 packed", (*WEIGHTS, "type"), "float", "floats, which pack-quantized can't hold"),
    ("int4 packed", ("config_groups",), {}, "config_groups that are no groups"),
)


@pytest.mark.parametrize(
    ("name", "path", "value", "said"),
    UNKNOWN,
    ids=[f"{name} {path[-1]} {str(value)[:10]}" for name, path, value, _ in UNKNOWN],
)
def test_a_setting_that_is_not_known_is_refused_by_name(name, path, value, said):
    settings = changed(CASES[name].settings, path, value)
    with pytest.raises(ConfigError, match=said) as caught:
        scheme_of({"quantization_config": settings}, "a/config.json")
    assert "quantization_config in a/config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- damage

FUZZED = {
    "fp8": CASES["fp8 in ragged blocks"],
    "mxfp4": MXFP4,
    "gptq": CASES["gptq act-order"],
    "awq": CASES["awq"],
    "compressed-tensors, packed": CASES["int4 packed asymmetric"],
    "compressed-tensors, int8": CASES["int8 asymmetric"],
}
SCALES = ("F32", "F16", "BF16", "F8_E8M0")


def damaged(draw: random.Random, tensors: dict[str, Raw]) -> tuple[dict[str, Raw], bool]:
    """The tensors with one of them changed, and whether a size, name or type is wrong now."""
    name = draw.choice(sorted(tensors))
    kind, shape, data = tensors[name]
    new = dict(tensors)
    match draw.randrange(6):
        case 0:  # a dimension of another size, with as many bytes as that needs
            axis = draw.randrange(max(len(shape), 1))
            size = (shape or [1])[axis] + draw.choice((-8, -1, 1, 8, 32, 1 << 12))
            new[name] = Raw(kind, [*shape[:axis], max(size, 0), *shape[axis + 1 :]], data)
        case 1:  # another type
            other = draw.choice(sorted(WIDTHS.keys() - {kind}))
            new[name] = Raw(other, shape, data)
            return new, not ((kind in SCALES and other in SCALES) or "_shape" in name)
        case 2:
            del new[name]
        case 3:
            new[name[:-1] + draw.choice("abyz_")] = new.pop(name)
        case 4:  # dimensions in another order, or one more
            other = draw.choice((shape[::-1], [1, *shape], [*shape, 1]))
            new[name] = Raw(kind, other, data)
            return new, other != shape
        case _:  # a few bits of the numbers
            raw = bytearray(data)
            for _ in range(draw.choice((1, 4))):
                at = draw.randrange(len(raw))
                raw[at] = draw.choice((raw[at] ^ 1 << draw.randrange(8), 0xFF, 0x7F))
            new[name] = Raw(kind, shape, bytes(raw))
            return new, False
    return new, True


def fuzz(case: Case, count: int, folder: Path) -> tuple[int, int]:
    """Reads a weight so often with random damage; returns how many were refused, and how many had
    a wrong size, name or type."""
    scheme = scheme_of({"quantization_config": case.settings}, "a/config.json")[1]
    matrix = np.random.default_rng(1).normal(size=(64, 96)).astype(np.float32)
    stored, _ = case.store(matrix.reshape(2, 32, 96) if scheme.method == "mxfp4" else matrix)
    tensors = raw_of({f"model.x{end}": part for end, part in stored.items()})
    file, family = folder / "model.safetensors", FAMILIES["llama"]
    write_raw(file, tensors)
    opened = read_tensors(folder, family, scheme)
    wanted = {name: tensor.shape for name, tensor in opened.items()}
    draw, refused, wrong = random.Random(28), 0, 0
    for _ in range(count):
        new, bad = damaged(draw, tensors)
        write_raw(file, new)
        wrong += bad
        try:
            found = read_tensors(folder, family, scheme)
            require({name: t.shape for name, t in found.items()} == wanted, "shapes")
            assert all(np.isfinite(tensor.take()).all() for tensor in found.values())
            assert not bad, {name: raw[:2] for name, raw in new.items()}
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600, error
    return refused, wrong


@pytest.mark.parametrize("name", FUZZED)
@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_damage_to_a_quantised_weight_is_refused_or_harmless(
    name, count, tmp_path, record_property
):
    before = memory(begin=True)
    refused, wrong = fuzz(FUZZED[name], count, tmp_path)
    grown = memory() - before
    record_property(
        "figure",
        f"{name}: {count:,} damaged weights, {refused:,} refused in one line; {wrong:,} had a wrong"
        f" size, name or type, and none of those was read; memory +{grown:.0f} MB",
    )
    assert refused >= wrong > count / 2 and grown < 50


def damaged_settings(draw: random.Random, settings: dict) -> dict:
    """Settings with one value, at any depth, replaced, removed or added."""
    new = copy.deepcopy(settings)
    places = [new]
    for place in places:
        places += [value for value in place.values() if isinstance(value, dict)]
    place = draw.choice(places)
    values = (None, True, -1, 0, 3, 1 << 40, 0.5, "", "x", "int8", [], [1], [128, -1], {}, {"a": 1})
    key = draw.choice([*place, "zzz"])
    if draw.random() < 0.2:
        place.pop(key, None)
    else:
        place[key] = draw.choice(values)
    return new


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_damage_to_settings_is_refused_or_harmless(count, record_property):
    draw, refused = random.Random(28), 0
    cases = list(FUZZED.values())
    for number in range(count):
        settings = damaged_settings(draw, cases[number % len(cases)].settings)
        try:
            scheme_of({"quantization_config": settings}, "a/config.json")
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600, error
            assert "a/config.json" in str(error)
    record_property("figure", f"{count:,} damaged settings, {refused:,} refused in one line")
    assert refused > count / 4
