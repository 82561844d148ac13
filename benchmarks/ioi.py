"""Where SmolLM2-135M keeps who is given what: activation patching on 100 sentences with two names.

    python benchmarks/ioi.py --plot docs/reports/ioi.svg --heads 20

"When Mary and John went to the park, John gave the book to" is followed by " Mary". In the
corrupted run the second name is the other one's, so that the other name is the answer. The grid
patches the stream of the clean run into the corrupted one, a layer and a place at a time, all
sentences at once. What stands before the second mention is the same in both runs, so no patch there
can change anything: it is read once, into a cache. Read `sentences`, then `main`.

The task is Wang et al.'s, arXiv:2211.00593; the sentences are made here: ten beginnings, ten ends.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gptjax
from gptjax import model
from gptjax.lab import look
from gptjax.lab.look.pictures import heat_map, standalone

BEGINNINGS = (
    "When {a} and {b} went to the {place},",
    "After {a} and {b} had left the {place},",
    "While {a} and {b} were waiting at the {place},",
    "Then, as {a} and {b} came back from the {place},",
    "Because {a} and {b} had met at the {place},",
    "Yesterday {a} and {b} walked to the {place}, and",
    "Before {a} and {b} could leave the {place},",
    "Once {a} and {b} had found the {place},",
    "Soon {a} and {b} were talking in the {place}, and",
    "Since {a} and {b} had known the {place} for years,",
)
ENDS = (
    "gave the book to",
    "handed the key to",
    "passed the letter to",
    "showed the picture to",
    "offered the cake to",
    "sold the car to",
    "sent the box to",
    "gave a ring to",
    "brought a drink to",
    "threw the ball to",
)
NAMES = (
    *("Mary", "John", "Tom", "Anna", "James", "Sarah", "David", "Emma", "Paul", "Lucy"),
    *("Peter", "Laura", "Mark", "Alice", "Daniel", "Kate", "Simon", "Jane", "Robert", "Susan"),
)
PLACES = ("park", "school", "station", "market", "office", "garden", "library", "hotel")
PLACES_OF = ("second mention", "verb", "article", "object", "to")
"""The columns: what stands from the second mention on."""


class Sentences(NamedTuple):
    """Rows of ids."""

    before: Any
    """[B T] what stands before the second mention, padded at the right."""
    places: Any
    """[B T] its positions; −1 is padding."""
    clean: Any
    """[B 5] the second mention and what follows."""
    corrupted: Any
    positions: Any
    """[B 5]"""
    right: Any
    wrong: Any
    texts: list[str]


def sentences(tokenizer: Any, seed: int = 0) -> Sentences:
    """One sentence for each beginning and end; in every second one the giver is named first."""
    draw, rows, texts = np.random.default_rng(seed), [], []
    for number, (beginning, end) in enumerate((b, e) for b in BEGINNINGS for e in ENDS):
        receiver, giver = draw.choice(NAMES, 2, replace=False)
        a, b = (receiver, giver) if number % 2 else (giver, receiver)
        begin = beginning.format(a=a, b=b, place=draw.choice(PLACES))
        ids = [tokenizer.encode(f"{begin} {who} {end}").tolist() for who in (giver, receiver)]
        names = [tokenizer.encode(f" {who}").tolist() for who in (receiver, giver)]
        tail = len(tokenizer.encode(f" {end}"))
        assert len(ids[0]) == len(ids[1]) and all(len(one) == 1 for one in names), texts[-1:]
        assert tail == 4, (end, tail)
        assert sum(x != y for x, y in zip(*ids, strict=True)) == 1
        rows.append((*ids, names[0][0], names[1][0]))
        texts.append(f"{begin} {giver} {end}")
    begins = np.asarray([len(row[0]) - 5 for row in rows])
    width = begins.max()
    place = np.arange(width)[None]
    before = [row[0][:-5] + [0] * (width - len(row[0]) + 5) for row in rows]
    return Sentences(
        before=jnp.asarray(before, jnp.int32),
        places=jnp.asarray(np.where(place < begins[:, None], place, -1), jnp.int32),
        clean=jnp.asarray([row[0][-5:] for row in rows], jnp.int32),
        corrupted=jnp.asarray([row[1][-5:] for row in rows], jnp.int32),
        positions=jnp.asarray(begins[:, None] + np.arange(5)[None], jnp.int32),
        right=jnp.asarray([row[2] for row in rows]),
        wrong=jnp.asarray([row[3] for row in rows]),
        texts=texts,
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def patched(config: Any, params: Any, given: Any, by_head: bool) -> Any:
    """The grid of positions, or that of heads."""
    before, places, clean, corrupted, positions, right, wrong = given
    empty = model.empty_cache(config, len(before), before.shape[1] + clean.shape[1])
    cache = model.forward(config, params, before, positions=places, cache=empty).cache
    measure = look.logit_difference(config, params, right, wrong)
    patches = look.patch_heads if by_head else look.patch_positions
    told = {"positions": positions, "cache": cache}
    return patches(config, params, clean, corrupted, measure, **told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=100, help="sentences of the grid of positions")
    parser.add_argument("--heads", type=int, default=0, help="sentences of the grid of heads")
    parser.add_argument("--plot", type=Path)
    told = parser.parse_args()
    opened = gptjax.load(told.model)
    whole, begun = sentences(opened.tokenizer), time.monotonic()

    def run(rows: int, by_head: bool) -> Any:
        every = max(1, len(whole.texts) // rows)
        given = jax.tree.map(lambda x: x[::every][:rows], tuple(whole[:7]))
        return jax.device_get(patched(opened.config, opened.params, given, by_head))

    grid = run(told.rows, by_head=False)
    recovered = np.asarray(grid.recovered)
    found = {
        "sentences": len(grid.clean),
        "first": whole.texts[0],
        "logit difference": [float(grid.clean.mean()), float(grid.corrupted.mean())],
        "right": [float((grid.clean > 0).mean()), float((grid.corrupted > 0).mean())],
        "recovered": np.round(recovered, 3).tolist(),
        "seconds": round(time.monotonic() - begun, 1),
    }
    rows = [f"layer {number}" for number in range(len(recovered))]
    pictures = [heat_map(recovered, rows, PLACES_OF, title="stream", largest=1.0, cell=(40, 15))]
    if told.heads:
        heads = np.asarray(run(told.heads, by_head=True).recovered)
        found["heads"] = np.round(heads, 3).tolist()
        names = [f"head {number}" for number in range(heads.shape[1])]
        pictures += [heat_map(heads, rows, names, title="heads", cell=(34, 15))]
    print(json.dumps(found))
    if told.plot:
        beside = "".join(
            one.replace("<svg", f'<svg x="{420 * n}" y="0" height="600"', 1)
            for n, one in enumerate(pictures)
        )
        svg = f'<svg viewBox="0 0 {420 * len(pictures)} 600" role="img">{beside}</svg>'
        told.plot.write_text(standalone(svg), encoding="utf-8")


if __name__ == "__main__":
    main()
