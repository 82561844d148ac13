"""What a model answers about held-out pictures: the share of answers that greedy decoding would
write, whole and by kind, and a page of pictures with questions and answers.

    python benchmarks/visual_answers.py runs/easy_vqa [--blind] [--page answers.html] [--rows N]
        [--by-answer]

An answer counts if each of its tokens is the most likely one after those before it, which is what
greedy decoding writes. `--blind` shows grey pictures to the same model; `--familiar` asks about
drawn shapes like those of training (`data.source.unseen` False), whatever the run held out;
`--by-answer` gives the share for each right answer. Wrong answers of a page are written by the
model, not read off beside the right ones.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import html
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np

import gptjax
from gptjax import model
from gptjax.core.config import load_config
from gptjax.data import batches, prepare
from gptjax.losses.cross_entropy import forward_batch
from gptjax.model.inputs.image_files import save_png
from gptjax.runs.open import open_model
from gptjax.train.experiment import Experiment

YES_NO = ("yes", "no")
SHOWN = 40
"""Answers on a page."""
MOST_TOKENS = 64
"""Of a wrong answer on a page."""


def kind_of(prompt: str, answer: str) -> str:
    """What is asked: yes or no, how many, or something else."""
    if answer in YES_NO:
        return "yes or no"
    return "how many" if prompt.startswith("how many") else "other" if prompt else "caption"


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--blind", action="store_true")
    parser.add_argument("--familiar", action="store_true")
    parser.add_argument("--by-answer", action="store_true")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--rows", type=int)
    options = parser.parse_args()
    opened = open_model(options.run)
    experiment = load_config(Experiment, options.run / "config.json")
    task = dataclasses.replace(experiment.data.task, blind=options.blind)
    data = experiment.data
    if options.familiar:
        data = dataclasses.replace(data, source=dataclasses.replace(data.source, unseen=False))
    store = prepare(data, given=opened.tokenizer).validation
    width = experiment.model.context
    plan = batches.plan(store, length=width, rows=64, seed=None, task=task)

    @jax.jit
    def likeliest(params, batch):
        hidden = forward_batch(opened.config, params, batch, None).hidden
        return model.unembed(opened.config, params, hidden).argmax(-1)

    tokenizer, rights, shown = opened.tokenizer, defaultdict(list), []
    for number in range(plan.batches_per_epoch):
        batch = batches.batch(store, plan, number)
        best = np.asarray(likeliest(opened.params, batch))
        for row in range(len(best)):
            for segment in range(1, int(batch.segments[row].max()) + 1):
                inside = batch.segments[row] == segment
                learned = inside & (batch.weights[row] > 0)
                ids = batch.tokens[row][inside & (batch.tokens[row] < tokenizer.vocab_size)]
                wanted = batch.targets[row][learned][:-1]
                prompt = tokenizer.decode(ids[: len(ids) - len(wanted)])
                answer = tokenizer.decode(wanted)
                good = bool((best[row] == batch.targets[row])[learned].all())
                kind = answer if options.by_answer else kind_of(prompt, answer)
                rights[kind].append(good)
                rights["all"].append(good)
                if len(shown) < SHOWN and (number * 64 + row) % 7 == 0 and segment == 1:
                    pixels = batch.columns["pixels"][row, 0]
                    shown.append((pixels, prompt, answer, good))
        if options.rows and len(rights["all"]) >= options.rows:
            break
    figures = {name: [round(float(np.mean(some)), 4), len(some)] for name, some in rights.items()}
    how = {"blind": options.blind, "familiar": options.familiar}
    print(json.dumps({"run": str(options.run), **how, **figures}))
    if options.page:
        options.page.write_text(page(gptjax.load(options.run), shown), encoding="utf-8")


def page(seeing: gptjax.Model, shown: list) -> str:
    """A page of pictures, what was asked of each, what is right and what was answered."""
    cells = []
    for pixels, prompt, answer, good in shown:
        told = answer
        if not good:
            greedy = {"temperature": 0.0, "new_tokens": MOST_TOKENS}
            told = seeing.answer([np.asarray(pixels)], prompt, **greedy).text
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            save_png(file.name, np.asarray(pixels))
            code = base64.b64encode(Path(file.name).read_bytes()).decode()
        colour = "#2a7d2a" if good else "#b02020"
        asked = f"{html.escape(prompt)}<br>" if prompt else ""
        cells.append(
            f'<figure><img width=128 src="data:image/png;base64,{code}"><figcaption>'
            f"{asked}right: {html.escape(answer)}<br>"
            f'answered: <b style="color:{colour}">{html.escape(told)}</b></figcaption></figure>'
        )
    style = "figure{display:inline-block;width:11em;margin:.6em;vertical-align:top}"
    style += "img{image-rendering:pixelated}body{font:14px sans-serif}"
    head = f"<!doctype html><meta charset=utf-8><title>Answers about pictures</title><style>{style}"
    return f"{head}</style>{''.join(cells)}\n"


if __name__ == "__main__":
    main()
