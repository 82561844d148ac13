"""Which tensor of a model that reads pictures is which of our leaves: ViT, CLIP, SigLIP, PaliGemma,
Idefics 3 and SmolVLM. Their config.json is in `picture_configs`.

Read `picture_entries`, which all but ViT share.
"""

from __future__ import annotations

import re

from gptjax.formats import families
from gptjax.formats.families import heads, linear_entries, norm_entries
from gptjax.formats.layout import Entry
from gptjax.model import ModelConfig


def encoder_entries(where: str, layer: str, ours: str) -> tuple[Entry, ...]:
    """Returns the blocks of an encoder of CLIP's form.

    Args:
      where: before the names of all tensors.
      layer: before those of a layer's.
      ours: before our paths, such as `vision/encoder/`.
    """
    each, own = f"{where}{layer}.{{i}}", f"{ours}layers"
    return (
        *heads(f"{each}.self_attn", f"{own}/attention", out="out_proj"),
        *norm_entries(f"{each}.layer_norm1", f"{own}/attention_norm"),
        *norm_entries(f"{each}.layer_norm2", f"{own}/mlp_norm"),
        *linear_entries(f"{each}.mlp.fc1", f"{own}/mlp/up", "f d", "d f"),
        *linear_entries(f"{each}.mlp.fc2", f"{own}/mlp/down", "d f", "f d"),
    )


def picture_entries(where: str) -> tuple[Entry, ...]:
    """Returns an encoder of pictures of CLIP's form, with or without a class token."""
    start = f"{where}embeddings"
    return (
        Entry(f"{start}.patch_embedding.weight", ("vision/patches/kernel",), "d c h w", "c h w d"),
        Entry(f"{start}.patch_embedding.bias", ("vision/patches/bias",), "d", "d"),
        Entry(f"{start}.class_embedding", ("vision/encoder/embedding/embedding",), "(c d)", "c d"),
        Entry(
            f"{start}.position_embedding.weight",
            ("vision/encoder/positions/embedding",),
            "p d",
            "p d",
        ),
        *norm_entries(f"{where}pre_layrnorm", "vision/encoder/embedding_norm"),
        *encoder_entries(where, "encoder.layers", "vision/encoder/"),
        *norm_entries(f"{where}post_layernorm", "vision/encoder/norm"),
    )


_VIT = "vit.encoder.layer.{i}"
VIT = (
    Entry("vit.embeddings.cls_token", ("embedding/embedding",), "() c d", "c d"),
    Entry("vit.embeddings.position_embeddings", ("positions/embedding",), "() p d", "p d"),
    Entry(
        "vit.embeddings.patch_embeddings.projection.weight",
        ("vision/patches/kernel",),
        "d c h w",
        "c h w d",
    ),
    Entry("vit.embeddings.patch_embeddings.projection.bias", ("vision/patches/bias",), "d", "d"),
    *heads(
        f"{_VIT}.attention",
        "layers/attention",
        "attention.query",
        "attention.key",
        "attention.value",
        "output.dense",
    ),
    *norm_entries(f"{_VIT}.layernorm_before", "layers/attention_norm"),
    *norm_entries(f"{_VIT}.layernorm_after", "layers/mlp_norm"),
    *linear_entries(f"{_VIT}.intermediate.dense", "layers/mlp/up", "f d", "d f"),
    *linear_entries(f"{_VIT}.output.dense", "layers/mlp/down", "d f", "f d"),
    *norm_entries("vit.layernorm", "norm"),
    *linear_entries("classifier", "classes", "o d", "d o"),
)

_TEXT = (
    Entry("text_model.embeddings.token_embedding.weight", ("embedding/embedding",), "v d", "v d"),
    Entry(
        "text_model.embeddings.position_embedding.weight", ("positions/embedding",), "p d", "p d"
    ),
    *encoder_entries("text_model.", "encoder.layers", ""),
    *norm_entries("text_model.final_layer_norm", "norm"),
)
CLIP = (
    *_TEXT,
    *picture_entries("vision_model."),
    *linear_entries("visual_projection", "vision/projector/linear", "o d", "d o"),
    *linear_entries("text_projection", "joint/text", "o d", "d o"),
    Entry("logit_scale", ("joint/scale",), "", ""),
)
_HEAD, _POOL = "vision_model.head", "vision/pool"
_THREE = tuple(f"{_POOL}/{name}" for name in ("query", "key", "value"))
SIGLIP = (
    *_TEXT,
    *picture_entries("vision_model."),
    Entry(f"{_HEAD}.probe", (f"{_POOL}/probe",), "() c d", "c d"),
    Entry(
        f"{_HEAD}.attention.in_proj_weight",
        tuple(f"{path}/kernel" for path in _THREE),
        "(n h) d",
        "d n h",
        joined="n",
    ),
    Entry(
        f"{_HEAD}.attention.in_proj_bias",
        tuple(f"{path}/bias" for path in _THREE),
        "(n h)",
        "n h",
        joined="n",
    ),
    *linear_entries(f"{_HEAD}.attention.out_proj", f"{_POOL}/out", "d (n h)", "n h d"),
    *norm_entries(f"{_HEAD}.layernorm", f"{_POOL}/norm"),
    *linear_entries(f"{_HEAD}.mlp.fc1", f"{_POOL}/up", "f d", "d f"),
    *linear_entries(f"{_HEAD}.mlp.fc2", f"{_POOL}/down", "d f", "f d"),
    *linear_entries("text_model.head", "joint/text", "o d", "d o"),
    Entry("logit_scale", ("joint/scale",), "s", "s"),
    Entry("logit_bias", ("joint/bias",), "s", "s"),
)


def beside(text: tuple[Entry, ...], old: str, new: str) -> tuple[Entry, ...]:
    """Returns the tensors of a text model whose names begin otherwise."""
    return tuple(entry._replace(theirs=re.sub(f"^{old}", new, entry.theirs)) for entry in text)


IDEFICS3 = (
    *beside(families.LLAMA, r"model\.", "model.text_model."),
    *picture_entries("model.vision_model."),
    *linear_entries(
        "model.connector.modality_projection.proj", "vision/projector/linear", "o d", "d o"
    ),
)


def paligemma_entries(config: ModelConfig) -> tuple[Entry, ...]:
    """Returns the tensors of PaliGemma 1, whose text model is Gemma, and 2, whose is Gemma 2."""
    text = families.GEMMA if config.norm_placement == "pre" else families.GEMMA2
    return (
        *beside(text, "", "language_model."),
        *picture_entries("vision_tower.vision_model."),
        *linear_entries("multi_modal_projector.linear", "vision/projector/linear", "o d", "d o"),
    )


def old_vit_name(name: str) -> str:
    """Returns the name in the published files of a tensor in files of later versions."""
    if ".attention.attention." in name or ".output.dense." in name:
        return name
    name = re.sub(r"^vit\.layers\.", "vit.encoder.layer.", name)
    for part in ("query", "key", "value"):
        name = name.replace(f".attention.{part[0]}_proj.", f".attention.attention.{part}.")
    name = name.replace(".attention.o_proj.", ".attention.output.dense.")
    return name.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")


def old_paligemma_name(name: str) -> str:
    """Returns the name in the published files of a tensor in files of later versions."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    name = re.sub(r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_tower.vision_model.", name)
    return name.removeprefix("model.")
