"""Plans generation on a machine: the cache, the largest batch, and the speed that memory allows;
of a run that learns from rewards its rollouts."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from gptjax.core.config import require
from gptjax.model import ModelConfig
from gptjax.plan import target as targets
from gptjax.plan.report import gib
from gptjax.plan.target import Target
from gptjax.sharding.mesh import num_row_shards
from gptjax.train.experiment import Experiment
from gptjax.train.overview import model_facts


def plan_sampling(config: ModelConfig, target: Target, length: int | None = None) -> dict[str, Any]:
    """Returns how many texts of `length` tokens fit beside the weights, and bounds on tokens per
    second.

    Each new token of each text reads the text's cache, and all texts together read the weights
    once. These bytes must come from memory, so the rate is a bound, which decoding approaches while
    products are small. Weights are split over all devices and held in the compute type; the number
    of experts read is that which a batch of this size is likely to choose. Communication is not
    counted.

    Args:
      length: tokens of a text; `None` means the context.

    Raises:
      ConfigError: the target's memory bandwidth is unknown.
    """
    require(
        target.chip is not None,
        f"target {target} has no known memory bandwidth; sampling is planned for"
        f" {', '.join(targets.CHIPS)}.",
    )
    chip, count, facts = target.chip, len(targets.stand_in_devices(target)), model_facts(config)
    size = 2 if config.compute == "bfloat16" else 4
    length = length or config.context
    weights, cache = facts["parameters"] * size, facts["cache_per_token"] * length
    room = chip.memory * count - weights
    text = cache + facts["state_bytes"]
    most = max(0, int(room // text))
    rows = sorted({1, *(2**n for n in range(3, 20, 3) if 2**n < most), most} - {0})
    return {
        "target": str(target),
        "devices": count,
        "fits": most > 0,
        "length": length,
        "weight_bytes": weights,
        "cache_bytes_per_token": facts["cache_per_token"],
        "state_bytes_per_text": facts["state_bytes"],
        "cache_bytes_per_text": text,
        "largest_batch": most,
        "speeds": (
            [
                {
                    "batch": n,
                    "tokens_per_second": n
                    / seconds_per_token(config, facts, n, cache, size, chip, count),
                }
                for n in rows
            ]
            if most
            else []
        ),
    }


def seconds_per_token(
    config: ModelConfig,
    facts: dict[str, Any],
    rows: int,
    cache: float,
    size: int,
    chip: targets.Chip,
    count: int,
) -> float:
    """Returns the least time of one token for each of `rows` texts, half full on average: memory or
    products, whichever is longer.

    Args:
      facts: from `model_facts`.
      cache: bytes of one text's keys and values; states of recurrent layers are in `facts`.
      size: bytes of a weight.
      count: number of chips.
    """
    idle = facts["parameters"] - facts["active_parameters"]
    if config.experts is not None:
        # the probability that no text chooses an expert, if all are equally likely
        idle *= (1 - config.experts.active / config.experts.count) ** (rows - 1)
    read = (facts["parameters"] - idle) * size + rows * (cache / 2 + facts["state_bytes"])
    return max(
        read / (chip.bandwidth * count), 2 * facts["active_parameters"] * rows / (chip.peak * count)
    )


def plan_rollout(
    experiment: Experiment, target: Target, mesh: Mesh, state: float
) -> dict[str, Any]:
    """Returns what a rollout needs beside the state of training, which stays in memory. It is never
    at the same time as a step.

    Args:
      state: bytes of a device's parameters, frozen weights and optimizer.

    Returns:
      `rows`, answers that are written at once, of `answers`; `new_tokens`, the most of each;
      `cache_bytes_per_device`, of these rows and of the prompts that are read for them, as long as
      the context; `logits_bytes_per_device` of one token in each row; `peak_bytes_per_device` with
      the state; `seconds`, a lower bound where every answer is as long as it may be, or `None` if
      the machine's bandwidth is unknown; `seconds_per_step`, the share of each step that learns
      from it. Reading prompts, rewards and reference are not counted.
    """
    config, rollout, facts = experiment.model, experiment.rollout, model_facts(experiment.model)
    assert rollout is not None
    rows = min(rollout.rows or experiment.batch, experiment.batch)
    shards = num_row_shards(mesh)
    prompts = -(-rows // rollout.answers)
    text = facts["cache_per_token"] * config.context
    cache = -(-(rows + prompts) // shards) * (text + facts["state_bytes"])
    logits = -(-rows // shards) * config.vocabulary * 4
    seconds = None
    if target.chip is not None:
        size = 2 if config.compute == "bfloat16" else 4
        one = seconds_per_token(config, facts, rows, text, size, target.chip, mesh.size)
        seconds = -(-experiment.batch // rows) * rollout.new_tokens * one
    return {
        "rows": rows,
        "answers": experiment.batch,
        "new_tokens": rollout.new_tokens,
        "cache_bytes_per_device": cache,
        "logits_bytes_per_device": logits,
        "peak_bytes_per_device": round(state + cache + logits),
        "seconds": seconds,
        "seconds_per_step": seconds and seconds / rollout.updates,
    }


def format_sampling(facts: dict[str, Any]) -> str:
    """Formats a sampling plan for the terminal."""
    lines = [
        f"target       {facts['target']}: {facts['devices']:,} devices",
        f"weights      {gib(facts['weight_bytes'])} GiB over all devices",
        (
            f"cache        {facts['cache_bytes_per_token']:,} bytes per token,"
            f" {gib(facts['cache_bytes_per_text'])} GiB per text of {facts['length']:,} tokens"
        ),
        f"batch        at most {facts['largest_batch']:,} texts at once",
    ]
    if not facts["fits"]:
        lines.append("verdict      does NOT fit: there is no room for one text beside the weights")
    lines += [
        f"speed        at most {row['tokens_per_second']:,.0f} tokens/s with {row['batch']:,} at"
        " once"
        for row in facts["speeds"]
    ]
    return "\n".join(lines)
