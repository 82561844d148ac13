"""Evaluation by gptjax against lm-evaluation-harness' `hf` model, item by item.

    python benchmarks/evaluate_parity.py measure hf      FOLDER --data DIR --tasks copa,arc_easy
    python benchmarks/evaluate_parity.py measure gptjax  FOLDER --data DIR --tasks copa,arc_easy
    python benchmarks/evaluate_parity.py measure respond FOLDER --data DIR --tasks copa,arc_easy
    python benchmarks/evaluate_parity.py compare FOLDER
    python benchmarks/evaluate_parity.py count FOLDER --data DIR --tasks copa,arc_easy --limit 9999

The first call converts `--model` into FOLDER/model, a Hugging Face directory in float32, which `hf`
reads with torch; `hf64` is the same with a softmax in float64, since torch's own in float32 is off
by 1e-5 a token. `gptjax` is the adapter in the harness, which spells the texts; `respond` gets the
same texts and spells them itself. Each call adds a file per task to FOLDER; `compare` reads them
all. `count` reads no text: it counts the tokens that would be read. All need lm-eval, `hf` torch
and transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptjax.core import backend

TASKS = Path(__file__).parents[1] / "examples" / "lm_eval"
METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("measure", "compare", "count"))
    parser.add_argument("rest", nargs="+", metavar="[SIDE] FOLDER")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, help="folder of the evaluation files")
    parser.add_argument("--tasks", default="")
    parser.add_argument("--limit", type=int, default=200, help="documents of each task")
    parser.add_argument("--batch", type=int, default=16, help="batch size of hf")
    parser.add_argument("--rows", type=int, default=4, help="rows of gptjax")
    parser.add_argument("--chat", action="store_true", help="ask by the model's chat template")
    flags = parser.parse_args()
    if flags.what == "compare":
        print_table(Path(flags.rest[0]))
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "EVAL_DATA": str(flags.data)}
    if flags.what == "count":
        for task in flags.tasks.split(","):
            print(task, count(f"local_{task}", flags), flush=True)
        return
    side, folder = flags.rest[0], Path(flags.rest[1])
    convert(flags.model, folder / "model")
    backend.configure()
    for task in flags.tasks.split(","):
        measured = measure(side, folder, f"local_{task}", flags)
        name = f"{task}_chat" if flags.chat else task
        (folder / f"{name}.{side}.json").write_text(json.dumps(measured))
        print(task, side, {k: v for k, v in measured.items() if k != "items"}, flush=True)


def convert(model: str, folder: Path) -> None:
    """Writes the model once, in float32, for torch."""
    if not folder.is_dir():
        command = ["convert", model, str(folder), "--dtype", "float32"]
        subprocess.run([sys.executable, "-m", "gptjax", *command], check=True)


# --- one task on one side


def measure(side: str, folder: Path, task: str, flags: argparse.Namespace) -> dict[str, Any]:
    """What one side says of each request of a task, and its seconds and tokens."""
    if side == "respond":
        return measure_respond(task, flags)
    model = opened(side, folder, flags)
    seconds = timed(model)
    results = harness(model, task, flags.limit, flags.chat)
    cost = [one._asdict() for one in getattr(model, "costs", [])]
    return {
        "items": [
            {"arguments": args, "answers": answers} for args, answers in documents(results, task)
        ],
        "results": {k: v for k, v in results["results"][task].items() if isinstance(v, float)},
        "seconds": sum(seconds),
        "cost": cost[0] if cost else None,
    }


def opened(side: str, folder: Path, flags: argparse.Namespace) -> Any:
    """The model as the harness asks it."""
    if side in ("hf", "hf64"):
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=str(folder / "model"),
            dtype="float32",
            softmax_dtype="float64" if side == "hf64" else None,
            device="cpu",
            batch_size=flags.batch,
        )
    from gptjax.evaluate.harness import harness_class

    return harness_class()(flags.model, dtype="float32", rows=flags.rows)


def timed(model: Any) -> list[float]:
    """Makes the three methods note their seconds, and returns where."""
    seconds: list[float] = []

    def noting(method: Callable) -> Callable:
        def call(*args: Any, **more: Any) -> Any:
            begun = time.monotonic()
            found = method(*args, **more)
            seconds.append(time.monotonic() - begun)
            return found

        return call

    for name in METHODS:
        setattr(model, name, noting(getattr(model, name)))
    return seconds


def harness(model: Any, task: str, limit: int, chat: bool = False) -> dict[str, Any]:
    """The harness' results, with samples."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    return simple_evaluate(
        model,
        tasks=[task],
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat,
    )


def documents(results: Mapping[str, Any], task: str) -> Iterator[tuple[list, list]]:
    """The arguments of the requests of each document, and the responses."""
    for sample in sorted(results["samples"][task], key=lambda one: one["doc_id"]):
        arguments = sample["arguments"]
        if isinstance(arguments, Mapping):
            arguments = [list(one.values()) for one in arguments.values()]
        yield [list(one) for one in arguments], [one[0] for one in sample["resps"]]


