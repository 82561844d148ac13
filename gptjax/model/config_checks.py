"""What a model's config refuses, each with a setting that works.

Read `check_model`; the other functions are its chapters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptjax.core.config import require

if TYPE_CHECKING:
    from gptjax.model.config import ModelConfig

DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout", "stochastic_depth")
"""Settings that are shares of something to leave out in training."""

COUNTS = ("context", "width", "num_layers", "num_heads")
OPTIONAL_COUNTS = ("vocab_size", "num_kv_heads", "head_width", "feed_forward", "stage_parts")
OPTIONAL_COUNTS += ("embedding_width",)
POSITIVE = ("rope_base", "norm_epsilon", "init_std", "logit_scale", "embedding_scale")
POSITIVE += ("residual_scale",)
OPTIONAL_POSITIVE = ("attention_scale", "attention_cap", "logit_cap", "qkv_clip")


def check_model(config: ModelConfig) -> None:
    """Refuses values, and combinations of them, that no model can have.

    Raises:
      ConfigError: says what was found and what is needed.
    """
    _check_numbers(config)
    _check_heads(config)
    _check_positions(config)
    _check_recurrent(config)
    _check_shortcuts(config)
    _check_encoder(config)
    _check_vision(config)
    _check_outputs(config)


def _check_numbers(c: ModelConfig) -> None:
    for name in (*COUNTS, *OPTIONAL_COUNTS):
        value, empty = getattr(c, name), "" if name in COUNTS else ", or null"
        fits = value is not None and value > 0 if name in COUNTS else value is None or value > 0
        require(fits, f"model.{name} is {value}; it needs at least 1{empty}.")
    for name in DROPOUTS:
        value = getattr(c, name)
        require(0 <= value < 1, f"model.{name} is {value}; it needs a share in [0, 1).")
    for name in (*POSITIVE, *OPTIONAL_POSITIVE):
        value, empty = getattr(c, name), "" if name in POSITIVE else ", or null"
        fits = name in OPTIONAL_POSITIVE if value is None else value > 0
        require(fits, f"model.{name} is {value}; it needs a positive number{empty}.")
    require(
        len(c.pattern) > 0,
        "model.pattern is empty; it needs at least one layer, which is then repeated.",
    )


def _check_heads(c: ModelConfig) -> None:
    if c.head_width is None:
        near = c.num_heads * max(1, round(c.width / c.num_heads))
        require(
            c.width % c.num_heads == 0,
            f"model.width is {c.width}, which {c.num_heads} heads do not divide; use a"
            f" multiple (--model.width {near}), or set --model.head-width.",
        )
    require(
        c.num_heads % c.kv_heads == 0,
        f"model.num_heads is {c.num_heads}, which {c.kv_heads} key/value heads do not"
        " divide; use a divisor (--model.num-kv-heads 1).",
    )
    require(
        c.qk_norm or not c.qk_norm_joint,
        "model.qk_norm_joint says how heads are normalised; it needs --model.qk-norm.",
    )
    require(
        c.qk_norm or (c.qk_norm_scale and not c.qk_norm_after_rope),
        "model.qk_norm_scale and qk_norm_after_rope say how heads are normalised; they need"
        " --model.qk-norm.",
    )
    everywhere = all(c.positions_in(layer) == "rope" for layer in c.stack)
    require(
        not c.qk_norm_after_rope or not c.qk_norm_scale or everywhere,
        "model.qk_norm_after_rope leaves layers without RoPE without norms, so that layers would"
        " differ in their scales; it needs --model.qk-norm-scale False there.",
    )
    plain = c.num_kv_heads is None and not c.qk_norm and not c.attention_sink
    require(
        c.latent is None or (plain and c.query_growth is None),
        "model.latent makes keys of one latent for all heads: it goes without num_kv_heads,"
        " qk_norm, attention_sink and query_growth.",
    )
    require(
        c.qkv_clip is None or (c.latent is None and not c.has_encoder),
        "model.qkv_clip is of heads that see their own text: it goes without latent, encoder_layers"
        " and frames.",
    )


def _check_positions(c: ModelConfig) -> None:
    require(
        c.positions != "rope" or c.latent is not None or c.head_dim % 2 == 0,
        f"a head is {c.head_dim} wide and RoPE turns pairs; it needs an even width"
        f" (--model.head-width {c.head_dim + 1}).",
    )
    require(
        c.rotary_dim % 2 == 0 and 0 < c.rope_share <= 1,
        f"model.rope_share {c.rope_share} of a head of {c.head_dim} is {c.rotary_dim}"
        " and RoPE turns pairs; it needs an even part (--model.rope-share 1).",
    )
    require(
        c.t5_buckets >= 4 and c.t5_buckets % 2 == 0 and c.t5_distance > c.t5_buckets,
        f"model.t5_buckets is {c.t5_buckets} up to a distance of {c.t5_distance}; it"
        " needs an even number of at least 4, and a greater distance.",
    )
    require(
        c.positions != "sinusoidal" or c.entrance_dim % 2 == 0,
        f"model.width is {c.entrance_dim} and sinusoidal positions come in pairs; it needs an even"
        f" width (--model.width {c.entrance_dim + 1}).",
    )
    require(
        (c.causal and not c.prefix_lm)
        or all(layer.sees in ("all", "window", "chunk") for layer in c.stack),
        "a strided or fixed layer looks back only; with --model.causal False or prefix_lm a"
        " layer sees all, a window or a chunk.",
    )
    require(
        c.parallel == "none" or c.norm_placement == "pre",
        f"model.parallel is {c.parallel!r} with norms placed {c.norm_placement!r}; it"
        " needs --model.norm-placement pre.",
    )


def _check_recurrent(c: ModelConfig) -> None:
    present = any(layer.recurrent for layer in c.stack)
    require(
        present == (c.recurrent is not None),
        "model.recurrent says how the layers that are recurrent mix tokens: it needs such layers in"
        " model.pattern (Layer(recurrent=True)), and they need it.",
    )
    require(
        not present or (c.continues and not c.prefix_lm),
        "a recurrent layer reads from left to right: it goes without model.encoder_layers, frames"
        " and prefix_lm, and with causal.",
    )
    require(
        not c.attention_gate or c.latent is None,
        "model.attention_gate is for plain heads; it goes without latent.",
    )


def _check_shortcuts(c: ModelConfig) -> None:
    if c.shortcuts is None:
        return
    require(
        c.norm_placement != "post" and not c.has_encoder and not c.ahead,
        "model.shortcuts leads from the embedded tokens to each layer of a decoder or an encoder"
        " alone, into a stream without norms of its own: it goes without norm_placement post,"
        " encoder_layers, frames and ahead.",
    )
    plain = c.latent is None and not any(layer.recurrent for layer in c.stack)
    require(
        c.shortcuts.values == "none" or plain,
        f"model.shortcuts.values is {c.shortcuts.values!r}, which is for layers of plain heads: it"
        " goes without latent and recurrent layers (shortcuts.values 'none').",
    )


def _check_encoder(c: ModelConfig) -> None:
    require(
        c.encoder_layers >= 0,
        f"model.encoder_layers is {c.encoder_layers}; it needs 0 or more.",
    )
    require(
        not (c.encoder_layers and c.frames),
        "model.frames and model.encoder_layers are both an encoder beside the decoder; use one"
        " (--model.encoder-layers 0).",
    )
    if c.frames is not None:
        check_model(c.frame_encoder)
        require(
            c.frames.projected or c.frames.width == c.width,
            f"model.frames.width is {c.frames.width} and model.width {c.width}; without"
            " model.frames.projected they have to be equal.",
        )
    plain = c.causal and c.experts is None and c.latent is None and c.parallel == "none"
    require(
        not c.has_encoder or plain,
        f"model.{'frames' if c.frames else 'encoder_layers'} makes an encoder beside a decoder: it"
        " goes without experts, latent and parallel, and with causal.",
    )
    require(
        c.embedding_width is None or not (c.has_encoder or c.ahead),
        f"model.embedding_width is {c.embedding_width}, which a decoder or an encoder alone can"
        " have; omit it, encoder_layers or frames, and ahead.",
    )
    require(
        not c.prefix_lm or c.continues,
        "model.prefix_lm is for a decoder alone: it goes without encoder_layers, and with causal.",
    )


def _check_vision(c: ModelConfig) -> None:
    v = c.vision
    if v is None:
        return
    require(
        not c.has_encoder,
        "model.vision puts pictures into the text of a decoder or an encoder alone; omit"
        " encoder_layers and frames.",
    )
    out = c.entrance_dim if v.joint is None else v.joint.width
    width = v.width * (v.merge**2 if v.merged == "joined" else 1)
    require(
        v.num_layers == 0 or v.projector != "none" or width == out,
        f"model.vision gives states of {width} numbers and {out} are needed; use"
        " model.vision.projector linear.",
    )


def _check_outputs(c: ModelConfig) -> None:
    require(c.ahead >= 0, f"model.ahead is {c.ahead}; it needs 0 or more tokens.")
    require(
        not c.ahead or c.continues,
        "model.ahead is for a decoder alone: it goes without encoder_layers, and with causal.",
    )
    require(
        c.classes is None or c.classes >= 1,
        f"model.classes is {c.classes}; it needs at least 2, 1 for a score, or null.",
    )
    require(
        not c.classes or not (c.has_encoder or c.ahead),
        "model.classes is for a decoder or an encoder alone, which predicts nothing else.",
    )
    require(
        c.activation != "xielu" or (c.experts is None and not c.head_transform),
        "model.activation is 'xielu', whose numbers an MLP learns; experts and head_transform have"
        " none, so use another.",
    )
    require(
        c.norm_scale or not c.head_transform,
        "model.head_transform ends with a norm that is scaled; it needs --model.norm-scale True.",
    )
    require(
        not c.head_transform or not c.gated,
        f"model.head_transform is one linear layer and {c.activation!r} is gated; use an"
        " activation such as gelu_exact.",
    )
