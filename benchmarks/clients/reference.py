"""Scores in process what an evaluator has scored over HTTP: `lm_eval_calls.py` compares both.

python benchmarks/clients/reference.py MODEL ITEMS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gptjax
from gptjax import model as models
from gptjax.api import Model
from gptjax.generate import token_logprobs

ROWS, STEP = 8, 128
"""Rows that are computed together, and what their width is a multiple of, in tokens."""


def references(model: Model, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each item its log-likelihood, whether each token of the continuation is the
    likeliest, and whether the model's tokenizer gives the same ids."""
    config, size = model.config, model.tokenizer.vocab_size

    @jax.jit
    def scored(params, tokens, lengths):
        place = jnp.arange(tokens.shape[1])[None]
        positions = jnp.where(place < lengths[:, None], place, -1)
        hidden = models.forward(config, params, tokens, positions=positions).hidden

        def likeliest(row):
            return models.unembed(config, params, row)[:, :size].argmax(-1)

        scores = token_logprobs(config, params, tokens, lengths, jnp.int32(size))
        return scores, jax.lax.map(likeliest, hidden)

    found: list[dict[str, Any]] = [{} for _ in items]
    order = sorted(range(len(items)), key=lambda i: len(items[i]["before"] + items[i]["after"]))
    for start in range(0, len(order), ROWS):
        some = order[start : start + ROWS]
        rows = [items[i]["before"] + items[i]["after"] for i in some]
        tokens = np.zeros((ROWS, -(-max(map(len, rows)) // STEP) * STEP), np.int32)
        lengths = np.ones(ROWS, np.int32)
        for k, row in enumerate(rows):
            tokens[k, : len(row)], lengths[k] = row, len(row)
        scores, likeliest = map(np.asarray, scored(model.params, tokens, lengths))
        for k, i in enumerate(some):
            begin, end = len(items[i]["before"]), len(rows[k])
            found[i] = {
                "loglikelihood": float(scores[k, begin:end].sum(dtype=np.float64)),
                "likeliest": bool((likeliest[k, begin - 1 : end - 1] == items[i]["after"]).all()),
                "same_ids": _same_ids(model, items[i]),
            }
    return found


def _same_ids(model: Model, item: dict[str, Any]) -> bool:
    """Whether the ids are those of the whole text, as the harness cuts it."""
    encode = model.tokenizer.encode
    context, continuation = item["context"], item["continuation"]
    return list(encode(context + continuation)) == item["before"] + item["after"]


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps(references(gptjax.load(sys.argv[1]), given)))
