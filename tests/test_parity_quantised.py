"""Quantised weights as the libraries that write them widen them, bit for bit.

A library rounds (value − zero) · scale to the type of the scales; ours is the same product in
float32, so that rounding it gives the library's number.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from quantised_files import CASES, MXFP4, TINY, gpt_oss, gptq, tiny, write_pair

from gptjax import formats, model
from gptjax.data import Bytes
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.formats.quantised import assembled, scheme_of

torch = pytest.importorskip(
    "torch", reason="parity is measured against torch: pip install 'gptjax[test-parity]'"
)
torch.set_num_threads(1)


class Held:
    """A tensor of torch, as the reader of a file sees it."""

    NAMES: ClassVar = {
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int32: "I32",
        torch.int64: "I64",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.float8_e4m3fn: "F8_E4M3",
    }

    def __init__(self, tensor: Any):
        self.tensor, self.shape = tensor, tuple(tensor.shape)
        self.dtype = self.NAMES[tensor.dtype]

    def take(self) -> np.ndarray:
        if self.tensor.dtype == torch.bfloat16:
            return self.tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
        if self.tensor.dtype == torch.float8_e4m3fn:
            return self.tensor.contiguous().view(torch.int8).numpy().view(jnp.float8_e4m3fn)
        return self.tensor.numpy()


def ours(settings: dict, tensors: dict[str, Any], weight: str = "x.weight") -> np.ndarray:
    """What we read of the tensors of one weight."""
    scheme = scheme_of({"quantization_config": settings}, "config.json")[1]
    found = assembled({f"x{end}": Held(t) for end, t in tensors.items()}, scheme, "a")
    assert found.keys() == {weight}
    return found[weight].take()


def same_bits(found: np.ndarray, theirs: Any) -> None:
    """Ours, rounded to their type, is theirs."""
    rounded = torch.from_numpy(found).to(theirs.dtype)
    assert rounded.shape == theirs.shape
    assert torch.equal(rounded.view(torch.uint8), theirs.contiguous().view(torch.uint8))


def matrix(seed: int = 0) -> Any:
    return torch.randn(64, 96, generator=torch.Generator().manual_seed(seed))


# --- compressed-tensors

COMPRESSED = [name for name in CASES if CASES[name].settings["quant_method"].startswith("comp")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", COMPRESSED)
def test_what_compressed_tensors_writes_is_read_as_it_does(name, dtype, record_property):
    library = pytest.importorskip(
        "compressed_tensors", reason="pip install 'gptjax[test-parity]' brings its library"
    )
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.utils import calculate_qparams

    if CASES[name].settings["config_groups"]["group_0"]["weights"].get("group_size") == 40:
        pytest.skip("the library has no groups that do not divide the inputs")
    settings = CASES[name].settings
    scheme = QuantizationConfig.model_validate(settings).config_groups["group_0"]
    args, weight = scheme.weights, matrix().to(getattr(torch, dtype))
    rows, columns = args.block_structure or (1, args.group_size or 96)
    if args.strategy == "tensor":
        rows, columns = weight.shape
    apart = weight.reshape(64 // rows, rows, 96 // columns, columns)
    scale, zero = calculate_qparams(apart.amin((1, 3)), apart.amax((1, 3)), args)
    if args.strategy == "tensor":
        scale, zero = scale.reshape(1), zero.reshape(1)
    state = {"weight": weight, "weight_scale": scale}
    if not args.symmetric:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.get_value_from_registry(settings["format"])
    stored = compressor.compress(state, scheme)
    theirs = compressor.decompress(stored, scheme)["weight"]
    same_bits(ours(settings, {f".{end}": t for end, t in stored.items()}), theirs)
    record_property("figure", f"compressed-tensors {library.__version__}: {name}, {dtype}: equal")


# --- transformers


def test_experts_of_mxfp4_are_those_of_transformers(record_property):
    transformers = pytest.importorskip("transformers")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 24, 3, 16), generator=draw, dtype=torch.uint8)
    scales = torch.randint(60, 200, (2, 24, 3), generator=draw, dtype=torch.uint8)
    tensors = {"_blocks": blocks, "_scales": scales}
    for dtype in (torch.bfloat16, torch.float32):
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
        same_bits(ours({"quant_method": "mxfp4"}, tensors, "x"), theirs)
    record_property("figure", f"transformers {transformers.__version__}: MXFP4 equal")


@pytest.mark.parametrize("name", ["fp8 in blocks", "fp8 whole"])
def test_fp8_is_that_of_transformers(name, record_property):
    transformers = pytest.importorskip("transformers")
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    found, _ = CASES[name].store(matrix().numpy())
    tensors = {
        end: torch.from_numpy(part.view(np.uint8)).view(torch.float8_e4m3fn)
        if end == ".weight"
        else torch.from_numpy(part)
        for end, part in found.items()
    }
    scales = tensors.get(".weight_scale_inv", tensors.get(".weight_scale"))
    settings = CASES[name].settings
    for dtype in (torch.float32, torch.bfloat16):
        theirs = Fp8Dequantize(None)._dequantize_one(tensors[".weight"], scales, dtype)
        same_bits(ours(settings, tensors), theirs)
    record_property("figure", f"transformers {transformers.__version__}: {name} equal")


@pytest.mark.parametrize("name", ["fp8", "mxfp4"])
def test_a_directory_has_the_logits_of_transformers(name, tmp_path, record_property):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers opens no quantised model without it")
    case, config, settings = {
        "fp8": (
            CASES["fp8 in blocks"],
            TINY,
            transformers.FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True),
        ),
        "mxfp4": (MXFP4, gpt_oss(), transformers.Mxfp4Config(dequantize=True)),
    }[name]
    opened = tiny(config, tok.train_tokenizer(Bytes(), []))
    write_pair(case, opened, tmp_path / "a", tmp_path / "b")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "a", quantization_config=settings, dtype=torch.float32
    )
    ids = np.random.default_rng(0).integers(0, 257, (1, 40))
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids)).logits[0].numpy()
    read = formats.load_model(tmp_path / "a")
    hidden = model.forward(read.config, read.params, jnp.asarray(ids)).hidden
    found = np.asarray(model.unembed(read.config, read.params, hidden)[0])
    difference = float(np.abs(found - wanted).max())
    record_property("figure", f"{name}: largest difference of a logit {difference:.1e}")
    assert difference <= 1e-4


# --- AutoAWQ and GPTQModel, whose packages need not be importable: one file of theirs is run


def module_of(package: str, path: str) -> Any:
    """A file of an installed package, without the package's own imports."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places or not (file := Path(places[0]) / path).is_file():
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")
    found = importlib.util.spec_from_file_location("_reference", file)
    loaded = importlib.util.module_from_spec(found)
    sys.modules["_reference"] = loaded
    found.loader.exec_module(loaded)
    return loaded


