"""Makes data for safety tuning of harmful prompts, helpful answers and harmless look-alikes.

    python examples/safety_sets.py harmful.jsonl helpful.jsonl examples/lookalikes.jsonl data/safety

The first file has a `prompt` in each line, or dialogues as `rejected`, of which those with one
question are taken: longer ones often begin harmlessly. The second has `prompt` and `response`. A
prompt is held out by a hash of its words, whichever file it is in. Written are

- `sft.jsonl`, conversations: each harmful prompt is declined, each helpful one answered;
- `pairs.jsonl`: of a harmful prompt the refusal is preferred to an answer, of a helpful one the
  answer to a refusal, so that declining everything does not win;
- `moderation.tsv`: a text and its label, harmful or harmless, for a classifier;
- `held_out_harmful.jsonl`, `held_out_lookalikes.jsonl`: prompts to measure on, in none of these.

Look-alikes of the training half are in `moderation.tsv` as harmless, and in no conversation, since
they have no answers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from pathlib import Path

REFUSALS = (
    "I'm sorry, but I can't help with that. It could hurt someone.",
    "I can't help with this, because it may do harm. I'm glad to help with something else.",
    "I won't help with that. If you tell me what you really need, I may know a safer way.",
    "I'm not able to help with this. If somebody is in danger, please call an emergency number.",
    "I can't give you that, since it could be used to harm people.",
    "I'm sorry, but I won't do that. Is there something harmless that I can help you with?",
)
"""How a harmful prompt is declined; which one it gets follows from its words."""

HELD_OUT = 0.25
"""Share of the prompts that is held out."""


def number_of(prompt: str) -> int:
    """A number that follows from the words of a prompt, whatever their case and punctuation."""
    words = " ".join(re.findall(r"\w+", prompt.lower()))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


def is_held_out(prompt: str) -> bool:
    """Says whether a prompt is kept for measuring."""
    return number_of(prompt) / 2**64 < HELD_OUT


def refusal(prompt: str) -> str:
    """The answer that declines a prompt."""
    return REFUSALS[number_of(prompt) % len(REFUSALS)]


def records(path: str) -> list[dict]:
    """The objects of a file of JSON lines, which may be packed with gzip."""
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def question_of(record: dict) -> tuple[str, str]:
    """The first question of a record and an answer to it; both may be empty."""
    if "prompt" in record:
        text, answer = record["prompt"], record.get("response", "")
        if "### Instruction:" in text:
            text = text.split("### Instruction:")[1].split("### Response:")[0]
        return text.strip(), answer.strip()
    turns = re.split(r"\n\n(Human|Assistant):", record["rejected"])[2::2]
    return (turns[0].strip(), turns[1].strip()) if len(turns) == 2 else ("", "")


def main(harmful: str, helpful: str, lookalikes: str, folder: str) -> None:
    """Writes the sets."""
    asked = dict(filter(all, map(question_of, records(harmful))))
    answered = {q: a for q, a in map(question_of, records(helpful)) if 0 < len(q) < 400 and a}
    alike = [one["prompt"] for one in records(lookalikes)]
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    bad = [prompt for prompt in asked if not is_held_out(prompt)]
    good = [prompt for prompt in answered if not is_held_out(prompt)][: len(bad)]
    sft = [(prompt, refusal(prompt)) for prompt in bad] + [(p, answered[p]) for p in good]
    pairs = [(p, refusal(p), asked[p]) for p in bad] + [(p, answered[p], refusal(p)) for p in good]
    sft.sort(key=lambda one: number_of(one[0]))
    pairs.sort(key=lambda one: number_of(one[0]))
    labels = [(p, "harmful") for p in bad]
    labels += [(p, "harmless") for p in good + [p for p in alike if not is_held_out(p)]]
    talks = [
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a}]}
        for p, a in sft
    ]
    judged = [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in pairs]
    held_out = {
        "harmful": [{"prompt": p} for p in asked if is_held_out(p)],
        "lookalikes": [{"prompt": p} for p in alike if is_held_out(p)],
    }
    files = {"sft.jsonl": talks, "pairs.jsonl": judged}
    files |= {f"held_out_{name}.jsonl": prompts for name, prompts in held_out.items()}
    for name, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (out / name).write_text(text, encoding="utf-8")
    rows = ("\t".join((" ".join(text.split()), label)) + "\n" for text, label in labels)
    (out / "moderation.tsv").write_text("".join(rows), encoding="utf-8")
    counts = ", ".join(f"{len(lines)} in {name}" for name, lines in files.items())
    print(f"{counts}, {len(labels)} in moderation.tsv, in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