def measure_respond(task: str, flags: argparse.Namespace) -> dict[str, Any]:
    """The responses to the texts that the harness asks for, which `respond` spells."""
    import dataclasses

    import gptjax
    from gptjax.evaluate.requests import Rolled, Scored, Write
    from gptjax.evaluate.respond import respond_and_count

    model = gptjax.load(flags.model)
    model = model._replace(config=dataclasses.replace(model.config, compute="float32"))
    asked, requests = requests_of(task, flags.limit, model.tokenizer)
    writer = model.prepared() if isinstance(requests[0], Write) else model
    found, cost = respond_and_count(writer, requests, rows=flags.rows)

    def answer(one: Any) -> Any:
        if isinstance(one, Scored):
            return [one.logprob, one.greedy]
        return one.logprob if isinstance(one, Rolled) else one.text

    answers = iter(map(answer, found))
    items = [
        {"arguments": arguments, "answers": [next(answers) for _ in arguments]}
        for arguments in asked
    ]
    return {"items": items, "results": {}, "seconds": cost.seconds, "cost": cost._asdict()}


def requests_of(task: str, limit: int, tokenizer: Any) -> tuple[list[list], list[Any]]:
    """The texts that the harness asks for, by document, and the requests that they are."""
    from lm_eval.api.model import LM

    from gptjax.evaluate.harness import answer_settings
    from gptjax.evaluate.requests import Roll, Score, Write

    class Asking(LM):
        """Answers nothing; its samples have the texts."""

        def loglikelihood(self, requests: list) -> list:
            return [(0.0, False) for _ in requests]

        def loglikelihood_rolling(self, requests: list) -> list:
            return [0.0 for _ in requests]

        def generate_until(self, requests: list) -> list:
            return ["" for _ in requests]

    def request(arguments: list) -> Any:
        if len(arguments) == 1:
            return Roll(arguments[0])
        context, other = arguments
        if isinstance(other, str):
            return Score(context, other)
        return Write(context, answer_settings(other, tokenizer, 0))

    asked = [arguments for arguments, _ in documents(harness(Asking(), task, limit), task)]
    return asked, [request(one) for arguments in asked for one in arguments]


def count(task: str, flags: argparse.Namespace) -> dict[str, float]:
    """Tokens of the passages of a task: each by itself, with shared beginnings read once, and
    places of the batches, padding included."""
    import gptjax
    from gptjax.evaluate.encoding import encode_scores
    from gptjax.evaluate.layout import batched, fill_rows

    model = gptjax.load(flags.model)
    asked, requests = requests_of(task, flags.limit, model.tokenizer)
    passages = list({p: 0 for one in encode_scores(model, requests) for p in one.passages})
    rows = fill_rows(passages)
    batches = list(batched(passages, rows, 256 * flags.rows))
    alone = sum(len(one.read) for one in passages)
    own = [
        row.shared + sum(len(passages[n].read) - row.shared for n in row.passages) for row in rows
    ]
    return {
        "documents": len(asked),
        "alone": alone,
        "read": sum(own),
        "times": alone / sum(own),
        "positions": sum(length * size for length, size, _ in batches),
        "programs": len({(length, size) for length, size, _ in batches}),
    }


# --- both sides


def print_table(folder: Path) -> None:
    """Prints a row for each task, each side of gptjax, and each of `hf` that it stands beside."""
    print(
        "| task | side | beside | items | requests | max Δ ln p | mean Δ ln p | same choice |"
        " same greedy | same text | tokens read / alone | seconds | its seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for task in sorted({path.name.split(".")[0] for path in folder.glob("*.*.json")}):
        for side in ("gptjax", "respond"):
            for beside in ("hf", "hf64"):
                paths = [folder / f"{task}.{name}.json" for name in (beside, side)]
                if all(path.is_file() for path in paths):
                    print(row(f"{task} | {side} | {beside}", *map(read, paths)))


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def row(names: str, hf: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """A row of the table."""
    pairs = list(zip(hf["items"], ours["items"], strict=True))
    for one, other in pairs:
        assert one["arguments"] == other["arguments"], "both sides were asked the same"
    answers = [
        (a, b)
        for one, other in pairs
        for a, b in zip(one["answers"], other["answers"], strict=True)
    ]
    written = isinstance(answers[0][0], str)
    scored = isinstance(answers[0][0], list)
    apart = [abs(a[0] - b[0]) if scored else abs(a - b) for a, b in answers if not written]
    choices = [
        best(one["answers"]) == best(other["answers"])
        for one, other in pairs
        if scored and len(one["answers"]) > 1
    ]
    greedy = [bool(a[1]) == bool(b[1]) for a, b in answers if scored]
    texts = [a == b for a, b in answers if written]
    cost = ours["cost"]
    alone = cost["alone"] / cost["read"] if cost["read"] else 0
    cells = (
        *(names, len(pairs), len(answers)),
        f"{max(apart):.1e}" if apart else "",
        f"{sum(apart) / len(apart):.1e}" if apart else "",
        *(share(found) for found in (choices, greedy, texts)),
        f"{cost['read']:,} / {cost['alone']:,} ({alone:.1f}×)" if alone else "",
        *(f"{ours['seconds']:.0f}", f"{hf['seconds']:.0f}"),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def best(answers: list[list]) -> int:
    return max(range(len(answers)), key=lambda n: answers[n][0])


def share(found: list[bool]) -> str:
    return f"{sum(found)} of {len(found)}" if found else ""


if __name__ == "__main__":
    main()
