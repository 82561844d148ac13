"""adapter_config.json of PEFT: what of it is known, and what it may say."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import require
from gptjax.model import ModelConfig

VERSION = "0.21.2"
"""The version of PEFT whose files these are."""

READ = (
    *("peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules"),
    *("use_rslora", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern"),
)
"""Keys that are translated."""

INDIFFERENT = (
    *("task_type", "auto_mapping", "revision", "inference_mode", "peft_version", "layers_pattern"),
    *("layers_to_transform", "exclude_modules", "fan_in_fan_out", "megatron_core"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
)
"""Keys that change nothing of what the tensors say."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "loftq_config": ({}, None),
}
"""Keys that may only say that something is not used; others than these may be null, false or
empty."""

UNUSED = (
    *("megatron_config", "trainable_token_indices", "eva_config", "corda_config", "lora_ga_config"),
    *("velora_config", "alora_invocation_tokens", "use_qalora", "monteclora_config"),
    *("layer_replication", "lora_bias", "target_parameters", "use_bdlora", "arrow_config"),
    *("kasa_config",),
)


class Settings(NamedTuple):
    """What adapter_config.json says."""

    rank: int = 8
    alpha: float = 8.0
    rs: bool = False
    dora: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    """Names of modules; empty where the file has a regular expression."""
    rank_pattern: Mapping[str, int] = {}
    alpha_pattern: Mapping[str, float] = {}
    base: str | None = None

    def scale(self, rank: int, alpha: float) -> float:
        """What multiplies a product."""
        return alpha / (math.sqrt(rank) if self.rs else rank)


def read_settings(where: Path, data: Mapping[str, Any]) -> Settings:
    """Checks and translates the file.

    Raises:
      ConfigError: a key is unknown, or asks for what ours don't compute; names it.
    """
    require(
        data.get("peft_type") == "LORA",
        f"{where} has peft_type {data.get('peft_type')!r}; LORA can be read (LoRA, rsLoRA, DoRA).",
    )
    for key, value in data.items():
        known = key in READ or key in INDIFFERENT or key in NEUTRAL or key in UNUSED
        require(known, f"{where} has the key {key!r}, which PEFT {VERSION} does not; remove it.")
        allowed = (
            NEUTRAL.get(key, (None, False, {}, [])) if key in (*NEUTRAL, *UNUSED) else (value,)
        )
        require(
            value in allowed,
            f"{where} has {key} {value!r}, which is not computed here; merge the adapter with PEFT"
            " and open the result.",
        )
    for key in ("r", "lora_alpha"):
        number = data.get(key)
        require(
            isinstance(number, int | float) and not isinstance(number, bool) and number > 0,
            f"{where} has {key} {number!r}; it needs a number above 0.",
        )
    targets = data.get("target_modules") or ()
    return Settings(
        rank=int(data["r"]),
        alpha=float(data["lora_alpha"]),
        rs=bool(data.get("use_rslora")),
        dora=bool(data.get("use_dora")),
        dropout=float(data.get("lora_dropout") or 0.0),
        targets=() if isinstance(targets, str) else tuple(sorted(targets)),
        rank_pattern=data.get("rank_pattern") or {},
        alpha_pattern=data.get("alpha_pattern") or {},
        base=data.get("base_model_name_or_path"),
    )


def pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches a module, as PEFT matches them."""
    for pattern, value in patterns.items():
        whole = pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})$"
        if re.match(whole, module):
            return value
    return default


def write_settings(
    settings: Settings,
    products: Mapping[str, tuple[int, float]],
    modules: Sequence[str],
    whole: Sequence[str],
    config: ModelConfig,
) -> dict[str, Any]:
    """What adapter_config.json has to say of products.

    Args:
      products: rank and scale of each adapted module.
      modules: all modules of the model.
      whole: modules that trained whole.
    """

    def alpha(rank: int, scale: float) -> float:
        exact = float(f"{scale * (math.sqrt(rank) if settings.rs else rank):.12g}")
        return int(exact) if exact.is_integer() else exact

    each = {name: (rank, alpha(rank, scale)) for name, (rank, scale) in products.items()}
    ranks, alphas = (collections.Counter(values) for values in zip(*each.values(), strict=True))
    rank, common = ranks.most_common(1)[0][0], alphas.most_common(1)[0][0]
    task = "SEQ_2_SEQ_LM" if config.encoder_layers else "CAUSAL_LM" if config.causal else None
    return {
        "peft_type": "LORA",
        "peft_version": VERSION,
        "task_type": task,
        "base_model_name_or_path": settings.base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": common,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rs,
        "use_dora": settings.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": _targets(list(each), modules),
        "modules_to_save": list(whole) or None,
        "rank_pattern": {re.escape(n): r for n, (r, _) in each.items() if r != rank},
        "alpha_pattern": {re.escape(n): a for n, (_, a) in each.items() if a != common},
        "init_lora_weights": True,
    }


def _targets(adapted: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Names of modules: the last part alone where all modules with it are adapted."""
    last = {name: name.rpartition(".")[2] for name in modules}
    partly = {last[name] for name in modules if name not in set(adapted)}
    return sorted({name if last[name] in partly else last[name] for name in adapted})
