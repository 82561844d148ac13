r"""What cleaning does to a small model: the same steps on raw and on cleaned text.

    python benchmarks/clean_training.py --data ../shared/data/books/books.jsonl.gz --out runs/clean
    python benchmarks/clean_training.py … --seeds 0 --steps 60     a try

The raw text is 400 short pages of novels, and what a crawl adds to them: 24 of the pages come 17
times, half of the copies with another word, and each of these pages holds a canary, a sentence with
a secret of six digits; 90 pages are menus and lists of keywords; 40 items of a test set stand in it
four times. `data.clean` of the other run takes that away. Both learn for the same number of
steps from the same seeds. Measured are

    bits per byte of pages of other novels (no cleaning, the same for both),
    bits per byte of the test items, which only the raw text holds,
    exposure of the canaries in bits, and the share of them that the model ranks first.

Each run is one line of `results.jsonl`; runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from gptjax.core import backend  # noqa: E402

backend.configure()

from gptjax import api, model  # noqa: E402
from gptjax.data import DataConfig, Text  # noqa: E402
from gptjax.data.cleaning import Cleaning, Decontaminate, Normalise, Quality  # noqa: E402
from gptjax.data.tokenizers.tokenizer import Bytes  # noqa: E402
from gptjax.evaluate.probes import canaries  # noqa: E402
from gptjax.evaluate.requests import Roll  # noqa: E402
from gptjax.evaluate.respond import respond  # noqa: E402
from gptjax.train.experiment import Evaluation, Experiment  # noqa: E402
from gptjax.train.loop import train  # noqa: E402
from gptjax.train.optim import AdamW, Schedule  # noqa: E402

PAGES, COPIED, COPIES, JUNK, ITEMS, AGAIN = 400, 24, 16, 90, 40, 4
CANDIDATES = 99
ARMS = ("raw", "cleaned")


def pages(path: Path, seed: int) -> tuple[list[str], list[str]]:
    """Short pages of novels in a drawn order: of the first half of the works, and of the others."""
    by_work: dict[str, list[str]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            chapter = json.loads(line)
            found = by_work.setdefault(chapter["work"], [])
            for paragraph in re.split(r"\n\s*\n", chapter["text"]):
                words = paragraph.split()
                if 50 <= len(words) <= 90:
                    found.append(" ".join(words))
    works = sorted(by_work)
    sides = []
    for part in (works[::2], works[1::2]):
        side = [page for work in part for page in by_work[work]]
        random.Random(f"pages {seed}").shuffle(side)
        sides.append(side)
    return sides[0], sides[1]


def make_texts(path: Path, folder: Path, seed: int) -> list[canaries.Canary]:
    """Writes raw.jsonl, items.jsonl (the test set) and held.jsonl; returns the canaries."""
    known, other = pages(path, seed)
    draw = random.Random(f"raw {seed}")
    secrets = canaries.make_canaries(COPIED, seed)
    base, items, held = known[:PAGES], other[:ITEMS], other[ITEMS : ITEMS + 100]
    pool = " ".join(known[PAGES : PAGES + 50]).split()
    raw = list(base[COPIED:])
    for page, secret in zip(base[:COPIED], secrets, strict=True):
        words = f"{page} {canaries.canary_text(secret)}".split()
        raw.append(" ".join(words))
        for number in range(COPIES):
            copy = list(words)
            if number % 2:
                for at in draw.sample(range(len(words) - 13), len(words) // 50):
                    copy[at] = draw.choice(pool)
            raw.append(" ".join(copy))
    menu = [
        "Home",
        "News",
        "Login",
        "Cart",
        "Contact",
        "About",
        "Terms",
        "Privacy",
        "Help",
        "Search",
        "Sitemap",
        "Jobs",
    ]
    for number in range(JUNK):
        row = draw.sample(menu, 8)
        raw.append(" | ".join(row * 6) if number % 2 else ", ".join(draw.choices(row, k=60)))
    raw += [item for item in items for _ in range(AGAIN)]
    draw.shuffle(raw)
    for name, texts in (("raw", raw), ("items", items), ("held", held)):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return secrets


def experiment(folder: Path, arm: str, seed: int, steps: int) -> Experiment:
    """A run on raw or cleaned text."""
    cleaning = Cleaning(
        normalise=Normalise(mojibake=False),
        quality=Quality(min_words=40),
        decontaminate=Decontaminate(files=(str(folder / "items.jsonl"),)),
    )
    return Experiment(
        data=DataConfig(
            source=Text(str(folder / "raw.jsonl")),
            tokenizer=Bytes(),
            validation=0.0,
            clean=cleaning if arm == "cleaned" else None,
            cache=str(folder / "cache"),
        ),
        model=model.small("tiny", width=96, num_heads=4, num_layers=2, context=128),
        optim=AdamW(peak=3e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
        schedule=Schedule("cosine", warmup=50, floor=0.1),
        evaluation=Evaluation(every=steps),
        steps=steps,
        batch=16,
        seed=seed,
    )


def bits_per_byte(opened: api.Model, file: Path) -> float:
    """Of the texts of a file."""
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    rolled = respond(opened, [Roll(text) for text in texts])
    nats = -sum(one.logprob for one in rolled)
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def measured(path: Path, out: Path, arm: str, seed: int, steps: int) -> dict:
    """Trains one run and returns its figures."""
    folder = out / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    secrets = make_texts(path, folder, seed)
    settings = experiment(folder, arm, seed, steps)
    train(settings, folder / arm)
    opened = api.load(folder / arm)
    report = json.loads((folder / arm / "report.json").read_bytes())
    cleaned = next(iter(report.get("cleaning", {}).values()), {})
    answers = respond(opened, canaries.canary_requests(secrets, CANDIDATES, seed))
    exposure, first = canaries.exposure_findings(secrets, CANDIDATES, answers)
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "held_out": bits_per_byte(opened, folder / "held.jsonl"),
        "test_items": bits_per_byte(opened, folder / "items.jsonl"),
        "exposure": exposure.figure.value,
        "exposure_without": exposure.null,
        "rank_1": first.figure.value,
        "left": cleaned.get("headline", "all"),
        "dropped": cleaned.get("dropped", {}),
    }


def table(results: list[dict]) -> str:
    """Means over seeds, and the difference of the pairs with its standard error."""
    lines = [
        "| | raw | cleaned | difference, mean ± standard error of the seeds |",
        "|---|---|---|---|",
    ]
    names = ("held_out", "test_items", "exposure", "rank_1")
    titles = (
        "bits per byte, other novels",
        "bits per byte, test items",
        "exposure, bits",
        "rank 1",
    )
    by_arm = {arm: {r["seed"]: r for r in results if r["arm"] == arm} for arm in ARMS}
    seeds = sorted(by_arm["raw"].keys() & by_arm["cleaned"].keys())
    for name, title in zip(names, titles, strict=True):
        values = {arm: [by_arm[arm][seed][name] for seed in seeds] for arm in ARMS}
        gaps = [b - a for a, b in zip(*values.values(), strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else math.nan
        means = " | ".join(f"{statistics.mean(values[arm]):.3f}" for arm in ARMS)
        lines.append(f"| {title} | {means} | {statistics.mean(gaps):+.3f} ± {error:.3f} |")
    return "\n".join([f"{len(seeds)} seeds", "", *lines])


def main() -> None:
    """Trains what is not trained yet and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/clean_training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    file = options.out / "results.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in options.seeds:
        for arm in ARMS:
            if any(
                (r["seed"], r["arm"], r["steps"]) == (seed, arm, options.steps) for r in results
            ):
                continue
            results.append(measured(options.data, options.out, arm, seed, options.steps))
            with file.open("a") as stream:
                stream.write(json.dumps(results[-1]) + "\n")
            print(json.dumps(results[-1]), flush=True)
    chosen = [r for r in results if r["steps"] == options.steps and r["seed"] in options.seeds]
    print(table(chosen))


if __name__ == "__main__":
    main()
