"""Plans a server: the memory of weights, rows, and of what stands beside them, and the speed that
memory allows."""

from __future__ import annotations

import os
from typing import Any

import jax

from gptjax import model
from gptjax.core.config import require
from gptjax.model import ModelConfig
from gptjax.plan import target as targets
from gptjax.plan.report import gib
from gptjax.plan.sampling import seconds_per_token
from gptjax.plan.target import Target
from gptjax.train.overview import model_facts, tree_bytes


def plan_serving(
    config: ModelConfig,
    target: Target,
    *,
    slots: int = 8,
    context: int | None = None,
    cache_gib: float = 1.0,
) -> dict[str, Any]:
    """Returns what `gptjax serve` holds at one time, all devices together, and whether it fits.

    Args:
      slots: requests that are answered at the same time.
      context: tokens of a request, prompt and answer; `None` is the model's, at most 2,048.
      cache_gib: of beginnings of prompts that were read before.

    Returns:
      `weight_bytes`, in the compute type; `rows_bytes`, keys, values and states of all slots,
      whether used or not; `table_bytes`, tables of constraints, logits and settings; `cache_bytes`
      and `cache_tokens` of the prefix cache; `most_slots` that would fit; `tokens_per_second`, an
      upper bound with all slots busy and half full, `None` on a CPU, whose bandwidth is not known.

    Raises:
      ConfigError: the model has no room for a request of two tokens.
    """
    from gptjax.serve.slots import MASKS, STATES  # of a room beside this one

    context = min(config.context, context or 2048)
    require(context >= 2 and slots >= 1, "serve needs at least one slot and two tokens of context.")
    chip, count = target.chip, len(targets.stand_in_devices(target)) if target.chip else 1
    memory = (
        chip.memory * count if chip else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    size = 2 if config.compute == "bfloat16" else 4
    facts = model_facts(config)
    keys, states = _row_bytes(config, context)
    row = keys + states
    beside = 6 * 4 * config.vocabulary + context * (4 + 4 + 20 * 8 + 4)
    """Of a slot: logits, settings, text and alternatives."""
    tables = 4 * STATES * 258 + 2 * 4 * MASKS * -(-config.vocabulary // 32)
    weights, cache = facts["parameters"] * size, 0 if states else int(cache_gib * 2**30)
    left = memory - weights - tables - cache
    needed = weights + tables + cache + slots * (row + beside)
    seconds = chip and seconds_per_token(config, facts, slots, keys, size, chip, count)
    return {
        "target": str(target),
        "devices": count,
        "fits": needed <= memory,
        "slots": slots,
        "context": context,
        "weight_bytes": weights,
        "row_bytes": row,
        "rows_bytes": slots * row,
        "table_bytes": tables + slots * beside,
        "cache_bytes": cache,
        "cache_tokens": cache // max(1, row // context),
        "needed_bytes": needed,
        "memory_bytes": int(memory),
        "most_slots": max(0, int(left // (row + beside))),
        "tokens_per_second": seconds and slots / seconds,
    }


def _row_bytes(config: ModelConfig, context: int) -> tuple[int, int]:
    """Keys and values of one row; states, of which no beginning is kept for other requests."""
    cache = jax.eval_shape(lambda: model.empty_cache(config, 1, context))
    return tree_bytes(cache.groups), tree_bytes(cache.states)


def format_serving(facts: dict[str, Any]) -> str:
    """Formats the plan of a server for the terminal."""
    verdict = "fits" if facts["fits"] else "does NOT fit"
    lines = [
        f"target       {facts['target']}: {gib(facts['memory_bytes'])} GiB in all",
        f"weights      {gib(facts['weight_bytes'])} GiB",
        (
            f"rows         {gib(facts['rows_bytes'])} GiB: {facts['slots']} requests at once, of"
            f" {facts['context']:,} tokens each"
        ),
        f"tables       {gib(facts['table_bytes'])} GiB: constraints, logits, settings",
        f"prefixes     {gib(facts['cache_bytes'])} GiB, or {facts['cache_tokens']:,} tokens",
        (
            f"verdict      {verdict}: {gib(facts['needed_bytes'])} GiB are needed; at most"
            f" {facts['most_slots']:,} requests at once (--slots)"
        ),
    ]
    if facts["tokens_per_second"]:
        lines.append(f"speed        at most {facts['tokens_per_second']:,.0f} tokens/s in all")
    return "\n".join(lines)
