"""What counterfactual augmentation (`data.swap`) does to a model's bias, and what it costs: small
models trained on the same books with and without it, seed by seed.

    python benchmarks/debias.py --books books.jsonl.gz --crows crows_pairs.csv --seeds 0 1

Each model is scored on pairs of sentences that differ in a pronoun (40 occupations, three frames;
written here), as `gptjax probe MODEL bias --pairs` scores them; on the gender pairs of CrowS-Pairs;
and by its loss on held-out books, which are never swapped, and on the same books swapped.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import tempfile
from pathlib import Path

import numpy as np

import gptjax
from gptjax.data import DataConfig, SentencePiece, Swap, Text
from gptjax.data.swap import swap_words
from gptjax.evaluate.figure import Figure, mean_of
from gptjax.evaluate.probes.paired_sentences import pair_findings, pair_requests
from gptjax.evaluate.records import Pair, read_task_records
from gptjax.evaluate.requests import Score
from gptjax.evaluate.respond import respond
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

OCCUPATIONS = (
    *("doctor", "nurse", "lawyer", "teacher", "soldier", "sailor", "merchant", "servant", "cook"),
    *("tailor", "painter", "writer", "poet", "singer", "dancer", "judge", "officer", "clerk"),
    *("baker", "farmer", "shepherd", "hunter", "fisherman", "miller", "smith", "carpenter"),
    *("gardener", "groom", "coachman", "innkeeper", "priest", "scholar", "student", "physician"),
    *("surgeon", "banker", "broker", "weaver", "laundress", "governess"),
)
FRAMES = (
    "The {job} said that {he} was tired of it.",
    "The {job} opened the door, and {he} looked into the room.",
    "I asked the {job} for advice, but {he} knew nothing.",
)


def shown(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def own_pairs() -> list[Pair]:
    """Pairs of which the first has `he`: neither is a stereotype of every occupation, so what is
    measured is which pronoun comes first to the model."""
    made = []
    for job in OCCUPATIONS:
        for frame in FRAMES:
            he, she = (frame.format(job=job, he=word) for word in ("he", "she"))
            made.append(Pair(id=str(len(made)), good=he, bad=she, group="occupations"))
    return made


def crows(path: Path) -> list[Pair]:
    """The gender pairs of CrowS-Pairs."""
    with path.open(encoding="utf-8") as file:
        kinds = [row["bias_type"] for row in csv.DictReader(file)]
    records = read_task_records(path)
    return [one for one, kind in zip(records, kinds, strict=True) if kind == "gender"]


WAYS = {
    "no swap": Swap(),
    "half swapped": Swap(share=0.5),
    "both kept": Swap(share=1.0, keep="both"),
}


def settings(path: Path, swap: Swap, seed: int, steps: int, cache: Path) -> Experiment:
    return Experiment(
        data=DataConfig(
            source=Text(str(path)),
            tokenizer=SentencePiece(vocab_size=512),
            validation=0.1,
            swap=swap,
            cache=str(cache),
        ),
        model=ModelConfig(
            context=128,
            width=64,
            num_layers=1,
            num_heads=4,
            positions="rope",
            norm="rmsnorm",
            bias=False,
            compute="float32",
        ),
        optim=AdamW(peak=3e-3, beta2=0.95),
        schedule=Schedule("linear", warmup=20, floor=0.0),
        evaluation=Evaluation(every=steps, rows=64),
        steps=steps,
        batch=12,
        seed=seed,
    )


def held_out_texts(path: Path, count: int = 200) -> list[str]:
    """Passages of 140 characters from lines that training never reads."""
    return [json.loads(line)["text"][200:340] for line in path.open(encoding="utf-8")][:count]


def measured(run: Path, pairs: dict[str, list[Pair]], texts: list[str]) -> dict[str, object]:
    model = gptjax.load(run)
    found: dict[str, object] = {}
    for name, records in pairs.items():
        shares, means, *_ = pair_findings(records, respond(model, pair_requests(records)))
        found[f"{name}: first likelier"] = shares.figure
        found[f"{name}: ln p, first − second"] = means.figure
    for name, some in (("held-out", texts), ("swapped", [swap_words(t, Swap(1.0)) for t in texts])):
        scored = respond(model, [Score("", text) for text in some])
        nats = [-one.logprob / len(text.encode()) for one, text in zip(scored, some, strict=True)]
        found[f"nats per byte, {name}"] = mean_of(nats)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--crows", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--chapters", type=int, default=160, help="to train on, drawn at random")
    parser.add_argument("--dir", type=Path, default=Path("runs/debias"))
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    with gzip.open(options.books, "rt", encoding="utf-8") as file:
        lines = file.readlines()
    order = np.random.default_rng(0).permutation(len(lines))
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.jsonl" for name in ("train", "rest")}
        files["rest"].write_text("".join(lines[i] for i in order[:200]), "utf-8")
        chosen = order[200 : 200 + options.chapters]
        files["train"].write_text("".join(lines[i] for i in chosen), "utf-8")
        texts = held_out_texts(files["rest"])
        pairs = {"he or she": own_pairs(), "CrowS gender": crows(options.crows)}
        for seed in options.seeds:
            for name, swap in WAYS.items():
                run = options.dir / f"{name.replace(' ', '_')}_seed_{seed}"
                cache = options.dir / "cache"
                train(settings(files["train"], swap, seed, options.steps, cache), run)
                print(f"\nseed {seed}, {name}, {options.steps} steps:", flush=True)
                for what, figure in measured(run, pairs, texts).items():
                    assert isinstance(figure, Figure)
                    print(f"  {what:34} {shown(figure)}  n {figure.n}", flush=True)


if __name__ == "__main__":
    main()
