"""What is kept and measured of rollouts: lines of rollouts.jsonl, and held-out figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gptjax.core.arrays import Params
from gptjax.data.layouts import Batch
from gptjax.data.store import Store
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.observe.log import Log
from gptjax.rewards import Judgement
from gptjax.train.experiment import Experiment
from gptjax.train.rollout import Rollout
from gptjax.train.rollout_columns import own_answers
from gptjax.train.rollouts import (
    Written,
    judges,
    place_rows,
    problems_of,
    rows_of,
    seeds_of,
    verdict_of,
    write,
)
from gptjax.train.sources import row_plan


def log_rollout(
    rollout: Rollout, log: Log, step: int, written: Sequence[Written], verdict: Judgement
) -> None:
    """Writes one of `rollout.log_every` rollouts to the log. A line is at the same time an example
    to learn (`prompt`, `completion`: texts, or messages) and one that was judged (`label`; null
    where it was not)."""
    if step // rollout.updates % rollout.log_every:
        return
    parts = verdict.parts
    log.rollout(
        step + 1,
        (
            {
                **_said(one),
                "label": bool(verdict.passed[i]) if verdict.judged[i] else None,
                "reward": float(verdict.total[i]) if verdict.judged[i] else None,
                "rewards": {name: values[i] for name, values in parts.items()},
                "finished": one.finished,
                "log_prob": round(sum(one.log_probs), 5),
                "ids": one.ids,
            }
            for i, one in enumerate(written)
        ),
    )


def _said(one: Written) -> dict[str, Any]:
    """A prompt and its answer, as `Conversations` and `Comparisons` read them."""
    prompt, tools = one.problem.record["prompt"], one.problem.record.get("tools")
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": one.text}
    answer = [{"role": "assistant", "content": one.text}]
    return {"prompt": prompt, "completion": answer, **({"tools": tools} if tools else {})}


def held_out(
    experiment: Experiment,
    tokenizer: Tokenizer,
    store: Store,
    params: Params,
    mesh: Mesh,
    rows: int | None,
    stop: Callable[[], bool] = lambda: False,
    measure: Callable[[Batch], Mapping[str, Any]] | None = None,
) -> dict[str, float] | None:
    """Writes one answer to each held-out problem, with the same draws at every evaluation, and
    returns `loss`, `unfinished` and `answer_length`; with rewards the mean `reward` and `pass_rate`
    (share of right ones, pass@1); `None` if `stop`, asked now and then, returned true.

    The loss is the negative reward; where rewards decide nothing it is that of the answers, left
    out without `measure`.

    Args:
      rows: only the first problems; `None` means all.
      measure: sums over a batch on the devices, see `step.evaluate_step`.
    """
    rewards, prompts, sums = judges(experiment), experiment.batch, np.zeros(2)
    rewarded = own_answers(experiment).rewarded
    plan = row_plan(experiment, store, seed=None, rows=prompts)
    count = plan.rows_per_epoch if rows is None else min(rows, plan.rows_per_epoch)
    written: list[Written] = []
    for number in range(-(-count // prompts)):
        problems = problems_of(store, plan, number)[: count - number * prompts]
        some = write(
            *(experiment, params, tokenizer, problems),
            seeds=seeds_of(experiment.seed, _HELD_OUT + number, len(problems)),
            mesh=mesh,
            each=1,
        )
        if measure and not rewarded:
            found = measure(place_rows(rows_of(experiment, some), experiment, mesh))
            sums += [float(found["loss"]), float(found["weight"])]
        written += some
        if stop():
            return None
    verdict = verdict_of(rewards, written)
    known = verdict.judged
    reward = float(verdict.total[known].mean()) if known.any() else math.nan
    passed = float(verdict.passed[known].mean()) if known.any() else math.nan
    loss = -reward if rewarded else float(sums[0] / sums[1]) if measure else None
    return {
        **({} if loss is None else {"loss": loss}),
        **({"reward": reward, "pass_rate": passed} if rewards else {}),
        "unfinished": float(np.mean([not one.finished for one in written])),
        "answer_length": float(np.mean([len(one.ids) for one in written])),
    }


_HELD_OUT = 1 << 31
"""Numbers of rollouts from here on are evaluations."""
