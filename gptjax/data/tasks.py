"""A document becomes an example: the ids that the model reads and predicts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gptjax.data.tokenizer import Tokenizer


class Example(NamedTuple):
    """One document as ids [n]: every id but the first is predicted from those before it."""

    ids: np.ndarray


def language_model(ids: np.ndarray, tokenizer: Tokenizer) -> Example:
    """The whole text between two end-of-document ids: the first says that a document begins, the last is learned as its end.

    A tokenizer without an end-of-document id leaves the text bare.
    """
    if tokenizer.end_of_document is None:
        return Example(ids)
    end = np.asarray([tokenizer.end_of_document], np.int32)
    return Example(np.concatenate([end, ids, end]))
