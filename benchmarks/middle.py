"""Filling in the middle of held-out Python: exact match and bits per byte of a line or identifier.

    python benchmarks/middle.py runs/fill_in_middle

A line, or an identifier, of a held-out file is taken out; up to 100 bytes before it and 70 after it
are given. The run fills it in from both sides, and continues the text from the left side alone,
as any language model does. The baseline is a byte n-gram model (order 6, interpolated after Witten
and Bell) of 2 MB of the training text. Bits per byte are those of what was taken out, without its
end.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import gptjax
from gptjax import data
from gptjax.api import Model
from gptjax.core import config
from gptjax.data.store import Store
from gptjax.data.tasks.middle import CURSOR
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.evaluate.figure import Figure, mean_of
from gptjax.generate import token_logprobs
from gptjax.train.experiment import Experiment

ORDER = 6
BEFORE, AFTER = 100, 70
"""Characters."""


class Hole(NamedTuple):
    before: str
    middle: str
    after: str
    ends: str
    """Expression of where an answer ends that has not ended before."""


def texts(store: Store, tokenizer: Tokenizer) -> list[str]:
    """The documents of a store."""
    borders = zip(store.offsets[:-1], store.offsets[1:], strict=True)
    return [tokenizer.decode(store.ids[int(a) : int(b)][1:-1]) for a, b in borders]


def holes(documents: Sequence[str], kind: str, count: int) -> list[Hole]:
    """Lines of code, or identifiers, of different places."""
    draw, made = random.Random(0), []
    while len(made) < count:
        text = draw.choice(documents)
        if len(text) < 1000 or not text.isascii() or CURSOR in text:
            continue
        start = text.find("\n", draw.randrange(300, len(text) - 300)) + 1
        line = text[start:].split("\n", 1)[0]
        code = line.strip()
        if len(line) > 70 or len(code) < 8 or code.startswith(("#", '"', "'")):
            continue
        if not re.search(r"[=(:]|^(return|import|from|raise|del)\b", code):
            continue
        begin, stop = start + len(line) - len(line.lstrip()), start + len(line)
        ends = "\n"
        if kind == "identifier":
            names = list(re.finditer(r"[A-Za-z_]\w{2,}", text[begin:stop]))
            if not names:
                continue
            name = draw.choice(names)
            begin, stop, ends = begin + name.start(), begin + name.end(), r"\W"
        before = text[max(0, begin - BEFORE) : begin]
        made.append(Hole(before, text[begin:stop], text[stop : stop + AFTER], ends))
    return made


def bits(opened: Model, asked: list[list[int]], holes: list[Hole]) -> list[float]:
    """Bits of each middle after what was read."""
    out, width = [], opened.config.context
    score = jax.jit(token_logprobs, static_argnums=0)
    for start in range(0, len(asked), 16):
        rows, lengths, spans = np.zeros((16, width), np.int32), np.ones(16, np.int32), []
        for row, (read, hole) in enumerate(
            zip(asked[start : start + 16], holes[start : start + 16], strict=True)
        ):
            middle = opened.tokenizer.encode(hole.middle).tolist()
            ids = [*read, *middle][-width:]
            rows[row, : len(ids)], lengths[row] = ids, len(ids)
            spans.append((len(ids) - len(middle), len(ids)))
        found = np.asarray(score(opened.config, opened.params, rows, lengths))
        out += [-float(found[i, a:b].sum()) / math.log(2) for i, (a, b) in enumerate(spans)]
    return out


class Ngrams(NamedTuple):
    """Counts of bytes after each beginning of up to `ORDER` − 1 bytes."""

    after: dict[str, Counter]

    def chances(self, context: str) -> dict[str, float]:
        """Interpolated probabilities of the next character."""
        mixed = dict.fromkeys(map(chr, range(128)), 1 / 128)
        for size in range(ORDER):
            known = self.after.get(context[len(context) - size :] if size else "")
            if known:
                total, kinds = known.total(), len(known)
                mixed = {c: (known[c] + kinds * p) / (total + kinds) for c, p in mixed.items()}
        return mixed

    def bits(self, hole: Hole) -> float:
        text, left = hole.before + hole.middle, len(hole.before)
        places = range(left, len(text))
        return -sum(math.log2(self.chances(text[:i])[text[i]]) for i in places)

    def write(self, hole: Hole) -> str:
        text = hole.before
        while len(text) < len(hole.before) + 80:
            chances = self.chances(text)
            text += max(chances, key=chances.__getitem__)
            if re.match(hole.ends, text[-1]):
                break
        return text[len(hole.before) :]


def ngrams(documents: Sequence[str], size: int = 2_000_000) -> Ngrams:
    """Counts of the first ASCII documents, in an order that is drawn."""
    order = [text for text in documents if text.isascii()]
    random.Random(0).shuffle(order)
    text = "".join(order)[:size]
    after: dict[str, Counter] = defaultdict(Counter)
    for length in range(ORDER):
        for i in range(length, len(text)):
            after[text[i - length : i]][text[i]] += 1
    return Ngrams(dict(after))


def said(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def report(name: str, holes: list[Hole], answers: list[str], cost: list[float]) -> None:
    """Prints exact match, and bits per byte over all bytes."""
    right = [a.strip() == hole.middle.strip() for a, hole in zip(answers, holes, strict=True)]
    size = sum(len(hole.middle) for hole in holes)
    exact = mean_of(np.array(right, float))
    print(f"  {name:20} exact {said(exact)}, {sum(cost) / size:.3f} bits per byte", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=300)
    args = parser.parse_args()
    prepared = data.prepare(config.load_config(Experiment, args.runs[0] / "config.json").data)
    train, held_out = (texts(s, prepared.tokenizer) for s in (prepared.train, prepared.validation))
    counted = ngrams(train)
    for kind in ("line", "identifier"):
        asked = holes(held_out, kind, args.count)
        print(f"{kind}: {len(asked)} of {len(held_out)} held-out files")
        told = [counted.write(hole) for hole in asked]
        report(
            "byte 6-grams",
            asked,
            [cut(*pair) for pair in zip(told, asked, strict=True)],
            [counted.bits(hole) for hole in asked],
        )
        for run in args.runs:
            opened = gptjax.load(run)
            sides: dict[str, Callable[[Hole], str]] = {
                "left side alone": lambda hole: hole.before,
                "both sides": lambda hole: f"{hole.before}{CURSOR}{hole.after}",
            }
            for name, form in sides.items():
                prompts = [form(hole) for hole in asked]
                ids = [
                    opened.task.prompt(
                        opened.tokenizer.encode(p).tolist(), opened.tokenizer, False
                    )[1]
                    for p in prompts
                ]
                room = opened.config.context - max(map(len, ids))
                written = opened.complete(
                    prompts, temperature=0.0, new_tokens=min(80, room), batch=32
                )
                answers = [one.text for one in written]
                answers = [cut(*pair) for pair in zip(answers, asked, strict=True)]
                report(f"{run.name}, {name}", asked, answers, bits(opened, ids, asked))
                if name == "both sides":
                    for hole, answer in list(zip(asked, answers, strict=True))[:4]:
                        print(f"    {hole.middle!r} ← {answer!r}")


def cut(answer: str, hole: Hole) -> str:
    """An answer up to where a line or an identifier ends."""
    return re.split(hole.ends, answer, maxsplit=1)[0]


if __name__ == "__main__":
    main()
