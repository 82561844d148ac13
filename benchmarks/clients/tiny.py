"""Writes a tiny model with random weights, a tokenizer and a chat template, as Hugging Face lays
them out.

    python benchmarks/clients/tiny.py FOLDER

What it says is nonsense, so whatever clients find well-formed is the server's work and not the
model's. Its template writes tools, and calls of them between marks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.data.tokenizers.spelling import letters
from gptjax.formats.safetensors import write_safetensors

WIDTH, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, CONTEXT = 64, 2, 4, 2, 128, 2048
END = 1.0
"""How likely the end of an answer is."""
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r", "o n", "r e", "Ġ s", "Ġ w", "a t", "n d")
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny(folder: Path) -> None:
    """Writes the model's four files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    size = len(tokenizer["model"]["vocab"]) + len(CONTROLS)
    end = size - len(CONTROLS)
    shown = {
        "config.json": _config(size, end),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": CONTROLS[2],
            "chat_template": TEMPLATE,
        },
    }
    for name, content in shown.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    weights = _weights(size)
    shapes = {name: value.shape for name, value in weights.items()}
    file = folder / "model.safetensors"
    write_safetensors(file, shapes, weights.items(), "float32", {"format": "pt"})


def _tokenizer() -> dict[str, Any]:
    """Byte-level BPE with a few merges."""
    pieces = [*letters(), *(merge.replace(" ", "") for merge in MERGES)]
    added = [
        {
            "id": len(pieces) + i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, name in enumerate(CONTROLS)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": list(MERGES),
        },
    }


def _config(size: int, end: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": end,
        "eos_token_id": end + 2,
        "torch_dtype": "float32",
    }


def _weights(size: int) -> dict[str, np.ndarray]:
    """Random weights with the seed 0. What all embeddings have in common is what `<|im_end|>` is
    written for, so that an answer ends after some dozens of tokens."""
    generator, head = np.random.default_rng(0), WIDTH // HEADS

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (generator.normal(size=(rows, columns)) / columns**0.5).astype(np.float32)

    common = np.full(WIDTH, WIDTH**-0.5, np.float32)
    written = 2 * matrix(size, WIDTH)
    written[-1] = END * common
    weights = {
        "model.embed_tokens.weight": 8 * matrix(size, WIDTH) + 8 * common,
        "lm_head.weight": written,
    }
    for i in range(LAYERS):
        block, keys = f"model.layers.{i}.", KV_HEADS * head
        weights |= {
            f"{block}self_attn.q_proj.weight": matrix(WIDTH, WIDTH),
            f"{block}self_attn.k_proj.weight": matrix(keys, WIDTH),
            f"{block}self_attn.v_proj.weight": matrix(keys, WIDTH),
            f"{block}self_attn.o_proj.weight": matrix(WIDTH, WIDTH),
            f"{block}mlp.gate_proj.weight": matrix(FEED_FORWARD, WIDTH),
            f"{block}mlp.up_proj.weight": matrix(FEED_FORWARD, WIDTH),
            f"{block}mlp.down_proj.weight": matrix(WIDTH, FEED_FORWARD),
            f"{block}input_layernorm.weight": np.ones(WIDTH, np.float32),
            f"{block}post_attention_layernorm.weight": np.ones(WIDTH, np.float32),
        }
    return {**weights, "model.norm.weight": np.ones(WIDTH, np.float32)}


if __name__ == "__main__":
    write_tiny(Path(sys.argv[1]))
