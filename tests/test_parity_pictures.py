"""Models that read pictures compute what they compute in `transformers`, read from its files and
written for it, and read again with every bit. Weights are random and made here.

Read `CASES`: how each is built, and what it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch, transformers

from gptjax import formats, model
from gptjax.formats import OpenedModel
from gptjax.generate.pictures import picture_classes

SIDE, PATCH, PICTURE = 32, 8, 90
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT = {
    "vocab_size": 97,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
PIXELS = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)


def values(vision: model.Vision) -> Any:
    """`PIXELS` as torch reads them: normalised, colours first."""
    x = (PIXELS / 255 - np.asarray(vision.mean)) / np.asarray(vision.std)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))


def vit() -> Any:
    shape = {**ENCODER, "id2label": {n: str(n) for n in range(5)}, "attn_implementation": "eager"}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**shape))


def clip() -> Any:
    text = {**TEXT, **NO_IDS, "eos_token_id": 96}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=dict(ENCODER), projection_dim=24)
    )


def siglip() -> Any:
    text = {**TEXT, **NO_IDS, "projection_size": 32}
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text, vision_config=dict(ENCODER))
    )


LLAMA = {**TEXT, **NO_IDS, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}


def paligemma(kind: str) -> Any:
    text = {**LLAMA, "model_type": kind, "head_dim": 12}
    if kind == "gemma2":
        text |= {"sliding_window": 32, "query_pre_attn_scalar": 12}
    return transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            text_config=text,
            vision_config={**ENCODER, "model_type": "siglip_vision_model", "projection_dim": 40},
            image_token_index=PICTURE,
            projection_dim=40,
            hidden_size=40,
            attn_implementation="eager",
        )
    )


def idefics3(name: str) -> Any:
    config = getattr(transformers, f"{name}Config")(
        text_config={**LLAMA, "model_type": "llama", "attention_bias": False},
        vision_config=dict(ENCODER),
        image_token_id=PICTURE,
        scale_factor=2,
        **({"pad_token_id": 0} if name == "SmolVLM" else {}),
    )
    config._attn_implementation = "eager"
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


IDS = np.random.default_rng(1).integers(0, 89, (2, 9))
IDS[:, -1] = 96


def asked(found: OpenedModel) -> np.ndarray:
    """Placeholders of one picture, then ids."""
    count = found.config.vision.tokens
    return np.concatenate([np.full((2, count), PICTURE), IDS], axis=1)


def our_classes(found: OpenedModel) -> Any:
    return picture_classes(found.config, found.params, jnp.asarray(PIXELS))


def their_classes(theirs: Any, found: OpenedModel) -> Any:
    return theirs(pixel_values=values(found.config.vision)).logits


def ours_together(found: OpenedModel) -> Any:
    texts = model.embed_captions(found.config, found.params, jnp.asarray(IDS))
    pictures = model.embed_pictures(found.config, found.params, PIXELS)
    return model.similarities(found.params, texts, pictures)


def theirs_together(theirs: Any, found: OpenedModel) -> Any:
    pixels = values(found.config.vision)
    return theirs(input_ids=torch.from_numpy(IDS), pixel_values=pixels).logits_per_text


def our_answers(found: OpenedModel, read: int = 4) -> Any:
    """Logits of all tokens; in a prefix LM the pictures and the first `read` ids see each other."""
    tokens, config = asked(found), found.config
    count = config.vision.tokens
    places = np.broadcast_to(np.arange(count), (2, count))
    soft = model.look(config, found.params, {"pixels": PIXELS[:, None], "places": places})
    prefix = np.full(tokens.shape, count + read)
    out = model.forward(config, found.params, tokens, soft=soft, prefix=prefix)
    return model.unembed(config, found.params, out.hidden)


def their_answers(theirs: Any, found: OpenedModel, read: int = 4) -> Any:
    tokens = torch.from_numpy(asked(found))
    pixels, more = values(found.config.vision), {}
    if found.config.prefix_lm:
        kinds = torch.ones_like(tokens)
        kinds[:, : found.config.vision.tokens + read] = 0
        more["token_type_ids"] = kinds
    else:
        pixels = pixels[:, None]
    return theirs(input_ids=tokens, pixel_values=pixels, **more).logits


class Case(NamedTuple):
    build: Callable[[], Any]
    ours: Callable[[OpenedModel], Any]
    theirs: Callable[[Any, OpenedModel], Any]


TOGETHER, ANSWERS = (ours_together, theirs_together), (our_answers, their_answers)
CASES = {
    "ViTForImageClassification": Case(vit, our_classes, their_classes),
    "CLIPModel": Case(clip, *TOGETHER),
    "SiglipModel": Case(siglip, *TOGETHER),
    "PaliGemmaForConditionalGeneration": Case(lambda: paligemma("gemma"), *ANSWERS),
    "PaliGemmaForConditionalGeneration 2": Case(lambda: paligemma("gemma2"), *ANSWERS),
    "Idefics3ForConditionalGeneration": Case(lambda: idefics3("Idefics3"), *ANSWERS),
    "SmolVLMForConditionalGeneration": Case(lambda: idefics3("SmolVLM"), *ANSWERS),
}


@pytest.mark.parametrize("name", CASES)
def test_pictures_are_read_as_in_transformers_both_ways(
    name: str, tmp_path: Path, record_property: Any
) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    theirs = case.build().eval()
    with torch.no_grad():
        for one in theirs.parameters():
            one.add_(0.2 * torch.randn_like(one))
    theirs.save_pretrained(tmp_path / "theirs")
    found = formats.load_model(tmp_path / "theirs")
    with torch.no_grad():
        wanted = case.theirs(theirs, found).numpy()
    far = float(np.abs(np.asarray(case.ours(found)) - wanted).max())
    record_property("difference", far)
    assert far <= 1e-4, far
    formats.save_model(tmp_path / "ours", found)
    again = formats.load_model(tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
    assert again.config == found.config and again.task == found.task
    there = type(theirs).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        back = case.theirs(there, found).numpy()
    np.testing.assert_allclose(back, wanted, atol=1e-5)
