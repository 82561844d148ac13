"""A laboratory of silent errors: six ways to make fine-tuning data wrongly, planted one at a time
on a toy chat, and what the losses show of each.

In the toy the user names words and asks for all of them or for the last; the assistant says them.
Every defect changes what `Chat` made of the conversations; model, steps and seed are the same. A
trained model is asked held-out questions as `gptjax chat` would.

    python benchmarks/silent_errors.py --seeds 3 --out silent_errors.json

Read `DEFECTS`, then `broken`, then `measure`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptjax.data import Chat, Conversations, DataConfig, Prepared, SentencePiece, prepare
from gptjax.data.layouts import Batch
from gptjax.data.rows import Plan, RowNumbers
from gptjax.data.store import Store
from gptjax.data.tasks.chat import Rendered
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate import SampleConfig, complete
from gptjax.model import ModelConfig
from gptjax.train import identity, program
from gptjax.train.evaluate import evaluate
from gptjax.train.experiment import Experiment
from gptjax.train.optim import AdamW, Schedule

DEFECTS = {
    "none": "what `Chat` makes",
    "no mask": "questions count like answers",
    "end not learned": "the token that ends an answer has the weight 0",
    "joined": "prompt and answer are one text for the tokenizer; what counts is found by length",
    "not isolated": "conversations of a row see each other",
    "doubled start": "the token that begins a text is there twice, and in use once",
    "cut": "conversations end after 16 tokens, in the middle of an answer",
}
CUT = 16
TEMPLATE = (
    "{{ eos_token }}{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} A: "
    "{% else %}{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
)
"""Begins with the id that also ends, as GPT-2's texts do; the prompt for an answer ends with a
space, which many tokenizers join to the word after it."""
WORDS = [
    "red",
    "blue",
    "green",
    "cat",
    "dog",
    "bird",
    "tree",
    "lake",
    "hill",
    "moon",
    "star",
    "rain",
    "wind",
    "fire",
    "bread",
    "salt",
]


def broken(ids: np.ndarray, counts: np.ndarray, tokenizer: Tokenizer, defect: str) -> Rendered:
    """Returns a conversation as `Chat` renders it, with one defect."""
    end = tokenizer.end_of_document
    if defect == "no mask":
        counts = np.arange(len(ids)) > 0
    if defect == "end not learned":
        counts = counts & (ids != end)
    if defect == "joined":
        return joined(ids, counts, tokenizer)
    if defect == "doubled start":
        ids, counts = np.concatenate([ids[:1], ids]), np.concatenate([[False], counts])
    if defect == "cut":
        ids, counts = ids[:CUT], counts[:CUT]
    return Rendered(ids, counts)


def joined(ids: np.ndarray, counts: np.ndarray, tokenizer: Tokenizer) -> Rendered:
    """Encodes each turn as one text, and counts what comes after as many tokens as its prompt has
    alone: a usual shortcut."""
    end, made, counted = tokenizer.end_of_document, [], []
    edges = [0, *(np.flatnonzero(ids == end) + 1).tolist(), len(ids)]
    for first, last in itertools.pairwise(edges):
        turn, answer = ids[first:last], counts[first:last]
        text = tokenizer.token_bytes(turn).decode().removeprefix(" ")
        closed = [end] if turn[-1:] == end else []
        anew = [*tokenizer.encode_after(text).tolist(), *closed]
        made += anew
        counted += (bool(answer.any()) & (np.arange(len(anew)) >= (~answer).sum())).tolist()
    return Rendered(np.asarray(made, np.int32), np.asarray(counted, bool))


def examples(store: Store) -> Iterator[Rendered]:
    """Yields the conversations of a store of `Chat`."""
    mark = store.header.vocab_size - 1
    for first, last in itertools.pairwise(store.offsets.tolist()):
        ids = store.ids[first:last].astype(np.int32)
        counts = np.cumsum(ids == mark) % 2 == 1
        yield Rendered(ids[ids != mark], counts[ids != mark])


def replaced(store: Store, made: Sequence[Rendered]) -> Store:
    """Returns a store of these conversations, without those of which nothing counts."""
    mark, kept = store.header.vocab_size - 1, []
    for ids, counts in made:
        edges = np.flatnonzero(np.diff(counts.astype(np.int8), prepend=0, append=0))
        if counts[1:].any():
            kept.append(np.insert(ids, edges, mark))
    offsets = np.cumsum([0, *map(len, kept)])
    header = dataclasses.replace(store.header, num_examples=len(kept), num_tokens=int(offsets[-1]))
    return Store(header, np.concatenate(kept), offsets)


@dataclass(frozen=True)
class NotIsolated(Chat):
    """`Chat` whose conversations see the others of their row."""

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns rows that are one text each."""
        batch = super().batch(store, plan, at)
        real = batch.positions >= 0
        positions = np.where(real, np.arange(plan.width), -1).astype(np.int32)
        return batch._replace(segments=real.astype(np.int32), positions=positions)


