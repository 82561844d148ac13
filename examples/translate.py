"""Translates numbers from English to German words, whose order differs: 32 is two-and-thirty.

    python examples/translate.py                (a minute and a half of one core)

An encoder reads `thirty-two`, a decoder writes `zweiunddreißig`, letter by letter, and looks back
at what the encoder read. 800 of the numbers below 1,000 are learned, 199 others are asked. What to
type next:

    gptjax sample runs/examples/translate --prompt "seven hundred ninety-one" --beams 4
    python train.py configs/tatoeba_en_zh.py --data.source.path YOUR_PAIRS.tsv   (real sentences)
"""

from __future__ import annotations

import random
from pathlib import Path

import gptjax
from gptjax.data import Characters, DataConfig, Records, SequenceToSequence
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

ENGLISH = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen"""
GERMAN = """null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn
fünfzehn sechzehn siebzehn achtzehn neunzehn"""
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ZEHNER = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
SMALL, KLEIN, TY, ZIG = (words.split() for words in (ENGLISH, GERMAN, TENS, ZEHNER))


def english(n: int) -> str:
    """A number below 1,000 in English words."""
    if n >= 100:
        return f"{SMALL[n // 100]} hundred" + (f" {english(n % 100)}" if n % 100 else "")
    if n < 20:
        return SMALL[n]
    return TY[n // 10 - 2] + (f"-{SMALL[n % 10]}" if n % 10 else "")


def german(n: int) -> str:
    """A number below 1,000 in German words: the ones come before the tens."""
    if n >= 100:
        hundred = f"{'ein' if n < 200 else KLEIN[n // 100]}hundert"
        return hundred + (german(n % 100) if n % 100 else "")
    if n < 20:
        return KLEIN[n]
    ones = "ein" if n % 10 == 1 else KLEIN[n % 10]
    return f"{ones}und{ZIG[n // 10 - 2]}" if n % 10 else ZIG[n // 10 - 2]


def main(folder: Path, steps: int = 600) -> None:
    """Trains an encoder-decoder and asks it for numbers that it has not seen."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = random.Random(0).sample(range(1, 1000), 999)
    told, asked = numbers[:800], numbers[800:]
    lines = (f"{english(n)}\t{german(n)}\n" for n in told)
    (folder / "numbers.tsv").write_text("".join(lines), "utf-8")
    experiment = Experiment(
        data=DataConfig(
            source=Records(str(folder / "numbers.tsv")),
            tokenizer=Characters(),
            task=SequenceToSequence(),
            validation=0.05,
        ),
        model=ModelConfig(
            context=64,
            width=64,
            num_layers=2,
            encoder_layers=2,
            num_heads=4,
            positions="rope",
            norm="rmsnorm",
            compute="float32",
        ),
        optim=AdamW(peak=4e-3),
        schedule=Schedule("linear", warmup=30, floor=0.0),
        evaluation=Evaluation(every=200, prompt="thirty-two"),
        steps=steps,
        batch=32,
    )
    train(experiment, folder / "translate")

    opened = gptjax.load(folder / "translate")
    said = opened.complete([english(n) for n in asked], temperature=0, new_tokens=40)
    right = [one.text == german(n) for one, n in zip(said, asked, strict=True)]
    print(f"\n{sum(right)} of {len(asked)} new numbers right")
    for n, one, fits in sorted(zip(asked, said, right, strict=True), key=lambda each: each[2])[:3]:
        print(f"{english(n)} → {one.text}" + ("" if fits else f"  (it is {german(n)})"))


if __name__ == "__main__":
    main(Path("runs/examples"))
