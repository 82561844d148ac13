"""Models that read pictures: config.json and preprocessor_config.json of ViT, CLIP, SigLIP,
PaliGemma, Idefics 3 and SmolVLM, translated both ways.

Read `FAMILIES`, at the end. A model that writes is one of text with a field `vision`; its text half
is read by that family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gptjax.core.config import require
from gptjax.formats import configs, picture_tensors
from gptjax.formats.family import Family
from gptjax.formats.keys import OURS, Keys, activation
from gptjax.model import Joint, ModelConfig, Vision

TANH = "gelu_pytorch_tanh"
CUBIC, LINEAR = 3, 2
"""Numbers of Pillow's ways to interpolate, as preprocessor_config.json has them."""


def _inner(keys: Keys, name: str) -> Keys:
    """The keys of a config inside another."""
    data = keys.take(name)
    require(isinstance(data, dict), f"{keys.where} has {name!r}: {data!r}; it needs an object.")
    return Keys(data, f"{keys.where} ({name})")


def _squares(keys: Keys) -> dict[str, Any]:
    """Sizes of pictures and patches."""
    keys.same("num_channels", 3)
    size, patch = keys.take("image_size", 224), keys.take("patch_size", 16)
    sizes = tuple(size) if isinstance(size, list) else (size, size)
    whole = len(sizes) == 2 and all(type(n) is int and n > 0 for n in (*sizes, patch))
    require(whole, f"{keys.where} has 'image_size': {size!r} and 'patch_size': {patch!r}.")
    return {"size": sizes, "patch": patch}


def _vision(keys: Keys, name: str = "vision_config", epsilon: float = 1e-6, **more: Any) -> Vision:
    """An encoder of pictures of CLIP's form."""
    own = _inner(keys, name)
    for key in ("projection_dim", "num_image_tokens", "vision_use_head", "use_base_siglip"):
        own.take(key, None)  # what is beside the encoder says them again
    vision = Vision(
        **_squares(own),
        num_layers=own.number("num_hidden_layers", 12),
        width=own.number("hidden_size", 768),
        num_heads=own.number("num_attention_heads", 12),
        feed_forward=own.number("intermediate_size", 3072),
        activation=activation(own, "hidden_act", TANH if epsilon < 1e-5 else "quick_gelu"),
        norm_epsilon=float(own.take("layer_norm_eps", epsilon)),
        **more,
    )
    own.finish()
    return vision


def _vision_json(v: Vision, kind: str) -> dict[str, Any]:
    height, width = v.size
    return {
        "model_type": kind,
        "image_size": height if height == width else [height, width],
        "patch_size": v.patch,
        "num_channels": 3,
        "num_hidden_layers": v.num_layers,
        "hidden_size": v.width,
        "num_attention_heads": v.num_heads,
        "intermediate_size": v.feed_forward or 4 * v.width,
        "hidden_act": _act(v.activation),
        "layer_norm_eps": v.norm_epsilon,
    }


def _act(ours: str) -> Any:
    return TANH if ours == "gelu" else OURS.get(ours)


def vit_config(keys: Keys) -> ModelConfig:
    """Translates ViT's with a classifier. The class token is the whole vocabulary."""
    vision = Vision(**_squares(keys), mean=(0.5,) * 3, std=(0.5,) * 3)
    labels = keys.take("id2label", None)
    for key in ("encoder_stride", "num_labels"):
        keys.take(key, None)
    return ModelConfig(
        vocab_size=1,
        context=1 + vision.patches,
        width=keys.number("hidden_size", 768),
        num_layers=keys.number("num_hidden_layers", 12),
        num_heads=keys.number("num_attention_heads", 12),
        feed_forward=keys.number("intermediate_size", 3072),
        activation=activation(keys, "hidden_act", "gelu"),
        norm_epsilon=float(keys.take("layer_norm_eps", 1e-12)),
        qkv_bias=None if keys.take("qkv_bias", True) else False,
        causal=False,
        classes=len(labels) if isinstance(labels, dict) else 2,
        pool="first",
        vision=vision,
    )