def test_awq_is_that_of_autoawq(record_property):
    reference = module_of("awq", "utils/packing_utils.py")
    found, _ = CASES["awq"].store(matrix().numpy())
    tensors = {end: torch.from_numpy(part) for end, part in found.items()}
    parts = [tensors[end] for end in (".qweight", ".qzeros", ".scales")]
    theirs = reference.dequantize_gemm(*parts, 4, 32)
    same_bits(ours(CASES["awq"].settings, tensors), theirs.T)
    record_property("figure", "AutoAWQ's dequantize_gemm: equal")


def methods_of(package: str, path: str, names: tuple[str, ...], given: dict[str, Any]) -> Any:
    """An object with these methods of a class of an installed package, and nothing else of it."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places or not (file := Path(places[0]) / path).is_file():
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in names]
    assert {node.name for node in found} == set(names)
    scope: dict[str, Any] = dict(given)
    exec(compile(ast.Module(found, []), str(file), "exec"), scope)
    return type("Reference", (), {name: scope[name] for name in names})()


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((name, CASES[name]) for name in CASES if name.startswith("gptq") and "3" not in name),
        ("gptq v2 3 bits", gptq(3, 32, v2=True)),
    ],
)
def test_gptq_is_that_of_gptqmodel(name, case, record_property):
    settings, bits = case.settings, case.settings["bits"]
    names = ("dequantize_weight", "_dequantize_from_codes")
    given = {"t": torch, "_torch_right_shift": torch.bitwise_right_shift}
    given["_torch_left_shift"] = torch.bitwise_left_shift
    theirs = methods_of("gptqmodel", "nn_modules/qlinear/__init__.py", names, given)
    found, _ = case.store(matrix().numpy())
    tensors = {end: torch.from_numpy(part) for end, part in found.items()}
    steps = [[*range(0, 32, bits)]]
    if bits == 3:  # 32 numbers in three words
        steps = [[*range(0, 31, 3), 0], [0, *range(1, 32, 3)], [0, *range(2, 33, 3)]]
    shifts = torch.tensor(steps, dtype=torch.int32)
    zeros = tensors[".qzeros"]
    if "checkpoint_format" not in settings:  # what their converter to the second version adds
        ones = sum(1 << at for at in steps[0])
        zeros = (zeros.numpy().view(np.uint32) + np.uint32(ones)).view(np.int32)
        zeros = torch.from_numpy(zeros)
    groups = torch.arange(96) // (96 if settings["group_size"] == -1 else settings["group_size"])
    fields = {
        "planar": False,
        "_init_wf_unsqueeze_buffers": lambda: None,
        "wf_unsqueeze_zero": shifts[None],
        "wf_unsqueeze_neg_one": shifts[None, ..., None] if bits == 3 else shifts[..., None],
        "bits": bits,
        "pack_factor": 32 // bits,
        "maxq": 2**bits - 1,
        "dequant_dtype": torch.int16 if bits == 8 else torch.int8,
        "in_features": 96,
        "qweight": tensors[".qweight"],
        "qzeros": zeros,
        "scales": tensors[".scales"],
        "g_idx": tensors.get(".g_idx", groups),
    }
    vars(theirs).update(fields)
    same_bits(ours(settings, tensors), theirs.dequantize_weight().T)
    record_property("figure", f"GPTQModel's dequantize_weight: {name} equal")
