"""Writes tests/golden/peft with PEFT itself: tiny models, adapters of several kinds, and what PEFT
computes with them.

    python tests/golden/make_peft.py          needs the extra test-posttrain (torch, peft)

`expected.safetensors` holds logits, gradients and merged weights; its metadata name the versions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent / "peft"
IDS = torch.arange(3 * 7).reshape(3, 7) * 5 % 40
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "lora": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": LINEAR}),
    "rslora": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 3,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 2},
            "layers_to_transform": [1],
        },
    ),
    "dora": (
        "llama",
        {
            "r": 2,
            "lora_alpha": 3,
            "use_dora": True,
            "target_modules": LINEAR,
            "modules_to_save": ["lm_head"],
        },
    ),
    "fused": (
        "gpt2",
        {
            "r": 3,
            "lora_alpha": 4,
            "fan_in_fan_out": True,
            "target_modules": ["c_attn", "c_proj", "c_fc"],
        },
    ),
}

VIRTUAL = {
    "prompt": ("gpt2", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prefix": ("llama", PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
}


def base(kind: str) -> torch.nn.Module:
    """A tiny model."""
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 40}
        zero = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**sizes, **zero)).eval()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
    config = LlamaConfig(**sizes, **heads, initializer_range=0.2, tie_word_embeddings=False)
    return LlamaForCausalLM(config).eval()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Gives every trained value some noise, so that no product is zero."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)


def main() -> None:
    """Writes everything anew."""
    shutil.rmtree(HERE, ignore_errors=True)
    expected: dict[str, torch.Tensor] = {}
    for kind in ("llama", "gpt2"):
        base(kind).save_pretrained(HERE / kind)
    for seed, (name, (kind, settings)) in enumerate(CASES.items()):
        model = get_peft_model(base(kind), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
        randomise(model, seed)
        model.peft_config["default"].base_model_name_or_path = f"../{kind}"
        model.save_pretrained(HERE / name)
        logits = model(IDS).logits
        expected[f"{name}/logits"] = logits.detach()
        logits.square().mean().backward()
        for path, parameter in model.named_parameters():
            if parameter.grad is not None and "lora_" in path:
                expected[f"{name}/gradient/{path.replace('.default', '')}"] = parameter.grad
        merged = model.merge_and_unload()
        weight = merged.get_submodule(
            "transformer.h.1.attn.c_attn" if kind == "gpt2" else "model.layers.1.self_attn.q_proj"
        ).weight
        expected[f"{name}/merged"] = weight.detach()
    for name, (kind, settings) in VIRTUAL.items():
        torch.manual_seed(len(expected))
        model = get_peft_model(base(kind), settings).eval()
        model.peft_config["default"].base_model_name_or_path = f"../{kind}"
        model.save_pretrained(HERE / name)
        logits = model(IDS).logits[:, -IDS.shape[1] :]
        expected[f"{name}/logits"] = logits.detach()
        logits.square().mean().backward()
        expected[f"{name}/gradient"] = model.prompt_encoder["default"].embedding.weight.grad
    both = PeftModel.from_pretrained(base("llama"), HERE / "lora", adapter_name="lora")
    both.load_adapter(HERE / "rslora", adapter_name="rslora")
    served = both.eval()(IDS, adapter_names=["rslora", "__base__", "lora"]).logits
    expected["mixed/logits"] = served.detach()
    both.add_weighted_adapter(["lora", "rslora"], [0.5, -2.0], "sum", combination_type="cat")
    both.set_adapter("sum")
    expected["sum/logits"] = both(IDS).logits.detach()
    versions = {"peft": peft.__version__, "torch": torch.__version__}
    tensors = {name: tensor.contiguous().clone() for name, tensor in expected.items()}
    versions["transformers"] = transformers.__version__
    save_file(tensors, HERE / "expected.safetensors", versions)
    for page in HERE.glob("*/README.md"):
        page.unlink()
    for page in HERE.glob("*/generation_config.json"):
        page.unlink()


if __name__ == "__main__":
    main()
