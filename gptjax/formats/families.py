"""Which tensor of a family of models is which of our leaves: one table per family, which `layout`
reads both ways.

Read `LLAMA` first: most families are Llama with other norms or another MLP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gptjax.formats.layout import Entry
from gptjax.model import ModelConfig


def linear_entries(
    theirs: str, ours: str | tuple[str, ...], their_axes: str, our_axes: str, **more
) -> tuple[Entry, ...]:
    """Returns the kernel of a linear layer and its bias, which only some models have. The axes are
    those of the kernel; the bias has its outputs."""
    paths = (ours,) if isinstance(ours, str) else ours
    groups = re.findall(r"\([^)]*\)|\S+", their_axes)
    # Their Conv1D has [in out], their Linear [out in].
    inputs_first = our_axes.split()[0] in groups[0]
    outputs = groups[1] if inputs_first else groups[0]
    letters = [letter for letter in our_axes.split() if letter in outputs]
    kept = {
        name: value
        for name, value in more.items()
        if name == "joined" or all(letter in outputs for letter in value)
    }
    return (
        Entry(
            f"{theirs}.weight",
            tuple(f"{path}/kernel" for path in paths),
            their_axes,
            our_axes,
            **more,
        ),
        Entry(
            f"{theirs}.bias",
            tuple(f"{path}/bias" for path in paths),
            outputs,
            " ".join(letters),
            **kept,
        ),
    )


def norm_entries(theirs: str, ours: str, plus: float = 0.0) -> tuple[Entry, ...]:
    """Returns the scale of a norm, and its bias if it has one."""
    return (
        Entry(f"{theirs}.weight", (f"{ours}/scale",), "d", "d", plus=plus),
        Entry(f"{theirs}.bias", (f"{ours}/bias",), "d", "d"),
    )


def heads(
    theirs: str,
    ours: str,
    q: str = "q_proj",
    k: str = "k_proj",
    v: str = "v_proj",
    out: str = "o_proj",
    order: tuple[int, ...] = (),
) -> tuple[Entry, ...]:
    """Returns query, key, value and output of an attention, one layer each.

    Args:
      order: that of a query's and a key's numbers, if it is not ours.
    """
    turned = {"order": {"h": order}} if order else {}
    return (
        *linear_entries(f"{theirs}.{q}", f"{ours}/query", "(n h) d", "d n h", **turned),
        *linear_entries(f"{theirs}.{k}", f"{ours}/key", "(k h) d", "d k h", **turned),
        *linear_entries(f"{theirs}.{v}", f"{ours}/value", "(k h) d", "d k h"),
        *linear_entries(f"{theirs}.{out}", f"{ours}/out", "d (n h)", "n h d"),
    )


def interleaved(config: ModelConfig) -> tuple[int, ...]:
    """Returns the order of a head's numbers where RoPE turns neighbours instead of halves: number
    2k + j is our number k + j · half."""
    half, head = config.rotary_dim // 2, np.arange(config.head_dim)
    head[: 2 * half] = head[: 2 * half].reshape(2, half).T.ravel()
    return tuple(head.tolist())


def mlp(
    theirs: str, ours: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> tuple[Entry, ...]:
    """Returns a gated MLP, or a plain one, which has no gate."""
    return (
        *linear_entries(f"{theirs}.{gate}", f"{ours}/gate", "f d", "d f"),
        *linear_entries(f"{theirs}.{up}", f"{ours}/up", "f d", "d f"),
        *linear_entries(f"{theirs}.{down}", f"{ours}/down", "d f", "f d"),
    )


# --- Llama and what came of it --------------------------------------------------------------------

LAYER = "model.layers.{i}"
PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
REORDERED = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}
SANDWICH = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}
"""Our norms to theirs."""


def around(norms: dict[str, str], plus: float = 0.0, last: str = "model.norm") -> tuple[Entry, ...]:
    """Returns embedding, output and all norms. Gemma's scales are stored minus one.

    Args:
      last: their name of the norm before the output.
    """
    each = [
        entry
        for ours, theirs in norms.items()
        for entry in norm_entries(f"{LAYER}.{theirs}", f"layers/{ours}", plus)
    ]
    return (
        Entry("model.embed_tokens.weight", ("embedding/embedding",), "v d", "v d"),
        *each,
        *norm_entries(f"{LAYER}.self_attn.q_norm", "layers/attention/query_norm", plus),
        *norm_entries(f"{LAYER}.self_attn.k_norm", "layers/attention/key_norm", plus),
        *norm_entries(last, "norm", plus),
        Entry("lm_head.weight", ("head/kernel",), "v d", "d v"),
    )


ATTENTION = heads(f"{LAYER}.self_attn", "layers/attention")
MLP = mlp(f"{LAYER}.mlp", "layers/mlp")


def experts(
    where: str,
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    router: str = "gate.weight",
    bias: str = "gate.e_score_correction_bias",
    bias_axes: str = "e",
    shared: str = "shared_experts",
) -> tuple[Entry, ...]:
    """Returns a router and its experts, one tensor each.

    Args:
      bias: their name of what is added to scores for the choice, which only some models have.
    """
    return (
        Entry(f"{where}.{router}", ("layers/moe/router/kernel",), "e d", "d e"),
        Entry(f"{where}.{bias}", ("layers/moe/router/bias",), bias_axes, "e"),
        *mlp(f"{where}.experts.{{e}}", "layers/moe/experts", gate, up, down),
        *mlp(f"{where}.{shared}", "layers/moe/shared"),
    )


EXPERTS = experts(f"{LAYER}.mlp")

LLAMA = (*around(PRE), *ATTENTION, *MLP)
MIXTRAL = (*around(PRE), *ATTENTION, *experts(f"{LAYER}.block_sparse_moe", "w1", "w3", "w2"))
QWEN_MOE = (*LLAMA, *EXPERTS)
GEMMA = (*around(PRE, plus=1.0), *ATTENTION, *MLP)
GEMMA2 = (*around(SANDWICH, plus=1.0), *ATTENTION, *MLP)
OLMO2 = (*around(REORDERED), *ATTENTION, *MLP)

GATE_AND_UP = (
    *linear_entries(
        f"{LAYER}.mlp.gate_up_proj", ("layers/mlp/gate", "layers/mlp/up"), "f d", "d f", joined="f"
    ),
    *linear_entries(f"{LAYER}.mlp.down_proj", "layers/mlp/down", "d f", "f d"),
)
"""A gated MLP whose first two kernels are one tensor."""

_THREE = tuple(f"layers/attention/{name}" for name in ("query", "key", "value"))
PHI3 = (
    *around(PRE),
    *linear_entries(f"{LAYER}.self_attn.qkv_proj", _THREE, "(n h) d", "d n h", joined="n"),
    *linear_entries(f"{LAYER}.self_attn.o_proj", "layers/attention/out", "d (n h)", "n h d"),
    *GATE_AND_UP,
)


def deepseek_entries(config: ModelConfig) -> tuple[Entry, ...]:
    """The tensors of V2 and V3. Their RoPE rotates neighbours of a head, ours its halves."""
    narrow, where = config.latent, f"{LAYER}.self_attn"
    half = narrow.rope_width // 2
    pairs = [n for i in range(half) for n in (i, half + i)]

    def after(begin):
        return (*range(begin), *(begin + n for n in pairs))

    query = f"{where}.q_proj" if narrow.query_rank is None else f"{where}.q_b_proj"
    entries = (
        *(entry for entry in around(PRE) if not entry.theirs.startswith(where)),
        *linear_entries(
            query, "layers/attention/query", "(n h) r", "r n h", order={"h": after(config.head_dim)}
        ),
        *linear_entries(f"{where}.q_a_proj", "layers/attention/query_down", "r d", "d r"),
        *norm_entries(f"{where}.q_a_layernorm", "layers/attention/query_norm"),
        *linear_entries(
            f"{where}.kv_a_proj_with_mqa",
            "layers/attention/latent_down",
            "r d",
            "d r",
            order={"r": after(narrow.rank)},
        ),
        *norm_entries(f"{where}.kv_a_layernorm", "layers/attention/latent_norm"),
        *linear_entries(
            f"{where}.kv_b_proj",
            ("layers/attention/key", "layers/attention/value"),
            "(n h) r",
            "r n h",
            joined="h",
        ),
        *linear_entries(f"{where}.o_proj", "layers/attention/out", "d (n h)", "n h d"),
        *MLP,
        *EXPERTS,
    )
    return (*entries, *(chained_entries(entries) if config.ahead_chained else ()))


def chained_entries(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Returns the tensors of blocks that predict further tokens, chained as DeepSeek-V3's, of which
    each is a layer with the tensors of all others."""
    further, ahead = "model.layers.{a}", "ahead"
    inside = [
        entry._replace(
            theirs=entry.theirs.replace("{i}", "{a}"),
            ours=tuple(path.replace("layers/", f"{ahead}/block/", 1) for path in entry.ours),
        )
        for entry in entries
        if "{i}" in entry.theirs
    ]
    return (
        *inside,
        *norm_entries(f"{further}.enorm", f"{ahead}/embedding_norm"),
        *norm_entries(f"{further}.hnorm", f"{ahead}/hidden_norm"),
        *linear_entries(f"{further}.eh_proj", f"{ahead}/joint", "o d", "d o"),
        *norm_entries(f"{further}.shared_head.norm", f"{ahead}/out_norm"),
        Entry(f"{further}.embed_tokens.weight", ("embedding/embedding",), "v d", "v d", copy=True),
        Entry(f"{further}.shared_head.head.weight", ("head/kernel",), "v d", "d v", copy=True),
    )


