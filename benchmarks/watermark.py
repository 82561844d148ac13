"""What a watermark costs and how surely it is found: AUROC at several lengths, perplexity with and
without it, false positives on text that people wrote, and what is left after edits.

    python benchmarks/watermark.py --books books.jsonl.gz

Prompts are passages of the books; the model continues each for as many tokens, sampling its own
distribution, once with a mark and once without. All texts are detected as text: decoded, and split
into tokens anew. Human texts are passages of the same books that no prompt is taken from. The key
is fixed, so that a run can be repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import gptjax
from gptjax.evaluate.figure import Figure, mean_of
from gptjax.evaluate.probes.finding import area_under_roc
from gptjax.generate.watermark import Watermark, detect_watermark

KEY = "5eed" * 8
LENGTHS = (50, 100, 200)
LEVELS = (0.01, 0.001)


def passages(path: Path, tokenizer, count: int, size: int) -> list[list[int]]:
    """The first `size` tokens of paragraphs from as many places of the books, spread evenly."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    texts = [text for text in texts if len(text) > 12 * size]
    numbers = np.linspace(0, len(texts) - 1, count)
    found, used = [], {}
    for number in numbers.astype(int).tolist():
        start = 6 * size * used.get(number, 0) + len(texts[number]) // 10
        used[number] = used.get(number, 0) + 1
        text = texts[number][start : start + 12 * size]
        ids = tokenizer.encode(text[text.find(" ") + 1 :]).tolist()
        if len(ids) >= size:
            found.append(ids[:size])
    return found


def shown(figure: Figure, places: int = 3) -> str:
    return f"{figure.value:.{places}f} ({figure.low:.{places}f} to {figure.high:.{places}f})"


def edited(ids: list[int], share: float, pool: list[int], seed: int) -> list[int]:
    """The ids, a share of which are replaced by ids of other texts."""
    draw = np.random.default_rng(seed)
    hit = draw.random(len(ids)) < share
    return [int(draw.choice(pool)) if h else i for i, h in zip(ids, hit, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--books", type=Path, required=True, help="books.jsonl.gz, with `text`")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--human", type=int, default=2000, help="passages that people wrote")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--gamma", type=float, default=0.25)
    parser.add_argument("--delta", type=float, default=2.0)
    parser.add_argument("--width", type=int, default=1)
    options = parser.parse_args()
    mark = Watermark(KEY, options.gamma, options.delta, options.width)
    model = gptjax.load(options.model).prepared()
    tokenizer, longest = model.tokenizer, max(LENGTHS)
    human = passages(options.books, tokenizer, options.human, longest + 8)
    prompts = [ids[:48] for ids in human[:: max(1, len(human) // options.prompts)]]
    prompts = prompts[: options.prompts]
    more = {"new_tokens": longest, "min_new_tokens": longest, "temperature": 1.0, "top_p": 1.0}
    both = {}
    for name, text in (("marked", mark.text), ("unmarked", "")):
        both[name] = model.complete(prompts, watermark=text, batch=options.batch, **more)

    def again(ids: list[int]) -> list[int]:
        return tokenizer.encode(tokenizer.decode(ids)).tolist()

    def p_of(ids: list[int]) -> float:
        return detect_watermark(again(ids), mark).p_value

    def z_of(ids: list[int]) -> float:
        return detect_watermark(again(ids), mark).z

    print(f"{options.model}, gamma {mark.gamma}, delta {mark.delta}, width {mark.width};", end=" ")
    print(f"{len(prompts)} prompts of {len(prompts[0])} tokens, {len(human)} human passages\n")
    header = "AUROC, unmarked | AUROC, human | found at p ≤ 0.01 | at p ≤ 0.001"
    print(f"| tokens | {header} | false positives, human, p ≤ 0.01 | p ≤ 0.001 |")
    print("|" + "---|" * 7)
    for length in LENGTHS:
        marked = [one.ids[:length] for one in both["marked"]]
        plain = [one.ids[:length] for one in both["unmarked"]]
        people = [ids[8 : 8 + length] for ids in human]
        z = [z_of(ids) for ids in marked]
        areas = [area_under_roc(z, [z_of(ids) for ids in other]) for other in (plain, people)]
        found = [p_of(ids) for ids in marked]
        wrong = [p_of(ids) for ids in people]
        shares = [mean_of([p <= level for p in ps]) for ps in (found, wrong) for level in LEVELS]
        cells = [*map(shown, areas), *map(shown, shares[:2]), *(shown(s, 4) for s in shares[2:])]
        print(f"| {length} | {' | '.join(cells)} |")
    others = [replace(mark, key=f"{n:032x}") for n in range(1, 21)]
    people = [again(ids[8 : 8 + longest]) for ids in human[:: max(1, len(human) // 400)]]
    for level in LEVELS:
        shares = [
            np.mean([detect_watermark(t, k).p_value <= level for t in people]) for k in others
        ]
        print(f"\n20 other keys, {len(people)} human passages of {longest}, p ≤ {level}:", end=" ")
        print(f"mean {shares.mean():.4f}, largest {shares.max():.4f}", end="")
    print()
    nats = {
        name: np.asarray([-np.mean(one.logprobs) for one in done]) for name, done in both.items()
    }
    cost = mean_of(nats["marked"] - nats["unmarked"])
    print("\nnats per token under the model itself:", end=" ")
    print(", ".join(f"{name} {shown(mean_of(values))}" for name, values in nats.items()))
    print(f"cost: {shown(cost)} nats per token;", end=" ")
    print("perplexity", ", ".join(f"{name} {np.exp(v.mean()):.2f}" for name, v in nats.items()))
    pool = [i for ids in human[::20] for i in ids]
    for share in (0.1, 0.3, 0.5):
        changed = [edited(one.ids, share, pool, n) for n, one in enumerate(both["marked"])]
        found = mean_of([p_of(ids) <= 0.001 for ids in changed])
        print(f"{share:.0%} of {longest} tokens replaced: found at p ≤ 0.001 {shown(found)}")


if __name__ == "__main__":
    main()