def toy(path: Path, count: int = 1500) -> None:
    """Writes conversations of one to three questions."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            messages = []
            for _ in range(draw.randint(1, 3)):
                words = draw.choices(WORDS, k=draw.randint(1, 5))
                kind = draw.choice(("all", "last"))
                answer = " ".join(words if kind == "all" else words[-1:])
                messages.append({"role": "user", "content": f"{kind} of {' '.join(words)}"})
                messages.append({"role": "assistant", "content": answer})
            print(json.dumps({"messages": messages}), file=file)


def questions(data: Prepared, count: int) -> list[tuple[list[int], str]]:
    """Returns the prompt of the last answer, and that answer, of held-out conversations."""
    found = []
    for ids, counts in itertools.islice(examples(data.validation), count):
        begin = int(np.flatnonzero(np.diff(counts.astype(np.int8)) == 1)[-1]) + 1
        found.append((ids[:begin].tolist(), data.tokenizer.decode(ids[begin:][counts[begin:]])))
    return found


def measure(right: Prepared, config: DataConfig, defect: str, seed: int, steps: int) -> dict:
    """Trains with one defect and asks held-out questions.

    Returns:
      `train` and `held out`, the losses that the user of this data sees; `true`, the loss of
      correctly made held-out data, in nats per token; `stops`, the share of answers that end;
      `begins`, the share that begin with the right words; `right`, the share that are right and
      end.
    """
    task = NotIsolated(TEMPLATE) if defect == "not isolated" else right.task
    train, held_out = (
        replaced(one, [broken(*made, right.tokenizer, defect) for made in examples(one)])
        for one in (right.train, right.validation)
    )
    data = right._replace(train=train, validation=held_out, task=task)
    experiment = Experiment(
        model=ModelConfig(
            context=128,
            width=64,
            num_layers=2,
            num_heads=4,
            positions="rope",
            norm="rmsnorm",
            bias=False,
            compute="float32",
        ),
        data=dataclasses.replace(config, task=task),
        optim=AdamW(peak=4e-3),
        schedule=Schedule("linear", warmup=50, floor=0.0),
        steps=steps,
        batch=8,
        seed=seed,
    )
    experiment = identity.resolve(experiment, data)
    built = program.build(experiment, data)
    state, frozen = built.init(None)
    losses = []
    for number in range(steps):
        state, metrics = built.step(state, frozen, built.batch(number, state))
        losses.append(metrics["loss"])

    def held_out_loss(task: Chat, store: Store) -> float:
        changed = dataclasses.replace(experiment, data=dataclasses.replace(config, task=task))
        return evaluate(built, changed, store, state.trainable, frozen, None)["loss"]

    asked = questions(right, 150)
    answers = complete(
        experiment.model,
        state.trainable,
        right.tokenizer,
        [prompt for prompt, _ in asked],
        SampleConfig(new_tokens=24, temperature=0.0),
        batch=len(asked),
    )
    stops = [done.reason == "stop" for done in answers]
    pairs = [(a.text.split(), text.split()) for a, (_, text) in zip(answers, asked, strict=True)]
    same = [said == wanted and stop for (said, wanted), stop in zip(pairs, stops, strict=True)]
    return {
        "train": float(np.mean([float(loss) for loss in losses[-50:]])),
        "held out": held_out_loss(task, data.validation),
        "true": held_out_loss(right.task, right.validation),
        "stops": float(np.mean(stops)),
        "begins": float(np.mean([said[: len(wanted)] == wanted for said, wanted in pairs])),
        "right": float(np.mean(same)),
    }


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Returns the means over the seeds as a table of Markdown."""
    columns = ("defect", "training loss", "held-out loss", "held-out loss, made rightly")
    columns += ("stops", "begins right", "right")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for defect, runs in found.items():
        mean = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
        losses = " | ".join(f"{mean[name]:.3f}" for name in ("train", "held out", "true"))
        shares = " | ".join(f"{mean[name]:.0%}" for name in ("stops", "begins", "right"))
        lines.append(f"| {defect}: {DEFECTS[defect]} | {losses} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the laboratory and prints its table."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--steps", type=int, default=700)
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--only", nargs="*", default=list(DEFECTS), choices=list(DEFECTS))
    flags.add_argument("--out", type=Path, help="write the figures here, as JSON")
    told = flags.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "toy.jsonl")
        toy(path)
        config = DataConfig(
            Conversations(str(path)),
            SentencePiece(vocab_size=400),
            task=Chat(TEMPLATE),
            cache=str(Path(name, "cache")),
        )
        right = prepare(config, print)
        print(right.task.describe(right.train))
        for seed in range(told.seeds):
            for defect in told.only:
                figures = measure(right, config, defect, seed, told.steps)
                found.setdefault(defect, []).append(figures)
                print(seed, defect, figures, flush=True)
                if told.out:
                    told.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