# --- others ---------------------------------------------------------------------------------------

_H = "transformer.h.{i}"
GPT2 = (
    Entry("transformer.wte.weight", ("embedding/embedding",), "v d", "v d"),
    Entry("transformer.wpe.weight", ("positions/embedding",), "p d", "p d"),
    *norm_entries(f"{_H}.ln_1", "layers/attention_norm"),
    *linear_entries(f"{_H}.attn.c_attn", _THREE, "d (n h)", "d n h", joined="n"),
    *linear_entries(f"{_H}.attn.c_proj", "layers/attention/out", "(n h) d", "n h d"),
    *norm_entries(f"{_H}.ln_2", "layers/mlp_norm"),
    *linear_entries(f"{_H}.mlp.c_fc", "layers/mlp/up", "d f", "d f"),
    *linear_entries(f"{_H}.mlp.c_proj", "layers/mlp/down", "f d", "f d"),
    *norm_entries("transformer.ln_f", "norm"),
    Entry("lm_head.weight", ("head/kernel",), "v d", "d v"),
)

_NEOX = "gpt_neox.layers.{i}"
GPT_NEOX = (
    Entry("gpt_neox.embed_in.weight", ("embedding/embedding",), "v d", "v d"),
    *norm_entries(f"{_NEOX}.input_layernorm", "layers/attention_norm"),
    *norm_entries(f"{_NEOX}.post_attention_layernorm", "layers/mlp_norm"),
    *linear_entries(f"{_NEOX}.attention.query_key_value", _THREE, "(n h) d", "d n h", joined="h"),
    *linear_entries(f"{_NEOX}.attention.dense", "layers/attention/out", "d (n h)", "n h d"),
    *linear_entries(f"{_NEOX}.mlp.dense_h_to_4h", "layers/mlp/up", "f d", "d f"),
    *linear_entries(f"{_NEOX}.mlp.dense_4h_to_h", "layers/mlp/down", "d f", "f d"),
    *norm_entries("gpt_neox.final_layer_norm", "norm"),
    Entry("embed_out.weight", ("head/kernel",), "v d", "d v"),
)

