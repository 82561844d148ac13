"""Fine-tunes a model on conversations: they teach a manner, and very little else.

    python examples/finetune_chats.py           (a minute of one core)

First a base learns lines such as `7+8=15`. Then 60 conversations teach it the manner of an
assistant; of each only the answer is learned (`Chat`), the question is read. The same conversations
also train a model from random weights. Both answer 40 of 40 new questions in the manner, and 1 and
3 of them rightly: at this rate the base's sums do not survive, and 60 examples teach none. A real
model knows more and is tuned at a lower rate. What to type next:

    gptjax chat runs/examples/chats
    gptjax inspect runs/examples/chats.jsonl --model runs/examples/chats
    python train.py configs/sft_smollm2.py --data.source.path YOUR_CHATS.jsonl   (a real model)
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import gptjax
from gptjax import model
from gptjax.data import Bytes, Chat, Conversations, DataConfig, Text
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

SHAPE = model.small("tiny", width=96, num_heads=4, context=96)


def question(a: int, b: int) -> str:
    """What a user asks."""
    return f"What is {a} and {b}?"


def main(folder: Path, base_steps: int = 400, steps: int = 150) -> None:
    """Trains a base and two assistants beside each other in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    sums = [(a, b) for a in range(10) for b in range(10)]
    draw.shuffle(sums)
    told, asked = sums[:60], sums[60:]  # the chats show 60 sums; 40 others are asked

    # 1. The base reads all hundred sums as plain lines.
    lines = [f"{a}+{b}={a + b}" for a, b in (draw.choice(sums) for _ in range(5000))]
    (folder / "sums.txt").write_text("\n".join(lines))
    plain = DataConfig(source=Text(str(folder / "sums.txt")), tokenizer=Bytes(), split="tail")
    optim, schedule = AdamW(peak=4e-3), Schedule("linear", warmup=20, floor=0.0)
    settings = {"model": SHAPE, "optim": optim, "schedule": schedule, "batch": 16}
    every = Evaluation(every=1000)
    base = Experiment(data=plain, steps=base_steps, evaluation=every, **settings)
    train(base, folder / "base")

    # 2. Conversations, one JSON object a line.
    with (folder / "chats.jsonl").open("w") as file:
        for a, b in told * 5:
            talk = [
                {"role": "user", "content": question(a, b)},
                {"role": "assistant", "content": f"{a}+{b}={a + b}, my friend."},
            ]
            file.write(json.dumps({"messages": talk}) + "\n")

    # 3. Two assistants: one starts from the base, one from nothing.
    chats = DataConfig(
        source=Conversations(str(folder / "chats.jsonl")),
        tokenizer=Bytes(),
        task=Chat("zephyr"),
        validation=0.1,
    )
    for name, start in (("chats", str(folder / "base")), ("from_nothing", None)):
        tuned = Experiment(start=start, data=chats, steps=steps, evaluation=every, **settings)
        train(tuned, folder / name)

    # 4. Sums that no conversation showed.
    print()
    for name in ("chats", "from_nothing"):
        opened = gptjax.load(folder / name)
        answers = [
            opened.chat([("user", question(a, b))], temperature=0, new_tokens=24) for a, b in asked
        ]
        right = sum(f"={a + b}," in said for said, (a, b) in zip(answers, asked, strict=True))
        manner = sum(said.endswith(", my friend.") for said in answers)
        print(f"{name:12} {manner} of {len(asked)} in the manner, {right} right; {answers[0]!r}")


if __name__ == "__main__":
    main(Path("runs/examples"))
