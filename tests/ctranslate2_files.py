"""Writes a Whisper as CTranslate2's converter does, in float16: for tests of the reader."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from gptjax.api import Model
from gptjax.formats import layout
from gptjax.formats.whisper import WHISPER


def write_ctranslate2(path: Path, opened: Model) -> None:
    """Writes model.bin (version 6), config.json and tokenizer.json."""
    theirs = dict(layout.tensors(opened.params, WHISPER.places(opened.config)))
    halves = {"encoder": opened.config.frame_encoder, "decoder": opened.config}
    variables = {"decoder/embeddings/weight": theirs["model.decoder.embed_tokens.weight"]}
    for n in (1, 2):
        for kind in ("weight", "bias"):
            variables[f"encoder/conv{n}/{kind}"] = theirs[f"model.encoder.conv{n}.{kind}"]
    for half, config in halves.items():
        variables[f"{half}/num_heads"] = np.int8(config.num_heads)
        table = theirs[f"model.{half}.embed_positions.weight"]
        variables[f"{half}/position_encodings/encodings"] = table
        variables |= norm(f"{half}/layer_norm", theirs, f"model.{half}.layer_norm")
        for i in range(config.num_layers):
            layer, name = f"{half}/layer_{i}", f"model.{half}.layers.{i}"
            attention = {"self_attention": ("self_attn", ["qkv", "o"])}
            if half == "decoder":
                attention["attention"] = ("encoder_attn", ["q", "kv", "o"])
            for part, (own, groups) in attention.items():
                variables |= norm(f"{layer}/{part}/layer_norm", theirs, f"{name}.{own}_layer_norm")
                for n, group in enumerate(groups):
                    names = [f"{name}.{own}.{'out' if k == 'o' else k}_proj" for k in group]
                    weights = [theirs[f"{one}.weight"] for one in names]
                    biases = [
                        theirs.get(f"{one}.bias", np.zeros(len(w), np.float32))
                        for one, w in zip(names, weights, strict=True)
                    ]
                    variables[f"{layer}/{part}/linear_{n}/weight"] = np.concatenate(weights)
                    variables[f"{layer}/{part}/linear_{n}/bias"] = np.concatenate(biases)
            variables |= norm(f"{layer}/ffn/layer_norm", theirs, f"{name}.final_layer_norm")
            for n in (0, 1):
                for kind in ("weight", "bias"):
                    variables[f"{layer}/ffn/linear_{n}/{kind}"] = theirs[f"{name}.fc{n + 1}.{kind}"]
    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        number, stored = (1, value) if value.dtype == np.int8 else (4, value.astype(np.float16))
        dims = np.shape(stored)
        content += text(name) + struct.pack(f"<B{len(dims)}I", len(dims), *dims)
        content += struct.pack("<BI", number, stored.nbytes) + stored.tobytes()
    aliases = text("decoder/projection/weight") + text("decoder/embeddings/weight")
    (path / "model.bin").write_bytes(content + struct.pack("<I", 1) + aliases)
    (path / "config.json").write_text(json.dumps({"suppress_ids": [], "suppress_ids_begin": [32]}))
    for name, file in opened.tokenizer.payload.items():
        (path / name).write_bytes(file)


def norm(where: str, theirs: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    names = {"gamma": "weight", "beta": "bias"}
    return {f"{where}/{ours}": theirs[f"{name}.{kind}"] for ours, kind in names.items()}


def text(word: str) -> bytes:
    content = word.encode() + b"\0"
    return struct.pack("<H", len(content)) + content
