"""Loss and exposure of canaries against epsilon, on tiny Shakespeare by characters.

    python benchmarks/privacy.py --text input.txt --out runs/benchmark_privacy

It trains configs/shakespeare_private.py at epsilon 1, 3, 8 and without noise, each on the same text
with canaries in it: rows of random characters, of which a fair coin put each in or left it out. Of
each model it prints the held-out loss, the mean exposure of the canaries that are in, the area
under the curve of membership by loss, and the lower bound of epsilon that the canaries prove. Runs
that are finished are not trained again, so the command may be interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from pathlib import Path

from gptjax.core import backend, user_config

T = 64
"""Characters of a row, and of a canary."""


def write_text(source: Path, folder: Path, count: int, others: int) -> tuple[list, list, list]:
    """Writes text.txt, which begins with a row for each canary that is in it; returns all canaries,
    whether each is in, and further texts of the same kind."""
    whole = source.read_text(encoding="utf-8")
    numbers, letters = random.Random("canaries"), sorted(set(whole))
    made = ["".join(numbers.choices(letters, k=T)) for _ in range(count + others)]
    inserted = [numbers.random() < 0.5 for _ in range(count)]
    kept = "".join(one for one, is_in in zip(made[:count], inserted, strict=True) if is_in)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(kept + whole, encoding="utf-8")
    return made[:count], inserted, made[count:]


def main() -> None:
    """Trains what is not trained yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_privacy"))
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0, 8.0, 0.0])
    parser.add_argument("--canaries", type=int, default=400)
    parser.add_argument("--others", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    backend.configure()
    made, inserted, others = write_text(args.text, args.out, args.canaries, args.others)
    print("| ε | noise | held-out loss | exposure, bits | membership | ε at least |")
    print("|---|---|---|---|---|---|", flush=True)
    results = []
    for epsilon in args.epsilon:
        found = measured(args, epsilon, made, inserted, others)
        results.append(found)
        shown = "∞" if not epsilon else f"{epsilon:g}"
        print(
            f"| {shown} | {found['noise']:.3f} | {found['loss']:.4f} | {found['exposure']:.2f} of"
            f" {found['most']:.1f} | {found['membership']:.3f} | {found['at_least']:.2f} |",
            flush=True,
        )
    (args.out / "privacy.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measured(
    args: argparse.Namespace, epsilon: float, made: list, inserted: list, others: list
) -> dict:
    """Trains at one epsilon, 0 for none, and attacks the model."""
    import numpy as np

    from gptjax.data import Text
    from gptjax.lab import audit
    from gptjax.lab.private import train_privately
    from gptjax.lab.promise import FILE, Privacy
    from gptjax.observe.log import read_metrics
    from gptjax.train.experiment import Experiment

    file = Path(__file__).parents[1] / "configs/shakespeare_private.py"
    experiment = user_config.load_python(Experiment, file)
    privacy = user_config.load_python(Privacy, file, "privacy")
    source = Text(str(args.out / "text.txt"))
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, source=source, split="tail"),
        steps=args.steps,
        batch=args.batch,
    )
    changes = {"epsilon": epsilon} if epsilon else {"noise": 0.0}
    run = args.out / f"epsilon-{epsilon:g}"
    lines = [line for line in read_metrics(run) if "validation_loss" in line]
    if not lines or lines[-1]["step"] < args.steps:
        train_privately(experiment, dataclasses.replace(privacy, **changes), run)
        lines = [line for line in read_metrics(run) if "validation_loss" in line]
    promised = json.loads((run / FILE).read_text("utf-8"))
    losses = losses_of(run, [*made, *others])
    is_in, canaries = np.array(inserted), losses[: len(made)]
    exposed = audit.exposures(canaries[is_in], losses[len(made) :])
    roc = audit.membership(canaries[is_in], canaries[~is_in])
    guesses = len(made) // 2
    return {
        "epsilon": promised["epsilon"],
        "noise": promised["mechanism"]["noise"],
        "loss": lines[-1]["validation_loss"],
        "exposure": float(exposed.mean()),
        "most": float(np.log2(len(others) + 1)),
        "membership": roc.area,
        "at_least": audit.audited_epsilon(canaries, is_in, promised["delta"], guesses),
    }


def losses_of(run: Path, texts: list[str]):
    """The mean loss of each text of T characters."""
    import jax
    import numpy as np

    import gptjax
    from gptjax.data.layouts import Batch
    from gptjax.lab.audit import row_losses
    from gptjax.lab.observing import objective_of
    from gptjax.train.experiment import Experiment

    opened = gptjax.load(run)
    ids = np.stack([np.asarray(opened.tokenizer.encode(text)) for text in texts]).astype(np.int32)
    tokens, targets = ids, np.concatenate([ids[:, 1:], ids[:, :1]], 1)
    weights = np.broadcast_to(np.arange(T) < T - 1, ids.shape).astype(np.float32)
    objective = objective_of(Experiment(model=opened.config))
    return np.asarray(
        jax.jit(row_losses(objective))(opened.params, Batch(tokens, targets, weights))
    )


if __name__ == "__main__":
    main()
