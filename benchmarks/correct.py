"""Share of misspelled words that runs of `configs/spelling.py` correct, against a corrector by edit
distance and word counts, and against copying.

    python benchmarks/correct.py RUN ... --books books.jsonl.gz

The corrector looks among the words of the books and the right words of the training pairs for the
most frequent one at one edit (a letter lost, added or replaced, or two neighbours exchanged), then
at two; a word of the training pairs counts once more each time it is there. Where there is none,
it copies. A run writes each word once, greedily or with `--beams`; with `--known` the first of
the beams that is a word of the same dictionary is taken, if there is one.

Source: Norvig 2007, How to Write a Spelling Corrector.
"""

from __future__ import annotations

import argparse
import runpy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import gptjax
from gptjax.core import config
from gptjax.data.documents.records import Records, read_records
from gptjax.evaluate.figure import mean_of
from gptjax.train.experiment import Experiment

MAKER = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "spelling_pairs.py"))
LETTERS: str = MAKER["LETTERS"]


def edits(word: str) -> set[str]:
    """All words at one edit."""
    cuts = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    lost = {a + b[1:] for a, b in cuts if b}
    exchanged = {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    replaced = {a + letter + b[1:] for a, b in cuts if b for letter in LETTERS}
    added = {a + letter + b for a, b in cuts for letter in LETTERS}
    return lost | exchanged | replaced | added


def corrected(word: str, counts: Mapping[str, int]) -> str:
    """The most frequent known word at the least number of edits, up to two."""
    near = edits(word)
    found = near & counts.keys() or {
        further for one in near for further in edits(one) if further in counts
    }
    return max(found, key=lambda one: (counts[one], one), default=word)


def pairs_of(path: str) -> tuple[list[str], list[str]]:
    """Misspelled and right words of a file."""
    found = [(one.source or "", one.text) for one in read_records(Records(path))]
    return [wrong for wrong, _ in found], [right for _, right in found]


def said(name: str, answers: list[str], right: list[str]) -> float:
    """Prints the share of right answers with its interval, and returns it."""
    same = [answer == wanted for answer, wanted in zip(answers, right, strict=True)]
    found = mean_of(np.asarray(same, float))
    print(f"{name}: {found.value:.4f} right ({found.low:.4f} to {found.high:.4f})", flush=True)
    return found.value


def answers_of(run: Path, wrong: list[str], beams: int, known: Mapping[str, int]) -> list[str]:
    """What a run makes of each word.

    Args:
      known: words of which the likeliest beam is taken; empty takes the likeliest.
    """
    asked = {"temperature": 0.0, "beams": beams, "new_tokens": 32, "batch": 64}
    if not known:
        return [one.text for one in gptjax.load(run).complete(wrong, **asked)]
    found = gptjax.load(run).complete(wrong, num_samples=beams, **asked)
    kept = [found[n : n + beams] for n in range(0, len(found), beams)]
    return [next((one.text for one in group if one.text in known), group[0].text) for group in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="run directories of spelling")
    parser.add_argument("--books", required=True, help="the file of books, for the dictionary")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--known", action="store_true", help="prefer words of the dictionary")
    args = parser.parse_args()
    source = config.load_config(Experiment, args.runs[0] / "config.json").data.source
    (_, known), (wrong, right) = pairs_of(source.path), pairs_of(source.held_out)
    counts: Counter[str] = MAKER["word_counts"](args.books)
    counts.update(known)
    share = sum(word in counts for word in right) / len(right)
    print(f"{len(wrong)} misspellings; the dictionary has the right word of {share:.4f}")
    said("copying", wrong, right)
    said("edit distance", [corrected(word, counts) for word in wrong], right)
    dictionary = counts if args.known else {}
    found = [
        said(str(run), answers_of(run, wrong, args.beams, dictionary), right) for run in args.runs
    ]
    print(f"mean of {len(found)}: {sum(found) / len(found):.4f}")


if __name__ == "__main__":
    main()
