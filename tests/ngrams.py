"""A language model of counted bytes, which learns a text by heart in milliseconds: a stand-in for a
trained model where a test needs one that has memorised, and one that has not."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np

from gptjax.data import Bytes
from gptjax.data.tokenizers.tokenizer import train_tokenizer
from gptjax.evaluate.requests import Rolled, Score, Scored, Write
from gptjax.generate import Completion

TOKENIZER = train_tokenizer(Bytes(), [])


class Ngrams:
    """p of a byte after the `order` bytes before it, mixed with shorter contexts (Witten–Bell)."""

    def __init__(self, texts, order=8):
        self.order = order
        self.counts = defaultdict(Counter)
        for text in texts:
            ids = TOKENIZER.encode(text).tolist()
            for at, following in enumerate(ids):
                for size in range(min(order, at) + 1):
                    self.counts[tuple(ids[at - size : at])][following] += 1

    def distribution(self, before):
        p = np.full(257, 1 / 257)
        for size in range(min(self.order, len(before)) + 1):
            counts = self.counts.get(tuple(before[len(before) - size :]))
            if counts is None:
                break
            total, kinds = counts.total(), len(counts)
            p = p * (kinds / (total + kinds))
            for following, count in counts.items():
                p[following] += count / (total + kinds)
        return p

    def logprobs(self, ids):
        return [math.log(self.distribution(ids[:at])[one]) for at, one in enumerate(ids)]

    def __call__(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        if isinstance(request, Write):
            return self.written(request)
        context = list(_ids(request.context)) if isinstance(request, Score) else []
        rest = list(_ids(request.continuation if isinstance(request, Score) else request.text))
        found = self.logprobs(context + rest)[len(context) :]
        if not isinstance(request, Score):
            return Rolled(sum(found), len(found))
        return Scored(sum(found), greedy=False, tokens=len(found))

    def written(self, request):
        prompt, settings = list(_ids(request.context)), request.settings
        numbers, ids = np.random.default_rng(settings.seed), []
        for _ in range(settings.new_tokens):
            p = self.distribution(prompt + ids)
            ids.append(int(p.argmax() if not settings.temperature else numbers.choice(257, p=p)))
        asked = getattr(settings, "prompt_logprobs", False)
        return Completion(
            prompt=TOKENIZER.decode(prompt),
            text=TOKENIZER.decode(ids),
            ids=ids,
            logprobs=[],
            reason="length",
            prompt_logprobs=self.logprobs(prompt)[1:] if asked else None,
        )


def _ids(text):
    return TOKENIZER.encode(text).tolist() if isinstance(text, str) else text