def vit_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `vit_config`."""
    own = _vision_json(c.vision, "vit")
    return own | {
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.width,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "hidden_act": _act(c.activation),
        "layer_norm_eps": c.norm_epsilon,
        "qkv_bias": c.qkv_bias_enabled,
        "id2label": {str(n): f"LABEL_{n}" for n in range(c.classes or 0)},
        "label2id": {f"LABEL_{n}": n for n in range(c.classes or 0)},
    }


def _two(keys: Keys, clip: bool) -> ModelConfig:
    """CLIP's and SigLIP's."""
    own = _inner(keys, "text_config")
    width = own.number("hidden_size", 512 if clip else 768)
    own.take("projection_dim", None)
    space = keys.number("projection_dim", 512) if clip else own.number("projection_size", width)
    keys.take("logit_scale_init_value", None)
    how: dict[str, Any] = {"pool": "attention", "joint": Joint(space, "sigmoid")}
    if clip:
        how = {
            "class_token": True,
            "embedding_norm": True,
            "patch_bias": False,
            "pool": "first",
            "projector": "linear",
            "projector_bias": False,
            "joint": Joint(space, "softmax"),
            "cubic": True,
            "fit": "crop",
        }
    text = ModelConfig(
        vocab_size=own.number("vocab_size", 49408 if clip else 32000),
        context=own.number("max_position_embeddings", 77 if clip else 64),
        width=width,
        num_layers=own.number("num_hidden_layers", 12),
        num_heads=own.number("num_attention_heads", 8 if clip else 12),
        feed_forward=own.number("intermediate_size", 2048 if clip else 3072),
        activation=activation(own, "hidden_act", "quick_gelu" if clip else TANH),
        norm_epsilon=float(own.take("layer_norm_eps", 1e-5 if clip else 1e-6)),
        causal=clip,
        vision=_vision(keys, epsilon=1e-5 if clip else 1e-6, **how),
    )
    own.finish()
    return text


def _two_json(c: ModelConfig, clip: bool) -> dict[str, Any]:
    kind, joint = "clip" if clip else "siglip", c.vision.joint
    same = joint is not None and (joint.kind == "softmax") == clip
    require(same, f"{kind} compares pictures and texts in another way than this model.")
    text = {
        "model_type": f"{kind}_text_model",
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "hidden_act": _act(c.activation),
        "layer_norm_eps": c.norm_epsilon,
        "eos_token_id": c.vocabulary - 1,  # at which transformers' CLIP looks
        "projection_dim" if clip else "projection_size": joint.width,
    }
    pictures = _vision_json(c.vision, f"{kind}_vision_model")
    if not clip:
        return {"text_config": text, "vision_config": pictures}
    pictures["projection_dim"] = joint.width
    return {"text_config": text, "vision_config": pictures, "projection_dim": joint.width}


def idefics3_config(keys: Keys) -> ModelConfig:
    """Translates Idefics 3's and SmolVLM's: pictures of whole size, whose states go through pixel
    shuffle and a linear layer into Llama."""
    own = _inner(keys, "text_config")
    tied = keys.take("tie_word_embeddings", own.data.get("tie_word_embeddings", False))
    own.data = {**own.data, "tie_word_embeddings": tied}
    own.same("model_type", "llama")
    for key in ("pixel_shuffle_factor", "use_resampler", "qk_layer_norms", "perceiver_config"):
        own.take(key, None)
    keys.take("_pad_token_id", None)
    vision = _vision(
        keys,
        merge=keys.number("scale_factor", 2),
        projector="linear",
        projector_bias=False,
        token=keys.number("image_token_id", 128_257),
    )
    text = dataclasses.replace(configs.llama_config(own), vision=vision)
    own.finish()
    return text


def _idefics3_json(c: ModelConfig, kind: str) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "llama", **configs.llama_json(c)},
        "vision_config": _vision_json(c.vision, f"{kind}_vision"),
        "scale_factor": c.vision.merge,
        "image_token_id": c.vision.token,
        "tie_word_embeddings": c.tied,
    }


TEXTS = {
    "gemma": (configs.gemma_config, configs.gemma_json),
    "gemma2": (configs.gemma2_config, configs.gemma2_json),
}
"""The text models of PaliGemma 1 and 2."""


def paligemma_config(keys: Keys) -> ModelConfig:
    """Translates PaliGemma's: pictures and prompt see each other, the answer is causal."""
    own = _inner(keys, "text_config")
    kind = own.data.get("model_type", "gemma")
    require(kind in TEXTS, f"{own.where} has the model_type {kind!r}; known are gemma and gemma2.")
    for key in ("hidden_size", "projection_dim", "vocab_size", "tie_word_embeddings"):
        keys.take(key, None)  # those of the text model
    own.take("num_image_tokens", None)
    own.data = {**own.data, "use_bidirectional_attention": False}  # later files say it of a prefix
    token = keys.take("image_token_index", keys.take("image_token_id", 256_000))
    vision = _vision(keys, projector="linear", cubic=True, token=token)
    text = TEXTS[kind][0](own)
    own.finish()
    return dataclasses.replace(text, prefix_lm=True, vision=vision)


