"""Makes JSON lines of the pictures and questions that the package easy-vqa ships.

    pip install --no-deps easy-vqa
    python examples/easy_vqa.py data/easy_vqa

writes `train.jsonl` (38,575 questions about 4,000 pictures) and `test.jsonl` (9,673 about 1,000
others), one object a line with `image`, `prompt` and `answer`, and prints the baselines: the most
frequent answer, and the most frequent answer to each question, which looks at no picture. A second
argument names the folder of the package where it is unpacked but not installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

YES_NO = ("yes", "no")


def package(given: str | None) -> Path:
    """The folder of the package."""
    if given is not None:
        return Path(given)
    try:  # by its files: `import easy_vqa` would find this script
        installed = importlib.metadata.distribution("easy-vqa")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("easy-vqa is not installed: pip install --no-deps easy-vqa")
    return Path(str(installed.locate_file("easy_vqa")))


def records(folder: Path) -> list[dict[str, str]]:
    """The questions of one part of the package."""
    asked = json.loads((folder / "questions.json").read_text())
    return [
        {"image": str(folder / "images" / f"{number}.png"), "prompt": prompt, "answer": answer}
        for prompt, answer, number in asked
    ]


def baselines(train: list[dict[str, str]], test: list[dict[str, str]]) -> dict[str, float]:
    """The share of right answers without a look at the pictures."""
    most = Counter(one["answer"] for one in train).most_common(1)[0][0]
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for one in train:
        by_question[one["prompt"]][one["answer"]] += 1

    def told(one: dict[str, str]) -> bool:
        known = by_question[one["prompt"]].most_common(1)
        return bool(known) and known[0][0] == one["answer"]

    def share(right: list[bool]) -> float:
        return sum(right) / max(1, len(right))

    return {
        "the most frequent answer": share([one["answer"] == most for one in test]),
        "the question alone": share([told(one) for one in test]),
        "… of yes and no": share([told(one) for one in test if one["answer"] in YES_NO]),
        "… of others": share([told(one) for one in test if one["answer"] not in YES_NO]),
    }


def main(out: str, given: str | None = None) -> None:
    """Writes both files."""
    folder, target = package(given) / "data", Path(out)
    target.mkdir(parents=True, exist_ok=True)
    parts = {part: records(folder / part) for part in ("train", "test")}
    for part, found in parts.items():
        lines = "".join(json.dumps(one) + "\n" for one in found)
        (target / f"{part}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{target / part}.jsonl: {len(found):,} questions")
    for name, share in baselines(parts["train"], parts["test"]).items():
        print(f"{name}: {share:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
