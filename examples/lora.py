"""Trains two low-rank adapters (LoRA) on one frozen base, and serves both from one copy of it.

    python examples/lora.py                     (a minute of one core)

The base learns to sort letters. One adapter teaches it to sort them backwards, the other one to
write capitals. An adapter is a few thousand numbers in a file of its own; the base does not change.
Then each prompt of one batch names the adapter that answers it. Of 50 new words the base sorts all
and one adapter all backwards; capitals, which are other tokens, come out right for 26 %. What to
type next:

    gptjax sample runs/examples/base_sorting --adapter backwards=runs/examples/backwards
    gptjax convert runs/examples/backwards merged --merge
    python train.py configs/lora_smollm2.py --data.source.path YOUR_CHATS.jsonl   (a real model)
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import jax

import gptjax
from gptjax import model
from gptjax.data import Bytes, Chat, Conversations, DataConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule
from gptjax.weights import LoRA

MANNERS = {
    "base_sorting": sorted,
    "backwards": lambda word: sorted(word, reverse=True),
    "capitals": lambda word: [letter.upper() for letter in sorted(word)],
}


def write_words(path: Path, manner: str, count: int, seed: int) -> list[str]:
    """Writes prompts of five letters with their answers; returns the prompts."""
    draw = random.Random(seed)
    words = ["".join(draw.sample("abcdefghij", 5)) for _ in range(count)]
    made = [{"prompt": f"{w}>", "completion": "".join(MANNERS[manner](w))} for w in words]
    path.write_text("".join(json.dumps(one) + "\n" for one in made))
    return [one["prompt"] for one in made]


def main(folder: Path, steps: int = 500) -> None:
    """Trains the base, then an adapter for each other manner."""
    folder.mkdir(parents=True, exist_ok=True)
    for manner in MANNERS:
        adapted = manner != "base_sorting"
        write_words(folder / f"{manner}.jsonl", manner, 4000, seed=len(manner))
        experiment = Experiment(
            start=str(folder / "base_sorting") if adapted else None,
            adapter=LoRA(rank=8, alpha=16.0) if adapted else None,
            data=DataConfig(
                source=Conversations(str(folder / f"{manner}.jsonl")),
                tokenizer=Bytes(),
                task=Chat(),
                validation=0.05,
            ),
            model=model.small("tiny", width=64, num_heads=4, context=32),
            optim=AdamW(peak=5e-3, weight_decay=0.0),
            schedule=Schedule("linear", warmup=20, floor=0.0),
            evaluation=Evaluation(every=1000),
            steps=steps,
            batch=32,
        )
        train(experiment, folder / manner)

    # One base in memory, two adapters beside it, and every prompt says which it wants.
    base = gptjax.load(folder / "base_sorting")
    both = base.with_adapters({name: folder / name for name in ("backwards", "capitals")})
    whole, all_of = (sum(x.size for x in jax.tree.leaves(m.params)) for m in (base, both))
    print(f"\nbase: {whole:,} parameters; each adapter: {(all_of - whole) // 2:,}")
    names = ["base", "backwards", "capitals"]
    said = both.complete(["cabed>"] * 3, adapter=names, temperature=0, new_tokens=6)
    for name, one in zip(names, said, strict=True):
        print(f"{name:10} cabed> {one.text}")
    asked = write_words(folder / "asked.jsonl", "base_sorting", 50, seed=99)
    for manner, name in zip(MANNERS, names, strict=True):
        answers = both.complete(asked, adapter=[name] * 50, temperature=0, new_tokens=6)
        right = ["".join(MANNERS[manner](prompt[:-1])) for prompt in asked]
        share = sum(a.text == r for a, r in zip(answers, right, strict=True)) / 50
        print(f"{name:10} {share:.0%} of 50 new words right")


if __name__ == "__main__":
    main(Path("runs/examples"))
