"""Teaches the toy assistant of configs/chat_toy.py to be friendly, in rounds of feedback.

A scripted person talks with `gptjax chat`, says /good of a right and friendly answer and /bad of
any other, and `configs/kto_feedback.py` learns from the file.

    python examples/feedback_rounds.py runs/chat_toy 3
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from toy_sets import MANNERS, question

QUESTIONS = 48
CONFIGS = Path(__file__).parents[1] / "configs"


def liked(answer: str, value: int) -> bool:
    """What the person wants: a right answer in the first manner."""
    return answer == MANNERS[0].format(value)


def converse(run: str, judged: Path | None, seed: int) -> float:
    """Asks questions, judges each answer if there is a file for it, and returns the share that was
    liked."""
    command = [sys.executable, "-m", "gptjax", "chat", run, "--temperature", "1", "--top-p", "1"]
    command += ["--new-tokens", "32", *(("--feedback", str(judged)) if judged else ())]
    draw, good = random.Random(seed), 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as chat:
        assert chat.stdin and chat.stdout

        def say(line: str) -> None:
            print(line, file=chat.stdin, flush=True)

        for number in range(QUESTIONS):
            say(f"--forget --seed {QUESTIONS * seed + number + 1}")
            chat.stdout.readline()  # it repeats what changed
            asked, value = question(draw)
            say(asked)
            answer = chat.stdout.readline().strip()
            good += liked(answer, value)
            if number < 3:
                print(f"  {asked}  {answer}", flush=True)
            if judged:
                say("/good" if liked(answer, value) else "/bad")
        chat.stdin.close()
    return good / QUESTIONS


def main(run: str, rounds: int) -> None:
    """Prints the share of liked answers before each round, and after the last."""
    for number in range(1, rounds + 1):
        judged = Path(f"{run}_judged_{number}.jsonl")
        print(f"round {number}: {converse(run, judged, number):.0%} liked, judged in {judged}")
        taught = f"{run.split('_round')[0]}_round_{number}"
        flags = ["--start", run, "--data.source.path", str(judged), "--dir", taught]
        train = [sys.executable, "-m", "gptjax", "train", str(CONFIGS / "kto_feedback.py")]
        done = subprocess.run([*train, *flags], check=True, capture_output=True, text=True)
        print(next(line for line in done.stdout.splitlines() if line.startswith("done")))
        run = taught
    print(f"after {rounds} rounds: {converse(run, None, rounds + 1):.0%} liked")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
