"""The share of held-out puzzles that a run solves: its likeliest answers, and answers sampled at
temperature 1.

    python benchmarks/pass_rate.py runs/sums [runs/other ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import gptjax
from gptjax.core import config
from gptjax.data import Puzzles
from gptjax.data.documents.conversations import load_record
from gptjax.data.documents.problems import judge_record
from gptjax.data.documents.puzzles import read_puzzles, solved
from gptjax.generate import SampleConfig
from gptjax.train.experiment import Experiment

SAMPLES = 8
"""Answers to each puzzle."""


def pass_rate(run: str, source: Puzzles, temperature: float, samples: int) -> float:
    """Returns the share of answers that are right."""
    model = gptjax.load(run)
    documents = [document for document in read_puzzles(source) if document.held_out]
    records = [judge_record(load_record(document.text)) for document in documents] * samples
    longest = max(len(record["answer"]) for record in records) + 1  # the end
    settings = [
        SampleConfig(new_tokens=longest, temperature=temperature, top_p=1.0, seed=seed)
        for seed in range(len(records))
    ]
    answers = model.complete([record["prompt"] for record in records], settings, batch=200)
    right = [solved(r, answer.text) for r, answer in zip(records, answers, strict=True)]
    return sum(right) / len(right)


if __name__ == "__main__":
    for run in sys.argv[1:]:
        source = config.load_config(Experiment, Path(run) / "config.json").data.source
        if not isinstance(source, Puzzles) or source.held_out_count is None:
            sys.exit(f"{run} has no held-out puzzles (data.source.held_out_count).")
        likeliest = pass_rate(run, source, temperature=0.0, samples=1)
        sampled = pass_rate(run, source, temperature=1.0, samples=SAMPLES)
        print(f"{run}: likeliest {likeliest:.1%}, sampled {sampled:.1%} right")
