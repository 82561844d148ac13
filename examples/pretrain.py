"""Pre-trains a small GPT on Python's own `email` package, says what it is worth beside zlib, and
lets it write.

    python examples/pretrain.py                 (40 seconds of one core)

The text is cut into bytes, its end is held out, and `train` does the rest: it logs, evaluates,
saves, and resumes if you interrupt it and call it again. What to type next:

    gptjax sample runs/examples/pretrain --prompt "class " --interactive
    python train.py configs/quickstart.py       (ten times as large, with a tokenizer)
"""

from __future__ import annotations

import email
import json
import zlib
from pathlib import Path

import gptjax
from gptjax import model
from gptjax.data import Bytes, DataConfig, Text
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule


def main(folder: Path, steps: int = 300) -> None:
    """Trains, weighs and samples a model in a run directory."""
    # 1. The text: every source file of a package that each Python has.
    files = sorted(Path(email.__file__).parent.glob("*.py"))
    text = "".join(file.read_text("utf-8") for file in files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    source = folder.parent / "email.txt"
    source.write_text(text, "utf-8")

    # 2. The experiment is one value: data, model, optimizer, length.
    experiment = Experiment(
        data=DataConfig(source=Text(str(source)), tokenizer=Bytes(), validation=0.05, split="tail"),
        model=model.small("tiny", width=96, num_heads=4, context=128),
        optim=AdamW(peak=5e-3),
        schedule=Schedule("linear", warmup=20, floor=0.0),
        evaluation=Evaluation(every=100, prompt="def "),
        steps=steps,
        batch=16,
    )

    # 3. Training. `report.html` in the folder has the curves.
    train(experiment, folder)

    # 4. What it learned, measured on the end of the text, which it has not seen. `metrics.jsonl`
    #    has a line for each evaluation. zlib may look back over 32,000 bytes, the model over 128.
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    bits = [one["validation_bits_per_byte"] for one in lines if "validation_bits_per_byte" in one]
    end = text.encode()[-len(text) // 20 :]
    squeezed = 8 * len(zlib.compress(end, 9)) / len(end)
    print(f"\nheld-out text: {bits[-1]:.2f} bits a byte; zlib {squeezed:.2f}\n")
    trained = gptjax.load(folder)
    print(trained.generate("def ", new_tokens=200, temperature=0.7, seed=1))


if __name__ == "__main__":
    main(Path("runs/examples/pretrain"))
