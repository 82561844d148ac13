"""Training on grids and with zeros, on tiny Shakespeare's characters: `python
benchmarks/grid_training.py TEXT`.

One model is trained. Then, for each grid: its loss rounded to the nearest, and after `--more` steps
of training on the grid or beside it. Then half of its weights are zero, by magnitude and by Wanda:
the loss at once, and after as many steps that keep the zeros. All losses are of the same held-out
text, in nats per character.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from gptjax import compress
from gptjax.cli.convert import write_run
from gptjax.compress.moments import input_moments, text_rows
from gptjax.core import user_config
from gptjax.core.arrays import Params
from gptjax.data import Text
from gptjax.formats import OpenedModel
from gptjax.losses import QuantisationAware
from gptjax.runs.open import open_model
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.train.optim import Schedule
from gptjax.train.sparse import Prune
from gptjax.weights import dense
from gptjax.weights.rounding import Rounding

CONFIG = Path(__file__).parents[1] / "configs/shakespeare_char.py"


def main() -> None:
    """Trains, rounds, prunes; prints each loss."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--more", type=int, default=200)
    parser.add_argument("--peak", type=float, default=5e-4)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--kinds", nargs="*", default=["int4", "int3", "int2"])
    parser.add_argument("--patterns", nargs="*", default=["half", "2:4"])
    parser.add_argument("--dir", type=Path, default=Path("runs/grids"))
    options = parser.parse_args()
    recipe = user_config.load_python(Experiment, CONFIG)
    data = dataclasses.replace(recipe.data, source=Text(str(options.text)))
    base = dataclasses.replace(recipe, data=data, steps=options.steps)
    if not (options.dir / "base/report.json").exists():
        train(base, options.dir / "base")
    opened = open_model(options.dir / "base")
    rows = held_out(options, opened)
    said(options, "dense", loss(opened, opened.params, rows))
    further = dataclasses.replace(
        base,
        start=str(options.dir / "base"),
        steps=options.more,
        optim=dataclasses.replace(base.optim, peak=options.peak),
        schedule=Schedule("cosine", warmup=10),
    )
    after = trained(further, options.dir / "more")
    said(options, "dense, trained on", loss(after, after.params, rows))
    for kind in options.kinds:
        grid = Rounding(kind, options.group)  # type: ignore[arg-type]
        said(options, f"{kind}, nearest", loss(opened, narrow(opened, grid), rows))
        said(options, f"{kind}, trained on, nearest", loss(after, narrow(after, grid), rows))
        on_grid = dataclasses.replace(further, loss=QuantisationAware(grid))
        own = trained(on_grid, options.dir / kind)
        said(options, f"{kind}, trained on the grid", loss(own, narrow(own, grid), rows))
    zeros(options, opened, further, rows)


def zeros(
    options: argparse.Namespace, opened: OpenedModel, further: Experiment, rows: np.ndarray
) -> None:
    """Half of the weights as zeros, at once and after steps that keep them."""
    assert opened.tokenizer is not None
    text = text_rows(opened.tokenizer, options.text, 64, 256)
    moments = input_moments(opened.config, opened.params, text)
    for score in ("magnitude", "wanda"):
        for kind in options.patterns:
            pattern = None if kind == "half" else kind
            how = compress.Pruning(0.5, pattern, score)  # type: ignore[arg-type]
            params = compress.prune_weights(opened.config, opened.params, how, moments)
            name = f"{pattern or 'half zeros'}, {score}"
            said(options, name, loss(opened, params, rows))
            pruned = options.dir / name.replace(", ", "_").replace(" ", "_").replace(":", "of")
            if not pruned.exists():
                write_run(pruned, opened._replace(params=params))
            kept = dataclasses.replace(further, start=str(pruned), prune=Prune(keep_zeros=True))
            own = trained(kept, pruned.with_name(pruned.name + "_more"))
            same = [
                np.array_equal(np.asarray(a) == 0, np.asarray(b) == 0)
                for a, b in zip(_kernels(params), _kernels(own.params), strict=True)
            ]
            said(options, f"{name}, trained on (zeros as before: {all(same)})",
                 loss(own, own.params, rows))  # fmt: skip


def _kernels(params: Params) -> list:
    layers = params["layers"]
    return [part["kernel"] for branch in ("attention", "mlp") for part in layers[branch].values()]


def trained(experiment: Experiment, path: Path) -> OpenedModel:
    """A run, made if it is not there."""
    if not (path / "report.json").exists():
        train(experiment, path)
    return open_model(path)


def narrow(opened: OpenedModel, grid: Rounding) -> Params:
    """The kernels of the layers rounded to the nearest."""
    how = compress.Quantising(grid, outer="float")
    return compress.quantise_weights(opened.config, opened.params, how)


def held_out(options: argparse.Namespace, opened: OpenedModel) -> np.ndarray:
    """400 rows of the last tenth of the text, which the run held out."""
    assert opened.tokenizer is not None
    text = options.text.read_text()
    file = options.dir / "held_out.txt"
    file.write_text(text[len(text) * 9 // 10 + 1 :])
    return text_rows(opened.tokenizer, file, opened.config.context, 400)


def loss(opened: OpenedModel, params: Params, rows: np.ndarray) -> float:
    """Nats per character."""
    wide = jax.tree.map(dense, params, is_leaf=lambda leaf: not isinstance(leaf, dict))
    return compress.compared(opened.config, wide, opened.config, wide, rows).loss


def said(options: argparse.Namespace, name: str, value: float) -> None:
    """Prints a figure and keeps it."""
    print(f"{name}: {value:.4f}", flush=True)
    with (options.dir / "figures.jsonl").open("a") as file:
        file.write(json.dumps({"name": name, "loss": value}) + "\n")


if __name__ == "__main__":
    main()
