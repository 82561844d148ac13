"""How an induction head forms: a model of two layers learns to continue random tokens that repeat.

    python benchmarks/induction.py --plot docs/reports/induction.svg

Rows are blocks of different random tokens, repeated with a period of its own in each row, so that
neither a fixed distance nor the token alone says what comes next. Every few steps the loss on the
first pass (nothing to be learned there: ln of what is left) and on repeats is measured, beside the
best head's score of each kind, on repeated rows of another seed. Read `Toy`, then `grow`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.lab import look
from gptjax.lab.look.pictures import attention_map, standalone
from gptjax.model import ModelConfig
from gptjax.observe.charts import Curve, chart


@dataclass(frozen=True)
class Toy:
    """The model and its training; the attention of two layers is the least that can do it."""

    vocabulary: int = 64
    context: int = 48
    width: int = 64
    heads: int = 4
    layers: int = 2
    rows: int = 32
    steps: int = 1500
    every: int = 10
    peak: float = 3e-3
    seed: int = 0

    @property
    def config(self) -> ModelConfig:
        """RoPE, so that a head can look at the token before wherever it is."""
        return ModelConfig(
            vocab_size=self.vocabulary,
            context=self.context,
            width=self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            positions="rope",
            norm="rmsnorm",
            bias=False,
            tied=False,
        )


class Growth(NamedTuple):
    """What was measured after every few steps."""

    params: Any
    steps: np.ndarray
    first: np.ndarray
    """Loss on the first pass, nats."""
    repeats: np.ndarray
    """Loss on repeats, nats."""
    scores: dict[str, np.ndarray]
    """Kind → [measurements L N]."""

    @property
    def drop(self) -> int:
        """The first step at which the loss on repeats is below half of what it began with."""
        return int(self.steps[np.argmax(self.repeats < 0.5 * self.repeats[0])])

    def risen(self, kind: str) -> int:
        """The first step at which the best head of a kind has half of its last score."""
        best = self.scores[kind].max((1, 2))
        return int(self.steps[np.argmax(best > 0.5 * best[-1])])


def periodic_rows(key: Any, rows: int, length: int, vocabulary: int) -> tuple[Any, Any]:
    """Rows of different random tokens that repeat with a period from a quarter to a half of the
    row, and where each token has stood before."""
    keys = jax.random.split(key)
    order = jax.vmap(lambda k: jax.random.permutation(k, vocabulary))(
        jax.random.split(keys[0], rows)
    )
    period = jax.random.randint(keys[1], (rows, 1), length // 4, length // 2 + 1)
    place = jnp.arange(length)[None]
    return jnp.take_along_axis(order, place % period, axis=1), place >= period


def losses(config: ModelConfig, params: Any, tokens: Any) -> Any:
    """−ln p of every token after the first [B T−1]."""
    hidden = model.forward(config, params, tokens).hidden
    logprobs = jax.nn.log_softmax(model.unembed(config, params, hidden[:, :-1]))
    return -jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]


def grow(toy: Toy) -> Growth:
    """Trains the toy and measures it on the way."""
    config = toy.config
    half = toy.context // 2
    held = look.repeated_tokens(jax.random.key(toy.seed + 1), 8, half, toy.vocabulary)

    def objective(params: Any, _: Any, key: Any) -> Any:
        tokens, again = periodic_rows(key, toy.rows, toy.context, toy.vocabulary)
        counted = again[:, 1:].astype(jnp.float32)
        return (losses(config, params, tokens) * counted).sum() / counted.sum()

    def watch(params: Any) -> Any:
        lost = losses(config, params, held)
        scores = look.head_scores(look.attention_patterns(config, params, held), held)
        return lost[:, : half - 1].mean(), lost[:, half:].mean(), scores

    begin = model.init(config, jax.random.key(toy.seed))
    fitted = look.minimise(
        *(objective, begin, None),
        steps=toy.steps,
        peak=toy.peak,
        seed=toy.seed,
        watch=watch,
        every=toy.every,
    )
    first, repeats, scores = jax.device_get(fitted.watched)
    steps = toy.every * (1 + np.arange(len(first)))
    return Growth(fitted.params, steps, first, repeats, scores)


def picture(toy: Toy, growth: Growth) -> str:
    """The losses, the scores, and what the best induction head looks at."""
    x = growth.steps.tolist()

    def curve(name: str, values: np.ndarray, style: str) -> Curve:
        return Curve(name, list(zip(x, values.tolist(), strict=True)), style)

    loss = chart(
        [curve("repeats", growth.repeats, "main"), curve("first pass", growth.first, "raw")],
        title="loss on held-out rows",
        unit="loss, nats: first pass (light), repeats (blue)",
        size=(640, 220),
        zero=True,
    )
    best = {kind: scores.max((1, 2)) for kind, scores in growth.scores.items()}
    score = chart(
        [
            curve("previous token", best["previous"], "raw"),
            curve("induction", best["induction"], "validation"),
        ],
        title="best head of a kind",
        unit="best head's score: previous token (light), induction (orange)",
        size=(640, 220),
        zero=True,
    )
    tokens = look.repeated_tokens(jax.random.key(9), 1, toy.context // 2, toy.vocabulary)
    patterns = np.asarray(look.attention_patterns(toy.config, growth.params, tokens))
    last = growth.scores["induction"][-1]
    layer, head = np.unravel_index(last.argmax(), last.shape)
    shown = attention_map(patterns[layer, 0, head], title=f"head {layer}.{head}", side=200)
    label = f"head {layer}.{head}: what it looks at, queries downwards"
    parts = [
        loss.replace("<svg", '<svg y="0" width="640" height="220"', 1),
        score.replace("<svg", '<svg y="240" width="640" height="220"', 1),
        shown.replace("<svg", '<svg x="670" y="30"', 1),
        f'<text x="670" y="20">{label}</text>',
    ]
    whole = f'<svg viewBox="0 0 960 470" role="img">{"".join(parts)}</svg>'
    return standalone(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=Toy.steps)
    parser.add_argument("--peak", type=float, default=Toy.peak)
    parser.add_argument("--width", type=int, default=Toy.width)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    told = parser.parse_args()
    toy = Toy(steps=told.steps, peak=told.peak, width=told.width, seed=told.seed)
    growth = grow(toy)
    last = {kind: np.round(scores[-1], 3).tolist() for kind, scores in growth.scores.items()}
    found = {
        "loss on repeats": [float(growth.repeats[0]), float(growth.repeats[-1])],
        "loss on the first pass": [float(growth.first[0]), float(growth.first[-1])],
        "drop": growth.drop,
        "risen": {kind: growth.risen(kind) for kind in growth.scores},
        "scores": last,
    }
    print(json.dumps(found, indent=1))
    if told.plot:
        told.plot.write_text(picture(toy, growth), encoding="utf-8")


if __name__ == "__main__":
    main()