_BERT = "bert.encoder.layer.{i}"
_EMBEDDINGS = "bert.embeddings"
BERT = (
    Entry(f"{_EMBEDDINGS}.word_embeddings.weight", ("embedding/embedding",), "v d", "v d"),
    Entry(
        f"{_EMBEDDINGS}.position_embeddings.weight",
        ("positions/embedding",),
        "p d",
        "p d",
        folded=f"{_EMBEDDINGS}.token_type_embeddings.weight",
    ),
    *norm_entries(f"{_EMBEDDINGS}.LayerNorm", "embedding_norm"),
    *heads(
        f"{_BERT}.attention",
        "layers/attention",
        "self.query",
        "self.key",
        "self.value",
        "output.dense",
    ),
    *norm_entries(f"{_BERT}.attention.output.LayerNorm", "layers/attention_norm"),
    *linear_entries(f"{_BERT}.intermediate.dense", "layers/mlp/up", "f d", "d f"),
    *linear_entries(f"{_BERT}.output.dense", "layers/mlp/down", "d f", "f d"),
    *norm_entries(f"{_BERT}.output.LayerNorm", "layers/mlp_norm"),
    *linear_entries("cls.predictions.transform.dense", "transform/linear", "o d", "d o"),
    *norm_entries("cls.predictions.transform.LayerNorm", "transform/norm"),
    Entry("cls.predictions.bias", ("logits/bias",), "v", "v"),
)


def _t5_half(theirs: str, ours: str, last: int) -> tuple[Entry, ...]:
    """The encoder or the decoder. Its first layer holds the bias that all its layers use."""
    block, where = f"{theirs}.block.{{i}}.layer", f"{ours}layers"
    return (
        *heads(f"{block}.0.SelfAttention", f"{where}/attention", "q", "k", "v", "o"),
        *norm_entries(f"{block}.0.layer_norm", f"{where}/attention_norm"),
        *mlp(f"{block}.{last}.DenseReluDense", f"{where}/mlp", "wi_0", "wi_1", "wo"),
        *linear_entries(f"{block}.{last}.DenseReluDense.wi", f"{where}/mlp/up", "f d", "d f"),
        *norm_entries(f"{block}.{last}.layer_norm", f"{where}/mlp_norm"),
        *norm_entries(f"{theirs}.final_layer_norm", f"{ours}norm"),
        Entry(
            f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            (f"{ours}distances/bias",),
            "b n",
            "b n",
        ),
    )


def t5_entries(config: ModelConfig) -> tuple[Entry, ...]:
    """Returns the tensors of both kinds of T5: a gated MLP has wi_0 and wi_1, a plain one wi."""
    cross = "decoder.block.{i}.layer.1"
    all_of_it = (
        Entry("shared.weight", ("embedding/embedding",), "v d", "v d"),
        *_t5_half("encoder", "encoder/", 1),
        *_t5_half("decoder", "", 2),
        *heads(f"{cross}.EncDecAttention", "layers/cross", "q", "k", "v", "o"),
        *norm_entries(f"{cross}.layer_norm", "layers/cross_norm"),
        Entry("lm_head.weight", ("head/kernel",), "v d", "d v"),
    )
    other = (".wi.",) if config.gated else (".wi_0.", ".wi_1.")
    return tuple(entry for entry in all_of_it if not any(part in entry.theirs for part in other))
