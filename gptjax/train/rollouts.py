"""Batches of answers that the model wrote itself: (step, state) → batch, pure.

A rollout draws prompts by its number, writes answers with the parameters that the step begins with,
judges them, and lays them out as rows. Parameters, step and seed decide it, so a resumed run sees
the same rollouts. What is trained are the ids that were drawn, never their text.

Read `rollouts` (the source of a run), then `write`, `verdict_of`, `rows_of` in the order in which
it calls them; the loss has the last word (`OwnAnswers.learned`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from gptjax import generate
from gptjax.core import processes
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.core.trees import combine
from gptjax.data import Plan, batches
from gptjax.data.layouts import Batch
from gptjax.data.prepare import Prepared
from gptjax.data.store import Store
from gptjax.data.tasks.prompts import Problem, Prompts
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate import GenerateConfig
from gptjax.losses import Frozen
from gptjax.model import ModelConfig
from gptjax.rewards import Answered, Judge, Judgement, RewardConfig, judge
from gptjax.sharding.mesh import local_rows, place_batch, to_host, writing_mesh
from gptjax.train.experiment import Experiment
from gptjax.train.rollout_columns import blank_rows, own_answers, reading, rollout_of
from gptjax.train.sources import Source, row_plan
from gptjax.train.step import TrainState


class Written(NamedTuple):
    """An answer that the model wrote."""

    problem: Problem
    text: str
    ids: list[int]
    """Its tokens, with the one that ended it."""
    log_probs: list[float]
    """ln p of each of them, as the sampler recorded it."""
    finished: bool
    """The model ended it; otherwise it was as long as an answer may be."""

    @property
    def answered(self) -> Answered:
        """What rewards see of it."""
        return Answered(
            prompt=self.problem.prompt,
            answer=self.text,
            record=self.problem.record,
            finished=self.finished,
            tokens=len(self.ids),
        )


Seen = Callable[[int, Sequence[Written], Judgement], Any]
"""Gets the number of finished steps, the answers written there and their rewards."""


def rollouts(
    experiment: Experiment,
    data: Prepared,
    mesh: Mesh,
    models: Mapping[str, ModelConfig],
    frozen: Frozen,
    shift: int = 0,
    seen: Seen | None = None,
) -> Source:
    """Returns the source of batches that the model writes itself.

    Args:
      models: architectures of the further models that the loss needs.
      frozen: weights that do not train.
      shift: rows that batches of another size have read beyond step · B.
      seen: called with each rollout, on every process.

    Raises:
      ConfigError: a reward can't be built, or a prompt leaves no room for an answer.
    """
    rollout, tokenizer = rollout_of(experiment), data.tokenizer
    prompts = experiment.batch // rollout.answers
    plan = row_plan(experiment, data.train, seed=experiment.seed, rows=prompts)
    plan = plan._replace(shift=shift // (rollout.answers * rollout.updates))
    require_room(experiment, data.train)
    loss = own_answers(experiment)
    rewards, read = judges(experiment), reading(experiment, mesh, models)
    last: dict[int, Batch] = {}

    placed = functools.partial(place_rows, experiment=experiment, mesh=mesh)

    def source(step: int, state: TrainState) -> Batch:
        number, place = divmod(step, rollout.updates)
        if number not in last:
            if place:
                raise ValueError(f"step {step} is inside a rollout; begin at {step - place}.")
            problems = problems_of(data.train, plan, number)
            params = combine(frozen, state.trainable)
            written = write(
                *(experiment, params, tokenizer, problems),
                seeds=seeds_of(experiment.seed, number, len(problems)),
                mesh=mesh,
            )
            verdict = verdict_of(rewards, written)
            batch = rows_of(experiment, written, verdict)
            known = read(params, frozen, placed(batch)) if read else {}
            known = {name: to_host(values) for name, values in known.items()}
            last.clear()
            last[number] = placed(loss.learned(batch, known, rollout.answers))
            if seen is not None:
                seen(step, written, verdict)
        return last[number]

    return source


def place_rows(batch: Batch, experiment: Experiment, mesh: Mesh) -> Batch:
    """Puts rows that every process holds onto the devices, filled up with blank ones."""
    missing = experiment.batch - len(batch.tokens)
    if missing:
        blank = blank_rows(experiment, missing)
        batch = jax.tree.map(lambda *parts: np.concatenate(parts), batch, blank)
    mine = local_rows(mesh, experiment.batch)
    own = jax.tree.map(lambda leaf: leaf[mine], batch)
    return place_batch(own, mesh, experiment.batch)


def judges(experiment: Experiment) -> list[tuple[RewardConfig, Judge]]:
    """Returns the rewards of an experiment with what they do, built once.

    Raises:
      ConfigError: one can't be built.
    """
    return [
        (reward, _built(reward, reward.fingerprint())) for reward in rollout_of(experiment).rewards
    ]


@functools.lru_cache(maxsize=16)
def _built(reward: RewardConfig, fingerprint: str) -> Judge:
    """A reward may hold a model or a process, which a second one of its kind would repeat."""
    return reward.build()


def require_room(experiment: Experiment, store: Store) -> None:
    """Refuses prompts that leave too little of the context for an answer.

    Raises:
      ConfigError: names the lengths.
    """
    longest = int(cast(Prompts, experiment.data.task).sizes(store, with_encoder=False).max())
    context, new = experiment.model.context, rollout_of(experiment).new_tokens
    require(
        longest + new <= context,
        f"the longest prompt has {longest} tokens and an answer up to {new}, more than"
        f" model.context, which is {context}; use --model.context {longest + new}, or fewer"
        " --rollout.new-tokens.",
    )


def seeds_of(seed: int, rollout: int, count: int) -> list[int]:
    """Returns the seed of each prompt of a rollout, a function of these numbers alone."""
    draws = (np.random.SeedSequence([seed, rollout, place]) for place in range(count))
    return [int(draw.generate_state(1)[0]) for draw in draws]


def problems_of(store: Store, plan: Plan, number: int) -> list[Problem]:
    """Returns the problems of a rollout."""
    task, columns = cast(Prompts, plan.task), batches.batch(store, plan, number).columns
    assert columns is not None
    return [task.problem(store, int(i)) for i in columns["example"] if i >= 0]


# --- a rollout


def write(
    experiment: Experiment,
    params: Params,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    seeds: Sequence[int],
    *,
    mesh: Mesh,
    each: int | None = None,
) -> list[Written]:
    """Writes answers to problems with the parameters as they train, on the slot engine: all to the
    first one, then all to the next.

    Args:
      each: answers to a problem; `None` means as many as in training.
    """
    rollout, loss = rollout_of(experiment), own_answers(experiment)
    each = rollout.answers if each is None else each
    settings = [
        GenerateConfig(
            new_tokens=rollout.new_tokens,
            temperature=loss.temperature,
            top_k=rollout.top_k,
            top_p=rollout.top_p,
            num_samples=each,
            seed=seed,
        )
        for seed in seeds
    ]
    completions = generate.complete(
        *(experiment.model, params, tokenizer, [problem.ids for problem in problems], settings),
        task=experiment.data.task,
        batch=rollout.rows or each * len(problems),
        mesh=writing_mesh(mesh),
    )
    written = []
    for number, done in enumerate(completions):
        end = [] if done.end is None else [done.end]
        written.append(
            Written(
                problem=problems[number // each],
                text=done.text,
                ids=[*done.ids, *(i for i, _ in end)],
                log_probs=[*done.logprobs, *(p for _, p in end)],
                finished=bool(end),
            )
        )
    return written


def verdict_of(
    rewards: Sequence[tuple[RewardConfig, Judge]], written: Sequence[Written]
) -> Judgement:
    """Judges answers on the first process, for all: a reward may depend on its machine."""

    def verdict() -> Any:
        found = judge(rewards, [one.answered for one in written])
        return {
            "total": [float(x) for x in found.total],
            "judged": [bool(x) for x in found.judged],
            "passed": [bool(x) for x in found.passed],
            "parts": found.parts,
        }

    found = processes.by_first("rewards", verdict)
    return Judgement(
        np.asarray(found["total"], np.float32),
        np.asarray(found["judged"], bool),
        np.asarray(found["passed"], bool),
        found["parts"],
    )


def rows_of(
    experiment: Experiment, written: Sequence[Written], verdict: Judgement | None = None
) -> Batch:
    """Lays answers out as rows of ids, with what is known of each answer as columns."""
    batch = blank_rows(experiment, len(written))
    columns = batch.columns or {}
    for row, one in enumerate(written):
        ids = np.asarray([*one.problem.ids, *one.ids], np.int32)
        first, last = len(one.problem.ids) - 1, len(ids) - 1
        batch.tokens[row, :last], batch.targets[row, :last] = ids[:-1], ids[1:]
        batch.positions[row, :last] = np.arange(last)
        batch.segments[row, :last] = 1
        batch.weights[row, first:last] = 1
        columns["sampled"][row, first:last] = one.log_probs
    if verdict is not None:
        known = verdict.judged
        columns["reward"][:] = np.where(known, np.nan_to_num(verdict.total), 0)
        columns["judged"][:], columns["passed"][:] = known, verdict.passed & known
    columns["finished"][:] = [one.finished for one in written]
    return batch
