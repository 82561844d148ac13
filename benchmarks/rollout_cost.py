"""What a rollout costs: tokens per second of the answers that a step learns from, against one
compiled loop that writes as many (`generate.generate`), in turns.

    python benchmarks/rollout_cost.py RUN [--turns 9]

RUN is a run with a rollout. Both write the same number of answers to the same prompts with the same
settings; the loop knows no requests, texts or rewards. Times are of the wall.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from gptjax import generate
from gptjax.core import backend
from gptjax.generate import Sampling


def main() -> None:
    """Prints the medians and their ratio."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("run", type=Path)
    flags.add_argument("--turns", type=int, default=9)
    given = flags.parse_args()
    backend.configure()
    from gptjax.cli.arguments import read_experiment
    from gptjax.data.prepare import prepare
    from gptjax.runs.open import open_model
    from gptjax.sharding.mesh import make_mesh
    from gptjax.train import rollouts
    from gptjax.train.sources import row_plan

    experiment, opened = read_experiment(given.run)[0], open_model(given.run)
    rollout, config = experiment.rollout, opened.config
    assert rollout is not None and opened.tokenizer is not None
    data, mesh = prepare(experiment.data, given=opened.tokenizer), make_mesh(experiment.mesh)
    prompts = experiment.batch // rollout.answers
    plan = row_plan(experiment, data.train, seed=0, rows=prompts)
    rewards, tokenizer = rollouts.judges(experiment), opened.tokenizer
    rows = experiment.batch
    sampling = Sampling(np.ones(rows, np.float32), np.full(rows, config.vocabulary), np.ones(rows))
    stop = tuple({tokenizer.end_of_document, *tokenizer.ends} - {None})
    seconds: dict[str, list[float]] = {"engine": [], "loop": [], "rewards": []}
    rates: dict[str, list[float]] = {"engine": [], "loop": []}
    for turn in range(given.turns + 1):
        problems = rollouts.problems_of(data.train, plan, turn)
        seeds = rollouts.seeds_of(0, turn, prompts)
        begun = time.perf_counter()
        written = rollouts.write(experiment, opened.params, tokenizer, problems, seeds, mesh=mesh)
        middle = time.perf_counter()
        rollouts.verdict_of(rewards, written)
        judged = time.perf_counter()
        ids = [problem.ids for problem in problems for _ in range(rollout.answers)]
        widest = max(map(len, ids))
        padded = np.asarray([[*one, *[0] * (widest - len(one))] for one in ids], np.int32)
        found = generate.generate(
            *(config, opened.params, padded, np.asarray([len(one) for one in ids])),
            jax.random.split(jax.random.key(turn), rows),
            sampling=sampling,
            new_tokens=rollout.new_tokens,
            stop=stop,
            vocabulary=tokenizer.vocab_size,
        )
        ended = time.perf_counter()
        if not turn:
            continue  # it compiles
        spent = {"engine": middle - begun, "rewards": judged - middle, "loop": ended - judged}
        for name, value in spent.items():
            seconds[name].append(value)
        rates["engine"].append(sum(len(one.ids) for one in written) / spent["engine"])
        rates["loop"].append(float(found.lengths.sum() + found.finished.sum()) / spent["loop"])
    pairs = zip(rates["engine"], rates["loop"], strict=True)
    print(f"{rows} answers: {statistics.median(rates['engine']):,.0f} tokens/s of the engine,")
    print(f"{statistics.median(rates['loop']):,.0f} of one loop;")
    print(f"ratio {statistics.median(a / b for a, b in pairs):.2f}")
    print({name: round(statistics.median(values), 4) for name, values in seconds.items()})


if __name__ == "__main__":
    main()
