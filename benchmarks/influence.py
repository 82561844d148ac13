"""Does a gradient know which rows a prediction owes to? Its ranking of the training rows against
the truth: what happens to the prediction's loss when the model is trained without each of them.

    python benchmarks/influence.py --text input.txt

A tiny model learns the first characters of speeches of tiny Shakespeare; the queries are other
speeches. The truth is a mean over models from several initial weights, each trained once without
each row, by all rows at once. Printed is Spearman's rank correlation over the rows, a mean over
queries with its 95 % interval; words in common, and a truth from other initial weights, say what it
has to be measured by.
"""

from __future__ import annotations

import argparse
import functools
import random
import re
from pathlib import Path

from gptjax.core import backend


def speeches(text: str, length: int) -> list[str]:
    """The first `length` characters of each speech that is as long and not the twin of another."""
    parts = [part.strip() for part in re.split(r"\n\n+", text)]
    return list(dict.fromkeys(part[:length] for part in parts if len(part) >= length))


def rows_of(texts: list[str], symbols: list[str]):
    """A batch of texts by characters."""
    import numpy as np

    from gptjax.data.layouts import Batch

    ids = np.asarray([[symbols.index(one) for one in text] for text in texts], np.int32)
    return Batch(ids[:, :-1], ids[:, 1:], np.ones((len(ids), ids.shape[1] - 1), np.float32))


def trained(config, objective, rows, steps: int, rate: float, mask, seed):
    """Trains from the weights of a seed by AdamW on the mean loss of the rows that a mask keeps."""
    import jax
    import optax

    from gptjax import model

    optimizer = optax.adamw(rate, weight_decay=0.0)
    params = model.init(config, jax.random.key(seed))
    kept = rows._replace(weights=rows.weights * mask[:, None])

    def loss(params):
        total, (weight, _) = objective(params, kept, None)
        return total / weight

    def step(carried, _):
        params, state = carried
        changes, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, changes), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0][0]


def words_in_common(rows: list[str], queries: list[str]):
    """The share of a query's words that a row has, rarer words counting more."""
    import numpy as np

    split = [set(re.findall(r"\w+", text.lower())) for text in rows]
    weight = {word: 1 / sum(word in one for one in split) for one in split for word in one}
    asked = [set(re.findall(r"\w+", text.lower())) for text in queries]
    return np.asarray([[sum(weight[w] for w in a & r) for r in split] for a in asked])


def estimates(args, objective, rows, queries, train, seeds) -> dict:
    """What each method says, a mean over the seeds: name → [Q N]."""
    import jax
    import numpy as np

    from gptjax.lab import influence

    dot, cosine = (
        jax.jit(influence.gradient_influence(objective, kind)) for kind in ("dot", "cosine")
    )
    sketch = jax.jit(influence.projected_gradients(objective, args.size))
    times = [round(args.steps * part / 4) for part in (1, 2, 3, 4)]
    trainings = {time: jax.jit(functools.partial(train, time)) for time in times}
    found: dict[str, list] = {}
    for seed in seeds:
        for time in times:
            params = trainings[time](np.ones(args.rows), seed)
            key = jax.random.key(1000 + seed)
            sketched = [sketch(params, part, key) for part in (rows, queries)]
            one = {
                "inner product": dot(params, rows, queries),
                "cosine": cosine(params, rows, queries),
                "projection": influence.projected_influence(*sketched, args.damping),
            }
            for name, scores in one.items():
                found.setdefault(f"{name}, four checkpoints", []).append(scores)
                if time == args.steps:
                    found.setdefault(name, []).append(scores)
    return {name: np.mean(np.asarray(scores), 0) for name, scores in found.items()}


def problem(args: argparse.Namespace) -> tuple:
    """The texts of rows and queries, both as batches, the model's config and its objective."""
    from gptjax import model
    from gptjax.lab.observing import objective_of
    from gptjax.train.experiment import Experiment

    texts = speeches(args.text.read_text(encoding="utf-8"), args.length)
    texts = random.Random("speeches").sample(texts, args.rows + args.queries)
    symbols = sorted(set("".join(texts)))
    config = model.ModelConfig(
        vocab_size=len(symbols),
        context=args.length - 1,
        width=args.width,
        num_layers=1,
        num_heads=2,
        positions="rope",
        norm="rmsnorm",
        bias=False,
    )
    parts = texts[: args.rows], texts[args.rows :]
    return (
        parts,
        [rows_of(part, symbols) for part in parts],
        config,
        objective_of(Experiment(model=config)),
    )


def measured(args: argparse.Namespace) -> None:
    """Retrains, and prints the table."""
    import jax
    import numpy as np

    from gptjax.lab import influence
    from gptjax.lab.audit import row_losses

    texts, (rows, queries), config, objective = problem(args)
    losses = row_losses(objective)

    def train(steps, mask, seed):
        return trained(config, objective, rows, steps, args.rate, mask, seed)

    @jax.jit
    def truth_of(seed):
        return influence.left_out(
            lambda mask: train(args.steps, mask, seed),
            lambda params: losses(params, queries),
            args.rows,
        )

    truths = []
    for seed in range(2 * args.seeds):
        truths.append(np.asarray(truth_of(seed)))
        print(f"seed {seed}: retrained {args.rows + 1} times", flush=True)
    truth, other = np.mean(truths[: args.seeds], 0), np.mean(truths[args.seeds :], 0)
    found = estimates(args, objective, rows, queries, train, range(args.seeds))
    found["words in common"] = words_in_common(*texts)
    found["retraining from other initial weights"] = other
    print("| ranking | Spearman against retraining |\n|---|---|")
    for name, scores in found.items():
        one = influence.rank_agreement(scores, truth)
        print(f"| {name} | {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}] |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--length", type=int, default=33, help="characters of a row")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3, help="for the truth, and as many besides")
    parser.add_argument("--size", type=int, default=1024, help="numbers of a sketch")
    parser.add_argument("--damping", type=float, default=0.1)
    args = parser.parse_args()
    backend.configure()
    measured(args)


if __name__ == "__main__":
    main()