def paligemma_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `paligemma_config`."""
    require(c.prefix_lm, "paligemma reads its prefix both ways; this model does not.")
    kind = "gemma" if c.norm_placement == "pre" else "gemma2"
    pictures = _vision_json(c.vision, "siglip_vision_model")
    return {
        "text_config": {"model_type": kind, **TEXTS[kind][1](c)},
        "vision_config": {**pictures, "projection_dim": c.width, "vision_use_head": False},
        "image_token_index": c.vision.token,
        "projection_dim": c.width,
        "hidden_size": c.width,
        "tie_word_embeddings": c.tied,
    }


# --- preprocessor_config.json ---

PREPROCESSOR = "preprocessor_config.json"


def with_preprocessor(config: ModelConfig, data: Mapping[str, Any]) -> ModelConfig:
    """Returns the config with what the file says of how a picture becomes pixels; an absent file
    says nothing."""
    if config.vision is None or not data:
        return config
    changes: dict[str, Any] = {}
    for theirs, ours in (("image_mean", "mean"), ("image_std", "std")):
        value = data.get(theirs)
        if isinstance(value, list) and len(value) == 3:
            changes[ours] = tuple(float(number) for number in value)
    if data.get("do_normalize") is False:
        changes |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if data.get("resample") in (CUBIC, LINEAR):
        changes["cubic"] = data["resample"] == CUBIC
    if "do_center_crop" in data:
        changes["fit"] = "crop" if data["do_center_crop"] else "stretch"
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, **changes))


def preprocessor_json(v: Vision) -> dict[str, Any]:
    """The inverse of `with_preprocessor`."""
    height, width = v.size
    return {
        "image_mean": list(v.mean),
        "image_std": list(v.std),
        "resample": CUBIC if v.cubic else LINEAR,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_center_crop": v.fit == "crop",
        "size": {"height": height, "width": width},
    }


FAMILIES = {
    "vit": Family(
        "ViTForImageClassification",
        vit_config,
        vit_json,
        picture_tensors.VIT,
        "",
        unused=(r"vit\.pooler\..*", r"vit\.embeddings\.mask_token"),
        present=picture_tensors.old_vit_name,
    ),
    "clip": Family(
        "CLIPModel",
        lambda keys: _two(keys, clip=True),
        lambda c: _two_json(c, clip=True),
        picture_tensors.CLIP,
        "",
        unused=(r".*\.position_ids",),
    ),
    "siglip": Family(
        "SiglipModel",
        lambda keys: _two(keys, clip=False),
        lambda c: _two_json(c, clip=False),
        picture_tensors.SIGLIP,
        "",
        unused=(r".*\.position_ids",),
    ),
    "paligemma": Family(
        "PaliGemmaForConditionalGeneration",
        paligemma_config,
        paligemma_json,
        picture_tensors.paligemma_entries,
        "",
        "language_model.lm_head.weight",
        unused=(
            *(r".*\.rotary_emb\.inv_freq", r".*\.position_ids"),
            r"vision_tower\.vision_model\.head\..*",
        ),
        present=picture_tensors.old_paligemma_name,
    ),
    "idefics3": Family(
        "Idefics3ForConditionalGeneration",
        idefics3_config,
        lambda c: _idefics3_json(c, "idefics3"),
        picture_tensors.IDEFICS3,
        "",
        unused=(r".*\.rotary_emb\.inv_freq",),
    ),
    "smolvlm": Family(
        "SmolVLMForConditionalGeneration",
        idefics3_config,
        lambda c: _idefics3_json(c, "smolvlm"),
        picture_tensors.IDEFICS3,
        "",
        unused=(r".*\.rotary_emb\.inv_freq",),
    ),
}
