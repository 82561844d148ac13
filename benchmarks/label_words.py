"""Accuracy of a model that was trained for no such task, without examples and with a few: it names
the label whose words it finds likeliest after the text.

    python benchmarks/label_words.py runs/polarity --kind sentiment --shots 0 8
    python benchmarks/label_words.py runs/banking_intents --kind intents --limit 200
    python benchmarks/label_words.py runs/book_topics --kind topics --limit 200

Data and held-out texts are those of a run of classification; the first `--limit` texts by their
hash are judged, and the examples are drawn from the training texts (`--seed`). Three scores: ln p
of the label's words; the same by character; and ln p less that in a context without the text
(`N/A`), which takes out how likely the words are anyway (Holtzman et al. 2021, Surface Form
Competition, arXiv:2104.08315; Zhao et al. 2021, Calibrate Before Use, arXiv:2102.09690).
"""

from __future__ import annotations

import argparse
import hashlib
import random
import runpy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

import gptjax
from gptjax.core import config
from gptjax.evaluate.requests import Score
from gptjax.evaluate.respond import respond
from gptjax.train.experiment import Experiment

CLASSIFY = runpy.run_path(str(Path(__file__).parent / "classify.py"))


class Form(NamedTuple):
    """How a text and its label are written."""

    before: str
    after: str
    words: Mapping[str, str] = {}
    """Of labels that are not their own words."""

    def ask(self, text: str) -> str:
        """The text as far as the label."""
        return self.before + text + self.after

    def name(self, label: str) -> str:
        """The words of a label."""
        return " " + self.words.get(label, label.replace("_", " "))


FORMS = {
    "sentiment": Form("Review: ", "\nIt was", {"positive": "great", "negative": "terrible"}),
    "intents": Form("Question to a bank: ", "\nIt is about:"),
    "topics": Form("Passage: ", "\nFrom the book:"),
}


def chosen(logprobs: np.ndarray, without: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The number of the label that each score prefers.

    Args:
      logprobs: ln p of each label after each text [n labels].
      without: the same in a context without the text [labels].
      lengths: characters of each label [labels].
    """
    scores = {
        "ln p": logprobs,
        "ln p by character": logprobs / lengths,
        "ln p less that without the text": logprobs - without,
    }
    return {name: score.argmax(axis=1) for name, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run of classification, for its data")
    parser.add_argument("--kind", choices=FORMS, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--shots", type=int, nargs="+", default=[0], help="numbers of examples")
    parser.add_argument("--limit", type=int, default=300, help="held-out texts that are judged")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, held_out = CLASSIFY["divided"](
        config.load_config(Experiment, args.run / "config.json").data
    )
    labels, form, model = sorted(set(train.labels)), FORMS[args.kind], gptjax.load(args.model)
    pairs = sorted(
        zip(held_out.texts, held_out.labels, strict=True),
        key=lambda pair: hashlib.sha256(pair[0].encode()).digest(),
    )[: args.limit]
    known = list(zip(train.texts, train.labels, strict=True))
    lengths = np.array([len(form.name(label)) for label in labels])
    for count in args.shots:
        began = time.monotonic()
        drawn = random.Random(args.seed).sample(known, count)
        shots = "".join(f"{form.ask(text)}{form.name(label)}\n\n" for text, label in drawn)
        contexts = [shots + form.ask(text) for text in ("N/A", *(text for text, _ in pairs))]
        requests = [Score(one, form.name(label)) for one in contexts for label in labels]
        found = np.array([one.logprob for one in respond(model, requests)])
        found = found.reshape(len(contexts), len(labels))
        print(f"{count} examples, {len(pairs)} texts, {time.monotonic() - began:.0f} s", flush=True)
        for name, best in chosen(found[1:], found[0], lengths).items():
            right = [labels[n] == label for n, (_, label) in zip(best, pairs, strict=True)]
            CLASSIFY["said"](f"  {name}", right)


if __name__ == "__main__":
    main()
